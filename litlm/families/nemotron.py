"""Nemotron-4 and Minitron: layer norms stored as their difference from 1, plain MLP with squared ReLU, partial rope."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig
from litlm.families.base import Family, HFFields, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, Rule

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.5)
    for key in ("rope_percent", "rope_percentage"):  # NeMo's names for the same fraction
        hf.expect(key, rope.fraction, rope.fraction)
    norm = NormConfig(kind="layer", eps=float(hf.take("norm_eps", 1e-5)), offset=True)
    head_dim = hf.take("kv_channels", 0)  # NeMo's name, which the first files have
    ids: dict[str, Any] = dict(init_std=0.0134, bos_token_id=2, eos_token_id=3)
    values = llama_fields(
        hf, head_dim=head_dim, activation="relu2", mlp_bias=False, norm=norm, rope=rope, max_seq_len=4096, **ids
    )
    return values | dict(mlp=dataclasses.replace(values["mlp"], kind="plain"))


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    fields = llama_to_hf(config, without="rms_norm_eps") | hf_rope(config.rope, fraction=True)
    return fields | dict(partial_rotary_factor=config.rope.fraction, norm_eps=config.norm.eps)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("attention.layer_norm_rms_epsilon")  # the same number
    return gguf.common("nemotron", eps="norm_eps", fraction="partial_rotary_factor") | dict(
        attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias")
    )


FAMILY = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="nemotron",
        from_gguf=from_gguf,
        rules=tuple(
            Rule(f"{theirs}.weight", (f"{ours}.weight",), split=lambda t, c: [t - 1])
            for theirs, ours in (
                ("blk.{i}.attn_norm", "layers.{i}.attn_norm"),
                ("blk.{i}.ffn_norm", "layers.{i}.mlp_norm"),
                ("output_norm", "norm"),
            )
        ),
    ),
)
