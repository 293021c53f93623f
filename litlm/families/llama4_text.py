"""Llama 4's text model (Scout, Maverick): chunked layers with rope between full layers without, and experts whose input
is weighted. Norms of queries and keys have no weight and come after rope; layers without experts are wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig, TemperatureConfig
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.gpt_oss import transposed
from litlm.families.weights import LLAMA_RULES, Rule, fused_gate_up, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"intermediate_size": "intermediate_size_mlp"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(_NAMES, max_seq_len=131072, intermediate_size=16384, bos_token_id=1, eos_token_id=2)
    n_layer, bias = common["n_layer"], hf.take("attention_bias", False)
    every = hf.take("no_rope_layer_interval", 4)
    has_rope = hf.take("no_rope_layers", []) or [(i + 1) % every != 0 for i in range(n_layer)]
    layer_types = hf.layer_types(["chunked" if turns else "full" for turns in has_rope])
    step = hf.take("interleave_moe_layer_step", 1)
    with_experts = hf.take("moe_layers", list(range(step - 1, n_layer, step)))
    eps = float(hf.take("rms_norm_eps", 1e-5))
    qk_norm = QKNormConfig(norm=NormConfig(eps=eps, weight=False), after_rope=True)
    # Read in any case, so that files may state them.
    scale, interval = float(hf.take("attn_scale", 0.1)), float(hf.take("floor_scale", 8192))
    temperature = TemperatureConfig(scale=scale, interval=interval, shift=1, no_rope_only=True)
    hf.skip("router_jitter_noise for_llm_compressor")
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 128, null=0),
        sliding_window=hf.take("attention_chunk_size", 8192, null=None),
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=eps),
        attention=AttentionConfig(
            bias=bias,
            out_bias=bias,
            qk_norm=qk_norm if hf.take("use_qk_norm", True) else None,
            temperature=temperature if hf.take("attn_temperature_tuning", True) else None,
        ),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_local_experts", 16),
            n_expert_per_token=hf.take("num_experts_per_tok", 1),
            intermediate_size=(width := hf.take("intermediate_size", 8192)),
            scoring="sigmoid",
            normalize=False,
            shared_intermediate_size=width,
            scale_input=True,
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        moe_layers=tuple(i in with_experts for i in range(n_layer)),
        rope=hf.rope(theta=500000.0, interleaved=True),
        rope_layers=tuple(bool(turns) for turns in has_rope),
    )


def to_hf(config: Config) -> dict[str, Any]:
    temperature, moe = config.attention.temperature, config.moe
    assert moe is not None
    fields = dict(
        num_key_value_heads=config.n_kv_head,
        head_dim=config.head_dim,
        attention_chunk_size=config.sliding_window,
        layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        rms_norm_eps=config.norm.eps,
        hidden_act=HF_ACTIVATIONS[config.mlp.activation],
        attention_bias=config.attention.bias,
        use_qk_norm=config.attention.qk_norm is not None,
        attn_temperature_tuning=temperature is not None,
        num_local_experts=moe.n_expert,
        num_experts_per_tok=moe.n_expert_per_token,
        intermediate_size=moe.intermediate_size,
        moe_layers=[i for i, has_experts in enumerate(config.moe_layers) if has_experts],
        no_rope_layers=[int(turns) for turns in config.rope_layers],
        router_aux_loss_coef=moe.aux_loss,
    )
    if temperature is not None:
        fields |= dict(attn_scale=temperature.scale, floor_scale=int(temperature.interval))
    return hf_common(config, _NAMES) | hf_rope(config.rope) | fields


def _join(tensors: Sequence[Any], config: Config) -> Any:
    return fused_gate_up(2)["join"]([t.swapaxes(1, 2) for t in tensors], config)


_MLP = "model.layers.{i}.feed_forward."
_RULES = (
    *(rename(rule.theirs.replace(".mlp.", ".feed_forward."), *rule.ours) for rule in LLAMA_RULES),
    rename(_MLP + "router.weight", "layers.{i}.mlp.router.weight"),
    rename(_MLP + "shared_expert.gate_proj.weight", "layers.{i}.mlp.shared.gate_proj.weight"),
    rename(_MLP + "shared_expert.up_proj.weight", "layers.{i}.mlp.shared.up_proj.weight"),
    rename(_MLP + "shared_expert.down_proj.weight", "layers.{i}.mlp.shared.down_proj.weight"),
    Rule(
        _MLP + "experts.gate_up_proj",
        ("layers.{i}.mlp.experts.gate_proj", "layers.{i}.mlp.experts.up_proj"),
        split=lambda tensor, config: [t.swapaxes(1, 2) for t in tensor.chunk(2, -1)],
        join=_join,
    ),
    transposed(_MLP + "experts.down_proj", "layers.{i}.mlp.experts.down_proj"),
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
        return fields  # chunks, temperature and layers without rope are as published
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
        rules=tuple(
            rename(f"blk.{{i}}.ffn_{x}_exps.weight", f"layers.{{i}}.mlp.experts.{x}_proj")
            for x in ("gate", "up", "down")
        ),
    ),
)
