"""Text to pretrain on, read document by document from files, folders, records (JSON, parquet) and hub datasets.

What the user names becomes a list of `TextSource`s (a file or a hub dataset) in a fixed order; each is read in chunks,
so the numbers (source, chunk) say where reading stopped. No torch.
- A long document has several chunks: a file larger than memory can be read, and tokenized by several threads. It is
  split where byte-level BPE never merges: between a newline and a letter or digit, or between a word and the space
  before the next (`prepare.splits_cleanly` checks the tokenizer).
- In folders, hidden files and files that are not UTF-8 text are skipped; a file named directly must be text.
"""

from __future__ import annotations

import codecs
import gzip
import io
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

from litlm.data.named import closest_names, find_dataset
from litlm.data.sources import expand_patterns, hub_errors, load_hub, open_parquet, refuse_repeated, split_hub_id
from litlm.io.reading import line_problem, parse_json, repeated_key

CHUNK_SIZE = 2**18  # characters after which a document is split
_BLOCK_SIZE = 2**22  # bytes read at once
_SPLIT = re.compile(r"(?<=\S)\n(?=[^\W_])|(?<=[^\W\d_])(?= [^\W\d_])")
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_ACCEPTED = (
    "a text file, .jsonl, .json or .parquet (also .gz), a folder of such files, a named dataset, or a hub id org/name"
)


@dataclass(frozen=True)
class TextSource:
    """A file or a hub dataset.

    path: of the file, or the hub id. name: identifies it; without the part of the path that changes when a folder is
    moved. format: text, jsonl, json, parquet or hub. explicit: named by the user, not found in a folder.
    """

    path: str
    name: str
    format: str
    text_key: str
    explicit: bool = True
    size: int = 0
    modified: int = 0
    split: str = ""
    subset: str | None = None
    revision: str | None = None

    @property
    def identity(self) -> list[Any]:
        """Changes when the source does. A hub revision is no part of it, so that no network is needed."""
        return [self.name, self.format, self.text_key, self.size, self.modified, self.split, self.subset]


@dataclass(frozen=True)
class Chunk:
    """Text of one document. is_first, is_last: of the document's chunks. bytes_read: of the file so far."""

    location: str
    text: str
    is_first: bool
    is_last: bool
    bytes_read: int


class _NotTextError(ValueError):
    """A file is not UTF-8. Raised before its first chunk."""


def documents(sources: Sequence[str], *, text_key: str = "text", split: str = "train") -> Iterator[tuple[str, str]]:
    """All documents in order, each with its location for messages. A text file is one document."""
    found = [pin_revision(source) for source in find_sources(sources, text_key=text_key, split=split)]
    for _, _, chunk in read_chunks(found, split_long=False):
        yield chunk.location, chunk.text


# --- finding sources ----------------------------------------------------------------------------------------------
def find_sources(sources: Sequence[str], *, text_key: str, split: str, exclude: Path | None = None) -> list[TextSource]:
    """The files and hub datasets in reading order. exclude: a folder to skip. Raises ValueError for sources
    that are unknown or would be read twice."""
    found: list[TextSource] = []
    problems: list[str] = []
    for source in expand_patterns(sources):
        path = Path(source).expanduser()
        if path.is_dir():
            if holds_tokens(path):
                problems.append(f"{source} is prepared already; pass it to `litlm pretrain` as it is")
                continue
            files, prepared = _files_in(path, exclude)
            if prepared:
                inner = ", ".join(prepared[:3]) + (", ..." if len(prepared) > 3 else "")
                problems.append(f"{source} holds prepared tokens in {inner}; pass that folder, or texts without it")
                continue
            folder = path.resolve().name
            found += [_file_source(file, f"{folder}/{name}", text_key, explicit=False) for name, file in files]
            if not files:
                problems.append(f"{source} is a folder without files (hidden ones are skipped)")
        elif path.is_file():
            found.append(_file_source(path, path.name, text_key, explicit=True))
        elif dataset := _hub_source(source, text_key, split):
            found.append(dataset)
        else:
            close = closest_names(source)
            hint = f" Did you mean the dataset {' or '.join(close)}?" if close else ""
            problems.append(f"{source} does not exist.{hint} Accepted: {_ACCEPTED}")
    if problems:
        raise ValueError("The data can't be used:\n" + "\n".join(f"- {p}" for p in problems))
    refuse_repeated([source.path for source in found if source.format != "hub"])  # a file and its folder
    return found


def holds_tokens(folder: str | Path) -> bool:
    """Whether the folder has the files that `litlm prepare` writes, readable or not."""
    folder = Path(folder).expanduser()
    return (folder / "index.json").is_file() and any(folder.glob("shard-*.bin"))


def _files_in(folder: Path, exclude: Path | None) -> tuple[list[tuple[str, Path]], list[str]]:
    """The files by their names within the folder, and the inner folders that hold prepared tokens."""
    found, prepared = [], []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        if exclude is not None:
            folders[:] = [f for f in folders if (here / f).resolve() != exclude.resolve()]
        if "index.json" in names and holds_tokens(here):
            prepared.append(here.relative_to(folder).as_posix())
        found += [here / name for name in names if not name.startswith(".") and (here / name).is_file()]
    return sorted((file.relative_to(folder).as_posix(), file) for file in found), sorted(prepared)


def _file_source(path: Path, name: str, text_key: str, *, explicit: bool) -> TextSource:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    format, state = _FORMATS.get(suffix.lower(), "text"), path.stat()
    key = "" if format == "text" else text_key
    return TextSource(str(path), name, format, key, explicit, state.st_size, state.st_mtime_ns)


def _hub_source(source: str, text_key: str, split: str) -> TextSource | None:
    """A dataset by its short name or hub id; `org/name:subset` selects a subset."""
    if known := find_dataset(source):  # its own key and split in place of the defaults
        text_key = known.text_key if text_key == "text" else text_key
        split = known.split if split == "train" else split
        return TextSource(known.hub_id, known.hub_id, "hub", text_key, split=split, subset=known.config)
    hub = split_hub_id(source)
    if hub is None or Path(hub[0]).suffix.lower() in {*_FORMATS, ".txt", ".md", ".gz", ".py"}:
        return None
    hub_id, subset = hub
    return TextSource(hub_id, hub_id, "hub", text_key, split=split, subset=subset)


def pin_revision(source: TextSource) -> TextSource:
    """The source at the hub's current revision, so that resuming reads the same data."""
    if source.format != "hub":
        return source
    from huggingface_hub import dataset_info

    with hub_errors(source.path, source.subset, source.split):
        return replace(source, revision=dataset_info(source.path).sha)


# --- reading chunks -----------------------------------------------------------------------------------------------
def read_chunks(
    sources: Sequence[TextSource],
    *,
    split_long: bool = True,
    start: tuple[int, int] = (0, 0),
    skipped: set[int] | None = None,
) -> Iterator[tuple[int, int, Chunk]]:
    """Yield (source number, chunk number, chunk) from `start` on.

    split_long: split long documents. skipped: receives the numbers of sources that are not text. Raises ValueError for
    those that were named directly, and for files that can't be read.
    """
    for number in range(start[0], len(sources)):
        source = sources[number]
        try:
            for chunk_number, chunk in enumerate(_READERS[source.format](source, split_long)):
                if (number, chunk_number) >= start:
                    yield number, chunk_number, chunk
        except _NotTextError as e:
            if source.explicit:
                raise ValueError(f"{source.path} is not UTF-8 text ({e}); convert it, for example with iconv") from None
            if skipped is not None:
                skipped.add(number)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{source.path} can't be read: {e}") from None


@contextmanager
def _open(source: TextSource) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The content, and a function that returns how many bytes of the file have been read."""
    with open(source.path, "rb") as raw:
        if source.path.lower().endswith(".gz"):
            with gzip.open(raw) as unpacked:
                yield unpacked, raw.tell  # type: ignore[misc]
        else:
            yield raw, raw.tell


def _read_text(source: TextSource, split_long: bool) -> Iterator[Chunk]:
    with _open(source) as (file, position):
        try:
            first = file.read(_BLOCK_SIZE + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            if source.explicit:
                raise
            raise _NotTextError(str(e)) from None
        if not source.explicit and b"\0" in first[:8192]:
            raise _NotTextError("binary")
        if len(first) <= _BLOCK_SIZE:
            text = "".join(_blocks(io.BytesIO(first)))
            yield from _chunks(source.path, [text], split_long, lambda: source.size)
            return
    with _open(source) as (file, _):
        for _ in _blocks(file):  # a long file must prove to be text before its first chunk
            pass
    with _open(source) as (file, position):
        blocks = _blocks(file)
        yield from _chunks(source.path, blocks if split_long else ["".join(blocks)], split_long, position)


def _blocks(file: IO[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while block := file.read(_BLOCK_SIZE):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as e:
        raise _NotTextError(str(e)) from None


def _read_jsonl(source: TextSource, split_long: bool) -> Iterator[Chunk]:
    with _open(source) as (file, position):
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                location = f"{source.path}, line {number}"
                yield from _record(location, _parse_json(location, line), source, split_long, position)


def _read_json(source: TextSource, split_long: bool) -> Iterator[Chunk]:
    """A list of records, one record, or one record per line. In a folder, any other JSON is a text document."""
    with _open(source) as (file, _):
        text = "".join(_blocks(file))
    try:
        value = parse_json(text)
        records = list(enumerate(value if isinstance(value, list) else [value], 1))
        unit = "record"
    except ValueError:
        unit, records = "line", list(enumerate(text.split("\n"), 1))
        records = [(number, line) for number, line in records if line.strip()]
    if not source.explicit:
        first = records[0][1] if records else None
        if unit == "line":
            try:
                first = json.loads(first or "")
            except ValueError:
                first = None
        if not isinstance(first, dict) or source.text_key not in first:
            yield from _chunks(source.path, [text], split_long, lambda: source.size)
            return
    for number, record in records:
        location = f"{source.path}, {unit} {number}"
        value = _parse_json(location, record) if unit == "line" else record
        share = source.size * number // len(records)
        yield from _record(location, value, source, split_long, lambda share=share: share)


def _parse_json(location: str, line: str | bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as e:
        raise ValueError(f"{location}: not valid JSON ({line_problem(e)})") from None


def _read_parquet(source: TextSource, split_long: bool) -> Iterator[Chunk]:
    with open_parquet(source.path) as file:
        if source.text_key not in file.schema_arrow.names:
            raise ValueError(_missing_key(source.path, source.text_key, file.schema_arrow.names))
        total, batches = file.metadata.num_rows, file.iter_batches(batch_size=256, columns=[source.text_key])
        for number, record in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            share = source.size * number // total
            yield from _record(f"{source.path}, row {number}", record, source, split_long, lambda share=share: share)


def _read_hub(source: TextSource, split_long: bool) -> Iterator[Chunk]:
    records = iter(load_hub(source.path, source.subset, source.split, revision=source.revision, streaming=True))
    for number in itertools.count(1):
        with hub_errors(source.path, source.subset, source.split):
            record = next(records, None)
        if record is None:
            return
        yield from _record(f"{source.path}, record {number}", record, source, split_long, lambda: 0)


_READERS: dict[str, Callable[[TextSource, bool], Iterator[Chunk]]] = {
    "text": _read_text, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet, "hub": _read_hub,
}  # fmt: skip


def _record(
    location: str, record: Any, source: TextSource, split_long: bool, bytes_read: Callable[[], int]
) -> Iterator[Chunk]:
    key = source.text_key
    if not isinstance(record, dict):
        raise ValueError(f"{location}: a JSON {type(record).__name__}, where an object with {key!r} is needed")
    if (repeated := repeated_key(record)) is not None:
        raise ValueError(f"{location}: has the key {repeated!r} twice; keep one of them")
    if key not in record:
        raise ValueError(_missing_key(location, key, list(record)))
    text = record[key]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{location}: the field {key!r} is a {type(text).__name__}, not text")
    yield from _chunks(location, [_fix_surrogates(text or "")], split_long, bytes_read)


def _missing_key(location: str, key: str, found: Sequence[str]) -> str:
    return (
        f"{location}: no field {key!r} among {', '.join(map(str, found)) or '(none)'}; name the right one with "
        "--text_key (litlm pretrain: --data.text_key)"
    )


def _fix_surrogates(text: str) -> str:
    """Join surrogate pairs, which JSON's escapes can spell; lone surrogates become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _chunks(location: str, texts: Iterable[str], split_long: bool, bytes_read: Callable[[], int]) -> Iterator[Chunk]:
    """The chunks of one document; none if it is empty."""
    is_first, pending = True, None
    for text in split_text(texts, CHUNK_SIZE) if split_long else texts:
        if pending:
            yield Chunk(location, pending, is_first, False, bytes_read())
            is_first = False
        pending = text
    if pending:
        yield Chunk(location, pending, is_first, True, bytes_read())


def split_text(texts: Iterable[str], size: int) -> Iterator[str]:
    """The concatenated texts in pieces, each split at the first possible position after `size` characters."""
    rest, searched = "", size
    for text in texts:
        rest, start = rest + text, 0
        while match := _SPLIT.search(rest, max(start + size, searched)):
            yield rest[start : match.end()]
            start = match.end()
        rest = rest[start:]
        searched = max(size, len(rest) - 2)  # the lookahead may need the next text
    yield rest
