"""YAML files, read strictly. No torch."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from litlm.io.errors import unreadable


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises ValueError if it can't be read, is not valid YAML or repeats a key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise unreadable(path, e) from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not valid YAML: it is not UTF-8 text ({e.reason})") from None
    return load_yaml(text, path)


def load_yaml(text: str, source: str | Path) -> Any:
    """The content of YAML text, None if it is empty. source: its name in messages.

    Unlike yaml.safe_load: a repeated key is an error (there the last one wins silently), 1e-5 is a number as in YAML
    1.2, and dates are text. Raises ValueError for invalid YAML.
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        repeated = _repeated_keys(node, loader, "", set())
        value = None if node is None or repeated else loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ValueError(f"{source} is not valid YAML: {e.problem or e.context}{line}") from None
    except (yaml.YAMLError, ValueError) as e:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(e).split())}") from None
    if repeated:
        raise ValueError("\n".join(f"{source}, {problem}" for problem in repeated))
    return value


@functools.cache
def _loader() -> Any:
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader with the numbers of YAML 1.2 and without dates."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    exponent = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader


def _repeated_keys(node: Any, loader: Any, prefix: str, visited: set[int]) -> list[str]:
    """All repeated keys, with their lines; from the nodes, since a dict keeps only one of them."""
    import yaml

    if id(node) in visited:  # an alias
        return []
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [problem for item in node.value for problem in _repeated_keys(item, loader, prefix, visited)]
    problems: list[str] = []
    lines: dict[Any, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = "?"
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            name, line = loader.construct_object(key), key.start_mark.line + 1
            if name in lines:
                problems.append(
                    f"line {line}: {prefix}{name} is given twice, first in line {lines[name]}; leave one out"
                )
            lines[name] = line
        problems += _repeated_keys(value, loader, f"{prefix}{name}.", visited)
    return problems
