"""Rows that hold several documents, which do not attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.context.base import CachelessContext, any_given, send, visible
from litlm.ops.sdpa import (
    AttentionSpec,
    PerHead,
    attention,
    flex_attention,
    flex_attention_fits,
    make_block_mask,
    varlen_attention,
    varlen_fits,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Packed(CachelessContext):
    """Rows that hold several documents: each token attends to itself and to what came before it in its own document.

    Positions start again with each document. On a CPU each document is attended to by itself; on CUDA one kernel does
    all of them. lengths: for each row, those of its documents in order; what is left of the row is padding.
    """

    packed = True

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.lengths = tuple(map(tuple, lengths))

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (B, T) within each document; lengths of whole rows say nothing here."""
        assert batch == len(self.lengths), f"{len(self.lengths)} rows of lengths for {batch} rows"
        assert max(map(sum, self.lengths)) <= length, f"documents of {max(map(sum, self.lengths))} in rows of {length}"
        self._clear()
        self._document_masks: dict[tuple[int, int | None, int | None], Tensor] = {}
        # Padding counts as a document of its own, so that every token is in one.
        padded = [[*row, length - sum(row)] if sum(row) < length else list(row) for row in self.lengths]
        sizes = torch.tensor([n for row in padded for n in row])
        starts = sizes.cumsum(0) - sizes

        def per_token(t: Tensor) -> Tensor:
            return t.repeat_interleave(sizes).view(batch, length)

        self.positions = send(torch.arange(batch * length).view(batch, length) - per_token(starts), device)
        self.row_lengths = send(per_token(sizes), device)
        self.documents = send(per_token(torch.arange(len(sizes))), device)  # (B, T), which one a token is in
        # Where each ends, for the kernel of CUDA: filled up with empty ones, so that compiled code sees few shapes.
        ends = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        self.ends = send(F.pad(ends, (0, -len(ends) % 64), value=batch * length).int(), device)
        return self.positions

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        spec: AttentionSpec,
        *,
        cache_entry: Tensor | None = None,
        **per_head: Unpack[PerHead],
    ) -> Tensor:
        """As `LayerContext.attend` says."""
        assert k is not None
        assert v is not None
        special = any_given(per_head)
        if varlen_fits(q, v, spec, per_head=special):
            return varlen_attention(q, k, v, spec, self.ends, q.size(2))
        if flex_attention_fits(q, v, spec, per_head=special, packed=True):
            return flex_attention(q, k, v, spec, self._block_mask(spec.window, spec.chunk), **per_head)
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._attend_by_document(q, k, v, spec, per_head)
        return attention(q, k, v, spec, mask=self._mask(spec.window, spec.chunk), **per_head)

    def _make_mask(self, window: int | None, chunk: int | None) -> Tensor:
        """(B, 1, T, T)"""
        index = torch.arange(self.documents.size(1), device=self.documents.device)[None]
        # Distances are the same counted from the row's start; chunks are counted from the document's.
        mask = visible(index, index[0], window) & (self.documents[:, None, :, None] == self.documents[:, None, None])
        if chunk is not None:
            mask &= (self.positions[:, :, None] // chunk == self.positions[:, None] // chunk)[:, None]
        return mask

    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any:
        return make_block_mask(self.documents.size(1), window, chunk, self.documents.device, self.documents)

    def _attend_by_document(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, per_head: PerHead) -> Tensor:
        rows = []
        for b, lengths in enumerate(self.lengths):
            parts, start = [], 0
            for n in lengths:
                own = (slice(b, b + 1), slice(None), slice(start, start + n))
                mask = None if spec.is_full(n) else self._document_mask(n, spec)
                parts.append(
                    attention(q[own], k[own], v[own], spec, mask=mask, causal=mask is None and n > 1, **per_head)
                )
                start += n
            if start < q.size(2):
                parts.append(v.new_zeros(1, q.size(1), q.size(2) - start, v.size(3)))
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows)

    def _document_mask(self, n: int, spec: AttentionSpec) -> Tensor:
        """(1, 1, n, n), of a document of n tokens."""
        key = (n, spec.window, spec.chunk)
        if key not in self._document_masks:
            index = torch.arange(n, device=self.positions.device)[None]
            self._document_masks[key] = visible(index, index[0], spec.window, spec.chunk)
        return self._document_masks[key]
