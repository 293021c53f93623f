"""Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B and Qwen3.6-35B-A3B as text models: Qwen3.5 with Qwen3-Next's experts.

Published files have all experts of a layer in two tensors; transformers writes, and so does litlm, one for each expert
and projection, as the files in FP8 have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import qwen3_5_text
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.qwen2_moe import FAMILY as QWEN2_MOE
from litlm.families.qwen3_5_text import GGUF_RESTORE, GGUF_RULES, IGNORE, IN_PROJ_RULES
from litlm.families.qwen3_next import (
    DELTA_RULES,
    experts_from_gguf,
    hf_shared_experts,
    hybrid_fields,
    hybrid_to_hf,
    shared_experts,
)
from litlm.families.weights import QK_NORM_RULES, Rule, fused_gate_up, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = hybrid_fields(hf, n_kv_head=2, vocab_size=248320, n_embd=2048, n_layer=40, n_head=16, intermediate_size=0)
    for key, only in (("norm_topk_prob", True), ("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        hf.expect(key, only, only)  # transformers' model has no such field
    return values | dict(moe=shared_experts(hf, 256, 8), intermediate_size=0)  # of no layer


def to_hf(config: Config) -> dict[str, Any]:
    fields = hybrid_to_hf(config) | hf_shared_experts(config)
    return {key: value for key, value in fields.items() if key not in ("intermediate_size", "norm_topk_prob")}


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return qwen3_5_text.from_gguf(gguf, "qwen3_5_moe_text") | experts_from_gguf(gguf)


_EXPERTS, _OURS = "model.layers.{i}.mlp.experts.", "layers.{i}.mlp.experts."
_RULES = (
    *QWEN2_MOE.rules,
    Rule(_EXPERTS + "gate_up_proj", (_OURS + "gate_proj", _OURS + "up_proj"), **fused_gate_up(1)),
    rename(_EXPERTS + "down_proj", _OURS + "down_proj"),
    *QK_NORM_RULES,
    *DELTA_RULES,
    *IN_PROJ_RULES,
)

FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=IGNORE,
    gguf=GGUFSpec(
        arch="qwen35moe",
        from_gguf=from_gguf,
        restore=subtract_one((*QWEN2_MOE.rules, *QK_NORM_RULES)) | GGUF_RESTORE,
        rules=GGUF_RULES,
    ),
)
