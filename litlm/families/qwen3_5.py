"""Qwen3.5, 3.6 and 3.8, dense, as published, of which the text model alone is loaded. It is saved as `qwen3_5_text`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import qwen3_5_text
from litlm.families.base import HFFields, text_config_fields

OTHERS = """
    vision_config image_token_id video_token_id vision_start_token_id vision_end_token_id language_model_only
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (qwen3_5_text.FAMILY,), OTHERS)


FAMILY = dataclasses.replace(
    qwen3_5_text.FAMILY,
    model_type="qwen3_5",
    architecture="Qwen3_5ForConditionalGeneration",
    from_hf=from_hf,
    gguf=None,
)
