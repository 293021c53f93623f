"""Hy3 (Tencent, 295B): grouped attention with normed heads, DeepSeek-V3's experts and router without groups.

The multi-token-prediction layer after the last one (80) is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import skip_training_fields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, expert_rules, mlp_rules, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope, init_std = hf.rope(theta=11158840.0), 0.006
    values = llama_fields(
        hf, n_kv_head=8, head_dim=128, eps=1e-5, mlp_bias=False, qk_norm="head", rope=rope, max_seq_len=131072,
        init_std=init_std,
    )  # fmt: skip
    # Both are in fp32 here or there: rounding alone.
    hf.skip("enable_moe_fp32_combine enable_lm_head_fp32")
    for key in ("route_norm", "moe_router_use_sigmoid", "moe_router_enable_expert_bias", "qk_norm"):
        hf.expect(key, True, True)
    skip_training_fields(hf)
    width = hf.take("moe_intermediate_size", 1536)
    hf.expect("expert_hidden_dim", width, width)
    moe = hf.experts(
        "num_experts",
        n_expert=192,
        n_expert_per_token=8,
        intermediate_size=width,
        aux_loss=0.0,
        scoring="sigmoid",
        selection_bias=True,
        scale=float(hf.take("router_scaling_factor", 2.826)),
        shared_intermediate_size=width * hf.take("num_shared_experts", 1),
    )
    return values | dict(moe=moe, moe_layers=sparse_layers(hf, values["n_layer"], hf.take("first_k_dense_replace", 1)))


def to_hf(config: Config) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    return llama_to_hf(config) | dict(
        num_experts=moe.n_expert,
        num_experts_per_tok=moe.n_expert_per_token,
        moe_intermediate_size=moe.intermediate_size,
        num_shared_experts=moe.shared_intermediate_size // moe.intermediate_size,
        router_scaling_factor=moe.scale,
        mlp_layer_types=hf_sparse_layers(config),
    )


_MLP, _OURS = "model.layers.{i}.mlp.", "layers.{i}.mlp."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 2)  # sigmoid
    gguf.expect("expert_weights_norm", True)
    fields = gguf.common("hy_v3") | gguf.experts("num_experts")
    layers = range(fields["num_hidden_layers"])
    width = gguf.get("expert_shared_feed_forward_length", 0)
    return fields | dict(
        num_shared_experts=width // fields["moe_intermediate_size"],
        router_scaling_factor=gguf.get("expert_weights_scale"),
        mlp_layer_types=["sparse" if f"blk.{i}.ffn_gate_inp.weight" in gguf.shapes else "dense" for i in layers],
        attention_bias=gguf.has("attn_q.bias"),
        mlp_bias=gguf.has("ffn_up.bias"),
    )


_RULES = (
    *LLAMA_RULES,
    *QK_NORM_RULES,
    rename(_MLP + "router.gate.weight", _OURS + "router.weight"),
    rename(_MLP + "expert_bias", _OURS + "router.selection_bias"),
    *expert_rules(),
    *mlp_rules(_MLP + "shared_mlp.", _OURS + "shared."),
)
_MODULES = {"router.gate": "gate", "expert_bias": "e_score_correction_bias", "shared_mlp": "shared_experts"}

FAMILY = Family(
    model_type="hy_v3",
    architecture="HYV3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(_RULES, _MODULES),
    ignore=(r"^model\.layers\.80\.",),
    gguf=GGUFSpec(arch="hy_v3", from_gguf=from_gguf, table_arch="dots1"),
)
