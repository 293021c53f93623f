"""Frozen dataclasses from plain data (YAML, JSON), with every problem reported at once; no torch."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from typing import Any, Literal


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Is `value` one of the simple types that config fields use?"""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any, hint: Any) -> Any:
    """`value` as a file spells it -> as a field holds it: lists are tuples, and YAML takes 1e-5 for text."""
    if isinstance(value, str) and float in _options(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return tuple(value) if isinstance(value, list) else value


def _misfit(name: str, value: Any, hint: Any) -> list[str]:
    fits = any(_fits(value, option) for option in _options(hint))
    return [] if fits else [f"{name}={value!r} must be {_describe(hint)}"]


def _describe(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            names += [repr(v) for v in typing.get_args(option)]
        else:
            names.append("None" if option is type(None) else getattr(option, "__name__", str(option)))
    return " or ".join(names)


def type_problems(config: Any, prefix: str = "") -> list[str]:
    problems = []
    hints = _hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        problems += _misfit(prefix + f.name, value, hints[f.name])
        if dataclasses.is_dataclass(value):
            problems += type_problems(value, f"{prefix}{f.name}.")
    return problems


def build(cls: Any, data: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    """Fill dataclass `cls` from `data`; append what is wrong to `problems` (the result is then meaningless)."""
    hints, known = _hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    found = len(problems)
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            problems.append(f"unknown field {prefix}{key}" + (f"; did you mean {prefix}{close[0]}?" if close else ""))
            continue
        nested = [option for option in _options(hints[key]) if dataclasses.is_dataclass(option)]
        if isinstance(value, dict) and nested:
            # Several dataclasses in one field (rope.scaling) are told apart by their `kind`.
            kinds = {typing.get_args(_hints(option)["kind"])[0]: option for option in nested} if len(nested) > 1 else {}
            target = kinds.get(value.get("kind")) if kinds else nested[0]
            if target is None:
                problems.append(
                    f"{prefix}{key}.kind={value.get('kind')!r} must be one of {', '.join(map(repr, kinds))}"
                )
                continue
            values[key] = build(target, value, f"{prefix}{key}.", problems)
        else:
            values[key] = _plain(value, hints[key])
            problems += _misfit(prefix + key, values[key], hints[key])
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{prefix}{name} is missing")
    return None if len(problems) > found else cls(**values)
