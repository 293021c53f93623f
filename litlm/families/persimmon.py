"""Persimmon 8B: LayerNorm, also of queries and keys, partial rope, squared ReLU; q, k and v fused by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.weights import QKV, Rule, qkv_by_group, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    norm = NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5)))
    return hf.common(intermediate_size=16384, max_seq_len=16384, bos_token_id=1, eos_token_id=2) | dict(
        norm=norm,
        attention=AttentionConfig(
            bias=True, out_bias=True, qk_norm=QKNormConfig(norm=norm) if hf.take("qk_layernorm", True) else None
        ),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "relu2"), bias=True),
        rope=hf.rope(fraction_key="partial_rotary_factor", fraction=0.5),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    return (
        hf_common(config)
        | hf_rope(config.rope, fraction=True)
        | dict(
            partial_rotary_factor=config.rope.fraction,
            layer_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            qk_layernorm=config.attention.qk_norm is not None,
        )
    )


_LAYER = "model.layers.{i}."

FAMILY = Family(
    model_type="persimmon",
    architecture="PersimmonForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("model.embed_tokens.weight", "embed.weight"),
        rename(_LAYER + "input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        Rule(_LAYER + "self_attn.query_key_value.{p}", QKV, **qkv_by_group()),
        *(rename(_LAYER + f"self_attn.{x}_layernorm.{{p}}", f"layers.{{i}}.attn.{x}_norm.{{p}}") for x in "qk"),
        rename(_LAYER + "self_attn.dense.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "mlp.dense_h_to_4h.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.dense_4h_to_h.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("model.final_layernorm.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$",),
)
