"""Granite 3 MoE (1B-A400M, 3B-A800M) and PowerMoE: Granite with experts, stored stacked, gate and up fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.granite import from_gguf as granite_from_gguf
from litlm.families.granite import granite_fields
from litlm.families.granite import to_hf as granite_to_hf
from litlm.families.weights import LLAMA_RULES, Rule, fused_gate_up, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = granite_fields(hf)
    moe = hf.experts(n_expert=8, n_expert_per_token=2, intermediate_size=values["intermediate_size"])
    return values | dict(moe=moe)


def to_hf(config: Config) -> dict[str, Any]:
    fields = granite_to_hf(config) | hf_experts(config)
    del fields["mlp_bias"]
    return fields


_MOE = "model.layers.{i}.block_sparse_moe."
_EXPERTS = "layers.{i}.mlp.experts."

RULES = (
    *LLAMA_RULES,
    rename(_MOE + "router.layer.weight", "layers.{i}.mlp.router.weight"),
    Rule(_MOE + "input_linear.weight", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1)),
    rename(_MOE + "output_linear.weight", _EXPERTS + "down_proj"),
)


def from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    return granite_from_gguf(gguf, model_type) | gguf.experts("num_local_experts", None)


GGUF_RULES = tuple(rename(f"blk.{{i}}.ffn_{x}_exps.weight", _EXPERTS + f"{x}_proj") for x in ("gate", "up"))


FAMILY = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(
        arch="granitemoe",
        from_gguf=lambda gguf: from_gguf(gguf, "granitemoe"),
        matches=lambda gguf: not gguf.has("ffn_gate_shexp.weight"),
        restore=UNPERMUTE_QK,
        rules=GGUF_RULES,
    ),
)
