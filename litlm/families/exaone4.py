"""EXAONE 4.0: norms after attention and MLP, and on each head's query and key. The 32B has rope in its sliding layers
alone, three of four; the 1.2B has no window, and rope everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import olmo2
from litlm.families.base import Family, HFFields, hf_head_dim, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, n_kv_head=32, eps=1e-5, attention_bias=None, qk_norm="head", bos_token_id=0, eos_token_id=2
    )
    window = hf.take("sliding_window", 4096, null=None)
    pattern = hf.take("sliding_window_pattern", 4)
    if window is None:
        pattern = 1
    elif not isinstance(pattern, int):  # the 32B's "LLLG", beside layer_types
        if "layer_types" not in hf.data:
            hf.problems.append(f"sliding_window_pattern={pattern!r} needs layer_types beside it, or must be a number")
        pattern = 4
    layers = hf.layer_types(["sliding" if (i + 1) % pattern else "full" for i in range(values["n_layer"])])
    return values | dict(
        sliding_window=window,
        layer_types=layers,
        block="post",
        rope_layers=tuple(window is None or layer == "sliding" for layer in layers),
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="head_dim attention_bias mlp_bias")
    return fields | hf_head_dim(config) | hf_sliding(config)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    window = gguf.get("attention.sliding_window")
    return gguf.common("exaone4") | dict(sliding_window=window, layer_types=gguf.layer_types(4 if window else 1))


FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=olmo2.RULES,
    gguf=GGUFSpec(arch="exaone4", from_gguf=from_gguf),
)
