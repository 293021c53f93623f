"""Multimodal Mistral Small 3.1, 3.2, 4 and Ministral 3, of which the text model is loaded and the rest ignored. What is
saved is a `mistral`, `ministral3` or `mistral4` model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import ministral3, mistral, mistral4
from litlm.families.base import HFFields

_TEXT = {"mistral": mistral.FAMILY, "ministral3": ministral3.FAMILY, "mistral4": mistral4.FAMILY}
# What the whole model's config says about its text model, and says last.
_OUTER = "dtype torch_dtype tie_word_embeddings bos_token_id eos_token_id pad_token_id"
_VISION = """
    vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias
    spatial_merge_size initializer_range
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in _VISION.split():
        hf.take(key, None)
    outer = {key: hf.data[key] for key in _OUTER.split() if hf.take(key, None) is not None}
    text_config = hf.take("text_config", None)
    if not isinstance(text_config, dict):
        hf.problems.append("text_config is missing, so there is no text model to load")
        hf.finish()
        return {}
    name = text_config.get("model_type", "mistral")
    if name not in _TEXT:
        hf.problems.append(f"text_config.model_type={name!r} is not supported; known are {', '.join(_TEXT)}")
        hf.finish()
    text = HFFields({"model_type": name} | text_config | outer)
    values = _TEXT[name].from_hf(text)
    text.finish()
    return values | dict(family=name)


FAMILY = dataclasses.replace(
    mistral.FAMILY, model_type="mistral3", architecture="Mistral3ForConditionalGeneration", from_hf=from_hf, gguf=None
)
