"""Cohere's Command R and Aya: attention and MLP side by side behind one layer norm without bias, interleaved rope, and
scaled logits; in Command R+ also normalized queries and keys, with a weight per head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = without_rope(hf)
    qk_norm = QKNormConfig(norm=values["norm"], over="each_head") if hf.take("use_qk_norm", False) else None
    bias = hf.take("attention_bias", False)
    return values | dict(
        head_dim=hf.take("head_dim", 0),
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=qk_norm),
        rope=hf.rope(theta=500000.0, interleaved=True),
    )


def without_rope(hf: HFFields) -> dict[str, Any]:
    """What Command R7B and Command A (`cohere2`) read the same way."""
    hf.take("model_max_length", None)  # of the tokenizer
    common = hf.common(max_seq_len=8192, tie_embeddings=True, bos_token_id=5, eos_token_id=255001, pad_token_id=0)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        block="parallel",
        shared_norm=True,
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5)), bias=False),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        logit_scale=float(hf.take("logit_scale", 0.0625)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            layer_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            use_qk_norm=config.attention.qk_norm is not None,
            logit_scale=config.logit_scale,
        )
    )


RULES = (
    *LLAMA_RULES,
    rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
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
    rules=RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="command-r", from_gguf=from_gguf),
)
