"""MPT 7B and 30B: ALiBi instead of positions, LayerNorm without bias, no other biases, q, k and v fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields, hf_common
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import QKV, Rule, fused_qkv, rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"n_embd": "d_model", "n_head": "n_heads", "n_layer": "n_layers", "max_seq_len": "max_seq_len"}

# Of training, and of learned positions, unused with ALiBi.
_UNUSED = """
    emb_pdrop embedding_fraction init_config init_device learned_pos_emb norm_type tokenizer_name verbose
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    attn = HFFields(hf.take("attn_config", {}))
    for key, value in (
        ("alibi", True),
        ("alibi_bias_max", 8),
        ("attn_type", "multihead_attention"),
        ("prefix_lm", False),
        ("qk_ln", False),
        ("attn_uses_sequence_id", False),
    ):
        attn.expect(key, value, value)
    for key in ("attn_impl", "attn_pdrop", "dtype", "torch_dtype"):
        attn.take(key, None)
    clip, scale = attn.take("clip_qkv", None), attn.take("softmax_scale", None)
    attn.problems += [f"{key}={value!r} is not understood" for key, value in attn.unknown().items()]
    hf.problems += [f"attn_config.{problem}" for problem in attn.problems]

    hf.expect("expansion_ratio", 4, 4)
    hf.expect("no_bias", True, True)
    hf.expect("logit_scale", None)
    hf.skip(_UNUSED)
    return hf.common(_NAMES, intermediate_size=0, tie_embeddings=True) | dict(
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_epsilon", 1e-5)), bias=False),
        attention=AttentionConfig(alibi=True, clip=clip, scale=scale),
        mlp=MLPConfig(kind="plain", activation="gelu"),
        rope=None,
    )


def to_hf(config: Config) -> dict[str, Any]:
    common = hf_common(config, _NAMES)
    del common["intermediate_size"]  # always four times d_model
    return common | dict(
        attn_config=dict(
            alibi=True, clip_qkv=config.attention.clip, softmax_scale=config.attention.scale, dtype=config.dtype
        ),
        layer_norm_epsilon=config.norm.eps,
        use_cache=False,  # the default of its config class
    )


_LAYER = "transformer.blocks.{i}."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("attention.max_alibi_bias", 8.0)
    eps = "layer_norm_epsilon"
    names = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    names |= {"max_position_embeddings": "max_seq_len"}
    fields = gguf.common("mpt", eps=eps, kv_heads=None, head_dim=None, theta=None, names=names)
    del fields["intermediate_size"]  # always four times d_model
    return fields | dict(attn_config=dict(alibi=True, clip_qkv=gguf.get("attention.clamp_kqv")))


FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.wte.weight", "embed.weight"),
        rename(_LAYER + "norm_1.{p}", "layers.{i}.attn_norm.{p}"),
        Rule(_LAYER + "attn.Wqkv.{p}", QKV, **fused_qkv()),
        rename(_LAYER + "attn.out_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "norm_2.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "ffn.up_proj.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "ffn.down_proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("transformer.norm_f.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    gguf=GGUFSpec(arch="mpt", from_gguf=from_gguf),
)
