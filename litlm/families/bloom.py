"""BLOOM and BLOOMZ: ALiBi instead of positions, a norm on the embeddings; q, k and v fused by head.

The published files name their tensors without the prefix `transformer.`; both forms are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields, hf_common
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import QKV, Rule, fused_qkv, qkv_by_group, rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"n_layer": "n_layer", "n_head": "n_head", "max_seq_len": "seq_length"}
_OLD_NAMES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

# Of Megatron, which trained it.
_UNUSED = """
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv
    slow_but_exact unk_token_id
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.data = {_OLD_NAMES.get(key, key): value for key, value in hf.data.items()}
    hf.expect("apply_residual_connection_post_layernorm", False, False)
    hf.skip(_UNUSED)
    return hf.common(_NAMES, intermediate_size=0, tie_embeddings=True, bos_token_id=1, eos_token_id=2) | dict(
        embed_norm=True,
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_epsilon", 1e-5))),
        attention=AttentionConfig(bias=True, out_bias=True, alibi=True),
        mlp=MLPConfig(kind="plain", activation="gelu_tanh", bias=True),
        rope=None,
    )


def to_hf(config: Config) -> dict[str, Any]:
    common = hf_common(config, _NAMES)
    del common["intermediate_size"]  # always four times hidden_size
    return common | dict(layer_norm_epsilon=config.norm.eps)


def _rules(prefix: str) -> tuple[Rule, ...]:
    layer = prefix + "h.{i}."
    return (
        rename(prefix + "word_embeddings.weight", "embed.weight"),
        rename(prefix + "word_embeddings_layernorm.{p}", "embed_norm.{p}"),
        rename(layer + "input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        Rule(layer + "self_attention.query_key_value.{p}", QKV, **qkv_by_group()),
        rename(layer + "self_attention.dense.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(layer + "post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(layer + "mlp.dense_h_to_4h.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(layer + "mlp.dense_4h_to_h.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename(prefix + "ln_f.{p}", "norm.{p}"),
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    names = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "max_position_embeddings": "seq_length"}
    eps = "layer_norm_epsilon"
    fields = gguf.common("bloom", eps=eps, kv_heads=None, head_dim=None, theta=None, names=names)
    del fields["intermediate_size"]  # always four times hidden_size
    return fields


FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_rules("transformer."), *_rules(""), rename("lm_head.weight", "lm_head.weight")),
    gguf=GGUFSpec(arch="bloom", from_gguf=from_gguf, rules=(Rule("blk.{i}.attn_qkv.{p}", QKV, **fused_qkv()),)),
)
