"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts; `mlp_layer_types` says which layers have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common
from litlm.families.deepseek_v3 import (
    LATENT_RULES,
    MOE_RULES,
    latent_from_hf,
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
    """The reverse."""
    return ["sparse" if has_experts else "dense" for has_experts in config.moe_layers]


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=202752, bos_token_id=0, eos_token_id=1)
    hf.expect("first_k_dense_replace", 1, 1)
    sizes = dict(kv_lora_rank=512, q_lora_rank=768, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256)
    return (
        common
        | latent_from_hf(hf, **sizes)
        | dict(
            norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
            mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
            moe=sigmoid_moe_from_hf(
                hf, n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536, routed_scaling_factor=1.8
            ),
            moe_layers=sparse_layers(hf, common["n_layer"], 1),
        )
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | latent_to_hf(config)
        | moe_to_hf(config.moe)
        | dict(
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            rope_interleave=config.rope is not None and config.rope.interleaved,
            mlp_layer_types=hf_sparse_layers(config),
        )
    )


FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES, *MOE_RULES),
    ignore=(r"^model\.layers\.47\.",),
)
