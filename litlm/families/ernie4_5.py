"""Ernie 4.5, dense (0.3B): Llama with interleaved rope; all linear layers but the head may have biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("use_bias", False)
    return hf.common(max_seq_len=131072, tie_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0) | dict(
        n_kv_head=hf.take("num_key_value_heads", 2, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=bias),
        rope=hf.rope(theta=500000.0, interleaved=True),
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
            use_bias=config.attention.bias,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("ernie4_5") | dict(use_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="ernie4_5", from_gguf=from_gguf),
)
