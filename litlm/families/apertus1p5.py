"""Apertus 1.5 with images and sounds, of which the text model alone is loaded. It is saved as `apertus1p5_text`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import apertus1p5_text
from litlm.families.base import HFFields, text_config_fields

_OTHERS = "vision_config audio_config image_token_id audio_token_id image_token_offset audio_token_offset"


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (apertus1p5_text.FAMILY,), _OTHERS)


FAMILY = dataclasses.replace(
    apertus1p5_text.FAMILY,
    model_type="apertus1p5",
    architecture="Apertus1p5ForConditionalGeneration",
    from_hf=from_hf,
)
