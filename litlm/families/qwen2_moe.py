"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2 with experts, and a shared expert with a sigmoid gate.

Which layers have experts: every `decoder_sparse_step`-th but those in `mlp_only_layers`. Sliding layers, an option that
no published model uses, are every other one of the first `max_window_layers`, unlike in Qwen2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig
from litlm.families.base import Family, HFFields, hf_experts, hf_head_dim, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen3 import window_if_used
from litlm.families.weights import LLAMA_RULES, expert_rules, mlp_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def sparse_layers(hf: HFFields, n_layer: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    step, dense = hf.take("decoder_sparse_step", 1), hf.take("mlp_only_layers", [])
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(n_layer))


def hf_sparse_layers(config: Config) -> dict[str, Any]:
    """The inverse of `sparse_layers`."""
    step = math.gcd(*(i + 1 for i, sparse in enumerate(config.moe_layers) if sparse)) or 1
    dense = [i for i, sparse in enumerate(config.moe_layers) if not sparse and (i + 1) % step == 0]
    return dict(decoder_sparse_step=step, mlp_only_layers=dense)


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, n_kv_head=16, attention_bias=None, max_seq_len=32768)
    n_layer, window, last = values["n_layer"], window_if_used(hf), hf.take("max_window_layers", 28)
    slides = [window is not None and i % 2 == 0 and i < last for i in range(n_layer)]
    moe = hf.experts(
        "num_experts",
        n_expert=60,
        n_expert_per_token=4,
        intermediate_size=hf.take("moe_intermediate_size", 1408),
        normalize=hf.take("norm_topk_prob", False),
        shared_intermediate_size=hf.take("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    sliding = hf.sliding(window, ["sliding" if s else "full" for s in slides])
    attention = AttentionConfig(bias=hf.take("qkv_bias", True))
    return values | sliding | dict(attention=attention, moe=moe, moe_layers=sparse_layers(hf, n_layer))


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        llama_to_hf(config, without="head_dim attention_bias mlp_bias")
        | hf_head_dim(config)
        | hf_sliding(config)
        | hf_sparse_layers(config)
        | hf_experts(config, "num_experts")
        | dict(
            qkv_bias=config.attention.bias,
            use_sliding_window=config.sliding_window is not None,
            max_window_layers=config.n_layer,
            moe_intermediate_size=config.moe.intermediate_size,
            shared_expert_intermediate_size=config.moe.shared_intermediate_size,
            norm_topk_prob=config.moe.normalize,
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
        *mlp_rules("model.layers.{i}.mlp.shared_expert.", "layers.{i}.mlp.shared."),
        rename("model.layers.{i}.mlp.shared_expert_gate.weight", "layers.{i}.mlp.shared_gate.weight"),
    ),
    gguf=GGUFSpec(arch="qwen2moe", from_gguf=from_gguf),
)
