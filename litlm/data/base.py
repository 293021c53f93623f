"""From token ids to micro batches: examples, the dataset that stores them, packing, and the order of epochs.

A dataset is indexed by example, and an epoch's order is a function of the seed, so a run's position in its data is one
number. A step takes the next `batch_size` examples of that order. Packing puts several of them into one row, so that no
compute goes into padding. It works within a step, so it changes neither what a step learns nor the steps per epoch.
"""

from __future__ import annotations

import bisect
import functools
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from litlm.ops.cross_entropy import IGNORE

if TYPE_CHECKING:
    from litlm.context import Context

_MIN_PACKED_ROW = 512  # packed rows are at least this long, where max_len allows: short rows keep a device idle
_WIDTH_MULTIPLE = 64  # padded rows have a multiple of this many tokens where shapes are to be static

AnyDataset = TypeVar("AnyDataset", bound="Dataset")


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is trained on."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True)
class Batch:
    """One micro batch.

    tokens, targets: (B, T); targets[b, t] is the token after tokens[b, t], or IGNORE if it is not trained on. lengths:
    of each row, the lengths of its documents; the rest of the row is padding. examples: of each row, which of the
    step's examples its documents are, for losses that compare whole answers. target_positions: (N,), on a GPU, where
    the flattened targets are not IGNORE (None: nowhere), computed before they went there.
    """

    tokens: Tensor
    targets: Tensor
    lengths: tuple[tuple[int, ...], ...]
    examples: tuple[tuple[int, ...], ...] = ()
    target_positions: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(sum, self.lengths))

    @property
    def n_targets(self) -> int:
        """Tokens that are trained on."""
        return int((self.targets != IGNORE).sum())

    def context(self) -> Context:
        """What its tokens may attend to."""
        from litlm.context import Causal, Packed

        if all(len(row) == 1 for row in self.lengths):
            padded = any(row[0] < self.tokens.size(1) for row in self.lengths)
            return Causal([row[0] for row in self.lengths] if padded else None)
        return Packed(self.lengths)

    def mask(self) -> Tensor | None:
        """(B, T), False at padding; None if there is none."""
        from litlm.context.base import send

        if self.n_tokens == self.tokens.numel():
            return None
        n_tokens = send(torch.tensor([sum(row) for row in self.lengths]), self.tokens.device)[:, None]
        return torch.arange(self.tokens.size(1), device=n_tokens.device) < n_tokens

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        if device.type == self.targets.device.type:
            return self
        from litlm.context.base import send

        has_target = self.targets.flatten() != IGNORE
        positions = None if has_target.all() else send(has_target.nonzero()[:, 0], device)
        tokens, targets = send(self.tokens, device), send(self.targets, device)
        return replace(self, tokens=tokens, targets=targets, target_positions=positions)


class Dataset(ABC):
    """Examples to train on.

    notes: what users should know about how they were read (cut, left out). static_shapes: give all packed rows the same
    length, and other rows one of few, for compilers and kernels that specialize on shapes.
    """

    notes: Sequence[str] = ()
    static_shapes: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Examples per epoch."""

    @abstractmethod
    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        """The examples `indexes` as micro batches, none larger than `micro_batch_size` examples of full length.

        None of them is empty, and each example is in exactly one.
        """

    def out_of_vocab_ids(self, vocab_size: int) -> Sequence[int]:
        """The distinct token ids that are not below `vocab_size`, sorted."""
        return ()

    def fingerprint(self) -> int:
        """A number that differs for other data, so that a resumed run notices a change."""
        return len(self)

    def select(self: AnyDataset, indexes: Sequence[int]) -> AnyDataset:
        """These examples, in this order, with shared storage. Raises NotImplementedError in datasets that have none."""
        raise NotImplementedError(f"{type(self).__name__} can't be split")

    def split(self: AnyDataset, fraction: float, seed: int) -> tuple[AnyDataset, AnyDataset | None]:
        """Training and validation data, see `train_val_split`; None if nothing is left for validation."""
        train, val = train_val_split(len(self), fraction, seed)
        if not val:
            return self, None
        held_out = self.select(val)
        held_out.notes = ()  # they are about both, and the training data has them
        return self.select(train), held_out


class EpochSampler:
    """The order in which a run sees n examples: epoch after epoch, each shuffled differently."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epochs: dict[int, list[int]] = {}

    def epoch(self, number: int) -> list[int]:
        """The order of one epoch."""
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(self.n, generator=generator).tolist()
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1} | {number: order}
        return self._epochs[number]

    def batch(self, number: int, size: int) -> list[int]:
        """The examples of batch `number`, which may reach into the next epoch."""
        return [self.epoch(i // self.n)[i % self.n] for i in range(number * size, (number + 1) * size)]


def train_val_split(n: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indexes for training and for validation: at least one for each, but none for validation if fraction is 0."""
    if fraction == 0 or n < 2:
        return list(range(n)), []
    n_val = min(max(1, round(n * fraction)), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[n_val:]), sorted(order[:n_val])


# --- from examples to rows ----------------------------------------------------------------------------------------
@dataclass(eq=False)
class TokenizedDataset(Dataset):
    """Examples in flat arrays, because lists of Python integers would take many times the memory.

    ids, learn: of all examples, concatenated. starts, ends: of each example therein. max_len: the longest row of a
    micro batch; with packing, rows are filled up to it (`row_length`).
    """

    ids: np.ndarray
    learn: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    max_len: int
    packing: bool = True
    notes: Sequence[str] = ()
    static_shapes: bool = False

    @classmethod
    def from_examples(
        cls,
        examples: Iterable[Example],
        *,
        max_len: int | None = None,
        packing: bool = True,
        static_shapes: bool = False,
    ) -> TokenizedDataset:
        """max_len: the longest row allowed; None: as long as the examples. Raises ValueError for longer examples."""
        ids, learn, stops = array("i"), bytearray(), array("q")
        for example in examples:
            ids.extend(example.ids)
            learn.extend(example.learn)
            stops.append(len(ids))
        ends = np.array(stops, np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        longest = int((ends - starts).max(initial=0))
        if max_len is not None and longest > max_len:
            raise ValueError(f"an example has {longest} tokens, more than max_len={max_len}; cut it first")
        arrays = np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32), np.frombuffer(learn, np.bool_)
        row = row_length(longest, max_len, packing=packing)
        return cls(*arrays, starts, ends, row, packing, static_shapes=static_shapes)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Example:
        tokens = slice(int(self.starts[index]), int(self.ends[index]))
        return Example(self.ids[tokens].tolist(), self.learn[tokens].tolist())

    def out_of_vocab_ids(self, vocab_size: int) -> Sequence[int]:
        return np.unique(self.ids[self.ids >= vocab_size]).tolist()

    def fingerprint(self) -> int:
        parts = (self.ids, self.learn, self.starts, self.ends)
        return functools.reduce(lambda crc, part: zlib.crc32(np.ascontiguousarray(part).tobytes(), crc), parts, 0)

    def select(self, indexes: Sequence[int]) -> TokenizedDataset:
        selected = np.asarray(indexes, np.int64)
        return replace(self, starts=self.starts[selected], ends=self.ends[selected])

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        examples = [self[i] for i in indexes]
        options = {"packing": self.packing, "static_shapes": self.static_shapes}
        return micro_batches(examples, micro_batch_size, self.max_len, **options)


def row_length(longest: int, max_len: int | None, *, packing: bool) -> int:
    """Tokens per row for examples of up to `longest` tokens, at most `max_len`.

    As long as the longest example, so that packing takes no more memory than padding; with packing at least 512. Not
    the model's context: rows of 128k tokens would not fit into memory, and shorter ones learn the same.
    """
    length = max(longest, _MIN_PACKED_ROW) if packing else longest
    return length if max_len is None else min(length, max_len)


def micro_batches(
    examples: Sequence[Example], micro_batch_size: int, max_len: int, *, packing: bool, static_shapes: bool = False
) -> list[Batch]:
    """The examples of a step in micro batches of at most `micro_batch_size` rows of `max_len` tokens.

    With packing, the micro batches are of nearly equal size. static_shapes: see `Dataset`.
    """
    rows = [[i] for i in range(len(examples))]
    if packing:
        rows = best_fit_decreasing([len(e.ids) - 1 for e in examples], max_len)
    n = len(rows)
    chunks: Sequence[Iterable[int]] = [range(n)[k : k + micro_batch_size] for k in range(0, n, micro_batch_size)]
    if packing:
        chunks = np.array_split(range(n), len(chunks))
    return [
        collate(examples, [rows[i] for i in chunk], max_len, packing=packing, static_shapes=static_shapes)
        for chunk in chunks
    ]


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indexes into `lengths`: longest first, each into the fullest bin with room (Johnson 1973).

    Raises ValueError if a length is above `capacity`.
    """
    if too_long := [n for n in lengths if n > capacity]:
        raise ValueError(f"{len(too_long)} of {len(lengths)} lengths are above the capacity of {capacity}")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(room, (lengths[i], -1))
        left, number = room.pop(at) if at < len(room) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(i)
        bisect.insort(room, (left - lengths[i], number))
    return bins


def collate(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]] | None = None,
    max_len: int | None = None,
    *,
    packing: bool = False,
    static_shapes: bool = False,
) -> Batch:
    """One micro batch, padded on the right to its longest row, or with static_shapes beyond that.

    rows: of each row, which examples are in it; None: one example per row. static_shapes: packed rows have max_len
    tokens, others a multiple of 64, at most max_len.
    """
    rows = [[i] for i in range(len(examples))] if rows is None else rows
    documents = [[examples[i] for i in row] for row in rows]
    lengths = tuple(tuple(len(e.ids) - 1 for e in row) for row in documents)  # the last token is only a target
    width = max(map(sum, lengths))
    if static_shapes and max_len is not None:
        padded = max_len if packing else -(-width // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        width = max(width, min(padded, max_len))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), IGNORE)
    for b, row in enumerate(documents):
        start = 0
        for e in row:
            ids, end = torch.tensor(e.ids), start + len(e.ids) - 1
            tokens[b, start:end] = ids[:-1]
            targets[b, start:end] = torch.where(torch.tensor(e.learn[1:]), ids[1:], IGNORE)
            start = end
    return Batch(tokens, targets, lengths, tuple(map(tuple, rows)))
