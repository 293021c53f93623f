"""Apertus 1.5 (text): Apertus with rows for images and sounds in the embedding that the output head may lack."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families import apertus
from litlm.families.base import HFFields
from litlm.families.weights import nested_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.data = {"vocab_size": 266752, **hf.data}
    values, n_output = apertus.from_hf(hf), hf.take("output_vocab_size", None) or 0
    return values | dict(head_vocab_size=n_output if n_output != values["vocab_size"] else 0)


def to_hf(config: Config) -> dict[str, Any]:
    return apertus.to_hf(config) | dict(output_vocab_size=config.head_vocab_size or None)


_RULES = apertus.FAMILY.rules

FAMILY = dataclasses.replace(
    apertus.FAMILY,
    model_type="apertus1p5_text",
    architecture="Apertus1p5TextForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=(r"^model\.(vision|audio)_tokenizer\.",),
    gguf=None,
)
