"""Formats of adapters beside PEFT's LoRA (peft.py), each known by the `peft_type` in its `adapter_config.json`.

A new one is a module here that writes it (`adapter.write_adapter`) and reads it, and a row of `FORMATS`. Other packages
add theirs through the entry-point group `litlm.adapters`, each an `AdapterFormat` under its `peft_type`; a notebook
adds to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from litlm.checkpoint import adapter
from litlm.model import GPT
from litlm.transforms.lora import NOT_MERGEABLE


@dataclass(frozen=True)
class AdapterFormat:
    """How the adapters of one `peft_type` are read.

    load(model, path): attach the adapter in directory `path` to the model, or raise a ValueError with all that does not
    fit. What it adds are modules of class `transforms.lora.Adapter`, so that a model saved without them is refused.
    mergeable: these are all `LoRA`, which can be merged into the model's weights.
    """

    load: Callable[[GPT, Path], object]
    mergeable: bool = False


FORMATS = {peft_type: AdapterFormat(adapter.load) for peft_type in adapter.PEFT_TYPES}


def find_format(config: Mapping[str, Any]) -> AdapterFormat | None:
    """The format of an `adapter_config.json`; None for LoRA in PEFT's format, and for those that nobody reads.

    Raises ValueError if the package that reads it is broken.
    """
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type == "LORA":
        return None
    if peft_type in FORMATS:
        return FORMATS[peft_type]
    for point in entry_points(group="litlm.adapters", name=peft_type):
        try:
            found = point.load()
        except Exception as e:  # so that the broken extension is named
            raise ValueError(
                f"the litlm extension {point.value!r} can't be loaded ({e}); update or uninstall it"
            ) from e
        if not isinstance(found, AdapterFormat):
            raise ValueError(
                f"the entry point {point.value!r} must be a litlm.checkpoint.adapter_formats.AdapterFormat"
            )
        return found
    return None


def is_mergeable(config: Mapping[str, Any]) -> bool:
    """Whether the adapter of this `adapter_config.json` can be merged into its base."""
    found = find_format(config)
    return found is None or found.mergeable


def check_mergeable(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError if the adapter of this `adapter_config.json` can't be merged into its base."""
    if not is_mergeable(config):
        raise ValueError(f"{path} has peft_type={config['peft_type']!r}, {NOT_MERGEABLE}")
