"""SmolLM3: Llama without rope in every fourth layer; those layers may slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim, hf_sliding
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.llama import llama_fields, llama_from_gguf, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    ids: dict[str, Any] = dict(bos_token_id=128000, eos_token_id=128001, pad_token_id=128004)
    values = llama_fields(
        hf, n_kv_head=4, mlp_bias=False, rope=hf.rope(theta=2000000.0), max_seq_len=32768, tie_embeddings=True, **ids
    )
    window, slides = hf.take("sliding_window", None), hf.take("use_sliding_window", False)
    interval = hf.take("no_rope_layer_interval", 4)
    pattern = [(i + 1) % interval != 0 for i in range(values["n_layer"])]
    rope_layers = tuple(bool(has_rope) for has_rope in hf.take("no_rope_layers", pattern))  # 0: no rope
    layer_types = hf.layer_types(
        ["sliding" if slides and window and not has_rope else "full" for has_rope in rope_layers]
    )
    if "sliding" in layer_types and not slides:
        hf.problems.append("layer_types has sliding_attention, but use_sliding_window is not set")
    hf.skip("max_window_layers")  # a leftover of Qwen's
    return values | dict(sliding_window=window, layer_types=layer_types, rope_layers=rope_layers)


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="head_dim") | hf_head_dim(config) | hf_sliding(config)
    return fields | dict(
        no_rope_layers=[int(has_rope) for has_rope in config.rope_layers],
        use_sliding_window="sliding" in config.layer_types,
    )


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="smollm3", from_gguf=lambda gguf: llama_from_gguf(gguf, "smollm3"), restore=UNPERMUTE_QK),
)
