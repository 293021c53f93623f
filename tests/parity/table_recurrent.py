"""Cases of the families with recurrent layers, and of attention with an output gate."""

from __future__ import annotations

from functools import partial

from parity.case import delta, layered, partial_rope, rope

_FULL, _SLIDING, _LINEAR, _CONV = "full_attention", "sliding_attention", "linear_attention", "conv"

_case = partial(layered, intermediate_size=40)

CASES = [
    _case("lfm2", "plain", 700, layer_types=[_CONV, _CONV, _FULL, _CONV]),
    _case("lfm2", "wide-kernel-biases-untied", 701, layer_types=[_CONV, _FULL, _CONV, _FULL], conv_L_cache=5,
          conv_bias=True, tie_word_embeddings=False, num_key_value_heads=1, **rope("default", 500.0)),
    _case("lfm2", "all-conv-adjusted", 702, layer_types=[_CONV] * 4, conv_L_cache=2, block_multiple_of=16,
          block_ffn_dim_multiplier=1.3),
    _case("lfm2", "indexes", 703, full_attn_idxs=[1], block_auto_adjust_ff_dim=False, norm_eps=1e-3),
    _case("qwen3_next", "plain", 713, head_dim=16, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
          shared_expert_intermediate_size=28, **delta(2, 4, 8, 12)),
    _case("qwen3_next", "equal-heads-dense-layers", 711, head_dim=12, num_experts=3, num_experts_per_tok=1,
          moe_intermediate_size=16, shared_expert_intermediate_size=12, mlp_only_layers=[0], norm_topk_prob=False,
          num_key_value_heads=1, tie_word_embeddings=True, **delta(3, 3, 10, 6, 2), **partial_rope(900.0, 0.5)),
    _case("qwen3_next", "many-values-per-key-biases", 712, head_dim=20, num_experts=4, num_experts_per_tok=3,
          moe_intermediate_size=8, shared_expert_intermediate_size=8, attention_bias=True, num_hidden_layers=3,
          layer_types=[_FULL, _LINEAR, _LINEAR], **delta(1, 5, 16, 8, 6), **partial_rope(1e5, 0.2)),
    _case("qwen3_5_text", "plain", 723, head_dim=16, **delta(2, 4, 8, 12)),
    _case("qwen3_5_text", "tied-mqa", 725, head_dim=24, num_key_value_heads=1, tie_word_embeddings=True,
          num_hidden_layers=5, layer_types=[_LINEAR, _FULL, _LINEAR, _LINEAR, _FULL], **delta(3, 6, 6, 10, 3),
          **partial_rope(1e4, 0.25, mrope_section=[1, 1, 1], mrope_interleaved=True)),
    _case("qwen3_5_text", "all-linear", 722, head_dim=8, num_hidden_layers=2, layer_types=[_LINEAR] * 2,
          **delta(2, 2, 12, 4)),
]  # fmt: skip
