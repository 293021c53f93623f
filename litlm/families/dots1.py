"""dots.llm1: Qwen3's attention (normed heads, optional sliding layers) with DeepSeek-V3's experts and router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim, hf_sliding
from litlm.families.deepseek_v3 import MOE_RULES, first_dense, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, n_kv_head=32, qk_norm="head")
    n_layer = values["n_layer"]
    window, first = hf.take("sliding_window", 4096, null=None), hf.take("max_window_layers", 62)
    slides = [window is not None and i >= first for i in range(n_layer)]
    moe = sigmoid_moe_from_hf(hf, moe_intermediate_size=1408, norm_topk_prob=False, routed_scaling_factor=1.0)
    sliding = hf.sliding(window, ["sliding" if s else "full" for s in slides])
    return values | sliding | dict(moe=moe, moe_layers=first_dense(hf, n_layer, 0))


def to_hf(config: Config) -> dict[str, Any]:
    return (
        llama_to_hf(config, without="head_dim mlp_bias")
        | hf_head_dim(config)
        | hf_sliding(config)
        | moe_to_hf(config.moe)
        | dict(first_k_dense_replace=hf_first_dense(config))
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
