"""Tiny models of every family, built by transformers with weights large enough that a wrong detail shows.

The table of cases is in the `table_*` modules. `build` makes the model, `write` its checkpoint, and
the rest of the suite compares litlm with them. Norm weights and biases are random as well: fresh ones, 1 and 0, hide a
forgotten or swapped one.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import tempfile
from pathlib import Path
from typing import Any

import parity
import torch
from parity.case import Case
from torch import Tensor, nn

from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.config import Config
from litlm.model import GPT

# Its grouped product of experts needs sizes in whole 16 bytes.
EAGER: Any = dict(attn_implementation="eager", experts_implementation="eager")

CASES: list[Case] = [
    case
    for module in sorted(m.name for m in pkgutil.iter_modules(parity.__path__) if m.name.startswith("table_"))
    for case in importlib.import_module(f"parity.{module}").CASES
]


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def hf_config(case: Case) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, Mistral4Config, Mistral4ForCausalLM

    # Known to transformers as a part of other models only.
    AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)
    return AutoConfig.for_model(case.family, **json.loads(json.dumps(case.hf)))


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Weights that give every part a say: fan-in scaled matrices, norms around 1, biases around 0."""
    gen = torch.Generator().manual_seed(seed)
    stored = ("correction_bias", "expert_bias", "layer_scalar")
    chosen = [(name, b) for name, b in model.named_buffers() if name.endswith(stored)]
    for name, p in [*model.named_parameters(), *chosen]:
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith(("correction_bias", "expert_bias")):  # of expert choice: about as large as the scores differ
            noise = noise * 0.2
        elif p.dim() > 1:
            fan_in = p.shape[-1] if "conv" in name and p.dim() == 3 else p.shape[1]
            noise = noise * (1.0 if "embed" in name else 1.7 * fan_in**-0.5)
        else:
            around_one = "norm" in name and name.endswith("weight") or name.endswith(("layer_scalar", "router.scale"))
            noise = noise * 0.4 + (1.0 if around_one else 0.0)
        p.copy_(noise)


@functools.cache
def build(case: Case) -> Any:
    """transformers' model of a case in fp32, with eager parts (its plainest code). Shared: don't change it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_config(case), dtype=torch.float32, **EAGER)
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


@torch.no_grad()
def gradients(case: Case) -> dict[str, Tensor]:
    """The gradients that transformers' model of a case holds, under litlm's names.

    They travel as a checkpoint: transformers writes them as if they were weights, litlm reads that.
    """
    theirs = build(case)
    weights = {name: p.clone() for name, p in theirs.named_parameters()}
    try:
        for p in theirs.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            return {name: t.detach() for name, t in load(Path(folder)).state_dict().items()}
    finally:
        for name, p in theirs.named_parameters():
            p.copy_(weights[name])


def tokens(case: Case, batch: int, length: int, seed: int = 0) -> Tensor:
    """(B, T) ids, of those that the output head can give."""
    gen = torch.Generator().manual_seed(1000 * case.seed + seed)
    return torch.randint(case.hf.get("output_vocab_size") or case.hf["vocab_size"], (batch, length), generator=gen)


@torch.no_grad()
def hf_logits(case: Case, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return build(case)(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, use_cache=False).logits


def close(actual: Tensor, expected: Tensor, rtol: float = 5e-5) -> None:
    """The largest difference, against the largest expected value; and root mean squares, to a fifth of that.

    5e-5 is 840 roundoffs of fp32, 1e-5 is 170. Each sum of a few dozen terms, taken in another order, differs by a few,
    some fifty sums follow each other, and a sharp softmax makes more of what came before. With AVX-512, with AVX2 and
    with neither, single logits are off by up to 1.5e-5 and all together by 3e-6. Ten times the eps of the norms, the
    smallest of all wrong details, is 2e-5 or more of all together in most families.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    off = actual - expected
    worst, mean = (off.abs().max() / expected.abs().max()).item(), (off.norm() / expected.norm()).item()
    assert worst <= rtol, f"off by {worst:.2e} of the largest value"
    assert mean <= rtol / 5, f"off by {mean:.2e} of the root mean square"


def published(case: Case, tensors: dict[str, tuple[str, list[int], bytes]]) -> dict[str, tuple[str, list[int], bytes]]:
    """`raw_tensors` that transformers wrote, with the names and cuts of the published checkpoints.

    They differ for OLMo Hybrid: transformers cuts the three convolutions of a layer into equal thirds.
    """
    if case.family != "olmo_hybrid":
        return tensors
    found, config = dict(tensors), hf_config(case)
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    rows = dict(q=keys, k=keys, v=config.linear_num_value_heads * config.linear_value_head_dim)
    for i, layer_type in enumerate(config.layer_types):
        layer = f"model.layers.{i}."
        if layer_type == "full_attention":
            found[layer + "post_attention_layernorm.weight"] = found.pop(layer + "feedforward_layer_norm.weight")
            continue
        names = {layer + f"linear_attn.{x}_conv1d.weight": n for x, n in rows.items()}
        data, start = b"".join(found[name][2] for name in names), 0
        for name, n in names.items():
            dtype, shape, _ = found[name]
            size = n * len(data) // sum(rows.values())
            found[name], start = (dtype, [n, *shape[1:]], data[start : start + size]), start + size
    return found


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
