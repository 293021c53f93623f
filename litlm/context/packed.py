"""Rows that hold several documents, which do not see each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.config import LayerConfig
from litlm.context.base import Context, needs_blocks, send, shared_kv, visible
from litlm.ops.sdpa import (
    attention,
    block_mask,
    fused_attention,
    fused_fits,
    varlen_attention,
    varlen_fits,
)


class Packed(Context):
    """Rows that hold several documents: each token sees itself and what came before it in its own document.

    Positions start again with each document. On a CPU each document is attended to by itself; on CUDA one kernel does
    all of them. lengths: for each row, those of its documents in order; what is left of the row is padding.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = tuple(map(tuple, lengths))
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: dict[Any, Tensor] = {}
        self._blocks: dict[tuple[int | None, int | None], Any] = {}

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        assert batch == len(self.lengths), f"{len(self.lengths)} rows of lengths for {batch} rows"
        assert max(map(sum, self.lengths)) <= length, f"documents of {max(map(sum, self.lengths))} in rows of {length}"
        for made in (self._shared, self._made, self._blocks):
            made.clear()
        # Padding counts as a document of its own, so that everything has a place.
        every = [[*row, length - sum(row)] if sum(row) < length else list(row) for row in self.lengths]
        sizes = torch.tensor([n for row in every for n in row])
        starts = sizes.cumsum(0) - sizes
        spread = lambda t: t.repeat_interleave(sizes).view(batch, length)  # noqa: E731
        positions = torch.arange(batch * length).view(batch, length) - spread(starts)
        self.positions = send(positions, device)
        self.row_lengths = send(spread(sizes), device)
        self.documents = send(spread(torch.arange(len(sizes))), device)  # (B, T), which one it is
        # Where each ends, for the kernel of CUDA: filled up with empty ones, so that compiled code sees few shapes.
        ends = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        self.ends = send(F.pad(ends, (0, -len(ends) % 64), value=batch * length).int(), device)
        self.longest = length
        return self.positions

    def prepare(self, x: Tensor, layers: Iterable[LayerConfig]) -> None:
        for window, chunk in needs_blocks(x, layers, document=True):
            self._block(window, chunk)

    def _block(self, window: int | None, chunk: int | None) -> Any:
        if (window, chunk) not in self._blocks:
            documents = self.documents
            self._blocks[window, chunk] = block_mask(documents.size(1), window, chunk, documents.device, documents)
        return self._blocks[window, chunk]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        window: int | None = None,
        chunk: int | None = None,
        stored: Tensor | None = None,
        share: bool = False,
        **softmax: Any,
    ) -> Tensor:
        k, v = shared_kv(self._shared, layer, k, v, share)
        where: Any = dict(window=window, chunk=chunk)
        if varlen_fits(q, v, softmax, chunk):
            return varlen_attention(q, k, v, self.ends, self.longest, window=window, scale=softmax.get("scale"))
        if fused_fits(q, v, softmax, document=True):
            return fused_attention(q, k, v, self._block(window, chunk), **softmax)
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._each(q, k, v, **where, **softmax)
        if (window, chunk) not in self._made:
            same = self.documents[:, None, :, None] == self.documents[:, None, None]  # (B, 1, T, T)
            at = torch.arange(q.size(2), device=q.device)[None]
            # Distances are the same counted from the row's start; chunks are counted from the document's.
            mask = same & visible(at, at[0], window)
            if chunk is not None:
                mask &= (self.positions[:, :, None] // chunk == self.positions[:, None] // chunk)[:, None]
            self._made[window, chunk] = mask
        return attention(q, k, v, mask=self._made[window, chunk], **softmax)

    def _each(
        self, q: Tensor, k: Tensor, v: Tensor, *, window: int | None, chunk: int | None, **softmax: Any
    ) -> Tensor:
        rows = []
        for b, lengths in enumerate(self.lengths):
            parts, at = [], 0
            for n in lengths:
                own = slice(at, at + n)
                parts.append(
                    self._document(
                        q[b : b + 1, :, own], k[b : b + 1, :, own], v[b : b + 1, :, own], window, chunk, softmax
                    )
                )
                at += n
            if at < q.size(2):
                parts.append(v.new_zeros(1, q.size(1), q.size(2) - at, v.size(3)))
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows)

    def _document(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None, chunk: int | None, softmax: dict[str, Any]
    ) -> Tensor:
        n = q.size(2)
        if min(window or n, chunk or n) >= n:
            return attention(q, k, v, causal=n > 1, **softmax)
        key = (n, window, chunk)
        if key not in self._made:
            at = torch.arange(n, device=q.device)[None]
            self._made[key] = visible(at, at[0], window, chunk)
        return attention(q, k, v, mask=self._made[key], **softmax)
