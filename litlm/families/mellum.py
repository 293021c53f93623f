"""JetBrains' Mellum 2: Qwen3's experts, with sliding layers that have a rope of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig
from litlm.families import qwen3_moe
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common
from litlm.families.gemma3_text import hf_ropes, ropes
from litlm.families.gguf import GGUFFields, GGUFSpec

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=131072)
    n_layer = common["n_layer"]
    bias = hf.take("attention_bias", False)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    layer_types = hf.layer_types(["full"] * n_layer)
    window = hf.take("sliding_window", 1024, null=None)
    for key in ("num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"):
        hf.take(key, None)  # heads that guess further tokens; the weights are left out
    n_expert = hf.take("num_local_experts", None)
    rope, sliding_rope = ropes(hf, 500000.0, 10000.0, "rope_theta")
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 4, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=norm,
        attention=AttentionConfig(bias=bias, out_bias=bias, qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", n_expert or 64),
            n_expert_per_token=hf.take("num_experts_per_tok", 8),
            intermediate_size=hf.take("moe_intermediate_size", 896),
            normalize=hf.take("norm_topk_prob", True),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        moe_layers=tuple(kind == "sparse" for kind in hf.take("mlp_layer_types", ["sparse"] * n_layer)),
        rope=rope,
        sliding_rope=sliding_rope,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        hf_common(config)
        | {"rope_parameters": hf_ropes(config)["rope_parameters"]}
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            sliding_window=config.sliding_window or config.max_seq_len,  # transformers wants one in any case
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
            mlp_layer_types=["sparse" if sparse else "dense" for sparse in config.moe_layers],
            num_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            moe_intermediate_size=config.moe.intermediate_size,
            norm_topk_prob=config.moe.normalize,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    window = gguf.get("attention.sliding_window", 0)
    return (
        gguf.common("mellum", theta=None)
        | gguf.experts("num_experts")
        | dict(
            attention_bias=gguf.has("attn_q.bias"),
            sliding_window=window or None,
            layer_types=gguf.layer_types(4 if window else 1),
            rope_parameters=gguf.rope_parameters(),
        )
    )


FAMILY = Family(
    model_type="mellum",
    architecture="MellumForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=qwen3_moe.FAMILY.rules,
    ignore=(r"^mtp\.",),
    gguf=GGUFSpec(arch="mellum", from_gguf=from_gguf, table_arch="qwen3moe"),
)
