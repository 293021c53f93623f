"""Configs: validation, YAML, the zoo, and published `config.json` files read as transformers reads them."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from litlm.config import (
    AttentionConfig,
    Config,
    DynamicScaling,
    LatentConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MLPConfig,
    MoEConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    YarnScaling,
)
from litlm.families import get_family, list_families, register_family

TINY: dict[str, Any] = dict(vocab_size=11, n_layer=2, n_embd=8, n_head=2)
WRONG_NORM: dict[str, Any] = dict(kind="batch", eps="small")
WRONG_MLP: dict[str, Any] = dict(activation="mish")

# --- validation ----------------------------------------------------------------------------------------------------


def test_defaults_follow_from_the_sizes() -> None:
    config = Config(**TINY)
    assert (config.n_kv_head, config.head_dim, config.intermediate_size) == (2, 4, 32)
    assert config.layer_types == ("full", "full")
    assert config.eos_token_ids == ()
    assert dataclasses.replace(config, eos_token_id=3).eos_token_ids == (3,)
    assert dataclasses.replace(config, eos_token_id=(3, 5)).eos_token_ids == (3, 5)
    assert hash(config) == hash(Config(**TINY))


def test_layers_differ_where_the_pattern_says_so() -> None:
    config = Config(**TINY, sliding_window=3, layer_types=("sliding", "full"))
    assert [config.layer(i).window for i in range(2)] == [3, None]
    local, moe = RopeConfig(theta=50.0), MoEConfig(n_expert=4, n_expert_per_token=2, intermediate_size=7)
    config = Config(
        **TINY | dict(n_layer=4), sliding_window=3, layer_types=("sliding", "full", "chunked", "full"), moe=moe,
        moe_layers=(False, True, True, False), rope_layers=(True, True, True, False), sliding_rope=local,
    )  # fmt: skip
    layers = [config.layer(i) for i in range(4)]
    assert [(c.window, c.chunk) for c in layers] == [(3, None), (None, None), (None, 3), (None, None)]
    assert [c.rope for c in layers] == [local, config.rope, local, None]
    assert [c.moe for c in layers] == [None, moe, moe, None]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (
            dict(vocab_size=0, n_layer=-1, n_embd=0, n_head=0, max_seq_len=0, norm=NormConfig(eps=0)),
            ["vocab_size=0", "n_layer=-1", "n_embd=0", "n_head=0", "head_dim=0", "max_seq_len=0", "norm.eps=0"],
        ),
        (
            dict(n_head=3, n_kv_head=2, head_dim=5, layer_types=("full",), rope=RopeConfig(theta=0.5)),
            ["n_head=3 must be a multiple of n_kv_head=2", "layer_types has 1 entries for n_layer=2", "must be even",
             "rope.theta=0.5"],
        ),
        (
            dict(layer_types=("sliding", "local"), sliding_window=None, rope=RopeConfig(fraction=1.5)),
            ["'local'", "sliding_window must be set", "rope.fraction=1.5"],
        ),
        (
            dict(
                sliding_window=0,
                rope=RopeConfig(scaling=Llama3Scaling(factor=0.5, low_freq_factor=5.0, original_max_seq_len=0)),
            ),
            ["sliding_window=0", "scaling.factor=0.5", "original_max_seq_len=0", "low_freq_factor=5.0"],
        ),
        (
            dict(moe=MoEConfig(n_expert=4, n_expert_per_token=5, intermediate_size=0), moe_layers=(True,)),
            ["moe.intermediate_size=0", "moe_layers has 1 entries"],
        ),
        (
            dict(moe=MoEConfig(n_expert=6, n_expert_per_token=3, intermediate_size=8, n_group=3, n_group_per_token=1)),
            ["moe.n_expert_per_token=3 is more than n_group_per_token=1 groups of 2 experts hold"],
        ),
        (
            dict(moe_layers=(True, False), rope=None, rope_layers=(True, False), shared_norm=True),
            ["moe must say", "rope must say", "shared_norm is for block='parallel'"],
        ),
        (
            dict(rope=RopeConfig(scaling=LongRopeScaling(
                factor=2.0, original_max_seq_len=9, short_factor=(1.0,), long_factor=(1.0, 2.0)))),
            ["rope.scaling.short_factor has 1 entries", "rope rotates 2 pairs"],
        ),
        (
            dict(attention=AttentionConfig(
                qk_norm=QKNormConfig(over="all", after_rope=True),
                latent=LatentConfig(kv_rank=0, nope_head_dim=4, rope_head_dim=2, v_head_dim=3)), head_dim=8),
            ["after_rope must be false", "attention.latent.kv_rank=0", "head_dim=8 must be", "can't be combined"],
        ),
        (
            dict(norm=NormConfig(offset=True, weight=False), attention=AttentionConfig(
                v_norm=NormConfig(kind="layer", offset=True, bias=False), sinks=True, alibi=True,
                qk_norm=QKNormConfig(over="each_head", norm=NormConfig(kind="layer", eps=0)))),
            ["norm.offset=True needs weight=True", "attention.v_norm.offset=True needs weight=True, and bias=True",
             "attention.qk_norm.norm.eps=0", "norm.over='each_head' takes a norm with", "alibi can't be combined"],
        ),
        (
            dict(mlp=MLPConfig(kind="plain", activation="clamped"), rope=RopeConfig(
                fraction=0.5, scaling=DynamicScaling(factor=2.0, original_max_seq_len=9)), moe=MoEConfig(
                n_expert=4, n_expert_per_token=2, intermediate_size=7, shared_gate=True, shared_average=True,
                select_by="logits", scoring="sparsemixer")),
            ["activation='clamped' needs a gate", "rope.scaling.kind='dynamic' needs 4 rotated dimensions",
             "moe.shared_gate=True needs a shared expert", "moe.shared_average=True needs a shared expert",
             "moe.select_by='logits' is for"],
        ),
        (
            dict(rope=RopeConfig(scaling=YarnScaling(factor=2.0, original_max_seq_len=9, beta_slow=40.0))),
            ["beta_slow=40.0"],
        ),
        (dict(recurrent_block="pre"), ["recurrent_block='pre' is for recurrent layers and there are none; leave it"]),
        (
            dict(vocab_size="11", n_layer=2.0, dtype="float8", name=None, bos_token_id="<s>", eos_token_id=(1, "x"),
                 tie_embeddings=1, norm=NormConfig(**WRONG_NORM), mlp=MLPConfig(**WRONG_MLP)),
            ["vocab_size='11' must be int", "n_layer=2.0", "dtype='float8'", "'bfloat16'", "name=None", "bos_token_id",
             "eos_token_id", "tie_embeddings=1", "norm.kind='batch' must be 'rms' or 'layer'", "norm.eps", "'mish'"],
        ),
    ],
)  # fmt: skip
def test_all_problems_are_reported_at_once(fields: dict[str, Any], wrong: list[str]) -> None:
    with pytest.raises(ValueError) as e:
        Config(**(TINY | fields))
    for text in wrong:
        assert text in str(e.value)
    assert str(e.value).count("\n- ") >= len(wrong) - 1


def test_from_dict_reports_unknown_missing_and_wrong_together() -> None:
    data = {
        "vocab_sizes": 3, "n_layer": "two", "norm": {"kind": "x", "epsilon": 1},
        "rope": {"scaling": {"kind": "ntk", "factor": 2}}, "mlp": 5,
    }  # fmt: skip
    with pytest.raises(ValueError) as e:
        Config.from_dict(data)
    for text in ("vocab_sizes; did you mean vocab_size?", "n_layer='two'", "norm.kind='x'", "field norm.epsilon",
                 "rope.scaling.kind='ntk' must be one of 'linear', 'llama3', 'yarn'", "mlp=5",
                 "vocab_size is missing", "n_embd is missing", "n_head is missing"):  # fmt: skip
        assert text in str(e.value)


def _slots(cls: Any) -> set[Any]:
    """A config class and those of its fields."""
    hints = [option for hint in get_type_hints(cls).values() for option in (*get_args(hint), hint)]
    return {cls}.union(*(_slots(hint) for hint in hints if dataclasses.is_dataclass(hint)))


@pytest.mark.parametrize("cls", sorted(_slots(Config), key=lambda cls: cls.__name__))
def test_each_field_is_described_where_help_shows_it(cls: Any) -> None:
    described = {name for line in re.findall(r"^ *([\w, ]+): ", cls.__doc__, re.M) for name in line.split(", ")}
    assert {f.name for f in dataclasses.fields(cls)} <= described


# --- YAML ----------------------------------------------------------------------------------------------------------

RICH = Config(
    name="rich", family="qwen3", vocab_size=101, n_layer=3, n_embd=24, n_head=4, n_kv_head=2, head_dim=10,
    intermediate_size=50, max_seq_len=77, sliding_window=9, layer_types=("full", "sliding", "full"),
    tie_embeddings=True, norm=NormConfig(eps=1e-7), attention=AttentionConfig(qk_norm=QKNormConfig()),
    mlp=MLPConfig(activation="gelu_tanh"), init_std=0.013, dtype="bfloat16", bos_token_id=3, eos_token_id=(4, 5),
    pad_token_id=0,
    rope=RopeConfig(theta=1e6, scaling=YarnScaling(factor=3.5, original_max_seq_len=32, attention_factor=0.9)),
)  # fmt: skip
CONFIGS = [
    RICH,
    Config(**TINY),
    Config(**TINY, rope=RopeConfig(scaling=LinearScaling(factor=2.0)), eos_token_id=7),
    Config(**TINY, rope=RopeConfig(scaling=Llama3Scaling(factor=8.0, original_max_seq_len=8192))),
    Config(
        **TINY, family="gpt_neox", block="parallel", norm=NormConfig(kind="layer"), rope=RopeConfig(fraction=0.5),
        attention=AttentionConfig(bias=True, out_bias=True), mlp=MLPConfig(kind="plain", activation="gelu", bias=True),
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.family}-{type(c.rope.scaling).__name__}")
def test_yaml_round_trip(config: Config, tmp_path: Path) -> None:
    text = config.to_yaml(tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == text
    assert Config.from_yaml(tmp_path / "c.yaml") == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_yaml_by_hand(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-5 for a string; people write it all the same."""
    (tmp_path / "c.yaml").write_text(
        "vocab_size: 11\nn_layer: 2\nn_embd: 8\nn_head: 2\n"
        "norm: {eps: 1e-5}\nrope: {theta: 10000}\neos_token_id: [1, 2]\n"
    )
    assert Config.from_yaml(tmp_path / "c.yaml") == Config(**TINY, eos_token_id=(1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"- 1\n- 2\n", "mapping"),
        (b"", "mapping"),
        (b"vocab_size: 3\nnlayer: 2\n", "nlayer; did you mean n_layer"),
        (None, "can't be read"),
    ],
)
def test_bad_yaml_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as e:
        Config.from_yaml(path)
    assert message in str(e.value)
    with pytest.raises(ValueError, match="can't be read"):
        Config.from_yaml(tmp_path)


# --- the zoo -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("smollm2-135m", 134.515008), ("smollm2-360m", 361.821120), ("smollm2-1.7b", 1711.376384),
        ("llama-3.1-8b", 8030.261248), ("llama-3.2-1b-instruct", 1235.814400), ("llama-3.2-3b", 3212.749824),
        ("tinyllama-1.1b-chat-v1.0", 1100.048384), ("qwen3-0.6b", 596.049920), ("qwen3-8b", 8190.735360),
        ("qwen3-32b", 32762.123264), ("pythia-14m", 14.067712), ("pythia-160m", 162.322944), ("pythia-1b", 1011.781632),
    ],
)  # fmt: skip
def test_zoo_models_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    assert Config.from_name(name).n_parameters() == round(millions * 1e6)


def test_from_name_with_overrides() -> None:
    tiny = Config.from_name("pythia-14m", n_layer=2, n_embd=64)
    assert (tiny.n_layer, len(tiny.layer_types), tiny.head_dim, tiny.intermediate_size) == (2, 2, 16, 256)
    assert tiny.to_hf()["hidden_size"] == 64
    kept = Config.from_name("qwen3-0.6b", n_embd=256, rope={"theta": 5e5}, max_seq_len=99)
    assert (kept.head_dim, kept.intermediate_size, kept.n_kv_head) == (128, 3072, 8)  # its own, not derived ones
    assert kept.rope == RopeConfig(theta=5e5)
    assert Config.from_name("llama-3.2-1b", n_head=4, n_kv_head=2, n_embd=64).head_dim == 16
    with pytest.raises(ValueError, match="did you mean n_layer"):
        Config.from_name("pythia-14m", n_layers=2)
    with pytest.raises(ValueError, match="pythia-14m"):
        Config.from_name("pythia-15m")


# --- published config.json files -----------------------------------------------------------------------------------

SMOLLM2 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
 "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
 "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
 "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
 "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
 "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
 "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
 "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152}"""
LLAMA31 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
 "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
 "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
 "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
 "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
 "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true,
 "vocab_size": 128256}"""
QWEN3 = """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
 "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
 "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
 "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
 "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
 "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
 "use_sliding_window": false, "vocab_size": 151936}"""
PYTHIA = """{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "classifier_dropout": 0.1, "eos_token_id": 0,
 "hidden_act": "gelu", "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
 "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12,
 "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
 "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true,
 "vocab_size": 50304}"""
NEOX20B = """{"architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0,
 "eos_token_id": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144,
 "initializer_range": 0.02, "intermediate_size": 24576, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
 "model_type": "gpt_neox", "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000,
 "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.19.0.dev0",
 "use_cache": true, "vocab_size": 50432}"""


def test_smollm2_config() -> None:
    config = Config.from_hf(json.loads(SMOLLM2))
    assert config == Config(
        family="llama", vocab_size=49152, n_layer=30, n_embd=576, n_head=9, n_kv_head=3, head_dim=64,
        intermediate_size=1536, max_seq_len=8192, tie_embeddings=True, rope=RopeConfig(theta=1e5),
        init_std=0.041666666666666664, dtype="bfloat16", bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    assert dataclasses.replace(Config.from_name("smollm2-135m-instruct"), name="") == config


def test_llama31_config() -> None:
    config = Config.from_hf(json.loads(LLAMA31))
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
    assert config == Config(
        family="llama", vocab_size=128256, n_layer=32, n_embd=4096, n_head=32, n_kv_head=8, intermediate_size=14336,
        max_seq_len=131072, rope=RopeConfig(theta=5e5, scaling=scaling), dtype="bfloat16", bos_token_id=128000,
        eos_token_id=(128001, 128008, 128009),
    )  # fmt: skip
    assert dataclasses.replace(Config.from_name("llama-3.1-8b-instruct"), name="") == config


def test_qwen3_config() -> None:
    config = Config.from_hf(json.loads(QWEN3))
    assert config == Config(
        family="qwen3", vocab_size=151936, n_layer=28, n_embd=1024, n_head=16, n_kv_head=8, head_dim=128,
        intermediate_size=3072, max_seq_len=40960, tie_embeddings=True, norm=NormConfig(eps=1e-6),
        attention=AttentionConfig(qk_norm=QKNormConfig(norm=NormConfig(eps=1e-6))), rope=RopeConfig(theta=1e6),
        dtype="bfloat16", bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip
    assert dataclasses.replace(Config.from_name("qwen3-0.6b"), name="") == config


def test_pythia_config() -> None:
    config = Config.from_hf(json.loads(PYTHIA))
    assert config == Config(
        family="gpt_neox", vocab_size=50304, n_layer=12, n_embd=768, n_head=12, block="parallel", max_seq_len=2048,
        norm=NormConfig(kind="layer"), attention=AttentionConfig(bias=True, out_bias=True),
        mlp=MLPConfig(kind="plain", activation="gelu", bias=True), rope=RopeConfig(fraction=0.25), dtype="float16",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert dataclasses.replace(Config.from_name("pythia-160m"), name="") == config
    # transformers 4.4x saved it with more names for the same two numbers.
    again = json.loads(PYTHIA) | {"rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_scaling": None}
    assert Config.from_hf(again) == config
    with pytest.raises(ValueError, match="rope_theta=500 "):
        Config.from_hf(again | {"rope_theta": 500})


@pytest.mark.parametrize("text", [SMOLLM2, LLAMA31, QWEN3, PYTHIA, NEOX20B], ids=lambda t: str(len(t)))
def test_published_configs_mean_the_same_to_transformers(text: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "config.json").write_text(text)
    config = Config.from_hf(tmp_path / "a")
    assert config.name == "a"
    (tmp_path / "b" / "config.json").write_text(json.dumps(config.to_hf()))
    unlike = """transformers.js_config is_llama_config rope_interleaved pretraining_tp transformers_version hidden_act
        _name_or_path attention_probs_dropout_prob hidden_dropout_prob hidden_dropout classifier_dropout
        max_window_layers torch_dtype rope_theta rope_scaling rotary_emb_base rotary_pct partial_rotary_factor"""
    a, b = (AutoConfig.from_pretrained(tmp_path / d).to_dict() for d in "ab")
    assert {k: v for k, v in a.items() if k not in unlike.split()} == {
        k: v for k, v in b.items() if k not in unlike.split()
    }


# --- old and new spellings, defaults, nulls ------------------------------------------------------------------------

LLAMA: dict[str, Any] = dict(
    model_type="llama", vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=64,
)  # fmt: skip
QWEN: dict[str, Any] = LLAMA | dict(model_type="qwen3", num_key_value_heads=2)
NEOX: dict[str, Any] = LLAMA | dict(model_type="gpt_neox")

ROPES: list[tuple[str, dict[str, Any], RopeConfig]] = [
    ("none", {}, RopeConfig()),
    ("old", dict(rope_theta=5000, rope_scaling=None), RopeConfig(theta=5000.0)),
    ("new", dict(rope_parameters=dict(rope_type="default", rope_theta=5000)), RopeConfig(theta=5000.0)),
    ("new without a type", dict(rope_parameters=dict(rope_theta=5000.0)), RopeConfig(theta=5000.0)),
    (
        "old linear", dict(rope_theta=5000.0, rope_scaling=dict(type="linear", factor=4)),
        RopeConfig(theta=5000.0, scaling=LinearScaling(factor=4.0)),
    ),
    (
        "old linear, both names of the type", dict(rope_scaling=dict(rope_type="linear", type="linear", factor=4.0)),
        RopeConfig(scaling=LinearScaling(factor=4.0)),
    ),
    (
        "new linear", dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=77.0)),
        RopeConfig(theta=77.0, scaling=LinearScaling(factor=2.5)),
    ),
    (
        "llama3 without its original length",
        dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
        RopeConfig(scaling=Llama3Scaling(factor=8.0, original_max_seq_len=64)),
    ),
    (
        "yarn, as Qwen3's card says", dict(rope_theta=1e6, rope_scaling=dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
        RopeConfig(theta=1e6, scaling=YarnScaling(factor=4.0, original_max_seq_len=16)),
    ),
    (
        "yarn with everything", dict(rope_parameters=dict(
            rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=20,
            beta_slow=2, attention_factor=0.5, truncate=False, mscale=None)),
        RopeConfig(theta=100.0, scaling=YarnScaling(
            factor=4.0, original_max_seq_len=16, beta_fast=20.0, beta_slow=2.0, attention_factor=0.5, truncate=False)),
    ),
    (
        "both forms, as litlm writes them",
        dict(rope_theta=5000.0, rope_scaling=dict(rope_type="linear", factor=4.0, rope_theta=5000.0),
             rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=5000.0)),
        RopeConfig(theta=5000.0, scaling=LinearScaling(factor=4.0)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("family", [LLAMA, QWEN, NEOX], ids=lambda f: f["model_type"])
@pytest.mark.parametrize(("fields", "rope"), [r[1:] for r in ROPES], ids=[r[0] for r in ROPES])
def test_rope_spellings(family: dict[str, Any], fields: dict[str, Any], rope: RopeConfig, tmp_path: Path) -> None:
    from transformers import AutoConfig

    if family is NEOX:
        fields = {("rotary_emb_base" if k == "rope_theta" else k): v for k, v in fields.items()}
        rope = dataclasses.replace(rope, fraction=0.25)
        family = family | dict(hidden_size=32)
    elif family is QWEN:
        family = family | dict(head_dim=8)
    config = Config.from_hf(family | fields)
    assert config.rope == rope
    # The same to transformers, read from the same fields and from what litlm writes.
    for data in (family | fields, config.to_hf()):
        (tmp_path / "config.json").write_text(json.dumps(data))
        theirs = dict(AutoConfig.from_pretrained(tmp_path).rope_parameters)
        assert theirs.pop("rope_theta") == rope.theta
        assert theirs.pop("partial_rotary_factor", 1.0) == rope.fraction
        kind = theirs.pop("rope_type")
        theirs.pop("type", None)
        names = {"original_max_position_embeddings": "original_max_seq_len"}
        theirs = {names.get(k, k): v for k, v in theirs.items() if v is not None}
        defaults: dict[str, Any] = dict(beta_fast=32, beta_slow=1, truncate=True) if kind == "yarn" else {}
        scaling = {} if rope.scaling is None else {k: v for k, v in vars(rope.scaling).items() if v is not None}
        assert (scaling or {"kind": "default"}) == defaults | theirs | {"kind": kind}


def test_defaults_of_absent_fields_are_transformers_own(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for family in (LLAMA, QWEN, NEOX):
        shape = {k: v for k, v in family.items() if k not in ("max_position_embeddings", "num_key_value_heads")}
        (tmp_path / "config.json").write_text(json.dumps(shape | dict(num_attention_heads=32, hidden_size=1024)))
        theirs = AutoConfig.from_pretrained(tmp_path)
        config = dataclasses.replace(Config.from_hf(tmp_path))
        eps = theirs.layer_norm_eps if family is NEOX else theirs.rms_norm_eps
        assert config.norm.eps == eps
        assert config.max_seq_len == theirs.max_position_embeddings
        assert config.tie_embeddings == theirs.tie_word_embeddings
        assert config.init_std == theirs.initializer_range
        assert (config.bos_token_id, config.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
        assert config.head_dim == getattr(theirs, "head_dim", 32)
        assert config.rope.theta == theirs.rope_parameters["rope_theta"]
        assert config.rope.fraction == theirs.rope_parameters.get("partial_rotary_factor", 1.0)
        assert config.n_kv_head == getattr(theirs, "num_key_value_heads", 32)


def test_absent_kv_heads_of_qwen3_are_32() -> None:
    config = QWEN | dict(num_attention_heads=64)
    del config["num_key_value_heads"]
    assert Config.from_hf(config).n_kv_head == 32
    assert Config.from_hf(config | dict(num_key_value_heads=None)).n_kv_head == 64


@pytest.mark.parametrize("family", [LLAMA, NEOX, QWEN], ids=lambda f: f["model_type"])
def test_written_null_means_no_token(family: dict[str, Any]) -> None:
    none = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None, num_key_value_heads=None, head_dim=None)
    config = Config.from_hf(family | none | dict(hidden_size=32, num_attention_heads=4))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert config.n_kv_head == 4
    assert dataclasses.replace(Config.from_hf(config.to_hf())) == config


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), ("full", "sliding")),
        (dict(use_sliding_window=True, max_window_layers=0), ("sliding", "sliding")),
        (dict(use_sliding_window=False, sliding_window=8, max_window_layers=0), ("full", "full")),
        (dict(use_sliding_window=True, sliding_window=None, max_window_layers=0), ("full", "full")),
        (dict(use_sliding_window=True, sliding_window=8), ("full", "full")),
        (
            dict(use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
            ("sliding", "full"),
        ),
    ],
)
def test_qwen3_windows(fields: dict[str, Any], pattern: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = Config.from_hf(QWEN | fields)
    assert config.layer_types == pattern
    for data in (QWEN | fields, config.to_hf()):
        (tmp_path / "config.json").write_text(json.dumps(data))
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert tuple(t.removesuffix("_attention") for t in theirs.layer_types) == pattern
        if "sliding" in pattern:
            assert theirs.sliding_window == config.sliding_window


# --- what can't be followed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (
            LLAMA | dict(logit_scale=0.5, hidden_act="mish"),
            ["logit_scale=0.5", "hidden_act='mish'"],
        ),
        (
            LLAMA | dict(rope_scaling=dict(type="axial", factor=2.0), final_logit_softcapping=30.0),
            ["'axial'", "final_logit_softcapping=30.0"],
        ),
        (
            QWEN | dict(rope_scaling=dict(rope_type="proportional"), num_experts=8),
            ["'proportional'", "num_experts=8"],
        ),
        (LLAMA | dict(rope_scaling=dict(rope_type="linear", factor=2.0, mrope_section=[1, 2])), ["mrope_section"]),
        (LLAMA | dict(rope_scaling=dict(rope_type="llama3")), ["factor", "low_freq_factor", "high_freq_factor"]),
        (LLAMA | dict(rope_scaling=dict(rope_type="yarn")), ["factor is missing"]),
        (LLAMA | dict(rope_parameters=dict(full_attention=dict(rope_theta=3.0))), ["full_attention"]),
        (LLAMA | dict(partial_rotary_factor=0.5), ["partial_rotary_factor=0.5"]),
        (QWEN | dict(rope_parameters=dict(partial_rotary_factor=0.25)), ["partial_rotary_factor=0.25"]),
        (LLAMA | dict(rope_interleaved=True, no_rope_layers=[1, 1], torch_dtype="float8_e4m3fn"),
         ["rope_interleaved=True", "no_rope_layers", "float8_e4m3fn"]),
        (LLAMA | dict(residual_multiplier=0.22, embedding_multiplier=12.0, attention_multiplier=0.01),
         ["residual_multiplier", "embedding_multiplier", "attention_multiplier"]),
        (QWEN | dict(layer_types=["full_attention", "linear_attention"], vision_config=dict(depth=3)),
         ["linear_attention", "vision_config"]),
        (QWEN | dict(layer_types=["full_attention", "sliding_attention"], sliding_window=4), ["use_sliding_window"]),
        (NEOX | dict(rotary_pct=0.25, num_key_value_heads=1), ["num_key_value_heads=1"]),
        ({"model_type": "llama"}, ["vocab_size is missing", "hidden_size", "num_hidden_layers", "intermediate_size"]),
        (LLAMA | dict(hidden_size="16"), ["n_embd='16'"]),
    ],
)  # fmt: skip
def test_fields_that_change_the_math_are_named(fields: dict[str, Any], wrong: list[str]) -> None:
    with pytest.raises(ValueError) as e:
        Config.from_hf(fields)
    for text in wrong:
        assert text in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
        ("{}", "model_type"),
        ('{"model_type": "lama"}', "'llama'"),
        ('{"model_type": "mamba2"}', "Supported: "),
        ('{"model_type": "llama", "vocab_size": 3}', "hidden_size is missing"),
        (None, "does not exist"),
    ],
)
def test_bad_config_files(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for source in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))) as e:
            Config.from_hf(source)
        assert message in str(e.value)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (dict(attention=AttentionConfig(qk_norm=QKNormConfig()), block="parallel"), ["attention", "block"]),
        (dict(attention=AttentionConfig(bias=True)), ["out_bias"]),
        (dict(sliding_window=3, layer_types=("full", "sliding")), ["sliding_window", "layer_types"]),
        (dict(norm=NormConfig(kind="layer"), mlp=MLPConfig(kind="plain")), ["norm", "mlp"]),
        (dict(rope=RopeConfig(fraction=0.5)), ["partial_rotary_factor"]),
        (dict(family="qwen3"), ["qk_norm"]),
        (dict(family="gpt_neox", n_kv_head=1, head_dim=6), ["n_kv_head", "head_dim", "norm", "mlp"]),
    ],
)  # fmt: skip
def test_what_a_family_cannot_express_is_an_error(fields: dict[str, Any], wrong: list[str]) -> None:
    with pytest.raises(ValueError) as e:
        Config(**(TINY | fields)).to_hf()
    for text in wrong:
        assert text in str(e.value)


# --- registry and imports ------------------------------------------------------------------------------------------


def test_register_family() -> None:
    llama = get_family("llama")
    mine = dataclasses.replace(llama, model_type="test_only_llama")
    try:
        register_family(mine)
        register_family(mine)  # running a notebook cell twice is fine
        assert "test_only_llama" in list_families()
        config = Config.from_hf(LLAMA | dict(model_type="test_only_llama"))
        assert config.family == "test_only_llama"
        assert config.to_hf()["model_type"] == "test_only_llama"
        with pytest.raises(ValueError, match="taken"):
            register_family(dataclasses.replace(mine, architecture="Other"))
        with pytest.raises(ValueError, match="taken"):
            register_family(llama)
    finally:
        import litlm.families

        litlm.families._registered.pop("test_only_llama")


@pytest.mark.parametrize(
    "fields",
    [
        LLAMA | dict(rms_norm_eps="tiny"), LLAMA | dict(rope_scaling=3), LLAMA | dict(num_hidden_layers="abc"),
        LLAMA | dict(hidden_act=["silu"]), QWEN | dict(layer_types=7), LLAMA | dict(rms_norm_eps=[1]),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"wrong kind|must be|not supported|not valid"):
        Config.from_hf(fields)


@pytest.mark.parametrize("module", ["litlm.config", "litlm.families", "litlm.zoo", "litlm"])
def test_configs_need_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; from litlm.config import Config; from litlm.zoo import list_models\n"
        "[Config.from_name(n).to_hf() for n in list_models()]\n"
        "bad = {'torch', 'numpy', 'transformers', 'lightning', 'safetensors', 'gguf'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=600)
