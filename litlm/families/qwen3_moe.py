"""Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder: Qwen3 with experts, none shared. All layers have a window or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts, hf_head_dim
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen2_moe import MOE_RULES, hf_sparse_layers, sparse_layers
from litlm.families.qwen3 import window_if_used
from litlm.families.weights import QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(hf, n_kv_head=4, qk_norm="head", max_seq_len=32768)
    n_layer, window = values["n_layer"], window_if_used(hf)
    hf.skip("max_window_layers")  # not used by transformers' model
    hf.expect("use_qk_norm", True, True)  # Qwen3-Coder's files
    hf.expect("shared_expert_intermediate_size", 0, 0)
    n_expert = hf.take("num_local_experts", None) or 128  # transformers 5's name
    moe = hf.experts(
        "num_experts",
        n_expert=n_expert,
        n_expert_per_token=8,
        intermediate_size=hf.take("moe_intermediate_size", 768),
        normalize=hf.take("norm_topk_prob", False),
    )
    return values | dict(
        sliding_window=window,
        layer_types=("full" if window is None else "sliding",) * n_layer,
        moe=moe,
        moe_layers=sparse_layers(hf, n_layer),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        llama_to_hf(config, without="head_dim mlp_bias")
        | hf_head_dim(config)
        | hf_sparse_layers(config)
        | hf_experts(config, "num_experts")
        | dict(
            use_sliding_window=config.sliding_window is not None,
            sliding_window=config.sliding_window,
            moe_intermediate_size=config.moe.intermediate_size,
            norm_topk_prob=config.moe.normalize,
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
    rules=(*MOE_RULES, *QK_NORM_RULES),
    gguf=GGUFSpec(arch="qwen3moe", from_gguf=from_gguf),
)
