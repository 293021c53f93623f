"""nanochat of October 2025 (d20, d32): norms without weights, one on the embeddings too, a cap on the logits, an MLP of
squared ReLU without a gate, queries and keys normed after rope, which turns the other way.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)), weight=False)
    cap = hf.take("final_logit_softcapping", 15.0, null=None)
    return hf.common(bos_token_id=0, eos_token_id=1, pad_token_id=1) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=norm,
        embed_norm=True,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm, after_rope=True)),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "relu2")),
        rope=dataclasses.replace(hf.rope(), reverse=True),
        logit_softcap=None if cap is None else float(cap),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            final_logit_softcapping=config.logit_softcap,
        )
    )


FAMILY = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *(rule for rule in LLAMA_RULES if ".mlp." not in rule.theirs),
        rename("model.layers.{i}.mlp.fc1.weight", "layers.{i}.mlp.up_proj.weight"),
        rename("model.layers.{i}.mlp.fc2.weight", "layers.{i}.mlp.down_proj.weight"),
    ),
)
