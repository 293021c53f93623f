"""Llama 1 to 3.3 and everything that kept its architecture (SmolLM2, TinyLlama, Vicuna, R1-Distill-Llama, ...)."""

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
)


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    return hf.common(bos_token_id=1, eos_token_id=2) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=hf.take("mlp_bias", False)),  # type: ignore[arg-type]
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            mlp_bias=config.mlp.bias,
        )
    )


def from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    head_dim, turned = metadata.get("llama.attention.key_length"), metadata.get("llama.rope.dimension_count")
    gguf_whole_heads(metadata, "llama")
    return gguf_common(metadata, "llama", "llama", "attention.layer_norm_rms_epsilon") | dict(
        num_key_value_heads=metadata.get("llama.attention.head_count_kv"),
        head_dim=head_dim or turned,
        rms_norm_eps=metadata.get("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.get("llama.rope.freq_base"),
        attention_bias="blk.0.attn_q.bias" in metadata["litlm.tensors"],
        mlp_bias="blk.0.ffn_up.bias" in metadata["litlm.tensors"],
    )


def _halves(tensor: Any, heads: int) -> Any:
    """llama.cpp turns neighbouring rows of q and k; Hugging Face's layout turns row j with row j + head_dim / 2."""
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="llama",
        config=from_gguf,
        restore={
            "model.layers.{i}.self_attn.q_proj.{p}": lambda t, c: _halves(t, c.n_head),
            "model.layers.{i}.self_attn.k_proj.{p}": lambda t, c: _halves(t, c.n_kv_head),
        },
    ),
)
