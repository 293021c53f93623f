"""The registry of families. Other packages add theirs through the entry-point group `litlm.families` (each entry point
loads a `Family`); a notebook calls `register_family`. No torch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any

from litlm.config import Config
from litlm.families.base import Family, FieldsError, HFFields, Rule, WeightMap, rename
from litlm.families.gguf import GGUFFields, GGUFSpec

__all__ = [
    "Family",
    "GGUFFields",
    "GGUFSpec",
    "HFFields",
    "Rule",
    "WeightMap",
    "get_family",
    "list_families",
    "register_family",
    "rename",
]

# Each module here but these two is a family, named after its model_type.
_BUILT_IN = {module.name for module in iter_modules(__path__)} - {"base", "gguf"}
_registered: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a `model_type` known to this process. Registering another family under a taken name is an error."""
    if family.model_type in _BUILT_IN or _registered.get(family.model_type, family) != family:
        raise ValueError(f"model_type={family.model_type!r} is taken; choose another name for the family")
    _registered[family.model_type] = family
    return family


@cache
def _plugins() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for point in entry_points(group="litlm.families"):
        try:
            family = point.load()
        except Exception as e:  # a broken extension must not take every command down without being named
            raise ValueError(
                f"The litlm extension {point.value!r} can't be loaded ({e}); update or uninstall it"
            ) from e
        if not isinstance(family, Family):
            raise ValueError(f"The entry point {point.value!r} must be a litlm.families.Family")
        found[family.model_type] = family
    return found


def list_families() -> list[str]:
    """Every known `model_type`, sorted."""
    return sorted({*_BUILT_IN, *_registered, *_plugins()})


def get_family(model_type: str) -> Family:
    """The family of a Hugging Face `model_type`; an unknown one is a ValueError that says what is known."""
    if model_type in _BUILT_IN:
        return import_module(f"litlm.families.{model_type}").FAMILY
    family = _registered.get(model_type) or _plugins().get(model_type)
    if family is None:
        close = difflib.get_close_matches(model_type, list_families(), n=1)
        raise ValueError(
            f"model_type={model_type!r} is not supported"
            + (f"; the closest that is: {close[0]!r}. " if close else ". ")
            + f"Supported: {', '.join(list_families())}. `litlm new-family` drafts one (docs/adding-a-model.md)."
        )
    return family


def family_of_gguf(fields: GGUFFields) -> Family:
    """The family that reads a GGUF file with this metadata."""
    specs = {f.model_type: f.gguf for f in map(get_family, list_families()) if f.gguf is not None}
    same = {name: spec for name, spec in specs.items() if spec.arch == fields.arch}
    if not same:
        known = ", ".join(sorted({spec.arch for spec in specs.values()}))
        raise ValueError(f"GGUF architecture {fields.arch!r} is not supported; supported are {known}")
    found = [name for name, spec in same.items() if spec.when(fields)]
    if len(found) != 1:
        raise ValueError(f"its metadata and tensors are those of no {' or '.join(same)} model (or of several)")
    return get_family(found[0])


def config_from_hf(data: Mapping[str, Any], ignore_fields: Collection[str] = ()) -> Config:
    """The content of a `config.json` as a Config. See `Config.from_hf`."""
    model_type = data.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError("the config has no model_type, so its family is unknown; is this a Hugging Face config.json?")
    family = get_family(model_type)
    fields = HFFields(data, ignore_fields)
    try:
        values = family.from_hf(fields)
    except FieldsError:  # of a part
        raise
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as e:
        # Text where a number belongs, a zero that divides: readers don't check each field for what no file has.
        raise ValueError(
            f"model_type {model_type!r}: a field of the config has a value of the wrong kind "
            f"({type(e).__name__}: {e}); compare it with the original config.json"
        ) from e
    fields.finish()
    fields.check_ignored()
    return Config(**{"family": model_type, **values})  # a part of a larger model is of a family of its own


def config_to_hf(config: Config) -> dict[str, Any]:
    """The reverse. What the family's own format can't express is an error: the written file is read back to check."""
    family = get_family(config.family)
    data = {"architectures": [family.architecture], "model_type": family.model_type} | family.to_hf(config)
    back = dataclasses.replace(config_from_hf(data), name=config.name)
    if back != config:
        lost = [
            f"- {f.name}: {getattr(config, f.name)} would become {getattr(back, f.name)}"
            for f in dataclasses.fields(Config)
            if getattr(back, f.name) != getattr(config, f.name)
        ]
        raise ValueError(f"Hugging Face's {config.family!r} format can't express this config:\n" + "\n".join(lost))
    return data
