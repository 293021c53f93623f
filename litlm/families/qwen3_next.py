"""Qwen3-Next: three layers of Gated DeltaNet to one of attention with an output gate; Qwen2's experts in all of them.

Three kinds of norms: those of the layers and of queries and keys store their weight less 1, the one inside Gated
DeltaNet does not. A head's part of q_proj holds its query, then its gate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GateConfig, GatedDeltaConfig, NormConfig
from litlm.families.base import Family, HFFields, hf_experts, hf_layer_types, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.qwen2_moe import FAMILY as QWEN2_MOE
from litlm.families.qwen2_moe import hf_sparse_layers, sparse_layers
from litlm.families.weights import QK_NORM_RULES, Rule, conv_rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def hybrid_fields(hf: HFFields, **defaults: Any) -> dict[str, Any]:
    """What Qwen3-Next and Qwen3.5 share. defaults: see `llama_fields`."""
    norm = NormConfig(eps=float(hf.take("rms_norm_eps", 1e-6)), offset=True)
    ignore = ("mrope_section", "mrope_interleaved")  # the three positions of a text token are the same
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.25, ignore=ignore)
    values = llama_fields(
        hf, head_dim=256, qk_norm="head", norm=norm, rope=rope, max_seq_len=32768, **defaults
    )  # fmt: skip
    hf.expect("hidden_act", "silu", "silu")  # the convolution's too
    hf.expect("attn_output_gate", True, True)
    hf.expect("output_gate_type", "swish", "swish")  # of Gated DeltaNet
    hf.skip("mamba_ssm_dtype mtp_num_hidden_layers mtp_use_dedicated_embeddings")  # states are fp32
    interval, mixer = hf.size("full_attention_interval", 4), delta_fields(hf, norm.eps)
    every = ["recurrent" if (i + 1) % interval else "full" for i in range(values["n_layer"])]
    types = hf.layer_types(every, "linear_attention", ("full_attention",))
    attention = dataclasses.replace(values["attention"], gate=GateConfig(in_q_proj=True))
    return values | dict(
        attention=attention,
        layer_types=types,
        recurrent=mixer if "recurrent" in types else None,
        rope_layers=tuple(t != "recurrent" for t in types),
    )


def delta_fields(
    hf: HFFields,
    eps: float,
    *,
    n_key_head: int = 16,
    n_value_head: int = 32,
    key_dim: int = 128,
    value_dim: int = 128,
    **more: Any,
) -> GatedDeltaConfig:
    """Gated DeltaNet's fields. Sizes: transformers' defaults. more: other fields of GatedDeltaConfig."""
    n_problems = len(hf.problems)
    keys, values = hf.size("linear_num_key_heads", n_key_head), hf.size("linear_num_value_heads", n_value_head)
    if values % keys and len(hf.problems) == n_problems:
        heads = {"linear_num_value_heads": values, "linear_num_key_heads": keys}
        stated = [f"{key}={n}{'' if hf.data.get(key) else ' (left out: the default)'}" for key, n in heads.items()]
        hf.problems.append(" must be a multiple of ".join(stated))
    return GatedDeltaConfig(
        n_key_head=keys,
        n_value_head=values,
        key_dim=hf.size("linear_key_head_dim", key_dim),
        value_dim=hf.size("linear_value_head_dim", value_dim),
        kernel_size=hf.size("linear_conv_kernel_dim", 4, least=2),
        norm_eps=eps,
        **more,
    )


def hf_delta(config: Config) -> dict[str, Any]:
    """The inverse of `delta_fields`."""
    mixer = config.recurrent
    if mixer is None:
        return {}
    assert isinstance(mixer, GatedDeltaConfig)
    return dict(
        linear_num_key_heads=mixer.n_key_head,
        linear_num_value_heads=mixer.n_value_head,
        linear_key_head_dim=mixer.key_dim,
        linear_value_head_dim=mixer.value_dim,
        linear_conv_kernel_dim=mixer.kernel_size,
    )


def hybrid_to_hf(config: Config) -> dict[str, Any]:
    """The inverse of `hybrid_fields`."""
    return (
        llama_to_hf(config, without="mlp_bias")
        | hf_rope(config.rope, fraction=True)
        | hf_layer_types(config, "linear_attention")
        | hf_delta(config)
    )


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = hybrid_fields(
        hf, n_kv_head=2, vocab_size=151936, n_embd=2048, n_layer=48, n_head=16, intermediate_size=5632
    )
    return values | dict(moe=shared_experts(hf, 512, 10), moe_layers=sparse_layers(hf, values["n_layer"]))


def shared_experts(hf: HFFields, n_expert: int, n_expert_per_token: int) -> Any:
    """Experts and a gated shared expert. n_expert, n_expert_per_token: transformers' defaults."""
    return hf.experts(
        "num_experts",
        n_expert=n_expert,
        n_expert_per_token=n_expert_per_token,
        intermediate_size=hf.take("moe_intermediate_size", 512),
        normalize=hf.take("norm_topk_prob", True),
        shared_intermediate_size=hf.take("shared_expert_intermediate_size", 512),
        shared_gate=True,
    )


def hf_shared_experts(config: Config) -> dict[str, Any]:
    """The inverse of `shared_experts`."""
    assert config.moe is not None
    return hf_experts(config, "num_experts") | dict(
        moe_intermediate_size=config.moe.intermediate_size,
        shared_expert_intermediate_size=config.moe.shared_intermediate_size,
        norm_topk_prob=config.moe.normalize,
    )


def to_hf(config: Config) -> dict[str, Any]:
    return hybrid_to_hf(config) | hf_sparse_layers(config) | hf_shared_experts(config)


# --- GGUF files ------------------------------------------------------------------------------------------------------


def hybrid_from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    """What Qwen3-Next and Qwen3.5 say in GGUF files."""
    fields = gguf.common(model_type, fraction="partial_rotary_factor")
    # Older files state no list, and newer ones that do state an interval as well, which then has no meaning.
    n_layer, interval = fields["num_hidden_layers"], gguf.get("full_attention_interval", 4)
    recurs = gguf.get("attention.recurrent_layers", [(i + 1) % interval != 0 for i in range(n_layer)])[:n_layer]
    n_value_head = gguf.get("ssm.time_step_rank")
    return fields | dict(
        attention_bias=gguf.has("attn_q.bias"),
        layer_types=["linear_attention" if r else "full_attention" for r in recurs],
        linear_num_key_heads=gguf.get("ssm.group_count"),
        linear_num_value_heads=n_value_head,
        linear_key_head_dim=gguf.get("ssm.state_size"),
        linear_value_head_dim=gguf.get("ssm.inner_size") // n_value_head,
        linear_conv_kernel_dim=gguf.get("ssm.conv_kernel"),
    )


def experts_from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    """The fields of `shared_experts`."""
    width = gguf.get("expert_shared_feed_forward_length")
    return gguf.experts("num_experts") | dict(shared_expert_intermediate_size=width, norm_topk_prob=True)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return hybrid_from_gguf(gguf, "qwen3_next") | experts_from_gguf(gguf)


# --- input projections, whose rows are grouped by key head ------------------------------------------------------------


def _by_key_head(tensor: Any, config: Config, *sizes: int) -> list[Any]:
    """Views of the parts of each key head's rows, (K, size, ...)."""
    assert isinstance(config.recurrent, GatedDeltaConfig)
    groups, parts, start = tensor.reshape(config.recurrent.n_key_head, -1, *tensor.shape[1:]), [], 0
    for size in sizes:
        parts.append(groups[:, start : start + size])
        start += size
    return parts


def _sizes(config: Config) -> tuple[int, int, int]:
    """Rows per key head of a query or key, of values, and of numbers per value head."""
    mixer = config.recurrent
    assert isinstance(mixer, GatedDeltaConfig)
    n = mixer.n_value_head // mixer.n_key_head
    return mixer.key_dim, n * mixer.value_dim, n


def _split_qkvz(tensor: Any, config: Config) -> Sequence[Any]:
    key, value, _ = _sizes(config)
    *qkv, z = _by_key_head(tensor, config, key, key, value, value)
    rows = [part.reshape(-1, *tensor.shape[1:]) for part in qkv]
    joined = tensor.new_empty((sum(map(len, rows)), *tensor.shape[1:]))
    for part, row in zip(joined.split([len(row) for row in rows]), rows, strict=True):
        part.copy_(row)
    return joined, z.reshape(-1, *tensor.shape[1:])


def _join_qkvz(tensors: Sequence[Any], config: Config) -> Any:
    qkv, z = tensors
    key, value, _ = _sizes(config)
    fused = qkv.new_empty((len(qkv) + len(z), *qkv.shape[1:]))
    views = _by_key_head(fused, config, key, key, value, value)
    heads = len(views[0])
    for view, rows in zip(views, [*qkv.split([heads * key, heads * key, heads * value]), z], strict=True):
        view.copy_(rows.reshape(view.shape))
    return fused


def _split_ba(tensor: Any, config: Config) -> Sequence[Any]:
    n = _sizes(config)[2]
    return [part.reshape(-1, *tensor.shape[1:]) for part in _by_key_head(tensor, config, n, n)]


def _join_ba(tensors: Sequence[Any], config: Config) -> Any:
    fused = tensors[0].new_empty((2 * len(tensors[0]), *tensors[0].shape[1:]))
    n = _sizes(config)[2]
    for view, rows in zip(_by_key_head(fused, config, n, n), tensors, strict=True):
        view.copy_(rows.reshape(view.shape))
    return fused


_LAYER, _OURS = "model.layers.{i}.linear_attn.", "layers.{i}.attn."
DELTA_RULES: tuple[Rule, ...] = (
    conv_rule(_LAYER + "conv1d.weight", _OURS + "conv.weight"),
    *(rename(_LAYER + name, _OURS + name) for name in ("A_log", "dt_bias", "norm.weight", "out_proj.weight")),
)

_QKVZ = Rule(
    _LAYER + "in_proj_qkvz.weight",
    (_OURS + "in_proj_qkv.weight", _OURS + "in_proj_z.weight"),
    split=_split_qkvz,
    join=_join_qkvz,
)

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *QWEN2_MOE.rules,
        *QK_NORM_RULES,
        *DELTA_RULES,
        _QKVZ,
        Rule(
            _LAYER + "in_proj_ba.weight",
            (_OURS + "in_proj_b.weight", _OURS + "in_proj_a.weight"),
            split=_split_ba,
            join=_join_ba,
        ),
    ),
    ignore=(r"^mtp\.",),  # the layer that predicts a second token
    gguf=GGUFSpec(
        arch="qwen3next",
        from_gguf=from_gguf,
        restore=subtract_one((*QWEN2_MOE.rules, *QK_NORM_RULES)) | {_LAYER + "A_log": lambda t, c: (-t).log()},
        rules=(
            rename("blk.{i}.attn_qkv.weight", _OURS + "in_proj_qkv.weight"),
            rename("blk.{i}.attn_gate.weight", _OURS + "in_proj_z.weight"),
            dataclasses.replace(_QKVZ, theirs="blk.{i}.ssm_in.weight"),  # the two in one, in older files
            rename("blk.{i}.ssm_dt.bias", _OURS + "dt_bias"),
        ),
    ),
)
