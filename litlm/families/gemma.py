"""Gemma 1 and CodeGemma: Llama with norms stored as their difference from 1 and embeddings times sqrt(n_embd)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    activation = hf.activation("hidden_act", "gelu_pytorch_tanh")
    # transformers 4 read this name instead, and always as the tanh form: also where hidden_act says "gelu".
    hf.expect("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    hf.expect("use_bidirectional_attention", False, False)
    common = hf.common(max_seq_len=8192, tie_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 16),
        head_dim=hf.take("head_dim", 256),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)), offset=True),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation="gelu_tanh" if activation == "gelu" else activation),
        rope=hf.rope(),
        embed_scale=common["n_embd"] ** 0.5,
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
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("gemma") | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="gemma",
        from_gguf=from_gguf,
        restore=subtract_one(LLAMA_RULES),
    ),
)
