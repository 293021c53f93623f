"""Ministral 8B: Mistral with a list of which layers have a sliding window."""

from __future__ import annotations

from litlm.families.base import Family, hf_sliding
from litlm.families.mistral import mistral_fields
from litlm.families.mistral import to_hf as mistral_to_hf
from litlm.families.weights import LLAMA_RULES

FAMILY = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    from_hf=mistral_fields,
    to_hf=lambda config: mistral_to_hf(config) | hf_sliding(config, required=True),
    rules=LLAMA_RULES,
)
