"""Records to learn from, from files or the Hugging Face hub: each a dict, with where it stands, for messages to people.

Unusual: records come one by one, so that a dataset need not fit into memory, and what is wrong with a file is said
after its last record, all at once. Columns of structs give every object in them all keys, null where it has none
(the arguments of all tools): such nulls are left out again.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from litlm.data.forms import ROLES
from litlm.data.named import NamedDataset, close_names, find_dataset, list_datasets
from litlm.data.sources import expand, load_hub, open_parquet, split_hub_id
from litlm.io.errors import error_reason

Record = tuple[str, dict[str, Any]]  # where it stands, what it holds

_EXTENSIONS = (".json", ".jsonl", ".csv", ".parquet")
_FORMS = f"a file ({', '.join(_EXTENSIONS)}), a hub id such as org/name (or org/name:config), or one of"
_CONVERSATIONS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")  # may be JSON in a .csv
_SHOWN, _NUMBERS = 20, 8  # lines of a message, and places in one of them
_PLACE = re.compile(r"(.*), (line|record|row) (\d+): (.*)", re.S)


def read_records(source: str | Path, *, split: str = "train", limit: int | None = None) -> Iterator[Record]:
    """The records of a file (.json with one list, .jsonl, .csv with a header, .parquet) or of a dataset on the hub.

    source: what exists as a file is read as one; else a named dataset, or a hub id `org/name` or `org/name:config`.
    split: of a hub dataset. limit: read at most so many lines (or records). Raises ValueError that names every line
    that can't be read, when the good ones are through.
    """
    found = locate(source)
    if isinstance(found, NamedDataset):
        return itertools.islice(_from_hub(found, split), limit)
    readers = {".csv": _from_csv, ".parquet": _from_parquet}
    return _some(readers.get(found.suffix.lower(), _from_json)(found, limit), f"{found} holds no examples")


def check_start(source: str | Path, parse: Callable[[dict[str, Any]], Any], *, limit: int = 1000) -> None:
    """Raise ValueError if the source is unknown or unreadable, or if `parse` refuses one of the first records.

    Fetches nothing: datasets on the hub are not read.
    """
    found, problems = locate(source), []
    if isinstance(found, NamedDataset):
        return
    for where, record in read_records(found, limit=limit):
        try:
            parse(record)
        except ValueError as e:
            problems.append(f"{where}: {e}")
    if problems:
        raise ValueError(listed(problems))


class Sources:
    """The records of several sources (or patterns of file names), one source after the other.

    name: of all, for messages. The iteration names what is wrong with any of them when all have been read.
    """

    def __init__(self, sources: Sequence[str], split: str) -> None:
        self.sources, self.split = expand(sources), split
        self.counts = [0] * len(self.sources)
        first, *more = self.sources
        self.name = first if not more else f"{first} and {len(more)} more"

    def __iter__(self) -> Iterator[Record]:
        problems = []
        for i, source in enumerate(self.sources):
            try:
                for record in read_records(source, split=self.split):
                    self.counts[i] += 1
                    yield record
            except ValueError as e:
                problems.append(str(e))
        if problems:
            raise ValueError("\n".join(problems))

    def notes(self) -> list[str]:
        """Where there are several: how many records each has."""
        if len(self.sources) == 1:
            return []
        return [f"{s}: {n:,} record{'' if n == 1 else 's'}" for s, n in zip(self.sources, self.counts, strict=True)]


def locate(source: str | Path) -> Path | NamedDataset:
    """What `source` means; ValueError with the closest names if it means nothing. Reads and fetches nothing."""
    path = Path(source).expanduser()
    if path.is_dir():
        forms = ", ".join(_EXTENSIONS)
        raise ValueError(f"{path} can't be read: it is a folder; name files in it ({forms}), such as {path}/*.jsonl")
    if path.exists():
        return path
    text = str(source)
    if isinstance(source, Path) or path.suffix.lower() in _EXTENSIONS or text[:1] in (".", "/", "~") or "\\" in text:
        raise ValueError(f"data file {path} does not exist")
    if dataset := find_dataset(text):
        return dataset
    if hub := split_hub_id(text):
        hub_id, config = hub
        known = next((d for d in list_datasets() if d.hub_id == hub_id and config in (None, d.config)), None)
        return known or NamedDataset(
            name=text, hub_id=hub_id, config=config, kind="sft", form="", licence="", n_examples=0
        )
    close = close_names(text)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    names = ", ".join(dataset.name for dataset in list_datasets())
    raise ValueError(f"{text!r} is neither a file nor a known dataset. {hint}Use {_FORMS} {names}")


def listed(problems: list[str]) -> str:
    """One message for many problems with the data: one line for those that differ only in where they are."""
    places: dict[tuple[str, ...], list[str]] = {}
    for problem in problems:
        found = _PLACE.fullmatch(problem)
        file, kind, number, what = found.groups() if found else (problem, "", "", "")
        places.setdefault((file, kind, what), []).append(number)
    lines = []
    for (file, kind, what), numbers in places.items():
        if not kind:
            lines.append(file)
        elif len(numbers) == 1:
            lines.append(f"{file}, {kind} {numbers[0]}: {what}")
        else:
            first = ", ".join(numbers[:_NUMBERS]) + (", ..." if len(numbers) > _NUMBERS else "")
            lines.append(f"{file}, {kind}s {first} ({len(numbers):,} in all): {what}")
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "The data can't be used:\n" + "\n".join(f"- {line}" for line in lines[:_SHOWN] + more)


def _some(records: Iterator[Record], otherwise: str) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise ValueError(otherwise)


def _from_json(path: Path, limit: int | None) -> Iterator[Record]:
    """One list, or one object a line: which of the two, the first character tells."""
    with _open(path, newline="\n") as file:  # other line ends may stand inside a text
        try:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if first.lstrip().startswith("["):
                yield from _from_list(path, file.read(), limit)
            else:
                yield from _from_lines(path, file, limit)
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"data file {path} can't be read as UTF-8 text ({error_reason(e)})") from None


def _from_list(path: Path, text: str, limit: int | None) -> Iterator[Record]:
    try:
        records = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from None
    problems = []
    for i, record in enumerate(records[:limit], 1):
        if isinstance(record, dict):
            yield f"{path}, record {i}", record
        else:
            problems.append(f"{path}, record {i}: not a JSON object")
    if problems:
        raise ValueError(listed(problems))


def _from_lines(path: Path, file: Any, limit: int | None) -> Iterator[Record]:
    problems = []
    for number, line in enumerate(itertools.islice(file, limit), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as e:
            problems.append(f"{path}, line {number}: not valid JSON ({e})")
            continue
        if isinstance(record, dict):
            yield f"{path}, line {number}", record
        else:
            problems.append(f"{path}, line {number}: not a JSON object")
    if problems:
        file.seek(0)
        if _is_json(file.read()):
            raise ValueError(f"{path} holds one JSON object; needed is a list of records, or one record a line (JSONL)")
        raise ValueError(listed(problems))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _from_csv(path: Path, limit: int | None) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # 128 KiB otherwise, less than a long text
    problems = []
    with _open(path, newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            if doubled := {name for name in header if header.count(name) > 1}:
                raise ValueError(f"{path}: the header has the columns {', '.join(sorted(doubled))} more than once")
            line = rows.line_num + 1
            for row in itertools.islice(rows, limit):
                where, line = f"{path}, line {line}", rows.line_num + 1
                if len(row) != len(header):
                    if row:
                        problems.append(f"{where}: has {len(row)} cells where the header has {len(header)}")
                    continue
                try:
                    record = {name: _cell(name, text) for name, text in zip(header, row, strict=True)}
                except ValueError as e:
                    problems.append(f"{where}: {e}")
                    continue
                yield where, record
        except csv.Error as e:
            problems.append(f"{path}, line {rows.line_num}: not valid CSV ({e})")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"data file {path} can't be read as UTF-8 text ({error_reason(e)})") from None
    if problems:
        raise ValueError(listed(problems))


def _cell(name: str, text: str) -> Any:
    """A conversation is written as JSON; its cell is empty in records of another form. Other JSON is text."""
    if name not in _CONVERSATIONS:
        return text
    must = name in _CONVERSATIONS[:2]
    if must and not text.strip():
        return None
    if must or text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except ValueError as e:
            if must:
                raise ValueError(f"the cell {name} is not valid JSON ({e})") from None
            return text
        return value if must or _are_messages(value) else text
    return text


def _are_messages(value: Any) -> bool:
    says = {"content", "value", "tool_calls", "function_call"}
    return bool(value) and all(
        isinstance(m, dict) and m.get("role", m.get("from")) in ROLES and says & m.keys() for m in value
    )


def _from_parquet(path: Path, limit: int | None) -> Iterator[Record]:
    with open_parquet(path) as file:
        types = {field.name: field.type for field in file.schema_arrow}
        rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
        for number, record in enumerate(itertools.islice(rows, limit), 1):
            yield f"{path}, row {number}", {key: _unpadded(value, types[key]) for key, value in record.items()}


def _unpadded(value: Any, kind: Any, *, decoded: bool = False) -> Any:
    """A value of a pyarrow type without the nulls of structs, and JSON read, unless it is `decoded`."""
    from pyarrow import types

    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return value if decoded else json.loads(value)
    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return {k: _unpadded(v, fields[k], decoded=decoded) for k, v in value.items() if v is not None and k in fields}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_unpadded(item, kind.value_type, decoded=decoded) for item in value]
    return value


def _open(path: Path, newline: str) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline=newline)
    except OSError as e:
        raise ValueError(f"data file {path} can't be read ({error_reason(e)})") from None


def _from_hub(dataset: NamedDataset, split: str) -> Iterator[Record]:
    place, file = f"{dataset.hub_id}, {split}", None
    if dataset.files:
        if split not in dataset.files:
            raise ValueError(f"{dataset.hub_id} has no split {split!r}; it has {', '.join(dataset.files)}")
        file = dataset.files[split]
    rows = load_hub(dataset.hub_id, dataset.config, dataset.split if split == "train" else split, file=file)
    if missing := set(dataset.columns) - set(rows.column_names):
        raise ValueError(
            f"{place}: expected the columns {', '.join(sorted(missing))}; has {', '.join(rows.column_names)}"
        )
    rows = rows.rename_columns(dict(dataset.columns)) if dataset.columns else rows
    types = dict(zip(rows.features, rows.features.arrow_schema.types, strict=True))
    records = ({k: _unpadded(v, types[k], decoded=True) for k, v in row.items()} for row in rows)
    return _some(((f"{place}, row {i}", row) for i, row in enumerate(records, 1)), f"{place} holds no examples")
