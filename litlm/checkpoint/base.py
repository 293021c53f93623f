"""What every checkpoint format shares: a plan checked before any byte is read, weights streamed in one tensor at a
time, and files that are either old or new, never half written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from litlm.config import Config
from litlm.families import WeightMap, get_family
from litlm.model import GPT
from litlm.rope import Rope


class WeightSource(ABC):
    """Tensors of one checkpoint under their Hugging Face names."""

    path: Path

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers alone."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor; it may be backed by the file."""


def load_model(config: Config, source: WeightSource, *, device: torch.device, dtype: torch.dtype) -> GPT:
    """Build the model without memory, check the whole plan, then stream the weights in.

    Besides the model itself, memory holds one tensor at a time.
    """
    with torch.device("meta"):
        model = GPT(config)
    family = get_family(config.family)
    weights = WeightMap(family)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan: list[tuple[str, tuple[str, ...], Callable[[Tensor], list[Tensor]]]] = []
    found: set[str] = set()
    problems: list[str] = []
    for theirs, shape in source.shapes().items():
        if weights.ignored(theirs):
            continue
        match = weights.from_theirs(theirs)
        if match is None:
            problems.append(f"{theirs} {list(shape)} is not part of a {config.family} model")
            continue
        if config.tie_embeddings and match.ours == ("lm_head.weight",):
            continue  # a copy of the embedding, which some files store as well
        if match.rule.split is None:
            parts = [shape]
        else:
            try:
                parts = [tuple(t.shape) for t in match.rule.split(torch.empty(shape, device="meta"), config)]
            except RuntimeError:
                problems.append(f"{theirs} has shape {list(shape)}, which does not fit this config's sizes")
                found.update(match.ours)
                continue
        for ours, part in zip(match.ours, parts, strict=True):
            found.add(ours)
            if ours not in expected:
                problems.append(f"{theirs} {list(shape)} has no place in this config (it would be {ours})")
            elif expected[ours] != part:
                problems.append(f"{theirs} has shape {list(part)}, the config asks for {list(expected[ours])} ({ours})")
        split = match.rule.split
        plan.append((theirs, match.ours, (lambda t: [t]) if split is None else (lambda t, s=split: list(s(t, config)))))
    names = {ours: match.theirs for ours in expected if (match := weights.from_ours(ours)) is not None}
    problems += [f"{names.get(ours, ours)} is missing" for ours in expected if ours not in found]
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(
            f"The weights in {source.path} don't fit its config:\n" + "\n".join(f"- {p}" for p in dict.fromkeys(shown))
        )
    for theirs, ours, split in plan:
        tensor = source.read(theirs)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{theirs} in {source.path} holds {kind} values, so this checkpoint is quantized in a way that litlm "
                "can't read; use the unquantized one or a GGUF file"
            )
        for name, part in zip(ours, split(tensor), strict=True):
            set_parameter(model, name, part, device=device, dtype=dtype)
    for module in model.modules():
        if isinstance(module, Rope):
            module.to_empty(device=device)
    return model.eval()


def set_parameter(model: nn.Module, name: str, value: Tensor, *, device: torch.device, dtype: torch.dtype) -> None:
    """Replace a parameter by a copy of `value` in memory of our own."""
    owner, _, leaf = name.rpartition(".")
    copy = torch.empty(value.shape, device=device, dtype=dtype).copy_(value)
    setattr(model.get_submodule(owner), leaf, nn.Parameter(copy))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name near `path` to write to; it takes the place of `path` when the block ends well."""
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, because libraries (safetensors) put temporary files of theirs beside what they write.
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        part = folder / path.name
        yield part
        flush(part)
        part.chmod(0o644)
        os.replace(part, path)
    except (OSError, SafetensorError) as e:
        reason = (e.strerror if isinstance(e, OSError) else None) or e
        raise ValueError(f"{path} could not be written ({reason}); what was there before is untouched") from e
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the system write the file to disk."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
