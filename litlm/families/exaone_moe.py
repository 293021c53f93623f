"""K-EXAONE: sliding layers with rope, full layers without, normed heads, DeepSeek-V3's experts and router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim, hf_sliding
from litlm.families.deepseek_v3 import MOE_RULES, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, n_kv_head=32, eps=1e-5, attention_bias=None, qk_norm="head", bos_token_id=1, eos_token_id=53, pad_token_id=0
    )
    n_layer = values["n_layer"]
    pattern = hf.take("sliding_window_pattern", 4)
    if isinstance(pattern, str):  # "LLLG": local and global layers
        local = [pattern[i % len(pattern)] == "L" for i in range(n_layer)]
    else:
        local = [pattern > 0 and (i + 1) % pattern != 0 for i in range(n_layer)]
    layer_types = hf.layer_types(["sliding" if slides else "full" for slides in local])
    listed = hf.take("is_moe_layer", None)  # the authors' own form of mlp_layer_types
    moe_layers = sparse_layers(hf, n_layer, hf.take("first_k_dense_replace", 1))
    if listed is not None and not hf.data.get("mlp_layer_types"):
        moe_layers = tuple(bool(has_experts) for has_experts in listed)
    return values | dict(
        sliding_window=hf.take("sliding_window", 4096),
        layer_types=layer_types,
        moe=sigmoid_moe_from_hf(
            hf, "num_experts", num_experts=64, num_experts_per_tok=8, moe_intermediate_size=1024,
            routed_scaling_factor=2.5,
        ),
        moe_layers=moe_layers,
        rope_layers=tuple(layer_type == "sliding" for layer_type in layer_types),
    )  # fmt: skip


def to_hf(config: Config) -> dict[str, Any]:
    return (
        llama_to_hf(config, without="head_dim attention_bias mlp_bias")
        | hf_head_dim(config)
        | hf_sliding(config)
        | moe_to_hf(config.moe, "num_experts")
        | dict(mlp_layer_types=hf_sparse_layers(config), first_k_dense_replace=hf_first_dense(config))
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("expert_shared_feed_forward_length")  # follows from the number of shared experts
    return (
        gguf.common("exaone_moe")
        | gguf.sigmoid_experts("num_experts", "num_shared_experts")
        | dict(
            first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
            sliding_window=gguf.get("attention.sliding_window"),
            layer_types=gguf.layer_types(4),
        )
    )


FAMILY = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        *QK_NORM_RULES,
        # The files keep the selection bias beside the router, not in it.
        rename("model.layers.{i}.mlp.e_score_correction_bias", "layers.{i}.mlp.router.selection_bias"),
        *(rule for rule in MOE_RULES if "e_score" not in rule.theirs),
    ),
    ignore=(r"^mtp\.",),
    gguf=GGUFSpec(arch="exaone-moe", from_gguf=from_gguf),
)
