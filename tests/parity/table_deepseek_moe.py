"""Cases of DeepSeek's line: latent attention, experts behind sigmoid routers, and gpt-oss and Llama 4."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope


def _deepseek(family: str, name: str, seed: int, **hf: Any) -> Case:
    """Latent attention and experts. No padding token: transformers' embeddings give that row no gradient."""
    base: dict[str, Any] = dict(
        pad_token_id=None,
        vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, kv_lora_rank=14, q_lora_rank=18, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=9, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=20,
        n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _gpt_oss(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=40, intermediate_size=36, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, num_local_experts=5, num_experts_per_tok=2, sliding_window=5,
        max_position_embeddings=128, router_aux_loss_coef=0.9,
    )  # fmt: skip
    return Case(f"gpt_oss-{name}", "gpt_oss", base | hf, seed)


def _experts(family: str, name: str, seed: int, **hf: Any) -> Case:
    """Grouped attention with DeepSeek-V3's experts."""
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=40, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, n_routed_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=24, n_shared_experts=1,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _latent(family: str, name: str, seed: int, **hf: Any) -> Case:
    """Latent attention without experts."""
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=128, kv_lora_rank=14, q_lora_rank=18, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=9,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _plain(family: str, name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        pad_token_id=None,
        vocab_size=61, hidden_size=40, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _ernie_moe(name: str, seed: int, **hf: Any) -> Case:
    experts = dict(moe_num_experts=6, moe_k=2, moe_intermediate_size=20, moe_num_shared_experts=2)
    return _plain("ernie4_5_moe", name, seed, **(experts | hf))


def _minimax(name: str, seed: int, **hf: Any) -> Case:
    experts = dict(num_local_experts=6, num_experts_per_tok=2, head_dim=12, eos_token_id=3, bos_token_id=1)
    return _plain("minimax_m2", name, seed, **(experts | hf))


def _llama4(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_hidden_layers=5, head_dim=12, intermediate_size=24, intermediate_size_mlp=52, num_local_experts=4,
        attention_chunk_size=7, attn_temperature_tuning=True, floor_scale=4, num_experts_per_tok=1, attn_scale=0.3,
    )  # fmt: skip
    return _plain("llama4_text", name, seed, **(own | hf))


def _exaone(name: str, seed: int, **hf: Any) -> Case:
    own = dict(
        num_hidden_layers=5, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, num_shared_experts=1,
        sliding_window=5,
    )  # fmt: skip
    return _plain("exaone_moe", name, seed, **(own | hf))


def _flash(name: str, seed: int, **hf: Any) -> Case:
    """GLM-4.7-Flash."""
    case = _deepseek("glm4_moe_lite", name, seed, **(dict(n_group=1, topk_group=1) | hf))
    del case.hf["first_k_dense_replace"]
    return case


def _solar(name: str, seed: int, **hf: Any) -> Case:
    """Solar Open: all layers have experts, so there is no width of a plain MLP."""
    case = _experts("solar_open", name, seed, **hf)
    del case.hf["intermediate_size"]
    return case


_YARN = rope(
    "yarn", 400.0, factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=0.707,
    mscale_all_dim=0.707,
)  # fmt: skip

_MISTRAL4 = rope(
    "yarn", 400.0, factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5, mscale=1.0,
    mscale_all_dim=0.7, llama_4_scaling_beta=0.2,
)  # fmt: skip

_COLD = dict(attn_temperature_tuning=False, attn_scale=0.1, floor_scale=8192)

CASES = [
    _deepseek("deepseek_v3", "groups", 400),
    _deepseek("deepseek_v3", "plain-queries-biases", 430, q_lora_rank=None, attention_bias=True, n_shared_experts=2,
              tie_word_embeddings=True, first_k_dense_replace=0, n_group=1, num_experts_per_tok=2),
    _deepseek("deepseek_v3", "yarn", 402, hidden_size=60, n_group=4, topk_group=3, norm_topk_prob=False,
              routed_scaling_factor=0.7, num_experts_per_tok=4, **_YARN),
    _deepseek("deepseek_v3", "halves-all-dense", 403, rope_interleave=False, first_k_dense_replace=3, v_head_dim=20,
              **rope("yarn", 99.0, factor=3.0, original_max_position_embeddings=40, mscale=1.0, mscale_all_dim=0.4)),
    _deepseek("deepseek_v3", "one-head", 433, num_attention_heads=1, num_key_value_heads=1, n_routed_experts=9,
              n_group=3, topk_group=2, num_experts_per_tok=1, num_hidden_layers=4, first_k_dense_replace=2),
    _deepseek("deepseek_v2", "groups", 434, topk_method="group_limited_greedy", routed_scaling_factor=3.0, n_group=4,
              topk_group=2),
    _deepseek("deepseek_v2", "lite", 411, q_lora_rank=None, n_group=1, topk_group=1, n_shared_experts=2,
              routed_scaling_factor=1.0, **_YARN),
    _deepseek("deepseek_v2", "biases-tied", 412, n_group=1, topk_group=1, attention_bias=True, mlp_bias=True,
              first_k_dense_replace=0, tie_word_embeddings=True, n_routed_experts=7, hidden_act="gelu"),
    _deepseek("deepseek_v2", "one-head", 413, num_attention_heads=1, num_key_value_heads=1, hidden_size=33,
              n_routed_experts=3, num_experts_per_tok=2, n_group=1, topk_group=1, num_hidden_layers=2,
              first_k_dense_replace=1, **rope("linear", 500.0, factor=2.5)),
    _gpt_oss("default-yarn", 420),
    _gpt_oss("full-first", 421, num_hidden_layers=4, num_key_value_heads=1, num_local_experts=3, sliding_window=3,
             layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"],
             tie_word_embeddings=True, swiglu_limit=0.6, **rope("default", 321.0)),
    _gpt_oss("no-biases", 422, attention_bias=False, num_experts_per_tok=1, num_key_value_heads=4, head_dim=10,
             **rope("yarn", 777.0, factor=5.0, original_max_position_embeddings=24, beta_fast=3.0, beta_slow=0.7,
                    truncate=False)),
    _gpt_oss("all-sliding", 423, layer_types=["sliding_attention"] * 3, sliding_window=1, num_experts_per_tok=4,
             hidden_size=26, intermediate_size=31),
    _gpt_oss("all-full", 425, layer_types=["full_attention"] * 3, sliding_window=128),
    _experts("glm4_moe", "plain", 440, hidden_size=48),
    _experts("glm4_moe", "qk-norm-biases", 441, use_qk_norm=True, attention_bias=True, n_group=3, topk_group=2,
             num_key_value_heads=1, head_dim=12, first_k_dense_replace=2, routed_scaling_factor=2.5,
             **rope("default", 99.0, partial_rotary_factor=1.0)),
    _experts("glm4_moe", "unnormalized", 442, norm_topk_prob=False, tie_word_embeddings=True, n_shared_experts=2,
             first_k_dense_replace=0, head_dim=16, num_experts_per_tok=4, hidden_act="gelu"),
    _experts("glm4_moe", "yarn", 443, head_dim=16, use_qk_norm=True, num_key_value_heads=4, n_routed_experts=9,
             num_experts_per_tok=1,
             **rope("yarn", 500.0, factor=4.0, original_max_position_embeddings=32, partial_rotary_factor=0.5)),
    _plain("ernie4_5", "tied", 450, head_dim=12),
    _plain("ernie4_5", "biases", 451, use_bias=True, tie_word_embeddings=False, head_dim=10, num_key_value_heads=4),
    _plain("ernie4_5", "mqa", 452, num_key_value_heads=1, head_dim=18, hidden_act="gelu", **rope("default", 99.0)),
    _plain("ernie4_5", "linear", 453, hidden_size=33, head_dim=6, num_attention_heads=5, num_key_value_heads=5,
           tie_word_embeddings=False, **rope("linear", 500.0, factor=3.0)),
    _ernie_moe("tied", 460, tie_word_embeddings=True),
    _ernie_moe("alternating", 600, num_hidden_layers=4, moe_layer_interval=2, tie_word_embeddings=False,
               num_key_value_heads=1, moe_num_shared_experts=1),
    _ernie_moe("first-layers", 462, num_hidden_layers=4, moe_layer_start_index=0, moe_layer_end_index=1, moe_k=3,
               num_key_value_heads=4, moe_num_experts=5),
    _ernie_moe("one-layer-no-shared", 463, moe_num_shared_experts=0, moe_layer_start_index=1, moe_layer_end_index=1,
               moe_layer_interval=2, moe_k=1, **rope("yarn", 100.0, factor=3.0, original_max_position_embeddings=40)),
    _minimax("partial", 470, **rope("default", 5e6, partial_rotary_factor=0.5)),
    _minimax("whole-heads-tied", 471, tie_word_embeddings=True, num_experts_per_tok=3, num_local_experts=5),
    _minimax("mqa", 472, num_key_value_heads=1, head_dim=16, num_experts_per_tok=1, hidden_act="gelu",
             **rope("default", 700.0, partial_rotary_factor=0.25)),
    _minimax("mha-linear", 473, num_key_value_heads=4, num_hidden_layers=2, num_local_experts=3,
             **rope("linear", 700.0, factor=2.0)),
    _llama4("all-experts", 612, use_qk_norm=True),
    _llama4("interleaved", 481, moe_layers=[1, 3], use_qk_norm=False, num_experts_per_tok=2, attention_bias=True,
            **rope("llama3", 900.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=1.0,
                   original_max_position_embeddings=32)),
    _llama4("no-temperature", 482, **_COLD, no_rope_layers=[1, 0, 1, 1, 0], num_key_value_heads=1,
            moe_layers=[0, 4], tie_word_embeddings=True),
    _llama4("full-layers", 615, layer_types=["full_attention"] * 5, num_key_value_heads=4, num_local_experts=3,
            no_rope_layers=[0, 1, 1, 0, 1], **_COLD),
    _llama4("small-chunks", 484, attention_chunk_size=2, num_hidden_layers=4, num_experts_per_tok=3, floor_scale=1,
            **rope("default", 321.0)),
    _deepseek("mistral4", "groups", 490, **_MISTRAL4),
    _deepseek("mistral4", "plain-queries", 643, q_lora_rank=None, n_group=1, attention_bias=True, n_shared_experts=2,
              tie_word_embeddings=True, first_k_dense_replace=0, num_experts_per_tok=2, **_MISTRAL4),
    _deepseek("mistral4", "halves", 641, rope_interleave=False, norm_topk_prob=False, routed_scaling_factor=0.7,
              n_group=4, topk_group=3, **_MISTRAL4),
    _deepseek("mistral4", "one-head", 493, num_attention_heads=1, num_key_value_heads=1, n_routed_experts=3, n_group=1,
              num_hidden_layers=2, **_MISTRAL4),
    _experts("dots1", "plain", 610, sliding_window=None, first_k_dense_replace=1, norm_topk_prob=True),
    _experts("dots1", "sliding", 613, sliding_window=4, num_hidden_layers=4, head_dim=12, attention_bias=True,
             layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
             routed_scaling_factor=2.5, num_key_value_heads=1),
    _experts("dots1", "last-slide", 614, sliding_window=3, max_window_layers=2, n_group=2, topk_group=1,
             tie_word_embeddings=True, n_shared_experts=2, num_key_value_heads=4),
    _experts("dots1", "yarn", 503, sliding_window=None, first_k_dense_replace=3, n_routed_experts=3,
             **rope("yarn", 500.0, factor=4.0, original_max_position_embeddings=32)),
    _flash("plain", 510),
    _flash("pattern", 511, num_hidden_layers=4, mlp_layer_types=["sparse", "dense", "sparse", "dense"], n_group=2,
           attention_bias=True, tie_word_embeddings=True),
    _flash("plain-queries", 645, q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False, rope_interleave=False),
    _flash("yarn", 513, routed_scaling_factor=1.0, **_YARN),
    _solar("plain", 640),
    _solar("biases-tied", 521, attention_bias=True, tie_word_embeddings=True, n_group=2, num_key_value_heads=1,
           head_dim=14),
    _solar("unnormalized", 522, norm_topk_prob=False, n_shared_experts=2, num_experts_per_tok=3, n_routed_experts=7,
           num_key_value_heads=4, routed_scaling_factor=1.7),
    _solar("yarn", 642, num_experts_per_tok=1,
           **rope("yarn", 1e6, factor=2.0, original_max_position_embeddings=48)),
    _exaone("pattern", 656, layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]),
    _exaone("default-pattern", 531, num_key_value_heads=1, head_dim=14, first_k_dense_replace=2, n_group=2,
            norm_topk_prob=False),
    _exaone("no-rope", 532, layer_types=["full_attention"] * 5, tie_word_embeddings=True,
            num_shared_experts=2, num_key_value_heads=4),
    _exaone("lists", 533, num_hidden_layers=3, sliding_window=2, first_k_dense_replace=0,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            mlp_layer_types=["sparse", "dense", "sparse"], **rope("linear", 500.0, factor=2.0)),
    _latent("minicpm3", "default-scales", 540),
    _latent("minicpm3", "biases", 541, attention_bias=True, mlp_bias=True, scale_depth=0.9, scale_emb=3.5,
            dim_model_base=16, tie_word_embeddings=False, hidden_act="gelu"),
    _latent("minicpm3", "no-scales", 542, scale_depth=None, dim_model_base=None, scale_emb=1, v_head_dim=None,
            q_lora_rank=None, num_hidden_layers=2),
    _latent("minicpm3", "longrope", 543, num_attention_heads=1, num_key_value_heads=1,
            **rope("longrope", 10000.0, factor=1.0, original_max_position_embeddings=128,
                   short_factor=[1.0, 1.3, 2.1], long_factor=[1.0, 3.0, 5.0])),
    _latent("youtu", "tied", 550, initializer_range=0.02),
    _latent("youtu", "default-std", 551, tie_word_embeddings=False, attention_bias=True),
    _latent("youtu", "halves", 552, rope_interleave=False, q_lora_rank=None, num_attention_heads=1,
            num_key_value_heads=1),
    _latent("youtu", "yarn", 553, v_head_dim=21, hidden_act="gelu", num_hidden_layers=2, **_YARN),
]  # fmt: skip
