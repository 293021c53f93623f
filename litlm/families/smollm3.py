"""SmolLM3: Llama without rope in every fourth layer; those layers may slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import llama
from litlm.families.base import HF_LAYER_TYPES, Family, HFFields, hf_head_dim
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama.from_hf(hf) | hf.common(
        max_seq_len=32768, tie_embeddings=True, bos_token_id=128000, eos_token_id=128001, pad_token_id=128004
    )
    window, slides = hf.take("sliding_window", None), hf.take("use_sliding_window", False)
    interval = hf.take("no_rope_layer_interval", 4)
    every = [(i + 1) % interval != 0 for i in range(values["n_layer"])]
    rope_layers = tuple(bool(has) for has in hf.take("no_rope_layers", every))  # named for what 0 means
    layers = hf.layer_types(["sliding" if slides and window and not has else "full" for has in rope_layers])
    if "sliding" in layers and not slides:
        hf.problems.append("layer_types has sliding_attention, but use_sliding_window is not set")
    hf.take("max_window_layers", None)  # a leftover of Qwen's
    return values | dict(
        n_kv_head=hf.take("num_key_value_heads", 4, null=0),
        sliding_window=window,
        layer_types=layers,
        rope=hf.rope(theta=2000000.0),
        rope_layers=rope_layers,
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama.to_hf(config)
    del fields["head_dim"]
    return (
        fields
        | hf_head_dim(config)
        | dict(
            no_rope_layers=[int(has) for has in config.rope_layers],
            use_sliding_window="sliding" in config.layer_types,
            sliding_window=config.sliding_window,
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        )
    )


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="smollm3", from_gguf=lambda gguf: llama.from_gguf(gguf, "smollm3"), restore=UNPERMUTE_QK),
)
