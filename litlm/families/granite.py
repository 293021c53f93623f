"""Granite 3, dense: Llama with fixed factors on embeddings, attention scores, residuals and logits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def granite_fields(hf: HFFields, **defaults: Any) -> dict[str, Any]:
    """What all Granite families read the same way. defaults: transformers', as in `llama_fields`."""
    defaults = dict[str, Any](mlp_bias=False, bos_token_id=1, eos_token_id=2) | defaults
    values = llama_fields(hf, **defaults)
    scale = float(hf.take("attention_multiplier", 1.0))
    return values | dict(
        attention=dataclasses.replace(values["attention"], scale=scale),
        embed_scale=float(hf.take("embedding_multiplier", 1.0)),
        round_embed_scale=False,
        residual_scale=float(hf.take("residual_multiplier", 1.0)),
        logit_scale=1 / float(hf.take("logits_scaling", 1.0)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    scale = config.attention.scale
    return (
        llama_to_hf(config, without="head_dim")
        | hf_head_dim(config)
        | dict(
            attention_multiplier=config.head_dim**-0.5 if scale is None else scale,
            embedding_multiplier=config.embed_scale,
            residual_multiplier=config.residual_scale,
            logits_scaling=_inverse(config.logit_scale),
        )
    )


def _inverse(scale: float) -> float:
    """The number that the file divided 1 by, without the rounding error of dividing twice."""
    short = round(1 / scale, 9)
    return short if short and 1 / short == scale else 1 / scale


def from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    fields = gguf.common(model_type, head_dim=None)
    # Granite 4 files without Mamba layers state its sizes all the same, and the MLP's under another name.
    for key in ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"):
        gguf.get(f"ssm.{key}")
    if gguf.arch == "granite":
        gguf.get("expert_shared_feed_forward_length")
    gguf.expect("rope.scaling.finetuned", True)  # False would mean no rope
    return fields | dict(
        attention_multiplier=gguf.get(
            "attention.scale", (fields["hidden_size"] // fields["num_attention_heads"]) ** -0.5
        ),
        embedding_multiplier=gguf.get("embedding_scale", 1.0),
        residual_multiplier=gguf.get("residual_scale", 1.0),
        logits_scaling=gguf.get("logit_scale", 1.0),
        attention_bias=gguf.has("attn_q.bias"),
        mlp_bias=gguf.has("ffn_up.bias"),
    )


FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    from_hf=granite_fields,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(
        arch="granite",
        from_gguf=lambda gguf: from_gguf(gguf, "granite"),
        restore=UNPERMUTE_QK,
    ),
)
