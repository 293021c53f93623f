"""dots.llm1: Qwen3's attention (heads normed, sliding layers as an option) with DeepSeek-V3's experts and router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.deepseek_v3 import MOE_RULES, first_dense, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe import QK_NORM_RULES
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common()
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    window, first = hf.take("sliding_window", 4096, null=None), hf.take("max_window_layers", 62)
    slides = [window is not None and i >= first for i in range(common["n_layer"])]
    layer_types = hf.layer_types(["sliding" if s else "full" for s in slides])
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 32, null=0),
        head_dim=hf.take("head_dim", 0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=sigmoid_moe_from_hf(hf, moe_intermediate_size=1408, norm_topk_prob=False, routed_scaling_factor=1.0),
        moe_layers=first_dense(hf, common["n_layer"], 0),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | moe_to_hf(config.moe)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            sliding_window=config.sliding_window,
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
            first_k_dense_replace=hf_first_dense(config),
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return (
        gguf.common("dots1")
        | gguf.sigmoid_experts()
        | dict(
            first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
            sliding_window=None,
            attention_bias=gguf.has("attn_q.bias"),
        )
    )


FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *QK_NORM_RULES, *MOE_RULES),
    gguf=GGUFSpec(arch="dots1", from_gguf=from_gguf),
)
