"""Records from files or the Hugging Face hub: each is a dict, with its location for error messages.

Records are read one by one, so a dataset need not fit into memory; the errors of a file are raised together, after its
last record. Arrow's struct columns give every object all keys of the column (such as the arguments of all tools), null
where it has none: these nulls are dropped.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from litlm.data.named import NamedDataset, closest_names, find_dataset, list_datasets
from litlm.data.record_formats import ANSWER_KEYS, INPUT_KEYS, PROMPT_KEYS, ROLES, describe_unused, has_value
from litlm.data.sources import expand_patterns, load_hub, open_parquet, split_hub_id
from litlm.io.errors import error_reason
from litlm.io.reading import line_problem, parse_json, repeated_key

Record = tuple[str, dict[str, Any]]  # location, content

_EXTENSIONS = (".json", ".jsonl", ".csv", ".parquet")
_SOURCES = f"a file ({', '.join(_EXTENSIONS)}), a hub id such as org/name (or org/name:config), or one of"
# Cells of a .csv that hold messages as JSON: always, and where they are not text.
_MESSAGE_COLUMNS = ("messages", "conversations")
_TEXT_COLUMNS = frozenset({*PROMPT_KEYS, *INPUT_KEYS, *ANSWER_KEYS, "chosen", "rejected", "text"})
# The beginning of messages, also as Python (and so pandas) writes them.
_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(['"])(role|from|content|value)\1\s*:""")
_MAX_LINES, _MAX_NUMBERS = 20, 8  # of an error: lines, and numbers of records in a line
_LOCATION = re.compile(r"(.*), (line|record|row) (\d+): (.*)", re.S)


def read_records(source: str | Path, *, split: str = "train", limit: int | None = None) -> Iterator[Record]:
    """The records of a file (.json with one list, .jsonl, .csv with a header, .parquet) or of a dataset on the hub.

    source: an existing file; else a named dataset, or a hub id `org/name` or `org/name:config`. split: of a hub
    dataset. limit: read at most so many lines (or records). Raises ValueError that names every line that can't be read,
    after the others.
    """
    found = resolve_source(source)
    if isinstance(found, NamedDataset):
        return itertools.islice(_from_hub(found, split), limit)
    readers = {".csv": _from_csv, ".parquet": _from_parquet}
    return _require_records(readers.get(found.suffix.lower(), _from_json)(found, limit), f"{found} holds no examples")


def check_start(source: str | Path, parse: Callable[[dict[str, Any]], Any], *, limit: int = 1000) -> None:
    """Raise ValueError if the source is unknown or unreadable, or if `parse` refuses one of the first records.

    Fetches nothing: datasets on the hub are not read.
    """
    found, problems = resolve_source(source), []
    if isinstance(found, NamedDataset):
        return
    for where, record in read_records(found, limit=limit):
        try:
            parse(record)
        except ValueError as e:
            problems.append(f"{where}: {e}")
    if problems:
        raise ValueError(format_problems(problems))


class RecordSources:
    """The records of several sources (or patterns of file names), one source after the other.

    name: of all of them, for messages. columns: those that had a value in a record read so far. Iterating raises
    ValueError with the problems of all sources at the end.
    """

    def __init__(self, sources: Sequence[str], split: str) -> None:
        self.sources, self.split = expand_patterns(sources), split
        self.counts = [0] * len(self.sources)
        self.columns: dict[str, None] = {}  # in the order of the records
        first, *more = self.sources
        self.name = first if not more else f"{first} and {len(more)} more"

    def __iter__(self) -> Iterator[Record]:
        problems = []
        for i, source in enumerate(self.sources):
            try:
                for record in read_records(source, split=self.split):
                    self.counts[i] += 1
                    self.columns.update((key, None) for key, value in record[1].items() if has_value(value))
                    yield record
            except ValueError as e:
                problems.append(str(e))
        if problems:
            raise ValueError("\n".join(problems))

    def notes(self, used: frozenset[str]) -> list[str]:
        """Columns that are not among the used keys; and how many records each source has, if there are several."""
        unused = describe_unused(self.columns, used)
        notes = [f"{self.name}: {unused}"] if unused else []
        if len(self.sources) > 1:
            counts = zip(self.sources, self.counts, strict=True)
            notes += [f"{source}: {n:,} record{'' if n == 1 else 's'}" for source, n in counts]
        return notes


def resolve_source(source: str | Path) -> Path | NamedDataset:
    """The file or dataset that `source` names, without reading it. Raises ValueError with the closest names."""
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
            name=text, hub_id=hub_id, config=config, task="sft", record_keys="", licence="", n_examples=0
        )
    close = closest_names(text)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    names = ", ".join(dataset.name for dataset in list_datasets())
    raise ValueError(f"{text!r} is neither a file nor a known dataset. {hint}Use {_SOURCES} {names}")


def format_problems(problems: list[str]) -> str:
    """One error message for many problems; those that differ only in the record's number share a line."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for problem in problems:
        match = _LOCATION.fullmatch(problem)
        file, unit, number, text = match.groups() if match else (problem, "", "", "")
        numbers.setdefault((file, unit, text), []).append(number)
    lines = []
    for (file, unit, text), found in numbers.items():
        if not unit:
            lines.append(file)
        elif len(found) == 1:
            lines.append(f"{file}, {unit} {found[0]}: {text}")
        else:
            first = ", ".join(found[:_MAX_NUMBERS]) + (", ..." if len(found) > _MAX_NUMBERS else "")
            lines.append(f"{file}, {unit}s {first} ({len(found):,} in all): {text}")
    more = [f"... and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return "The data can't be used:\n" + "\n".join(f"- {line}" for line in lines[:_MAX_LINES] + more)


def _require_records(records: Iterator[Record], error: str) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise ValueError(error)


def _from_json(path: Path, limit: int | None) -> Iterator[Record]:
    """A JSON list if the first character is a bracket, else JSON Lines."""
    with _open(path, newline="\n") as file:  # texts may hold other line ends
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
        records = parse_json(text)
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from None
    problems = []
    for i, record in enumerate(records[:limit], 1):
        if problem := _problem_of(record):
            problems.append(f"{path}, record {i}: {problem}")
        else:
            yield f"{path}, record {i}", record
    if problems:
        raise ValueError(format_problems(problems))


def _from_lines(path: Path, file: Any, limit: int | None) -> Iterator[Record]:
    problems = []
    for number, line in enumerate(itertools.islice(file, limit), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as e:
            problems.append(f"{path}, line {number}: not valid JSON ({line_problem(e)})")
            continue
        if problem := _problem_of(record):
            problems.append(f"{path}, line {number}: {problem}")
        else:
            yield f"{path}, line {number}", record
    if problems:
        file.seek(0)
        if _is_json(file.read()):
            raise ValueError(f"{path} holds one JSON object; needed is a list of records, or one record a line (JSONL)")
        raise ValueError(format_problems(problems))


def _problem_of(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "not a JSON object"
    key = repeated_key(record)
    return None if key is None else f"has the key {key!r} twice; keep one of them"


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
                    record = {name: _parse_cell(name, text) for name, text in zip(header, row, strict=True)}
                except ValueError as e:
                    problems.append(f"{where}: {e}")
                    continue
                yield where, record
        except csv.Error as e:
            problems.append(f"{path}, line {rows.line_num}: not valid CSV ({e})")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"data file {path} can't be read as UTF-8 text ({error_reason(e)})") from None
    if problems:
        raise ValueError(format_problems(problems))


def _parse_cell(column: str, text: str) -> Any:
    """A cell's messages, which are written as JSON, or its text, which may be JSON of another kind.

    Raises ValueError for messages that are not valid JSON.
    """
    always = column in _MESSAGE_COLUMNS
    if always and not text.strip():
        return None  # another record format
    if not always and (column not in _TEXT_COLUMNS or text.lstrip()[:1] not in ("[", "{")):
        return text
    try:
        value = parse_json(text)
    except ValueError as e:
        if not always and not _MESSAGES.match(text):
            return text
        raise ValueError(f"the cell {column} is not valid JSON ({e}); write messages with json.dumps") from None
    if not always and not _are_messages(value):
        return text
    if (key := repeated_key(value)) is not None:
        raise ValueError(f"the cell {column} has the key {key!r} twice; keep one of them")
    return value


def _are_messages(value: Any) -> bool:
    messages, says = value if isinstance(value, list) else [value], {"content", "value", "tool_calls", "function_call"}
    return bool(messages) and all(
        isinstance(m, dict) and str(m.get("role", m.get("from"))) in ROLES and says & m.keys() for m in messages
    )


def _from_parquet(path: Path, limit: int | None) -> Iterator[Record]:
    with open_parquet(path) as file:
        types = {field.name: field.type for field in file.schema_arrow}
        rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
        for number, record in enumerate(itertools.islice(rows, limit), 1):
            yield f"{path}, row {number}", {key: _drop_nulls(value, types[key]) for key, value in record.items()}


def _drop_nulls(value: Any, arrow_type: Any, *, json_decoded: bool = False) -> Any:
    """A value of a pyarrow type without its structs' nulls, and with JSON decoded if it is not yet."""
    from pyarrow import types

    if value is None:
        return None
    if getattr(arrow_type, "extension_name", "") == "arrow.json":
        return value if json_decoded else json.loads(value)
    options = {"json_decoded": json_decoded}
    if types.is_struct(arrow_type):
        fields = {field.name: field.type for field in arrow_type}
        return {k: _drop_nulls(v, fields[k], **options) for k, v in value.items() if v is not None and k in fields}
    if isinstance(value, list) and hasattr(arrow_type, "value_type"):
        return [_drop_nulls(item, arrow_type.value_type, **options) for item in value]
    return value


def _open(path: Path, newline: str) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline=newline)
    except OSError as e:
        raise ValueError(f"data file {path} can't be read ({error_reason(e)})") from None


def _from_hub(dataset: NamedDataset, split: str) -> Iterator[Record]:
    location, file = f"{dataset.hub_id}, {split}", None
    if dataset.files:
        if split not in dataset.files:
            raise ValueError(f"{dataset.hub_id} has no split {split!r}; it has {', '.join(dataset.files)}")
        file = dataset.files[split]
    rows = load_hub(dataset.hub_id, dataset.config, dataset.split if split == "train" else split, file=file)
    renamed = dict(dataset.rename_columns)
    if missing := set(renamed) - set(rows.column_names):
        raise ValueError(
            f"{location}: expected the columns {', '.join(sorted(missing))}; has {', '.join(rows.column_names)}"
        )
    rows = rows.rename_columns(renamed) if renamed else rows
    types = dict(zip(rows.features, rows.features.arrow_schema.types, strict=True))
    records = ({k: _drop_nulls(v, types[k], json_decoded=True) for k, v in row.items()} for row in rows)
    return _require_records(
        ((f"{location}, row {i}", row) for i, row in enumerate(records, 1)), f"{location} holds no examples"
    )
