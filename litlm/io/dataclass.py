"""Nested frozen dataclasses from plain data, with all problems reported at once."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

from litlm.io.errors import did_you_mean


@functools.cache
def _type_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def union_members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`, one of those that config fields have."""
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


def _converted(value: Any, hint: Any) -> Any:
    """A value from a file as a field holds it: lists become tuples, and "1e-5" (text in YAML 1.1) a float."""
    if isinstance(value, str) and float in union_members(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return tuple(value) if isinstance(value, list) else value


def _type_problem(name: str, value: Any, hint: Any) -> list[str]:
    fits = any(_fits(value, option) for option in union_members(hint))
    return [] if fits else [f"{name}={value!r} must be {_describe(hint)}"]


def _describe(hint: Any) -> str:
    names = []
    for option in union_members(hint):
        if typing.get_origin(option) is Literal:
            names += [repr(v) for v in typing.get_args(option)]
        else:
            names.append("None" if option is type(None) else getattr(option, "__name__", str(option)))
    return " or ".join(names)


def type_problems(config: Any, prefix: str = "") -> list[str]:
    """Fields of a dataclass, nested ones included, whose values are not of their type."""
    problems = []
    hints = _type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        problems += _type_problem(prefix + f.name, value, hints[f.name])
        if dataclasses.is_dataclass(value):
            problems += type_problems(value, f"{prefix}{f.name}.")
    return problems


def from_dict(cls: Any, data: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    """An instance of dataclass `cls`, or None after appending what is wrong with `data` to `problems`.

    prefix: goes before field names in messages, such as "rope.".
    """
    hints, known = _type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    n_problems = len(problems)
    for key, value in data.items():
        if key not in known:
            problems.append(f"unknown field {prefix}{key}" + did_you_mean(str(key), known, prefix))
            continue
        nested = [option for option in union_members(hints[key]) if dataclasses.is_dataclass(option)]
        if isinstance(value, dict) and nested:
            # Several dataclasses in one field (rope.scaling) differ in their `kind`.
            kinds = (
                {typing.get_args(_type_hints(option)["kind"])[0]: option for option in nested}
                if len(nested) > 1
                else {}
            )
            target = kinds.get(value.get("kind")) if kinds else nested[0]
            if target is None:
                problems.append(
                    f"{prefix}{key}.kind={value.get('kind')!r} must be one of {', '.join(map(repr, kinds))}"
                )
                continue
            values[key] = from_dict(target, value, f"{prefix}{key}.", problems)
        else:
            values[key] = _converted(value, hints[key])
            problems += _type_problem(prefix + key, values[key], hints[key])
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{prefix}{name} is missing")
    return None if len(problems) > n_problems else cls(**values)
