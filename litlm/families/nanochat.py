"""nanochat of October 2025 (d20, d32): norms without weights, also on the embeddings, capped logits, a plain MLP with
squared ReLU, queries and keys normed after rope, which rotates the other way.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, QKNormConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    norm = NormConfig(eps=float(hf.take("rms_norm_eps", 1e-6)), weight=False)
    rope = dataclasses.replace(hf.rope(), reverse=True)
    cap = hf.take("final_logit_softcapping", 15.0, null=None)
    values = llama_fields(hf, activation="relu2", norm=norm, rope=rope, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return values | dict(
        embed_norm=True,
        attention=dataclasses.replace(values["attention"], qk_norm=QKNormConfig(norm=norm, after_rope=True)),
        mlp=dataclasses.replace(values["mlp"], kind="plain"),
        logit_softcap=None if cap is None else float(cap),
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="head_dim mlp_bias") | hf_head_dim(config)
    return fields | dict(final_logit_softcapping=config.logit_softcap)


FAMILY = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *llama_rules_without(".mlp."),
        rename("model.layers.{i}.mlp.fc1.weight", "layers.{i}.mlp.up_proj.weight"),
        rename("model.layers.{i}.mlp.fc2.weight", "layers.{i}.mlp.down_proj.weight"),
    ),
)
