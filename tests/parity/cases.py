"""Tiny models of every family, built by transformers with weights large enough that a wrong detail shows.

A case is data: the arguments of transformers' own config class. `build` makes the model, `write` its checkpoint, and
the rest of the suite compares litlm with them. Norm weights and biases are random as well: fresh ones, 1 and 0, hide a
forgotten or swapped one.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.config import Config
from litlm.model import GPT


@dataclass(frozen=True)
class Case:
    """name: test id. family: Hugging Face model_type. hf: arguments of its config class. seed: of the weights."""

    name: str
    family: str
    hf: dict[str, Any] = field(hash=False)
    seed: int

    def __str__(self) -> str:
        return self.name


def _llama(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
    )  # fmt: skip
    return Case(f"llama-{name}", "llama", base | hf, seed)


def _qwen3(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=67, hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=128, rms_norm_eps=1e-6,
    )  # fmt: skip
    return Case(f"qwen3-{name}", "qwen3", base | hf, seed)


def _neox(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=59, hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=128, layer_norm_eps=1e-5,
    )  # fmt: skip
    return Case(f"gpt_neox-{name}", "gpt_neox", base | hf, seed)


def _rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


CASES = [
    _llama("plain", 0),
    _llama("mqa-tied", 1, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True, rms_norm_eps=1e-3),
    _llama("mha-biases", 2, num_key_value_heads=4, attention_bias=True, mlp_bias=True, **_rope("default", 500.0)),
    _llama("wide-heads-gelu", 3, head_dim=22, hidden_act="gelu", attention_bias=True),
    _llama("linear", 4, hidden_size=30, num_attention_heads=5, num_key_value_heads=5, **_rope("linear", factor=3.7)),
    _llama(
        "llama3", 5, hidden_size=64, mlp_bias=True, hidden_act="gelu_pytorch_tanh",
        **_rope("llama3", 333.0, factor=5.5, low_freq_factor=1.3, high_freq_factor=3.1,
                original_max_position_embeddings=37),
    ),
    _llama(
        "yarn", 6, hidden_size=72, tie_word_embeddings=True, max_position_embeddings=160,
        **_rope("yarn", 777.0, factor=5.0, original_max_position_embeddings=32, beta_fast=3.0, beta_slow=0.7),
    ),
    _llama(
        "yarn-untruncated", 7, hidden_act="relu", head_dim=26,
        **_rope("yarn", 99.0, factor=2.5, original_max_position_embeddings=51, beta_fast=5.0, beta_slow=0.5,
                truncate=False, attention_factor=0.8),
    ),
    _qwen3("plain", 10),
    _qwen3("mqa-tied-biases", 11, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True),
    _qwen3(
        "sliding-pattern", 12, num_hidden_layers=5, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    ),
    _qwen3(
        "sliding-last-layers", 13, num_hidden_layers=4, use_sliding_window=True, sliding_window=3, max_window_layers=1,
        num_key_value_heads=4, head_dim=10,
    ),
    _qwen3("sliding-one", 14, use_sliding_window=True, sliding_window=1, max_window_layers=2, head_dim=8),
    _qwen3(
        "yarn-mscale", 15, max_position_embeddings=256, head_dim=20, hidden_act="gelu_new",
        **_rope("yarn", 1234.5, factor=4.0, original_max_position_embeddings=64, mscale=0.8, mscale_all_dim=0.3),
    ),
    _qwen3("linear-sliding", 16, use_sliding_window=True, sliding_window=7, max_window_layers=0,
           **_rope("linear", 1e6, factor=2.0)),
    _neox("parallel", 20),
    _neox("sequential-full-rope", 21, use_parallel_residual=False, rotary_pct=1.0, hidden_act="relu"),
    _neox("odd-share", 22, hidden_size=60, rotary_pct=0.3, rotary_emb_base=321, hidden_act="gelu_fast",
          intermediate_size=49),
    _neox("no-attention-bias", 23, attention_bias=False, rotary_pct=0.5, tie_word_embeddings=True, hidden_act="silu"),
    _neox("one-head", 24, num_attention_heads=1, hidden_size=22, rotary_pct=0.19, num_hidden_layers=2),
    _neox("linear", 25, use_parallel_residual=False,
          **_rope("linear", 10000.0, factor=2.2, partial_rotary_factor=0.25)),
    _neox("yarn", 26, hidden_size=96,
          **_rope("yarn", 100.0, factor=3.0, original_max_position_embeddings=40, beta_fast=4.0, beta_slow=0.3,
                  partial_rotary_factor=0.75)),
]  # fmt: skip


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def hf_config(case: Case) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(case.family, **json.loads(json.dumps(case.hf)))


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Weights that give every part a say: fan-in scaled matrices, norms around 1, biases around 0."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if p.dim() > 1:
            noise = noise * (1.0 if "embed" in name else 1.7 * p.shape[1] ** -0.5)
        else:
            noise = noise * 0.4 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        p.copy_(noise)


@functools.cache
def build(case: Case) -> Any:
    """transformers' model of a case in fp32, with eager attention (its plainest code). Shared: don't change it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_config(case), dtype=torch.float32, attn_implementation="eager")
    randomize(model, case.seed)
    model.generation_config.eos_token_id = None
    return model.eval()


_folders: list[Any] = []


@functools.cache
def write(case: Case) -> Path:
    """A checkpoint directory of the case, written by transformers. Shared: don't change it."""
    folder = tempfile.TemporaryDirectory(prefix="litlm-case-")
    _folders.append(folder)  # removed when the process ends
    build(case).save_pretrained(folder.name)
    return Path(folder.name)


def load(path: Path, dtype: torch.dtype = torch.float32) -> GPT:
    """litlm's model of a checkpoint directory."""
    return load_model(Config.from_hf(path), SafetensorsSource(path), device=torch.device("cpu"), dtype=dtype)


@functools.cache
def ours(case: Case) -> GPT:
    """litlm's model of a case, in fp32. Shared: don't change it."""
    return load(write(case))


def tokens(case: Case, batch: int, length: int, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(1000 * case.seed + seed)
    return torch.randint(case.hf["vocab_size"], (batch, length), generator=gen)


@torch.no_grad()
def hf_logits(case: Case, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return build(case)(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, use_cache=False).logits


def close(actual: Tensor, expected: Tensor, rtol: float = 2e-5) -> None:
    """The largest difference, against the largest expected value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    worst = (actual - expected).abs().max().item() / expected.abs().max().item()
    assert worst <= rtol, f"off by {worst:.2e} of the largest value"


def raw_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """(dtype, shape, bytes) of every tensor in the directory's safetensors files, read straight from the format."""
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for file in sorted(path.glob("*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                assert name not in found, f"{name} is stored twice"
                first, last = entry["data_offsets"]
                found[name] = (entry["dtype"], entry["shape"], data[start + first : start + last])
    return found
