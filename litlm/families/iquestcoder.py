"""IQuest-Coder-V1 (7B, 14B, 40B): Llama under its own name. The Loop variants are another architecture."""

from __future__ import annotations

from typing import Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.llama import to_hf
from litlm.families.weights import LLAMA_RULES


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", False)
    # Options of the original code that no checkpoint turns on; the other two fields speak of the second.
    hf.expect("clip_qkv", None)
    hf.expect("use_sliding_window", False, False)
    hf.take("sliding_window", None)
    hf.take("max_window_layers", None)
    return hf.common(max_seq_len=131072, bos_token_id=1, eos_token_id=2) | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu"), bias=hf.take("mlp_bias", False)),
        rope=hf.rope(),
    )


FAMILY = Family(
    model_type="iquestcoder",
    architecture="LlamaForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
)
