"""What every checkpoint format shares: a plan checked before any byte is read, and weights streamed in one tensor at a
time.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litlm.config import Config
from litlm.families import WeightMap, get_family
from litlm.families.base import Match
from litlm.model import GPT
from litlm.model.buffers import ComputedBuffer


class WeightSource(ABC):
    """Tensors of one checkpoint, by default under their Hugging Face names."""

    path: Path

    def weight_map(self, config: Config) -> WeightMap:
        """How the names of this source map to ours."""
        return get_family(config.family).weights_of(config)

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers alone."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor; it may be backed by the file."""


def load_model(
    config: Config, source: WeightSource, *, device: torch.device, dtype: torch.dtype, quantize: str | None = None
) -> GPT:
    """Build the model without memory, check the whole plan, then stream the weights in.

    Besides the model itself, memory holds one tensor at a time. quantize: pack the layers' weights as they arrive.
    """
    config = _with_its_own_head(config, source)
    with torch.device("meta"):
        model = GPT(config)
    plan = _plan(config, model, source)
    if quantize is not None:
        from litlm.transforms.quantize import quantize_layers

        quantize_layers(model, quantize, dtype)
    for match in plan:
        tensor = source.read(match.theirs)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{match.theirs} in {source.path} holds {kind} values, so this checkpoint is quantized in a way that "
                "litlm can't read; use the unquantized one or a GGUF file"
            )
        wide = tensor.dtype == torch.float32 and config.dtype != "float32"
        for name, part in zip(match.ours, match.split(tensor, config), strict=True):
            # A router that the file keeps in fp32 beside half precision (Ernie 4.5) stays so.
            kept = torch.float32 if wide and ".router." in name else dtype
            set_tensor(model, name, part, device=device, dtype=kept, index=match.index)
    for module in model.modules():
        if isinstance(module, ComputedBuffer):
            module.to_empty(device=device)
    return model.eval()


def _with_its_own_head(config: Config, source: WeightSource) -> Config:
    """A file may hold a head beside embeddings that its config calls tied: a copy, or one of its own after all."""
    if not config.tie_embeddings:
        return config
    weights, shapes = source.weight_map(config), source.shapes()
    names = [m.theirs for ours in ("embed.weight", "lm_head.weight") for m in weights.from_ours(ours, ())]
    if len(names) < 2 or not all(name in shapes for name in names) or torch.equal(*map(source.read, names)):
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _plan(config: Config, model: GPT, source: WeightSource) -> list[Match]:
    """The tensors to read; one ValueError lists everything that does not fit."""
    weights = source.weight_map(config)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    plan: list[Match] = []
    found: dict[str, set[int | None]] = {}
    problems: list[str] = []
    for theirs, shape in source.shapes().items():
        match = weights.from_theirs(theirs)
        # Which layer number an extra layer has depends on the model: what the config asks for is never ignored.
        if weights.ignored(theirs) and (match is None or not expected.keys() >= set(match.ours)):
            continue
        if match is None:
            problems.append(f"{theirs} {list(shape)} is not part of a {config.family} model")
            continue
        if config.tie_embeddings and match.ours == ("lm_head.weight",):
            continue  # a copy of the embedding, which some files store as well
        try:
            parts = [tuple(t.shape) for t in match.split(torch.empty(shape, device="meta"), config)]
        except (RuntimeError, IndexError):
            problems.append(f"{theirs} has shape {list(shape)}, which does not fit this config's sizes")
            for ours in match.ours:
                found.setdefault(ours, set()).add(match.index)
            continue
        for ours, part in zip(match.ours, parts, strict=True):
            found.setdefault(ours, set()).add(match.index)
            whole = expected.get(ours)
            wanted = whole if match.index is None or whole is None else whole[1:]
            if wanted is None or whole is None:
                problems.append(f"{theirs} {list(shape)} has no place in this config (it would be {ours})")
            elif match.index is not None and match.index >= whole[0]:
                problems.append(f"{theirs} is one too many: the config asks for {whole[0]} of these ({ours})")
            elif wanted != part:
                problems.append(f"{theirs} has shape {list(part)}, the config asks for {list(wanted)} ({ours})")
        plan.append(match)
    for ours, shape in expected.items():
        for match in weights.from_ours(ours, shape):
            if match.index not in found.get(ours, set()):
                problems.append(f"{match.theirs} is missing")
    if problems:
        problems = list(dict.fromkeys(problems))
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(f"The weights in {source.path} don't fit its config:\n" + "\n".join(f"- {p}" for p in shown))
    return plan


def set_tensor(
    model: nn.Module, name: str, value: Tensor, *, device: torch.device, dtype: torch.dtype, index: int | None = None
) -> None:
    """Replace a parameter by a copy of `value` in memory of our own, or fill entry `index` of it.

    A buffer keeps the dtype that the file has it in; a layer of packed weights packs its own.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    keeper: Any = module if leaf == "weight" else getattr(module, leaf)
    if hasattr(keeper, "set_weight"):
        keeper.set_weight(value, device, index)
    elif index is not None:
        whole = getattr(module, leaf)
        if whole.is_meta:
            whole = nn.Parameter(torch.empty(whole.shape, device=device, dtype=dtype))
            setattr(module, leaf, whole)
        with torch.no_grad():
            whole[index].copy_(value)
    elif leaf in module._buffers:
        module._buffers[leaf] = torch.empty(value.shape, device=device, dtype=value.dtype).copy_(value)
    else:
        setattr(module, leaf, nn.Parameter(torch.empty(value.shape, device=device, dtype=dtype).copy_(value)))
