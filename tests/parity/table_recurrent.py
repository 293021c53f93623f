"""Cases of the families with recurrent layers, and of attention with an output gate."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope

_FULL, _SLIDING, _LINEAR, _CONV = "full_attention", "sliding_attention", "linear_attention", "conv"


def _case(family: str, name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _delta(keys: int, values: int, key_dim: int, value_dim: int, kernel: int = 4) -> dict[str, Any]:
    """Where a query hardly meets a key, the norm magnifies what rounding left: a larger eps keeps that small."""
    return dict(
        rms_norm_eps=1e-3, linear_num_key_heads=keys, linear_num_value_heads=values, linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim, linear_conv_kernel_dim=kernel,
    )  # fmt: skip


def _rope(theta: float, fraction: float, **more: Any) -> dict[str, Any]:
    return rope("default", theta, partial_rotary_factor=fraction, **more)


CASES = [
    _case("lfm2", "plain", 700, layer_types=[_CONV, _CONV, _FULL, _CONV]),
    _case("lfm2", "wide-kernel-biases-untied", 701, layer_types=[_CONV, _FULL, _CONV, _FULL], conv_L_cache=5,
          conv_bias=True, tie_word_embeddings=False, num_key_value_heads=1, **rope("default", 500.0)),
    _case("lfm2", "all-conv-adjusted", 702, layer_types=[_CONV] * 4, conv_L_cache=2, block_multiple_of=16,
          block_ffn_dim_multiplier=1.3),
    _case("lfm2", "indexes", 703, full_attn_idxs=[1], block_auto_adjust_ff_dim=False, norm_eps=1e-3),
    _case("qwen3_next", "plain", 713, head_dim=16, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
          shared_expert_intermediate_size=28, **_delta(2, 4, 8, 12)),
    _case("qwen3_next", "equal-heads-dense-layers", 711, head_dim=12, num_experts=3, num_experts_per_tok=1,
          moe_intermediate_size=16, shared_expert_intermediate_size=12, mlp_only_layers=[0], norm_topk_prob=False,
          num_key_value_heads=1, tie_word_embeddings=True, **_delta(3, 3, 10, 6, 2), **_rope(900.0, 0.5)),
    _case("qwen3_next", "many-values-per-key-biases", 712, head_dim=20, num_experts=4, num_experts_per_tok=3,
          moe_intermediate_size=8, shared_expert_intermediate_size=8, attention_bias=True, num_hidden_layers=3,
          layer_types=[_FULL, _LINEAR, _LINEAR], **_delta(1, 5, 16, 8, 6), **_rope(1e5, 0.2)),
    _case("qwen3_5_text", "plain", 723, head_dim=16, **_delta(2, 4, 8, 12)),
    _case("qwen3_5_text", "tied-mqa", 725, head_dim=24, num_key_value_heads=1, tie_word_embeddings=True,
          num_hidden_layers=5, layer_types=[_LINEAR, _FULL, _LINEAR, _LINEAR, _FULL], **_delta(3, 6, 6, 10, 3),
          **_rope(1e4, 0.25, mrope_section=[1, 1, 1], mrope_interleaved=True)),
    _case("qwen3_5_text", "all-linear", 722, head_dim=8, num_hidden_layers=2, layer_types=[_LINEAR] * 2,
          **_delta(2, 2, 12, 4)),
]  # fmt: skip
