"""DeepSeek-V3.2: DeepSeek-V3 with an indexer in each layer, which chooses the tokens that are attended to.

litlm has no indexer. Up to `index_topk` tokens it chooses all of them, so these models are exact there, and that is
their context here. The multi-token-prediction layer after the last one (61) is not read.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import IndexConfig
from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import (
    GGUF_MERGED,
    LATENT_RULES,
    MOE_RULES,
    from_gguf,
    hf_first_dense,
    latent_fields,
    latent_to_hf,
    moe_to_hf,
    sigmoid_moe_from_hf,
)
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config

_INDEXER, _OURS = "model.layers.{i}.self_attn.indexer.", "layers.{i}.attn.indexer."
RULES = (
    *LLAMA_RULES,
    *LATENT_RULES,
    *MOE_RULES,
    rename(_INDEXER + "wq_b.weight", _OURS + "q_proj"),
    rename(_INDEXER + "wk.weight", _OURS + "k_proj"),
    rename(_INDEXER + "k_norm.weight", _OURS + "k_norm_weight"),
    rename(_INDEXER + "k_norm.bias", _OURS + "k_norm_bias"),
    rename(_INDEXER + "weights_proj.weight", _OURS + "head_proj"),
)


def indexed_fields(hf: HFFields, *, index_n_heads: int, n_dense: int = 3, **sizes: Any) -> dict[str, Any]:
    """The fields of a config.json with an indexer. Arguments: transformers' defaults, by its names; `eps` and those of
    `HFFields.common` too."""
    experts = {key: sizes.pop(key) for key in ("n_group", "topk_group")}
    values = latent_fields(hf, interleaved=True, bos_token_id=0, eos_token_id=1, **sizes)
    hf.accept_old_names(num_experts="n_routed_experts")
    if set(hf.take("layer_types", [])) - {"indexed_attention", "deepseek_sparse_attention"}:
        hf.problems.append(f"layer_types={hf.data['layer_types']!r} is not supported, only 'indexed_attention'")
    hf.expect("mlp_bias", False, False)
    hf.expect("rope_interleave", True, True)
    experts |= dict(n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, routed_scaling_factor=2.5)
    moe = sigmoid_moe_from_hf(hf, **experts)
    index = IndexConfig(
        n_head=hf.take("index_n_heads", index_n_heads),
        head_dim=hf.take("index_head_dim", 128),
        top_k=hf.take("index_topk", 2048),
        max_seq_len=values["max_seq_len"],
    )
    attention = values["attention"]
    latent = dataclasses.replace(attention.latent, index=index)
    return values | dict(
        max_seq_len=min(index.max_seq_len, index.top_k),
        attention=dataclasses.replace(attention, latent=latent),
        moe=moe,
        moe_layers=sparse_layers(hf, values["n_layer"], hf.take("first_k_dense_replace", n_dense)),
    )


def indexed_to_hf(config: Config) -> dict[str, Any]:
    """The inverse of `indexed_fields`."""
    assert config.attention.latent is not None
    index = config.attention.latent.index
    assert index is not None
    fields = latent_to_hf(config, without="mlp_bias rope_interleave") | moe_to_hf(config.moe)
    return fields | dict(
        max_position_embeddings=index.max_seq_len,
        index_n_heads=index.n_head,
        index_head_dim=index.head_dim,
        index_topk=index.top_k,
        mlp_layer_types=hf_sparse_layers(config),
        first_k_dense_replace=hf_first_dense(config),
    )


def from_hf(hf: HFFields) -> dict[str, Any]:
    return indexed_fields(hf, index_n_heads=64, max_seq_len=163840, n_group=8, topk_group=4)


def indexed_from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """The metadata of a GGUF file with an indexer."""
    return from_gguf(gguf) | dict(
        model_type=model_type,
        index_n_heads=gguf.get("attention.indexer.head_count"),
        index_head_dim=gguf.get("attention.indexer.key_length"),
        index_topk=gguf.get("attention.indexer.top_k"),
    )


FAMILY = Family(
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    from_hf=from_hf,
    to_hf=indexed_to_hf,
    rules=RULES,
    ignore=(r"^model\.layers\.61\.", r"\.rotary_emb\.inv_freq$"),
    gguf=GGUFSpec(
        arch="deepseek32",
        from_gguf=lambda gguf: indexed_from_gguf(gguf, "deepseek_v32"),
        merged=GGUF_MERGED,
        table_arch="glm-dsa",
    ),
)
