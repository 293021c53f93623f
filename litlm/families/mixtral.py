"""Mixtral 8x7B and 8x22B: Mistral with experts in every layer. `intermediate_size` is that of one expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts, hf_head_dim
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.mistral import mistral_fields
from litlm.families.mistral import to_hf as mistral_to_hf
from litlm.families.weights import LLAMA_RULES, expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.skip("router_jitter_noise")  # in training only
    values = mistral_fields(hf, window=None, eps=1e-5, rope=hf.rope(theta=1e6))
    moe = hf.experts(n_expert=8, n_expert_per_token=2, intermediate_size=values["intermediate_size"])
    return values | dict(moe=moe)


def to_hf(config: Config) -> dict[str, Any]:
    fields = mistral_to_hf(config) | hf_experts(config)
    del fields["head_dim"]
    return fields | hf_head_dim(config)


EXPERTS = "model.layers.{i}.block_sparse_moe."

RULES = (
    *LLAMA_RULES,
    rename(EXPERTS + "gate.weight", "layers.{i}.mlp.router.weight"),
    *expert_rules(EXPERTS + "experts.{e}.", "w1 w3 w2"),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("mixtral") | gguf.experts("num_local_experts", None)


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(
        arch="llama", from_gguf=from_gguf, matches=lambda gguf: bool(gguf.get("expert_count")), restore=UNPERMUTE_QK
    ),
)
