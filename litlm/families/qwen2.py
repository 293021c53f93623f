"""Qwen1.5, Qwen2 and Qwen2.5, dense (also QwQ, R1-Distill-Qwen): Llama with biases on q, k and v.

Sliding layers are as in Qwen3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig
from litlm.families import qwen3
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import GGUFSpec
from litlm.families.llama import llama_fields
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.skip("dual_chunk_attention_config")  # vLLM's, for contexts beyond the trained length (Qwen2.5-1M)
    values = llama_fields(hf, n_kv_head=32, max_seq_len=32768)
    return values | qwen3.last_layers_slide(hf, values["n_layer"]) | dict(attention=AttentionConfig(bias=True))


def to_hf(config: Config) -> dict[str, Any]:
    fields = qwen3.to_hf(config)
    del fields["head_dim"], fields["attention_bias"]
    return fields | hf_head_dim(config)


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="qwen2", from_gguf=lambda gguf: gguf.common("qwen2")),
)
