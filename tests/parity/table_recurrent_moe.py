"""Cases of the families with recurrent layers and experts, and of LFM3."""

from __future__ import annotations

from typing import Any

from parity.case import delta, experts, partial_rope, rope
from parity.case import layered as _case

_FULL, _SLIDING, _LINEAR, _CONV = "full_attention", "sliding_attention", "linear_attention", "conv"


def _ropes(theta: float, fraction: float, sliding_theta: float) -> dict[str, Any]:
    full = rope("proportional", theta, partial_rotary_factor=fraction)["rope_parameters"]
    return {"rope_parameters": {_FULL: full, _SLIDING: rope("default", sliding_theta)["rope_parameters"]}}


CASES = [
    _case("qwen3_5_moe_text", "plain", 902, head_dim=16, **experts(5, 2, 20, 28), **delta(2, 4, 8, 12)),
    _case("qwen3_5_moe_text", "tied-mqa-one-expert", 905, head_dim=24, num_key_value_heads=1, tie_word_embeddings=True,
          num_hidden_layers=5, layer_types=[_LINEAR, _FULL, _LINEAR, _LINEAR, _FULL], **experts(3, 1, 16, 12),
          **delta(3, 6, 6, 10, 3), **partial_rope(1e4, 0.25, mrope_section=[1, 1, 1], mrope_interleaved=True)),
    _case("qwen3_5_moe_text", "many-values-per-key-biases", 904, head_dim=20, attention_bias=True, num_hidden_layers=3,
          layer_types=[_FULL, _LINEAR, _LINEAR], **experts(4, 3, 8, 8), **delta(1, 5, 16, 8, 6),
          **partial_rope(1e5, 0.2)),
    _case("qwen3_5_moe_text", "all-linear-all-experts", 903, head_dim=8, num_hidden_layers=2,
          layer_types=[_LINEAR] * 2, router_aux_loss_coef=0.02, **experts(3, 3, 12, 40), **delta(2, 2, 12, 4, 2)),
    _case("lfm2_moe", "plain", 910, intermediate_size=40, layer_types=[_CONV, _CONV, _FULL, _CONV],
          **experts(5, 2, 20)),
    _case("lfm2_moe", "wide-kernel-biases-untied", 911, intermediate_size=56, num_key_value_heads=1,
          num_hidden_layers=5, layer_types=[_FULL, _CONV, _FULL, _CONV, _CONV], conv_L_cache=5, conv_bias=True,
          tie_word_embeddings=False, num_dense_layers=1, routed_scaling_factor=2.5, norm_eps=1e-3,
          **experts(6, 3, 12), **rope("default", 500.0)),
    _case("lfm2_moe", "all-conv-not-normalized", 912, intermediate_size=24, num_hidden_layers=3,
          layer_types=[_CONV] * 3, conv_L_cache=2, num_dense_layers=0, norm_topk_prob=False, use_expert_bias=False,
          **experts(4, 1, 16)),
    _case("lfm2_moe", "no-bias-all-experts", 913, intermediate_size=32, num_key_value_heads=4, use_expert_bias=False,
          layer_types=[_CONV, _FULL, _FULL, _CONV], conv_L_cache=4, num_dense_layers=3, **experts(3, 3, 8)),
    _case("lfm3", "plain", 920, intermediate_size=40, num_hidden_layers=6, head_dim=16, sliding_window=7),
    _case("lfm3", "mqa-untied-biases-narrow-kernel", 921, intermediate_size=56, head_dim=20, num_key_value_heads=1,
          layer_types=[_FULL, _SLIDING, _CONV, _CONV, _FULL], num_hidden_layers=5, conv_L_cache=2, conv_bias=True,
          attention_bias=True, tie_word_embeddings=False, sliding_window=4, norm_eps=1e-3, **_ropes(700.0, 0.3, 90.0)),
    _case("lfm3", "no-gate-pre-norms", 922, intermediate_size=24, head_dim=8, num_key_value_heads=4,
          layer_types=[_SLIDING, _CONV, _SLIDING], num_hidden_layers=3, conv_L_cache=4, use_attention_gate=False,
          use_sandwich_norm=False, sliding_window=128, **_ropes(1e4, 1.0, 5e3)),
    _case("lfm3", "all-conv", 923, intermediate_size=32, num_hidden_layers=2, layer_types=[_CONV] * 2, head_dim=12),
]  # fmt: skip
