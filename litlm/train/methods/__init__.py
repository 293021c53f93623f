"""The methods: how a run changes a model. Each is an object in this registry, and a transform of the one model.

A new method is a file here with its `Method` in `METHODS`, and a row in `litlm.settings.train.METHODS`, which says what
settings it reads. Other packages add theirs through the entry-point group `litlm.methods` (each entry point loads a
`Method`, under its name); a notebook calls `register_method`. A method whose adapters are not LoRA's also needs a
reader of them: `checkpoint.adapter_formats`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from litlm.settings import MethodSettings
from litlm.settings.train import METHODS, MethodFields, method_names
from litlm.train.methods.base import AppliedMethod, Method

if TYPE_CHECKING:
    from litlm.llm import LLM

__all__ = ["AppliedMethod", "Method", "apply_method", "get_method", "register_method"]

_registered: dict[str, Method] = {}


@cache
def _built_in() -> dict[str, Method]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__) if module.name != "base"]
    return {method.name: method for module in modules for method in module.METHODS}


@cache
def _plugin(name: str) -> Method | None:
    for point in entry_points(group="litlm.methods", name=name):
        try:
            method = point.load()
        except Exception as e:  # so that the broken extension is named
            raise ValueError(
                f"the litlm extension {point.value!r} can't be loaded ({e}); update or uninstall it"
            ) from e
        if not isinstance(method, Method) or method.name != name:
            raise ValueError(f"the entry point {point.value!r} must be a litlm.train.methods.Method called {name}")
        return method
    return None


def register_method(method: Method) -> Method:
    """Make a method known to this process, under its name. Raises ValueError if another one has that name."""
    if method.name in method_names() and _registered.get(method.name) != method:
        raise ValueError(f"method={method.name!r} is taken; choose another name")
    METHODS[method.name] = MethodFields(reads=None)
    _registered[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError for an unknown one, with the names that there are."""
    method = _built_in().get(name) or _registered.get(name) or _plugin(name)
    if method is None:
        raise ValueError(f"method={name!r} is unknown; there are {', '.join(method_names())}")
    return method


def apply_method(llm: LLM, settings: MethodSettings) -> AppliedMethod:
    """Apply the method to the model: afterwards the parameters to train, and only these, require gradients.

    Raises ValueError if the settings don't fit the model.
    """
    return get_method(settings.name).apply(llm, settings)
