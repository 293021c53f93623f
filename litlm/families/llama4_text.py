"""Llama 4's text model (Scout, Maverick): chunked layers with rope, full layers without, and experts whose input is
weighted. Norms of queries and keys have no weight and follow rope; dense layers have a larger MLP.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, QKNormConfig, TemperatureConfig
from litlm.families.base import HF_LAYER_TYPES, Family, HFFields, hf_common, hf_experts
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, Rule, fused_gate_up, mlp_rules, nested_rules, rename, transposed

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"intermediate_size": "intermediate_size_mlp"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=500000.0, interleaved=True)
    sizes: dict[str, Any] = dict(names=_NAMES, max_seq_len=131072, intermediate_size=16384)
    values = llama_fields(hf, n_kv_head=8, head_dim=128, eps=1e-5, rope=rope, **sizes, bos_token_id=1, eos_token_id=2)
    n_layer = values["n_layer"]
    interval = hf.take("no_rope_layer_interval", 4)
    has_rope = hf.take("no_rope_layers", []) or [(i + 1) % interval != 0 for i in range(n_layer)]
    step = hf.take("interleave_moe_layer_step", 1)
    with_experts = hf.take("moe_layers", list(range(step - 1, n_layer, step)))
    norm = NormConfig(eps=values["norm"].eps, weight=False)
    qk_norm = QKNormConfig(norm=norm, after_rope=True) if hf.take("use_qk_norm", True) else None
    # Taken in any case, because files may state them.
    scale, positions = float(hf.take("attn_scale", 0.1)), float(hf.take("floor_scale", 8192))
    temperature = TemperatureConfig(scale=scale, interval=positions, shift=1, no_rope_only=True)
    temperature = temperature if hf.take("attn_temperature_tuning", True) else None
    hf.skip("router_jitter_noise for_llm_compressor")
    expert_size = hf.take("intermediate_size", 8192)
    moe = hf.experts(
        n_expert=16,
        n_expert_per_token=1,
        intermediate_size=expert_size,
        scoring="sigmoid",
        normalize=False,
        shared_intermediate_size=expert_size,
        scale_input=True,
    )
    return values | dict(
        sliding_window=hf.take("attention_chunk_size", 8192, null=None),
        layer_types=hf.layer_types(["chunked" if has else "full" for has in has_rope]),
        attention=dataclasses.replace(values["attention"], qk_norm=qk_norm, temperature=temperature),
        moe=moe,
        moe_layers=tuple(i in with_experts for i in range(n_layer)),
        rope_layers=tuple(bool(has) for has in has_rope),
    )


def to_hf(config: Config) -> dict[str, Any]:
    temperature, moe = config.attention.temperature, config.moe
    assert moe is not None
    fields = llama_to_hf(config, without="mlp_bias") | hf_common(config, _NAMES) | hf_experts(config)
    fields |= dict(
        attention_chunk_size=config.sliding_window,
        layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        use_qk_norm=config.attention.qk_norm is not None,
        attn_temperature_tuning=temperature is not None,
        intermediate_size=moe.intermediate_size,
        moe_layers=[i for i, has_experts in enumerate(config.moe_layers) if has_experts],
        no_rope_layers=[int(has_rope) for has_rope in config.rope_layers],
    )
    if temperature is not None:
        fields |= dict(attn_scale=temperature.scale, floor_scale=int(temperature.interval))
    return fields


_MLP, _EXPERTS = "model.layers.{i}.feed_forward.", "layers.{i}.mlp.experts."
_RULES = (
    *(rename(rule.theirs.replace(".mlp.", ".feed_forward."), *rule.ours) for rule in LLAMA_RULES),
    rename(_MLP + "router.weight", "layers.{i}.mlp.router.weight"),
    *mlp_rules(_MLP + "shared_expert.", "layers.{i}.mlp.shared."),
    transposed(Rule(_MLP + "experts.gate_up_proj", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1))),
    transposed(rename(_MLP + "experts.down_proj", _EXPERTS + "down_proj")),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    step, n_layer = gguf.get("interleave_moe_layer_step", 1), gguf.get("block_count")
    fields = gguf.common("llama4_text", names=_NAMES) | gguf.experts("num_local_experts", "intermediate_size")
    fields |= dict(
        attention_bias=gguf.has("attn_q.bias"),
        interleave_moe_layer_step=step,
        use_qk_norm=gguf.get("expert_count") != 128,  # Maverick has none
    )
    if gguf.get("attention.sliding_window") != 0:
        return fields  # the other fields have transformers' defaults, as in the published models
    return fields | dict(
        layer_types=["full_attention"] * n_layer, no_rope_layers=[1] * n_layer, attn_temperature_tuning=False
    )


FAMILY = Family(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=(r"^vision_model\.", r"^multi_modal_projector\.", r"\.rotary_emb\.inv_freq$"),
    gguf=GGUFSpec(
        arch="llama4",
        from_gguf=from_gguf,
        rules=tuple(rename(f"blk.{{i}}.ffn_{x}_exps.weight", f"{_EXPERTS}{x}_proj") for x in ("gate", "up", "down")),
    ),
)
