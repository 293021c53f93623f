"""DeepSeek-V3, R1 and Moonlight: multi-head latent attention (MLA) and many small experts with sigmoid routing.

Its pieces (latents, the sigmoid router with a selection bias and groups) are shared by many families. The
multi-token-prediction layer at the end of the checkpoints (layer 61 of the real model) is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.config.layers import (
    AttentionConfig,
    LatentConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
    YarnScaling,
    yarn_attention_factor,
)
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, expert_rules, mlp_rules, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

LATENT_RULES = (
    rename("model.layers.{i}.self_attn.q_a_proj.{p}", "layers.{i}.attn.q_a_proj.{p}"),
    rename("model.layers.{i}.self_attn.q_a_layernorm.weight", "layers.{i}.attn.q_a_norm.weight"),
    rename("model.layers.{i}.self_attn.q_b_proj.weight", "layers.{i}.attn.q_b_proj.weight"),
    rename("model.layers.{i}.self_attn.kv_a_proj_with_mqa.{p}", "layers.{i}.attn.kv_a_proj.{p}"),
    rename("model.layers.{i}.self_attn.kv_a_layernorm.weight", "layers.{i}.attn.kv_a_norm.weight"),
    rename("model.layers.{i}.self_attn.kv_b_proj.weight", "layers.{i}.attn.kv_b_proj.weight"),
)
MOE_RULES = (
    rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
    rename("model.layers.{i}.mlp.gate.e_score_correction_bias", "layers.{i}.mlp.router.selection_bias"),
    *expert_rules(),
    *mlp_rules("model.layers.{i}.mlp.shared_experts.", "layers.{i}.mlp.shared."),
)


def latent_fields(
    hf: HFFields,
    *,
    kv_lora_rank: int = 512,
    q_lora_rank: int | None = 1536,
    qk_nope_head_dim: int = 128,
    qk_rope_head_dim: int = 64,
    v_head_dim: int = 128,
    interleaved: bool | None = None,
    eps: float = 1e-6,
    mlp_bias: bool | None = None,
    **common: Any,
) -> dict[str, Any]:
    """The fields of a config.json with latent attention. Arguments: transformers' defaults.

    interleaved: of rope, for families without rope_interleave. mlp_bias: None for families without such a field.
    common: see `HFFields.common`.
    """
    values = hf.common(**common)
    hf.skip("head_dim qk_head_dim num_key_value_heads")  # follow from the other sizes
    latent = LatentConfig(
        kv_rank=hf.take("kv_lora_rank", kv_lora_rank),
        q_rank=hf.take("q_lora_rank", q_lora_rank, null=None),
        nope_head_dim=hf.take("qk_nope_head_dim", qk_nope_head_dim),
        rope_head_dim=hf.take("qk_rope_head_dim", qk_rope_head_dim),
        v_head_dim=hf.take("v_head_dim", v_head_dim),
    )
    bias = hf.take("attention_bias", False)
    head_dim = latent.nope_head_dim + latent.rope_head_dim
    scale = yarn_scale(hf.data.get("rope_scaling") or hf.data.get("rope_parameters") or {}, head_dim)
    return values | dict(
        norm=NormConfig(eps=float(hf.take("rms_norm_eps", eps))),
        attention=AttentionConfig(bias=bias, out_bias=bias, scale=scale, latent=latent),
        mlp=MLPConfig(
            activation=hf.activation("hidden_act", "silu"), bias=mlp_bias is not None and hf.take("mlp_bias", mlp_bias)
        ),
        rope=hf.rope(interleaved=hf.take("rope_interleave", True) if interleaved is None else interleaved),
    )


def yarn_scale(scaling: dict[str, Any], head_dim: int) -> float | None:
    """The scale of attention scores where YaRN's temperature for all dimensions (mscale_all_dim) is part of it."""
    scaled = (scaling.get("rope_type") or scaling.get("type") or "default") != "default"
    mscale = scaling.get("mscale_all_dim")
    if not scaled or not mscale:
        return None
    factor = yarn_attention_factor(scaling.get("factor") or 1.0, mscale)
    return head_dim**-0.5 * factor * factor


def latent_to_hf(config: Config, *, without: str = "") -> dict[str, Any]:
    """The inverse of `latent_fields`. without: fields that the family doesn't have, separated by spaces."""
    latent, rope = config.attention.latent, config.rope
    assert latent is not None
    assert rope is not None
    fields = hf_rope(rope)
    if config.attention.scale is not None and isinstance(rope.scaling, YarnScaling):
        # mscale is for readers that don't know attention_factor; rounding restores the number that was in the file.
        per_log = 0.1 * math.log(rope.scaling.factor) or 1.0
        whole = math.sqrt(config.attention.scale * math.sqrt(config.head_dim))
        fields["rope_parameters"]["mscale_all_dim"] = round((whole - 1) / per_log, 10)
        if rope.scaling.attention_factor is not None:
            fields["rope_parameters"]["mscale"] = round((rope.scaling.attention_factor * whole - 1) / per_log, 10)
    fields |= hf_common(config) | dict(
        rms_norm_eps=config.norm.eps,
        hidden_act=HF_ACTIVATIONS[config.mlp.activation],
        mlp_bias=config.mlp.bias,
        rope_interleave=rope.interleaved,
        num_key_value_heads=config.n_head,
        kv_lora_rank=latent.kv_rank,
        q_lora_rank=latent.q_rank,
        qk_nope_head_dim=latent.nope_head_dim,
        qk_rope_head_dim=latent.rope_head_dim,
        v_head_dim=latent.v_head_dim,
        attention_bias=config.attention.bias,
    )
    return {key: value for key, value in fields.items() if key not in without.split()}


def sigmoid_moe_from_hf(hf: HFFields, n_expert: str = "n_routed_experts", **defaults: Any) -> MoEConfig:
    """Experts with DeepSeek-V3's sigmoid router. defaults: transformers' own, by its names; a field without one is
    required. n_expert: the family's name of their number."""
    hf.expect("scoring_func", "sigmoid", "sigmoid")
    hf.expect("topk_method", "noaux_tc", "noaux_tc")
    skip_training_fields(hf)

    def take(key: str, *default: Any) -> Any:
        return hf.take(key, defaults[key]) if key in defaults else hf.take(key, *default)

    width = take("moe_intermediate_size")
    shared = "num_shared_experts" if n_expert == "num_experts" else "n_shared_experts"
    return MoEConfig(
        n_expert=take(n_expert),
        n_expert_per_token=take("num_experts_per_tok"),
        intermediate_size=width,
        scoring="sigmoid",
        normalize=take("norm_topk_prob", True),
        scale=float(take("routed_scaling_factor")),
        n_group=take("n_group", 1),
        n_group_per_token=take("topk_group", 1),
        group_score="top2",
        selection_bias=True,
        shared_intermediate_size=width * hf.take(shared, 1),
    )


def skip_training_fields(hf: HFFields) -> None:
    """Fields of DeepSeek's and later files for their own training, or for multi-token-prediction layers."""
    hf.expect("moe_layer_freq", 1, 1)
    hf.skip("aux_loss_alpha seq_aux ep_size num_nextn_predict_layers num_mtp_layers")


def moe_to_hf(moe: MoEConfig | None, n_expert: str = "n_routed_experts") -> dict[str, Any]:
    """The inverse of `sigmoid_moe_from_hf`."""
    assert moe is not None
    shared = "num_shared_experts" if n_expert == "num_experts" else "n_shared_experts"
    return {
        n_expert: moe.n_expert,
        "num_experts_per_tok": moe.n_expert_per_token,
        "moe_intermediate_size": moe.intermediate_size,
        shared: moe.shared_intermediate_size // moe.intermediate_size,
        "routed_scaling_factor": moe.scale,
        "norm_topk_prob": moe.normalize,
        "n_group": moe.n_group,
        "topk_group": moe.n_group_per_token,
    }


def first_dense(hf: HFFields, n_layer: int, default: int) -> tuple[bool, ...]:
    """Which layers have experts: all but the first few."""
    dense = hf.take("first_k_dense_replace", default)
    return tuple(i >= dense for i in range(n_layer))


def hf_first_dense(config: Config) -> int:
    """The inverse of `first_dense`."""
    return config.moe_layers.index(True) if True in config.moe_layers else config.n_layer


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = latent_fields(hf, max_seq_len=4096, bos_token_id=0, eos_token_id=1)
    sizes: dict[str, Any] = dict(
        n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_group=8, topk_group=4
    )
    moe = sigmoid_moe_from_hf(hf, **sizes, routed_scaling_factor=2.5)
    return values | dict(moe=moe, moe_layers=first_dense(hf, values["n_layer"], 3))


def to_hf(config: Config) -> dict[str, Any]:
    fields = latent_to_hf(config, without="mlp_bias") | moe_to_hf(config.moe)
    return fields | dict(first_k_dense_replace=hf_first_dense(config))


def latent_from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """The metadata of a GGUF file with latent attention. In newer files `key_length` is that of the cached latent."""
    fields = gguf.common(model_type, latent=True)
    rope_head_dim = gguf.get("rope.dimension_count")
    return fields | dict(
        kv_lora_rank=gguf.get("attention.kv_lora_rank"),
        q_lora_rank=gguf.get("attention.q_lora_rank"),
        qk_nope_head_dim=gguf.get("attention.key_length_mla", gguf.get("attention.key_length")) - rope_head_dim,
        qk_rope_head_dim=rope_head_dim,
        v_head_dim=gguf.get("attention.value_length_mla", gguf.get("attention.value_length")),
        attention_bias=gguf.has("attn_kv_a_mqa.bias"),
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    dense = gguf.get("leading_dense_block_count", 0)
    return latent_from_gguf(gguf, "deepseek_v3") | gguf.sigmoid_experts() | dict(first_k_dense_replace=dense)


def is_v3(gguf: GGUFFields) -> bool:
    """Whether a file is of V3 or a later model; llama.cpp has one architecture for V2 and V3."""
    sigmoid = gguf.has("exp_probs_b.bias") or gguf.get("expert_gating_func") == 2
    return sigmoid or bool(gguf.get("expert_weights_norm"))


def _join_kv(parts: Sequence[Any]) -> Any:
    """Keys (H, rank, D) and values (H, D, rank) to (2 H D, rank), by head."""
    keys, values = parts
    keys = keys.swapaxes(1, 2)
    joined = keys.new_empty((keys.shape[0], keys.shape[1] + values.shape[1], keys.shape[2]))
    joined[:, : keys.shape[1]], joined[:, keys.shape[1] :] = keys, values
    return joined.reshape(-1, keys.shape[2])


_RULES = (*LLAMA_RULES, *LATENT_RULES, *MOE_RULES)
GGUF_MERGED = {"blk.{i}.attn_kv_b.weight": (("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"), _join_kv)}


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),  # also inside multimodal checkpoints (`kimi_k25`)
    ignore=(r"^model\.layers\.61\.", r"\.rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|mm_projector)\."),
    gguf=GGUFSpec(
        arch="deepseek2",
        from_gguf=from_gguf,
        matches=is_v3,
        merged=GGUF_MERGED,
    ),
)
