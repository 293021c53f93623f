"""Ernie 4.5, mixtures of experts (21B-A3B, 300B-A47B): softmax routing with a selection bias, shared experts.

Files keep routers in fp32 and the selection bias as (1, experts); multi-token-prediction layers are not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.deepseek_v3 import MOE_RULES
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, Rule

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=500000.0, interleaved=True)
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    values = llama_fields(hf, n_kv_head=4, eps=1e-5, attention_bias=None, rope=rope, max_seq_len=131072, **ids)
    n_layer = values["n_layer"]
    hf.expect("use_bias", False, False)
    hf.expect("moe_norm_min", 1e-12, 1e-12)
    hf.expect("moe_use_aux_free", True, True)
    hf.expect("moe_gate", "topk", "topk")
    # For training, and for the authors' own kernels.
    hf.skip("moe_capacity num_nextn_predict_layers use_flash_attention sinkhorn_2gate sinkhorn_temp")
    start, step = hf.take("moe_layer_start_index", 1), hf.take("moe_layer_interval", 1)
    end = hf.take("moe_layer_end_index", -1)
    last = n_layer - 1 if end == -1 else end
    width = hf.take("moe_intermediate_size", 1536)
    return values | dict(
        moe=MoEConfig(
            n_expert=hf.take("moe_num_experts", 64),
            n_expert_per_token=hf.take("moe_k", 6),
            intermediate_size=width,
            selection_bias=True,
            shared_intermediate_size=width * hf.take("moe_num_shared_experts", 2),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        moe_layers=tuple((i + 1) % step == 0 and start <= i <= last for i in range(n_layer)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    layers = [i for i, has_experts in enumerate(config.moe_layers) if has_experts]
    step = layers[1] - layers[0] if len(layers) > 1 else layers[0] + 1 if layers else 1
    return (
        llama_to_hf(config, without="head_dim attention_bias mlp_bias")
        | hf_head_dim(config)
        | dict(
            use_bias=False,
            moe_num_experts=moe.n_expert,
            moe_k=moe.n_expert_per_token,
            moe_intermediate_size=moe.intermediate_size,
            moe_num_shared_experts=moe.shared_intermediate_size // moe.intermediate_size,
            moe_layer_start_index=layers[0] if layers else config.n_layer,
            moe_layer_end_index=layers[-1] if layers else config.n_layer,
            moe_layer_interval=step,
            router_aux_loss_coef=moe.aux_loss,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("expert_shared_feed_forward_length")  # converters divide it by the wrong number
    return gguf.common("ernie4_5_moe") | dict(
        moe_num_experts=gguf.get("expert_count"),
        moe_k=gguf.get("expert_used_count"),
        moe_intermediate_size=gguf.get("expert_feed_forward_length"),
        moe_num_shared_experts=gguf.get("expert_shared_count", 0),
        moe_layer_start_index=gguf.get("leading_dense_block_count", 0),
        moe_layer_interval=gguf.get("interleave_moe_layer_step", 1),
    )


FAMILY = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        Rule(
            "model.layers.{i}.mlp.moe_statics.e_score_correction_bias",
            ("layers.{i}.mlp.router.selection_bias",),
            split=lambda tensor, config: [tensor.reshape(-1)],
            join=lambda tensors, config: tensors[0].reshape(1, -1),
        ),
        *(rule for rule in MOE_RULES if "e_score" not in rule.theirs),
    ),
    ignore=(r"^model\.mtp_",),
    gguf=GGUFSpec(arch="ernie4_5-moe", from_gguf=from_gguf),
)
