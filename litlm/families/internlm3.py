"""InternLM3 8B: Llama with other names for its biases (`qkv_bias`, `bias`) and rope that stretches with the length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.llama import to_hf as llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    # transformers takes both pairs of names, and the two only together.
    bias = hf.take("attention_bias", hf.take("qkv_bias", False))
    if bias != hf.take("mlp_bias", hf.take("bias", False)):
        hf.problems.append("qkv_bias (attention_bias) and bias (mlp_bias) must be equal")
    return hf.common(max_seq_len=32768, bos_token_id=1, eos_token_id=2, pad_token_id=2) | dict(
        n_kv_head=hf.take("num_key_value_heads", 2, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=bias),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config) | dict(qkv_bias=config.attention.bias, bias=config.mlp.bias)


FAMILY = Family(
    model_type="internlm3",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
)
