"""The methods: which weights a run trains, how they are laid on the model, and how they are saved.

Each is a transform of the one model. What `export` writes is what `LLM.load` takes: a model, or an adapter for one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from litlm.settings import MethodSettings

if TYPE_CHECKING:
    from litlm.llm import LLM


@dataclass
class Applied:
    """A method on a model. export(folder, base): write the result; base is the model's name, for adapters. check: raise
    a ValueError if that would fail, for which the end of a run is too late.

    off: a context in which the model is what it was; None where there is no way back. notes: for people.
    """

    export: Callable[[Path, str], None]
    check: Callable[[], object]
    off: Callable[[], AbstractContextManager[None]] | None = None
    notes: list[str] = field(default_factory=list)


def apply_method(llm: LLM, settings: MethodSettings) -> Applied:
    """Lay the method on the model: afterwards the parameters to train, and only these, require gradients."""
    if settings.name == "full":
        return _full(llm, settings)
    if settings.name in ("lora", "qlora"):
        return _lora(llm, settings)
    return _adapter(llm, settings)


def _full(llm: LLM, settings: MethodSettings) -> Applied:
    llm.model.requires_grad_(True)
    names = [name for name, _ in llm.model.named_parameters()]
    frozen = select(names, settings.freeze, "freeze")
    for name, parameter in llm.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if len(frozen) == len(names):
        raise ValueError(f"freeze={settings.freeze} leaves nothing to train; name fewer parameters")
    notes = [f"{len(frozen)} tensors frozen"] if frozen else []
    return Applied(lambda folder, base: llm.save(folder), llm.config.to_hf, notes=notes)


def _lora(llm: LLM, settings: MethodSettings) -> Applied:
    from litlm.checkpoint.peft import save_adapter
    from litlm.transforms.lora import adapters_off, apply_lora

    adapted = apply_lora(llm.model, settings)
    llm.config = llm.model.config  # which is not tied any more where one side has an adapter

    def export(folder: Path, base: str) -> None:
        save_adapter(llm.model, folder, base=base)
        llm.save_chat_format(folder)

    return Applied(
        export,
        lambda: _try(export),
        off=lambda: adapters_off(llm.model),
        notes=[f"{len(adapted)} layers adapted"],
    )


def _adapter(llm: LLM, settings: MethodSettings) -> Applied:
    from litlm.checkpoint.adapter import save
    from litlm.transforms.adapter import adapters_off, apply_adapter

    adapted = apply_adapter(llm.model, settings)

    def export(folder: Path, base: str) -> None:
        save(llm.model, folder, base=base)
        llm.save_chat_format(folder)

    return Applied(
        export,
        lambda: _try(export),
        off=lambda: adapters_off(llm.model),
        notes=[f"{len(adapted)} layers adapted"],
    )


def _try(export: Callable[[Path, str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="litlm-") as folder:
        export(Path(folder), "")


def select(names: list[str], patterns: tuple[str, ...], what: str) -> set[str]:
    """The names that patterns mean: by a whole name, its end, or * and ?. A pattern that means none is an error."""
    chosen: set[str] = set()
    for pattern in patterns:
        found = {n for n in names if n == pattern or n.endswith("." + pattern) or fnmatchcase(n, pattern)}
        found |= {n for n in names if n.startswith(pattern + ".")}  # all of a module
        if not found:
            kinds = ", ".join(dict.fromkeys(re.sub(r"^layers\.\d+\.", "", name) for name in names))
            raise ValueError(
                f"{what}={pattern!r} names nothing in this model; there are {kinds}, and patterns like layers.0.*"
            )
        chosen |= found
    return chosen


def trained(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are, whatever they are packed into."""
    from litlm.transforms.quantize import n_weights

    counts = n_weights(model)
    return sum(n for p, n in counts.items() if p.requires_grad), sum(counts.values())
