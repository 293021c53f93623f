"""Phi-3.5-MoE: LayerNorm, biases, LongRoPE, and a router of its own (sparsemixer) that selects two experts.

The files state the factor of cos and sin for short and for long sequences; litlm reads files in which the two are
equal, as in the published model. For sequences beyond the original length it uses `long_factor`, as Microsoft's own
code does; transformers 5 uses `short_factor` even then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import LongRopeScaling, MoEConfig, NormConfig
from litlm.families.base import Family, HFFields, hf_experts, hf_head_dim
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.mistral import mistral_fields
from litlm.families.mistral import to_hf as mistral_to_hf
from litlm.families.mixtral import RULES
from litlm.families.weights import rename

if TYPE_CHECKING:
    from litlm.config import Config

_MSCALES = ("short_mscale", "long_mscale")


def _merge_mscales(hf: HFFields) -> None:
    """Replace the two factors by the one of other families."""
    key = "rope_scaling" if hf.data.get("rope_scaling") else "rope_parameters"
    scaling = dict(hf.data.get(key) or {})
    short, long = (scaling.pop(name, None) for name in _MSCALES)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "longrope"):
        hf.problems.append(f"{key}.rope_type={kind!r} is not supported for this family, only 'longrope'")
    elif kind == "longrope" and (short is None or short != long):
        hf.problems.append(f"{key}.short_mscale={short} and long_mscale={long} must be equal numbers")
    elif kind == "longrope":
        scaling["attention_factor"] = short
    hf.data = {**hf.data, key: scaling}


def from_hf(hf: HFFields) -> dict[str, Any]:
    _merge_mscales(hf)
    hf.skip("input_jitter_noise")  # in training only
    values = mistral_fields(hf, window=None, eps=1e-5, attention_bias=False, rope=hf.rope(theta=1e6))
    hf.expect("num_experts_per_tok", 2, 2)
    head_bias = hf.take("lm_head_bias", False)
    if head_bias and values["tie_embeddings"]:
        hf.problems.append("lm_head_bias=True is not supported with tie_word_embeddings=True")
    return values | dict(
        norm=NormConfig(kind="layer", eps=values["norm"].eps),
        moe=MoEConfig(
            n_expert=hf.take("num_local_experts", 16),
            n_expert_per_token=2,
            intermediate_size=values["intermediate_size"],
            scoring="sparsemixer",
            jitter=float(hf.take("router_jitter_noise", 0.01)),
            aux_loss=float(hf.take("router_aux_loss_coef", 0.001)),
        ),
        head_bias=head_bias,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.moe is not None
    data = mistral_to_hf(config) | hf_experts(config)
    data |= dict(
        router_jitter_noise=config.moe.jitter, attention_bias=config.attention.bias, lm_head_bias=config.head_bias
    )
    del data["head_dim"]
    if config.rope is not None and isinstance(config.rope.scaling, LongRopeScaling):
        parameters = dict(data["rope_parameters"])
        parameters |= dict.fromkeys(_MSCALES, parameters.pop("attention_factor", None))
        data["rope_parameters"] = data["rope_scaling"] = parameters
        data["original_max_position_embeddings"] = config.rope.scaling.original_max_seq_len
    return data | hf_head_dim(config)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("phimoe", head_dim=None) | gguf.experts("num_local_experts", None)
    original, scaling = gguf.get("rope.scaling.original_context_length"), fields.get("rope_scaling")
    if scaling:
        scaling |= dict.fromkeys(_MSCALES, scaling.pop("attention_factor"))
    return fields | dict(
        original_max_position_embeddings=original if scaling else None,
        attention_bias=gguf.has("attn_q.bias"),
        lm_head_bias="output.bias" in gguf.shapes,
        sliding_window=gguf.get("attention.sliding_window", 0) or None,
    )


FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*RULES, rename("lm_head.bias", "lm_head.bias")),
    gguf=GGUFSpec(arch="phimoe", from_gguf=from_gguf),
)
