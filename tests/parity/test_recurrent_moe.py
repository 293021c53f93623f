"""Qwen3.5 and LFM2 with experts, and LFM3: config files as published, and errors that name their fields."""

from __future__ import annotations

from typing import Any

import pytest
from parity import cases

from litlm.config import Config, GateConfig, GatedDeltaConfig, ShortConvConfig

QWEN, LFM2, LFM3 = "qwen3_5_moe_text-plain", "lfm2_moe-plain", "lfm3-plain"
# As in Qwen3.5-35B-A3B's file.
PUBLISHED: dict[str, Any] = dict(
    architectures=["Qwen3_5MoeForConditionalGeneration"], model_type="qwen3_5_moe", image_token_id=248056,
    text_config=dict(
        attention_bias=False, attention_dropout=0.0, attn_output_gate=True, dtype="bfloat16", eos_token_id=248044,
        full_attention_interval=4, head_dim=256, hidden_act="silu", hidden_size=2048, initializer_range=0.02,
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 10, linear_conv_kernel_dim=4,
        linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32, linear_value_head_dim=128,
        max_position_embeddings=262144, mlp_only_layers=[], model_type="qwen3_5_moe_text", moe_intermediate_size=512,
        mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False, num_attention_heads=16, num_experts=256,
        num_experts_per_tok=8, num_hidden_layers=40, num_key_value_heads=2, rms_norm_eps=1e-6,
        router_aux_loss_coef=0.001, shared_expert_intermediate_size=512, use_cache=True, vocab_size=248320,
        mamba_ssm_dtype="float32",
        rope_parameters=dict(
            mrope_interleaved=True, mrope_section=[11, 11, 10], rope_type="default", rope_theta=10000000,
            partial_rotary_factor=0.25,
        ),
    ),
    tie_word_embeddings=False, transformers_version="4.57.0.dev0", video_token_id=248057,
    vision_config=dict(depth=27, hidden_act="gelu_pytorch_tanh", hidden_size=1152, model_type="qwen3_5_moe"),
    vision_end_token_id=248054, vision_start_token_id=248053,
)  # fmt: skip


def _fields(name: str, **more: Any) -> dict[str, Any]:
    case = cases.by_name(name)
    return cases.hf_config(case).to_dict() | dict(model_type=case.family) | more


def test_a_published_file_is_the_named_model() -> None:
    config, named = Config.from_hf(PUBLISHED), Config.from_name("qwen3.5-35b-a3b")
    # generation_config.json has the other end token.
    assert config.to_dict() | dict(name="", eos_token_id=0) == named.to_dict() | dict(name="", eos_token_id=0)
    assert config.family == "qwen3_5_moe_text"
    assert isinstance(config.recurrent, GatedDeltaConfig)


def test_layers_of_lfm3_where_the_file_leaves_them_out() -> None:
    from transformers import Lfm3Config

    config, theirs = Config.from_hf(dict(model_type="lfm3")), Lfm3Config()
    kinds = {"conv": "recurrent", "full_attention": "full", "sliding_attention": "sliding"}
    assert theirs.layer_types is not None
    assert config.layer_types == tuple(kinds[t] for t in theirs.layer_types)
    assert config.recurrent == ShortConvConfig(kernel_size=7)
    assert config.attention.gate == GateConfig(over="head")
    assert config.to_hf()["rope_parameters"] == theirs.rope_parameters


@pytest.mark.parametrize("name", [QWEN, LFM2, LFM3])
def test_models_without_recurrent_layers(name: str) -> None:
    """The recurrent layers' fields say nothing then, and are no error."""
    fields = _fields(name)
    config = Config.from_hf(fields | dict(layer_types=["full_attention"] * fields["num_hidden_layers"]))
    assert config.recurrent is None
    assert Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (QWEN, dict(linear_num_value_heads=5), "linear_num_value_heads=5 must be a multiple of linear_num_key_heads=2"),
        (QWEN, dict(linear_key_head_dim=0), "linear_key_head_dim=0 must be a whole number, 1 or more"),
        (QWEN, dict(linear_conv_kernel_dim="4"), "linear_conv_kernel_dim='4' must be a whole number, 2 or more"),
        (QWEN, dict(full_attention_interval=0), "full_attention_interval=0 must be a whole number, 1 or more"),
        (QWEN, dict(linear_decay="exp"), "linear_decay='exp' is not understood.*--ignore_fields linear_decay"),
        (QWEN, dict(layer_types=["conv"] * 4), "layer_types holds conv; known are full_attention, linear_attention$"),
        (QWEN, dict(layer_types=["sliding_attention"] * 4), "layer_types holds sliding_attention; known are full_att"),
        (QWEN, dict(attn_output_gate=False), "attn_output_gate=False is not supported for this family, only True"),
        (QWEN, dict(output_gate_type="sigmoid"), "output_gate_type='sigmoid' is not supported .* only 'swish'"),
        (QWEN, dict(mlp_only_layers=[0]), r"mlp_only_layers=\[0\] is not supported for this family, only \[\]"),
        (QWEN, dict(norm_topk_prob=False), "norm_topk_prob=False is not supported for this family, only True"),
        (LFM2, dict(layer_types=None), "layer_types is missing: it must say .* whether it is full_attention or conv"),
        (LFM2, dict(layer_types=["linear_attention"] * 4), "holds linear_attention; known are full_attention, conv"),
        (LFM2, dict(conv_L_cache=1), "conv_L_cache=1 must be a whole number, 2 or more"),
        (LFM2, dict(conv_activation="silu"), "conv_activation='silu' is not understood.*--ignore_fields conv_act"),
        (LFM2, dict(num_dense_layers=-1), "num_dense_layers=-1 must be a whole number, 0 or more"),
        (LFM3, dict(conv_L_cache=0), "conv_L_cache=0 must be a whole number, 2 or more"),
        (LFM3, dict(rope_parameters=dict(rope_theta=1e4)), "must have an entry for full_attention and one for sliding"),
        (LFM3, dict(sliding_window=None), "sliding_window must be set"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_fields_are_named(name: str, fields: dict[str, Any], message: str) -> None:
    whole = _fields(name)
    match = "(?ms)" + message
    with pytest.raises(ValueError, match=match):
        Config.from_hf(whole | fields)
    if name == QWEN:
        with pytest.raises(ValueError, match=match):
            Config.from_hf(dict(model_type="qwen3_5_moe", text_config=whole | fields))


def test_a_default_that_does_not_fit_is_called_so() -> None:
    fields = _fields(QWEN)
    del fields["linear_num_key_heads"]
    message = r"linear_num_value_heads=4 must be a multiple of linear_num_key_heads=16 \(left out: the default\)"
    with pytest.raises(ValueError, match=message):
        Config.from_hf(fields)


def test_a_text_model_of_another_family_is_named() -> None:
    with pytest.raises(ValueError, match="text_config.model_type='qwen3_5_moe_text' is not supported; known are qwen3"):
        Config.from_hf(dict(model_type="qwen3_5", text_config=_fields(QWEN)))
