"""The registry of families. No torch.

Other packages add theirs through the entry-point group `litlm.families`, whose entries load a `Family`; a notebook
calls `register_family`.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import Rule, WeightMap, rename

__all__ = [
    "Family",
    "GGUFFields",
    "GGUFSpec",
    "HFFields",
    "Rule",
    "WeightMap",
    "family_of_gguf",
    "get_family",
    "list_families",
    "register_family",
    "rename",
]

# Every other module here is a family, named after its model_type.
_BUILT_IN = {module.name for module in iter_modules(__path__)} - {"base", "gguf", "weights"}
_registered: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a `model_type` known to this process. Raises ValueError if another family has that name."""
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
    """The family of a Hugging Face `model_type`. Raises ValueError, which lists all families, for an unknown one."""
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
    """The family that reads a GGUF file with this metadata. Raises ValueError if there isn't exactly one."""
    specs = {f.model_type: f.gguf for f in map(get_family, list_families()) if f.gguf is not None}
    candidates = {name: spec for name, spec in specs.items() if spec.arch == fields.arch}
    if not candidates:
        known = ", ".join(sorted({spec.arch for spec in specs.values()}))
        raise ValueError(f"GGUF architecture {fields.arch!r} is not supported; supported are {known}")
    matching = [name for name, spec in candidates.items() if spec.matches(fields)]
    if len(matching) != 1:
        raise ValueError(f"its metadata and tensors are those of no {' or '.join(candidates)} model (or of several)")
    return get_family(matching[0])
