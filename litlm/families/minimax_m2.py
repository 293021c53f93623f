"""MiniMax-M2: a norm over all heads' queries and keys together, rope on part of a head, a sigmoid router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe import QK_NORM_RULES
from litlm.families.weights import LLAMA_RULES, expert_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config

_UNUSED = """
    use_mtp num_mtp_modules mtp_transformer_layers mlp_intermediate_size shared_moe_mode layernorm_linear_attention_beta
    router_jitter_noise
"""
_MOE = "model.layers.{i}.block_sparse_moe."


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=196608, bos_token_id=200034, eos_token_id=200020)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)))
    head_dim = hf.take("head_dim", 128)
    turned = hf.take("rotary_dim", None)
    # Fields of the authors' own code, where M2 has one value.
    for key, value in (("use_qk_norm", True), ("qk_norm_type", "per_layer"), ("use_routing_bias", True),
                       ("scoring_func", "sigmoid"), ("shared_intermediate_size", 0), ("sliding_window", None),
                       ("layernorm_full_attention_beta", 1.0), ("layernorm_mlp_beta", 1.0)):  # fmt: skip
        hf.expect(key, value, value)
    hf.skip(_UNUSED)
    if set(hf.take("attn_type_list", [1])) != {1}:
        hf.problems.append("attn_type_list names layers without softmax attention (0), which is not supported")
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8),
        head_dim=head_dim,
        norm=norm,
        attention=AttentionConfig(qk_norm=QKNormConfig(norm=norm, over="all")),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=MoEConfig(
            n_expert=hf.take("num_local_experts", 256),
            n_expert_per_token=hf.take("num_experts_per_tok", 8),
            intermediate_size=common["intermediate_size"],
            scoring="sigmoid",
            selection_bias=True,
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        rope=hf.rope(
            theta=5000000.0,
            fraction_key="partial_rotary_factor",
            fraction=1.0 if turned is None else turned / head_dim,
        ),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            num_local_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


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
