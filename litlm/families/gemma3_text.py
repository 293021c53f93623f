"""Gemma 3 (text): Gemma 2 with normalized queries and keys instead of capped scores, five of six layers sliding, and a
rope of their own for these. Multimodal checkpoints (`gemma3`) hold the same model under longer names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, QKNormConfig, RopeConfig
from litlm.families import gemma2
from litlm.families.base import Family, HFFields, hf_rope, hf_rope_parameters
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.weights import QK_NORM_RULES, nested_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(
        vocab_size=262208,
        n_layer=26,
        n_embd=2304,
        n_head=8,
        intermediate_size=9216,
        max_seq_len=131072,
        tie_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    hf.expect("attn_logit_softcapping", None)  # unused by transformers
    hf.skip("_sliding_window_pattern")  # newer files list layer_types beside it
    pattern = hf.take("sliding_window_pattern", 6)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)), offset=True)
    rope, sliding_rope = ropes(hf, 1e6, 1e4, "rope_local_base_freq")
    return common | gemma2.gemma_fields(hf, qk_norm=QKNormConfig(norm=norm)) | dict(
        layer_types=hf.layer_types(["sliding" if (i + 1) % pattern else "full" for i in range(common["n_layer"])]),
        rope=rope,
        sliding_rope=sliding_rope,
        embed_scale=common["n_embd"] ** 0.5,
        logit_softcap=hf.take("final_logit_softcapping", None),
    )  # fmt: skip


def ropes(hf: HFFields, theta: float, sliding_theta: float, sliding_key: str) -> tuple[RopeConfig, RopeConfig | None]:
    """The ropes of full and of sliding layers (None if it is the same), from `rope_parameters` with an entry for each.

    Older files have rope_theta and, for full layers alone, rope_scaling; sliding_key is their name of the theta of
    sliding layers. theta, sliding_theta: transformers' defaults.
    """
    parameters = dict(hf.take("rope_parameters", None) or {})
    if parameters and not set(parameters) & {"full_attention", "sliding_attention"}:
        hf.problems.append("rope_parameters must have an entry for full_attention and one for sliding_attention")
    full = dict(parameters.get("full_attention") or {}) | dict(hf.take("rope_scaling", None) or {})
    sliding = dict(parameters.get("sliding_attention") or {})
    theta = full.pop("rope_theta", hf.take("rope_theta", theta))
    sliding_theta = sliding.pop("rope_theta", hf.take(sliding_key, sliding_theta))
    rope = RopeConfig(theta=float(theta), scaling=hf.rope_scaling(full))
    sliding_rope = RopeConfig(theta=float(sliding_theta), scaling=hf.rope_scaling(sliding))
    return rope, None if sliding_rope == rope else sliding_rope


def hf_ropes(config: Config) -> dict[str, Any]:
    """The inverse of `ropes`, without sliding_key."""
    assert config.rope is not None
    full, sliding = hf_rope_parameters(config.rope), hf_rope_parameters(config.sliding_rope or config.rope)
    return hf_rope(config.rope) | {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def to_hf(config: Config) -> dict[str, Any]:
    sliding = config.sliding_rope or config.rope
    assert sliding is not None
    return gemma2.to_hf(config) | hf_ropes(config) | dict(rope_local_base_freq=sliding.theta)


_RULES = (*gemma2.RULES, *QK_NORM_RULES)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    window = gguf.get("attention.sliding_window", 0)
    return gemma2.gemma_from_gguf(gguf, "gemma3_text", n_layer_27b=62, theta=None) | dict(
        final_logit_softcapping=gguf.get("final_logit_softcapping"),
        sliding_window=window or None,
        layer_types=gguf.layer_types(6 if window else 1),
        rope_parameters=gguf.rope_parameters(10000.0),
    )


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*_RULES, *nested_rules(_RULES)),
    ignore=(r"^(model\.)?(vision_tower|multi_modal_projector)\.",),
    gguf=GGUFSpec(arch="gemma3", from_gguf=from_gguf, restore=subtract_one(_RULES)),
)
