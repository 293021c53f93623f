"""Kimi K2.5 and K2.6, of which the text model alone is loaded: a DeepSeek-V3. It is saved as `deepseek_v3`."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import deepseek_v3
from litlm.families.base import HFFields, text_config_fields

_OTHERS = """
    vision_config projection_hidden_size projection_layer_norm_eps image_token_id video_token_id vision_start_token_id
    vision_end_token_id media_placeholder_token_id ignore_index use_unified_vision_chunk video_placeholder
    encoder_only language_only initializer_range
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    text = hf.data.get("text_config")
    if isinstance(text, dict) and text.get("model_type") == "kimi_k2":  # as published; transformers has it so
        hf.data = {**hf.data, "text_config": {**text, "model_type": "deepseek_v3"}}
    return text_config_fields(hf, (deepseek_v3.FAMILY,), _OTHERS)


FAMILY = dataclasses.replace(
    deepseek_v3.FAMILY,
    model_type="kimi_k25",
    architecture="Kimi_K25ForConditionalGeneration",
    from_hf=from_hf,
    gguf=None,
)
