"""A.X-K1 (SK Telecom, 519B): DeepSeek-V3 with a norm of what experts and shared expert add up to.

Its files lack the router's selection bias (it is zero then), and have such a norm in dense layers too, unused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    LATENT_RULES,
    MOE_RULES,
    latent_fields,
    latent_to_hf,
    moe_to_hf,
    sigmoid_moe_from_hf,
)
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.weights import LLAMA_RULES, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = latent_fields(hf, max_seq_len=32768, bos_token_id=163691, eos_token_id=163691)
    sizes: dict[str, Any] = dict(
        n_routed_experts=192, num_experts_per_tok=8, moe_intermediate_size=2048, n_group=8, topk_group=4
    )
    moe = sigmoid_moe_from_hf(hf, **sizes, routed_scaling_factor=2.5)
    layers = sparse_layers(hf, values["n_layer"], hf.take("first_k_dense_replace", 1))
    return values | dict(moe=replace(moe, output_norm=True), moe_layers=layers)


def to_hf(config: Config) -> dict[str, Any]:
    fields = latent_to_hf(config, without="mlp_bias") | moe_to_hf(config.moe)
    return fields | dict(mlp_layer_types=hf_sparse_layers(config))


_RULES = (
    *LLAMA_RULES,
    *LATENT_RULES,
    *MOE_RULES,
    rename("model.layers.{i}.post_mlp_layernorm.weight", "layers.{i}.mlp.output_norm.weight"),
)

FAMILY = Family(
    model_type="axk1",
    architecture="AXK1ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(_RULES, {"post_mlp_layernorm": "mlp.post_mlp_layernorm"}),
    ignore=(r"\.post_mlp_layernorm\.", r"\.rotary_emb\.inv_freq$"),
    zero_if_missing=(".router.selection_bias",),
)
