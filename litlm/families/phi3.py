"""Phi 3, 3.5, 4 and 4-mini: Llama with fused q, k and v, fused gate and up, and LongRoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.config.layers import LongRopeScaling
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import QKV, Rule, fused_gate_up, fused_qkv, llama_rules_without

if TYPE_CHECKING:
    from litlm.config import Config

_ORIGINAL = "original_max_position_embeddings"


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        hf.expect(key, False, False)
    for key in ("full_attn_mod", "interpolate_factor"):  # Phi-4-mini's, unused
        hf.expect(key, 1, 1)
    hf.take(_ORIGINAL, None)
    if hf.data.get(_ORIGINAL) is None:  # transformers' default, which wins over the one in rope_parameters
        hf.data = dict(hf.data) | {_ORIGINAL: 4096}
    window = hf.take("sliding_window", None)
    rope = hf.rope(fraction_key="partial_rotary_factor")
    ids: dict[str, Any] = dict(bos_token_id=1, eos_token_id=32000, pad_token_id=32000)
    values = llama_fields(hf, head_dim=None, eps=1e-5, attention_bias=None, rope=rope, max_seq_len=4096, **ids)
    layer_types = ("full" if window is None else "sliding",) * values["n_layer"]
    return values | dict(sliding_window=window, layer_types=layer_types)


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    scaling = config.rope.scaling
    long = isinstance(scaling, LongRopeScaling)
    return llama_to_hf(config, without="head_dim attention_bias mlp_bias") | dict(
        original_max_position_embeddings=scaling.original_max_seq_len if long else config.max_seq_len,
        sliding_window=config.sliding_window,
    )


_LAYER = "model.layers.{i}."
_RULES = (
    *llama_rules_without("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    Rule(_LAYER + "self_attn.qkv_proj.{p}", QKV, **fused_qkv()),
    Rule(
        _LAYER + "mlp.gate_up_proj.{p}",
        ("layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"),
        **fused_gate_up(),
    ),
)
# Phi-4-multimodal's files have the layers inside adapters for images and speech.
_ADAPTED_RULES = tuple(
    replace(rule, theirs=rule.theirs.replace(".{p}", ".base_layer.{p}")) for rule in _RULES if "_proj" in rule.theirs
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("phi3", head_dim=None, fraction="partial_rotary_factor")
    original = gguf.get("rope.scaling.original_context_length", gguf.get("context_length"))
    return fields | {_ORIGINAL: original, "sliding_window": gguf.get("attention.sliding_window", 0) or None}


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *_ADAPTED_RULES),
    ignore=(r"\.rotary_emb\.inv_freq$", r"^model\.embed_tokens_extend\.", r"\.lora_[AB]\.(vision|speech)\."),
    gguf=GGUFSpec(arch="phi3", from_gguf=from_gguf),
)
