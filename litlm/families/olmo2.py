"""OLMo 2: Llama with norms after attention and MLP instead of before, and queries and keys normed over all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import RopeConfig
from litlm.families.base import Family, HFFields, hf_head_dim
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields, rope: RopeConfig | None = None, **defaults: Any) -> dict[str, Any]:
    """rope: OLMo 3's, which sliding layers don't share. defaults: transformers', as in `llama_fields`."""
    defaults = dict[str, Any](eps=1e-5, eos_token_id=50279, pad_token_id=1) | defaults
    return llama_fields(hf, qk_norm="all", rope=rope, **defaults) | dict(block="post")


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="head_dim mlp_bias") | hf_head_dim(config)


RULES = (
    rename("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.post_attn_norm.{p}"),
    rename("model.layers.{i}.post_feedforward_layernorm.{p}", "layers.{i}.post_mlp_norm.{p}"),
    rename("model.layers.{i}.self_attn.q_norm.{p}", "layers.{i}.attn.q_norm.{p}"),
    rename("model.layers.{i}.self_attn.k_norm.{p}", "layers.{i}.attn.k_norm.{p}"),
    *llama_rules_without("layernorm"),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("olmo2") | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(arch="olmo2", from_gguf=from_gguf, matches=lambda gguf: not gguf.get("attention.sliding_window")),
)
