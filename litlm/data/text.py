"""Text to learn from, read document by document: files, folders, records (JSON, parquet), hub datasets. No torch.

Sources become a list of *units* (a file, or a hub dataset) in an order that is always the same; a unit is read in
*parts*. So (unit, part) says where reading stopped. Unusual:
- A long document comes in several parts: a file larger than memory can be read, and tokenized by several threads. It
  is cut between a line's end and a letter or digit, or between a word and the space before the next, where byte-level
  BPE joins no text (`prepare.cuts_exactly` asks the tokenizer).
- In folders, hidden files and those that are no UTF-8 text are left out and counted; a file named itself must be text.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from litlm.data.named import close_names, find_dataset
from litlm.data.sources import expand, hub_errors, load_hub, open_parquet, split_hub_id

PART = 2**18  # characters after which a document is cut
_BLOCK = 2**22  # bytes read at once
_CUT = re.compile(r"(?<=\S)\n(?=[^\W_])|(?<=[^\W\d_])(?= [^\W\d_])")
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_FORMS = (
    "a text file, .jsonl, .json or .parquet (also .gz), a folder of such files, a named dataset, or a hub id org/name"
)


@dataclass(frozen=True)
class Unit:
    """A file or a hub dataset.

    place: the path, or the hub id. name: how it is told apart from others; has no part of the path that can change
    when a folder is moved. kind: text, jsonl, json, parquet or hub. named: given by the user, not found in a folder.
    """

    place: str
    name: str
    kind: str
    text_key: str
    named: bool = True
    size: int = 0
    modified: int = 0
    split: str = ""
    subset: str | None = None
    revision: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What has changed if the unit has. A hub's revision is pinned apart from it, so that no network is needed."""
        return [self.name, self.kind, self.text_key, self.size, self.modified, self.split, self.subset]


@dataclass(frozen=True)
class Part:
    """Some text of one document. starts, ends: whether the document does so here. read: bytes of its file so far."""

    where: str
    text: str
    starts: bool
    ends: bool
    read: int


class _NotText(ValueError):
    """A file is not UTF-8. Raised before its first part."""


def documents(sources: Sequence[str], *, text_key: str = "text", split: str = "train") -> Iterator[tuple[str, str]]:
    """All documents in order, each with where it stands, for messages. A text file is one document."""
    found = [pin(unit) for unit in units(sources, text_key=text_key, split=split)]
    for _, _, part in stream(found, cut=False):
        yield part.where, part.text


# --- from sources to units ----------------------------------------------------------------------------------------
def units(sources: Sequence[str], *, text_key: str, split: str, exclude: Path | None = None) -> list[Unit]:
    """What the sources hold, in the order it is read. exclude: a folder that is passed over."""
    found: list[Unit] = []
    problems: list[str] = []
    for source in expand(sources):
        path = Path(source).expanduser()
        if path.is_dir():
            if (path / "index.json").is_file() and any(path.glob("shard-*.bin")):
                problems.append(f"{source} is prepared already; pass it to `litlm pretrain` as it is")
                continue
            files = _files(path, exclude)
            found += [_file_unit(file, f"{path.resolve().name}/{name}", text_key, named=False) for name, file in files]
            if not files:
                problems.append(f"{source} is a folder without files (hidden ones are passed over)")
        elif path.is_file():
            found.append(_file_unit(path, path.name, text_key, named=True))
        elif dataset := _hub_unit(source, text_key, split):
            found.append(dataset)
        else:
            close = close_names(source)
            hint = f" Did you mean the dataset {' or '.join(close)}?" if close else ""
            problems.append(f"{source} does not exist.{hint} Accepted: {_FORMS}")
    if problems:
        raise ValueError("The data can't be used:\n" + "\n".join(f"- {p}" for p in problems))
    return found


def _files(folder: Path, exclude: Path | None) -> list[tuple[str, Path]]:
    found = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        if exclude is not None:
            folders[:] = [f for f in folders if (here / f).resolve() != exclude.resolve()]
        found += [here / name for name in names if not name.startswith(".") and (here / name).is_file()]
    return sorted((file.relative_to(folder).as_posix(), file) for file in found)


def _file_unit(path: Path, name: str, text_key: str, *, named: bool) -> Unit:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    kind = _KINDS.get(suffix.lower(), "text")
    state = path.stat()
    key = "" if kind == "text" else text_key
    return Unit(str(path), name, kind, key, named, state.st_size, state.st_mtime_ns)


def _hub_unit(source: str, text_key: str, split: str) -> Unit | None:
    """A dataset by its short name or hub id; `org/name:subset` picks one of several that are published together."""
    if known := find_dataset(source):  # its own field and split, unless others than the usual ones are asked for
        text_key = known.text_key if text_key == "text" else text_key
        split = known.split if split == "train" else split
        return Unit(known.hub_id, known.hub_id, "hub", text_key, split=split, subset=known.config)
    hub = split_hub_id(source)
    if hub is None or Path(hub[0]).suffix.lower() in {*_KINDS, ".txt", ".md", ".gz", ".py"}:
        return None
    hub_id, subset = hub
    return Unit(hub_id, hub_id, "hub", text_key, split=split, subset=subset)


def pin(unit: Unit) -> Unit:
    """With the revision that the hub has now, so that going on later reads the same."""
    if unit.kind != "hub":
        return unit
    from huggingface_hub import dataset_info

    with hub_errors(unit.place, unit.subset, unit.split):
        return replace(unit, revision=dataset_info(unit.place).sha)


# --- from units to parts ------------------------------------------------------------------------------------------
def stream(
    units: Sequence[Unit],
    *,
    cut: bool = True,
    start: tuple[int, int] = (0, 0),
    skipped: set[int] | None = None,
) -> Iterator[tuple[int, int, Part]]:
    """All parts from (unit, part) `start` on, each with both numbers. Units that are no text are added to `skipped`."""
    for number in range(start[0], len(units)):
        unit = units[number]
        try:
            for place, part in enumerate(_READERS[unit.kind](unit, cut)):
                if (number, place) >= start:
                    yield number, place, part
        except _NotText as e:
            if unit.named:
                raise ValueError(f"{unit.place} is not UTF-8 text ({e}); convert it, for example with iconv") from None
            if skipped is not None:
                skipped.add(number)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{unit.place} can't be read: {e}") from None


@contextmanager
def _open(unit: Unit) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The content, and a function that says how much of the file has been read."""
    with open(unit.place, "rb") as raw:
        if unit.place.lower().endswith(".gz"):
            with gzip.open(raw) as unpacked:
                yield unpacked, raw.tell  # type: ignore[misc]
        else:
            yield raw, raw.tell


def _read_text(unit: Unit, cut: bool) -> Iterator[Part]:
    with _open(unit) as (file, position):
        try:
            first = file.read(_BLOCK + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            if unit.named:
                raise
            raise _NotText(str(e)) from None
        if not unit.named and b"\0" in first[:8192]:
            raise _NotText("binary")
        if len(first) <= _BLOCK:
            yield from _parts(unit.place, [_decoded(first)], cut, lambda: unit.size)
            return
    with _open(unit) as (file, _):
        for _ in _blocks(file):  # a long file that turns out to be no text must not have given half of its parts
            pass
    with _open(unit) as (file, position):
        blocks = _blocks(file)
        yield from _parts(unit.place, blocks if cut else ["".join(blocks)], cut, position)


def _blocks(file: IO[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while block := file.read(_BLOCK):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as e:
        raise _NotText(str(e)) from None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise _NotText(str(e)) from None


def _read_jsonl(unit: Unit, cut: bool) -> Iterator[Part]:
    with _open(unit) as (file, position):
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                where = f"{unit.place}, line {number}"
                yield from _record(where, _parsed(where, line), unit, cut, position)


def _read_json(unit: Unit, cut: bool) -> Iterator[Part]:
    """A list of records, one record, or one record a line. In a folder also what is no record: a document, as text."""
    with _open(unit) as (file, _):
        text = _decoded(file.read())
    try:
        value = json.loads(text)
        records = list(enumerate(value if isinstance(value, list) else [value], 1))
        what = "record"
    except ValueError:
        what, records = "line", list(enumerate(text.split("\n"), 1))
        records = [(number, line) for number, line in records if line.strip()]
    if not unit.named:
        first = records[0][1] if records else None
        if what == "line":
            try:
                first = json.loads(first or "")
            except ValueError:
                first = None
        if not isinstance(first, dict) or unit.text_key not in first:
            yield from _parts(unit.place, [text], cut, lambda: unit.size)
            return
    for number, record in records:
        where = f"{unit.place}, {what} {number}"
        value = _parsed(where, record) if what == "line" else record
        share = unit.size * number // len(records)
        yield from _record(where, value, unit, cut, lambda share=share: share)


def _parsed(where: str, line: str | bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as e:
        raise ValueError(f"{where}: not valid JSON ({e})") from None


def _read_parquet(unit: Unit, cut: bool) -> Iterator[Part]:
    with open_parquet(unit.place) as file:
        if unit.text_key not in file.schema_arrow.names:
            raise ValueError(_no_field(unit.place, unit.text_key, file.schema_arrow.names))
        total, batches = file.metadata.num_rows, file.iter_batches(batch_size=256, columns=[unit.text_key])
        for number, record in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            share = unit.size * number // total
            yield from _record(f"{unit.place}, row {number}", record, unit, cut, lambda share=share: share)


def _read_hub(unit: Unit, cut: bool) -> Iterator[Part]:
    records = iter(load_hub(unit.place, unit.subset, unit.split, revision=unit.revision, streaming=True))
    for number in itertools.count(1):
        with hub_errors(unit.place, unit.subset, unit.split):
            record = next(records, None)
        if record is None:
            return
        yield from _record(f"{unit.place}, record {number}", record, unit, cut, lambda: 0)


_READERS: dict[str, Callable[[Unit, bool], Iterator[Part]]] = {
    "text": _read_text, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet, "hub": _read_hub,
}  # fmt: skip


def _record(where: str, record: Any, unit: Unit, cut: bool, read: Callable[[], int]) -> Iterator[Part]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON {type(record).__name__}, where an object with {unit.text_key!r} is needed")
    if unit.text_key not in record:
        raise ValueError(_no_field(where, unit.text_key, list(record)))
    text = record[unit.text_key]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: the field {unit.text_key!r} is a {type(text).__name__}, not text")
    yield from _parts(where, [_valid(text or "")], cut, read)


def _no_field(where: str, key: str, found: Sequence[str]) -> str:
    return (
        f"{where}: no field {key!r} among {', '.join(map(str, found)) or '(none)'}; name the right one with --text_key "
        "(litlm pretrain: --data.text_key)"
    )


def _valid(text: str) -> str:
    """JSON can spell half of a character that takes two UTF-16 units: pairs are joined, a lone half becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parts(where: str, texts: Iterable[str], cut: bool, read: Callable[[], int]) -> Iterator[Part]:
    """One document as parts. An empty one has none."""
    starts, held = True, None
    for piece in pieces(texts, PART) if cut else texts:
        if held:
            yield Part(where, held, starts, False, read())
            starts = False
        held = piece
    if held:
        yield Part(where, held, starts, True, read())


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """The same text in pieces, each cut at the first good place after `size` characters."""
    left, searched = "", size
    for text in texts:
        left, at = left + text, 0
        while found := _CUT.search(left, max(at + size, searched)):
            yield left[at : found.end()]
            at = found.end()
        left = left[at:]
        searched = max(size, len(left) - 2)  # what a cut needs after it may come with the next text
    yield left
