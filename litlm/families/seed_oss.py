"""Seed-OSS 36B: Llama with biases on q, k and v, and heads of 128 whatever n_embd is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import from_gguf as llama_from_gguf
from litlm.families.llama import to_hf as llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.take("residual_dropout", None)  # in training only
    return hf.common(max_seq_len=524288, bos_token_id=0, eos_token_id=2, pad_token_id=1) | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
        attention=AttentionConfig(bias=hf.take("attention_bias", True), out_bias=hf.take("attention_out_bias", False)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=hf.take("mlp_bias", False)),
        rope=hf.rope(),
    )


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
