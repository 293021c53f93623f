"""Granite with sliding layers and attention sinks. The files state each layer's rope theta, 0 for no rope."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import RopeConfig
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.granite import from_gguf as granite_from_gguf
from litlm.families.granite import granite_fields
from litlm.families.granite import to_hf as granite_to_hf
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    defaults: dict[str, Any] = dict(max_seq_len=8192, tie_embeddings=True, bos_token_id=100257, eos_token_id=100257)
    return with_sliding_layers(hf, granite_fields(hf, n_kv_head=4, eps=1e-5, **defaults))


def with_sliding_layers(hf: HFFields, values: dict[str, Any]) -> dict[str, Any]:
    """Granite's values with the sliding layers, ropes and sinks that the SWA families add."""
    n_layer, rope = values["n_layer"], values["rope"]
    sliding = hf.sliding(hf.take("sliding_window", 128), ["sliding" if i % 4 else "full" for i in range(n_layer)])
    thetas = hf.take("layer_rope_theta", [rope.theta] * n_layer)
    ropes: dict[str, RopeConfig | None] = {"full": rope, "sliding": None}
    for layer_type in ("full", "sliding"):
        stated = zip(thetas, sliding["layer_types"], strict=False)
        found = {float(theta) for theta, its_type in stated if theta and its_type == layer_type}
        if len(found) > 1:
            hf.problems.append(
                f"layer_rope_theta must be one number (or 0) for all {layer_type} layers, not {sorted(found)}"
            )
        if found:
            ropes[layer_type] = dataclasses.replace(rope, theta=min(found))
    return values | sliding | dict(
        attention=dataclasses.replace(values["attention"], sinks=True),
        rope=ropes["full"],
        sliding_rope=ropes["sliding"] if ropes["sliding"] != ropes["full"] else None,
        rope_layers=tuple(bool(theta) for theta in thetas),
    )  # fmt: skip


def hf_sliding_layers(config: Config) -> dict[str, Any]:
    """The inverse of `with_sliding_layers`."""
    layers = [config.layer(i) for i in range(config.n_layer)]
    thetas = [layer.rope.theta if layer.rope is not None else 0 for layer in layers]
    return hf_sliding(config, required=True) | dict(layer_rope_theta=thetas)


def to_hf(config: Config) -> dict[str, Any]:
    return granite_to_hf(config) | hf_sliding_layers(config)


SINKS = rename("model.layers.{i}.self_attn.sinks", "layers.{i}.attn.sinks")


def with_gguf_sliding_layers(gguf: GGUFFields, fields: dict[str, Any]) -> dict[str, Any]:
    """`with_sliding_layers`, of GGUF metadata."""
    has_rope = gguf.get("attention.rope_pattern", [True] * fields["num_hidden_layers"])
    return fields | dict(
        sliding_window=gguf.get("attention.sliding_window"),
        layer_types=gguf.layer_types(4),
        layer_rope_theta=[fields["rope_theta"] if has else 0 for has in has_rope],
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
        from_gguf=lambda gguf: with_gguf_sliding_layers(gguf, granite_from_gguf(gguf, "granite_swa")),
        matches=lambda gguf: not gguf.get("expert_count"),
        restore=UNPERMUTE_QK,
        rules=GGUF_SINKS,
        table_arch="granite",
    ),
)
