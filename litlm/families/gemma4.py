"""Gemma 4's multimodal checkpoints, of which the text model is loaded: the rest is ignored, and what is saved is a
`gemma4_text` model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import gemma4_text
from litlm.families.base import HFFields

# What the whole model's config says about its text model, and says last.
_OUTER = "dtype torch_dtype tie_word_embeddings bos_token_id eos_token_id pad_token_id"
_OTHER = """vision_config audio_config vision_soft_tokens_per_image boi_token_id eoi_token_id image_token_id
    video_token_id boa_token_id eoa_token_id eoa_token_index audio_token_id initializer_range"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in _OTHER.split():
        hf.take(key, None)
    outer = {key: hf.data[key] for key in _OUTER.split() if hf.take(key, None) is not None}
    if not isinstance(hf.take("text_config", None), dict):
        hf.problems.append("text_config is missing, so there is no text model to load")
        hf.finish()
    text = HFFields({"model_type": "gemma4_text"} | hf.data["text_config"] | outer)
    values = gemma4_text.from_hf(text)
    text.finish()
    return values | dict(family="gemma4_text")


FAMILY = dataclasses.replace(
    gemma4_text.FAMILY, model_type="gemma4", architecture="Gemma4ForConditionalGeneration", from_hf=from_hf, gguf=None
)
