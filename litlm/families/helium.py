"""Helium 1 (Kyutai): Llama with interleaved rope."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families import llama
from litlm.families.base import Family, HFFields


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama.from_hf(hf) | hf.common(max_seq_len=4096, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    attention, norm = values["attention"], values["norm"]
    head_dim = hf.take("head_dim", 128)
    if head_dim * values["n_head"] != values["n_embd"]:
        hf.problems.append(f"head_dim={head_dim} times num_attention_heads must be hidden_size={values['n_embd']}")
    return values | dict(
        n_kv_head=hf.take("num_key_value_heads", 20),
        head_dim=head_dim,
        norm=dataclasses.replace(norm, eps=float(hf.take("rms_norm_eps", 1e-8))),
        attention=dataclasses.replace(attention, out_bias=False),
        rope=hf.rope(theta=100000.0, interleaved=True),
    )


FAMILY = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    from_hf=from_hf,
    to_hf=llama.to_hf,
    rules=llama.FAMILY.rules,
)
