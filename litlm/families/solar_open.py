"""Solar Open (100B): grouped-query attention, DeepSeek-V3's experts and router in every layer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import MOE_RULES, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=1000000.0, fraction_key="partial_rotary_factor")
    values = llama_fields(hf, n_kv_head=8, head_dim=128, eps=1e-5, rope=rope, max_seq_len=131072, intermediate_size=0)
    hf.expect("use_qk_norm", False, False)
    hf.expect("first_k_dense_replace", 0, 0)
    moe = sigmoid_moe_from_hf(
        hf, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1280, routed_scaling_factor=1.0
    )
    attention = dataclasses.replace(values["attention"], out_bias=False)
    return values | dict(intermediate_size=0, attention=attention, moe=moe)  # no layer has a dense MLP


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="intermediate_size mlp_bias") | moe_to_hf(config.moe)


FAMILY = Family(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *MOE_RULES),
)
