"""Llama 4's multimodal checkpoints, of which the text model alone is loaded. It is saved as `llama4_text`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import llama4_text
from litlm.families.base import HFFields, text_config_fields


def from_hf(hf: HFFields) -> dict[str, Any]:
    others = "vision_config boi_token_index eoi_token_index image_token_index"
    return text_config_fields(hf, (llama4_text.FAMILY,), others, outer=())


FAMILY = dataclasses.replace(
    llama4_text.FAMILY, model_type="llama4", architecture="Llama4ForConditionalGeneration", from_hf=from_hf, gguf=None
)
