"""OLMo Hybrid: OLMo 3's attention in every fourth layer; Gated DeltaNet, with norms before it, in the others.

Gated DeltaNet has separate projections and convolutions of queries, keys and values, and beta goes up to 2
(`linear_allow_neg_eigval`). A theta of null means that there is no rope, as in the published models.

transformers (5.24, conversion_mapping.py) saves the three convolutions as equal thirds of all their rows, and the first
norm of attention layers under the name that it has in the other layers. Both are read; what is written is as published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from litlm.config.layers import GatedDeltaConfig, RopeConfig
from litlm.families import olmo2
from litlm.families.base import Family, HFFields, hf_layer_types
from litlm.families.qwen3_next import delta_fields, hf_delta
from litlm.families.weights import Rule, conv_rule, rename, renamed_rules

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = olmo2.from_hf(
        hf, eps=1e-6, vocab_size=100352, n_embd=3840, n_layer=32, n_head=30, intermediate_size=11008,
        max_seq_len=65536, eos_token_id=100257, pad_token_id=100277,
    )  # fmt: skip
    hf.expect("hidden_act", "silu", "silu")  # the convolution's too
    n_layer, n_head = values["n_layer"], values["n_head"]
    every = ["full" if i % 4 == 3 else "recurrent" for i in range(n_layer)]
    types = hf.layer_types(every if n_layer > 3 else [*every[:-1], "full"], "linear_attention")
    if set(types) != {"full", "recurrent"}:
        hf.problems.append(
            "layer_types must hold both 'linear_attention' and 'full_attention', and no other; name one per layer"
        )
    n_key_head = hf.take("linear_num_key_heads", n_head)
    key_dim = int(0.75 * values["n_embd"] / n_key_head) if n_key_head else 1  # 0 is refused below
    delta = delta_fields(
        hf,
        1e-5,  # whatever rms_norm_eps is
        n_key_head=n_head,
        n_value_head=n_head,
        key_dim=key_dim,
        value_dim=2 * hf.take("linear_key_head_dim", key_dim),
        separate_qkv=True,
        beta_scale=2.0 if hf.take("linear_allow_neg_eigval", True) else 1.0,
    )
    hf.skip("linear_a_log_min linear_a_log_max linear_dt_min linear_dt_max linear_dt_init_floor")  # of new weights
    rope = values["rope"] if _has_rope(hf.data) else None
    return values | dict(
        layer_types=types,
        recurrent=delta if "recurrent" in types else None,
        recurrent_block="pre" if "recurrent" in types else None,
        rope=rope,
        rope_layers=tuple(rope is not None and t == "full" for t in types),
    )


def _has_rope(data: Mapping[str, Any]) -> bool:
    """Without rope theta is a written null. Left out, it has its default."""
    parameters = data.get("rope_scaling") or data.get("rope_parameters") or {}
    stated = parameters if "rope_theta" in parameters else data
    return "rope_theta" not in stated or stated["rope_theta"] is not None


def to_hf(config: Config) -> dict[str, Any]:
    mixer = config.recurrent
    neg_eigval = isinstance(mixer, GatedDeltaConfig) and mixer.beta_scale == 2
    fields = olmo2.to_hf(config if config.rope is not None else dataclasses.replace(config, rope=RopeConfig()))
    if config.rope is None:
        fields |= dict(rope_parameters=dict(rope_type="default", rope_theta=None), rope_theta=None)
    more = dict(linear_allow_neg_eigval=neg_eigval)
    return fields | hf_layer_types(config, "linear_attention") | hf_delta(config) | more


def _recurs(config: Config, i: int) -> bool:
    return config.layer_types[i] == "recurrent"


def _attends(config: Config, i: int) -> bool:
    return not _recurs(config, i)


def _conv_rows(config: Config) -> dict[str, int]:
    mixer = config.recurrent
    assert isinstance(mixer, GatedDeltaConfig)
    return {_LINEAR + f"{x}_conv1d.weight": n for x, n in zip("qkv", mixer.qkv_dims, strict=True)}


_LAYER, _OURS = "model.layers.{i}.", "layers.{i}."
_LINEAR, _MIXER = _LAYER + "linear_attn.", _OURS + "attn."
_LINEAR_NAMES = {f"{x}_proj.weight": f"{x}_proj.weight" for x in "qkv"} | {
    "g_proj.weight": "in_proj_z.weight",
    "b_proj.weight": "in_proj_b.weight",
    "a_proj.weight": "in_proj_a.weight",
    "A_log": "A_log",
    "dt_bias": "dt_bias",
    "o_norm.weight": "norm.weight",
    "o_proj.weight": "out_proj.weight",
}
_LINEAR_RULES = (
    rename(_LAYER + "attention_layer_norm.weight", _OURS + "attn_norm.weight"),
    rename(_LAYER + "feedforward_layer_norm.weight", _OURS + "mlp_norm.weight"),
    *(rename(_LINEAR + theirs, _MIXER + ours) for theirs, ours in _LINEAR_NAMES.items()),
    *(conv_rule(_LINEAR + f"{x}_conv1d.weight", _MIXER + f"{x}_conv.weight") for x in "qkv"),
)
_SAVED_NORM = rename(_LAYER + "feedforward_layer_norm.weight", _OURS + "post_attn_norm.weight")
_RULES: tuple[Rule, ...] = (
    *(dataclasses.replace(rule, layers=_recurs) for rule in _LINEAR_RULES),
    *(dataclasses.replace(rule, layers=_attends if ".attn." in rule.ours[0] else None) for rule in olmo2.RULES),
    dataclasses.replace(_SAVED_NORM, layers=_attends),
)

FAMILY = Family(
    model_type="olmo_hybrid",
    architecture="OlmoHybridForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=_RULES,
    modules=renamed_rules(
        _RULES, {"attention_layer_norm": "input_layernorm", "feedforward_layer_norm": "post_attention_layernorm"}
    ),
    recut=_conv_rows,
)
