"""DeepSeek-V2, V2-Lite and V2.5: latent attention, softmax routing without normalization, greedy or within groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig
from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    GGUF_MERGED,
    LATENT_RULES,
    MOE_RULES,
    first_dense,
    hf_first_dense,
    is_v3,
    latent_fields,
    latent_from_gguf,
    latent_to_hf,
    moe_to_hf,
    skip_training_fields,
)
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = latent_fields(hf, interleaved=True, mlp_bias=False, bos_token_id=1, eos_token_id=2)
    hf.expect("scoring_func", "softmax", "softmax")
    hf.expect("norm_topk_prob", False, False)  # transformers reads the field and never normalizes
    skip_training_fields(hf)
    method, n_group, groups = hf.take("topk_method", "greedy"), hf.take("n_group", None), hf.take("topk_group", None)
    if method not in ("greedy", "group_limited_greedy"):
        hf.problems.append(f"topk_method={method!r} is not supported; known are 'greedy' and 'group_limited_greedy'")
    limited = method == "group_limited_greedy"
    expert_size = hf.take("moe_intermediate_size", 1407)
    moe = MoEConfig(
        n_expert=hf.take("n_routed_experts", 64),
        n_expert_per_token=hf.take("num_experts_per_tok"),
        intermediate_size=expert_size,
        normalize=False,
        scale=float(hf.take("routed_scaling_factor", 1.0)),
        n_group=(n_group or 1) if limited else 1,
        n_group_per_token=(groups or 1) if limited else 1,
        shared_intermediate_size=expert_size * hf.take("n_shared_experts", 2),
    )
    return values | dict(moe=moe, moe_layers=first_dense(hf, values["n_layer"], 0))


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    fields = latent_to_hf(config, without="rope_interleave") | moe_to_hf(config.moe)
    return fields | dict(
        first_k_dense_replace=hf_first_dense(config),
        topk_method="group_limited_greedy" if config.moe.n_group > 1 else "greedy",
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 1)  # softmax
    gguf.expect("expert_weights_norm", False)
    groups = gguf.get("expert_group_count", 1)
    return (
        latent_from_gguf(gguf, "deepseek_v2")
        | gguf.experts("n_routed_experts")
        | dict(
            n_shared_experts=gguf.get("expert_shared_count", 0),
            routed_scaling_factor=gguf.get("expert_weights_scale", 1.0),
            topk_method="group_limited_greedy" if groups > 1 else "greedy",
            n_group=groups,
            topk_group=gguf.get("expert_group_used_count", 1),
            first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
            mlp_bias=gguf.has("ffn_up_shexp.bias") or gguf.has("ffn_up.bias"),
        )
    )


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES, *MOE_RULES),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="deepseek2",
        from_gguf=from_gguf,
        matches=lambda gguf: bool(gguf.get("expert_count")) and not is_v3(gguf),
        merged=GGUF_MERGED,
    ),
)
