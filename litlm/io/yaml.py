"""YAML files, and frozen dataclasses from plain data, with every problem reported at once; no torch."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from pathlib import Path
from typing import Any, Literal

from litlm.io.reading import unreadable

# --- YAML ----------------------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds. ValueError where it can't be read, is no YAML, or gives a key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise unreadable(path, e) from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not valid YAML: it is not UTF-8 text ({e.reason})") from None
    return load_yaml(text, path)


def load_yaml(text: str, where: str | Path) -> Any:
    """What YAML text holds; None where it holds nothing. where: names it in messages.

    Unlike yaml.safe_load: a key that stands twice in a mapping is an error (there the last one wins without a word),
    1e-5 is a number as in YAML 1.2, and a date is text.
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        repeated = _repeated_keys(node, loader, "", set())
        value = None if node is None or repeated else loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ValueError(f"{where} is not valid YAML: {e.problem or e.context}{line}") from None
    except (yaml.YAMLError, ValueError) as e:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(e).split())}") from None
    if repeated:
        raise ValueError("\n".join(f"{where}, {problem}" for problem in repeated))
    return value


@functools.cache
def _loader() -> Any:
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, with numbers as people write them."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    exponent = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader


def _repeated_keys(node: Any, loader: Any, prefix: str, seen: set[int]) -> list[str]:
    """Where a key stands for the second time, all of them. Walks the nodes, because a dict has lost the first one."""
    import yaml

    if id(node) in seen:  # an alias
        return []
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [problem for item in node.value for problem in _repeated_keys(item, loader, prefix, seen)]
    found: list[str] = []
    lines: dict[Any, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = "?"
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            name, line = loader.construct_object(key), key.start_mark.line + 1
            if name in lines:
                found.append(f"line {line}: {prefix}{name} is given twice, first in line {lines[name]}; leave one out")
            lines[name] = line
        found += _repeated_keys(value, loader, f"{prefix}{name}.", seen)
    return found


# --- dataclasses -----------------------------------------------------------------------------------------------------


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
