"""Command A+: Command A with experts, whose sum is averaged with a shared one. The first layers are dense, of another
width, and have rope even where they see all tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig, NormConfig
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.glm4_moe_lite import hf_sparse_layers, sparse_layers
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, expert_rules, mlp_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rms, layer = hf.take("rms_norm_eps", None), hf.take("layer_norm_eps", 1e-5)
    norm = NormConfig(kind="layer", eps=float(layer), bias=False) if rms is None else NormConfig(eps=float(rms))
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=5, eos_token_id=255001, pad_token_id=0)
    rope = hf.rope(interleaved=True)
    values = llama_fields(hf, head_dim=128, norm=norm, rope=rope, max_seq_len=8192, **ids)
    n_layer, n_dense = values["n_layer"], hf.take("first_k_dense_replace", 0)
    sparse = sparse_layers(hf, n_layer, n_dense)
    dense_period, period = hf.take("prefix_dense_sliding_window_pattern", 1), hf.take("sliding_window_pattern", 4)
    periods = [(i, dense_period) for i in range(n_dense)] + [(i, period) for i in range(n_layer - n_dense)]
    types = hf.layer_types(["sliding" if (i + 1) % n else "full" for i, n in periods])
    width, n_shared = values["intermediate_size"], hf.take("num_shared_experts", 0)
    combined = hf.take("shared_expert_combination_strategy", "average")
    scoring = hf.take("expert_selection_fn", "softmax")
    normalize = hf.take("norm_topk_prob", True)
    if combined not in ("average", "sum") or scoring not in ("softmax", "sigmoid"):
        hf.problems.append(
            f"shared_expert_combination_strategy={combined!r} and expert_selection_fn={scoring!r}: only 'average' or "
            "'sum' and 'softmax' or 'sigmoid' are supported"
        )
    moe = MoEConfig(
        n_expert=hf.take("num_experts", 8),
        n_expert_per_token=hf.take("num_experts_per_tok", 2),
        intermediate_size=width,
        scoring="sigmoid" if scoring == "sigmoid" else "softmax",
        normalize=normalize or scoring == "softmax",  # a softmax over the chosen alone
        shared_intermediate_size=width * n_shared,
        shared_average=n_shared > 0 and combined == "average",
    )
    return values | dict(
        intermediate_size=hf.take("prefix_dense_intermediate_size", width),
        block="parallel",
        shared_norm=True,
        logit_scale=float(hf.take("logit_scale", 0.0625)),
        sliding_window=hf.take("sliding_window", 4096, null=None),
        layer_types=types,
        rope_layers=tuple(
            t == "sliding" or (not has_experts and dense_period == 1)
            for t, has_experts in zip(types, sparse, strict=True)
        ),
        moe=moe,
        moe_layers=sparse,
    )


def to_hf(config: Config) -> dict[str, Any]:
    moe, norm = config.moe, config.norm
    assert moe is not None
    summed = moe.shared_intermediate_size and not moe.shared_average
    bare = [t == "full" and not rope for t, rope in zip(config.layer_types, config.rope_layers, strict=True)]
    forced = not any(b and not has_experts for b, has_experts in zip(bare, config.moe_layers, strict=True))
    return (
        llama_to_hf(config, without="mlp_bias rms_norm_eps")
        | hf_sliding(config)
        | dict(
            intermediate_size=moe.intermediate_size,
            prefix_dense_intermediate_size=config.intermediate_size,
            prefix_dense_sliding_window_pattern=1 if forced else 2,
            rms_norm_eps=norm.eps if norm.kind == "rms" else None,
            **(dict(layer_norm_eps=norm.eps) if norm.kind == "layer" else {}),
            logit_scale=config.logit_scale,
            mlp_layer_types=hf_sparse_layers(config),
            num_experts=moe.n_expert,
            num_experts_per_tok=moe.n_expert_per_token,
            expert_selection_fn=moe.scoring,
            norm_topk_prob=moe.normalize,
            num_shared_experts=moe.shared_intermediate_size // moe.intermediate_size,
            shared_expert_combination_strategy="sum" if summed else "average",
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.expect("expert_gating_func", 1, 2)  # softmax, sigmoid
    gguf.get("expert_shared_feed_forward_length")  # follows from the number of shared experts
    rms = gguf.get("attention.layer_norm_rms_epsilon")
    fields = gguf.common("cohere2_moe", eps="layer_norm_eps" if rms is None else "rms_norm_eps")
    n_layer, n_dense = fields["num_hidden_layers"], gguf.get("leading_dense_block_count", 0)
    return (
        fields
        | gguf.experts("num_experts", "intermediate_size")
        | dict(
            prefix_dense_intermediate_size=fields["intermediate_size"],
            mlp_layer_types=["dense"] * n_dense + ["sparse"] * (n_layer - n_dense),
            num_shared_experts=gguf.get("expert_shared_count", 0),
            expert_selection_fn="softmax" if gguf.get("expert_gating_func", 2) == 1 else "sigmoid",
            norm_topk_prob=bool(gguf.get("expert_weights_norm", False)),
            logit_scale=gguf.get("logit_scale"),
            sliding_window=gguf.get("attention.sliding_window"),
            layer_types=gguf.layer_types(4),
        )
    )


FAMILY = Family(
    model_type="cohere2_moe",
    architecture="Cohere2MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
        *expert_rules(),
        *mlp_rules("model.layers.{i}.mlp.shared_experts.", "layers.{i}.mlp.shared."),
    ),
    gguf=GGUFSpec(arch="cohere2moe", from_gguf=from_gguf, table_arch="dots1"),
)
