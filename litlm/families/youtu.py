"""Youtu-LLM (2B): DeepSeek-V3's latent attention with plain MLPs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import GGUF_MERGED, LATENT_RULES, latent_fields, latent_from_gguf, latent_to_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    std = 2.0 / (5.0 * (hf.data.get("hidden_size") or 2048)) ** 0.5
    hf.skip("embedding_initializer_range")
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=128000, eos_token_id=128001)
    return latent_fields(hf, max_seq_len=131072, init_std=std, **ids)


def to_hf(config: Config) -> dict[str, Any]:
    return latent_to_hf(config, without="mlp_bias")


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    for key in ("leading_dense_block_count", "expert_shared_count", "expert_feed_forward_length"):
        gguf.get(key)  # no layer has experts
    return latent_from_gguf(gguf, "youtu")


FAMILY = Family(
    model_type="youtu",
    architecture="YoutuForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES),
    gguf=GGUFSpec(
        arch="deepseek2", from_gguf=from_gguf, matches=lambda gguf: not gguf.get("expert_count"), merged=GGUF_MERGED
    ),
)
