"""OLMo 3: OLMo 2 with three of four layers sliding; the rope of the others alone is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import olmo2
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gemma3_text import hf_ropes, ropes
from litlm.families.gguf import GGUFFields, GGUFSpec

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope, sliding_rope = ropes(hf, 500000.0, 500000.0, "rope_theta")
    values = olmo2.from_hf(hf, rope)
    return values | dict(
        sliding_window=hf.take("sliding_window", 4096, null=None),
        layer_types=hf.layer_types(["sliding" if (i + 1) % 4 else "full" for i in range(values["n_layer"])]),
        sliding_rope=sliding_rope,
    )


def to_hf(config: Config) -> dict[str, Any]:
    return olmo2.to_hf(config) | hf_ropes(config) | hf_sliding(config)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("olmo3", theta=None) | dict(
        attention_bias=gguf.has("attn_q.bias"),
        sliding_window=gguf.get("attention.sliding_window"),
        layer_types=gguf.layer_types(4),
        rope_parameters=gguf.rope_parameters(),
    )


FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=olmo2.RULES,
    gguf=GGUFSpec(arch="olmo2", from_gguf=from_gguf, matches=lambda gguf: bool(gguf.get("attention.sliding_window"))),
)
