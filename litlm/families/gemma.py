"""Gemma 1 and CodeGemma: Llama with norms stored as their difference from 1 and embeddings times sqrt(n_embd)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    # transformers 4 read this name instead, and always as the tanh form, also where hidden_act says "gelu".
    hf.expect("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    hf.expect("use_bidirectional_attention", False, False)
    norm = NormConfig(eps=float(hf.take("rms_norm_eps", 1e-6)), offset=True)
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    values = llama_fields(
        hf, n_kv_head=16, head_dim=256, activation="gelu_pytorch_tanh", norm=norm, max_seq_len=8192, **ids
    )
    activation = values["mlp"].activation
    return values | dict(
        mlp=MLPConfig(activation="gelu_tanh" if activation == "gelu" else activation),
        embed_scale=values["n_embd"] ** 0.5,
    )


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="mlp_bias")


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("gemma") | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="gemma",
        from_gguf=from_gguf,
        restore=subtract_one(LLAMA_RULES),
    ),
)
