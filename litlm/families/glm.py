"""GLM-4 9B in transformers' own format: Llama with interleaved rope on half of each head, biases of q, k and v, and
gate and up fused.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import Rule, fused_gate_up, llama_rules_without

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.5, interleaved=True)
    ids: dict[str, Any] = dict(eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    values = llama_fields(
        hf, n_kv_head=2, head_dim=128, eps=1.5625e-7, attention_bias=True, rope=rope, max_seq_len=131072, **ids
    )
    return values | dict(attention=dataclasses.replace(values["attention"], out_bias=False))


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    fields = llama_to_hf(config, without="mlp_bias") | hf_rope(config.rope, fraction=True)
    return fields | dict(partial_rotary_factor=config.rope.fraction)


_GATE_UP = ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight")
RULES = (
    *llama_rules_without("gate_proj", "up_proj"),
    Rule("model.layers.{i}.mlp.gate_up_proj.weight", _GATE_UP, **fused_gate_up()),
)


def from_gguf(gguf: GGUFFields, model_type: str) -> dict[str, Any]:
    fields = gguf.common(model_type, fraction="partial_rotary_factor")
    return fields | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="chatglm", from_gguf=lambda gguf: from_gguf(gguf, "glm")),
)
