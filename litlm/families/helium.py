"""Helium 1 (Kyutai): Llama with interleaved rope."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families.base import Family, HFFields
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=100000.0, interleaved=True)
    ids: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    values = llama_fields(hf, n_kv_head=20, head_dim=128, eps=1e-8, mlp_bias=False, rope=rope, max_seq_len=4096, **ids)
    if values["head_dim"] * values["n_head"] != values["n_embd"]:
        hf.problems.append(
            f"head_dim={values['head_dim']} times num_attention_heads must be hidden_size={values['n_embd']}"
        )
    return values | dict(attention=dataclasses.replace(values["attention"], out_bias=False))


FAMILY = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    from_hf=from_hf,
    to_hf=llama_to_hf,
    rules=LLAMA_RULES,
)
