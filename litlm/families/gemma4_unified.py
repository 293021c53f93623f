"""Gemma 4 12B, of which the text model alone is loaded. It is saved as `gemma4_unified_text`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import gemma4, gemma4_unified_text
from litlm.families.base import HFFields, text_config_fields


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (gemma4_unified_text.FAMILY,), gemma4.OTHERS)


FAMILY = dataclasses.replace(
    gemma4_unified_text.FAMILY,
    model_type="gemma4_unified",
    architecture="Gemma4UnifiedForConditionalGeneration",
    from_hf=from_hf,
)
