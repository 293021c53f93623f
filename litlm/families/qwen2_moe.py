"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2 with experts, besides one MLP for all tokens behind a sigmoid gate.

Which layers have experts: every `decoder_sparse_step`-th but those in `mlp_only_layers`. Sliding layers, an option that
no published model uses, are every other one of the first `max_window_layers`, unlike in Qwen2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def sparse_layers(hf: HFFields, n_layer: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    step, dense = hf.take("decoder_sparse_step", 1), hf.take("mlp_only_layers", [])
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(n_layer))


def hf_sparse_layers(config: Config) -> dict[str, Any]:
    step = math.gcd(*(i + 1 for i, sparse in enumerate(config.moe_layers) if sparse)) or 1
    dense = [i for i, sparse in enumerate(config.moe_layers) if not sparse and (i + 1) % step == 0]
    return dict(decoder_sparse_step=step, mlp_only_layers=dense)


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=32768)
    n_layer = common["n_layer"]
    window = hf.take("sliding_window", 4096, null=None)
    window = window if hf.take("use_sliding_window", False) else None
    last = hf.take("max_window_layers", 28)
    layer_types = hf.layer_types(["sliding" if window and i % 2 == 0 and i < last else "full" for i in range(n_layer)])
    shared = hf.take("shared_expert_intermediate_size", 5632)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 16, null=0),
        head_dim=hf.take("head_dim", 0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6))),
        attention=AttentionConfig(bias=hf.take("qkv_bias", True)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", 60),
            n_expert_per_token=hf.take("num_experts_per_tok", 4),
            intermediate_size=hf.take("moe_intermediate_size", 1408),
            normalize=hf.take("norm_topk_prob", False),
            shared_intermediate_size=shared,
            shared_gate=True,
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        moe_layers=sparse_layers(hf, n_layer),
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
            qkv_bias=config.attention.bias,
            use_sliding_window=config.sliding_window is not None,
            sliding_window=config.sliding_window,
            max_window_layers=config.n_layer,
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
            num_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            moe_intermediate_size=config.moe.intermediate_size,
            shared_expert_intermediate_size=config.moe.shared_intermediate_size,
            norm_topk_prob=config.moe.normalize,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


MOE_RULES = (
    *LLAMA_RULES,
    rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
    *expert_rules(),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return (
        gguf.common("qwen2_moe")
        | gguf.experts("num_experts")
        | dict(
            shared_expert_intermediate_size=gguf.get("expert_shared_feed_forward_length"),
            norm_topk_prob=False,
            qkv_bias=gguf.has("attn_q.bias"),
        )
    )


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *MOE_RULES,
        rename("model.layers.{i}.mlp.shared_expert.gate_proj.{p}", "layers.{i}.mlp.shared.gate_proj.{p}"),
        rename("model.layers.{i}.mlp.shared_expert.up_proj.{p}", "layers.{i}.mlp.shared.up_proj.{p}"),
        rename("model.layers.{i}.mlp.shared_expert.down_proj.{p}", "layers.{i}.mlp.shared.down_proj.{p}"),
        rename("model.layers.{i}.mlp.shared_expert_gate.weight", "layers.{i}.mlp.shared_gate.weight"),
    ),
    gguf=GGUFSpec(arch="qwen2moe", from_gguf=from_gguf),
)
