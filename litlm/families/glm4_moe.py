"""GLM-4.5, 4.6, 4.7 and GLM-4.5-Air: rope on half of each head, DeepSeek-V3's experts and router.

The multi-token-prediction layer after the last one (46 in Air, 92 in the others) is not read.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_head_dim, hf_rope
from litlm.families.deepseek_v3 import MOE_RULES, first_dense, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.5)
    qk_norm = "head" if hf.take("use_qk_norm", False) else None
    values = llama_fields(hf, n_kv_head=8, eps=1e-5, qk_norm=qk_norm, rope=rope, max_seq_len=131072)
    moe = sigmoid_moe_from_hf(
        hf, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408, routed_scaling_factor=1.0
    )
    attention = dataclasses.replace(values["attention"], out_bias=False)
    return values | dict(attention=attention, moe=moe, moe_layers=first_dense(hf, values["n_layer"], 1))


def to_hf(config: Config) -> dict[str, Any]:
    return (
        llama_to_hf(config, without="head_dim mlp_bias")
        | hf_head_dim(config)
        | hf_rope(config.rope, fraction=True)
        | moe_to_hf(config.moe)
        | dict(use_qk_norm=config.attention.qk_norm is not None, first_k_dense_replace=hf_first_dense(config))
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("glm4_moe", fraction="partial_rotary_factor") | gguf.sigmoid_experts()
    return fields | dict(
        first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
        use_qk_norm=gguf.has("attn_q_norm.weight"),
        attention_bias=gguf.has("attn_q.bias"),
    )


FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *QK_NORM_RULES, *MOE_RULES),
    ignore=(r"^model\.layers\.(46|92)\.",),
    gguf=GGUFSpec(arch="glm4moe", from_gguf=from_gguf),
)
