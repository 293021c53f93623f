"""Meta's Code World Model (32B): Llama in which three of four layers have a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, NormConfig
from litlm.families.base import HF_LAYER_TYPES, Family, HFFields
from litlm.families.llama import to_hf as llama_to_hf
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
    common = hf.common(max_seq_len=131072, bos_token_id=128000, eos_token_id=[128001, 128008, 128009])
    window = hf.take("sliding_window", 8192)
    layer_types = hf.layer_types(["sliding" if i % 4 else "full" for i in range(common["n_layer"])])
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=hf.take("mlp_bias", False)),
        rope=hf.rope(theta=1e6),
    )


def to_hf(config: Config) -> dict[str, Any]:
    data = llama_to_hf(config) | dict(
        sliding_window=config.sliding_window or config.max_seq_len,  # transformers wants one even if no layer slides
        layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
    )
    del data["attention_bias"]
    return data


FAMILY = Family(
    model_type="cwm",
    architecture="CwmForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
)
