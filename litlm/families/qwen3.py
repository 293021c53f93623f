"""Qwen3, dense: Llama with an RMSNorm on each head's query and key, and sliding-window layers as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litlm.config import AttentionConfig, Config, MLPConfig, NormConfig
from litlm.families.base import (
    HF_ACTIVATIONS,
    LLAMA_RULES,
    Family,
    GGUFSpec,
    HFFields,
    gguf_common,
    gguf_whole_heads,
    hf_common,
    hf_rope,
    rename,
)

_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    common = hf.common(max_position_embeddings=32768)
    # Only the last layers slide, and only where use_sliding_window says so; newer files list the pattern itself.
    window = hf.take("sliding_window", 4096, null=None)
    window = window if hf.take("use_sliding_window", False) else None
    first = hf.take("max_window_layers", 28)
    types = hf.take("layer_types", None)
    if types is None:
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(common["n_layer"])]
    if unknown := sorted(set(types) - set(_LAYER_TYPES)):
        hf.problems.append(f"layer_types holds {', '.join(unknown)}; known are {', '.join(_LAYER_TYPES)}")
    layer_types = tuple(_LAYER_TYPES.get(t, "full") for t in types)
    if "sliding" in layer_types and window is None:
        hf.problems.append("layer_types has sliding_attention, but use_sliding_window or sliding_window is not set")
        window = 1
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 32, null=0),
        head_dim=hf.take("head_dim", 128),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=True),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),  # type: ignore[arg-type]
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
    first = config.layer_types.index("sliding") if "sliding" in config.layer_types else config.n_layer
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            use_sliding_window=config.sliding_window is not None,
            sliding_window=config.sliding_window,
            max_window_layers=first,
            layer_types=[names[t] for t in config.layer_types],
        )
    )


def from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    gguf_whole_heads(metadata, "qwen3")
    return gguf_common(metadata, "qwen3", "qwen3", "attention.layer_norm_rms_epsilon") | dict(
        num_key_value_heads=metadata.get("qwen3.attention.head_count_kv"),
        head_dim=metadata.get("qwen3.attention.key_length"),
        rms_norm_eps=metadata.get("qwen3.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.get("qwen3.rope.freq_base"),
        attention_bias="blk.0.attn_q.bias" in metadata["litlm.tensors"],
    )


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
        rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    ),
    gguf=GGUFSpec(arch="qwen3", config=from_gguf),
)
