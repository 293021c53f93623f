"""AFMoE, Arcee's Trinity: gated attention, rope in sliding layers alone, sandwich norms, and a sigmoid router.

With `mup_enabled` the embeddings are multiplied by sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GateConfig, MoEConfig
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.deepseek_v3 import hf_first_dense
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import QK_NORM_RULES, expert_rules, llama_rules_without, mlp_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = llama_fields(
        hf, head_dim=128, eps=1e-5, qk_norm="head", vocab_size=200192, n_embd=2048, n_layer=32, n_head=16,
        intermediate_size=6144, max_seq_len=16384,
    )  # fmt: skip
    layers, every = range(values["n_layer"]), hf.size("global_attn_every_n_layers", 4)
    types = hf.layer_types(["sliding" if (i + 1) % every else "full" for i in layers])
    # What the authors' own code can do besides. transformers reads none of it.
    for name, only in dict(score_func="sigmoid", route_norm=True).items():
        hf.expect(name, only, only)
    for name in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        hf.expect(name, 1, 1)
    hf.skip("load_balance_coeff use_grouped_mm")
    width = hf.take("moe_intermediate_size", 1408)
    return values | dict(
        block="sandwich",
        attention=replace(values["attention"], gate=GateConfig()),
        sliding_window=hf.take("sliding_window", 1024),
        layer_types=types,
        rope_layers=tuple(t == "sliding" for t in types),
        moe=MoEConfig(
            n_expert=hf.take("num_experts", 64),
            n_expert_per_token=hf.take("num_experts_per_tok", 6),
            intermediate_size=width,
            scoring="sigmoid",
            scale=float(hf.take("route_scale", 1.0)),
            selection_bias=True,
            shared_intermediate_size=width * hf.take("num_shared_experts", 2),
        ),
        moe_layers=tuple(i >= hf.take("num_dense_layers", 1) for i in layers),
        embed_scale=values["n_embd"] ** 0.5 if hf.take("mup_enabled", False) else 1.0,
        round_embed_scale=False,
    )


def to_hf(config: Config) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    return (
        llama_to_hf(config, without="mlp_bias")
        | hf_sliding(config, required=True)
        | dict(
            num_dense_layers=hf_first_dense(config),
            num_experts=moe.n_expert,
            num_experts_per_tok=moe.n_expert_per_token,
            moe_intermediate_size=moe.intermediate_size,
            num_shared_experts=moe.shared_intermediate_size // moe.intermediate_size,
            route_scale=moe.scale,
            mup_enabled=config.embed_scale != 1,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 2)  # sigmoid
    gguf.expect("expert_weights_norm", True)
    gguf.expect("expert_group_count", 1)
    gguf.expect("expert_group_used_count", 1)
    return (
        gguf.common("afmoe")
        | gguf.experts("num_experts")
        | dict(
            num_shared_experts=gguf.get("expert_shared_count", 0),
            num_dense_layers=gguf.get("leading_dense_block_count", 0),
            route_scale=gguf.get("expert_weights_scale", 1.0),
            sliding_window=gguf.get("attention.sliding_window"),
            layer_types=gguf.layer_types(4),
            mup_enabled=True,
            attention_bias=gguf.has("attn_q.bias"),
        )
    )


_LAYER, _OURS = "model.layers.{i}.", "layers.{i}."

FAMILY = Family(
    model_type="afmoe",
    architecture="AfmoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *llama_rules_without("post_attention_layernorm"),
        rename(_LAYER + "post_attention_layernorm.weight", _OURS + "post_attn_norm.weight"),
        rename(_LAYER + "pre_mlp_layernorm.weight", _OURS + "mlp_norm.weight"),
        rename(_LAYER + "post_mlp_layernorm.weight", _OURS + "post_mlp_norm.weight"),
        *QK_NORM_RULES,
        rename(_LAYER + "self_attn.gate_proj.weight", _OURS + "attn.gate_proj.weight"),
        rename(_LAYER + "mlp.router.gate.weight", _OURS + "mlp.router.weight"),
        rename(_LAYER + "mlp.expert_bias", _OURS + "mlp.router.selection_bias"),
        *mlp_rules(_LAYER + "mlp.shared_experts.", _OURS + "mlp.shared."),
        *expert_rules(),
    ),
    gguf=GGUFSpec(
        arch="afmoe",
        from_gguf=from_gguf,
        rules=(rename("blk.{i}.exp_probs_b.bias", _OURS + "mlp.router.selection_bias"),),
    ),
)
