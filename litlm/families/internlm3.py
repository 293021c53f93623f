"""InternLM3 8B: Llama with other names for its biases (`qkv_bias`, `bias`) and dynamic rope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig
from litlm.families.base import Family, HFFields
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    # transformers accepts both pairs of names, and uses one value for all biases.
    bias = hf.take("attention_bias", hf.take("qkv_bias", False))
    if bias != hf.take("mlp_bias", hf.take("bias", False)):
        hf.problems.append("qkv_bias (attention_bias) and bias (mlp_bias) must be equal")
    ids: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    values = llama_fields(hf, n_kv_head=2, head_dim=128, eps=1e-5, max_seq_len=32768, **ids)
    return values | dict(
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=values["mlp"].activation, bias=bias),
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
