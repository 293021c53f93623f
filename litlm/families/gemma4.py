"""Gemma 4's multimodal checkpoints, of which the text model alone is loaded. It is saved as `gemma4_text`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import gemma4_text
from litlm.families.base import HFFields, text_config_fields

OTHERS = """
    vision_config audio_config vision_soft_tokens_per_image boi_token_id eoi_token_id image_token_id video_token_id
    boa_token_id eoa_token_id eoa_token_index audio_token_id initializer_range
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (gemma4_text.FAMILY,), OTHERS)


FAMILY = dataclasses.replace(
    gemma4_text.FAMILY, model_type="gemma4", architecture="Gemma4ForConditionalGeneration", from_hf=from_hf, gguf=None
)
