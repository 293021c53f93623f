"""Apertus: Llama with a plain MLP whose activation (xIELU) is learned, and norms of each head's query and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, Rule, rename

if TYPE_CHECKING:
    from litlm.config import Config

_DEFAULT_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    for key, value in (("qk_norm", True), ("post_norm", False), ("mlp_bias", False)):  # stated, never varied
        hf.expect(key, value, value)
    if not hf.data.get("rope_parameters") and not hf.data.get("rope_scaling"):
        hf.data = {**hf.data, "rope_parameters": _DEFAULT_ROPE}  # also if the file has a rope_theta
    return hf.common(max_seq_len=65536, bos_token_id=1, eos_token_id=2, pad_token_id=3) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "xielu")),
        rope=hf.rope(theta=12000000.0),
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
        )
    )


_LAYER = "model.layers.{i}."
_XIELU = ("alpha_p", "alpha_n", "beta", "eps")


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = dict(rope_scaling=dict(rope_type="default")) | gguf.common("apertus")
    return fields | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename(_LAYER + "attention_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        rename(_LAYER + "feedforward_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "self_attn.q_norm.{p}", "layers.{i}.attn.q_norm.{p}"),
        rename(_LAYER + "self_attn.k_norm.{p}", "layers.{i}.attn.k_norm.{p}"),
        *(rename(_LAYER + f"mlp.act_fn.{x}", f"layers.{{i}}.mlp.act.xielu.{x}") for x in _XIELU),
        *(rule for rule in LLAMA_RULES if "layernorm" not in rule.theirs),
    ),
    gguf=GGUFSpec(
        arch="apertus",
        from_gguf=from_gguf,
        rules=(
            *(rename(f"blk.{{i}}.xielu.{x}", f"layers.{{i}}.mlp.act.xielu.{x}") for x in ("alpha_p", "alpha_n")),
            *(
                Rule(f"blk.{{i}}.xielu.{x}", (f"layers.{{i}}.mlp.act.xielu.{x}",), split=lambda t, c: [t.reshape(())])
                for x in ("beta", "eps")
            ),
        ),
        metadata_tensors={f"blk.{{i}}.xielu.{x}": f"xielu.{x}" for x in _XIELU},
    ),
)
