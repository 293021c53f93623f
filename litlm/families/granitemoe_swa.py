"""Granite MoE (with or without a shared expert) with the sliding layers and sinks of `granite_swa`.

The experts' tensors have other names than in `granitemoe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import granitemoeshared
from litlm.families.base import Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.granite_swa import (
    GGUF_SINKS,
    SINKS,
    hf_sliding_layers,
    with_gguf_sliding_layers,
    with_sliding_layers,
)
from litlm.families.granitemoe import from_gguf as granitemoe_from_gguf
from litlm.families.weights import Rule, fused_gate_up, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    return with_sliding_layers(hf, granitemoeshared.from_hf(hf))


def to_hf(config: Config) -> dict[str, Any]:
    return granitemoeshared.to_hf(config) | hf_sliding_layers(config)


_MOE = "model.layers.{i}.block_sparse_moe."
_EXPERTS = "layers.{i}.mlp.experts."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    shared = gguf.get("expert_shared_feed_forward_length", 0)
    fields = granitemoe_from_gguf(gguf, "granitemoe_swa") | dict(shared_intermediate_size=shared)
    return with_gguf_sliding_layers(gguf, fields)


FAMILY = Family(
    model_type="granitemoe_swa",
    architecture="GraniteMoeSWAForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *(rule for rule in granitemoeshared.FAMILY.rules if "block_sparse_moe" not in rule.theirs),
        rename(_MOE + "router.weight", "layers.{i}.mlp.router.weight"),
        Rule(_MOE + "experts.gate_up_proj", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1)),
        rename(_MOE + "experts.down_proj", _EXPERTS + "down_proj"),
        SINKS,
    ),
    gguf=GGUFSpec(
        arch="granite_swa",
        from_gguf=from_gguf,
        matches=lambda gguf: bool(gguf.get("expert_count")),
        restore=UNPERMUTE_QK,
        rules=(
            *GGUF_SINKS,
            rename("blk.{i}.ffn_gate_inp.weight", "layers.{i}.mlp.router.weight"),
            rename("blk.{i}.ffn_down_exps.weight", _EXPERTS + "down_proj"),
            Rule("blk.{i}.ffn_gate_up_exps.weight", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1)),
            Rule(
                "blk.{i}.ffn_up_shexp.weight",
                tuple(f"layers.{{i}}.mlp.shared.{x}_proj.weight" for x in ("gate", "up")),
                **fused_gate_up(),
            ),
        ),
        table_arch="granitemoe",
    ),
)
