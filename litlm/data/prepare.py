"""`litlm prepare`: text to files of tokens that pretraining reads as they are. No torch.

A prepared folder holds `shard-00000.bin`, ... (bare little-endian token ids, uint16 where the vocabulary fits, else
uint32), `index.json`, and the tokenizer. The shards are one stream, cut without regard to documents. A document is what
the tokenizer puts before a text (a BOS, or nothing), its tokens, and the end token, by which documents are told apart
again; one that a text spells out ends a document too, as files of many documents mean it. A text that begins or ends
with these already gets no second one. Unusual:
- The stream is a function of data and tokenizer alone. `next` in index.json is the part (see text.py) and the token
  that the next shard starts with: a run that was killed goes on there, and the files come out the same.
- Threads tokenize, each a batch of texts of its own: the libraries let go of Python's lock while they work.
"""

from __future__ import annotations

import hashlib
import json
import os
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
_PARALLELISM = "TOKENIZERS_PARALLELISM"  # whether the tokenizers library starts threads of its own
_TASK_CHARACTERS, _TASK_PARTS = 2**17, 4096  # texts that are tokenized together
_SAMPLE = (
    "Fingerprint: don't SHOUT, x=12345.678e-9;\n\tif (a != b) { return f(a)[0]; }\r\n\n  Zażółć gęślą jaźń, "
    "naïve Ångström — Привет, мир! 你好，世界 日本語 नमस्ते مرحبا 🙂👩‍👩‍👧 1234567 internationalization https://example.org/?q=1"
)


@dataclass(frozen=True)
class Prepared:
    """What is in `folder` now. skipped: files that are no UTF-8 text. written: tokens that this run added."""

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
    done = prepare(settings)
    files = "1 shard" if done.shards == 1 else f"{done.shards:,} shards"
    print(f"{done.folder}: {done.tokens:,} tokens of {done.documents:,} documents in {files} ({done.dtype})")
    if done.written == 0:
        print("Everything was there already.")
    else:
        print(f"Wrote {done.written:,} tokens in {done.seconds:.1f} s, {done.written / done.seconds:,.0f} a second.")
    if done.skipped:
        print(skipped_note(done.skipped))
    print(f"Go on with: litlm pretrain MODEL --data.path {done.folder}")


def skipped_note(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names):,} files were left out, being no UTF-8 text: {', '.join(names[:5])}{more}"


def prepare(settings: PrepareCommand, tokenizer: Tokenizer | None = None) -> Prepared:
    """Tokenize into `out_dir`, going on where an earlier run with the same settings was stopped.

    tokenizer: used instead of loading `settings.tokenizer`.
    """
    out = Path(settings.out_dir).expanduser()
    units = text.units(settings.data, text_key=settings.text_key, split=settings.split, exclude=out)
    tokenizer = tokenizer or load_tokenizer(settings.tokenizer)
    fresh = _fresh_index(settings, units, tokenizer)
    _check_folder(out)
    with locked(out):
        return _run(settings, out, units, tokenizer, fresh)


def _run(
    settings: PrepareCommand, out: Path, units: list[text.Unit], tokenizer: Tokenizer, fresh: dict[str, Any]
) -> Prepared:
    index = fresh
    if (out / INDEX).is_file() and not settings.overwrite:
        found = read_index(out)
        if found["shards"]:
            _compare(out, found, fresh)
            check_shards(out, found)
            index = found
    before, began = index["tokens"], time.perf_counter()
    if index["next"] is not None:
        if "revisions" not in index["sources"]:
            pinned = [text.pin(unit) for unit in units]
            index["sources"]["revisions"] = {unit.place: unit.revision for unit in pinned if unit.kind == "hub"}
        units = [replace(unit, revision=index["sources"]["revisions"].get(unit.place)) for unit in units]
        clear_parts(out)
        _write_index(out, index)
        with writing(out):
            for file in out.glob("shard-*"):  # of an older run, or cut off
                if file.name not in {shard["file"] for shard in index["shards"]}:
                    file.unlink()
        tokenizer.save(out)
        _write_shards(settings, out, units, tokenizer, index)
    seconds = time.perf_counter() - began
    skipped = tuple(name for _, name in index["skipped"])
    return Prepared(
        out, index["tokens"], index["documents"], len(index["shards"]), index["dtype"], skipped,
        index["tokens"] - before, seconds,
    )  # fmt: skip


# --- the tokenizer ------------------------------------------------------------------------------------------------
def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model (directory, .gguf, zoo name, hub id), or tokenizer.json with the files beside it."""
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


def fingerprint(tokenizer: Tokenizer) -> str:
    """Equal for tokenizers that do the same, whatever files they are kept in."""
    names = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
    sample = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    return hashlib.sha256(json.dumps([names, sample]).encode()).hexdigest()[:16]


def cuts_exactly(tokenizer: Tokenizer) -> bool:
    """Whether a text cut where text.py does has the tokens of the whole.

    Not so with SentencePiece, which puts a space before what it takes for a new text: then long documents stay whole.
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
    path = folder / INDEX
    check_readable(path)
    try:
        index = json.loads(path.read_bytes())
        form = index["format"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} can't be read as the index of prepared text ({e!r}); prepare it again") from None
    if form != _FORMAT:
        raise ValueError(f"{path} has the format {form!r}, this litlm reads {_FORMAT!r}; prepare it again")
    return index


def check_shards(folder: Path, index: dict[str, Any]) -> None:
    """Every shard is there and as long as the index says."""
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


def sources_state(units: Sequence[text.Unit]) -> dict[str, Any]:
    """What tells whether the data is still the same."""
    digest = hashlib.sha256(json.dumps([unit.identity for unit in units]).encode()).hexdigest()[:16]
    return {"units": len(units), "bytes": sum(unit.size for unit in units), "fingerprint": digest}


def _fresh_index(settings: PrepareCommand, units: Sequence[text.Unit], tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.eos_id is None:
        raise ValueError(
            f"tokenizer={settings.tokenizer!r} has no end token, which has to stand after each document; name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    return {
        "format": _FORMAT,
        "litlm": __version__,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        # An end token in front (OPT's BOS) is there already, from the document before.
        "prefix_ids": [token for token in tokenizer.prefix_ids if token != tokenizer.eos_id],
        "tokenizer": fingerprint(tokenizer),
        "data": list(settings.data),
        "split": settings.split,
        "text_key": settings.text_key,
        "shard_tokens": settings.shard_tokens,
        "max_tokens": settings.max_tokens,
        "sources": sources_state(units),
        "tokens": 0,
        "documents": 0,
        "shards": [],
        "skipped": [],
        "next": [0, 0, 0],
    }


def _compare(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    names = ("tokenizer", "vocab_size", "eos_id", "prefix_ids", "split", "text_key", "shard_tokens", "max_tokens")
    problems = [f"{name} was {old[name]!r}, is now {new[name]!r}" for name in names if old[name] != new[name]]
    both = (old, new)
    if old["sources"]["fingerprint"] != new["sources"]["fingerprint"]:
        told = [
            f"{', '.join(i['data'])} ({i['sources']['units']:,} files, {i['sources']['bytes']:,} bytes)" for i in both
        ]
        same = " (files were changed, or written again)" if told[0] == told[1] else ""
        problems.append(f"data was {told[0]}, is now {told[1]}{same}")
    if problems:
        raise ValueError(
            f"out_dir={str(out)!r} holds text that was prepared otherwise; choose another, or replace it with "
            "--overwrite:\n" + "\n".join(f"- {p}" for p in problems)
        )


def _check_folder(out: Path) -> None:
    if not out.exists() or (out / INDEX).is_file() and is_prepared(out):
        return
    if not out.is_dir():
        raise ValueError(f"out_dir={str(out)!r} is a file; name a folder")
    others = sorted(name for name in os.listdir(out) if not name.startswith("."))  # what killed runs left is hidden
    if others:
        raise ValueError(f"out_dir={str(out)!r} holds other files ({', '.join(others[:3])}, ...); name an empty folder")


def _write_index(out: Path, index: dict[str, Any]) -> None:
    write_text(out / INDEX, json.dumps(index, indent=1) + "\n")


# --- tokens to shards ---------------------------------------------------------------------------------------------
def _write_shards(
    settings: PrepareCommand, out: Path, units: Sequence[text.Unit], tokenizer: Tokenizer, index: dict[str, Any]
) -> None:
    import numpy as np
    from tqdm import tqdm

    def note_skipped(last: int) -> None:
        """Those up to unit `last`; what was read ahead does not count yet."""
        index["skipped"] = [[number, units[number].name] for number in sorted(skipped) if number <= last]

    unit, part, token = index["next"]
    skipped = {number for number, _ in index["skipped"]}
    parts = text.stream(units, cut=cuts_exactly(tokenizer), start=(unit, part), skipped=skipped)
    behind = [0]
    for u in units:
        behind.append(behind[-1] + u.size)
    total = None if any(u.kind == "hub" for u in units) else behind[-1]
    results = _encoded(_tasks(parts), tokenizer, index, settings.workers or _cores())
    began, before = time.perf_counter(), index["tokens"]
    bar = tqdm(total=total, desc="Tokenizing", unit="B", unit_scale=True, disable=None, initial=behind[unit])
    with bar, closing(results), _Shards(out, index) as shards:
        for task, ids, counts in results:
            ends = np.cumsum(counts)  # of each part, in `ids`
            documents = ends[[p.ends for _, _, p in task]]
            at, token = token, 0  # what the last shard already has of the first part
            while at < len(ids) and shards.room(settings) > 0:
                take = min(shards.room(settings), len(ids) - at)
                finished = np.searchsorted(documents, [at, at + take], side="right")
                shards.write(ids[at : at + take], int(finished[1] - finished[0]))
                at += take
                if shards.tokens == settings.shard_tokens:
                    place = min(int(np.searchsorted(ends, at, side="right")), len(task) - 1)
                    note_skipped(task[place][0])
                    shards.close([*task[place][:2], at - int(ends[place] - counts[place])])
            number, _, last = task[-1]
            bar.update(behind[number] + last.read - bar.n)
            written = index["tokens"] + shards.tokens
            speed = (written - before) / (time.perf_counter() - began)
            bar.set_postfix_str(f"{written:,} tokens, {speed:,.0f} a second", refresh=False)
            if shards.room(settings) <= 0:
                note_skipped(task[int(np.searchsorted(ends, at - 1, side="right"))][0])
                break
        else:
            note_skipped(len(units))
        if index["tokens"] + shards.tokens == 0:
            left_out = skipped_note([name for _, name in index["skipped"]]) if skipped else ""
            raise ValueError(f"There is no text in {', '.join(settings.data)}. {left_out}".strip())
        shards.close(None)


class _Shards:
    """Writes shards, and notes each in the index when it is complete."""

    def __init__(self, out: Path, index: dict[str, Any]) -> None:
        self._out, self._index = out, index
        self._file: BinaryIO | None = None
        self.tokens = self._documents = 0  # of the shard that is being written

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        """Half a shard is of no use: where the work broke off, the next run begins it anew."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written is not lost now
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return f"shard-{len(self._index['shards']):05d}.bin"

    def room(self, settings: PrepareCommand) -> int:
        """Tokens that may be written before the shard, or the text, is full."""
        left = settings.shard_tokens - self.tokens
        if settings.max_tokens is not None:
            left = min(left, settings.max_tokens - self._index["tokens"] - self.tokens)
        return left

    def write(self, ids: np.ndarray, documents: int) -> None:
        with writing(self._out / self._name):
            if self._file is None:
                self._file = open(self._out / f"{self._name}.part", "wb")  # noqa: SIM115  open across calls
            self._file.write(ids.tobytes())
        self.tokens += len(ids)
        self._documents += documents

    def close(self, following: list[int] | None) -> None:
        """Finish the shard, if one is begun. following: where the next one starts; None if this was all."""
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
        self._index["next"] = following
        _write_index(self._out, self._index)


# --- text to tokens, in several threads ---------------------------------------------------------------------------
_Task = list[tuple[int, int, text.Part]]


def _tasks(parts: Iterable[tuple[int, int, text.Part]]) -> Iterator[_Task]:
    """Parts that are tokenized together."""
    task: _Task = []
    size = 0
    for entry in parts:
        task.append(entry)
        size += len(entry[2].text)
        if size >= _TASK_CHARACTERS or len(task) == _TASK_PARTS:
            yield task
            task, size = [], 0
    if task:
        yield task


def _encode(task: _Task, tokenizer: Tokenizer, index: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """All tokens that the stream has of these parts, and how many each part has."""
    import numpy as np

    rows = tokenizer.encode_batch([part.text for _, _, part in task], add_special_tokens=False, pad=None).ids
    ids: list[int] = []
    counts = []
    for row, (_, _, part) in zip(rows, task, strict=True):
        before, prefix = len(ids), index["prefix_ids"]
        if part.starts and row[: len(prefix)] != prefix:
            ids += prefix
        ids += row
        if part.ends and row[-1:] != [index["eos_id"]]:
            ids.append(index["eos_id"])
        counts.append(len(ids) - before)
    return np.array(ids, dtype=np.dtype(index["dtype"]).newbyteorder("<")), counts


def _encoded(
    tasks: Iterator[_Task], tokenizer: Tokenizer, index: dict[str, Any], workers: int
) -> Generator[tuple[_Task, np.ndarray, list[int]], None, None]:
    """The tasks in their order, with their tokens. Only a few more than there are threads are under way."""
    under_way: deque[tuple[_Task, Future[tuple[np.ndarray, list[int]]]]] = deque()
    usual = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"  # threads in threads are no faster, and --workers would not hold
    pool = ThreadPoolExecutor(workers)
    try:
        for task in tasks:
            under_way.append((task, pool.submit(_encode, task, tokenizer, index)))
            if len(under_way) >= 4 * workers:
                first, future = under_way.popleft()
                yield first, *future.result()
        for task, future in under_way:
            yield task, *future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ[_PARALLELISM]
        if usual is not None:
            os.environ[_PARALLELISM] = usual


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
