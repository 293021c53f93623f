"""Causal attention without a cache: training and scoring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from litlm.config import LayerConfig
from litlm.context.base import Context, needs_blocks, send, shared_kv, visible
from litlm.ops.sdpa import attention, fused_attention, fused_fits, kept_block_mask


class Causal(Context):
    """Each token sees itself and what came before it in the same row. Right padding needs no mask of its own.

    lengths: of the rows without their padding.
    """

    def __init__(self, lengths: Sequence[int] | None = None) -> None:
        self._lengths = lengths
        self._masks: dict[tuple[int | None, int | None], Tensor] = {}
        self._blocks: dict[tuple[int | None, int | None], Any] = {}
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        self.positions = torch.arange(length, device=device)[None]
        if self._lengths is not None:
            self.row_lengths = send(torch.tensor(self._lengths), device)[:, None]
        for made in (self._masks, self._blocks, self._shared):
            made.clear()
        return self.positions

    def prepare(self, x: Tensor, layers: Iterable[LayerConfig]) -> None:
        for window, chunk in needs_blocks(x, layers):
            self._block(x, window, chunk)

    def _block(self, x: Tensor, window: int | None, chunk: int | None) -> Any:
        """x: (..., T, C)"""
        if (window, chunk) not in self._blocks:
            self._blocks[window, chunk] = kept_block_mask(x.size(-2), window, chunk, x.device)
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
        if fused_fits(q, v, softmax):
            return fused_attention(q, k, v, self._block(q, window, chunk), **softmax)
        if min(window or q.size(2), chunk or q.size(2)) >= q.size(2):
            return attention(q, k, v, causal=True, **softmax)
        if (window, chunk) not in self._masks:
            self._masks[window, chunk] = visible(self.positions, self.positions[0], window, chunk)
        return attention(q, k, v, mask=self._masks[window, chunk], **softmax)
