"""Causal attention without a cache: training and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.context.base import CachelessContext, any_given, send, visible
from litlm.ops.sdpa import AttentionSpec, PerHead, attention, cached_block_mask, flex_attention, flex_attention_fits

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Causal(CachelessContext):
    """Each token attends to itself and to what came before it in the same row. Right padding needs no mask of its own.

    lengths: of the rows without their padding.
    """

    def __init__(self, lengths: Sequence[int] | None = None) -> None:
        super().__init__()
        self.lengths = lengths

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (1, T); lengths replaces the constructor's."""
        self._clear()
        self.positions = torch.arange(length, device=device)[None]
        lengths = self.lengths if lengths is None else lengths
        self.row_lengths = None if lengths is None else send(torch.tensor(lengths), device)[:, None]
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
        if flex_attention_fits(q, v, spec, per_head=any_given(per_head)):
            return flex_attention(q, k, v, spec, self._block_mask(spec.window, spec.chunk), **per_head)
        if spec.is_full(q.size(2)):
            return attention(q, k, v, spec, causal=True, **per_head)
        return attention(q, k, v, spec, mask=self._mask(spec.window, spec.chunk), **per_head)

    def _make_mask(self, window: int | None, chunk: int | None) -> Tensor:
        return visible(self.positions, self.positions[0], window, chunk)  # (1, 1, T, T)

    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any:
        return cached_block_mask(self.positions.size(1), window, chunk, self.positions.device)
