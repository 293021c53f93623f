"""Rows that hold several documents, which do not attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.context.base import CachelessContext, any_sinks_or_slopes, cached_mask, send, visible
from litlm.ops.sdpa import (
    AttentionSpec,
    SinksAndSlopes,
    attention,
    can_use_varlen,
    make_block_mask,
    varlen_attention,
)


class Packed(CachelessContext):
    """Rows that hold several documents: each token attends to itself and to those before it in its own document.

    Positions restart with each document. On CUDA all documents go through flash attention's varlen kernel or
    FlexAttention in one call, or through a mask where neither can be used; on a CPU one document at a time.

    lengths: for each row, the lengths of its documents in order; the rest of the row is padding.
    """

    packed = True

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = tuple(map(tuple, lengths))

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (B, T) within each document. Raises ValueError if the documents don't fit, or for `lengths`."""
        if lengths is not None:
            raise ValueError("lengths must be left out with Packed, which has its documents' lengths: Packed(lengths)")
        if batch != len(self.lengths):
            raise ValueError(f"tokens have {batch} rows, but Packed was given the documents of {len(self.lengths)}")
        if (longest := max(map(sum, self.lengths))) > length:
            raise ValueError(f"rows have {length} tokens, but the documents of one have {longest} together")
        self.clear()
        # Padding becomes a document of its own, so that every token belongs to one.
        padded = [[*row, length - sum(row)] if sum(row) < length else list(row) for row in self.lengths]
        sizes = torch.tensor([n for row in padded for n in row])
        starts = sizes.cumsum(0) - sizes

        def per_token(t: Tensor) -> Tensor:
            return t.repeat_interleave(sizes).view(batch, length)

        self.positions = send(torch.arange(batch * length).view(batch, length) - per_token(starts), device)
        self.seq_lens = send(per_token(sizes), device)
        self.documents = send(per_token(torch.arange(len(sizes))), device)
        # Empty documents bring the count to a multiple of 64: each new count would compile layers again.
        ends = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        self.cu_seqlens = send(F.pad(ends, (0, -len(ends) % 64), value=batch * length).int(), device)
        return self.positions

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, spec: AttentionSpec, **options: Any) -> Tensor:
        has_sinks_or_slopes = any_sinks_or_slopes(options)
        if k is not None and v is not None and can_use_varlen(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes):
            return varlen_attention(q, k, v, spec, self.cu_seqlens, q.size(2))
        return super().attend(q, k, v, spec, **options)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks_and_slopes: SinksAndSlopes) -> Tensor:
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._attend_by_document(q, k, v, spec, sinks_and_slopes)
        mask = cached_mask(self._masks, (spec.window, spec.chunk), lambda: self._mask(spec))
        return attention(q, k, v, spec, mask=mask, **sinks_and_slopes)

    def _mask(self, spec: AttentionSpec) -> Tensor:
        """(B, 1, T, T)"""
        assert self.documents is not None
        index = torch.arange(self.documents.size(1), device=self.documents.device)[None]
        # A window only compares distances, so positions in the row will do; chunks start with the document.
        mask = visible(index, index[0], spec.window) & (
            self.documents[:, None, :, None] == self.documents[:, None, None]
        )
        if spec.chunk is not None:
            chunks = self.positions // spec.chunk
            mask &= (chunks[:, :, None] == chunks[:, None])[:, None]
        return mask

    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any:
        assert self.documents is not None
        return make_block_mask(self.documents.size(1), window, chunk, self.documents.device, self.documents)

    def _attend_by_document(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks_and_slopes: SinksAndSlopes
    ) -> Tensor:
        def mask(n: int) -> Tensor:
            """(1, 1, n, n), of a document of n tokens."""
            index = torch.arange(n, device=q.device)[None]
            return cached_mask(self._masks, (n, spec), lambda: visible(index, index[0], spec.window, spec.chunk))

        rows = []
        for b, lengths in enumerate(self.lengths):
            parts, start = [], 0
            for n in lengths:
                full, own = spec.is_full(n), (slice(b, b + 1), slice(None), slice(start, start + n))
                kind: Any = dict(causal=n > 1) if full else dict(mask=mask(n))
                parts.append(attention(q[own], k[own], v[own], spec, **kind, **sinks_and_slopes))
                start += n
            if start < q.size(2):
                parts.append(v.new_zeros(1, q.size(1), q.size(2) - start, v.size(3)))
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows)
