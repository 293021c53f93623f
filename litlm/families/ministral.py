"""Ministral 8B: Mistral with a list of which layers have a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import HF_LAYER_TYPES, Family
from litlm.families.mistral import from_hf
from litlm.families.mistral import to_hf as mistral_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def to_hf(config: Config) -> dict[str, Any]:
    return mistral_to_hf(config) | dict(
        sliding_window=config.sliding_window or config.max_seq_len,  # transformers wants one even if no layer slides
        layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
    )


FAMILY = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
)
