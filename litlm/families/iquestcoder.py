"""IQuest-Coder-V1 (7B, 14B, 40B): Llama under its own name. The Loop variants are another architecture."""

from __future__ import annotations

from typing import Any

from litlm.families.base import Family, HFFields
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    # Options of the original code that no checkpoint turns on.
    hf.expect("clip_qkv", None)
    hf.expect("use_sliding_window", False, False)
    hf.skip("sliding_window max_window_layers")
    return llama_fields(
        hf, n_kv_head=8, head_dim=128, eps=1e-5, mlp_bias=False, max_seq_len=131072, bos_token_id=1, eos_token_id=2
    )


FAMILY = Family(
    model_type="iquestcoder",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=llama_to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
)
