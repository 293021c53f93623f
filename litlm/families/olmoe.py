"""OLMoE 1B-7B: experts in every layer, and queries and keys normed over all heads.

`clip_qkv` clamps after that norm, as transformers does; the published checkpoints don't clip.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen2_moe import MOE_RULES
from litlm.families.weights import QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, head_dim=None, eps=1e-5, qk_norm="all", max_seq_len=4096, eos_token_id=50279, pad_token_id=1
    )
    clip = hf.take("clip_qkv", None)
    return values | dict(
        attention=dataclasses.replace(values["attention"], clip=None if clip is None else float(clip)),
        moe=hf.experts(
            "num_experts",
            n_expert=64,
            n_expert_per_token=8,
            intermediate_size=values["intermediate_size"],
            aux_loss=0.01,
            normalize=hf.take("norm_topk_prob", False),
        ),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    fields = llama_to_hf(config, without="head_dim mlp_bias") | hf_experts(config, "num_experts")
    return fields | dict(clip_qkv=config.attention.clip, norm_topk_prob=config.moe.normalize)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("olmoe", head_dim=None) | gguf.experts("num_experts", None)
    return fields | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*MOE_RULES, *QK_NORM_RULES),
    gguf=GGUFSpec(arch="olmoe", from_gguf=from_gguf),
)
