"""OPT (Galactica): GPT-2's layer with ReLU, learned positions after two unused rows.

The 350M model (norms after attention and MLP, smaller embeddings) is not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common
from litlm.families.weights import rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"intermediate_size": "ffn_dim"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key, value in (
        ("do_layer_norm_before", True),
        ("_remove_final_layer_norm", False),
        ("scale_embeddings", False),
        ("learned_embeddings", True),
    ):
        hf.expect(key, value, value)
    hf.skip("dropout activation_dropout layerdrop")
    bias, affine = hf.take("enable_bias", True), hf.take("layer_norm_elementwise_affine", True)
    common = hf.common(
        _NAMES, intermediate_size=3072, tie_embeddings=True, bos_token_id=2, eos_token_id=2, pad_token_id=1
    )
    hf.expect("word_embed_proj_dim", common["n_embd"], common["n_embd"])
    return common | dict(
        norm=NormConfig(kind="layer", eps=1e-5, weight=affine, bias=affine),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=hf.activation("activation_function", "relu"), bias=bias),
        rope=None,
        learned_positions=True,
        position_offset=2,
        init_std=float(hf.take("init_std", 0.02)),
    )


def to_hf(config: Config) -> dict[str, Any]:
    common = hf_common(config, _NAMES)
    del common["initializer_range"]
    return common | dict(
        init_std=config.init_std,
        word_embed_proj_dim=config.n_embd,
        enable_bias=config.attention.bias,
        layer_norm_elementwise_affine=config.norm.weight,
        activation_function=HF_ACTIVATIONS[config.mlp.activation],
    )


_LAYER = "model.decoder.layers.{i}."

FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("model.decoder.embed_tokens.weight", "embed.weight"),
        rename("model.decoder.embed_positions.weight", "position_embed.weight"),
        rename(_LAYER + "self_attn_layer_norm.{p}", "layers.{i}.attn_norm.{p}"),
        *(rename(_LAYER + f"self_attn.{x}_proj.{{p}}", f"layers.{{i}}.attn.{x}_proj.{{p}}") for x in "qkv"),
        rename(_LAYER + "self_attn.out_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "final_layer_norm.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "fc1.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "fc2.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("model.decoder.final_layer_norm.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
)
