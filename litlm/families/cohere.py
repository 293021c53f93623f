"""Cohere's Command R and Aya: parallel attention and MLP with one layer norm without bias, interleaved rope, and
scaled logits; in Command R+ also normalized queries and keys, with a weight per head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, QKNormConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = cohere_fields(hf, rope=hf.rope(theta=500000.0, interleaved=True))
    qk_norm = QKNormConfig(norm=values["norm"], over="each_head") if hf.take("use_qk_norm", False) else None
    return values | dict(attention=dataclasses.replace(values["attention"], qk_norm=qk_norm))


def cohere_fields(hf: HFFields, **defaults: Any) -> dict[str, Any]:
    """What all Cohere families read the same way. defaults: transformers', as in `llama_fields`."""
    hf.skip("model_max_length")  # of the tokenizer
    norm = NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5)), bias=False)
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=5, eos_token_id=255001, pad_token_id=0)
    return llama_fields(hf, norm=norm, max_seq_len=8192, **ids, **defaults) | dict(
        block="parallel", shared_norm=True, logit_scale=float(hf.take("logit_scale", 0.0625))
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="head_dim rms_norm_eps mlp_bias") | hf_head_dim(config)
    return fields | dict(
        layer_norm_eps=config.norm.eps,
        use_qk_norm=config.attention.qk_norm is not None,
        logit_scale=config.logit_scale,
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("cohere", eps="layer_norm_eps") | dict(
        logit_scale=gguf.get("logit_scale"),
        use_qk_norm=gguf.has("attn_q_norm.weight"),
        attention_bias=gguf.has("attn_q.bias"),
    )


FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *QK_NORM_RULES),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="command-r", from_gguf=from_gguf),
)
