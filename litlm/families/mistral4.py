"""Mistral Small 4: latent attention with queries scaled by their position, and experts with a softmax router."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig, TemperatureConfig, YarnScaling
from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    GGUF_MERGED,
    LATENT_RULES,
    MOE_RULES,
    first_dense,
    hf_first_dense,
    latent_fields,
    latent_from_gguf,
    latent_to_hf,
    moe_to_hf,
)
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, Rule, fused_gate_up, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

_YARN = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=128.0,
    original_max_position_embeddings=8192,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)


def from_hf(hf: HFFields) -> dict[str, Any]:
    scaling = dict(hf.data.get("rope_scaling") or hf.data.get("rope_parameters") or _YARN)
    # The rotated fraction of a head and the context length are stated elsewhere as well.
    beta, *_ = (
        scaling.pop(k, None) for k in ("llama_4_scaling_beta", "partial_rotary_factor", "max_position_embeddings")
    )
    hf.data = {**hf.data, "rope_parameters": scaling, "rope_scaling": None}
    sizes: dict[str, Any] = dict(kv_lora_rank=256, q_lora_rank=1024, qk_nope_head_dim=64)
    values = latent_fields(hf, **sizes, max_seq_len=1048576, bos_token_id=1, eos_token_id=2, pad_token_id=11)
    if beta is not None:
        interval = float(scaling.get("original_max_position_embeddings") or values["max_seq_len"])
        temperature = TemperatureConfig(scale=float(beta), interval=interval)
        values["attention"] = replace(values["attention"], temperature=temperature)
    expert_size = hf.take("moe_intermediate_size", 2048)
    moe = MoEConfig(
        n_expert=hf.take("n_routed_experts", 128),
        n_expert_per_token=hf.take("num_experts_per_tok", 4),
        intermediate_size=expert_size,
        normalize=hf.take("norm_topk_prob", True),
        scale=float(hf.take("routed_scaling_factor", 1.0)),
        n_group=hf.take("n_group", 1),
        n_group_per_token=hf.take("topk_group", 1),
        group_score="top2",
        shared_intermediate_size=expert_size * hf.take("n_shared_experts", 1),
    )
    return values | dict(moe=moe, moe_layers=first_dense(hf, values["n_layer"], 0))


def to_hf(config: Config) -> dict[str, Any]:
    fields, latent = latent_to_hf(config, without="mlp_bias") | moe_to_hf(config.moe), config.attention.latent
    assert latent is not None
    parameters, temperature = fields["rope_parameters"], config.attention.temperature
    parameters["partial_rotary_factor"] = latent.rope_head_dim / config.head_dim
    if temperature is not None and config.rope is not None and isinstance(config.rope.scaling, YarnScaling):
        parameters["llama_4_scaling_beta"] = temperature.scale
    return fields | dict(first_k_dense_replace=hf_first_dense(config))


_THEIRS, _OURS = "model.layers.{i}.mlp.experts.", "layers.{i}.mlp.experts."
_RULES = (
    *LLAMA_RULES,
    *LATENT_RULES,
    Rule(_THEIRS + "gate_up_proj", (_OURS + "gate_proj", _OURS + "up_proj"), **fused_gate_up(1)),
    rename(_THEIRS + "down_proj", _OURS + "down_proj"),
    *(rule for rule in MOE_RULES if ".experts." not in rule.theirs and "e_score" not in rule.theirs),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = latent_from_gguf(gguf, "mistral4")
    gguf.expect("expert_gating_func", 1)  # softmax
    # Files that were converted from Hugging Face's don't state the scale of queries.
    beta = gguf.get("attention.temperature_scale")
    parameters = fields.pop("rope_scaling", None) or dict(rope_type="default")
    parameters |= dict(rope_theta=fields["rope_theta"]) | ({} if beta is None else dict(llama_4_scaling_beta=beta))
    return (
        fields
        | gguf.experts("n_routed_experts")
        | dict(
            rope_parameters=parameters,
            n_shared_experts=gguf.get("expert_shared_count", 0),
            routed_scaling_factor=gguf.get("expert_weights_scale", 1.0),
            norm_topk_prob=bool(gguf.get("expert_weights_norm", False)),
            n_group=gguf.get("expert_group_count", 1),
            topk_group=gguf.get("expert_group_used_count", 1),
            first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
        )
    )


FAMILY = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=(r"^(vision_tower|multi_modal_projector)\.",),
    gguf=GGUFSpec(
        arch="mistral4",
        from_gguf=from_gguf,
        rules=(
            Rule("blk.{i}.ffn_gate_up_exps.weight", (_OURS + "gate_proj", _OURS + "up_proj"), **fused_gate_up(1)),
            rename("blk.{i}.ffn_down_exps.weight", _OURS + "down_proj"),
        ),
        merged=GGUF_MERGED,
    ),
)
