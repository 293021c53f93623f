"""Granite with sliding layers and attention sinks. Each layer states the theta of its rope, 0 for no rope."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, RopeConfig
from litlm.families.base import HF_LAYER_TYPES, Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.granite import from_gguf as granite_from_gguf
from litlm.families.granite import from_hf as granite_from_hf
from litlm.families.granite import to_hf as granite_to_hf
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=8192, tie_embeddings=True, bos_token_id=100257, eos_token_id=100257)
    return (
        with_windows(hf, granite_from_hf(hf))
        | common
        | dict(
            n_kv_head=hf.take("num_key_value_heads", 4, null=0),
            norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        )
    )


def with_windows(hf: HFFields, values: dict[str, Any]) -> dict[str, Any]:
    """What the layers of these families have besides Granite's."""
    n_layer, rope = values["n_layer"], values["rope"]
    layer_types = hf.layer_types(["sliding" if i % 4 else "full" for i in range(n_layer)])
    window = hf.take("sliding_window", 128)
    thetas = hf.take("layer_rope_theta", [rope.theta] * n_layer)
    ropes: dict[str, RopeConfig | None] = {"full": rope, "sliding": None}
    for kind in ("full", "sliding"):
        own = {float(theta) for theta, k in zip(thetas, layer_types, strict=False) if theta and k == kind}
        if len(own) > 1:
            hf.problems.append(f"layer_rope_theta must be one number (or 0) for all {kind} layers, not {sorted(own)}")
        if own:
            ropes[kind] = dataclasses.replace(rope, theta=min(own))
    return values | dict(
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        attention=dataclasses.replace(values["attention"], sinks=True),
        rope=ropes["full"],
        sliding_rope=ropes["sliding"] if ropes["sliding"] != ropes["full"] else None,
        rope_layers=tuple(bool(theta) for theta in thetas),
    )


def hf_windows(config: Config) -> dict[str, Any]:
    layers = [config.layer(i) for i in range(config.n_layer)]
    return dict(
        sliding_window=config.sliding_window or config.max_seq_len,  # transformers wants one even if no layer slides
        layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        layer_rope_theta=[layer.rope.theta if layer.rope is not None else 0 for layer in layers],
    )


def to_hf(config: Config) -> dict[str, Any]:
    return granite_to_hf(config) | hf_windows(config)


SINKS = rename("model.layers.{i}.self_attn.sinks", "layers.{i}.attn.sinks")


def windows_from_gguf(gguf: GGUFFields, fields: dict[str, Any]) -> dict[str, Any]:
    turns = gguf.get("attention.rope_pattern", [True] * fields["num_hidden_layers"])
    return fields | dict(
        sliding_window=gguf.get("attention.sliding_window"),
        layer_types=gguf.layer_types(4),
        layer_rope_theta=[fields["rope_theta"] if turned else 0 for turned in turns],
    )


GGUF_SINKS = (rename("blk.{i}.attn_sinks.weight", "layers.{i}.attn.sinks"),)


FAMILY = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, SINKS),
    gguf=GGUFSpec(
        arch="granite_swa",
        from_gguf=lambda gguf: windows_from_gguf(gguf, granite_from_gguf(gguf, "granite_swa")),
        matches=lambda gguf: not gguf.get("expert_count"),
        restore=UNPERMUTE_QK,
        rules=GGUF_SINKS,
        table_arch="granite",
    ),
)
