"""LFM3-1.7B: LFM2 with norms on both sides, sliding layers, and a gate for each head of attention.

Files call the gate `gate_proj`, transformers' module is `g_proj`. Half of the pairs of full layers are not rotated.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GateConfig, NormConfig, RopeConfig, ShortConvConfig
from litlm.families import lfm2
from litlm.families.base import Family, HFFields, hf_layer_types
from litlm.families.gemma4_text import hf_proportional_rope, proportional_rope
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config

_ROPES: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.accept_old_names(rms_norm_eps="norm_eps")
    norm = NormConfig(eps=float(hf.take("norm_eps", 1e-5)))
    rope, sliding_rope = _ropes(hf)
    values = llama_fields(
        hf, n_kv_head=4, head_dim=128, qk_norm="head", norm=norm, rope=rope, vocab_size=128000, n_embd=2048,
        n_layer=24, n_head=16, intermediate_size=7680, max_seq_len=128000, tie_embeddings=True, bos_token_id=124894,
        eos_token_id=124900, pad_token_id=124893,
    )  # fmt: skip
    kinds = {2: "full", 0: "sliding"}
    every = [kinds.get(i % 4, "recurrent") if i else "recurrent" for i in range(values["n_layer"])]
    types = hf.layer_types(every, "conv", ("full_attention", "sliding_attention"))
    conv = ShortConvConfig(kernel_size=hf.size("conv_L_cache", 7, least=2), bias=hf.take("conv_bias", False))
    gate = GateConfig(over="head") if hf.take("use_attention_gate", True) else None
    return values | dict(
        attention=dataclasses.replace(values["attention"], gate=gate),
        block="sandwich" if hf.take("use_sandwich_norm", True) else "pre",
        layer_types=types,
        recurrent=conv if "recurrent" in types else None,
        sliding_window=hf.take("sliding_window", 256, null=None),
        sliding_rope=sliding_rope,
        rope_layers=tuple(t != "recurrent" for t in types),
    )


def _ropes(hf: HFFields) -> tuple[RopeConfig, RopeConfig | None]:
    """The ropes of full and of sliding layers; None: the same."""
    stated = dict(hf.take("rope_parameters", None) or _ROPES)
    if lacking := _ROPES.keys() - stated.keys():
        hf.problems.append(f"rope_parameters={stated} must have an entry for {' and one for '.join(sorted(lacking))}")
    rope, sliding_rope = (proportional_rope(hf, {"rope_theta": 1e6} | dict(stated.get(kind) or {})) for kind in _ROPES)
    return rope, None if sliding_rope == rope else sliding_rope


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    ropes = dict(full_attention=config.rope, sliding_attention=config.sliding_rope or config.rope)
    return (
        llama_to_hf(config, without="rms_norm_eps rope_theta rope_scaling hidden_act mlp_bias")
        | hf_layer_types(config, "conv")
        | lfm2.hf_conv(config, 7)
        | dict(
            norm_eps=config.norm.eps,
            rope_parameters={kind: hf_proportional_rope(rope) for kind, rope in ropes.items()},
            sliding_window=config.sliding_window,
            use_attention_gate=config.attention.gate is not None,
            use_sandwich_norm=config.block == "sandwich",
        )
    )


_LAYER, _OURS = "model.layers.{i}.", "layers.{i}."
_RULES = (
    *(rule for rule in lfm2.RULES if ".self_attn." not in rule.theirs),
    *(rule for rule in LLAMA_RULES if ".self_attn." in rule.theirs),
    *QK_NORM_RULES,
    rename(_LAYER + "self_attn.gate_proj.weight", _OURS + "attn.gate_proj.weight"),
    rename(_LAYER + "post_operator_norm.weight", _OURS + "post_attn_norm.weight"),
    rename(_LAYER + "post_ffn_norm.weight", _OURS + "post_mlp_norm.weight"),
)

FAMILY = Family(
    model_type="lfm3",
    architecture="Lfm3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(_RULES, {"self_attn.gate_proj": "self_attn.g_proj"}),
)
