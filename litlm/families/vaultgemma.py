"""VaultGemma: Gemma 2 without the norms after each part."""

from __future__ import annotations

from typing import Any

from litlm.families import gemma2
from litlm.families.base import Family, HFFields
from litlm.families.weights import llama_rules_without, rename


def from_hf(hf: HFFields) -> dict[str, Any]:
    return gemma2.from_hf(hf) | dict(block="pre")


FAMILY = Family(
    model_type="vaultgemma",
    architecture="VaultGemmaForCausalLM",
    from_hf=from_hf,
    to_hf=gemma2.to_hf,
    rules=(
        rename("model.layers.{i}.pre_feedforward_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        *llama_rules_without("post_attention_layernorm"),
    ),
)
