"""`config.json` files of published models with experts or latent attention, as their authors wrote them.

Every field must be understood; the number of parameters is the published one, which a wrong size or layer would change.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from litlm.config import Config, LatentConfig, YarnScaling

_YARN40 = dict(
    beta_fast=32, beta_slow=1, factor=40, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=4096,
    type="yarn",
)  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = dict(
    architectures=["DeepseekV3ForCausalLM"], attention_bias=False, attention_dropout=0.0, aux_loss_alpha=0.001,
    auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, bos_token_id=0, eos_token_id=1, ep_size=1,
    first_k_dense_replace=3, hidden_act="silu", hidden_size=7168, initializer_range=0.02, intermediate_size=18432,
    kv_lora_rank=512, max_position_embeddings=163840, model_type="deepseek_v3", moe_intermediate_size=2048,
    moe_layer_freq=1, n_group=8, n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True,
    num_attention_heads=128, num_experts_per_tok=8, num_hidden_layers=61, num_key_value_heads=128,
    num_nextn_predict_layers=1, pretraining_tp=1, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64,
    rms_norm_eps=1e-06, rope_scaling=_YARN40, rope_theta=10000, routed_scaling_factor=2.5, scoring_func="sigmoid",
    seq_aux=True, tie_word_embeddings=False, topk_group=4, topk_method="noaux_tc", torch_dtype="bfloat16",
    transformers_version="4.33.1", use_cache=True, v_head_dim=128, vocab_size=129280,
)  # fmt: skip
DEEPSEEK_V2_LITE: dict[str, Any] = dict(
    architectures=["DeepseekV2ForCausalLM"], attention_bias=False, attention_dropout=0.0, aux_loss_alpha=0.001,
    bos_token_id=100000, eos_token_id=100001, first_k_dense_replace=1, hidden_act="silu", hidden_size=2048,
    initializer_range=0.02, intermediate_size=10944, kv_lora_rank=512, max_position_embeddings=163840,
    model_type="deepseek_v2", moe_intermediate_size=1408, moe_layer_freq=1, n_group=1, n_routed_experts=64,
    n_shared_experts=2, norm_topk_prob=False, num_attention_heads=16, num_experts_per_tok=6, num_hidden_layers=27,
    num_key_value_heads=16, pretraining_tp=1, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
    rms_norm_eps=1e-06, rope_scaling=_YARN40 | dict(mscale=0.707, mscale_all_dim=0.707), rope_theta=10000,
    routed_scaling_factor=1.0, scoring_func="softmax", seq_aux=True, tie_word_embeddings=False, topk_group=1,
    topk_method="greedy", torch_dtype="bfloat16", use_cache=True, v_head_dim=128, vocab_size=102400,
)  # fmt: skip
GPT_OSS_20B: dict[str, Any] = dict(
    architectures=["GptOssForCausalLM"], attention_bias=True, attention_dropout=0.0, eos_token_id=200002,
    experts_per_token=4, head_dim=64, hidden_act="silu", hidden_size=2880, initial_context_length=4096,
    initializer_range=0.02, intermediate_size=2880, layer_types=["sliding_attention", "full_attention"] * 12,
    max_position_embeddings=131072, model_type="gpt_oss", num_attention_heads=64, num_experts_per_tok=4,
    num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32, output_router_logits=False,
    pad_token_id=199999, rms_norm_eps=1e-05, rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128,
    rope_scaling=dict(beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096,
                      rope_type="yarn", truncate=False),
    swiglu_limit=7.0, tie_word_embeddings=False, transformers_version="4.55.0.dev0", use_cache=True,
    vocab_size=201088,
)  # fmt: skip
GLM_45_AIR: dict[str, Any] = dict(
    architectures=["Glm4MoeForCausalLM"], attention_bias=True, attention_dropout=0.0, pad_token_id=151329,
    eos_token_id=[151329, 151336, 151338], head_dim=128, hidden_act="silu", hidden_size=4096,
    partial_rotary_factor=0.5, initializer_range=0.02, intermediate_size=10944, max_position_embeddings=131072,
    model_type="glm4_moe", moe_intermediate_size=1408, norm_topk_prob=True, num_attention_heads=96, n_group=1,
    topk_group=1, n_routed_experts=128, n_shared_experts=1, routed_scaling_factor=1.0, num_experts_per_tok=8,
    first_k_dense_replace=1, num_hidden_layers=46, num_key_value_heads=8, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=1000000, num_nextn_predict_layers=1, tie_word_embeddings=False, torch_dtype="bfloat16",
    transformers_version="4.54.0", use_cache=True, use_qk_norm=False, vocab_size=151552,
)  # fmt: skip
ERNIE_21B: dict[str, Any] = dict(
    architectures=["Ernie4_5_MoeForCausalLM"], bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_act="silu",
    hidden_size=2560, intermediate_size=12288, max_position_embeddings=131072, model_type="ernie4_5_moe",
    num_attention_heads=20, num_key_value_heads=4, num_hidden_layers=28, rms_norm_eps=1e-05, use_cache=False,
    vocab_size=103424, rope_theta=500000.0, tie_word_embeddings=True, use_bias=False, moe_num_experts=64,
    moe_num_shared_experts=2, moe_layer_start_index=1, moe_intermediate_size=1536, moe_capacity=[64, 64, 64],
    moe_gate="topk", moe_k=6, moe_layer_interval=1, moe_use_aux_free=True, num_nextn_predict_layers=1,
    torch_dtype="bfloat16",
)  # fmt: skip
MINIMAX_M2: dict[str, Any] = dict(
    architectures=["MiniMaxM2ForCausalLM"], attn_type_list=[1] * 62, head_dim=128, hidden_act="silu",
    hidden_size=3072, intermediate_size=1536, layernorm_full_attention_beta=1.0,
    layernorm_linear_attention_beta=1.0, layernorm_mlp_beta=1.0, max_position_embeddings=196608,
    mlp_intermediate_size=8192, model_type="minimax_m2", mtp_transformer_layers=1, num_attention_heads=48,
    num_experts_per_tok=8, num_hidden_layers=62, num_key_value_heads=8, num_local_experts=256, num_mtp_modules=3,
    qk_norm_type="per_layer", rms_norm_eps=1e-06, rope_theta=5000000, rotary_dim=64, scoring_func="sigmoid",
    shared_intermediate_size=0, tie_word_embeddings=False, use_cache=True, use_mtp=True, use_qk_norm=True,
    use_routing_bias=True, vocab_size=200064,
)  # fmt: skip
SCOUT: dict[str, Any] = dict(
    architectures=["Llama4ForConditionalGeneration"], boi_token_index=200080, eoi_token_index=200081,
    image_token_index=200092, model_type="llama4", tie_word_embeddings=False, torch_dtype="bfloat16",
    vision_config={"hidden_size": 1408},
    text_config=dict(
        attention_bias=False, attention_chunk_size=8192, attention_dropout=0.0, bos_token_id=200000,
        eos_token_id=[200001, 200007, 200008], for_llm_compressor=False, head_dim=128, hidden_act="silu",
        hidden_size=5120, initializer_range=0.02, interleave_moe_layer_step=1, intermediate_size=8192,
        intermediate_size_mlp=16384, max_position_embeddings=10485760, model_type="llama4_text", no_rope_layers=[],
        num_attention_heads=40, num_experts_per_tok=1, num_hidden_layers=48, num_key_value_heads=8,
        num_local_experts=16, output_router_logits=False, pad_token_id=200018, rms_norm_eps=1e-05,
        rope_scaling=dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
                          original_max_position_embeddings=8192, rope_type="llama3"),
        rope_theta=500000.0, router_aux_loss_coef=0.001, router_jitter_noise=0.0, torch_dtype="bfloat16",
        use_cache=True, use_qk_norm=True, vocab_size=202048,
    ),
)  # fmt: skip


# In billions, as the model cards and reports state them (without layers that predict further tokens).
@pytest.mark.parametrize(
    ("hf", "total", "tolerance"),
    [
        (DEEPSEEK_V3, 671.0, 0.05),
        (DEEPSEEK_V2_LITE, 15.706, 0.001),
        (GPT_OSS_20B, 20.915, 0.001),
        (GLM_45_AIR, 106.85, 0.05),
        (ERNIE_21B, 21.83, 0.02),
        (MINIMAX_M2, 228.7, 0.1),
        (SCOUT, 107.77, 0.05),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_published_sizes(hf: dict[str, Any], total: float, tolerance: float) -> None:
    config = Config.from_hf(json.loads(json.dumps(hf)))
    assert config.n_parameters() / 1e9 == pytest.approx(total, abs=tolerance)
    assert Config.from_hf(config.to_hf()) == config


def test_deepseek_v3_details() -> None:
    config = Config.from_hf(DEEPSEEK_V3)
    assert config.attention.latent == LatentConfig(
        kv_rank=512, q_rank=1536, nope_head_dim=128, rope_head_dim=64, v_head_dim=128
    )
    # mscale and mscale_all_dim are the same, so cos and sin stay as they are; scores are scaled by its square.
    assert config.rope is not None
    assert isinstance(config.rope.scaling, YarnScaling)
    assert config.rope.scaling.attention_factor == 1.0
    assert config.attention.scale == pytest.approx(192**-0.5 * 1.3688879454113936**2)
    assert config.n_active_parameters() / 1e9 == pytest.approx(37.5, abs=0.3)
    assert config.kv_bytes_per_token() == 61 * 576 * 2
    back = config.to_hf()["rope_parameters"]
    assert (back["mscale"], back["mscale_all_dim"]) == (1.0, 1.0)


def test_older_names() -> None:
    rope = Config.from_hf(MINIMAX_M2).rope
    assert rope is not None
    assert rope.fraction == 0.5  # rotary_dim of head_dim
    plain = {k: v for k, v in GPT_OSS_20B.items() if k not in ("rope_scaling", "layer_types", "num_experts_per_tok")}
    assert Config.from_hf(plain) == Config.from_hf(GPT_OSS_20B)


def test_fields_that_change_the_model_are_refused() -> None:
    for changes, name in [
        (dict(scoring_func="softmax"), "scoring_func"),
        (dict(topk_method="greedy"), "topk_method"),
        (dict(moe_layer_freq=2), "moe_layer_freq"),
        (dict(index_topk=2048), "index_topk"),
    ]:
        with pytest.raises(ValueError, match=name):
            Config.from_hf(DEEPSEEK_V3 | changes)
    with pytest.raises(ValueError, match="norm_topk_prob"):
        Config.from_hf(DEEPSEEK_V2_LITE | dict(norm_topk_prob=True))
    with pytest.raises(ValueError, match="swiglu_alpha"):
        Config.from_hf(GPT_OSS_20B | dict(swiglu_alpha=2.0))
    with pytest.raises(ValueError, match="attn_type_list"):
        Config.from_hf(MINIMAX_M2 | dict(attn_type_list=[0, 1] * 31))
