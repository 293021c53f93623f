"""Granite MoE with a shared expert (IBM's research checkpoints)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families import granitemoe
from litlm.families.base import Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.granitemoe import GGUF_RULES, RULES
from litlm.families.weights import Rule, fused_gate_up, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = granitemoe.from_hf(hf)
    shared = hf.take("shared_intermediate_size", 0)
    return values | dict(moe=dataclasses.replace(values["moe"], shared_intermediate_size=shared))


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return granitemoe.to_hf(config) | dict(shared_intermediate_size=config.moe.shared_intermediate_size)


_SHARED = "layers.{i}.mlp.shared."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    shared = gguf.get("expert_shared_feed_forward_length")
    return granitemoe.from_gguf(gguf, "granitemoeshared") | dict(shared_intermediate_size=shared)


FAMILY = Family(
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *RULES,
        Rule(
            "model.layers.{i}.shared_mlp.input_linear.weight",
            (_SHARED + "gate_proj.weight", _SHARED + "up_proj.weight"),
            **fused_gate_up(),
        ),
        rename("model.layers.{i}.shared_mlp.output_linear.weight", _SHARED + "down_proj.weight"),
    ),
    gguf=GGUFSpec(
        arch="granitemoe",
        from_gguf=from_gguf,
        matches=lambda gguf: gguf.has("ffn_gate_shexp.weight"),
        restore=UNPERMUTE_QK,
        rules=(
            *GGUF_RULES,
            *(rename(f"blk.{{i}}.ffn_{x}_shexp.weight", _SHARED + f"{x}_proj.weight") for x in ("gate", "up")),
        ),
    ),
)
