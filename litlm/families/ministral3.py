"""Ministral 3 (3B, 8B, 14B; the text model): Mistral with YaRN and queries scaled by their position.

Both are in `rope_parameters`: `llama_4_scaling_beta` is the scale, `original_max_position_embeddings` the interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, TemperatureConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import UNPERMUTE_QK, GGUFFields, GGUFSpec
from litlm.families.mistral import IGNORE, RULES, mistral_fields
from litlm.families.mistral import to_hf as mistral_to_hf

if TYPE_CHECKING:
    from litlm.config import Config

_BETA, _ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
_DEFAULT = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    _ORIGINAL: 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    _BETA: 0.1,
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    parameters = dict(hf.data.get("rope_parameters") or _DEFAULT)
    parameters.pop("max_position_embeddings", None)  # not used by the model
    beta, interval = parameters.pop(_BETA, None), parameters.get(_ORIGINAL)
    if beta is None or interval is None:
        hf.problems.append(f"rope_parameters must have {_BETA} and {_ORIGINAL}")
        beta, interval = 0.0, 1
    hf.data = {**hf.data, "rope_parameters": parameters}
    values = mistral_fields(hf, window=None, eps=1e-5, head_dim=128, max_seq_len=262144, pad_token_id=11)
    temperature = TemperatureConfig(scale=float(beta), interval=float(interval))
    return values | dict(attention=AttentionConfig(temperature=temperature))


def to_hf(config: Config) -> dict[str, Any]:
    data, temperature = mistral_to_hf(config), config.attention.temperature
    if temperature is not None:
        interval = int(temperature.interval)
        data["rope_parameters"] = data["rope_parameters"] | {_BETA: temperature.scale, _ORIGINAL: interval}
    del data["rope_scaling"], data["rope_theta"]
    return data


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields, beta = gguf.common("ministral3"), gguf.get("attention.temperature_scale")
    parameters = (fields.pop("rope_scaling", None) or {}) | dict(rope_theta=fields["rope_theta"])
    return fields | dict(rope_parameters=parameters | {_BETA: beta})


FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    ignore=IGNORE,
    gguf=GGUFSpec(
        arch="mistral3",
        from_gguf=from_gguf,
        matches=lambda gguf: bool(gguf.get("attention.temperature_scale")),
        restore=UNPERMUTE_QK,
    ),
)
