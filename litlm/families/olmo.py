"""OLMo 1 and 1.7: Llama whose layer norms have neither weight nor bias, with queries, keys and values clamped."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    norm = NormConfig(kind="layer", eps=1e-5, weight=False, bias=False)
    values = llama_fields(hf, norm=norm, eos_token_id=50279, pad_token_id=1)
    return values | dict(attention=dataclasses.replace(values["attention"], clip=hf.take("clip_qkv", None)))


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="head_dim rms_norm_eps mlp_bias")
    return fields | hf_head_dim(config) | dict(clip_qkv=config.attention.clip)


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
