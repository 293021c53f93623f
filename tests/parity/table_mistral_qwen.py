"""Cases of Mistral and its kin, Qwen2 and the Qwen experts, OLMoE, Granite, Seed-OSS, Hunyuan, Phi-3.5-MoE, Arcee, and
of smaller ones that need no math of their own."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope


def _case(family: str, name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, pad_token_id=None, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def _longrope(pairs: int, mscale: float) -> dict[str, Any]:
    return rope(
        "longrope", 10000.0, factor=4.0, original_max_position_embeddings=512,
        short_factor=[1.0 + 0.1 * j for j in range(pairs)], long_factor=[2.0 + 0.7 * j for j in range(pairs)],
        short_mscale=mscale, long_mscale=mscale,
    ) | dict(max_position_embeddings=2048)  # fmt: skip


def _ntk(alpha: float, theta: float = 10000.0) -> dict[str, Any]:
    return rope("dynamic", theta, alpha=alpha, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)


def _ropes(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    each = dict(full_attention=full["rope_parameters"], sliding_attention=sliding["rope_parameters"])
    return {"rope_parameters": each}


_LLAMA3 = rope("llama3", 500.0, factor=4.5, low_freq_factor=1.2, high_freq_factor=3.3,
               original_max_position_embeddings=40)  # fmt: skip
_YARN = rope("yarn", 1000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=6.0, beta_slow=0.6)
_FULL, _SLIDING = "full_attention", "sliding_attention"
_GRANITE: dict[str, Any] = dict(
    embedding_multiplier=3.7, attention_multiplier=0.21, residual_multiplier=0.43, logits_scaling=5.3
)
_HYBRID: dict[str, Any] = dict(
    layer_types=["attention"] * 3,
    num_local_experts=0,
    shared_intermediate_size=40,
    position_embedding_type="rope",
    mamba_n_heads=32,
)

CASES = [
    _case("mistral", "window", 100, sliding_window=7),
    _case("mistral", "no-window-wide-heads", 101, sliding_window=None, head_dim=20, **rope("default", 1e6)),
    _case("mistral", "mqa-tied-window-one", 102, sliding_window=1, num_key_value_heads=1, tie_word_embeddings=True),
    _case("mistral", "long-window-yarn", 103, sliding_window=50, head_dim=14, hidden_act="gelu", **_YARN),
    _case("mistral", "linear", 104, sliding_window=None, num_attention_heads=3, num_key_value_heads=3,
          **rope("linear", factor=2.5)),
    _case("ministral", "pattern", 110, sliding_window=5, head_dim=12, num_hidden_layers=5,
          layer_types=[_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING]),
    _case("ministral", "all-sliding", 111, sliding_window=9, head_dim=10, num_key_value_heads=4),
    _case("ministral", "all-full", 112, sliding_window=128, head_dim=16, tie_word_embeddings=True,
          layer_types=[_FULL] * 3),
    _case("ministral", "mqa-llama3", 113, sliding_window=3, head_dim=22, num_key_value_heads=1,
          layer_types=[_FULL, _SLIDING, _FULL], **_LLAMA3),
    _case("mixtral", "plain", 120, num_local_experts=4),
    _case("mixtral", "window-tied", 121, num_local_experts=3, sliding_window=6, tie_word_embeddings=True),
    _case("mixtral", "wide-heads-k3", 122, num_local_experts=7, num_experts_per_tok=3, head_dim=22,
          num_key_value_heads=1),
    _case("mixtral", "k1-linear", 123, num_local_experts=5, num_experts_per_tok=1, hidden_act="gelu",
          **rope("linear", 1e4, factor=3.0)),
    _case("qwen2", "plain", 130),
    _case("qwen2", "mqa-tied-wide-heads", 131, num_key_value_heads=1, head_dim=18, tie_word_embeddings=True),
    _case("qwen2", "sliding-last-layers", 132, num_hidden_layers=4, use_sliding_window=True, sliding_window=4,
          max_window_layers=1),
    _case("qwen2", "sliding-pattern", 133, num_hidden_layers=5, use_sliding_window=True, sliding_window=6,
          layer_types=[_FULL, _SLIDING] * 2 + [_FULL]),
    _case("qwen2", "yarn", 134, num_attention_heads=3, num_key_value_heads=3, **_YARN),
    _case("qwen2_moe", "plain", 140, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20,
          shared_expert_intermediate_size=36),
    _case("qwen2_moe", "normalized-every-other-layer", 141, num_hidden_layers=5, num_experts=3, num_experts_per_tok=2,
          moe_intermediate_size=28, shared_expert_intermediate_size=12, decoder_sparse_step=2, norm_topk_prob=True,
          qkv_bias=False),
    _case("qwen2_moe", "dense-first-tied", 142, num_experts=9, num_experts_per_tok=4, moe_intermediate_size=16,
          shared_expert_intermediate_size=24, mlp_only_layers=[0], num_key_value_heads=1, tie_word_embeddings=True),
    _case("qwen2_moe", "sliding-yarn", 143, num_hidden_layers=4, num_experts=4, num_experts_per_tok=1,
          moe_intermediate_size=32, shared_expert_intermediate_size=8, use_sliding_window=True, sliding_window=5,
          head_dim=14, **_YARN),
    _case("qwen3_moe", "plain", 150, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=20, head_dim=16,
          norm_topk_prob=True),
    _case("qwen3_moe", "dense-layers-biases", 151, num_hidden_layers=4, num_experts=5, num_experts_per_tok=2,
          moe_intermediate_size=24, mlp_only_layers=[0, 1], attention_bias=True),
    _case("qwen3_moe", "mqa-tied-step", 152, num_hidden_layers=5, num_experts=3, num_experts_per_tok=1,
          moe_intermediate_size=36, decoder_sparse_step=2, num_key_value_heads=1, tie_word_embeddings=True),
    _case("qwen3_moe", "sliding-yarn", 153, num_experts=9, num_experts_per_tok=4, moe_intermediate_size=12,
          use_sliding_window=True, sliding_window=6, head_dim=10, norm_topk_prob=True, **_YARN),
    _case("olmoe", "plain", 160, num_experts=8, num_experts_per_tok=3),
    _case("olmoe", "normalized-clipped", 161, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True, clip_qkv=0.9),
    _case("olmoe", "mqa-tied-biases", 162, num_experts=4, num_experts_per_tok=1, num_key_value_heads=1,
          attention_bias=True, tie_word_embeddings=True),
    _case("olmoe", "mha-linear", 163, num_experts=9, num_experts_per_tok=4, num_attention_heads=3,
          num_key_value_heads=3, hidden_act="gelu", **rope("linear", factor=2.0)),
    _case("granite", "plain", 170, **_GRANITE),
    _case("granite", "mqa-tied-biases", 171, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True,
          mlp_bias=True, **(_GRANITE | dict(logits_scaling=49))),
    _case("granite", "defaults", 172, num_key_value_heads=4, attention_multiplier=0.3),
    _case("granite", "wide-heads-llama3", 173, head_dim=26, hidden_act="gelu", **_GRANITE, **_LLAMA3),
    _case("granitemoe", "plain", 180, num_local_experts=5, **_GRANITE),
    _case("granitemoe", "k3-tied", 181, num_local_experts=7, num_experts_per_tok=3, tie_word_embeddings=True,
          **_GRANITE),
    _case("granitemoe", "mqa-biases", 182, num_local_experts=3, num_experts_per_tok=1, num_key_value_heads=1,
          attention_bias=True, **(_GRANITE | dict(residual_multiplier=1.0))),
    _case("granitemoe", "wide-heads-yarn", 183, num_local_experts=9, num_experts_per_tok=4, head_dim=18, **_GRANITE,
          **_YARN),
    _case("granitemoeshared", "plain", 190, num_local_experts=4, shared_intermediate_size=28, **_GRANITE),
    _case("granitemoeshared", "none-shared", 191, num_local_experts=6, num_experts_per_tok=3, **_GRANITE),
    _case("granitemoeshared", "tied-mqa", 192, num_local_experts=3, num_experts_per_tok=1, shared_intermediate_size=50,
          num_key_value_heads=1, tie_word_embeddings=True, **_GRANITE),
    _case("granitemoeshared", "biases-linear", 193, num_local_experts=5, num_experts_per_tok=4,
          shared_intermediate_size=8, attention_bias=True, **_GRANITE, **rope("linear", factor=2.1)),
    _case("granitemoehybrid", "plain", 310, **_GRANITE, **_HYBRID),
    _case("granitemoehybrid", "no-rope-mqa-tied", 311, num_key_value_heads=1, tie_word_embeddings=True,
          **(_GRANITE | _HYBRID | dict(position_embedding_type=None))),
    _case("granitemoehybrid", "biases-yarn", 312, attention_bias=True, **_GRANITE, **_HYBRID, **_YARN),
    _case("granitemoehybrid", "mha", 313, num_attention_heads=3, num_key_value_heads=3, hidden_act="gelu",
          attention_multiplier=0.3, **_HYBRID),
    _case("granite_swa", "default-pattern", 320, num_hidden_layers=5, sliding_window=5, **_GRANITE),
    _case("granite_swa", "thetas-untied", 321, sliding_window=7, layer_types=[_SLIDING, _FULL, _SLIDING],
          layer_rope_theta=[100.0, 5000.0, 100.0], tie_word_embeddings=False, attention_bias=True, **_GRANITE),
    _case("granite_swa", "full-without-rope-mqa", 322, sliding_window=3, layer_types=[_SLIDING, _SLIDING, _FULL],
          layer_rope_theta=[77.0, 77.0, 0], num_key_value_heads=1, **_GRANITE, **_YARN),
    _case("granite_swa", "some-without-rope", 323, num_hidden_layers=4, sliding_window=128, layer_types=[_FULL] * 4,
          layer_rope_theta=[0, 900.0, 900.0, 0], num_key_value_heads=4, mlp_bias=True, attention_multiplier=0.3),
    _case("granitemoe_swa", "default-pattern", 334, num_hidden_layers=5, num_local_experts=4, sliding_window=4,
          shared_intermediate_size=24, **_GRANITE),
    _case("granitemoe_swa", "none-shared-tied", 331, num_local_experts=7, num_experts_per_tok=3, sliding_window=6,
          layer_types=[_SLIDING, _FULL, _SLIDING], layer_rope_theta=[100.0, 0, 100.0], tie_word_embeddings=True,
          **_GRANITE),
    _case("granitemoe_swa", "thetas-mqa-biases", 335, num_local_experts=3, num_experts_per_tok=1, sliding_window=1,
          layer_types=[_FULL, _SLIDING, _FULL], layer_rope_theta=[600.0, 50.0, 600.0], num_key_value_heads=1,
          attention_bias=True, shared_intermediate_size=8, **_GRANITE),
    _case("granitemoe_swa", "linear", 333, num_local_experts=9, num_experts_per_tok=4, sliding_window=9,
          shared_intermediate_size=48, **_GRANITE, **rope("linear", 300.0, factor=2.0)),
    _case("nanochat", "plain", 350),
    _case("nanochat", "mqa-tied-biases", 351, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    _case("nanochat", "no-cap-wide-heads", 352, final_logit_softcapping=None, head_dim=18, hidden_act="gelu"),
    _case("nanochat", "mha-yarn", 353, num_key_value_heads=4, final_logit_softcapping=3.0, **_YARN),
    _case("seed_oss", "plain", 200, head_dim=16),
    _case("seed_oss", "all-biases-tied", 201, head_dim=10, attention_out_bias=True, mlp_bias=True,
          tie_word_embeddings=True),
    _case("seed_oss", "no-biases-mqa", 202, head_dim=24, attention_bias=False, num_key_value_heads=1),
    _case("seed_oss", "out-bias-only-linear", 203, head_dim=12, attention_bias=False, attention_out_bias=True,
          **rope("linear", 1e7, factor=2.0)),
    _case("hunyuan_v1_dense", "alpha", 210, head_dim=16, **_ntk(50.0)),
    _case("hunyuan_v1_dense", "plain-tied-mqa", 211, head_dim=12, num_key_value_heads=1, tie_word_embeddings=True),
    _case("hunyuan_v1_dense", "biases-alpha", 212, head_dim=20, attention_bias=True, **_ntk(1000.0, 321.0)),
    _case("hunyuan_v1_dense", "mha-linear", 213, head_dim=12, num_key_value_heads=4, **rope("linear", factor=1.7)),
    _case("hunyuan_v1_moe", "alpha", 220, head_dim=16, num_experts=4, moe_topk=2, **_ntk(70.0)),
    _case("hunyuan_v1_moe", "tied-mqa", 221, head_dim=10, num_experts=7, moe_topk=3, num_key_value_heads=1,
          tie_word_embeddings=True),
    _case("hunyuan_v1_moe", "k1-biases", 222, head_dim=12, num_experts=3, moe_topk=1, attention_bias=True),
    _case("hunyuan_v1_moe", "wide-k4", 223, head_dim=22, num_experts=9, moe_topk=4, num_key_value_heads=4,
          **_ntk(9.0)),
    _case("phimoe", "longrope", 230, num_local_experts=5, router_jitter_noise=0.3, attention_bias=True,
          lm_head_bias=True, **_longrope(6, 1.24)),
    _case("phimoe", "small-jitter", 231, num_local_experts=4, router_jitter_noise=0.01, **rope("default", 10000.0)),
    _case("phimoe", "window-tied-mqa", 232, num_local_experts=7, router_jitter_noise=0.6, sliding_window=6,
          num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    _case("phimoe", "longrope-mha", 233, num_local_experts=3, router_jitter_noise=0.2, lm_head_bias=True,
          num_attention_heads=3, num_key_value_heads=3, **_longrope(8, 0.9)),
    _case("ministral3", "yarn", 240, head_dim=16, **rope(
        "yarn", 1000.0, factor=4.0, original_max_position_embeddings=9, beta_fast=4.0, beta_slow=0.5, mscale=1.0,
        mscale_all_dim=1.0, llama_4_scaling_beta=0.3)),
    _case("ministral3", "mqa-tied-window", 241, head_dim=10, num_key_value_heads=1, tie_word_embeddings=True,
          sliding_window=6, **rope("yarn", 100.0, factor=2.0, original_max_position_embeddings=16, beta_fast=3.0,
                                   beta_slow=0.3, llama_4_scaling_beta=0.7)),
    _case("ministral3", "plain-rope", 242, head_dim=12, **rope(
        "default", 10000.0, original_max_position_embeddings=5, llama_4_scaling_beta=0.5)),
    _case("ministral3", "no-growth", 243, head_dim=22, num_key_value_heads=4, **rope(
        "yarn", 500.0, factor=8.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=1.0, mscale=0.8,
        mscale_all_dim=0.4, llama_4_scaling_beta=0.0)),
    _case("arcee", "plain", 250),
    _case("arcee", "mqa-tied-biases", 251, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True,
          mlp_bias=True),
    _case("arcee", "wide-heads-yarn", 252, head_dim=20, **_YARN),
    _case("arcee", "mha-silu", 253, num_key_value_heads=4, hidden_act="silu", attention_bias=True),
    _case("internlm3", "dynamic", 260, head_dim=16, **rope("dynamic", 5e7, factor=6.0)),
    _case("internlm3", "biases-tied", 261, head_dim=10, qkv_bias=True, bias=True, tie_word_embeddings=True),
    _case("internlm3", "mqa", 262, head_dim=22, num_key_value_heads=1, hidden_act="gelu"),
    _case("internlm3", "mha-linear", 263, head_dim=12, num_key_value_heads=4, **rope("linear", factor=2.0)),
    _case("iquestcoder", "plain", 270, head_dim=16, **rope("default", 5e5)),
    _case("iquestcoder", "attention-biases-tied", 271, head_dim=10, attention_bias=True, tie_word_embeddings=True),
    _case("iquestcoder", "mqa-mlp-biases", 272, head_dim=22, num_key_value_heads=1, mlp_bias=True),
    _case("iquestcoder", "yarn", 273, head_dim=14, num_key_value_heads=4, **_YARN),
    _case("cwm", "llama3", 280, head_dim=16, num_hidden_layers=5, sliding_window=5, **_LLAMA3),
    _case("cwm", "pattern-tied", 281, head_dim=10, sliding_window=8, tie_word_embeddings=True, mlp_bias=True,
          layer_types=[_SLIDING, _FULL, _SLIDING], **rope("default", 10000.0)),
    _case("cwm", "mqa-all-full", 282, head_dim=22, num_key_value_heads=1, sliding_window=128, layer_types=[_FULL] * 3,
          **rope("linear", factor=3.0)),
    _case("cwm", "default-rope", 283, head_dim=12, num_key_value_heads=4, sliding_window=2),
    _case("flex_olmo", "plain", 290, num_experts=7, num_experts_per_tok=4),
    _case("flex_olmo", "normalized-biases", 291, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
          attention_bias=True),
    _case("flex_olmo", "mqa-tied", 292, num_experts=3, num_experts_per_tok=1, num_key_value_heads=1, head_dim=18,
          tie_word_embeddings=True),
    _case("flex_olmo", "mha-yarn", 293, num_experts=9, num_experts_per_tok=3, num_key_value_heads=4, **_YARN),
    _case("mellum", "ropes", 300, num_hidden_layers=5, head_dim=16, num_experts=5, num_experts_per_tok=2,
          moe_intermediate_size=24, sliding_window=6, layer_types=[_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
          **_ropes(_YARN, rope("default", 300.0))),
    _case("mellum", "dense-layer-tied-mqa", 301, head_dim=10, num_experts=7, num_experts_per_tok=3,
          moe_intermediate_size=16, sliding_window=128, mlp_layer_types=["dense", "sparse", "sparse"],
          num_key_value_heads=1, tie_word_embeddings=True),
    _case("mellum", "one-rope-biases", 302, head_dim=12, num_experts=4, num_experts_per_tok=1, norm_topk_prob=False,
          moe_intermediate_size=32, sliding_window=3, layer_types=[_SLIDING, _FULL, _SLIDING], attention_bias=True,
          **_ropes(rope("default", 700.0), rope("default", 700.0))),
    _case("mellum", "all-sliding", 303, head_dim=22, num_experts=9, num_experts_per_tok=4, moe_intermediate_size=8,
          sliding_window=9, layer_types=[_SLIDING] * 3, mlp_layer_types=["sparse", "dense", "sparse"]),
]  # fmt: skip
