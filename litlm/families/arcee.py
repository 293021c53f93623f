"""Arcee AFM 4.5B: Llama whose MLP has no gate, with squared ReLU."""

from __future__ import annotations

import dataclasses
from typing import Any

from litlm.families.base import Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.llama import llama_fields, llama_from_gguf, llama_to_hf
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, eps=1e-5, activation="relu2", mlp_bias=False, max_seq_len=4096, bos_token_id=128000, eos_token_id=128001
    )
    return values | dict(mlp=dataclasses.replace(values["mlp"], kind="plain"))


FAMILY = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    from_hf=from_hf,
    to_hf=llama_to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="arcee", from_gguf=lambda gguf: llama_from_gguf(gguf, "arcee"), restore=UNPERMUTE_QK),
)
