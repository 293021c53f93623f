"""The contiguous KV cache of the readable decode loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from litlm.config import Config
from litlm.context.base import Context, send, visible
from litlm.ops.sdpa import attention, fused_attention, fused_fits, kept_block_mask

_ALIGN = 16  # keys: attention with a mask on CUDA copies masks of other widths, in each layer


class KVCache(Context):
    """Keys and values of all positions so far: slot s of a row holds position s.

    Rows may have different lengths. A batch of prompts is right-padded and read in one pass; `truncate` then says how
    long each row really is, and what the padding left behind is overwritten before any query can see it.
    """

    def __init__(
        self, config: Config, batch: int, max_len: int, *, device: torch.device | str = "cpu", dtype: torch.dtype
    ) -> None:
        sizes = [config.layer(i).kv_sizes for i in range(config.n_layer)]

        slots = -(-max_len // _ALIGN) * _ALIGN

        def room(heads: int, size: int) -> Tensor:
            return torch.zeros(batch, heads, slots, size, device=device, dtype=dtype)

        self.max_len = max_len
        self.lengths = [0] * batch
        self.k = [room(heads, k) for heads, k, _ in sizes]
        self.v = [room(heads, v) if v else None for heads, _, v in sizes]
        self._kept: dict[int, Tensor] = {}
        # What compiled decoding last looked at, by layer.
        self.views: dict[int, tuple[int, Tensor, Tensor | None]] = {}

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        assert batch == len(self.lengths), f"cache for {len(self.lengths)} rows got {batch}"
        self.start = self.lengths
        self.lengths = [n + length for n in self.start]
        assert max(self.lengths) <= self.max_len, f"cache of {self.max_len} tokens is full"
        self.even = len(set(self.start)) == 1
        self.fresh = not any(self.start)
        steps = torch.arange(length, device=device)
        first = self.start[:1] if self.even else self.start
        self.positions = send(torch.tensor(first), device)[:, None] + steps
        self.rows = torch.arange(batch, device=device)[:, None]
        self._masks: dict[tuple[int | None, int | None], Tensor] = {}
        return self.positions

    def truncate(self, lengths: list[int]) -> None:
        """Keep the first lengths[b] tokens of each row b."""
        assert all(new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self.lengths = list(lengths)

    def replace(self, row: int, other: KVCache) -> None:
        """Put what `other` holds of its only row in the place of the first tokens of row `row`."""
        (n,) = other.lengths
        for mine, theirs in zip([*self.k, *self.v], [*other.k, *other.v], strict=True):
            if mine is not None and theirs is not None:
                mine[row, :, :n] = theirs[0, :, :n]

    def once(self, layer: int, compute: Callable[[], Tensor]) -> Tensor:
        if layer not in self._kept:
            self._kept[layer] = compute()
        return self._kept[layer]

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
        length, end, own = q.size(2), max(self.lengths), self.v[layer]
        if k is None or v is None:
            assert own is not None
            k, v = self.k[layer][:, :, :end], own[:, :, :end]
        else:
            self._write(self.k[layer], k if stored is None else stored)
            if own is not None:
                self._write(own, v)
        if self.fresh and fused_fits(q, v, softmax):
            return fused_attention(q, k, v, kept_block_mask(length, window, chunk, q.device), **softmax)
        if self.fresh and min(window or end, chunk or end) >= end:
            return attention(q, k, v, causal=length > 1, **softmax)
        first, mask = 0, None
        if self.even and length == 1:  # all that is seen is in one piece
            first = max(0 if window is None else end - window, 0 if chunk is None else (end - 1) // chunk * chunk, 0)
        else:
            if not (self.fresh and stored is not None):
                end = -(-end // _ALIGN) * _ALIGN
            mask = self._mask(end, window, chunk, q.dtype)
        if self.fresh and stored is not None:
            keys, values = k, v
        else:
            keys = self.k[layer][:, :, first:end]
            values = keys[..., : v.size(-1)] if own is None else own[:, :, first:end]
        per_head = softmax.get("sinks") is not None or softmax.get("slopes") is not None
        if length > 1 or per_head:
            return attention(q, keys, values, mask=mask, **softmax)
        # The heads that share a kv head are rows of one product: all of them see the same keys.
        rows = q.reshape(q.size(0), k.size(1), -1, q.size(-1))  # (B, K, H / K, D)
        return attention(rows, keys, values, mask=mask, **softmax).reshape(*q.shape[:3], values.size(-1))

    def _mask(self, end: int, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
        """(B or 1, 1, T, end). For a single new token as numbers to add in `dtype`, as fused kernels want it."""
        if (window, chunk) not in self._masks:
            mask = visible(self.positions, torch.arange(end, device=self.positions.device), window, chunk)
            if mask.size(2) == 1:
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
            self._masks[window, chunk] = mask
        return self._masks[window, chunk]

    def _write(self, slots: Tensor, new: Tensor) -> None:
        """new: (B, K, T, D), for the pass's positions."""
        if self.even:
            slots[:, :, self.start[0] : self.start[0] + new.size(2)] = new
        else:
            slots[self.rows, :, self.positions] = new.transpose(1, 2).to(slots.dtype)  # (B, T, K, D)

    def row_bias(self, end: int, window: int | None, chunk: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For one row and one new token: its slot (1,), and what to add to the scores of `end` slots (1, 1, 1, end).

        Slots behind it are out of sight, so a caller may look at more of them than are filled.
        """
        return self.positions[0], self._mask(end, window, chunk, dtype)
