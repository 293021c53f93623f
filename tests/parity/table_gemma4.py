"""Cases of Gemma 4. pad_token_id is None: transformers gives the embedding of the padding token no gradient.

(Where layers share keys and values, transformers needs per-layer inputs too.)
"""

from __future__ import annotations

from typing import Any

from parity.case import Case

F, S = "full_attention", "sliding_attention"
MOE = dict(enable_moe_block=True, num_experts=5, top_k_experts=2, moe_intermediate_size=20)


def _ropes(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    default = {"rope_type": "default"}
    return {"rope_parameters": {F: default | full, S: default | sliding}}


def _case(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, head_dim=10,
        global_head_dim=16, num_key_value_heads=2, max_position_embeddings=128, sliding_window=5,
        layer_types=[S, S, F], hidden_size_per_layer_input=0, vocab_size_per_layer_input=61, bos_token_id=1,
        eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    return Case(f"gemma4_text-{name}", "gemma4_text", base | hf, seed)


def _unified(name: str, seed: int, **hf: Any) -> Case:
    case = _case(name, seed, **hf)
    own = {key: value for key, value in case.hf.items() if "per_layer_input" not in key}
    return Case(f"gemma4_unified_text-{name}", "gemma4_unified_text", own, seed)


CASES = [
    _case("two-sizes", 500, final_logit_softcapping=9.5),
    _case("one-size-untied-biases", 501, head_dim=12, global_head_dim=12, layer_types=[F, S, F], attention_bias=True,
          tie_word_embeddings=False, hidden_size=40, rms_norm_eps=1e-3, hidden_activation="silu",
          **_ropes(dict(rope_theta=700.0), dict(rope_theta=50.0))),
    _case("layer-inputs", 502, hidden_size_per_layer_input=6, vocab_size_per_layer_input=67, num_key_value_heads=1,
          layer_types=[S, F], num_hidden_layers=2),
    _case("k-as-v", 503, attention_k_eq_v=True, num_global_key_value_heads=1, num_key_value_heads=4, head_dim=8,
          global_head_dim=20, layer_types=[F, S, S, F], num_hidden_layers=4, final_logit_softcapping=30.0,
          **_ropes(dict(rope_type="proportional", partial_rotary_factor=0.3, rope_theta=99.0, factor=2.5),
                   dict(rope_theta=20.0))),
    _case("shared-kv", 504, layer_types=[S, F, S, S, F], num_hidden_layers=5, num_kv_shared_layers=3,
          hidden_size_per_layer_input=8, sliding_window=3,
          **_ropes(dict(rope_type="proportional", partial_rotary_factor=0.5, rope_theta=50.0), dict(rope_theta=20.0))),
    _case("shared-kv-double-wide", 512, layer_types=[S, F, S, F], num_hidden_layers=4, num_kv_shared_layers=2,
          hidden_size_per_layer_input=5, use_double_wide_mlp=True, num_key_value_heads=1, attention_bias=True),
    _case("shared-k-as-v", 535, layer_types=[S, F, S, F, F], num_hidden_layers=5, num_kv_shared_layers=2,
          hidden_size_per_layer_input=4, attention_k_eq_v=True, num_global_key_value_heads=4, sliding_window=2),
    _case("moe", 507, **MOE),
    _case("moe-shared-kv", 521, **MOE | dict(num_experts=7, top_k_experts=3), layer_types=[S, F, S, F],
          num_hidden_layers=4, num_kv_shared_layers=1, use_double_wide_mlp=True, hidden_size_per_layer_input=6,
          attention_k_eq_v=True, num_global_key_value_heads=1, hidden_size=40),
    _case("pattern-ends-midway", 519, layer_types=None, num_hidden_layers=8, sliding_window=4, hidden_size=24,
          intermediate_size=28,
          **_ropes(dict(rope_type="linear", factor=3.0, rope_theta=300.0), dict(rope_theta=20.0))),
    _case("all-full", 510, layer_types=[F, F], num_hidden_layers=2),
    _unified("pattern", 540, layer_types=None, num_hidden_layers=11, final_logit_softcapping=30.0),
    _unified("k-as-v-one-kv-head", 541, attention_k_eq_v=True, num_global_key_value_heads=1, num_key_value_heads=4,
             head_dim=8, global_head_dim=20, tie_word_embeddings=False,
             **_ropes(dict(rope_type="proportional", partial_rotary_factor=0.3, rope_theta=99.0, factor=2.5),
                      dict(rope_theta=20.0))),
    _unified("biases-mqa", 542, attention_bias=True, num_key_value_heads=1, layer_types=[F, S, F], sliding_window=1,
             hidden_size=36, rms_norm_eps=1e-3),
]  # fmt: skip
