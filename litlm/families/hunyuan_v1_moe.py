"""Hunyuan-A13B: the dense Hunyuan with experts, one of them shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import MoEConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.hunyuan_v1_dense import RULES, hunyuan_fields
from litlm.families.hunyuan_v1_dense import from_gguf as dense_from_gguf
from litlm.families.hunyuan_v1_dense import to_hf as dense_to_hf
from litlm.families.weights import expert_rules, mlp_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = hunyuan_fields(hf)
    per_token = hf.take("moe_topk", 1)
    if isinstance(per_token, list):
        if len(set(per_token)) != 1:
            hf.problems.append(f"moe_topk={per_token} must be the same in all layers")
        per_token = per_token[0] if per_token else 1
    width = values["intermediate_size"]
    # What Tencent's own code allows and transformers' doesn't.
    for key, only in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
        given = hf.take(key, only)
        if set(given if isinstance(given, list) else [given]) != {only}:
            hf.problems.append(f"{key}={given} is not supported, only {only}")
    return values | dict(
        moe=MoEConfig(
            n_expert=hf.take("num_experts", 1),
            n_expert_per_token=per_token,
            intermediate_size=width,
            shared_intermediate_size=width,
        )
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    return dense_to_hf(config) | dict(num_experts=config.moe.n_expert, moe_topk=config.moe.n_expert_per_token)


_MLP = "model.layers.{i}.mlp."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("expert_shared_feed_forward_length")  # the same as feed_forward_length
    return dense_from_gguf(gguf, "hunyuan_v1_moe") | dict(
        num_experts=gguf.get("expert_count"),
        moe_topk=gguf.get("expert_used_count"),
        moe_intermediate_size=gguf.get("expert_feed_forward_length"),
        num_shared_expert=gguf.get("expert_shared_count", 1),
    )


FAMILY = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *RULES,
        rename(_MLP + "gate.wg.weight", "layers.{i}.mlp.router.weight"),
        *expert_rules(),
        *mlp_rules(_MLP + "shared_mlp.", "layers.{i}.mlp.shared."),
    ),
    gguf=GGUFSpec(arch="hunyuan-moe", from_gguf=from_gguf),
)
