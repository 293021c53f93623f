"""Cases of AFMoE, OLMo Hybrid and Lara: layers of two or three kinds."""

from __future__ import annotations

from parity.case import delta, experts, rope
from parity.case import layered as _case

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"


CASES = [
    _case("afmoe", "plain", 800, intermediate_size=40, head_dim=16, sliding_window=8, mup_enabled=True,
          num_dense_layers=2, **experts(5, 2, 12)),
    _case("afmoe", "mqa-tied-biases", 801, intermediate_size=56, head_dim=24, sliding_window=5, num_key_value_heads=1,
          tie_word_embeddings=True, attention_bias=True, num_hidden_layers=5, num_dense_layers=0, num_shared_experts=1,
          route_scale=2.5, rms_norm_eps=1e-3, layer_types=[_SLIDING, _FULL, _FULL, _SLIDING, _SLIDING],
          **experts(4, 3, 20), **rope("yarn", 700.0, factor=4.0, original_max_position_embeddings=32)),
    _case("afmoe", "all-full-one-expert", 802, intermediate_size=32, head_dim=12, sliding_window=128,
          num_key_value_heads=4, num_hidden_layers=3, layer_types=[_FULL] * 3, num_shared_experts=3,
          mup_enabled=True, **experts(3, 1, 8)),
    _case("olmo_hybrid", "plain", 830, intermediate_size=40, rope_parameters=dict(rope_theta=None),
          **delta(2, 4, 8, 12)),
    _case("olmo_hybrid", "rope-mqa-tied-biases", 811, intermediate_size=56, num_key_value_heads=1, head_dim=20,
          tie_word_embeddings=True, attention_bias=True, num_hidden_layers=5, linear_allow_neg_eigval=False,
          layer_types=[_FULL, _LINEAR, _LINEAR, _FULL, _LINEAR], **delta(3, 3, 10, 6, 2), **rope("default", 900.0)),
    _case("olmo_hybrid", "many-values-per-key-wide-kernel", 812, intermediate_size=24, num_hidden_layers=2,
          num_key_value_heads=4, rope_theta=None, **delta(1, 5, 6, 7, 6)),
    _case("olmo_hybrid", "sizes-left-out", 813, intermediate_size=32, num_hidden_layers=3, rms_norm_eps=1e-3,
          **rope("yarn", 500.0, factor=4.0, original_max_position_embeddings=32)),
    _case("lara_mini", "plain", 820, head_dim=16, sliding_window=8, shared_expert_intermediate_size=20,
          **experts(5, 2, 12), **delta(2, 4, 8, 12)),
    _case("lara_mini", "mqa-untied-biases", 821, head_dim=20, sliding_window=5, num_key_value_heads=1,
          tie_word_embeddings=False, attention_bias=True, num_hidden_layers=6, norm_topk_prob=False,
          shared_expert_intermediate_size=28, **experts(3, 1, 16), **delta(3, 3, 10, 6, 2), **rope("default", 600.0)),
    _case("lara_mini", "wide-kernel-without-sliding", 822, head_dim=12, sliding_window=128, num_hidden_layers=3,
          layer_types=[_LINEAR, _FULL, _LINEAR], shared_expert_intermediate_size=8, **experts(4, 3, 24),
          **delta(1, 5, 16, 8, 6)),
]  # fmt: skip
