"""LFM2-8B-A1B and LFM2-24B-A2B: LFM2 with experts in all but the first layers, and a sigmoid router.

`intermediate_size` is the dense layers' own, unlike in LFM2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig
from litlm.families import lfm2
from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import hf_first_dense
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = lfm2.common(hf, n_embd=2048, n_layer=32, n_head=32, intermediate_size=7168)
    if not hf.data.get("layer_types") and hf.data.get("full_attn_idxs") is None:
        hf.problems.append("layer_types is missing: it must say of each layer whether it is full_attention or conv")
    dense = hf.size("num_dense_layers", 2, least=0)
    moe = MoEConfig(
        n_expert=hf.take("num_experts", 32),
        n_expert_per_token=hf.take("num_experts_per_tok", 4),
        intermediate_size=hf.take("moe_intermediate_size", 1792),
        scoring="sigmoid",
        normalize=hf.take("norm_topk_prob", True),
        normalize_eps=1e-6,
        scale=float(hf.take("routed_scaling_factor", 1.0)),
        selection_bias=hf.take("use_expert_bias", True),
    )
    return values | dict(moe=moe, moe_layers=tuple(i >= dense for i in range(values["n_layer"])))


def to_hf(config: Config) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    return lfm2.hf_fields(config) | dict(
        num_dense_layers=hf_first_dense(config),
        num_experts=moe.n_expert,
        num_experts_per_tok=moe.n_expert_per_token,
        moe_intermediate_size=moe.intermediate_size,
        norm_topk_prob=moe.normalize,
        routed_scaling_factor=moe.scale,
        use_expert_bias=moe.selection_bias,
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 2)  # sigmoid
    return (
        lfm2.common_from_gguf(gguf, "lfm2_moe")
        | gguf.experts("num_experts")
        | dict(
            num_dense_layers=gguf.get("leading_dense_block_count", 0),
            norm_topk_prob=True,
            use_expert_bias=gguf.has("exp_probs_b.bias"),
        )
    )


_MLP, _OURS = "model.layers.{i}.feed_forward.", "layers.{i}.mlp."

FAMILY = Family(
    model_type="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *lfm2.RULES,
        rename(_MLP + "gate.weight", _OURS + "router.weight"),
        rename(_MLP + "expert_bias", _OURS + "router.selection_bias"),
        *expert_rules(_MLP + "experts.{e}.", "w1 w3 w2"),
    ),
    gguf=GGUFSpec(
        arch="lfm2moe",
        from_gguf=from_gguf,
        rules=(
            rename("blk.{i}.exp_probs_b.bias", _OURS + "router.selection_bias"),
            *(rename(f"blk.{{i}}.ffn_{x}_exps.weight", f"{_OURS}experts.{x}_proj") for x in ("gate", "up", "down")),
        ),
    ),
)
