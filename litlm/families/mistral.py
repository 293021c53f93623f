"""Mistral 7B to Small 3 and Large 2: Llama without biases, in which all layers or none have a sliding window.

A file that lists `layer_types` has windows in those layers only; transformers calls that `ministral`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, nested_rules

if TYPE_CHECKING:
    from litlm.config import Config


def mistral_fields(hf: HFFields, *, window: int | None = 4096, **defaults: Any) -> dict[str, Any]:
    """What Mistral's relatives read the same way. Arguments: transformers' defaults, as in `llama_fields`."""
    defaults = (
        dict[str, Any](n_kv_head=8, attention_bias=None, max_seq_len=131072, bos_token_id=1, eos_token_id=2) | defaults
    )
    values = llama_fields(hf, **defaults)
    window = hf.take("sliding_window", window, null=None)
    return values | hf.sliding(window, ["full" if window is None else "sliding"] * values["n_layer"])


def to_hf(config: Config) -> dict[str, Any]:
    mixed = len(set(config.layer_types)) > 1
    fields = llama_to_hf(config, without="attention_bias mlp_bias") | dict(sliding_window=config.sliding_window)
    return fields | (hf_sliding(config) if mixed else {})


RULES = (*LLAMA_RULES, *nested_rules(LLAMA_RULES))  # also inside multimodal checkpoints (`mistral3`)
IGNORE = (r"\.rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|multi_modal_projector)\.")

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    from_hf=mistral_fields,
    to_hf=to_hf,
    rules=RULES,
    ignore=IGNORE,
    gguf=GGUFSpec(
        arch="mistral3",
        from_gguf=lambda gguf: gguf.common("mistral") | dict(sliding_window=None),
        matches=lambda gguf: not gguf.get("attention.temperature_scale"),
        restore=UNPERMUTE_QK,
    ),
)
