"""Multimodal Mistral Small 3.1, 3.2, 4 and Ministral 3, of which the text model alone is loaded. It is saved as
`mistral`, `ministral3` or `mistral4`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import ministral3, mistral, mistral4
from litlm.families.base import HFFields, text_config_fields

_OTHERS = """
    vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias
    spatial_merge_size initializer_range
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    return text_config_fields(
        hf,
        (
            mistral.FAMILY,
            ministral3.FAMILY,
            mistral4.FAMILY,
        ),
        _OTHERS,
    )


FAMILY = dataclasses.replace(
    mistral.FAMILY, model_type="mistral3", architecture="Mistral3ForConditionalGeneration", from_hf=from_hf, gguf=None
)
