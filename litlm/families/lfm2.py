"""LFM2 350M to 2.6B: short convolutions, and attention in every third layer or so.

`intermediate_size` is not the MLP's hidden size: that is two thirds of it, rounded up (`block_auto_adjust_ff_dim`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, ShortConvConfig
from litlm.families.base import Family, HFFields, hf_layer_types
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import Rule, conv_rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def common(hf: HFFields, **defaults: Any) -> dict[str, Any]:
    """What LFM2 and LFM2-MoE share. defaults: see `llama_fields`."""
    norm = NormConfig(eps=float(hf.take("norm_eps", 1e-5)))
    hf.skip("conv_dim conv_dim_out block_dim block_use_xavier_init block_use_swiglu block_norm_eps use_pos_enc theta")
    hf.skip("block_mlp_init_scale block_out_init_scale conv_use_xavier_init num_heads attn_logit_softcapping")
    tied = hf.take("tie_embedding", hf.take("tie_word_embeddings", True))  # the older name wins, as in transformers
    values = llama_fields(
        hf, n_kv_head=8, head_dim=None, attention_bias=None, qk_norm="head", norm=norm, rope=hf.rope(theta=1e6),
        vocab_size=65536, max_seq_len=128000, bos_token_id=1, eos_token_id=2, pad_token_id=0, **defaults,
    )  # fmt: skip
    attending = hf.take("full_attn_idxs", None)
    types = ["full" if attending is None or i in attending else "recurrent" for i in range(values["n_layer"])]
    types = hf.layer_types(types, "conv", ("full_attention",))
    conv = ShortConvConfig(kernel_size=hf.size("conv_L_cache", 3, least=2), bias=hf.take("conv_bias", False))
    return values | dict(
        tie_embeddings=tied,
        layer_types=types,
        recurrent=conv if "recurrent" in types else None,
        rope_layers=tuple(t != "recurrent" for t in types),
    )


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = common(hf, n_embd=2560, n_layer=32, n_head=32, intermediate_size=12288)
    width = hf.take("block_ff_dim", values["intermediate_size"])
    factor, multiple = hf.take("block_ffn_dim_multiplier", 1.0), hf.size("block_multiple_of", 256)
    if hf.take("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        if factor is not None:
            width = -(-int(factor * width) // multiple) * multiple
    return values | dict(intermediate_size=width)


def hf_fields(config: Config) -> dict[str, Any]:
    """The inverse of `common`."""
    fields = llama_to_hf(config, without="head_dim rms_norm_eps hidden_act attention_bias mlp_bias")
    return fields | hf_layer_types(config, "conv") | hf_conv(config, 3) | dict(norm_eps=config.norm.eps)


def hf_conv(config: Config, kernel_size: int) -> dict[str, Any]:
    """The fields of convolutions. kernel_size: transformers' default, for models without any."""
    mixer = config.recurrent
    assert mixer is None or isinstance(mixer, ShortConvConfig)
    if mixer is None:
        return dict(conv_L_cache=kernel_size, conv_bias=False)
    return dict(conv_L_cache=mixer.kernel_size, conv_bias=mixer.bias)


def to_hf(config: Config) -> dict[str, Any]:
    return hf_fields(config) | dict(block_auto_adjust_ff_dim=False)


def common_from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """What both say in GGUF files, where layers with short convolutions have no KV heads."""
    fields = gguf.common(model_type, head_dim=None, names=dict(rms_norm_eps="norm_eps"))
    heads = gguf.get("attention.head_count_kv")
    heads = heads if isinstance(heads, list) else [heads] * fields["num_hidden_layers"]
    attending = {n for n in heads if n}
    if len(attending) > 1:
        raise ValueError(f"{gguf.arch}.attention.head_count_kv={heads} differs among layers that attend")
    return fields | dict(
        num_key_value_heads=next(iter(attending), fields["num_attention_heads"]),
        layer_types=["full_attention" if n else "conv" for n in heads],
        conv_L_cache=gguf.get("shortconv.l_cache"),
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return common_from_gguf(gguf, "lfm2") | dict(block_auto_adjust_ff_dim=False)


_LAYER, _OURS = "model.layers.{i}.", "layers.{i}."
RULES: tuple[Rule, ...] = (
    rename("model.embed_tokens.weight", "embed.weight"),
    rename(_LAYER + "operator_norm.weight", _OURS + "attn_norm.weight"),
    *(rename(_LAYER + f"self_attn.{x}_proj.weight", _OURS + f"attn.{x}_proj.weight") for x in "qkv"),
    *(rename(_LAYER + f"self_attn.{x}_layernorm.weight", _OURS + f"attn.{x}_norm.weight") for x in "qk"),
    rename(_LAYER + "self_attn.out_proj.weight", _OURS + "attn.o_proj.weight"),
    rename(_LAYER + "conv.in_proj.{p}", _OURS + "attn.in_proj.{p}"),
    conv_rule(_LAYER + "conv.conv.weight", _OURS + "attn.conv.weight"),
    rename(_LAYER + "conv.conv.bias", _OURS + "attn.conv.bias"),
    rename(_LAYER + "conv.out_proj.{p}", _OURS + "attn.out_proj.{p}"),
    rename(_LAYER + "ffn_norm.weight", _OURS + "mlp_norm.weight"),
    rename(_LAYER + "feed_forward.w1.weight", _OURS + "mlp.gate_proj.weight"),
    rename(_LAYER + "feed_forward.w3.weight", _OURS + "mlp.up_proj.weight"),
    rename(_LAYER + "feed_forward.w2.weight", _OURS + "mlp.down_proj.weight"),
    rename("model.embedding_norm.weight", "norm.weight"),
    rename("lm_head.weight", "lm_head.weight"),
)

FAMILY = Family(
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(arch="lfm2", from_gguf=from_gguf),
)
