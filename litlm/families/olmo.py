"""OLMo 1 and 1.7: Llama whose layer norms have neither weight nor bias, with queries, keys and values clamped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    return hf.common(eos_token_id=50279, pad_token_id=1) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=NormConfig(kind="layer", eps=1e-5, weight=False, bias=False),
        attention=AttentionConfig(bias=bias, out_bias=bias, clip=hf.take("clip_qkv", None)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            clip_qkv=config.attention.clip,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("olmo", eps="layer_norm_epsilon")
    del fields["layer_norm_epsilon"]  # always 1e-5
    return fields | dict(clip_qkv=gguf.get("attention.clamp_kqv"), attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="olmo", from_gguf=from_gguf, restore=UNPERMUTE_QK),
)
