"""CodeGen: GPT-J with q, v and k fused in one tensor of four blocks (one for each core it was trained on)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.gptj import FAMILY as GPTJ
from litlm.families.gptj import from_hf as gptj_from_hf
from litlm.families.gptj import to_hf as gptj_to_hf
from litlm.families.weights import QKV, Rule, fused_views

if TYPE_CHECKING:
    from litlm.config import Config

_BLOCKS = 4


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = gptj_from_hf(hf)
    if values["n_head"] % _BLOCKS:
        hf.problems.append(f"n_head={values['n_head']} must be a multiple of {_BLOCKS} in this family")
    return values


def to_hf(config: Config) -> dict[str, Any]:
    fields = gptj_to_hf(config) | dict(n_ctx=config.max_seq_len)
    if config.pad_token_id is None:
        del fields["pad_token_id"]  # unknown to its config class
    return fields


def _qvk(tensor: Any, config: Config) -> Sequence[Any]:
    """Where q, k and v are in (3 H D, ...): each block holds its heads' q, then v, then k."""
    blocks = tensor.reshape(_BLOCKS, 3, -1, *tensor.shape[1:])
    return blocks[:, 0], blocks[:, 2], blocks[:, 1]


_FUSED = ("q_proj", "k_proj", "v_proj")

FAMILY = Family(
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *(rule for rule in GPTJ.rules if not any(name in rule.theirs for name in _FUSED)),
        Rule("transformer.h.{i}.attn.qkv_proj.{p}", QKV, **fused_views(_qvk)),
    ),
    ignore=(r"\.attn\.(causal_mask|embed_positions|bias|masked_bias)$",),
)
