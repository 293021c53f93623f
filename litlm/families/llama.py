"""Llama 1 to 3.3 and everything that kept its architecture (SmolLM2, TinyLlama, Vicuna, R1-Distill-Llama, ...).

Families of Llama's kind share `llama_fields` and `llama_to_hf`, and state what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig, RopeConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def llama_fields(
    hf: HFFields,
    *,
    n_kv_head: int | None = None,
    head_dim: int | None = 0,
    eps: float = 1e-6,
    activation: str = "silu",
    attention_bias: bool | None = False,
    mlp_bias: bool | None = None,
    qk_norm: Literal["head", "all"] | None = None,
    norm: NormConfig | None = None,
    rope: RopeConfig | None = None,
    **common: Any,
) -> dict[str, Any]:
    """The fields of Llama's kind of config.json. Arguments: transformers' defaults, where they aren't Llama's.

    n_kv_head: None for n_head, which a written null means in any family. head_dim: 0 for n_embd / n_head; None if the
    family has no such field, and so for the biases. qk_norm: queries and keys are normed over each head or over all.
    norm, rope: those of families that have other fields for them. common: see `HFFields.common`.
    """
    values = hf.common(**common)
    norm = norm or NormConfig(eps=float(hf.take("rms_norm_eps", eps)))
    bias = attention_bias is not None and hf.take("attention_bias", attention_bias)
    return values | dict(
        n_kv_head=hf.take("num_key_value_heads", n_kv_head or values["n_head"], null=values["n_head"]),
        head_dim=0 if head_dim is None else hf.take("head_dim", head_dim, null=0),
        norm=norm,
        attention=AttentionConfig(
            bias=bias, out_bias=bias, qk_norm=None if qk_norm is None else QKNormConfig(norm=norm, over=qk_norm)
        ),
        mlp=MLPConfig(
            activation=hf.activation("hidden_act", activation),
            bias=mlp_bias is not None and hf.take("mlp_bias", mlp_bias),
        ),
        rope=rope or hf.rope(),
    )


def llama_to_hf(config: Config, *, without: str = "") -> dict[str, Any]:
    """The inverse of `llama_fields`. without: fields that the family doesn't have, separated by spaces."""
    fields = (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            mlp_bias=config.mlp.bias,
        )
    )
    return {key: value for key, value in fields.items() if key not in without.split()}


def llama_from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """The metadata of Llama's kind of GGUF file."""
    return gguf.common(model_type) | dict(attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias"))


def from_hf(hf: HFFields) -> dict[str, Any]:
    return llama_fields(hf, mlp_bias=False, bos_token_id=1, eos_token_id=2)


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=llama_to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    # Also Mistral's and the other files that llama.cpp calls so; Mixtral's are its own family's.
    gguf=GGUFSpec(
        arch="llama",
        from_gguf=lambda gguf: llama_from_gguf(gguf, "llama"),
        matches=lambda gguf: not gguf.get("expert_count"),
        restore=UNPERMUTE_QK,
    ),
)
