"""OLMoE 1B-7B: experts in every layer, and one RMSNorm over all heads' queries together (and keys).

`clip_qkv` clamps after that norm, as transformers does; the published checkpoints don't clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.qwen2_moe import MOE_RULES
from litlm.families.weights import rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=4096, eos_token_id=50279, pad_token_id=1)
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    clip = hf.take("clip_qkv", None)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        norm=norm,
        attention=AttentionConfig(
            bias=bias,
            out_bias=bias,
            qk_norm=QKNormConfig(norm=norm, over="all"),
            clip=None if clip is None else float(clip),
        ),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", 64),
            n_expert_per_token=hf.take("num_experts_per_tok", 8),
            intermediate_size=common["intermediate_size"],
            normalize=hf.take("norm_topk_prob", False),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.01)),
        ),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            clip_qkv=config.attention.clip,
            num_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            norm_topk_prob=config.moe.normalize,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("olmoe", head_dim=None) | gguf.experts("num_experts", None)
    return fields | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *MOE_RULES,
        rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
        rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    ),
    gguf=GGUFSpec(arch="olmoe", from_gguf=from_gguf),
)
