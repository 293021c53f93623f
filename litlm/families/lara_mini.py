"""Lara 4 Mini: Gated DeltaNet, sliding layers with rope and full ones without, experts in all layers.

Files hold Gated DeltaNet's input projections in one matrix, transformers has four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GatedDeltaConfig
from litlm.families.base import Family, HFFields, hf_experts, hf_layer_types
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen2_moe import MOE_RULES
from litlm.families.qwen3_5_text import IN_PROJ_RULES
from litlm.families.qwen3_next import DELTA_RULES, delta_fields, hf_delta
from litlm.families.weights import QK_NORM_RULES, Rule, fused_gate_up, fused_views, mlp_rules, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config

_PATTERN = ("recurrent", "sliding", "recurrent", "full", "sliding")


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, n_kv_head=4, head_dim=128, qk_norm="head", vocab_size=151936, n_embd=1024, n_layer=34, n_head=16,
        intermediate_size=512, max_seq_len=131072, tie_embeddings=True, eos_token_id=151643,
    )  # fmt: skip
    hf.expect("hidden_act", "silu", "silu")  # the convolution's too
    types = hf.layer_types([_PATTERN[i % 5] for i in range(values["n_layer"])], "linear_attention")
    delta = delta_fields(hf, values["norm"].eps, n_key_head=8, n_value_head=16, norm_fp32=True)
    return values | dict(
        sliding_window=hf.take("sliding_window", 512),
        layer_types=types,
        recurrent=delta if "recurrent" in types else None,
        rope_layers=tuple(t == "sliding" for t in types),
        moe=hf.experts(
            "num_experts",
            n_expert=128,
            n_expert_per_token=4,
            intermediate_size=hf.take("moe_intermediate_size", 512),
            normalize=hf.take("norm_topk_prob", True),
            shared_intermediate_size=hf.take("shared_expert_intermediate_size", 512),
        ),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        llama_to_hf(config, without="mlp_bias intermediate_size")
        | hf_layer_types(config, "linear_attention")
        | hf_delta(config)
        | hf_experts(config, "num_experts")
        | dict(
            sliding_window=config.sliding_window or config.max_seq_len,
            moe_intermediate_size=config.moe.intermediate_size,
            shared_expert_intermediate_size=config.moe.shared_intermediate_size,
            norm_topk_prob=config.moe.normalize,
        )
    )


def _in_proj(tensor: Any, config: Config) -> Sequence[Any]:
    """The rows of queries, keys and values, of z, beta and the decay."""
    mixer = config.recurrent
    assert isinstance(mixer, GatedDeltaConfig)
    z = mixer.qkv_dim + mixer.n_value_head * mixer.value_dim
    ends = [mixer.qkv_dim, z, len(tensor) - mixer.n_value_head]
    return [tensor[a:b] for a, b in zip([0, *ends], [*ends, None], strict=True)]


_MLP, _EXPERTS = "model.layers.{i}.mlp.", "layers.{i}.mlp.experts."
_RULES = (
    *(rule for rule in MOE_RULES if ".mlp.experts." not in rule.theirs),
    *QK_NORM_RULES,
    *DELTA_RULES,
    Rule(_MLP + "experts.gate_up_proj", (_EXPERTS + "gate_proj", _EXPERTS + "up_proj"), **fused_gate_up(1)),
    rename(_MLP + "experts.down_proj", _EXPERTS + "down_proj"),
    *mlp_rules(_MLP + "shared_expert.", "layers.{i}.mlp.shared."),
)
_IN_PROJ = Rule(
    "model.layers.{i}.linear_attn.in_proj.weight",
    tuple(f"layers.{{i}}.attn.in_proj_{x}.weight" for x in ("qkv", "z", "b", "a")),
    **fused_views(_in_proj),
)

FAMILY = Family(
    model_type="lara_mini",
    architecture="LaraMiniForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*renamed_rules(_RULES, {"linear_attn.norm": "linear_attn.out_norm"}), _IN_PROJ),
    modules=(*_RULES, *IN_PROJ_RULES),
)
