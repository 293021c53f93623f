"""Jais 2: Llama with layer norms, a plain MLP with squared ReLU, and biases everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias, mlp_bias = hf.take("attention_bias", True), hf.take("mlp_bias", True)
    return hf.common(max_seq_len=8192, bos_token_id=0, eos_token_id=150024) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "relu2"), bias=mlp_bias),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            layer_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            mlp_bias=config.mlp.bias,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("jais2", eps="layer_norm_eps") | dict(
        attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias")
    )


FAMILY = Family(
    model_type="jais2",
    architecture="Jais2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="jais2", from_gguf=from_gguf),
)
