"""GLM-4-0414 and GLM-Z1: GLM with norms after attention and MLP as well."""

from __future__ import annotations

from typing import Any

from litlm.families import glm
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFSpec
from litlm.families.weights import rename


def from_hf(hf: HFFields) -> dict[str, Any]:
    return glm.from_hf(hf) | dict(block="sandwich")


FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    from_hf=from_hf,
    to_hf=glm.to_hf,
    rules=(
        *glm.RULES,
        rename("model.layers.{i}.post_self_attn_layernorm.{p}", "layers.{i}.post_attn_norm.{p}"),
        rename("model.layers.{i}.post_mlp_layernorm.{p}", "layers.{i}.post_mlp_norm.{p}"),
    ),
    gguf=GGUFSpec(arch="glm4", from_gguf=lambda gguf: glm.from_gguf(gguf, "glm4")),
)
