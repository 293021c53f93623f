"""Prepared text as a dataset for pretraining: rows of equal length from memory-mapped token files.

Row i holds the tokens [i*T, i*T + T] of the stream of all shards: T inputs, and their targets one token later. Rows may
span shards. Documents end at the end token; with document_mask, they don't attend to each other within a row, and an
end token has no target, since the next token belongs to another document.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from litlm.data import text
from litlm.data.base import IGNORE, Batch, Dataset
from litlm.data.prepare import (
    check_shards,
    describe_sources,
    is_prepared,
    prepare,
    read_index,
    skipped_note,
    tokenizer_fingerprint,
)
from litlm.data.sources import expand_patterns
from litlm.settings.data import PrepareCommand, TextData
from litlm.tokenizer import Tokenizer

_SCAN_SIZE = 2**22  # tokens read at once


class TextDataset(Dataset):
    """Rows of `max_len` tokens from folders that `litlm prepare` wrote. tokens: in all rows.

    Raises ValueError for folders that are incomplete, damaged, too short, or of different tokenizers.
    """

    def __init__(
        self, folders: str | Path | Sequence[str | Path], max_len: int, *, document_mask: bool = False
    ) -> None:
        folders = [folders] if isinstance(folders, str | Path) else folders
        self.folders = tuple(Path(folder).expanduser() for folder in folders)
        self.max_len, self.document_mask = max_len, document_mask
        if max_len < 1:
            raise ValueError(f"max_len={max_len} must be at least 1 token")
        indexes = [read_index(folder) for folder in self.folders]
        for name in ("tokenizer", "eos_id"):
            if len({index[name] for index in indexes}) > 1:
                found = ", ".join(f"{f}: {i[name]}" for f, i in zip(self.folders, indexes, strict=True))
                raise ValueError(f"Text prepared with several tokenizers can't be mixed ({name} in {found})")
        self._eos, self._vocab_size = indexes[0]["eos_id"], indexes[0]["vocab_size"]
        self._shards: list[np.ndarray] = []
        for folder, index in zip(self.folders, indexes, strict=True):
            if index["next"] is not None:
                raise ValueError(
                    f"{folder} is incomplete ({index['tokens']:,} tokens so far); run the same `litlm prepare` again "
                    "to resume it"
                )
            check_shards(folder, index)
            dtype = np.dtype(index["dtype"]).newbyteorder("<")
            self._shards += [np.memmap(folder / shard["file"], dtype, mode="r") for shard in index["shards"]]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self.tokens = int(self._ends[-1])
        self._rows: np.ndarray | None = None  # a selection of the rows
        if self.tokens <= max_len:
            raise ValueError(
                f"{', '.join(map(str, self.folders))}: {self.tokens:,} tokens are too few for one row of max_len="
                f"{max_len:,} and a last target; {max_len + 1:,} are needed. Add text, or lower max_len"
            )
        names = [name for index in indexes for _, name in index["skipped"]]
        self.notes = [skipped_note(names)] if names else []

    def __len__(self) -> int:
        return (self.tokens - 1) // self.max_len if self._rows is None else len(self._rows)

    def out_of_vocab_ids(self, vocab_size: int) -> Sequence[int]:
        if self._vocab_size <= vocab_size:
            return ()
        found: set[int] = set()
        for shard in self._shards:
            for start in range(0, len(shard), _SCAN_SIZE):
                part = shard[start : start + _SCAN_SIZE]
                found |= set(np.unique(part[part >= vocab_size]).tolist())
        return sorted(found)

    def fingerprint(self) -> int:
        facts = [self.tokens, self.max_len, self.document_mask, len(self), *(str(read_index(f)) for f in self.folders)]
        return zlib.crc32(json.dumps(facts).encode())

    def row(self, index: int) -> np.ndarray:
        """The tokens of a row, (max_len + 1,). Raises IndexError, and ValueError for a damaged shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = index if self._rows is None else int(self._rows[index])
        at, end = number * self.max_len, number * self.max_len + self.max_len + 1
        parts = []
        shard = int(np.searchsorted(self._ends, at, side="right"))
        while at < end:
            shard_start = int(self._ends[shard]) - len(self._shards[shard])
            parts.append(self._shards[shard][at - shard_start : end - shard_start])
            at, shard = at + len(parts[-1]), shard + 1
        row = np.concatenate(parts).astype(np.int64)
        if row.max() >= self._vocab_size:
            raise ValueError(
                f"{', '.join(map(str, self.folders))}: row {number} holds the token {row.max()}, and the vocabulary "
                f"has {self._vocab_size:,}: a shard is damaged; prepare the text again with --overwrite"
            )
        return row

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        return [self._batch(indexes[k : k + micro_batch_size]) for k in range(0, len(indexes), micro_batch_size)]

    def _batch(self, indexes: Sequence[int]) -> Batch:
        rows = torch.from_numpy(np.stack([self.row(index) for index in indexes]))
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        if not self.document_mask:
            return Batch(tokens, targets, ((self.max_len,),) * len(indexes))
        is_end = tokens == self._eos
        lengths = tuple(_document_lengths(row) for row in is_end.numpy())
        return Batch(tokens, targets.masked_fill(is_end, IGNORE), lengths)

    def select(self, indexes: Sequence[int]) -> TextDataset:
        selection, rows = copy.copy(self), np.array(indexes)
        selection._rows = rows if self._rows is None else self._rows[rows]
        return selection


def _document_lengths(is_end: np.ndarray) -> tuple[int, ...]:
    """The lengths of the documents in a row (T,), True where one ends."""
    ends = np.flatnonzero(is_end) + 1
    if len(ends) == 0 or ends[-1] < len(is_end):
        ends = np.append(ends, len(is_end))
    return tuple(np.diff(ends, prepend=0).tolist())


def load_text(
    data: TextData, tokenizer: Tokenizer, max_len: int, cache_dir: str | Path, *, seed: int = 1337
) -> tuple[TextDataset, TextDataset | None]:
    """Training and validation data. Text that is not prepared yet is prepared in `cache_dir`.

    Raises ValueError for text that was prepared with another tokenizer.
    """
    train = _load(data, data.path, tokenizer, max_len, cache_dir)
    if data.val_path:
        return train, _load(data, data.val_path, tokenizer, max_len, cache_dir)
    return train.split(data.val_fraction, seed)


def _load(
    data: TextData, paths: Sequence[str], tokenizer: Tokenizer, max_len: int, cache_dir: str | Path
) -> TextDataset:
    paths = expand_patterns(paths)
    for path in paths:
        if text.holds_tokens(path):
            read_index(Path(path).expanduser())  # says if it is broken
    prepared = [path for path in paths if is_prepared(path)]
    if prepared and len(prepared) < len(paths):
        others = [path for path in paths if path not in prepared]
        raise ValueError(
            f"data.path: {', '.join(prepared)} is prepared, {', '.join(others)} is not; prepare all or none"
        )
    fingerprint = tokenizer_fingerprint(tokenizer)
    if prepared:
        folders = [Path(path).expanduser() for path in prepared]
        for folder in folders:
            index = read_index(folder)
            if index["tokenizer"] != fingerprint:
                raise ValueError(
                    f"{folder} was prepared with another tokenizer ({index['vocab_size']:,} tokens; the model's has "
                    f"{tokenizer.vocab_size:,}): prepare the text with the model's, or use that of {folder}"
                )
    else:
        sources = text.find_sources(paths, text_key=data.text_key, split=data.split)
        key = json.dumps([describe_sources(sources), fingerprint, tokenizer.eos_id, data.split, data.text_key])
        folder = Path(cache_dir).expanduser() / f"text-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        settings = PrepareCommand(
            data=tuple(paths), tokenizer="of the model", out_dir=str(folder), split=data.split, text_key=data.text_key
        )
        folders = [prepare(settings, tokenizer).folder]
    return TextDataset(folders, max_len, document_mask=data.document_mask)


def prepared_tokenizer(data: TextData) -> Tokenizer | None:
    """The tokenizer of the first prepared folder of `data.path`; None if there is none."""
    folder = next((path for path in expand_patterns(data.path) if is_prepared(path)), None)
    return None if folder is None else Tokenizer.from_dir(Path(folder).expanduser())
