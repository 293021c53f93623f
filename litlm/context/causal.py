"""Causal attention without a cache: training and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from litlm.context.base import CachelessContext, cached_mask, send, visible
from litlm.ops.sdpa import AttentionSpec, SinksAndSlopes, attention, cached_block_mask


class Causal(CachelessContext):
    """Each token attends to itself and to those before it in its row, and so never to padding on the right.

    lengths: of the rows without their padding, for ropes that depend on them.
    """

    def __init__(self, lengths: Sequence[int] | None = None) -> None:
        self.lengths = lengths

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (1, T). lengths, if given, replaces the constructor's."""
        self.clear()
        self.positions = torch.arange(length, device=device)[None]
        lengths = self.lengths if lengths is None else lengths
        self.seq_lens = None if lengths is None else send(torch.tensor(lengths), device)[:, None]
        return self.positions

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks_and_slopes: SinksAndSlopes) -> Tensor:
        if spec.is_full(q.size(2)):
            return attention(q, k, v, spec, causal=True, **sinks_and_slopes)
        key = spec.window, spec.chunk
        mask = cached_mask(self._masks, key, lambda: visible(self.positions, self.positions[0], *key))  # (1, 1, T, T)
        return attention(q, k, v, spec, mask=mask, **sinks_and_slopes)

    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any:
        return cached_block_mask(self.positions.size(1), window, chunk, self.positions.device)
