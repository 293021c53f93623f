"""Sarvam 30B: GLM-4.5's layers with rope on whole heads, and q, k and v in one tensor. transformers runs it as that."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import MOE_RULES, first_dense, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, QKV, Rule, fused_qkv, llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config

OLD_NAMES = dict(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.accept_old_names(**OLD_NAMES, use_qkv_bias="attention_bias")
    hf.expect("use_bias", False, False)
    hf.expect("score_function", "sigmoid", "sigmoid")
    hf.skip("embedding_dropout output_dropout router_dtype moe_router_enable_expert_bias")
    rope = hf.rope(theta=8000000.0, fraction_key="partial_rotary_factor")
    qk_norm = "head" if hf.take("use_qk_norm", True) else None
    ids: dict[str, Any] = dict(eos_token_id=1, pad_token_id=0, init_std=0.006)
    values = llama_fields(hf, n_kv_head=4, head_dim=64, qk_norm=qk_norm, rope=rope, max_seq_len=131072, **ids)
    moe = sigmoid_moe_from_hf(
        hf, n_routed_experts=128, num_experts_per_tok=6, moe_intermediate_size=1024, routed_scaling_factor=2.5
    )
    hf.expect("moe_shared_expert_intermediate_size", moe.shared_intermediate_size, moe.shared_intermediate_size)
    attention = dataclasses.replace(values["attention"], out_bias=False)
    return values | dict(attention=attention, moe=moe, moe_layers=first_dense(hf, values["n_layer"], 1))


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config, without="mlp_bias") | moe_to_hf(config.moe)
    more = dict(use_qk_norm=config.attention.qk_norm is not None, first_k_dense_replace=hf_first_dense(config))
    return fields | more | {old: fields[new] for old, new in OLD_NAMES.items()}  # llama.cpp reads these


_LAYER, _OURS = "model.layers.{i}.attention.", "layers.{i}.attn."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("expert_shared_feed_forward_length")  # follows from the number of shared experts
    fields = gguf.common("sarvam_moe", fraction="partial_rotary_factor") | gguf.sigmoid_experts()
    return fields | dict(
        first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
        use_qk_norm=gguf.has("attn_q_norm.weight"),
        attention_bias=gguf.has("attn_qkv.bias"),
    )


FAMILY = Family(
    model_type="sarvam_moe",
    architecture="SarvamMoEForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("model.word_embeddings.weight", "embed.weight"),
        Rule(_LAYER + "query_key_value.{p}", QKV, **fused_qkv()),
        rename(_LAYER + "dense.{p}", _OURS + "o_proj.{p}"),
        rename(_LAYER + "query_layernorm.weight", _OURS + "q_norm.weight"),
        rename(_LAYER + "key_layernorm.weight", _OURS + "k_norm.weight"),
        rename("model.layers.{i}.mlp.gate.expert_bias", "layers.{i}.mlp.router.selection_bias"),
        *(rule for rule in MOE_RULES if "e_score" not in rule.theirs),
        *llama_rules_without("embed_tokens", "self_attn"),
    ),
    modules=(*LLAMA_RULES, *QK_NORM_RULES, *MOE_RULES),
    gguf=GGUFSpec(
        arch="bailingmoe2",
        from_gguf=from_gguf,
        rules=(rename("blk.{i}.exp_probs_b.bias", "layers.{i}.mlp.router.selection_bias"),),
    ),
)
