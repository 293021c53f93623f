"""Qwen3.5, 3.6 and 3.8, dense, as text models: Qwen3-Next with an MLP, and plain input projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GatedDeltaConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.qwen3_next import DELTA_RULES, hybrid_fields, hybrid_from_gguf, hybrid_to_hf
from litlm.families.weights import LLAMA_RULES, QK_NORM_RULES, Rule, nested_rules, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    return hybrid_fields(
        hf, n_kv_head=4, vocab_size=248320, n_embd=4096, n_layer=32, n_head=16, intermediate_size=12288
    )


# The layer that predicts a second token, and what sees images.
IGNORE = (r"^mtp\.", r"^(model\.)?visual\.")
IN_PROJ_RULES = tuple(
    rename(f"model.layers.{{i}}.linear_attn.in_proj_{x}.weight", f"layers.{{i}}.attn.in_proj_{x}.weight")
    for x in ("qkv", "z", "b", "a")
)
_RULES = (*LLAMA_RULES, *QK_NORM_RULES, *DELTA_RULES, *IN_PROJ_RULES)


# --- GGUF files ------------------------------------------------------------------------------------------------------


def from_gguf(gguf: GGUFFields, model_type: str = "qwen3_5_text") -> dict[str, Any]:
    gguf.get("rope.dimension_sections")  # the three positions of a text token are the same
    return hybrid_from_gguf(gguf, model_type)


def _rows(config: Config, size: int = 1, before: int = 0) -> list[int]:
    """Where llama.cpp stores the rows of each value head, `size` of them a head, after `before` that are in order.

    Hugging Face's files hold all value heads of the first key head, then those of the second; llama.cpp's hold the
    first value head of each key head, then the second of each.
    """
    mixer = config.recurrent
    assert isinstance(mixer, GatedDeltaConfig)
    per_key = mixer.n_value_head // mixer.n_key_head
    heads = [value * mixer.n_key_head + key for key in range(mixer.n_key_head) for value in range(per_key)]
    return [*range(before), *(before + head * size + row for head in heads for row in range(size))]


def _value_rows(config: Config) -> list[int]:
    assert isinstance(config.recurrent, GatedDeltaConfig)
    return _rows(config, config.recurrent.value_dim)


def _qkv_rows(config: Config) -> list[int]:
    mixer = config.recurrent
    assert isinstance(mixer, GatedDeltaConfig)
    return _rows(config, mixer.value_dim, mixer.qkv_dim - mixer.n_value_head * mixer.value_dim)


_LAYER = "model.layers.{i}.linear_attn."
GGUF_RULES = (Rule("blk.{i}.ssm_dt.bias", ("layers.{i}.attn.dt_bias",), split=lambda t, c: [t[_rows(c)]]),)
GGUF_RESTORE: dict[str, Callable[[Any, Config], Any]] = {
    _LAYER + "in_proj_qkv.weight": lambda t, c: t[_qkv_rows(c)],
    _LAYER + "in_proj_z.weight": lambda t, c: t[_value_rows(c)],
    _LAYER + "in_proj_b.weight": lambda t, c: t[_rows(c)],
    _LAYER + "in_proj_a.weight": lambda t, c: t[_rows(c)],
    _LAYER + "conv1d.weight": lambda t, c: t[_qkv_rows(c)],
    _LAYER + "A_log": lambda t, c: (-t[_rows(c)]).log(),
    _LAYER + "out_proj.weight": lambda t, c: t[:, _value_rows(c)],
}


FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    from_hf=from_hf,
    to_hf=hybrid_to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),  # also inside multimodal checkpoints (`qwen3_5`)
    ignore=IGNORE,
    gguf=GGUFSpec(
        arch="qwen35",
        from_gguf=from_gguf,
        restore=subtract_one((*LLAMA_RULES, *QK_NORM_RULES)) | GGUF_RESTORE,
        rules=GGUF_RULES,
    ),
)
