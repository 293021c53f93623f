"""Qwen3, dense: Llama with an RMSNorm on each head's query and key, and optional sliding layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, n_kv_head=32, head_dim=128, qk_norm="head", max_seq_len=32768)
    return values | last_layers_slide(hf, values["n_layer"])


def window_if_used(hf: HFFields) -> int | None:
    """The sliding window of Qwen's files, which have a switch for it."""
    window = hf.take("sliding_window", 4096, null=None)
    return window if hf.take("use_sliding_window", False) else None


def last_layers_slide(hf: HFFields, n_layer: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of Qwen2 and Qwen3; newer files list the pattern itself."""
    window, first = window_if_used(hf), hf.take("max_window_layers", 28)
    layer_types = hf.layer_types(["sliding" if window and i >= first else "full" for i in range(n_layer)])
    if "sliding" in layer_types and window is None:
        hf.problems.append("layer_types has sliding_attention, but use_sliding_window or sliding_window is not set")
        window = 1
    return dict(sliding_window=window if "sliding" in layer_types else None, layer_types=layer_types)


def to_hf(config: Config) -> dict[str, Any]:
    first = config.layer_types.index("sliding") if "sliding" in config.layer_types else config.n_layer
    fields = llama_to_hf(config, without="mlp_bias") | hf_sliding(config)
    return fields | dict(use_sliding_window=config.sliding_window is not None, max_window_layers=first)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("qwen3") | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *QK_NORM_RULES),
    gguf=GGUFSpec(arch="qwen3", from_gguf=from_gguf),
)
