"""Apertus: Llama with a plain MLP, a learned activation (xIELU), and a norm on each head's query and key."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import QK_NORM_RULES, Rule, llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config

_DEFAULT_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key, value in (("qk_norm", True), ("post_norm", False), ("mlp_bias", False)):  # stated, always the same
        hf.expect(key, value, value)
    if not hf.data.get("rope_parameters") and not hf.data.get("rope_scaling"):
        hf.data = {**hf.data, "rope_parameters": _DEFAULT_ROPE}  # also if the file has a rope_theta
    ids: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    rope = hf.rope(theta=12000000.0)
    values = llama_fields(hf, eps=1e-5, activation="xielu", qk_norm="head", rope=rope, max_seq_len=65536, **ids)
    return values | dict(mlp=dataclasses.replace(values["mlp"], kind="plain"))


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="head_dim mlp_bias") | hf_head_dim(config)


_LAYER = "model.layers.{i}."
_XIELU = ("alpha_p", "alpha_n", "beta", "eps")


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = dict(rope_scaling=dict(rope_type="default")) | gguf.common("apertus")
    return fields | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename(_LAYER + "attention_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        rename(_LAYER + "feedforward_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        *QK_NORM_RULES,
        *(rename(_LAYER + f"mlp.act_fn.{x}", f"layers.{{i}}.mlp.act.xielu.{x}") for x in _XIELU),
        *llama_rules_without("layernorm"),
    ),
    gguf=GGUFSpec(
        arch="apertus",
        from_gguf=from_gguf,
        rules=(
            *(rename(f"blk.{{i}}.xielu.{x}", f"layers.{{i}}.mlp.act.xielu.{x}") for x in ("alpha_p", "alpha_n")),
            *(
                Rule(f"blk.{{i}}.xielu.{x}", (f"layers.{{i}}.mlp.act.xielu.{x}",), split=lambda t, c: [t.reshape(())])
                for x in ("beta", "eps")
            ),
        ),
        metadata_tensors={f"blk.{{i}}.xielu.{x}": f"xielu.{x}" for x in _XIELU},
    ),
)
