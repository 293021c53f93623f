"""Meta's Code World Model (32B): Llama in which three of four layers have a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config

_DEFAULT_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    if not hf.data.get("rope_parameters") and not hf.data.get("rope_scaling"):
        hf.data = {**hf.data, "rope_parameters": _DEFAULT_ROPE}
    ids: dict[str, Any] = dict(bos_token_id=128000, eos_token_id=[128001, 128008, 128009])
    defaults: dict[str, Any] = dict(n_kv_head=8, head_dim=128, eps=1e-5, attention_bias=None, mlp_bias=False)
    values = llama_fields(hf, **defaults, rope=hf.rope(theta=1e6), max_seq_len=131072, **ids)
    slides = ["sliding" if i % 4 else "full" for i in range(values["n_layer"])]
    return values | hf.sliding(hf.take("sliding_window", 8192), slides)


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="attention_bias") | hf_sliding(config, required=True)


FAMILY = Family(
    model_type="cwm",
    architecture="CwmForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
)
