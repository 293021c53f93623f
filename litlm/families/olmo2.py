"""OLMo 2: Llama with norms behind attention and MLP instead of before, and over all heads' queries and keys at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    return without_rope(hf) | dict(rope=hf.rope())


def without_rope(hf: HFFields) -> dict[str, Any]:
    """All but the rope, which OLMo 3 has another for sliding layers."""
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    return hf.common(eos_token_id=50279, pad_token_id=1) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        block="post",
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm, over="all")),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
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


RULES = (
    rename("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.post_attn_norm.{p}"),
    rename("model.layers.{i}.post_feedforward_layernorm.{p}", "layers.{i}.post_mlp_norm.{p}"),
    rename("model.layers.{i}.self_attn.q_norm.{p}", "layers.{i}.attn.q_norm.{p}"),
    rename("model.layers.{i}.self_attn.k_norm.{p}", "layers.{i}.attn.k_norm.{p}"),
    *(rule for rule in LLAMA_RULES if "layernorm" not in rule.theirs),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("olmo2") | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(arch="olmo2", from_gguf=from_gguf, matches=lambda gguf: not gguf.get("attention.sliding_window")),
)
