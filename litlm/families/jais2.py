"""Jais 2: Llama with layer norms, a plain MLP with squared ReLU, and biases everywhere."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    norm = NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5)))
    ids: dict[str, Any] = dict(bos_token_id=0, eos_token_id=150024)
    values = llama_fields(
        hf, norm=norm, activation="relu2", attention_bias=True, mlp_bias=True, max_seq_len=8192, **ids
    )
    return values | dict(mlp=dataclasses.replace(values["mlp"], kind="plain"))


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="rms_norm_eps") | dict(layer_norm_eps=config.norm.eps)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    biases = dict(attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias"))
    return gguf.common("jais2", eps="layer_norm_eps") | biases


FAMILY = Family(
    model_type="jais2",
    architecture="Jais2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="jais2", from_gguf=from_gguf),
)
