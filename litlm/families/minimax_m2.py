"""MiniMax-M2: queries and keys normed over all heads, rope on part of a head, a sigmoid router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_experts
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

_UNUSED = """
    use_mtp num_mtp_modules mtp_transformer_layers mlp_intermediate_size shared_moe_mode layernorm_linear_attention_beta
    router_jitter_noise
"""
_MOE = "model.layers.{i}.block_sparse_moe."


def from_hf(hf: HFFields) -> dict[str, Any]:
    head_dim, rotary_dim = hf.take("head_dim", 128, null=0), hf.take("rotary_dim", None)
    fraction = 1.0 if rotary_dim is None else rotary_dim / head_dim
    rope = hf.rope(theta=5000000.0, fraction_key="partial_rotary_factor", fraction=fraction)
    ids: dict[str, Any] = dict(bos_token_id=200034, eos_token_id=200020)
    values = llama_fields(
        hf, n_kv_head=8, head_dim=128, attention_bias=None, qk_norm="all", rope=rope, max_seq_len=196608, **ids
    )
    # Fields of the authors' own code.
    for key, value in (("use_qk_norm", True), ("qk_norm_type", "per_layer"), ("use_routing_bias", True),
                       ("scoring_func", "sigmoid"), ("shared_intermediate_size", 0), ("sliding_window", None),
                       ("layernorm_full_attention_beta", 1.0), ("layernorm_mlp_beta", 1.0)):  # fmt: skip
        hf.expect(key, value, value)
    hf.skip(_UNUSED)
    if set(hf.take("attn_type_list", [1])) != {1}:
        hf.problems.append("attn_type_list names layers without softmax attention (0), which is not supported")
    moe = hf.experts(
        n_expert=256,
        n_expert_per_token=8,
        intermediate_size=values["intermediate_size"],
        scoring="sigmoid",
        selection_bias=True,
    )
    return values | dict(moe=moe)


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="attention_bias mlp_bias") | hf_experts(config)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 2)  # sigmoid
    gguf.get("expert_feed_forward_length")  # the same as feed_forward_length
    return gguf.common("minimax_m2", fraction="partial_rotary_factor") | gguf.experts("num_local_experts", None)


FAMILY = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        *QK_NORM_RULES,
        rename(_MOE + "gate.weight", "layers.{i}.mlp.router.weight"),
        rename(_MOE + "e_score_correction_bias", "layers.{i}.mlp.router.selection_bias"),
        *expert_rules(_MOE + "experts.{e}.", "w1 w3 w2"),
    ),
    gguf=GGUFSpec(arch="minimax-m2", from_gguf=from_gguf),
)
