"""OLMo Hybrid, AFMoE and Lara: config files as their authors wrote them, files as transformers saves them, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import by_name, close, hf_logits, ours, raw_tensors, tokens, write
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import save_weights
from litlm.config import Config, GatedDeltaConfig

OLMO = by_name("olmo_hybrid-plain")
# As Trinity's files have it, but smaller.
TRINITY: dict[str, Any] = dict(
    model_type="afmoe", architectures=["AfmoeForCausalLM"], hidden_size=64, intermediate_size=80, head_dim=16,
    moe_intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, num_dense_layers=2, num_experts=8,
    num_experts_per_tok=2, num_hidden_layers=5, num_shared_experts=1, vocab_size=61, sliding_window=16,
    global_attn_every_n_layers=4, hidden_act="silu", load_balance_coeff=0.001, max_position_embeddings=128,
    mup_enabled=True, n_group=1, num_expert_groups=1, num_limited_groups=1, topk_group=1, rms_norm_eps=1e-5,
    rope_scaling=None, rope_theta=10000, route_norm=True, route_scale=2.826, score_func="sigmoid", use_cache=True,
    use_grouped_mm=True, tie_word_embeddings=False, attention_dropout=0.0, dtype="bfloat16",
    auto_map={"AutoConfig": "configuration_afmoe.AfmoeConfig"},
)  # fmt: skip


def _fields(name: str, **more: Any) -> dict[str, Any]:
    case = by_name(name)
    return cases.hf_config(case).to_dict() | dict(model_type=case.family) | more


# --- config files -----------------------------------------------------------------------------------------------------


def test_trinity_as_published() -> None:
    config = Config.from_hf(TRINITY)
    assert config.layer_types == ("sliding", "sliding", "sliding", "full", "sliding")
    assert config.rope_layers == (True, True, True, False, True)
    assert config.moe_layers == (False, False, True, True, True)
    assert config.embed_scale == 8
    assert config.moe is not None
    assert (config.moe.scale, config.moe.shared_intermediate_size) == (2.826, 24)
    assert Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("theta", "has_rope"),
    [
        (dict(rope_theta=None), False), (dict(rope_parameters=None, rope_theta=None), False),
        (dict(rope_parameters=dict(rope_theta=None)), False),
        (dict(rope_parameters=dict(rope_theta=None, rope_type="default"), rope_theta=5.0), False),
        ({}, True), (dict(rope_theta=500.0), True), (dict(rope_parameters=dict(rope_type="default")), True),
        (dict(rope_parameters=dict(rope_theta=500.0), rope_theta=None), True),
    ],
)  # fmt: skip
def test_theta_of_null_is_no_rope(theta: dict[str, Any], has_rope: bool) -> None:
    from transformers import AutoConfig

    stated = AutoConfig.for_model("olmo_hybrid", **theta).rope_parameters["rope_theta"]
    assert (stated is not None) == has_rope
    config = Config.from_hf(
        {k: v for k, v in OLMO.hf.items() if "rope" not in k} | theta | dict(model_type=OLMO.family)
    )
    assert (config.rope is not None) == any(config.rope_layers) == has_rope
    assert config.rope is None or config.rope.theta == stated
    assert Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("olmo_hybrid-plain", dict(layer_types=["full_attention"] * 4), "layer_types must hold both 'linear"),
        ("olmo_hybrid-plain", dict(layer_types=["linear_attention"] * 4), "must hold .*name one per layer"),
        ("olmo_hybrid-plain", dict(layer_types=["mamba"] * 4), "layer_types holds mamba; known are .*linear_attention"),
        ("olmo_hybrid-plain", dict(linear_num_key_heads=0), "linear_num_key_heads=0 must be a whole number, 1 or more"),
        ("afmoe-plain", dict(global_attn_every_n_layers=0), "every_n_layers=0 must be a whole number, 1 or more"),
        ("olmo_hybrid-plain", dict(hidden_act="gelu"), "hidden_act='gelu' is not supported .*only 'silu'"),
        (
            "olmo_hybrid-plain",
            dict(linear_num_value_heads=3),
            "linear_num_value_heads=3 must be a multiple of linear_num_key_heads=2",
        ),
        ("olmo_hybrid-plain", dict(linear_conv_kernel_dim=1), "linear_conv_kernel_dim=1 must be .*2 or more"),
        ("olmo_hybrid-plain", dict(linear_use_qk_norm=True), "linear_use_qk_norm=True .*--ignore_fields linear_use_qk"),
        ("lara_mini-plain", dict(layer_types=["chunked_attention"] * 4, linear_gate="x"), "linear_gate='x' is not"),
        ("lara_mini-plain", dict(hidden_act="relu"), "hidden_act='relu' is not supported .*only 'silu'"),
        ("afmoe-plain", dict(score_func="softmax"), "score_func='softmax' is not supported .*only 'sigmoid'"),
        ("afmoe-plain", dict(route_norm=False), "route_norm=False is not supported .*only True"),
        ("afmoe-plain", dict(n_group=2, topk_group=2), "n_group=2 is not supported .*only 1"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        Config.from_hf(_fields(name, **changed))


def test_what_the_formats_cannot_express() -> None:
    delta = ours(OLMO).config.recurrent
    assert isinstance(delta, GatedDeltaConfig)
    one = dict(separate_qkv=False, beta_scale=1.0)
    for name, changed in (
        ("olmo_hybrid-plain", dict(recurrent=vars(delta) | one)), ("olmo_hybrid-plain", dict(recurrent_block="post")),
        ("lara_mini-plain", dict(recurrent=vars(delta))), ("qwen3_next-plain", dict(recurrent=vars(delta))),
        ("afmoe-plain", dict(embed_scale=3.0)), ("afmoe-plain", dict(moe_layers=[True, False, True, True])),
    ):  # fmt: skip
        config = Config.from_dict(ours(by_name(name)).config.to_dict() | changed)
        with pytest.raises(ValueError, match=next(iter(changed))):
            config.to_hf()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_files_of_olmo_hybrid_with_either_cut(tmp_path: Path) -> None:
    """transformers' own, of which the convolutions are thirds, and the published form, which litlm writes."""
    first = "model.layers.0.linear_attn.{}_conv1d.weight"
    saved = {x: raw_tensors(write(OLMO))[first.format(x)][1][0] for x in "qkv"}
    assert saved == dict(q=27, k=27, v=26)  # of 80
    save_weights(ours(OLMO).state_dict(), ours(OLMO).config, tmp_path)
    written = raw_tensors(tmp_path)
    assert {x: written[first.format(x)][1][0] for x in "qkv"} == dict(q=16, k=16, v=48)
    assert "model.layers.3.post_attention_layernorm.weight" in written
    assert "model.layers.3.feedforward_layer_norm.weight" not in written
    ids = tokens(OLMO, 2, 13)
    with torch.no_grad():
        assert torch.equal(cases.load(tmp_path)(ids), ours(OLMO)(ids))
        close(ours(OLMO)(ids), hf_logits(OLMO, ids))


def test_wrong_rows_are_still_an_error(tmp_path: Path) -> None:
    save_weights(ours(OLMO).state_dict(), ours(OLMO).config, tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.linear_attn.v_conv1d.weight"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, file)
    with pytest.raises(
        ValueError, match=r"1.linear_attn.v_conv1d.weight has shape \[47, 4\], the config asks for \[48"
    ):
        cases.load(tmp_path)
    save_file({key: t for key, t in tensors.items() if key != name}, file)
    with pytest.raises(ValueError, match=r"1.linear_attn.v_conv1d.weight is missing"):
        cases.load(tmp_path)
    extra = "model.layers.3.attention_layer_norm.weight"  # which layers of attention don't have
    save_file(tensors | {extra: torch.ones(48)}, file)
    with pytest.raises(ValueError, match=r"3.attention_layer_norm.weight \[48\] is not part of a olmo_hybrid model"):
        cases.load(tmp_path)


def test_decays_in_fp32_stay_so(tmp_path: Path) -> None:
    """As transformers keeps them in a half-precision OLMo Hybrid."""
    model = cases.load(write(OLMO)).bfloat16()
    state = model.state_dict() | {n: p for n, p in ours(OLMO).state_dict().items() if n.endswith("A_log")}
    save_weights(state, model.config, tmp_path)
    again = cases.load(tmp_path, torch.bfloat16).state_dict()
    assert {n.rpartition(".")[2] for n, t in again.items() if t.dtype == torch.float32} == {"A_log"}
    assert all(torch.equal(again[n], t) for n, t in state.items())
