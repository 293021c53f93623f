"""GLM-4 9B in transformers' own format: Llama with interleaved rope on half of each head, biases of queries, keys and
values, and gate and up in one tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, Rule, fused_gate_up

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=131072, eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 2),
        head_dim=hf.take("head_dim", 128, null=0),
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1.5625e-7))),
        attention=AttentionConfig(bias=hf.take("attention_bias", True)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(fraction_key="partial_rotary_factor", fraction=0.5, interleaved=True),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    rope = hf_rope(config.rope)
    rope["rope_parameters"]["partial_rotary_factor"] = config.rope.fraction  # 1.0 is not this family's default
    return (
        hf_common(config)
        | rope
        | dict(
            partial_rotary_factor=config.rope.fraction,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
        )
    )


_GATE_UP = ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight")
RULES = (
    *(rule for rule in LLAMA_RULES if "gate_proj" not in rule.theirs and "up_proj" not in rule.theirs),
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
