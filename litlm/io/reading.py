"""Reading text, JSON and the headers of safetensors files. No torch.

Libraries often report a file that can't be opened as damaged; `check_readable` opens it first to tell the two apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from litlm.io.errors import unreadable


def check_readable(path: str | Path) -> None:
    """Raise ValueError if the system does not let the file be opened and read."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as e:
        raise unreadable(path, e) from None


def read_text(path: str | Path) -> str:
    """The file's text. ValueError if it can't be read, or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise unreadable(path, e) from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e}); download or copy it again") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if it can't be read, is not JSON, or holds something else."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON ({e}); download or copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}; download or copy it again")
    return value


class RepeatedKey(dict[str, Any]):
    """An object of JSON text that has a key twice. key: the first such key."""

    key: str


def parse_json(text: str | bytes) -> Any:
    """As json.loads, which of a key that an object has twice silently keeps the last; here such an object is a
    `RepeatedKey`, so that `repeated_key` finds it. Raises ValueError as json.loads does.
    """
    return json.loads(text, object_pairs_hook=_to_dict)


def line_problem(error: ValueError) -> str:
    """What `parse_json` found wrong with a text of one line, of which `str(error)` gives a line number too."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg}, column {min(error.pos, len(error.doc.rstrip())) + 1}"


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        value = RepeatedKey(value)
        value.key = next(key for i, key in enumerate(keys) if key in keys[:i])
    return value


def repeated_key(value: Any) -> str | None:
    """A key that an object in a value of `parse_json` has twice, else None."""
    if isinstance(value, RepeatedKey):
        return value.key
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for item in inner if (key := repeated_key(item)) is not None), None)


def safetensors_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and offsets of each tensor in a safetensors file. Raises ValueError if it can't be read."""
    check_readable(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header
