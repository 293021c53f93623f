"""gpt-oss 20b and 120b: attention sinks, sliding and full layers in turns, experts with biases and a clamped SwiGLU.

The files hold all experts in one tensor, as (expert, in, out), with gate and up in turns along the last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, MoEConfig, NormConfig, YarnScaling
from litlm.families.base import HF_LAYER_TYPES, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, Rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=131072, intermediate_size=2880)
    bias = hf.take("attention_bias", True)
    layer_types = hf.layer_types(["full" if i % 2 else "sliding" for i in range(common["n_layer"])])
    window = hf.take("sliding_window", 128, null=None)
    rope = hf.rope(theta=150000.0)
    if not hf.data.get("rope_parameters") and not hf.data.get("rope_scaling"):
        rope = replace(rope, scaling=YarnScaling(factor=32.0, original_max_seq_len=4096, truncate=False))
    hf.expect("hidden_act", "silu", "silu")
    hf.expect("swiglu_alpha", 1.702, 1.702)
    hf.take("initial_context_length", None)  # the original length, which rope_scaling names as well
    per_token = hf.take("num_experts_per_tok", hf.take("experts_per_token", 4))
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8, null=0),
        head_dim=hf.take("head_dim", 64, null=0),
        sliding_window=window if "sliding" in layer_types else None,
        layer_types=layer_types,
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias, sinks=True),
        mlp=MLPConfig(activation="clamped", limit=float(hf.take("swiglu_limit", 7.0))),
        moe=MoEConfig(
            n_expert=hf.take("num_local_experts", 128),
            n_expert_per_token=per_token,
            intermediate_size=common["intermediate_size"],
            router_bias=True,
            expert_bias=True,
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        rope=rope,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | dict(
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            sliding_window=config.sliding_window or config.max_seq_len,  # transformers wants one in any case
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
            rms_norm_eps=config.norm.eps,
            hidden_act="silu",
            attention_bias=config.attention.bias,
            swiglu_limit=config.mlp.limit,
            num_local_experts=config.moe.n_expert,
            num_experts_per_tok=config.moe.n_expert_per_token,
            router_aux_loss_coef=config.moe.aux_loss,
        )
    )


def in_turns(*ours: str, transposed: bool) -> dict[str, Any]:
    """A `Rule` for one tensor with gate and up in turns along its last dimension; transposed: (expert, in, out)."""

    def split(tensor: Any, config: Config) -> Sequence[Any]:
        parts = (tensor[..., 0::2], tensor[..., 1::2])
        return [part.swapaxes(-1, -2) for part in parts] if transposed else parts

    def join(tensors: Sequence[Any], config: Config) -> Any:
        gate, up = (t.swapaxes(-1, -2) for t in tensors) if transposed else tensors
        whole = gate.new_empty((*gate.shape[:-1], 2 * gate.shape[-1]))
        whole[..., 0::2], whole[..., 1::2] = gate, up
        return whole

    return dict(ours=ours, split=split, join=join)


def transposed(theirs: str, ours: str) -> Rule:
    """Experts in one tensor stored as (expert, in, out)."""
    return Rule(
        theirs,
        (ours,),
        split=lambda tensor, config: [tensor.swapaxes(-1, -2)],
        join=lambda tensors, config: tensors[0].swapaxes(-1, -2).contiguous(),
    )


_THEIRS, _OURS = "model.layers.{i}.mlp.experts.", "layers.{i}.mlp.experts."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("gpt_oss") | gguf.experts("num_local_experts", "intermediate_size")
    scaling = gguf.scaling()  # whole dimensions are not rounded in the published files
    fields["rope_scaling"] = dict(rope_type="default") if scaling is None else scaling | dict(truncate=False)
    return fields | dict(
        sliding_window=gguf.get("attention.sliding_window"),
        layer_types=gguf.layer_types(2),
        attention_bias=gguf.has("attn_q.bias"),
    )


FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        rename("model.layers.{i}.self_attn.sinks", "layers.{i}.attn.sinks"),
        rename("model.layers.{i}.mlp.router.{p}", "layers.{i}.mlp.router.{p}"),
        Rule(_THEIRS + "gate_up_proj", **in_turns(_OURS + "gate_proj", _OURS + "up_proj", transposed=True)),
        Rule(_THEIRS + "gate_up_proj_bias", **in_turns(_OURS + "gate_bias", _OURS + "up_bias", transposed=False)),
        transposed(_THEIRS + "down_proj", _OURS + "down_proj"),
        rename(_THEIRS + "down_proj_bias", _OURS + "down_bias"),
    ),
    gguf=GGUFSpec(
        arch="gpt-oss",
        from_gguf=from_gguf,
        rules=(
            rename("blk.{i}.attn_sinks.weight", "layers.{i}.attn.sinks"),
            *(rename(f"blk.{{i}}.ffn_{x}_exps.weight", _OURS + f"{x}_proj") for x in ("gate", "up", "down")),
            *(rename(f"blk.{{i}}.ffn_{x}_exps.bias", _OURS + f"{x}_bias") for x in ("gate", "up", "down")),
        ),
    ),
)
