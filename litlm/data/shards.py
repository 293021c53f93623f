"""Prepared text as a data set to pretrain on: rows of equal length from memory-mapped files of tokens.

Row i holds the tokens [i*T, i*T + T] of the stream that all shards are: T inputs, and their targets one further, so no
token but the first few is left out, and rows know nothing of shards. Documents end at the end token. Unusual:
- With document_mask, the documents in a row do not see each other, and an end token has no target: what comes after it
  belongs to another document.
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
from litlm.data.base import IGNORE, Batch, Dataset, held_out
from litlm.data.prepare import (
    check_shards,
    fingerprint,
    is_prepared,
    prepare,
    read_index,
    skipped_note,
    sources_state,
)
from litlm.data.sources import expand
from litlm.settings.data import PrepareCommand, TextData
from litlm.tokenizer import Tokenizer

_SCAN = 2**22  # tokens that are looked at together


class TextDataset(Dataset):
    """Rows of `max_len` tokens from folders that `litlm prepare` wrote. `tokens`: how many there are in all."""

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
                told = ", ".join(f"{f}: {i[name]}" for f, i in zip(self.folders, indexes, strict=True))
                raise ValueError(f"Text prepared with several tokenizers can't be mixed ({name} in {told})")
        self._eos, self._vocab_size = indexes[0]["eos_id"], indexes[0]["vocab_size"]
        self._shards: list[np.ndarray] = []
        for folder, index in zip(self.folders, indexes, strict=True):
            if index["next"] is not None:
                raise ValueError(
                    f"{folder} was not prepared to its end ({index['tokens']:,} tokens so far); run the same `litlm "
                    "prepare` again to go on"
                )
            check_shards(folder, index)
            dtype = np.dtype(index["dtype"]).newbyteorder("<")
            self._shards += [np.memmap(folder / shard["file"], dtype, mode="r") for shard in index["shards"]]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self.tokens = int(self._ends[-1])
        self._rows: np.ndarray | None = None  # those of a part of the whole
        if self.tokens <= max_len:
            raise ValueError(
                f"{', '.join(map(str, self.folders))}: {self.tokens:,} tokens are too few for one row of max_len="
                f"{max_len:,} and a last target; {max_len + 1:,} are needed. Add text, or lower max_len"
            )
        names = [name for index in indexes for _, name in index["skipped"]]
        self.notes = [skipped_note(names)] if names else []

    def __len__(self) -> int:
        return (self.tokens - 1) // self.max_len if self._rows is None else len(self._rows)

    def outside(self, rows: int) -> Sequence[int]:
        if self._vocab_size <= rows:
            return ()
        found: set[int] = set()
        for shard in self._shards:
            for start in range(0, len(shard), _SCAN):
                part = shard[start : start + _SCAN]
                found |= set(np.unique(part[part >= rows]).tolist())
        return sorted(found)

    def digest(self) -> int:
        facts = [self.tokens, self.max_len, self.document_mask, len(self), *(str(read_index(f)) for f in self.folders)]
        return zlib.crc32(json.dumps(facts).encode())

    def row(self, index: int) -> np.ndarray:
        """The max_len + 1 tokens of a row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = index if self._rows is None else int(self._rows[index])
        at, last = number * self.max_len, number * self.max_len + self.max_len + 1
        found = np.empty(self.max_len + 1, dtype=np.int64)
        filled = 0
        shard = int(np.searchsorted(self._ends, at, side="right"))
        while at < last:
            begin = int(self._ends[shard]) - len(self._shards[shard])
            piece = self._shards[shard][at - begin : last - begin]
            found[filled : filled + len(piece)] = piece
            filled, at, shard = filled + len(piece), at + len(piece), shard + 1
        if found.max() >= self._vocab_size:
            raise ValueError(
                f"{', '.join(map(str, self.folders))}: row {number} holds the token {found.max()}, and the vocabulary "
                f"has {self._vocab_size:,}: a shard is damaged; prepare the text again with --overwrite"
            )
        return found

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        """These rows, `micro_batch_size` of them at once."""
        return [
            self._batch(indexes[begin : begin + micro_batch_size]) for begin in range(0, len(indexes), micro_batch_size)
        ]

    def _batch(self, indexes: Sequence[int]) -> Batch:
        rows = torch.from_numpy(np.stack([self.row(index) for index in indexes]))
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        if not self.document_mask:
            return Batch(tokens, targets, ((self.max_len,),) * len(indexes))
        last = tokens == self._eos
        return Batch(tokens, targets.masked_fill(last, IGNORE), tuple(_lengths(row) for row in last.numpy()))

    def split(self, fraction: float, seed: int) -> tuple[TextDataset, TextDataset | None]:
        """Set whole rows aside for validation, at least one; None if the share is 0 or there is one row."""
        kept, held = held_out(len(self), fraction, seed)
        return (self._part(kept), self._part(held)) if held else (self, None)

    def _part(self, rows: list[int]) -> TextDataset:
        part, picked = copy.copy(self), np.array(rows)
        part._rows = picked if self._rows is None else self._rows[picked]
        return part


def _lengths(last: np.ndarray) -> tuple[int, ...]:
    """Lengths of the documents in a row. last: where one ends."""
    ends = np.flatnonzero(last) + 1
    if len(ends) == 0 or ends[-1] < len(last):
        ends = np.append(ends, len(last))
    return tuple(np.diff(ends, prepend=0).tolist())


def open_text(
    data: TextData, tokenizer: Tokenizer, max_len: int, cache_dir: str | Path, *, seed: int = 1337
) -> tuple[TextDataset, TextDataset | None]:
    """What to train on and what to validate on. Text that is not prepared yet is, into `cache_dir`, once."""
    train = _opened(data, data.path, tokenizer, max_len, cache_dir)
    if data.val_path:
        return train, _opened(data, data.val_path, tokenizer, max_len, cache_dir)
    return train.split(data.val_fraction, seed)


def _opened(
    data: TextData, paths: Sequence[str], tokenizer: Tokenizer, max_len: int, cache_dir: str | Path
) -> TextDataset:
    paths = expand(paths)
    ready = [path for path in paths if is_prepared(path)]
    if ready and len(ready) < len(paths):
        others = [path for path in paths if path not in ready]
        raise ValueError(f"data.path: {', '.join(ready)} is prepared, {', '.join(others)} is not; prepare all or none")
    mark = fingerprint(tokenizer)
    if ready:
        folders = [Path(path).expanduser() for path in ready]
        for folder in folders:
            index = read_index(folder)
            if index["tokenizer"] != mark:
                raise ValueError(
                    f"{folder} was prepared with another tokenizer ({index['vocab_size']:,} tokens; the model's has "
                    f"{tokenizer.vocab_size:,}): prepare the text with the model's, or take that of {folder}"
                )
    else:
        found = text.units(paths, text_key=data.text_key, split=data.split)
        key = json.dumps([sources_state(found), mark, tokenizer.eos_id, data.split, data.text_key])
        folder = Path(cache_dir).expanduser() / f"text-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        settings = PrepareCommand(
            data=tuple(paths), tokenizer="of the model", out_dir=str(folder), split=data.split, text_key=data.text_key
        )
        folders = [prepare(settings, tokenizer).folder]
    return TextDataset(folders, max_len, document_mask=data.document_mask)


def text_tokenizer(data: TextData) -> Tokenizer | None:
    """The tokenizer that the first prepared folder of `data.path` was made with; None for text not yet prepared."""
    folder = next((path for path in expand(data.path) if is_prepared(path)), None)
    return None if folder is None else Tokenizer.from_dir(Path(folder).expanduser())
