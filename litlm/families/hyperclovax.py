"""HyperCLOVA X SEED Think: Granite with norms after attention and MLP as well; the logits' factor multiplies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, mlp_bias=False, bos_token_id=1, eos_token_id=2)
    hf.skip("end_token_id attn_pdrop")  # of Naver's own code
    head_dim = values["head_dim"] or values["n_embd"] // max(values["n_head"], 1)
    scale = float(hf.take("attention_multiplier", head_dim**-0.5))
    return values | dict(
        block="sandwich" if hf.take("use_post_norm", True) else "pre",
        attention=dataclasses.replace(values["attention"], scale=None if scale == head_dim**-0.5 else scale),
        embed_scale=float(hf.take("embedding_multiplier", 1.0)),
        round_embed_scale=False,
        residual_scale=float(hf.take("residual_multiplier", 1.0)),
        logit_scale=float(hf.take("logits_scaling", 1.0)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    scale = config.attention.scale
    return llama_to_hf(config) | dict(
        use_post_norm=config.block == "sandwich",
        attention_multiplier=config.head_dim**-0.5 if scale is None else scale,
        embedding_multiplier=config.embed_scale,
        residual_multiplier=config.residual_scale,
        logits_scaling=config.logit_scale,
    )


FAMILY = Family(
    model_type="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        rename("model.layers.{i}.post_norm1.weight", "layers.{i}.post_attn_norm.weight"),
        rename("model.layers.{i}.post_norm2.weight", "layers.{i}.post_mlp_norm.weight"),
    ),
)
