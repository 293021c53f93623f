"""Youtu-LLM (2B): DeepSeek-V3's latent attention with plain MLPs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common
from litlm.families.deepseek_v3 import GGUF_MERGED, LATENT_RULES, latent_from_gguf, latent_from_hf, latent_to_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    std = 2.0 / (5.0 * (hf.data.get("hidden_size") or 2048)) ** 0.5
    hf.take("embedding_initializer_range", None)
    sizes = dict(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    return (
        hf.common(max_seq_len=131072, tie_embeddings=True, init_std=std, bos_token_id=128000, eos_token_id=128001)
        | latent_from_hf(hf, **sizes)
        | dict(
            norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
            mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        )
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | latent_to_hf(config)
        | dict(
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            rope_interleave=config.rope is not None and config.rope.interleaved,
        )
    )


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
