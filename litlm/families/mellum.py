"""JetBrains' Mellum 2: Qwen3 MoE with sliding layers, which have their own rope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import qwen3_moe
from litlm.families.base import Family, HFFields, hf_experts, hf_sliding
from litlm.families.gemma3_text import hf_ropes, ropes
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope, sliding_rope = ropes(hf, 500000.0, 10000.0, "rope_theta")
    values = llama_fields(hf, n_kv_head=4, head_dim=128, qk_norm="head", rope=rope, max_seq_len=131072)
    n_layer = values["n_layer"]
    hf.skip("num_mtp_layers num_nextn_predict_layers mtp_layer_types mtp_mlp_layer_types")  # MTP layers are not read
    n_expert = hf.take("num_local_experts", None) or 64
    moe = hf.experts(
        "num_experts",
        n_expert=n_expert,
        n_expert_per_token=8,
        intermediate_size=hf.take("moe_intermediate_size", 896),
        normalize=hf.take("norm_topk_prob", True),
    )
    sliding = hf.sliding(hf.take("sliding_window", 1024, null=None), ["full"] * n_layer)
    mlp_types = hf.take("mlp_layer_types", ["sparse"] * n_layer)
    moe_layers = tuple(mlp_type == "sparse" for mlp_type in mlp_types)
    return values | sliding | dict(moe=moe, moe_layers=moe_layers, sliding_rope=sliding_rope)


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        llama_to_hf(config, without="mlp_bias rope_theta rope_scaling")
        | {"rope_parameters": hf_ropes(config)["rope_parameters"]}
        | hf_sliding(config, required=True)
        | hf_experts(config, "num_experts")
        | dict(
            mlp_layer_types=["sparse" if sparse else "dense" for sparse in config.moe_layers],
            moe_intermediate_size=config.moe.intermediate_size,
            norm_topk_prob=config.moe.normalize,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    window = gguf.get("attention.sliding_window", 0)
    return (
        gguf.common("mellum", theta=None)
        | gguf.experts("num_experts")
        | dict(
            attention_bias=gguf.has("attn_q.bias"),
            sliding_window=window or None,
            layer_types=gguf.layer_types(4 if window else 1),
            rope_parameters=gguf.rope_parameters(),
        )
    )


FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=qwen3_moe.FAMILY.rules,
    ignore=(r"^mtp\.",),
    gguf=GGUFSpec(arch="mellum", from_gguf=from_gguf, table_arch="qwen3moe"),
)
