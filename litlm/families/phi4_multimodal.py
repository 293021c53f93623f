"""Phi-4-multimodal, of which the text model alone is loaded: a Phi-4-mini. It is saved as `phi3`.

The LoRA weights for images and speech are left out, as transformers leaves them out for text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import phi3
from litlm.families.base import HFFields

_OTHERS = """
    vision_config audio_config embd_layer img_processor audio_processor vision_lora speech_lora image_token_id
    audio_token_id
"""
_DEFAULTS = dict(
    vocab_size=200064, num_key_value_heads=8, max_position_embeddings=131072, bos_token_id=199999,
    eos_token_id=[199999, 200020], pad_token_id=199999, original_max_position_embeddings=4096,
)  # fmt: skip


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.skip(_OTHERS)
    hf.data = {**_DEFAULTS, **hf.data}
    hf.data["eos_token_id"] = hf.data["eos_token_id"] or _DEFAULTS["eos_token_id"]
    return phi3.from_hf(hf) | dict(family="phi3")


FAMILY = dataclasses.replace(
    phi3.FAMILY,
    model_type="phi4_multimodal",
    architecture="Phi4MultimodalForCausalLM",
    from_hf=from_hf,
    gguf=None,
)
