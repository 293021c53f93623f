"""What all checkpoint formats share: names and shapes are checked before any weight is read, then tensors are streamed
into the model one at a time.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from litlm.config import Config
from litlm.families import WeightMap, get_family
from litlm.families.weights import Match
from litlm.io.reading import check_readable
from litlm.model import GPT
from litlm.model.buffers import ComputedBuffer


class WeightSource(ABC):
    """The tensors of a checkpoint, by default under their Hugging Face names."""

    path: Path

    def weight_map(self, config: Config) -> WeightMap:
        """How this source's tensors map to ours."""
        return get_family(config.family).weights_of(config)

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, from the headers alone."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, of any shape; it may be backed by the file. Raises ValueError if it can't be read."""


class RecutSource(WeightSource):
    """The tensors of `source`, those that it cuts elsewhere than the config does cut anew (`Family.recut`)."""

    def __init__(self, source: WeightSource, config: Config, rows: Mapping[str, int]) -> None:
        self.path, self._source, self._shapes = source.path, source, source.shapes()
        self._parts: dict[str, tuple[list[str], int]] = {}  # names of what to join, and the first row
        for i in range(config.n_layer):
            names, start = [template.format(i=i) for template in rows], 0
            held = [self._shapes[name][0] for name in names if self._shapes.get(name)]
            if len(held) < len(names) or held == list(rows.values()) or sum(held) != sum(rows.values()):
                continue
            for name, n in zip(names, rows.values(), strict=True):
                self._parts[name], start = (names, start), start + n
                self._shapes[name] = (n, *self._shapes[name][1:])

    def weight_map(self, config: Config) -> WeightMap:
        return self._source.weight_map(config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def read(self, name: str) -> Tensor:
        if name not in self._parts:
            return self._source.read(name)
        names, start = self._parts[name]
        return torch.cat([self._source.read(part) for part in names])[start : start + self._shapes[name][0]]


def load_model(
    config: Config, source: WeightSource, *, device: torch.device, dtype: torch.dtype, quantize: str | None = None
) -> GPT:
    """Build the model on meta, check names and shapes, then stream the weights in.

    Besides the model, memory holds one tensor at a time. quantize: quantization of the layers' weights as they arrive.
    Raises ValueError if the checkpoint doesn't fit the config, or holds packed integers.
    """
    config = _untied_if_heads_differ(config, source)
    if (recut := get_family(config.family).recut) is not None and config.recurrent is not None:
        source = RecutSource(source, config, recut(config))
    with torch.device("meta"):
        model = GPT(config)
    plan = _plan(config, model, source)
    if quantize is not None:
        from litlm.transforms.quantize import quantize_layers

        quantize_layers(model, quantize, dtype)
    for match in plan:
        tensor = source.read(match.theirs)
        if not tensor.is_floating_point():
            dtype_name = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{match.theirs} in {source.path} holds {dtype_name} values, so this checkpoint is quantized in a way "
                "that litlm can't read; use the unquantized one or a GGUF file"
            )
        # Routers, sinks and decays that a half-precision checkpoint stores in fp32 (Ernie 4.5, Flint, OLMo Hybrid) stay
        # in fp32.
        fp32_in_half = tensor.dtype == torch.float32 and config.dtype != "float32"
        for name, part in zip(match.ours, match.split(tensor, config), strict=True):
            small = ".router." in name or name.endswith((".sinks", ".A_log"))
            its_dtype = torch.float32 if fp32_in_half and small else dtype
            set_tensor(model, name, part, device=device, dtype=its_dtype, index=match.index)
    for name, tensor in model.state_dict().items():
        if tensor.is_meta and name.endswith(get_family(config.family).zero_if_missing):
            set_tensor(model, name, torch.zeros(tensor.shape), device=device, dtype=dtype)
    for module in model.modules():
        if isinstance(module, ComputedBuffer):
            module.to_empty(device=device)
    return model.eval()


def _untied_if_heads_differ(config: Config, source: WeightSource) -> Config:
    """A checkpoint may hold an output head although its config ties it: a copy of the embedding, or another tensor."""
    if not config.tie_embeddings:
        return config
    weights, shapes = source.weight_map(config), source.shapes()
    names = [m.theirs for ours in ("embed.weight", "lm_head.weight") for m in weights.from_ours(ours, ())]
    if len(names) < 2 or not all(name in shapes for name in names) or torch.equal(*map(source.read, names)):
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _plan(config: Config, model: GPT, source: WeightSource) -> list[Match]:
    """The tensors to read. Raises one ValueError for everything that doesn't fit."""
    weights = source.weight_map(config)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    plan: list[Match] = []
    found: dict[str, set[int | None]] = {}
    problems: list[str] = []
    may_lack = get_family(config.family).zero_if_missing
    for theirs, shape in source.shapes().items():
        match = weights.from_theirs(theirs)
        # The number of an extra layer depends on the model, so what the config asks for is never ignored.
        if weights.ignored(theirs) and (match is None or not expected.keys() >= set(match.ours)):
            continue
        if match is None:
            problems.append(f"{theirs} {list(shape)} is not part of a {config.family} model")
            continue
        if config.tie_embeddings and match.ours == ("lm_head.weight",):
            continue  # a copy of the embedding
        try:
            parts = [tuple(t.shape) for t in match.split(torch.empty(shape, device="meta"), config)]
        except (RuntimeError, IndexError):
            problems.append(f"{theirs} has shape {list(shape)}, which does not fit this config's sizes")
            for ours in match.ours:
                found.setdefault(ours, set()).add(match.index)
            continue
        for ours, part in zip(match.ours, parts, strict=True):
            found.setdefault(ours, set()).add(match.index)
            our_shape = expected.get(ours)
            if our_shape is None:
                problems.append(f"{theirs} {list(shape)} has no place in this config (it would be {ours})")
            elif match.index is not None and match.index >= our_shape[0]:
                problems.append(f"{theirs} is one too many: the config asks for {our_shape[0]} of these ({ours})")
            elif (wanted := our_shape if match.index is None else our_shape[1:]) != part:
                problems.append(f"{theirs} has shape {list(part)}, the config asks for {list(wanted)} ({ours})")
        plan.append(match)
    for ours, shape in expected.items():
        held = found.get(ours, set())
        for match in weights.from_ours(ours, shape):
            if not held & {match.index, None} and not ours.endswith(may_lack):
                problems.append(f"{match.theirs} is missing")
    if problems:
        listed = bullet_list(list(dict.fromkeys(problems)))
        raise ValueError(f"The weights in {source.path} don't fit its config:\n{listed}")
    return plan


def bullet_list(problems: Sequence[str], limit: int = 40) -> str:
    """Problems as lines for an error message; the first `limit` of them."""
    more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    return "\n".join(f"- {problem}" for problem in [*problems[:limit], *more])


def open_safetensors(file: Path) -> Any:
    """The opened file, memory-mapped. Raises ValueError if it can't be read or is damaged."""
    check_readable(file)
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file} is truncated or corrupt ({e}); delete it and download it again") from None


def set_tensor(
    model: nn.Module, name: str, value: Tensor, *, device: torch.device, dtype: torch.dtype, index: int | None = None
) -> None:
    """Replace a parameter by a copy of `value`, of the same shape, or with an index fill that entry of it.

    A buffer keeps the dtype of `value`; a quantized layer quantizes it.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    quantized: Any = module if leaf == "weight" else getattr(module, leaf)
    if hasattr(quantized, "set_weight"):
        quantized.set_weight(value, device, index)
    elif index is not None:
        stack = getattr(module, leaf)
        if stack.is_meta:
            stack = nn.Parameter(torch.empty(stack.shape, device=device, dtype=dtype))
            setattr(module, leaf, stack)
        with torch.no_grad():
            stack[index].copy_(value)
    elif leaf in module._buffers:
        module._buffers[leaf] = torch.empty(value.shape, device=device, dtype=value.dtype).copy_(value)
    else:
        setattr(module, leaf, nn.Parameter(torch.empty(value.shape, device=device, dtype=dtype).copy_(value)))
