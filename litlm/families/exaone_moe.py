"""K-EXAONE: sliding layers with rope between full layers without, normed heads, DeepSeek-V3's experts and router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.deepseek_v3 import MOE_RULES, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe import QK_NORM_RULES
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(bos_token_id=1, eos_token_id=53, pad_token_id=0)
    n_layer = common["n_layer"]
    every = hf.take("sliding_window_pattern", 4)
    if isinstance(every, str):  # "LLLG": local and global layers
        local = [every[i % len(every)] == "L" for i in range(n_layer)]
    else:
        local = [every > 0 and (i + 1) % every != 0 for i in range(n_layer)]
    layer_types = hf.layer_types(["sliding" if slides else "full" for slides in local])
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    listed = hf.take("is_moe_layer", None)  # the authors' own name for the same as mlp_layer_types
    moe_layers = sparse_layers(hf, n_layer, hf.take("first_k_dense_replace", 1))
    if listed is not None and not hf.data.get("mlp_layer_types"):
        moe_layers = tuple(bool(has_experts) for has_experts in listed)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 32),
        head_dim=hf.take("head_dim", 0),
        sliding_window=hf.take("sliding_window", 4096),
        layer_types=layer_types,
        norm=norm,
        attention=AttentionConfig(qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=sigmoid_moe_from_hf(
            hf, "num_experts", num_experts=64, num_experts_per_tok=8, moe_intermediate_size=1024,
            routed_scaling_factor=2.5,
        ),
        moe_layers=moe_layers,
        rope=hf.rope(),
        rope_layers=tuple(kind == "sliding" for kind in layer_types),
    )  # fmt: skip


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | moe_to_hf(config.moe, "num_experts")
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            sliding_window=config.sliding_window,
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
            mlp_layer_types=hf_sparse_layers(config),
            first_k_dense_replace=hf_first_dense(config),
        )
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
