"""Granite 4.0 without Mamba layers (Micro, 1B, 350M): Granite whose MLP is named `shared_mlp`, gate and up fused.

The file format also describes layers of Mamba 2 and experts (the H models), which litlm refuses.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from litlm.config.layers import RopeConfig
from litlm.families.base import Family, HFFields
from litlm.families.granite import granite_fields
from litlm.families.granite import to_hf as granite_to_hf
from litlm.families.weights import Rule, fused_gate_up, llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config

_MAMBA = """
    mamba_n_heads mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size mamba_conv_bias
    mamba_proj_bias time_step_limit time_step_min time_step_max time_step_floor
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in (
        *_MAMBA.split(),
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "normalization_function",
        "init_method",
    ):
        hf.take(key, None)
    hf.expect("num_local_experts", 0, 8)
    values = granite_fields(hf)
    layer_types = hf.take("layer_types", hf.take("layers_block_type", ["mamba"]))
    if others := sorted(set(layer_types) - {"attention", "full_attention"}):
        hf.problems.append(f"layer_types holds {', '.join(others)}; litlm has attention layers only")
    position = hf.take("position_embedding_type", None)
    rope: RopeConfig | None = values["rope"]
    return values | dict(
        intermediate_size=hf.take("shared_intermediate_size", 1024),
        rope=rope if position == "rope" else None,
    )


def to_hf(config: Config) -> dict[str, Any]:
    # The file has a theta even without rope.
    with_rope = config if config.rope is not None else dataclasses.replace(config, rope=RopeConfig(), rope_layers=())
    fields = granite_to_hf(with_rope) | dict(
        num_local_experts=0,
        shared_intermediate_size=config.intermediate_size,
        layer_types=["attention"] * config.n_layer,
        position_embedding_type=None if config.rope is None else "rope",
        mamba_n_heads=math.gcd(128, 2 * config.n_embd),  # transformers checks them even if no layer is Mamba
    )
    del fields["mlp_bias"]
    return fields


FAMILY = Family(
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *llama_rules_without(".mlp."),
        Rule(
            "model.layers.{i}.shared_mlp.input_linear.weight",
            ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight"),
            **fused_gate_up(),
        ),
        rename("model.layers.{i}.shared_mlp.output_linear.weight", "layers.{i}.mlp.down_proj.weight"),
    ),
)
