"""GPT-2 (DistilGPT2, DialoGPT, Cerebras-GPT): learned positions; matrices are stored transposed, and q, k and v fused.

GPT-2's own files name their tensors without the prefix `transformer.`; both forms are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import QKV, Rule, fused_qkv, rename, transposed

if TYPE_CHECKING:
    from litlm.config import Config

# Dropout, heads of other tasks, and n_ctx, a copy of n_positions.
UNUSED = """
    _num_labels attn_pdrop resid_dropout embed_dropout n_ctx gradient_checkpointing summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
"""

# Shared with the other families of these names.
NAMES = {
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
    "max_seq_len": "n_positions",
    "intermediate_size": "n_inner",
}


def common(hf: HFFields, activation: str = "gelu_new", **defaults: Any) -> dict[str, Any]:
    """The fields that GPT-2 and its relatives share."""
    hf.skip(UNUSED)
    return hf.common(NAMES, intermediate_size=0, bos_token_id=50256, eos_token_id=50256, **defaults) | dict(
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_epsilon", 1e-5))),
        mlp=MLPConfig(kind="plain", activation=hf.activation("activation_function", activation), bias=True),
    )


def hf_fields(config: Config) -> dict[str, Any]:
    """The inverse of `common`."""
    inner = config.intermediate_size if config.intermediate_size != 4 * config.n_embd else None
    return hf_common(config, NAMES) | dict(
        n_inner=inner,
        layer_norm_epsilon=config.norm.eps,
        activation_function=HF_ACTIVATIONS[config.mlp.activation],
    )


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("scale_attn_by_inverse_layer_idx", False, False)
    hf.expect("add_cross_attention", False, False)
    hf.skip("reorder_and_upcast_attn")  # the same scores in fp32
    return common(hf, max_seq_len=1024, tie_embeddings=True) | dict(
        attention=AttentionConfig(bias=True, out_bias=True, scale=None if hf.take("scale_attn_weights", True) else 1.0),
        rope=None,
        learned_positions=True,
    )


def to_hf(config: Config) -> dict[str, Any]:
    return hf_fields(config) | dict(scale_attn_weights=config.attention.scale is None)


_QKV_WEIGHT, _QKV_BIAS = (tuple(name.format(i="{i}", p=p) for name in QKV) for p in ("weight", "bias"))


def _rules(prefix: str) -> tuple[Rule, ...]:
    layer, ours = prefix + "h.{i}.", "layers.{i}."
    return (
        rename(prefix + "wte.weight", "embed.weight"),
        rename(prefix + "wpe.weight", "position_embed.weight"),
        rename(layer + "ln_1.{p}", ours + "attn_norm.{p}"),
        transposed(Rule(layer + "attn.c_attn.weight", _QKV_WEIGHT, **fused_qkv())),
        Rule(layer + "attn.c_attn.bias", _QKV_BIAS, **fused_qkv()),
        transposed(rename(layer + "attn.c_proj.weight", ours + "attn.o_proj.weight")),
        rename(layer + "attn.c_proj.bias", ours + "attn.o_proj.bias"),
        rename(layer + "ln_2.{p}", ours + "mlp_norm.{p}"),
        transposed(rename(layer + "mlp.c_fc.weight", ours + "mlp.up_proj.weight")),
        rename(layer + "mlp.c_fc.bias", ours + "mlp.up_proj.bias"),
        transposed(rename(layer + "mlp.c_proj.weight", ours + "mlp.down_proj.weight")),
        rename(layer + "mlp.c_proj.bias", ours + "mlp.down_proj.bias"),
        rename(prefix + "ln_f.{p}", "norm.{p}"),
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf_fields(gguf, "gpt2")


def gguf_fields(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """The metadata that GPT-2 and its relatives share."""
    names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    }
    eps = "layer_norm_epsilon"
    fields = gguf.common(model_type, eps=eps, kv_heads=None, head_dim=None, theta=None, names=names)
    return fields | dict(n_inner=gguf.shapes["blk.0.ffn_up.weight"][0])  # the metadata has four times n_embd


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_rules("transformer."), *_rules(""), rename("lm_head.weight", "lm_head.weight")),
    ignore=(r"\.attn\.(bias|masked_bias)$",),
    gguf=GGUFSpec(
        arch="gpt2",
        from_gguf=from_gguf,
        restore={
            rule.theirs: lambda t, c: t.T
            for rule in _rules("transformer.")
            if rule.theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        },
    ),
)
