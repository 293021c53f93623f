"""Families that transformers has since 2026, from EXAONE 3 to GLM-5."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope

F, S = "full_attention", "sliding_attention"


def _case(family: str, name: str, seed: int, **hf: Any) -> Case:
    """No padding token: transformers' embeddings give that row no gradient."""
    base: dict[str, Any] = dict(
        pad_token_id=None,
        vocab_size=61, hidden_size=40, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _sarvam(name: str, seed: int, **hf: Any) -> Case:
    own = dict(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=12)
    return _case("sarvam_moe", name, seed, **(own | hf))


def _sarvam_mla(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_key_value_heads=4, kv_lora_rank=14, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=9,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=20,
    )  # fmt: skip
    return _case("sarvam_mla", name, seed, **(own | hf))


def _hy(name: str, seed: int, **hf: Any) -> Case:
    own = dict(head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20)
    return _case("hy_v3", name, seed, **(own | hf))


def _flint(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_hidden_layers=6, head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=28, sliding_window=5,
    )  # fmt: skip
    return _case("flint", name, seed, **(own | hf))


def _axk1(name: str, seed: int, **hf: Any) -> Case:
    case = _sarvam_mla(name, seed, **(dict(q_lora_rank=18, n_group=2, topk_group=1) | hf))
    return Case(f"axk1-{name}", "axk1", case.hf, seed)


def _indexed(family: str, name: str, seed: int, **hf: Any) -> Case:
    """As of DeepSeek-V3.2: up to index_topk tokens the indexer chooses all."""
    own = dict(
        q_lora_rank=18, n_group=2, topk_group=1, first_k_dense_replace=1, index_n_heads=3, index_head_dim=8,
        index_topk=128,
    )  # fmt: skip
    case = _sarvam_mla(name, seed, **(own | hf))
    return Case(f"{family}-{name}", family, case.hf, seed)


def _kolibri(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_hidden_layers=6, head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=28, sliding_window=5,
    )  # fmt: skip
    case = _case("kolibri1", name, seed, **(own | hf))
    del case.hf["intermediate_size"]
    return case


def _apertus(name: str, seed: int, **hf: Any) -> Case:
    return _case("apertus1p5_text", name, seed, **(dict(output_vocab_size=47) | hf))


def _command(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_hidden_layers=5, head_dim=12, num_experts=6, num_experts_per_tok=2, num_shared_experts=1, sliding_window=5,
        bos_token_id=5, eos_token_id=6, mlp_layer_types=["dense"] + ["sparse"] * 4,
        prefix_dense_intermediate_size=52, layer_types=[F, S, S, S, F],
    )  # fmt: skip
    return _case("cohere2_moe", name, seed, **(own | hf))


CASES = [
    _case("exaone", "plain", 600),
    _case("exaone", "llama3-tied-mqa", 601, tie_word_embeddings=True, num_key_value_heads=1, num_hidden_layers=2,
          rms_norm_eps=1e-3,
          **rope("llama3", 300.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                 original_max_position_embeddings=32)),
    _case("exaone", "wide-heads-biases-mha", 602, head_dim=14, num_key_value_heads=None, attention_bias=True,
          mlp_bias=True, hidden_act="gelu", hidden_size=32),
    _sarvam("plain", 610),
    _sarvam("no-norms-biases-groups", 611, use_qk_norm=False, attention_bias=True, num_key_value_heads=1, n_group=2,
            topk_group=1, n_routed_experts=8, n_shared_experts=2, first_k_dense_replace=0, norm_topk_prob=False),
    _sarvam("mha-tied-part-rope", 612, num_key_value_heads=4, head_dim=16, tie_word_embeddings=True,
            first_k_dense_replace=2, routed_scaling_factor=0.7, partial_rotary_factor=0.5, **rope("default", 500.0)),
    _sarvam_mla("plain", 620),
    _sarvam_mla("latent-queries-groups", 621, q_lora_rank=18, n_group=4, topk_group=2, n_shared_experts=2,
                first_k_dense_replace=2, attention_bias=True),
    _sarvam_mla("yarn-tied", 622, tie_word_embeddings=True, first_k_dense_replace=0, num_experts_per_tok=1,
                norm_topk_prob=False, hidden_size=36,
                **rope("yarn", 400.0, factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5,
                       mscale=1.0, mscale_all_dim=1.0)),
    _hy("plain", 630),
    _hy("biases-tied-mqa", 631, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=1,
        num_shared_experts=2, mlp_layer_types=["sparse", "dense", "sparse"], **rope("default", 321.0)),
    _hy("all-sparse-linear", 632, mlp_layer_types=["sparse"] * 3, num_experts=3, num_experts_per_tok=1,
        router_scaling_factor=0.8, rms_norm_eps=1e-3, hidden_size=28, **rope("linear", 900.0, factor=3.0)),
    _flint("pattern", 640),
    _flint("all-sliding-tied-mqa-biases", 641, num_hidden_layers=3, layer_types=[S] * 3, sliding_window=1,
           mlp_only_layers=[1], tie_word_embeddings=True, num_key_value_heads=1, attention_bias=True),
    _flint("all-full-unnormalized", 642, num_hidden_layers=2, layer_types=[F, F], mlp_only_layers=[],
           norm_topk_prob=False, num_experts=3, num_experts_per_tok=1, num_key_value_heads=4, hidden_act="gelu"),
    _flint("every-other-layer-yarn", 643, num_hidden_layers=4, layer_types=[S, F, S, F], decoder_sparse_step=2,
           mlp_only_layers=[], rms_norm_eps=1e-3,
           **rope("yarn", 700.0, factor=3.0, original_max_position_embeddings=40)),
    _axk1("plain", 650),
    _axk1("layers-yarn-biases", 651, mlp_layer_types=["sparse", "dense", "sparse"], attention_bias=True, n_group=4,
          topk_group=3, n_shared_experts=2, rms_norm_eps=1e-3,
          **rope("yarn", 400.0, factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5,
                 mscale=0.7, mscale_all_dim=0.7)),
    _axk1("halves-tied-one-group", 652, rope_interleave=False, tie_word_embeddings=True, n_group=1,
          mlp_layer_types=["sparse"] * 3, norm_topk_prob=False, hidden_size=36, num_experts_per_tok=1),
    _indexed("deepseek_v32", "plain", 690),
    _indexed("deepseek_v32", "groups-biases-yarn", 691, n_group=4, topk_group=3, attention_bias=True,
             n_shared_experts=2, first_k_dense_replace=0, index_n_heads=1, index_head_dim=6, index_topk=100,
             max_position_embeddings=300,
             **rope("yarn", 400.0, factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5,
                    mscale=1.0, mscale_all_dim=1.0)),
    _indexed("deepseek_v32", "tied-dense-one-head", 692, tie_word_embeddings=True, first_k_dense_replace=3,
             num_attention_heads=1, num_key_value_heads=1, hidden_size=33, norm_topk_prob=False),
    _indexed("glm_moe_dsa", "each-layer", 693, n_group=1, topk_group=1),
    _indexed("glm_moe_dsa", "shared-indexers", 694, num_hidden_layers=4, max_position_embeddings=200,
             indexer_types=["full", "shared", "shared", "full"], tie_word_embeddings=True, rms_norm_eps=1e-3,
             first_k_dense_replace=2),
    _indexed("glm_moe_dsa", "pattern", 695, num_hidden_layers=5, index_topk_freq=2, first_k_dense_replace=0,
             attention_bias=True, n_group=4, topk_group=2, v_head_dim=16, **rope("default", 321.0)),
    _kolibri("pattern", 660),
    _kolibri("normalized-tied-mqa", 661, num_hidden_layers=3, layer_types=[F, S, F], sliding_window=1,
             norm_topk_prob=True, tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=1e-3),
    _kolibri("all-full-linear", 662, num_hidden_layers=2, layer_types=[F, F], sliding_window=128, num_experts=3,
             num_experts_per_tok=1, num_key_value_heads=4, hidden_act="gelu",
             **rope("linear", 900.0, factor=3.0)),
    _apertus("narrow-head", 680),
    _apertus("whole-head-tied-mha", 681, output_vocab_size=None, tie_word_embeddings=True, num_key_value_heads=None,
             **rope("linear", 900.0, factor=3.0)),
    _apertus("one-row-less-biases-mqa", 682, output_vocab_size=60, attention_bias=True, num_key_value_heads=1,
             hidden_size=32, rms_norm_eps=1e-3, **rope("default", 300.0)),
    _command("forced-rope", 670),
    _command("two-shared-sum-sigmoid-rms", 671, num_shared_experts=2, shared_expert_combination_strategy="sum",
             expert_selection_fn="sigmoid", norm_topk_prob=False, rms_norm_eps=1e-3, tie_word_embeddings=False,
             num_key_value_heads=1),
    _command("bare-dense-layers-biases", 672, mlp_layer_types=["dense", "dense", "sparse"], num_hidden_layers=3,
             layer_types=[S, F, F], prefix_dense_sliding_window_pattern=2, prefix_dense_intermediate_size=28,
             attention_bias=True, expert_selection_fn="sigmoid", logit_scale=0.7, num_key_value_heads=None,
             rope_theta=300.0),
    _command("none-shared-all-sparse", 673, num_shared_experts=0, num_hidden_layers=2, mlp_layer_types=["sparse"] * 2,
             layer_types=[S, F], prefix_dense_intermediate_size=44, hidden_size=28, layer_norm_eps=1e-3,
             num_experts_per_tok=3),
]  # fmt: skip
