"""Mistral 7B to Small 3 and Large 2: Llama without biases, in which all layers or none have a sliding window.

A file that lists `layer_types` has windows in those layers only; transformers calls that `ministral`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.weights import LLAMA_RULES, nested_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields, window: int | None = 4096, eps: float = 1e-6, theta: float = 10000.0) -> dict[str, Any]:
    """window, eps, theta: transformers' defaults, which differ among the families that share this."""
    common = hf.common(max_seq_len=131072, bos_token_id=1, eos_token_id=2)
    window = hf.take("sliding_window", window, null=None)
    layer_types = hf.layer_types(["full" if window is None else "sliding"] * common["n_layer"])
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", eps))),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(theta=theta),
    )


def to_hf(config: Config) -> dict[str, Any]:
    mixed = len(set(config.layer_types)) > 1
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            sliding_window=config.sliding_window,
        )
        | (dict(layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types]) if mixed else {})
    )


RULES = (*LLAMA_RULES, *nested_rules(LLAMA_RULES))  # also inside multimodal checkpoints (`mistral3`)
IGNORE = (r"\.rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|multi_modal_projector)\.")

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    from_hf=from_hf,
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
