"""Flint (35B-A3B): normed heads, attention sinks, rope in sliding layers alone, a sigmoid router, a shared expert."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts, hf_sliding
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen2_moe import MOE_RULES, hf_sparse_layers, sparse_layers
from litlm.families.weights import QK_NORM_RULES, mlp_rules, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, n_kv_head=4, head_dim=128, qk_norm="head", max_seq_len=262144)
    layers = range(values["n_layer"])
    types = hf.layer_types(["full" if i < 2 or i % 4 == 1 or i == layers[-1] else "sliding" for i in layers])
    if hf.data.get("mlp_only_layers") is None:
        hf.data = {**hf.data, "mlp_only_layers": [0, 1]}
    moe = hf.experts(
        "num_experts",
        n_expert=256,
        n_expert_per_token=6,
        intermediate_size=hf.take("moe_intermediate_size", 512),
        aux_loss=0.0005,
        scoring="sigmoid",
        normalize=hf.take("norm_topk_prob", True),
        shared_intermediate_size=hf.take("shared_expert_intermediate_size", 1024),
    )
    return values | dict(
        sliding_window=hf.take("sliding_window", 513),
        layer_types=types,
        rope_layers=tuple(t == "sliding" for t in types),
        attention=replace(values["attention"], sinks=True),
        moe=moe,
        moe_layers=sparse_layers(hf, len(layers)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    fields = llama_to_hf(config, without="mlp_bias") | hf_sliding(config, required=True)
    return (
        fields
        | hf_experts(config, "num_experts")
        | hf_sparse_layers(config)
        | dict(
            moe_intermediate_size=config.moe.intermediate_size,
            shared_expert_intermediate_size=config.moe.shared_intermediate_size,
            norm_topk_prob=config.moe.normalize,
        )
    )


_RULES = (
    *MOE_RULES,
    *QK_NORM_RULES,
    *mlp_rules("model.layers.{i}.mlp.shared_expert.", "layers.{i}.mlp.shared."),
    rename("model.layers.{i}.self_attn.softmax_offset", "layers.{i}.attn.sinks"),
)

FAMILY = Family(
    model_type="flint",
    architecture="FlintForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(_RULES, {"softmax_offset": "sinks"}),
)
