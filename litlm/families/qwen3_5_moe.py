"""Qwen3.5 and 3.6 with experts, as published, of which the text model alone is loaded. It is saved as
`qwen3_5_moe_text`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import qwen3_5_moe_text
from litlm.families.base import HFFields, text_config_fields
from litlm.families.qwen3_5 import OTHERS


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(hf, (qwen3_5_moe_text.FAMILY,), OTHERS)


FAMILY = dataclasses.replace(
    qwen3_5_moe_text.FAMILY,
    model_type="qwen3_5_moe",
    architecture="Qwen3_5MoeForConditionalGeneration",
    from_hf=from_hf,
    gguf=None,
)
