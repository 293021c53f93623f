"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts; `mlp_layer_types` says which layers have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    LATENT_RULES,
    MOE_RULES,
    latent_fields,
    latent_to_hf,
    moe_to_hf,
    sigmoid_moe_from_hf,
)
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def sparse_layers(hf: HFFields, n_layer: int, dense: int) -> tuple[bool, ...]:
    """Which layers have experts; if the file has no list, all but the first `dense`."""
    types = hf.take("mlp_layer_types", ["dense"] * min(dense, n_layer) + ["sparse"] * (n_layer - dense))
    if unknown := sorted(set(types) - {"dense", "sparse"}):
        hf.problems.append(f"mlp_layer_types holds {', '.join(unknown)}; known are dense and sparse")
    return tuple(t == "sparse" for t in types)


def hf_sparse_layers(config: Config) -> list[str]:
    """The inverse of `sparse_layers`."""
    return ["sparse" if has_experts else "dense" for has_experts in config.moe_layers]


def from_hf(hf: HFFields) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(q_lora_rank=768, qk_nope_head_dim=192, v_head_dim=256)
    values = latent_fields(hf, **sizes, eps=1e-5, max_seq_len=202752, bos_token_id=0, eos_token_id=1)
    hf.expect("first_k_dense_replace", 1, 1)
    moe = sigmoid_moe_from_hf(
        hf, n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536, routed_scaling_factor=1.8
    )
    return values | dict(moe=moe, moe_layers=sparse_layers(hf, values["n_layer"], 1))


def to_hf(config: Config) -> dict[str, Any]:
    fields = latent_to_hf(config, without="mlp_bias") | moe_to_hf(config.moe)
    return fields | dict(mlp_layer_types=hf_sparse_layers(config))


FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES, *MOE_RULES),
    ignore=(r"^model\.layers\.47\.",),
)
