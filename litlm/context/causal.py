"""Causal attention without a cache: training and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from litlm.context.base import CachelessContext, cached_mask, send, visible
from litlm.ops.sdpa import AttentionSpec, PerHead, attention, cached_block_mask


class Causal(CachelessContext):
    """Each token attends to itself and to what came before it in the same row. Right padding needs no mask of its own.

    lengths: of the rows without their padding.
    """

    def __init__(self, lengths: Sequence[int] | None = None) -> None:
        self.lengths = lengths

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (1, T); lengths replaces the constructor's."""
        self.clear()
        self.positions = torch.arange(length, device=device)[None]
        lengths = self.lengths if lengths is None else lengths
        self.row_lengths = None if lengths is None else send(torch.tensor(lengths), device)[:, None]
        return self.positions

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, per_head: PerHead) -> Tensor:
        if spec.is_full(q.size(2)):
            return attention(q, k, v, spec, causal=True, **per_head)
        key = spec.window, spec.chunk
        mask = cached_mask(self._masks, key, lambda: visible(self.positions, self.positions[0], *key))  # (1, 1, T, T)
        return attention(q, k, v, spec, mask=mask, **per_head)

    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any:
        return cached_block_mask(self.positions.size(1), window, chunk, self.positions.device)
