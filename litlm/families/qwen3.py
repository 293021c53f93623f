"""Qwen3, dense: Llama with an RMSNorm on each head's query and key, and sliding-window layers as an option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    common = hf.common(max_seq_len=32768)
    # Only the last layers slide, and only where use_sliding_window says so; newer files list the pattern itself.
    window = hf.take("sliding_window", 4096, null=None)
    window = window if hf.take("use_sliding_window", False) else None
    first = hf.take("max_window_layers", 28)
    n_layer = common["n_layer"]
    layer_types = hf.layer_types(["sliding" if window and i >= first else "full" for i in range(n_layer)])
    if "sliding" in layer_types and window is None:
        hf.problems.append("layer_types has sliding_attention, but use_sliding_window or sliding_window is not set")
        window = 1
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 32, null=0),
        head_dim=hf.take("head_dim", 128),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
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
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("qwen3") | dict(attention_bias=gguf.has("attn_q.bias"))


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
    gguf=GGUFSpec(arch="qwen3", from_gguf=from_gguf),
)
