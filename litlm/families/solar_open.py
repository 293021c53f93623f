"""Solar Open (100B): plain grouped attention, DeepSeek-V3's experts and router in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.deepseek_v3 import MOE_RULES, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=131072, intermediate_size=0)
    hf.expect("use_qk_norm", False, False)
    hf.expect("first_k_dense_replace", 0, 0)
    return common | dict(
        intermediate_size=0,  # no layer has such an MLP
        n_kv_head=hf.take("num_key_value_heads", 8),
        head_dim=hf.take("head_dim", 128),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=hf.take("attention_bias", False)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=sigmoid_moe_from_hf(
            hf, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1280, routed_scaling_factor=1.0
        ),
        rope=hf.rope(theta=1000000.0, fraction_key="partial_rotary_factor"),
    )


def to_hf(config: Config) -> dict[str, Any]:
    data = (
        hf_common(config)
        | hf_rope(config.rope)
        | moe_to_hf(config.moe)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
        )
    )
    del data["intermediate_size"]
    return data


FAMILY = Family(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *MOE_RULES),
)
