"""Gemma 3's multimodal checkpoints (4B and larger), of which the text model alone is loaded. It is saved as
`gemma3_text`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import gemma3_text
from litlm.families.base import HFFields, text_config_fields

_OTHERS = """
    vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index initializer_range
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (gemma3_text.FAMILY,), _OTHERS)


FAMILY = dataclasses.replace(
    gemma3_text.FAMILY, model_type="gemma3", architecture="Gemma3ForConditionalGeneration", from_hf=from_hf, gguf=None
)
