"""GLM-5: DeepSeek-V3.2 with layers that go by the choice of an earlier layer's indexer, and have none of their own.

As of DeepSeek-V3.2, the context is `index_topk` tokens here. The multi-token-prediction layer (78) is not read.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import HFFields
from litlm.families.deepseek_v3 import GGUF_MERGED
from litlm.families.deepseek_v32 import FAMILY as DEEPSEEK
from litlm.families.deepseek_v32 import indexed_fields, indexed_from_gguf, indexed_to_hf
from litlm.families.gguf import GGUFFields, GGUFSpec

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(q_lora_rank=2048, qk_nope_head_dim=192, v_head_dim=256, n_group=1, topk_group=1)
    values = indexed_fields(hf, index_n_heads=32, eps=1e-5, max_seq_len=202752, **sizes)
    layers = range(values["n_layer"])
    # As transformers: a list, or a pattern of F and S, or every so many layers from an offset on.
    period, offset = max(hf.take("index_topk_freq", 1), 1), hf.take("index_skip_topk_offset", 2)
    default = ["full" if max(i - offset + 1, 0) % period == 0 else "shared" for i in layers]
    types = hf.take("indexer_types", hf.take("index_topk_pattern", default))
    return values | dict(index_layers=tuple(types[i] in ("full", "F") for i in layers))


def to_hf(config: Config) -> dict[str, Any]:
    return indexed_to_hf(config) | dict(indexer_types=["full" if full else "shared" for full in config.index_layers])


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    full = gguf.get("attention.indexer.types")
    types = None if full is None else ["full" if indexed else "shared" for indexed in full]
    return indexed_from_gguf(gguf, "glm_moe_dsa") | dict(indexer_types=types)


FAMILY = dataclasses.replace(
    DEEPSEEK,
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    ignore=(r"^model\.layers\.78\.", r"\.rotary_emb\.inv_freq$"),
    gguf=GGUFSpec(arch="glm-dsa", from_gguf=from_gguf, merged=GGUF_MERGED),
)
