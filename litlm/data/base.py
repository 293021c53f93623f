"""What training is fed with: examples, and micro batches of them.

A data set hands out examples by their index, so where a run stands in its data is one number: the order of an epoch is
a function of the seed, and a step takes the next `batch_size` examples of it, however they are laid out in memory.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from litlm.ops.cross_entropy import IGNORE

if TYPE_CHECKING:
    from litlm.context import Context


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is to be learned."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True)
class Batch:
    """One micro batch.

    tokens, targets: (B, T); targets[t] is the token after t where it is to be learned, else IGNORE. lengths: for each
    row, how long each of its documents is; what is left of the row is padding. examples: which of the step's examples
    each document is, row by row, for losses that compare whole answers. wanted: on a GPU, where in the flat targets
    there is one (None: everywhere), found out before they went there.
    """

    tokens: Tensor
    targets: Tensor
    lengths: tuple[tuple[int, ...], ...]
    examples: tuple[tuple[int, ...], ...] = ()
    wanted: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(sum, self.lengths))

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORE).sum())

    def context(self) -> Context:
        """What its tokens may attend to."""
        from litlm.context import Causal, Packed

        if all(len(row) == 1 for row in self.lengths):
            whole = all(row[0] == self.tokens.size(1) for row in self.lengths)
            return Causal(None if whole else [row[0] for row in self.lengths])
        return Packed(self.lengths)

    def mask(self) -> Tensor | None:
        """(B, T), False where padding is; None without any."""
        from litlm.context.base import send

        if self.n_tokens == self.tokens.numel():
            return None
        used = send(torch.tensor([sum(row) for row in self.lengths]), self.tokens.device)[:, None]
        return torch.arange(self.tokens.size(1), device=used.device) < used

    def to(self, device: torch.device) -> Batch:
        if device.type == self.targets.device.type:
            return self
        from litlm.context.base import send

        has = self.targets.flatten() != IGNORE
        wanted = None if has.all() else send(has.nonzero()[:, 0], device)
        return replace(self, tokens=send(self.tokens, device), targets=send(self.targets, device), wanted=wanted)


class Dataset(ABC):
    """Examples to train on.

    notes: what people should know about how they were made (cut, left out). whole_rows: make all packed rows equally
    long, and the others of few lengths, for compilers and kernels that prepare for each shape.
    """

    notes: Sequence[str] = ()
    whole_rows: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Examples in an epoch."""

    def outside(self, rows: int) -> Sequence[int]:
        """Token ids that occur and for which an embedding of so many rows has none."""
        return ()

    def digest(self) -> int:
        """A number that other data hardly have, for a run that goes on to notice them."""
        return len(self)

    @abstractmethod
    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        """The examples `indexes` as micro batches that each take no more memory than `micro_batch_size` of full length.

        None of them is empty, and each example is in exactly one.
        """


class Order:
    """The order in which a run sees n examples: epoch after epoch, each shuffled in its own way."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epochs: dict[int, list[int]] = {}

    def epoch(self, number: int) -> list[int]:
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(self.n, generator=generator).tolist()
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1} | {number: order}
        return self._epochs[number]

    def batch(self, number: int, size: int) -> list[int]:
        """The examples of batch `number`. A batch may reach into the next epoch."""
        places = range(number * size, (number + 1) * size)
        return [self.epoch(place // self.n)[place % self.n] for place in places]


def held_out(n: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The indexes to train on and those to validate on: at least one, and none if the share is 0 or n is 1."""
    if fraction == 0 or n < 2:
        return list(range(n)), []
    held = min(max(1, round(n * fraction)), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


def collate(
    examples: Sequence[Example], numbers: Sequence[int] = (), *, max_len: int | None = None, whole_rows: bool = False
) -> Batch:
    """One example a row, padded on the right to the longest, with whole_rows to a multiple of 64 (at most max_len)."""
    width = max(len(e.ids) - 1 for e in examples)
    if whole_rows:
        width = max(width, min(-(-width // 64) * 64, max_len or sys.maxsize))
    return _fill([[e] for e in examples], width, [[n] for n in numbers])


def collate_packed(
    rows: Sequence[Sequence[Example]], numbers: Sequence[Sequence[int]] = (), width: int | None = None
) -> Batch:
    """Several examples a row, one behind the other. width: of the rows; by default that of the fullest."""
    fullest = max(sum(len(e.ids) - 1 for e in row) for row in rows)
    return _fill(rows, width or fullest, numbers)


def _fill(rows: Sequence[Sequence[Example]], width: int, numbers: Sequence[Sequence[int]]) -> Batch:
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), IGNORE)
    for row, examples in enumerate(rows):
        at = 0
        for e in examples:
            n = len(e.ids) - 1  # the last token is a target only
            ids = torch.tensor(e.ids)
            tokens[row, at : at + n] = ids[:-1]
            targets[row, at : at + n] = torch.where(torch.tensor(e.learn[1:]), ids[1:], IGNORE)
            at += n
    lengths = tuple(tuple(len(e.ids) - 1 for e in examples) for examples in rows)
    return Batch(tokens, targets, lengths, tuple(map(tuple, numbers)))
