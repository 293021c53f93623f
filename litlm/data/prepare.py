"""`litlm prepare`: tokenize text into files that pretraining memory-maps. No torch.

A prepared folder holds `shard-00000.bin`, ... (little-endian token ids, uint16 if the vocabulary fits, else uint32),
`index.json` and the tokenizer. The shards are one stream of tokens, split without regard to documents. A document is
the tokenizer's prefix (a BOS, or nothing), the text's tokens and the end token, which separates documents. A prefix or
end token that the text already has is not repeated; an end token within a text ends a document too.
- The stream is a function of data and tokenizer alone. `next` in index.json holds the chunk (see text.py) and the token
  that the next shard starts with: a killed run resumes there, and the files come out the same.
- Threads tokenize batches of texts: the libraries release Python's lock while they work.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from litlm import __version__
from litlm.data import text
from litlm.io.lock import locked
from litlm.io.reading import check_readable
from litlm.io.writing import clear_parts, write_text, writing
from litlm.settings.data import PrepareCommand
from litlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

INDEX = "index.json"
_FORMAT = "litlm tokens 1"
_PARALLELISM = "TOKENIZERS_PARALLELISM"  # whether the tokenizers library uses its own threads
_BATCH_CHARACTERS, _BATCH_CHUNKS = 2**17, 4096  # tokenized together
_SAMPLE = (
    "Fingerprint: don't SHOUT, x=12345.678e-9;\n\tif (a != b) { return f(a)[0]; }\r\n\n  Zażółć gęślą jaźń, "
    "naïve Ångström — Привет, мир! 你好，世界 日本語 नमस्ते مرحبا 🙂👩‍👩‍👧 1234567 internationalization https://example.org/?q=1"
)


@dataclass(frozen=True)
class PrepareResult:
    """What `folder` holds now. skipped: files that are not UTF-8 text. written: tokens that this run added."""

    folder: Path
    tokens: int
    documents: int
    shards: int
    dtype: str
    skipped: tuple[str, ...]
    written: int
    seconds: float


def prepare_command(settings: PrepareCommand) -> None:
    """`litlm prepare`."""
    result = prepare(settings)
    files = "1 shard" if result.shards == 1 else f"{result.shards:,} shards"
    print(f"{result.folder}: {result.tokens:,} tokens of {result.documents:,} documents in {files} ({result.dtype})")
    if result.written == 0:
        print("Already complete.")
    else:
        speed = result.written / result.seconds
        print(f"Wrote {result.written:,} tokens in {result.seconds:.1f} s, {speed:,.0f} tokens/s.")
    if result.skipped:
        print(skipped_note(result.skipped))
    print(f"Go on with: litlm pretrain MODEL --data.path {shlex.quote(str(result.folder))}")


def skipped_note(names: Sequence[str]) -> str:
    """What to tell users about skipped files."""
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names):,} files were skipped because they are not UTF-8 text: {', '.join(names[:5])}{more}"


def prepare(settings: PrepareCommand, tokenizer: Tokenizer | None = None) -> PrepareResult:
    """Tokenize into `out_dir`, resuming an earlier run with the same settings.

    tokenizer: used instead of loading `settings.tokenizer`. Raises ValueError for data or a folder that can't be used.
    """
    out = Path(settings.out_dir).expanduser()
    sources = text.find_sources(settings.data, text_key=settings.text_key, split=settings.split, exclude=out)
    tokenizer = tokenizer or load_tokenizer(settings.tokenizer)
    index = _new_index(settings, sources, tokenizer)
    _check_folder(out)
    with locked(out):
        return _run(settings, out, sources, tokenizer, index)


def _run(
    settings: PrepareCommand, out: Path, sources: list[text.TextSource], tokenizer: Tokenizer, index: dict[str, Any]
) -> PrepareResult:
    if (out / INDEX).is_file() and not settings.overwrite:
        found = read_index(out)
        if found["shards"]:
            _check_same_settings(out, found, index)
            check_shards(out, found)
            index = found
    before, start = index["tokens"], time.perf_counter()
    if index["next"] is not None:
        if "revisions" not in index["sources"]:
            pinned = [text.pin_revision(source) for source in sources]
            index["sources"]["revisions"] = {s.path: s.revision for s in pinned if s.format == "hub"}
        sources = [replace(s, revision=index["sources"]["revisions"].get(s.path)) for s in sources]
        clear_parts(out)
        _write_index(out, index)
        with writing(out):
            for file in out.glob("shard-*"):  # of an older run, or incomplete
                if file.name not in {shard["file"] for shard in index["shards"]}:
                    file.unlink()
        tokenizer.save(out)
        _write_shards(settings, out, sources, tokenizer, index)
    seconds = time.perf_counter() - start
    skipped = tuple(name for _, name in index["skipped"])
    return PrepareResult(
        out, index["tokens"], index["documents"], len(index["shards"]), index["dtype"], skipped,
        index["tokens"] - before, seconds,
    )  # fmt: skip


# --- the tokenizer ------------------------------------------------------------------------------------------------
def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model (directory, .gguf, zoo name, hub id), or of a tokenizer.json with the files beside it.

    Raises ValueError if there is none.
    """
    from litlm.checkpoint.download import resolve

    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != ".gguf":
        if path.name not in ("tokenizer.json", "tokenizer.model"):
            raise ValueError(
                f"tokenizer={str(source)!r} is neither a .gguf file nor called tokenizer.json or tokenizer.model"
            )
        return Tokenizer.from_dir(path.parent)
    path = resolve(source)
    if path.suffix.lower() == ".gguf":
        from litlm.checkpoint.gguf import GGUFSource

        return Tokenizer.from_gguf(GGUFSource(path).metadata)
    return Tokenizer.from_dir(path)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Equal for tokenizers that do the same, whatever files they were read from."""
    names = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
    sample = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    return hashlib.sha256(json.dumps([names, sample]).encode()).hexdigest()[:16]


def splits_cleanly(tokenizer: Tokenizer) -> bool:
    """Whether text split as text.py does has the same tokens as the whole text.

    Not with SentencePiece, which adds a space before each text: then long documents are not split.
    """
    halves = [
        ("one;\n", "Two three"), ("x = 1\n", "12345 ab"), ("line.\t#\n", "東京 a"), ("a  b\n", "été\n\nz"),
        ("the", " quick"), ("x.Nom", " élan's"), ("A", " B  c"),
    ]  # fmt: skip
    ids = lambda part: tokenizer.encode(part, add_special_tokens=False)  # noqa: E731
    return all(ids(before + after) == ids(before) + ids(after) for before, after in halves)


# --- index.json ---------------------------------------------------------------------------------------------------
def is_prepared(folder: str | Path) -> bool:
    """Whether `litlm prepare` wrote (or began) this folder."""
    try:
        return json.loads((Path(folder).expanduser() / INDEX).read_bytes())["format"].startswith("litlm tokens")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared folder. Raises ValueError if it can't be read or has another format."""
    path = folder / INDEX
    check_readable(path)
    try:
        index = json.loads(path.read_bytes())
        format = index["format"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} can't be read as the index of prepared text ({e!r}); prepare it again") from None
    if format != _FORMAT:
        raise ValueError(f"{path} has the format {format!r}, this litlm reads {_FORMAT!r}; prepare it again")
    return index


def check_shards(folder: Path, index: dict[str, Any]) -> None:
    """Raise ValueError for shards that are missing or not as long as the index says."""
    width = 2 if index["dtype"] == "uint16" else 4
    problems = []
    for shard in index["shards"]:
        path, size = folder / shard["file"], shard["tokens"] * width
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{path} has {path.stat().st_size:,} bytes, the index says {size:,}")
    if problems:
        raise ValueError(
            "Prepared text is damaged; copy it again, or prepare it again with --overwrite:\n"
            + "\n".join(f"- {p}" for p in problems)
        )


def describe_sources(sources: Sequence[text.TextSource]) -> dict[str, Any]:
    """Their number, size and fingerprint, as index.json has them."""
    digest = hashlib.sha256(json.dumps([source.identity for source in sources]).encode()).hexdigest()[:16]
    return {"units": len(sources), "bytes": sum(source.size for source in sources), "fingerprint": digest}


def _new_index(settings: PrepareCommand, sources: Sequence[text.TextSource], tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.eos_id is None:
        raise ValueError(
            f"tokenizer={settings.tokenizer!r} has no end token to put after each document; name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    return {
        "format": _FORMAT,
        "litlm": __version__,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        # An end token as prefix (OPT's BOS) is already there: it ends the document before.
        "prefix_ids": [token for token in tokenizer.prefix_ids if token != tokenizer.eos_id],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": list(settings.data),
        "split": settings.split,
        "text_key": settings.text_key,
        "shard_tokens": settings.shard_tokens,
        "max_tokens": settings.max_tokens,
        "sources": describe_sources(sources),
        "tokens": 0,
        "documents": 0,
        "shards": [],
        "skipped": [],
        "next": [0, 0, 0],
    }


def _check_same_settings(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    names = ("tokenizer", "vocab_size", "eos_id", "prefix_ids", "split", "text_key", "shard_tokens", "max_tokens")
    problems = [f"{name} was {old[name]!r}, is now {new[name]!r}" for name in names if old[name] != new[name]]
    if old["sources"]["fingerprint"] != new["sources"]["fingerprint"]:
        was, now = (
            f"{', '.join(i['data'])} ({i['sources']['units']:,} files, {i['sources']['bytes']:,} bytes)"
            for i in (old, new)
        )
        changed = " (files were changed, or rewritten)" if was == now else ""
        problems.append(f"data was {was}, is now {now}{changed}")
    if problems:
        raise ValueError(
            f"out_dir={str(out)!r} holds text prepared with other settings; choose another, or replace it with "
            "--overwrite:\n" + "\n".join(f"- {p}" for p in problems)
        )


def _check_folder(out: Path) -> None:
    if not out.exists() or (out / INDEX).is_file() and is_prepared(out):
        return
    if not out.is_dir():
        raise ValueError(f"out_dir={str(out)!r} is a file; name a folder")
    others = sorted(name for name in os.listdir(out) if not name.startswith("."))  # killed runs leave hidden files
    if others:
        raise ValueError(f"out_dir={str(out)!r} holds other files ({', '.join(others[:3])}, ...); name an empty folder")


def _write_index(out: Path, index: dict[str, Any]) -> None:
    write_text(out / INDEX, json.dumps(index, indent=1) + "\n")


# --- writing shards -----------------------------------------------------------------------------------------------
def _write_shards(
    settings: PrepareCommand, out: Path, sources: Sequence[text.TextSource], tokenizer: Tokenizer, index: dict[str, Any]
) -> None:
    import numpy as np
    from tqdm import tqdm

    def note_skipped(last: int) -> None:
        """Those up to source `last`; skipped ones beyond were only read ahead."""
        index["skipped"] = [[number, sources[number].name] for number in sorted(skipped) if number <= last]

    first_source, first_chunk, offset = index["next"]
    skipped = {number for number, _ in index["skipped"]}
    chunks = text.read_chunks(
        sources, split_long=splits_cleanly(tokenizer), start=(first_source, first_chunk), skipped=skipped
    )
    bytes_before = [0, *itertools.accumulate(source.size for source in sources)]
    total = None if any(source.format == "hub" for source in sources) else bytes_before[-1]
    results = _encode_in_threads(_batched(chunks), tokenizer, index, settings.workers or _available_cpus())
    start, tokens_before, done = time.perf_counter(), index["tokens"], bytes_before[first_source]
    bar = tqdm(total=total, desc="Tokenizing", unit="B", unit_scale=True, disable=None, initial=done)
    with bar, closing(results), _ShardWriter(out, index, settings) as shards:
        for batch, ids, counts in results:
            ends = np.cumsum(counts)  # of each chunk, in `ids`
            document_ends = ends[[chunk.is_last for _, _, chunk in batch]]
            at, offset = offset, 0  # tokens of the first chunk that the last shard already has
            while at < len(ids) and shards.room > 0:
                take = min(shards.room, len(ids) - at)
                ended = np.searchsorted(document_ends, [at, at + take], side="right")
                shards.write(ids[at : at + take], int(ended[1] - ended[0]))
                at += take
                if shards.tokens == settings.shard_tokens:
                    k = min(int(np.searchsorted(ends, at, side="right")), len(batch) - 1)
                    note_skipped(batch[k][0])
                    shards.close([*batch[k][:2], at - int(ends[k] - counts[k])])
            number, _, last = batch[-1]
            bar.update(bytes_before[number] + last.bytes_read - bar.n)
            written = index["tokens"] + shards.tokens
            speed = (written - tokens_before) / (time.perf_counter() - start)
            bar.set_postfix_str(f"{written:,} tokens, {speed:,.0f} tokens/s", refresh=False)
            if shards.room <= 0:
                note_skipped(batch[int(np.searchsorted(ends, at - 1, side="right"))][0])
                break
        else:
            note_skipped(len(sources))
        if index["tokens"] + shards.tokens == 0:
            note = skipped_note([name for _, name in index["skipped"]]) if skipped else ""
            raise ValueError(f"There is no text in {', '.join(settings.data)}. {note}".strip())
        shards.close(None)


class _ShardWriter:
    """Writes shards, and adds each to the index when it is complete. tokens: of the shard that is being written."""

    def __init__(self, out: Path, index: dict[str, Any], settings: PrepareCommand) -> None:
        self._out, self._index, self._settings = out, index, settings
        self._file: BinaryIO | None = None
        self.tokens = self._documents = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove an incomplete shard, which the next run writes from its beginning."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"shard-{len(self._index['shards']):05d}.bin"

    @property
    def room(self) -> int:
        """Tokens until the shard is full or max_tokens is reached."""
        room = self._settings.shard_tokens - self.tokens
        if self._settings.max_tokens is not None:
            room = min(room, self._settings.max_tokens - self._index["tokens"] - self.tokens)
        return room

    def write(self, ids: np.ndarray, documents: int) -> None:
        """Append tokens (N,), in which so many documents end."""
        with writing(self._out / self._name):
            if self._file is None:
                self._file = open(self._out / f"{self._name}.part", "wb")  # noqa: SIM115  stays open across calls
            self._file.write(ids.tobytes())
        self.tokens += len(ids)
        self._documents += documents

    def close(self, next_start: list[int] | None) -> None:
        """Finish the current shard, if there is one. next_start: of the next shard; None if this was the last."""
        if self._file is not None:
            name = self._name
            with writing(self._out / name):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._out / f"{name}.part", self._out / name)
            self._file = None
            self._index["shards"].append({"file": name, "tokens": self.tokens, "documents": self._documents})
            self._index["tokens"] += self.tokens
            self._index["documents"] += self._documents
            self.tokens = self._documents = 0
        self._index["next"] = next_start
        _write_index(self._out, self._index)


# --- tokenizing in threads ----------------------------------------------------------------------------------------
_Batch = list[tuple[int, int, text.Chunk]]


def _batched(chunks: Iterable[tuple[int, int, text.Chunk]]) -> Iterator[_Batch]:
    """Chunks in batches that are tokenized together."""
    batch: _Batch = []
    size = 0
    for entry in chunks:
        batch.append(entry)
        size += len(entry[2].text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_CHUNKS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: _Batch, tokenizer: Tokenizer, index: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """The stream's tokens for these chunks (N,), and how many each chunk has."""
    import numpy as np

    rows = tokenizer.encode_batch([chunk.text for _, _, chunk in batch], add_special_tokens=False, pad=None).ids
    prefix, eos_id = index["prefix_ids"], index["eos_id"]
    ids: list[int] = []
    counts = []
    for row, (_, _, chunk) in zip(rows, batch, strict=True):
        before = len(ids)
        if chunk.is_first and row[: len(prefix)] != prefix:
            ids += prefix
        ids += row
        if chunk.is_last and row[-1:] != [eos_id]:
            ids.append(eos_id)
        counts.append(len(ids) - before)
    return np.array(ids, dtype=np.dtype(index["dtype"]).newbyteorder("<")), counts


def _encode_in_threads(
    batches: Iterator[_Batch], tokenizer: Tokenizer, index: dict[str, Any], workers: int
) -> Generator[tuple[_Batch, np.ndarray, list[int]], None, None]:
    """The batches in order, with their tokens and counts. At most 4 batches per thread are in flight."""
    in_flight: deque[tuple[_Batch, Future[tuple[np.ndarray, list[int]]]]] = deque()
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"  # nested threads are no faster, and would exceed --workers
    pool = ThreadPoolExecutor(workers)
    try:
        for batch in batches:
            in_flight.append((batch, pool.submit(_encode, batch, tokenizer, index)))
            if len(in_flight) >= 4 * workers:
                first, future = in_flight.popleft()
                yield first, *future.result()
        for batch, future in in_flight:
            yield batch, *future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ[_PARALLELISM]
        if before is not None:
            os.environ[_PARALLELISM] = before


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
