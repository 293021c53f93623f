"""Gemma 4 12B (text): Gemma 4 without per-layer inputs and experts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families import gemma4_text
from litlm.families.base import HFFields

if TYPE_CHECKING:
    from litlm.config import Config

# What transformers' config class has not, and its defaults that aren't `gemma4_text`'s.
_ABSENT = """
    enable_moe_block num_experts top_k_experts moe_intermediate_size hidden_size_per_layer_input
    vocab_size_per_layer_input
"""
_DEFAULTS = dict(sliding_window=1024, max_position_embeddings=262144)


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in _ABSENT.split():
        if hf.data.get(key) and key != "vocab_size_per_layer_input":
            hf.problems.append(f"{key}={hf.data[key]!r} is of Gemma 4's other sizes: model_type 'gemma4_text'")
    stated = {key: value for key, value in hf.data.items() if key not in _ABSENT.split()}
    hf.data = {**_DEFAULTS, **stated, "hidden_size_per_layer_input": 0}
    return gemma4_text.from_hf(hf)


def to_hf(config: Config) -> dict[str, Any]:
    return {key: value for key, value in gemma4_text.to_hf(config).items() if key not in _ABSENT.split()}


FAMILY = dataclasses.replace(
    gemma4_text.FAMILY,
    model_type="gemma4_unified_text",
    architecture="Gemma4UnifiedForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    ignore=(*gemma4_text.FAMILY.ignore, r"^(model\.)?vision_embedder\."),
    gguf=None,  # converted files are read as `gemma4_text`
)
