"""Kolibri 1 (Aleph Alpha): EXAONE 4's attention in GLM-4's blocks; experts are chosen by logit, weighed by sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, expert_rules, mlp_rules, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.accept_old_names(num_local_experts="num_experts")  # transformers writes it so
    values = llama_fields(
        hf, n_kv_head=4, head_dim=128, attention_bias=None, qk_norm="head", max_seq_len=262144, intermediate_size=0
    )
    types = hf.layer_types(["sliding" if (i + 1) % 5 else "full" for i in range(values["n_layer"])])
    moe = MoEConfig(
        n_expert=hf.take("num_experts", 384),
        n_expert_per_token=hf.take("num_experts_per_tok", 6),
        intermediate_size=hf.take("moe_intermediate_size", 512),
        scoring="sigmoid",
        normalize=hf.take("norm_topk_prob", False),
        selection_bias=True,
        select_by="logits",
        shared_intermediate_size=hf.take("shared_expert_intermediate_size", 512),
    )
    return values | dict(
        intermediate_size=0,  # no layer has a dense MLP
        sliding_window=hf.take("sliding_window", 513),
        layer_types=types,
        rope_layers=tuple(t == "sliding" for t in types),
        block="sandwich",
        moe=moe,
    )


def to_hf(config: Config) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    return (
        llama_to_hf(config, without="intermediate_size attention_bias mlp_bias")
        | hf_sliding(config, required=True)
        | dict(
            num_experts=moe.n_expert,
            num_experts_per_tok=moe.n_expert_per_token,
            moe_intermediate_size=moe.intermediate_size,
            shared_expert_intermediate_size=moe.shared_intermediate_size,
            norm_topk_prob=moe.normalize,
        )
    )


_LAYER, _OURS = "model.layers.{i}.", "layers.{i}."
_RULES = (
    *LLAMA_RULES,
    *QK_NORM_RULES,
    rename(_LAYER + "post_attn_norm.weight", _OURS + "post_attn_norm.weight"),
    rename(_LAYER + "post_ffn_norm.weight", _OURS + "post_mlp_norm.weight"),
    rename(_LAYER + "mlp.gate.weight", _OURS + "mlp.router.weight"),
    rename(_LAYER + "moe.router.expert_bias", _OURS + "mlp.router.selection_bias"),
    *expert_rules(),
    *mlp_rules(_LAYER + "mlp.shared_experts.", _OURS + "mlp.shared."),
)
_MODULES = {
    "post_attn_norm": "post_self_attn_layernorm",
    "post_ffn_norm": "post_mlp_layernorm",
    "moe.router.expert_bias": "mlp.gate.e_score_correction_bias",
}

FAMILY = Family(
    model_type="kolibri1",
    architecture="Kolibri1ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(_RULES, _MODULES),
)
