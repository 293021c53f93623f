"""Gemma 4 (text): Gemma 3 with larger, partly rotated heads in full layers, unscaled scores, normed values.

The small models (E2B, E4B) give each layer inputs of its own, and their last layers read earlier ones' keys and values;
in the large ones (31B, 26B-A4B) keys of full layers are values too, and 26B-A4B has experts beside the MLP.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import (
    AttentionConfig,
    LinearScaling,
    MLPConfig,
    MoEConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
)
from litlm.families import gemma2
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope_parameters, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec, rotary_fraction
from litlm.families.weights import QK_NORM_RULES, Rule, fused_gate_up, mlp_rules, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

_ROPES: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(
        vocab_size=262144,
        n_layer=30,
        n_embd=2304,
        n_head=8,
        intermediate_size=9216,
        max_seq_len=131072,
        tie_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    # "vision": attention within an image is bidirectional; text is causal all the same.
    if (bidirectional := hf.take("use_bidirectional_attention", None)) not in (None, False, "vision"):
        hf.problems.append(f"use_bidirectional_attention={bidirectional!r} is not supported, only None or 'vision'")
    n_layer, n_embd, intermediate_size = common["n_layer"], common["n_embd"], common["intermediate_size"]
    types = hf.layer_types(["sliding" if (i + 1) % 6 else "full" for i in range(n_layer)])
    types = (*types[:-1], "full")  # as transformers has it, whatever the file says
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    bias = hf.take("attention_bias", False)
    k_as_v = hf.take("attention_k_eq_v", False)
    head_dim, n_kv_head = hf.take("head_dim", 256), hf.take("num_key_value_heads", 4)
    full_head_dim, full_n_kv_head = _full_sizes(hf, types, head_dim, n_kv_head, k_as_v)
    ropes = dict(hf.take("rope_parameters", None) or _ROPES)
    rope, sliding_rope = (proportional_rope(hf, dict(ropes.get(t) or default)) for t, default in _ROPES.items())
    n_shared, input_dim = hf.take("num_kv_shared_layers", 0), hf.take("hidden_size_per_layer_input", 256, null=0)
    input_vocab = hf.take("vocab_size_per_layer_input", 262144)
    double_size = hf.take("use_double_wide_mlp", False) and n_shared
    return common | dict(
        head_dim=head_dim,
        n_kv_head=n_kv_head,
        full_head_dim=full_head_dim if full_head_dim != head_dim else 0,
        full_n_kv_head=full_n_kv_head if full_n_kv_head != n_kv_head else 0,
        sliding_window=hf.take("sliding_window", 512),
        layer_types=types,
        block="sandwich",
        norm=norm,
        attention=AttentionConfig(
            bias=bias,
            out_bias=bias,
            qk_norm=QKNormConfig(norm=norm),
            v_norm=dataclasses.replace(norm, weight=False),
            k_as_v=k_as_v,
            scale=1.0,
        ),
        mlp=MLPConfig(activation=hf.activation("hidden_activation", "gelu_pytorch_tanh")),
        moe=_moe(hf, intermediate_size),
        rope=rope,
        sliding_rope=sliding_rope if sliding_rope != rope else None,
        n_kv_shared_layer=n_shared,
        kv_shared_intermediate_size=2 * intermediate_size if double_size else 0,
        layer_input_dim=input_dim,
        layer_input_vocab_size=input_vocab if input_dim and input_vocab != common["vocab_size"] else 0,
        layer_scalar=True,
        embed_scale=n_embd**0.5,
        logit_softcap=hf.take("final_logit_softcapping", None),
    )


def _full_sizes(hf: HFFields, types: tuple[str, ...], head_dim: int, n_kv_head: int, k_as_v: bool) -> tuple[int, int]:
    """head_dim and n_kv_head of full layers: newer files have `per_layer_config`, older ones two fields."""
    global_head_dim, global_heads = hf.take("global_head_dim", 512), hf.take("num_global_key_value_heads", None)
    layers = hf.take("per_layer_config", None, null={})
    if layers is None:
        return global_head_dim, global_heads if global_heads and k_as_v else n_kv_head
    by_number = {int(i): sizes for i, sizes in layers.items()}  # "05" as well, in models of ten layers or more
    overrides = [dict(by_number.get(i) or {}) for i in range(len(types))]
    full = overrides[-1]
    if any(sizes != (full if t == "full" else {}) for t, sizes in zip(types, overrides, strict=True)):
        hf.problems.append("per_layer_config is supported for full layers only, with the same sizes for all of them")
    sizes = full.pop("head_dim", None) or head_dim, full.pop("num_key_value_heads", None) or n_kv_head
    hf.problems += [f"per_layer_config: {key}={value!r} is not understood" for key, value in full.items()]
    return sizes


def proportional_rope(hf: HFFields, parameters: dict[str, Any]) -> RopeConfig:
    """The rope that an entry of `rope_parameters` describes, which may be a proportional one."""
    theta = float(parameters.pop("rope_theta", None) or 1e4)
    if parameters.get("rope_type") != "proportional":
        return RopeConfig(theta=theta, scaling=hf.rope_scaling(parameters))
    del parameters["rope_type"]
    factor, fraction = parameters.pop("factor", None) or 1.0, parameters.pop("partial_rotary_factor", None) or 1.0
    hf.problems += [f"rope_parameters.{key}={value!r} is not understood" for key, value in parameters.items()]
    scaling = LinearScaling(factor=float(factor)) if factor != 1 else None
    return RopeConfig(theta=theta, fraction=float(fraction), proportional=True, scaling=scaling)


def _moe(hf: HFFields, shared_size: int) -> MoEConfig | None:
    enabled = hf.take("enable_moe_block", False)
    n_expert, n_expert_per_token = hf.take("num_experts", None), hf.take("top_k_experts", None)
    expert_size = hf.take("moe_intermediate_size", None)
    if not enabled:
        return None
    if not (n_expert and n_expert_per_token and expert_size):
        hf.problems.append("enable_moe_block needs num_experts, top_k_experts and moe_intermediate_size")
        return None
    return MoEConfig(
        n_expert=n_expert,
        n_expert_per_token=n_expert_per_token,
        intermediate_size=expert_size,
        shared_intermediate_size=shared_size,
        own_norms=True,
        router_scales=True,
    )


def hf_proportional_rope(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of `proportional_rope`."""
    parameters = hf_rope_parameters(dataclasses.replace(rope, proportional=False))
    return parameters | ({"rope_type": "proportional"} if rope.proportional else {})


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    moe = config.moe
    return (
        hf_common(config)
        | hf_sliding(config)
        | dict(
            head_dim=config.head_dim,
            num_key_value_heads=config.n_kv_head,
            global_head_dim=config.full_head_dim or config.head_dim,
            num_global_key_value_heads=config.full_n_kv_head or None,
            rms_norm_eps=config.norm.eps,
            attention_bias=config.attention.bias,
            attention_k_eq_v=config.attention.k_as_v,
            hidden_activation=HF_ACTIVATIONS[config.mlp.activation],
            rope_parameters={
                "full_attention": hf_proportional_rope(config.rope),
                "sliding_attention": hf_proportional_rope(config.sliding_rope or config.rope),
            },
            enable_moe_block=moe is not None,
            num_experts=moe.n_expert if moe else None,
            top_k_experts=moe.n_expert_per_token if moe else None,
            moe_intermediate_size=moe.intermediate_size if moe else None,
            num_kv_shared_layers=config.n_kv_shared_layer,
            use_double_wide_mlp=config.kv_shared_intermediate_size > 0,
            hidden_size_per_layer_input=config.layer_input_dim,
            vocab_size_per_layer_input=config.layer_input_vocab_size or config.vocab_size,
            final_logit_softcapping=config.logit_softcap,
        )
    )


def _is_dense(config: Config) -> bool:
    return config.moe is None


def _has_experts(config: Config) -> bool:
    return config.moe is not None


def _unused_weights(config: Config) -> tuple[str, ...]:
    """Files may hold K and V weights of the layers that share those of earlier ones."""
    layers = "|".join(str(i) for i in range(config.n_layer) if config.layer(i).kv_layer is not None)
    parts = r"\.layers\.({})\.self_attn\.(k_proj|v_proj|k_norm)\.", r"^blk\.({})\.attn_(k|v|k_norm)\."
    return tuple(part.format(layers) for part in parts) if layers else ()


_HF, _OURS = "model.layers.{i}.", "layers.{i}."
_EXPERT_RULES = (
    *mlp_rules(_HF + "mlp.", _OURS + "mlp.shared."),
    rename(_HF + "pre_feedforward_layernorm.{p}", _OURS + "mlp.shared_norm.{p}"),
    rename(_HF + "post_feedforward_layernorm_1.{p}", _OURS + "mlp.post_shared_norm.{p}"),
    rename(_HF + "pre_feedforward_layernorm_2.{p}", _OURS + "mlp.norm.{p}"),
    rename(_HF + "post_feedforward_layernorm_2.{p}", _OURS + "mlp.post_norm.{p}"),
    rename(_HF + "router.proj.weight", _OURS + "mlp.router.weight"),
    rename(_HF + "router.scale", _OURS + "mlp.router.input_scale"),
    rename(_HF + "router.per_expert_scale", _OURS + "mlp.router.expert_scale"),
    rename(_HF + "experts.down_proj", _OURS + "mlp.experts.down_proj"),
    Rule(
        _HF + "experts.gate_up_proj",
        (_OURS + "mlp.experts.gate_proj", _OURS + "mlp.experts.up_proj"),
        **fused_gate_up(1),
    ),
)
_RENAMED_WITH_EXPERTS = {rule.theirs for rule in _EXPERT_RULES}
_RULES = (
    *(
        dataclasses.replace(rule, when=_is_dense if rule.theirs in _RENAMED_WITH_EXPERTS else None)
        for rule in gemma2.RULES
    ),
    *(dataclasses.replace(rule, when=_has_experts) for rule in _EXPERT_RULES),
    *QK_NORM_RULES,
    rename(_HF + "per_layer_input_gate.weight", _OURS + "layer_input.gate.weight"),
    rename(_HF + "per_layer_projection.weight", _OURS + "layer_input.proj.weight"),
    rename(_HF + "post_per_layer_input_norm.weight", _OURS + "layer_input.norm.weight"),
    rename(_HF + "layer_scalar", _OURS + "layer_scalar"),
    rename("model.embed_tokens_per_layer.weight", "layer_inputs.embed.weight"),
    rename("model.per_layer_model_projection.weight", "layer_inputs.proj.weight"),
    rename("model.per_layer_projection_norm.weight", "layer_inputs.norm.weight"),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    head_dim = gguf.get("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        gguf.expect(key, head_dim)
    gguf.expect("rope.scaling.type", "none", "linear")
    fields = gguf.common("gemma4_text", theta=None)
    types = gguf.layer_types(6)
    heads, widths = fields["num_key_value_heads"], fields["intermediate_size"]
    heads = list(heads) if isinstance(heads, list) else [heads] * len(types)
    full = dict(head_dim=fields["head_dim"], num_key_value_heads=heads[-1])
    sliding = next((n for n, t in zip(heads, types, strict=True) if t != "full_attention"), heads[-1])
    if heads != [heads[-1] if t == "full_attention" else sliding for t in types]:
        raise ValueError(f"{gguf.arch}.attention.head_count_kv={heads} differs among full or among sliding layers")
    n_shared = gguf.get("attention.shared_kv_layers", 0)
    widths = list(widths) if isinstance(widths, list) else [widths] * len(types)
    double = n_shared > 0 and widths[-1] == 2 * widths[0]
    if widths != widths[:1] * (len(types) - n_shared) + [widths[0] * (1 + double)] * n_shared:
        raise ValueError(
            f"{gguf.arch}.feed_forward_length={widths} is not understood: only the last {n_shared} layers, which share "
            "keys and values, can differ, and only by having twice the width"
        )
    input_dim, n_expert = gguf.get("embedding_length_per_layer_input", 0), gguf.get("expert_count", 0)
    return fields | dict(
        head_dim=head_dim,
        num_key_value_heads=sliding,
        per_layer_config={str(i): full for i, t in enumerate(types) if t == "full_attention"},
        intermediate_size=widths[0],
        use_double_wide_mlp=double,
        num_kv_shared_layers=n_shared,
        layer_types=types,
        sliding_window=gguf.get("attention.sliding_window"),
        attention_bias=gguf.has("attn_q.bias"),
        attention_k_eq_v=any(_k_as_v(gguf, i) for i in range(len(types))),
        rope_parameters=gguf.rope_parameters(10000.0) | dict(full_attention=_gguf_rope(gguf, full["head_dim"])),
        enable_moe_block=n_expert > 0,
        num_experts=n_expert,
        top_k_experts=gguf.get("expert_used_count"),
        moe_intermediate_size=gguf.get("expert_feed_forward_length"),
        hidden_size_per_layer_input=input_dim,
        vocab_size_per_layer_input=gguf.shapes["per_layer_token_embd.weight"][0] if input_dim else None,
        final_logit_softcapping=gguf.get("final_logit_softcapping"),
    )  # fmt: skip


def _k_as_v(gguf: GGUFFields, i: int) -> bool:
    return f"blk.{i}.attn_k.weight" in gguf.shapes and f"blk.{i}.attn_v.weight" not in gguf.shapes


def _gguf_rope(gguf: GGUFFields, head_dim: int) -> dict[str, Any]:
    """The rope of full layers. Divisors state which pairs are rotated: 1, or so large that the angle is 0."""
    divisors = gguf.values.get("rope_freqs.weight") or []
    n_pairs = divisors.count(1.0)
    if 2 * len(divisors) != head_dim or any(d < 1e20 for d in divisors[n_pairs:]):
        raise ValueError(f"rope_freqs.weight must hold {head_dim // 2} numbers, 1 and then 1e30, but holds {divisors}")
    scaling = gguf.scaling() or {}
    return dict(
        rope_type="proportional",
        partial_rotary_factor=rotary_fraction(2 * n_pairs, head_dim),
        rope_theta=gguf.get("rope.freq_base", 10000.0),
        factor=scaling.get("factor"),
    )


_STORED, _EXPERTS = "blk.{i}.", "layers.{i}.mlp.experts."

FAMILY = Family(
    model_type="gemma4_text",
    architecture="Gemma4ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=(r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio)\.",),
    ignore_for=_unused_weights,
    gguf=GGUFSpec(
        arch="gemma4",
        from_gguf=from_gguf,
        rules=(
            rename(_STORED + "layer_output_scale.weight", _OURS + "layer_scalar"),
            rename(_STORED + "ffn_gate_inp.scale", _OURS + "mlp.router.input_scale"),
            rename(_STORED + "ffn_down_exps.scale", _OURS + "mlp.router.expert_scale"),
            rename(_STORED + "ffn_down_exps.weight", _EXPERTS + "down_proj"),
            Rule(
                _STORED + "ffn_gate_up_exps.weight", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1)
            ),
        ),
        reads_rope_freqs=True,
    ),
)
