"""Arcee AFM 4.5B: Llama whose MLP has no gate, with squared ReLU."""

from __future__ import annotations

from typing import Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFSpec
from litlm.families.llama import from_gguf, to_hf
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    activation = hf.activation("hidden_act", "relu2")
    return hf.common(max_seq_len=4096, bos_token_id=128000, eos_token_id=128001) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=activation, bias=hf.take("mlp_bias", False)),
        rope=hf.rope(),
    )


FAMILY = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="arcee", from_gguf=lambda gguf: from_gguf(gguf, "arcee"), restore=UNPERMUTE_QK),
)
