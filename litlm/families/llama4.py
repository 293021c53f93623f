"""Llama 4's multimodal checkpoints, of which the text model is loaded: the rest is ignored, and what is saved is a
`llama4_text` model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import llama4_text
from litlm.families.base import HFFields

# What the whole model's config says about its text model as well.
_OUTER = "dtype torch_dtype bos_token_id eos_token_id pad_token_id"
_VISION = "vision_config boi_token_index eoi_token_index image_token_index"


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in (*_VISION.split(), "tie_word_embeddings"):
        hf.take(key, None)
    outer = {key: hf.data[key] for key in _OUTER.split() if hf.take(key, None) is not None}
    text = HFFields(outer | {k: v for k, v in dict(hf.take("text_config", {})).items() if v is not None})
    values = llama4_text.from_hf(text)
    text.finish()
    return values | dict(family="llama4_text")


FAMILY = dataclasses.replace(
    llama4_text.FAMILY, model_type="llama4", architecture="Llama4ForConditionalGeneration", from_hf=from_hf, gguf=None
)
