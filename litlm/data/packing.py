"""Packing: several examples in one row, so that no work goes into padding.

It happens within one optimizer step: the step's examples, the same as without packing, are laid into as few rows as
best-fit finds. So packing never changes what a step learns, or how many steps an epoch has.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from litlm.data.base import Batch, Example, collate, collate_packed


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indexes into `lengths`, none above `capacity`: longest first, each into the fullest bin that has room."""
    if too_long := [n for n in lengths if n > capacity]:
        raise ValueError(f"{len(too_long)} of {len(lengths)} lengths are above the capacity of {capacity}")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(room, (lengths[i], -1))
        if at == len(room):
            bins.append([i])
            left, place = capacity - lengths[i], len(bins) - 1
        else:
            left, place = room.pop(at)
            bins[place].append(i)
            left -= lengths[i]
        bisect.insort(room, (left, place))
    return bins


def micro_batches(
    examples: Sequence[Example], micro_batch_size: int, max_len: int, *, packing: bool, whole_rows: bool = False
) -> list[Batch]:
    """The examples of a step, in micro batches of at most `micro_batch_size` rows of `max_len` tokens.

    whole_rows: make every packed row max_len wide, and the others of few widths, for what prepares for each shape:
    compilers, and cuDNN's attention.
    """
    if not packing:
        parts = [range(i, min(i + micro_batch_size, len(examples))) for i in range(0, len(examples), micro_batch_size)]
        options: Any = dict(max_len=max_len, whole_rows=whole_rows)
        return [collate([examples[i] for i in part], list(part), **options) for part in parts]
    rows = best_fit([len(e.ids) - 1 for e in examples], max_len)
    n = -(-len(rows) // micro_batch_size)
    size, more = divmod(len(rows), n)  # micro batches of nearly equal size
    out, start = [], 0
    for k in range(n):
        part = rows[start : start + size + (k < more)]
        start += len(part)
        width = max_len if whole_rows else None
        out.append(collate_packed([[examples[i] for i in row] for row in part], part, width))
    return out
