"""Ernie 4.5, dense (0.3B): Llama with interleaved rope; all linear layers but the head may have biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias, rope = hf.take("use_bias", False), hf.rope(theta=500000.0, interleaved=True)
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    values = llama_fields(
        hf, n_kv_head=2, head_dim=128, eps=1e-5, attention_bias=None, rope=rope, max_seq_len=131072, **ids
    )
    return values | dict(
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=values["mlp"].activation, bias=bias),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="attention_bias mlp_bias") | dict(use_bias=config.attention.bias)


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
