"""Falcon, 7B (one KV head, one norm), 40B to 180B and 11B (`new_decoder_architecture`), and the sequential old block.

All three fuse q, k and v by group of heads. ALiBi (falcon-rw) is not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import QKV, Rule, fused_qkv, qkv_by_group, rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"intermediate_size": "ffn_hidden_size"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("alibi", False, False)
    hf.expect("apply_residual_connection_post_layernorm", False, False)
    hf.skip("ff_factor")  # ffn_hidden_size states it
    new, parallel = hf.take("new_decoder_architecture", False), hf.take("parallel_attn", True)
    norms = hf.take("num_ln_in_parallel_attn", 2 if new else 1)
    heads, bias = hf.take("num_kv_heads", 0), hf.take("bias", False)
    one = hf.take("multi_query", True) and not new
    if new and not parallel:
        hf.problems.append("parallel_attn=False is not supported with new_decoder_architecture")
    if norms not in (1, 2) or (norms == 2 and not new):
        hf.problems.append(f"num_ln_in_parallel_attn={norms!r} is not supported here, only 1 (or 2 in the new decoder)")
    common = hf.common(_NAMES, intermediate_size=0, tie_embeddings=True, bos_token_id=11, eos_token_id=11)
    return common | dict(
        n_kv_head=1 if one else heads if new else common["n_head"],
        block="parallel" if parallel else "pre",
        shared_norm=parallel and norms == 1,
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_epsilon", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=hf.activation("activation", "gelu"), bias=bias),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    # The old decoder has one KV head or n_head of them; two norms in a parallel block are the new decoder's.
    parallel = config.block == "parallel"
    new = parallel and (not config.shared_norm or config.n_kv_head not in (1, config.n_head))
    return (
        hf_common(config, _NAMES)
        | hf_rope(config.rope)
        | dict(
            new_decoder_architecture=new,
            parallel_attn=parallel,
            num_ln_in_parallel_attn=(1 if config.shared_norm else 2) if new else None,
            multi_query=config.n_kv_head == 1 or new,  # the new decoder's files state it too
            num_kv_heads=config.n_kv_head if new else config.n_head,  # the old decoder does not read it
            layer_norm_epsilon=config.norm.eps,
            activation=HF_ACTIVATIONS[config.mlp.activation],
            bias=config.attention.bias,
            alibi=False,
        )
    )


def _two_norms(config: Config) -> bool:
    return config.block == "parallel" and not config.shared_norm


_LAYER = "transformer.h.{i}."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("falcon", eps="layer_norm_epsilon", kv_heads="num_kv_heads", head_dim=None)
    kv_heads, two_norms = fields["num_kv_heads"], gguf.has("attn_norm_2.weight")
    del fields["intermediate_size"]  # the metadata has four times n_embd
    return fields | dict(
        ffn_hidden_size=gguf.shapes["blk.0.ffn_up.weight"][0],
        new_decoder_architecture=two_norms or kv_heads not in (1, fields["num_attention_heads"]),
        num_ln_in_parallel_attn=2 if two_norms else 1,
        multi_query=kv_heads == 1,
        bias=gguf.has("attn_qkv.bias"),
    )


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.word_embeddings.weight", "embed.weight"),
        Rule(_LAYER + "ln_attn.{p}", ("layers.{i}.attn_norm.{p}",), when=_two_norms),
        Rule(_LAYER + "ln_mlp.{p}", ("layers.{i}.mlp_norm.{p}",), when=_two_norms),
        rename(_LAYER + "input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        rename(_LAYER + "post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        Rule(_LAYER + "self_attention.query_key_value.{p}", QKV, **qkv_by_group()),
        rename(_LAYER + "self_attention.dense.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "mlp.dense_h_to_4h.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.dense_4h_to_h.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("transformer.ln_f.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$", r"\.maybe_rotary\.inv_freq$"),
    gguf=GGUFSpec(arch="falcon", from_gguf=from_gguf, rules=(Rule("blk.{i}.attn_qkv.{p}", QKV, **fused_qkv()),)),
)
