"""FlexOlmo 7x7B: OLMo 2's blocks with OLMoE's experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig
from litlm.families import olmo2
from litlm.families.base import Family, HFFields
from litlm.families.weights import expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=4096, eos_token_id=100257, pad_token_id=100277)
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", 0),
        block="post",
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm, over="all")),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", 7),
            n_expert_per_token=hf.take("num_experts_per_tok", 5),
            intermediate_size=common["intermediate_size"],
            normalize=hf.take("norm_topk_prob", False),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.01)),
        ),
        rope=hf.rope(theta=500000.0),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return olmo2.to_hf(config) | dict(
        num_experts=config.moe.n_expert,
        num_experts_per_tok=config.moe.n_expert_per_token,
        norm_topk_prob=config.moe.normalize,
        router_aux_loss_coef=config.moe.aux_loss,
    )


FAMILY = Family(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *olmo2.RULES,
        rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
        *expert_rules(),
    ),
)
