"""Phi 1, 1.5 and 2: a parallel block with one LayerNorm, partial rope, biases everywhere, also in the head."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig
from litlm.families.base import Family, HFFields, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import Rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    norm = NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5)))
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.5)
    qk_norm = "head" if hf.take("qk_layernorm", False) else None
    sizes: dict[str, Any] = dict(intermediate_size=8192, bos_token_id=1, eos_token_id=2)
    values = llama_fields(
        hf, head_dim=None, activation="gelu_new", attention_bias=None, qk_norm=qk_norm, norm=norm, rope=rope, **sizes
    )
    return values | dict(
        block="parallel",
        shared_norm=True,
        attention=dataclasses.replace(values["attention"], bias=True, out_bias=True),
        mlp=dataclasses.replace(values["mlp"], kind="plain", bias=True),
        head_bias=True,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    fields = llama_to_hf(config, without="head_dim rms_norm_eps attention_bias mlp_bias")
    return (
        fields
        | hf_rope(config.rope, fraction=True)
        | dict(
            partial_rotary_factor=config.rope.fraction,
            layer_norm_eps=config.norm.eps,
            qk_layernorm=config.attention.qk_norm is not None,
        )
    )


_LAYER = "model.layers.{i}."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("phi", eps="layer_norm_eps", head_dim=None, fraction="partial_rotary_factor")
    return fields | dict(intermediate_size=gguf.shapes["blk.0.ffn_up.weight"][0])  # the metadata has four times n_embd


FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("model.embed_tokens.weight", "embed.weight"),
        rename(_LAYER + "input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        *(rename(_LAYER + f"self_attn.{x}_proj.{{p}}", f"layers.{{i}}.attn.{x}_proj.{{p}}") for x in "qkv"),
        *(rename(_LAYER + f"self_attn.{x}_layernorm.{{p}}", f"layers.{{i}}.attn.{x}_norm.{{p}}") for x in "qk"),
        rename(_LAYER + "self_attn.dense.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "mlp.fc1.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.fc2.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("model.final_layernorm.{p}", "norm.{p}"),
        Rule("lm_head.bias", ("head_bias",), when=lambda config: config.tie_embeddings),
        rename("lm_head.{p}", "lm_head.{p}"),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="phi2", from_gguf=from_gguf),
)
