"""gpt-oss 20b and 120b: attention sinks, alternating sliding and full layers, experts with biases and a clamped SwiGLU.

The files hold all experts in one tensor, (E, in, out), with gate and up interleaved along the last dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litlm.config.layers import MLPConfig, YarnScaling
from litlm.families.base import Family, HFFields, hf_common, hf_experts, hf_rope, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields
from litlm.families.weights import LLAMA_RULES, Rule, interleaved_gate_up, rename, transposed

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(theta=150000.0)
    if not hf.data.get("rope_parameters") and not hf.data.get("rope_scaling"):
        rope = replace(rope, scaling=YarnScaling(factor=32.0, original_max_seq_len=4096, truncate=False))
    defaults: dict[str, Any] = dict(attention_bias=True, max_seq_len=131072, intermediate_size=2880)
    values = llama_fields(hf, n_kv_head=8, head_dim=64, eps=1e-5, rope=rope, **defaults)
    window, layers = hf.take("sliding_window", 128, null=None), range(values["n_layer"])
    hf.expect("hidden_act", "silu", "silu")
    hf.expect("swiglu_alpha", 1.702, 1.702)
    hf.skip("initial_context_length")  # the original length, which rope_scaling states as well
    moe = hf.experts(
        n_expert=128,
        n_expert_per_token=hf.take("experts_per_token", 4),
        intermediate_size=values["intermediate_size"],
        router_bias=True,
        expert_bias=True,
    )
    return (
        values
        | hf.sliding(window, ["full" if i % 2 else "sliding" for i in layers])
        | dict(
            attention=replace(values["attention"], sinks=True),
            mlp=MLPConfig(activation="clamped", limit=float(hf.take("swiglu_limit", 7.0))),
            moe=moe,
        )
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = hf_common(config) | hf_rope(config.rope) | hf_sliding(config, required=True) | hf_experts(config)
    return fields | dict(
        num_key_value_heads=config.n_kv_head,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm.eps,
        hidden_act="silu",
        attention_bias=config.attention.bias,
        swiglu_limit=config.mlp.limit,
    )


_THEIRS, _OURS = "model.layers.{i}.mlp.experts.", "layers.{i}.mlp.experts."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("gpt_oss") | gguf.experts("num_local_experts", "intermediate_size")
    scaling = gguf.scaling()  # the published files don't round the ramp's ends
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
        transposed(Rule(_THEIRS + "gate_up_proj", (_OURS + "gate_proj", _OURS + "up_proj"), **interleaved_gate_up())),
        Rule(_THEIRS + "gate_up_proj_bias", (_OURS + "gate_bias", _OURS + "up_bias"), **interleaved_gate_up()),
        transposed(rename(_THEIRS + "down_proj", _OURS + "down_proj")),
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
