"""Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder: Qwen3 with experts, none shared. All layers have a window or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.qwen2_moe import MOE_RULES, hf_sparse_layers, sparse_layers
from litlm.families.weights import rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=32768)
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    window = hf.take("sliding_window", 4096, null=None)
    window = window if hf.take("use_sliding_window", False) else None
    hf.take("max_window_layers", None)  # transformers' model doesn't look at it
    hf.expect("use_qk_norm", True, True)  # Qwen3-Coder's files
    hf.expect("shared_expert_intermediate_size", 0, 0)
    n_expert = hf.take("num_local_experts", None)  # as transformers 5 writes it
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 4, null=0),
        head_dim=hf.take("head_dim", 0),
        sliding_window=window,
        layer_types=("full" if window is None else "sliding",) * common["n_layer"],
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", n_expert or 128),
            n_expert_per_token=hf.take("num_experts_per_tok", 8),
            intermediate_size=hf.take("moe_intermediate_size", 768),
            normalize=hf.take("norm_topk_prob", False),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        moe_layers=sparse_layers(hf, common["n_layer"]),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | hf_sparse_layers(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            use_sliding_window=config.sliding_window is not None,
            sliding_window=config.sliding_window,
            num_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            moe_intermediate_size=config.moe.intermediate_size,
            norm_topk_prob=config.moe.normalize,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    more = dict(norm_topk_prob=True, attention_bias=gguf.has("attn_q.bias"))
    return gguf.common("qwen3_moe") | gguf.experts("num_experts") | more


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *MOE_RULES,
        rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
        rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
    ),
    gguf=GGUFSpec(arch="qwen3moe", from_gguf=from_gguf),
)
