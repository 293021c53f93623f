"""Llama 1 to 3.3 and everything that kept its architecture (SmolLM2, TinyLlama, Vicuna, R1-Distill-Llama, ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    return hf.common(bos_token_id=1, eos_token_id=2) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=hf.take("mlp_bias", False)),
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


def from_gguf(gguf: GGUFFields, model_type: str = "llama") -> dict[str, Any]:
    return gguf.common(model_type) | dict(attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias"))


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    # Also Mistral's and the other files that llama.cpp calls so; Mixtral's are its own family's.
    gguf=GGUFSpec(
        arch="llama", from_gguf=from_gguf, matches=lambda gguf: not gguf.get("expert_count"), restore=UNPERMUTE_QK
    ),
)
