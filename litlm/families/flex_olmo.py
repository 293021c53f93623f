"""FlexOlmo 7x7B: OLMo 2's blocks with OLMoE's experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import olmo2
from litlm.families.base import Family, HFFields, hf_experts
from litlm.families.weights import expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=500000.0)
    values = olmo2.from_hf(hf, rope, eps=1e-6, max_seq_len=4096, eos_token_id=100257, pad_token_id=100277)
    moe = hf.experts(
        "num_experts",
        n_expert=7,
        n_expert_per_token=5,
        intermediate_size=values["intermediate_size"],
        aux_loss=0.01,
        normalize=hf.take("norm_topk_prob", False),
    )
    return values | dict(moe=moe)


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return olmo2.to_hf(config) | hf_experts(config, "num_experts") | dict(norm_topk_prob=config.moe.normalize)


FAMILY = Family(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *olmo2.RULES,
        rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
        *expert_rules(),
    ),
)
