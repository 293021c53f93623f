"""Qwen1.5, Qwen2 and Qwen2.5, dense (also QwQ, R1-Distill-Qwen): Llama with biases on q, k and v.

Sliding layers are as in Qwen3, whose reader and writer this shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import GGUFSpec
from litlm.families.qwen3 import from_hf as qwen3_from_hf
from litlm.families.qwen3 import to_hf as qwen3_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.take("dual_chunk_attention_config", None)  # vLLM's way beyond the trained length (Qwen2.5-1M)
    return qwen3_from_hf(hf) | dict(head_dim=hf.take("head_dim", 0), attention=AttentionConfig(bias=True))


def to_hf(config: Config) -> dict[str, Any]:
    data = qwen3_to_hf(config)
    del data["head_dim"], data["attention_bias"]
    return data | hf_head_dim(config)


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="qwen2", from_gguf=lambda gguf: gguf.common("qwen2")),
)
