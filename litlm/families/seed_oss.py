"""Seed-OSS 36B: Llama with biases on q, k and v, and heads of 128 whatever n_embd is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_from_gguf, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.skip("residual_dropout")
    ids: dict[str, Any] = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)
    values = llama_fields(hf, n_kv_head=8, head_dim=128, mlp_bias=False, max_seq_len=524288, **ids)
    bias, out_bias = hf.take("attention_bias", True), hf.take("attention_out_bias", False)
    return values | dict(attention=AttentionConfig(bias=bias, out_bias=out_bias))


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config) | dict(attention_out_bias=config.attention.out_bias)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return llama_from_gguf(gguf, "seed_oss") | dict(attention_out_bias=gguf.has("attn_output.bias"))


FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="seed_oss", from_gguf=from_gguf),
)
