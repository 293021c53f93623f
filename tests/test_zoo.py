"""The named models: LitGPT's whole table field by field, transformers' parameter counts, the sizes in the names."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from packages import unpacked

from litlm import zoo
from litlm.config import Config, LinearScaling, Llama3Scaling
from litlm.prompts import get_style
from litlm.zoo import ModelInfo, find_model, get_model, list_models, register_model, suggest

NAMES = list_models()
FAMILIES = sorted({get_model(name).hf["model_type"] for name in NAMES})


@pytest.fixture(scope="module")
def litgpt() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("litgpt_config", unpacked("litgpt==0.5.13") / "litgpt" / "config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["litgpt_config"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["litgpt_config"]


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    rows = [row for table in zoo._TABLES for row in table.models()]
    assert len(rows) == len(NAMES)
    taken: dict[str, str] = {}
    for name in NAMES:
        for key in get_model(name).keys:
            assert key == key.lower()
            assert taken.setdefault(key, name) == name
            assert find_model(key.upper()) is get_model(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_complete(family: str) -> None:
    for name in list_models(family):
        info = get_model(name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", info.hub_id)
        assert info.hub_id.lower().endswith("/" + name)
        assert re.fullmatch(r"[a-z0-9.-]+", info.license)
        assert not info.gated or info.license not in ("apache-2.0", "mit")
        assert info.style is None or get_style(info.style).name == info.style
        assert info.chat or info.style in (None, "phi-1", "phi-2")
        assert json.loads(json.dumps(dict(info.hf))) == info.hf


def test_gated_models() -> None:
    asked = ("meta-llama/", "google/", "CohereLabs/", "tiiuae/falcon-180B", "mistralai/Mistral-Large", "mistralai/Code")
    for info in map(get_model, NAMES):
        if info.hub_id.startswith("google/gemma-4-"):  # the first Gemmas under Apache's licence
            assert not info.gated, info.name
        elif info.hub_id.startswith(asked):
            assert info.gated, info.name
        if info.license in ("apache-2.0", "mit", "llama2") and not info.hub_id.startswith(asked):
            assert not info.gated, info.name


def test_what_is_there(litgpt: ModuleType) -> None:
    """The families that users ask for first, each with its flagship."""
    for name in (
        "qwen3-235b-a22b-thinking-2507", "qwen3-coder-480b-a35b-instruct", "gpt-oss-120b", "deepseek-v3.1",
        "deepseek-r1", "deepseek-v2-lite", "glm-4.6", "glm-4.5-air", "gemma-3-27b-it", "gemma-4-31b-it", "phi-4",
        "mistral-small-24b-instruct-2501", "olmo-2-0325-32b", "olmo-3-1125-32b", "olmoe-1b-7b-0924", "smollm3-3b",
        "granite-3.3-8b-instruct", "c4ai-command-r7b-12-2024", "starcoder2-15b", "minitron-8b-base",
        "llama-4-scout-17b-16e-instruct", "exaone-4.0-32b", "ernie-4.5-21b-a3b-pt", "seed-oss-36b-instruct",
        "hunyuan-7b-instruct", "apertus-70b-2509", "minimax-m2", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b",
        "qwen1.5-moe-a2.7b", "mixtral-8x22b-v0.1", "qwen3.5-0.8b", "qwen3-next-80b-a3b-instruct", "lfm2-350m",
        "qwen3.5-397b-a17b", "lfm2-24b-a2b",
    ):  # fmt: skip
        assert find_model(name), name
    assert len(litgpt.configs) == 210
    assert len(NAMES) >= 210


def test_register_model() -> None:
    before = dict(zoo._MODELS)
    try:
        mine = ModelInfo(name="mine", hub_id="me/Mine", hf={}, aliases=("my-model",))
        assert register_model(mine) is mine
        assert register_model(mine) is mine  # a notebook cell that was run twice
        assert find_model("MY-MODEL") is find_model("me/mine") is get_model("mine") is mine
        with pytest.raises(ValueError, match="zoo names are lower case; use 'other'"):
            register_model(ModelInfo(name="Other", hub_id="me/Other", hf={}))
        for name, aliases in (("mine", ()), ("my-model", ()), ("other", ("llama-3-8b",)), ("llama-2-7b-hf", ())):
            with pytest.raises(ValueError, match="is already in the zoo for"):
                register_model(ModelInfo(name=name, hub_id="me/Other", hf={}, aliases=aliases))
    finally:
        zoo._MODELS.clear()
        zoo._MODELS.update(before)


def test_unknown_names() -> None:
    assert find_model("lama-3.1-8b") is None
    with pytest.raises(ValueError, match=r"Unknown model 'lama-3.1-8b'. Did you mean 'llama-3.1-8b'"):
        get_model("lama-3.1-8b")
    assert suggest("org/#") == "`litlm models` lists all names."
    assert list_models("nothing") == []


# --- LitGPT's table -------------------------------------------------------------------------------------------------

# Where LitGPT's table does not say what the model's own config.json says: field, theirs, ours, names.
_BETTER: list[tuple[str, Any, Any, str]] = [
    # The published max_position_embeddings. LitGPT has its default, the sliding window or another model's.
    ("max_seq_len", 4096, 32768, "llama-2-7b-32k mistral-7b-v0.1 mistral-7b-instruct-v0.1"),
    ("max_seq_len", 4096, 8192, "gemma-2b gemma-7b gemma-2b-it gemma-7b-it codegemma-7b-it"),
    ("max_seq_len", 4096, 131072, "phi-3.5-mini-instruct"),
    ("max_seq_len", 2048, 16384, "codellama-13b-instruct-hf"),
    ("max_seq_len", 131072, 32768, "gemma-3-1b-it qwen2.5-1.5b-instruct qwen2.5-7b-instruct qwen2.5-14b-instruct"),
    ("max_seq_len", 131072, 32768, "qwen2.5-32b-instruct qwen2.5-72b-instruct"),
    ("max_seq_len", 32768, 131072, "mistral-large-instruct-2407 mistral-large-instruct-2411"),
    ("max_seq_len", 40960, 32768, "qwen3-0.6b-base qwen3-1.7b-base qwen3-4b-base qwen3-8b-base qwen3-14b-base"),
    ("max_seq_len", 40960, 32768, "qwen3-30b-a3b-base"),
    # All Gemmas have 1e-6; LitGPT has its default.
    ("norm.eps", 1e-5, 1e-6, "gemma-2b gemma-7b gemma-2b-it gemma-7b-it codegemma-7b-it gemma-2-2b gemma-2-2b-it"),
    ("norm.eps", 1e-5, 1e-6, "gemma-2-9b gemma-2-9b-it gemma-2-27b gemma-2-27b-it gemma-3-1b-it gemma-3-4b-it"),
    ("norm.eps", 1e-5, 1e-6, "gemma-3-12b-it gemma-3-27b-it"),
    # Those that see images have 64 tokens for them.
    ("vocab_size", 262144, 262208, "gemma-3-4b-it gemma-3-12b-it gemma-3-27b-it"),
    # Finetuned from Llama 2 70B, which has 8.
    ("n_kv_head", 64, 8, "platypus2-70b"),
    # Raised for its longer context (Stable Code 3B's report).
    ("rope.theta", 10000, 1e6, "stable-code-3b"),
    # LitGPT leaves LongRoPE out, and counts a window from one token further.
    ("rope.scaling", None, "longrope", "phi-3-mini-128k-instruct phi-3.5-mini-instruct phi-4-mini-instruct"),
    ("rope.scaling", None, "longrope", "phi-4-mini-reasoning"),
    ("window", 2048, 2047, "phi-3-mini-4k-instruct"),
    ("window", 262145, 262144, "phi-3-mini-128k-instruct phi-4-mini-instruct phi-4-mini-reasoning"),
    ("window", None, 262144, "phi-3.5-mini-instruct"),
    ("windows", "0 of 32", "32 of 32", "phi-3.5-mini-instruct"),
]  # fmt: skip


def _theirs(c: Any) -> dict[str, Any]:
    """A config of LitGPT in the words of litlm's."""
    moe = c.mlp_class_name == "LLaMAMoE"
    scaling: Any = None
    if c.rope_adjustments and "low_freq_factor" in c.rope_adjustments:
        scaling = Llama3Scaling(**c.rope_adjustments)
    elif c.rope_adjustments or c.rope_condense_ratio != 1:
        scaling = LinearScaling(factor=float((c.rope_adjustments or {}).get("factor", c.rope_condense_ratio)))
    pre, post = (c.norm_1, c.norm_2), (c.post_attention_norm, c.post_mlp_norm)
    blocks = {((True,) * 2, (False,) * 2): "pre", ((False,) * 2, (True,) * 2): "post", ((True,) * 2,) * 2: "sandwich"}
    windows = [bool(i) for i in c.sliding_window_indices or [0] * c.n_layer]
    gelu = {"none": "gelu", "tanh": "gelu_tanh"}[c.gelu_approximate]
    return {
        "n_layer": c.n_layer,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "n_kv_head": c.n_query_groups,
        "head_dim": c.head_size,
        "intermediate_size": c.intermediate_size,
        "vocab_size": c.padded_vocab_size,
        "max_seq_len": c.block_size,
        "block": "parallel" if c.parallel_residual else blocks[pre, post],
        "shared_norm": c.shared_attention_norm,
        "norm.kind": {"RMSNorm": "rms", "LayerNorm": "layer"}[c.norm_class_name],
        "norm.eps": c.norm_eps,
        "norm.weight": not (c.norm_class_name == "LayerNorm" and "OLMo" in c.name),
        "norm.offset": c.norm_class_name == "RMSNorm" and "Gemma" in c.name,
        "attention.bias": c.bias or c.attn_bias,
        "attention.out_bias": c.bias,
        "attention.qk_norm": c.norm_qk and {"default": "head", "olmo2": "all"}[c.norm_qk_type],
        "attention.scale": (c.attention_scores_scalar or c.head_size) ** -0.5,
        "attention.softcap": c.attention_logit_softcapping,
        "mlp.kind": "plain" if c.mlp_class_name == "GptNeoxMLP" else "gated",
        "mlp.activation": gelu if c.mlp_class_name in ("GptNeoxMLP", "GemmaMLP") else "silu",
        "mlp.bias": c.bias,
        "n_expert": c.n_expert,
        "n_expert_per_token": c.n_expert_per_token,
        "expert_size": (c.moe_intermediate_size or c.intermediate_size) if moe else None,
        "rope.theta": c.rope_base,
        "rope.fraction": c.rotary_percentage,
        "rope.scaling": scaling,
        "sliding_rope.theta": c.rope_local_base_freq,
        "sliding_rope.layers": [bool(i) for i in c.rope_indices] if c.rope_local_base_freq else None,
        "window": c.sliding_window_size,
        "windows": windows,
        "embed_scale": math.sqrt(c.n_embd) if c.scale_embeddings else 1.0,
        "logit_softcap": c.final_logit_softcapping,
        "head_bias": c.lm_head_bias,
    }


def _ours(c: Config) -> dict[str, Any]:
    assert c.rope is not None
    local = c.sliding_rope if c.sliding_rope is not None and "sliding" in c.layer_types else None
    windows = [kind == "sliding" for kind in c.layer_types]
    return {
        "n_layer": c.n_layer,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "n_kv_head": c.n_kv_head,
        "head_dim": c.head_dim,
        "intermediate_size": c.intermediate_size,
        "vocab_size": c.vocab_size,
        "max_seq_len": c.max_seq_len,
        "block": c.block,
        "shared_norm": c.shared_norm,
        "norm.kind": c.norm.kind,
        "norm.eps": c.norm.eps,
        "norm.weight": c.norm.weight,
        "norm.offset": c.norm.offset,
        "attention.bias": c.attention.bias,
        "attention.out_bias": c.attention.out_bias,
        "attention.qk_norm": c.attention.qk_norm is not None and c.attention.qk_norm.over,
        "attention.scale": c.attention.scale or c.head_dim**-0.5,
        "attention.softcap": c.attention.softcap,
        "mlp.kind": c.mlp.kind,
        "mlp.activation": c.mlp.activation,
        "mlp.bias": c.mlp.bias,
        "n_expert": c.moe.n_expert if c.moe else 0,
        "n_expert_per_token": c.moe.n_expert_per_token if c.moe else 0,
        "expert_size": c.moe.intermediate_size if c.moe else None,
        "rope.theta": c.rope.theta,
        "rope.fraction": c.rope.fraction,
        "rope.scaling": c.rope.scaling,
        "sliding_rope.theta": local and local.theta,
        "sliding_rope.layers": windows if local else None,
        "window": c.sliding_window if any(windows) else None,
        "windows": windows,
        "embed_scale": c.embed_scale,
        "logit_softcap": c.logit_softcap,
        "head_bias": c.head_bias,
    }


def _differ(a: Any, b: Any) -> bool:
    return not math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a != b


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return f"{sum(value)} of {len(value)}"
    return getattr(value, "kind", value)


def test_litgpt_names(litgpt: ModuleType) -> None:
    for c in litgpt.configs:
        name, hub_id = c["name"], f"{c['hf_config']['org']}/{c['hf_config']['name']}"
        info = find_model(name)
        assert info is not None, name
        assert find_model(hub_id) is info, hub_id
        assert find_model(name.upper()) is info


def test_litgpt_fields(litgpt: ModuleType) -> None:
    """Every field of every model, and not one exception that is none."""
    differences = set()
    for c in litgpt.configs:
        config = Config.from_name(c["name"])
        theirs, ours = _theirs(litgpt.Config(**c)), _ours(config)
        assert theirs.keys() == ours.keys()
        differences |= {
            (key, _short(theirs[key]), _short(ours[key]), config.name)
            for key in theirs
            if _differ(theirs[key], ours[key])
        }
    expected = {(key, a, b, name) for key, a, b, names in _BETTER for name in names.split()}
    assert differences == expected


# --- sizes ----------------------------------------------------------------------------------------------------------


def _architecture(hf: Mapping[str, Any]) -> str:
    """The fields on which the number of weights can depend."""
    other = ("_token_id", "torch_dtype", "max_position_embeddings", "rope_", "_factor", "layer_types", "sliding_window")
    return json.dumps({k: v for k, v in hf.items() if not k.endswith(other) and not k.startswith(other)})


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_as_in_transformers(family: str) -> None:
    """Each architecture is built once; models that share one have one number of weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    alike: dict[str, list[str]] = defaultdict(list)
    for name in list_models(family):
        alike[_architecture(get_model(name).hf)].append(name)
    for names in alike.values():
        hf = copy.deepcopy(dict(get_model(names[0]).hf))  # transformers writes into what it is given
        with torch.device("meta"):
            theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(hf.pop("model_type"), **hf))
        total = theirs.num_parameters()
        # What transformers keeps as a buffer because no gradient reaches it.
        total += sum(
            b.numel() for n, b in theirs.named_buffers() if n.endswith(("e_score_correction_bias", "expert_bias"))
        )
        assert {name: Config.from_name(name).n_parameters() for name in names} == dict.fromkeys(names, total)


def test_transformers_reads_what_litlm_reads() -> None:
    """What is in the table, written by `to_hf` and read again, is the same model."""
    for name in NAMES:
        config = Config.from_name(name)
        assert config.name == name
        again = Config.from_hf(config.to_hf())
        assert {f: v for f, v in vars(again).items() if f != "name"} == {
            f: v for f, v in vars(config).items() if f != "name"
        }


# Billions of weights as model cards and papers state them, where the name says nothing or rounds by more than a tenth.
_PUBLISHED = {
    2.51: "gemma-2b gemma-2b-it", 8.54: "gemma-7b gemma-7b-it codegemma-7b codegemma-7b-it",
    2.61: "gemma-2-2b gemma-2-2b-it", 3.64: "stablelm-base-alpha-3b stablelm-tuned-alpha-3b",
    7.87: "stablelm-base-alpha-7b stablelm-tuned-alpha-7b", 1.67: "falcon3-1b-base falcon3-1b-instruct",
    1.24: "llama-3.2-1b llama-3.2-1b-instruct", 1.18: "olmo-1b-hf", 4.51: "llama-3.1-minitron-4b-width-base",
    1.48: "olmo-2-0425-1b olmo-2-0425-1b-sft olmo-2-0425-1b-dpo olmo-2-0425-1b-instruct",
    1.78: "deepseek-r1-distill-qwen-1.5b", 2.53: "granite-3.0-2b-base granite-3.0-2b-instruct",
    3.43: "ministral-3-3b-base-2512 ministral-3-3b-instruct-2512 ministral-3-3b-reasoning-2512 "
    "open_llama_3b open_llama_3b_v2",
    2.25: "salamandra-2b salamandra-2b-instruct", 7.77: "salamandra-7b salamandra-7b-instruct",
    0.36: "ernie-4.5-0.3b-base-pt ernie-4.5-0.3b-pt",
    # The text part of 109B and 402B; the name has the active ones. Qwen's has no others either.
    107.8: "llama-4-scout-17b-16e-instruct", 400.7: "llama-4-maverick-17b-128e-instruct",
    14.3: "qwen1.5-moe-a2.7b qwen1.5-moe-a2.7b-chat",
    # Of 5.1B and 8B with encoders for pictures (0.15B) and sound (0.3B).
    4.65: "gemma-4-e2b gemma-4-e2b-it", 7.5: "gemma-4-e4b gemma-4-e4b-it",
    1.72: "bloom-1b7", 176.2: "bloom",
    0.124: "gpt2", 0.355: "gpt2-medium", 0.774: "gpt2-large", 1.56: "gpt2-xl", 0.305: "microllama",
    1.42: "phi-1 phi-1_5", 2.78: "phi-2", 3.82: "phi-3-mini-4k-instruct phi-3-mini-128k-instruct phi-3.5-mini-instruct",
    14.0: "phi-3-medium-4k-instruct", 14.7: "phi-4 phi-4-reasoning phi-4-reasoning-plus",
    3.84: "phi-4-mini-instruct phi-4-mini-reasoning", 69.0: "stablebeluga2",
    22.2: "mistral-small-instruct-2409", 123: "mistral-large-instruct-2407 mistral-large-instruct-2411",
    35.0: "c4ai-command-r-v01", 32.3: "c4ai-command-r-08-2024", 8.03: "c4ai-command-r7b-12-2024",
    15.7: "deepseek-v2-lite deepseek-v2-lite-chat deepseek-coder-v2-lite-base deepseek-coder-v2-lite-instruct",
    236: "deepseek-v2 deepseek-v2-chat deepseek-v2.5",
    671: "deepseek-v3-base deepseek-v3 deepseek-v3-0324 deepseek-v3.1-base deepseek-v3.1 deepseek-v3.1-terminus "
    "deepseek-r1 deepseek-r1-0528",
    # 358B and 110B with the layer that predicts one more token.
    79.7: "qwen3-coder-next",
    6.12: "trinity-nano-base trinity-nano-preview", 26.1: "trinity-mini-base trinity-mini",
    398.6: "trinity-large-base trinity-large-preview",
    295: "hy3-preview", 519: "a.x-k1", 671.9: "deepseek-v3.2-exp deepseek-v3.2", 744: "glm-5",
    353: "glm-4.5 glm-4.5-base glm-4.6", 107: "glm-4.5-air glm-4.5-air-base", 229: "minimax-m2",
}  # fmt: skip


def _stated(name: str) -> float | None:
    """Billions of weights that the name promises: the largest number in it, without A3B's."""
    found = re.findall(r"(?<![.a-z0-9])(\d+(?:[._]\d+)?)([bm])(?![a-z])", name)
    return max((float(n.replace("_", ".")) / (1000 if unit == "m" else 1) for n, unit in found), default=None)


def test_parameters_as_published() -> None:
    published = {name: billions for billions, names in _PUBLISHED.items() for name in names.split()}
    for name in NAMES:
        total, stated = Config.from_name(name).n_parameters() / 1e9, _stated(name)
        if name in published:
            assert total == pytest.approx(published[name], rel=0.01), name
            assert stated is None or abs(total / stated - 1) > 0.1, f"{name} says it well enough"
        elif (experts := re.search(r"(\d+)x(\d+)b", name)) is not None:  # which share the attention
            assert 0.75 < total / (int(experts[1]) * int(experts[2])) < 0.85, name
        else:
            assert total == pytest.approx(stated, rel=0.1), name


def test_active_parameters() -> None:
    """As published: in the name (A3B), in papers and model cards."""
    for name, billions in {
        "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22, "qwen3-coder-480b-a35b-instruct": 35, "qwen1.5-moe-a2.7b": 2.7,
        "mixtral-8x7b-v0.1": 12.9, "mixtral-8x22b-v0.1": 39, "gpt-oss-20b": 3.6, "gpt-oss-120b": 5.1,
        "deepseek-v2-lite": 2.4, "deepseek-v2": 21, "deepseek-v3": 37, "olmoe-1b-7b-0924": 1.3, "glm-4.5": 32,
        "glm-4.5-air": 12, "ernie-4.5-21b-a3b-pt": 3, "minimax-m2": 10, "granite-3.0-3b-a800m-base": 0.8,
        "llama-4-scout-17b-16e-instruct": 17, "llama-4-maverick-17b-128e-instruct": 17, "gemma-4-26b-a4b": 3.8,
        "trinity-nano-base": 1, "trinity-mini": 3, "trinity-large-preview": 13,
        "qwen3.5-35b-a3b": 3, "qwen3.5-122b-a10b": 10, "qwen3.5-397b-a17b": 17, "lfm2-8b-a1b": 1.5, "lfm2-24b-a2b": 2.3,
    }.items():  # fmt: skip
        config = Config.from_name(name)
        active = config.n_active_parameters() / 1e9
        embeddings = config.vocab_size * config.n_embd / 1e9
        # Some count no embeddings, some one of two.
        assert min(abs(active - k * embeddings - billions) for k in (0, 1, 2)) < 0.08 * billions, (name, active)
    for name in NAMES:
        config = Config.from_name(name)
        assert (config.n_active_parameters() < config.n_parameters()) == (config.moe is not None)
