"""Sarvam 105B: DeepSeek-V3's latent attention, experts and router. transformers runs it as a DeepSeek-V3."""

from __future__ import annotations

from typing import Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    LATENT_RULES,
    MOE_RULES,
    first_dense,
    latent_fields,
    sigmoid_moe_from_hf,
    to_hf,
)
from litlm.families.sarvam_moe import OLD_NAMES
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.accept_old_names(**OLD_NAMES)
    hf.skip("q_head_dim")  # follows from the other sizes
    scaling = dict(hf.data.get("rope_scaling") or {})
    if "deepseek_yarn" in (scaling.pop("type", None), scaling.get("rope_type")):  # the authors' name of YaRN
        hf.data = {**hf.data, "rope_scaling": scaling | {"rope_type": "yarn"}}
    values = latent_fields(hf, q_lora_rank=None, max_seq_len=4096, bos_token_id=0, eos_token_id=1, init_std=0.006)
    sizes: dict[str, Any] = dict(n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=2048)
    moe = sigmoid_moe_from_hf(hf, **sizes, routed_scaling_factor=2.5)
    return values | dict(moe=moe, moe_layers=first_dense(hf, values["n_layer"], 1))


FAMILY = Family(
    model_type="sarvam_mla",
    architecture="SarvamMLAForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES, *MOE_RULES),
)
