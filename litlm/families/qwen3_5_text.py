"""Qwen3.5, 3.6 and 3.8, dense, as text models: Qwen3-Next with an MLP, and plain input projections."""

from __future__ import annotations

from typing import Any

from litlm.families.base import Family, HFFields
from litlm.families.qwen3_next import DELTA_RULES, hybrid_fields, hybrid_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, nested_rules, rename


def from_hf(hf: HFFields) -> dict[str, Any]:
    return hybrid_fields(
        hf, n_kv_head=4, vocab_size=248320, n_embd=4096, n_layer=32, n_head=16, intermediate_size=12288
    )


# The layer that predicts a second token, and what sees images.
IGNORE = (r"^mtp\.", r"^(model\.)?visual\.")
IN_PROJ_RULES = tuple(
    rename(f"model.layers.{{i}}.linear_attn.in_proj_{x}.weight", f"layers.{{i}}.attn.in_proj_{x}.weight")
    for x in ("qkv", "z", "b", "a")
)
_RULES = (*LLAMA_RULES, *QK_NORM_RULES, *DELTA_RULES, *IN_PROJ_RULES)

FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    from_hf=from_hf,
    to_hf=hybrid_to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),  # also inside multimodal checkpoints (`qwen3_5`)
    ignore=IGNORE,
)
