"""Phi 3, 3.5, 4 and 4-mini: Llama's layer with q, k and v in one tensor, gate and up in another, and LongRoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, LongRopeScaling, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, QKV, Rule, fused_gate_up, fused_qkv

if TYPE_CHECKING:
    from litlm.config import Config

_ORIGINAL = "original_max_position_embeddings"


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        hf.expect(key, False, False)
    for key in ("full_attn_mod", "interpolate_factor"):  # Phi-4-mini's, which no code reads
        hf.expect(key, 1, 1)
    hf.take(_ORIGINAL, None)
    if hf.data.get(_ORIGINAL) is None:  # transformers' default, which goes before the one in rope_parameters
        hf.data = dict(hf.data) | {_ORIGINAL: 4096}
    window = hf.take("sliding_window", None)
    common = hf.common(max_seq_len=4096, bos_token_id=1, eos_token_id=32000, pad_token_id=32000)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        sliding_window=window,
        layer_types=("full" if window is None else "sliding",) * common["n_layer"],
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(fraction_key="partial_rotary_factor"),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    scaling = config.rope.scaling
    long = isinstance(scaling, LongRopeScaling)
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            original_max_position_embeddings=scaling.original_max_seq_len if long else config.max_seq_len,
            num_key_value_heads=config.n_kv_head,
            sliding_window=config.sliding_window,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
        )
    )


_APART = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_LAYER = "model.layers.{i}."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("phi3", head_dim=None, fraction="partial_rotary_factor")
    original = gguf.get("rope.scaling.original_context_length", gguf.get("context_length"))
    return fields | {_ORIGINAL: original, "sliding_window": gguf.get("attention.sliding_window", 0) or None}


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *(rule for rule in LLAMA_RULES if not any(name in rule.theirs for name in _APART)),
        Rule(_LAYER + "self_attn.qkv_proj.{p}", QKV, **fused_qkv()),
        Rule(
            _LAYER + "mlp.gate_up_proj.{p}",
            ("layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"),
            **fused_gate_up(),
        ),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="phi3", from_gguf=from_gguf),
)
