"""Gemma 3's multimodal checkpoints (4B and larger), of which the text model is loaded: the rest is ignored, and what is
saved is a `gemma3_text` model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import gemma3_text
from litlm.families.base import HFFields

# What the whole model's config says about its text model, and says last.
_OUTER = "dtype torch_dtype tie_word_embeddings bos_token_id eos_token_id pad_token_id"
_VISION = "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index initializer_range"


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in _VISION.split():
        hf.take(key, None)
    outer = {key: hf.data[key] for key in _OUTER.split() if hf.take(key, None) is not None}
    if not isinstance(hf.take("text_config", None), dict):
        hf.problems.append("text_config is missing, so there is no text model to load")
        hf.finish()
    text = HFFields({"model_type": "gemma3_text"} | hf.data["text_config"] | outer)
    values = gemma3_text.from_hf(text)
    text.finish()
    return values | dict(family="gemma3_text")


FAMILY = dataclasses.replace(
    gemma3_text.FAMILY, model_type="gemma3", architecture="Gemma3ForConditionalGeneration", from_hf=from_hf, gguf=None
)
