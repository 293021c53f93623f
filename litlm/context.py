"""Where queries find their keys: the one object that carries state through a forward pass.

`GPT.forward` calls `begin` once, each attention layer calls `attend` once. `Causal` keeps nothing (training, scoring);
`Packed` keeps documents that share a row from seeing each other; `KVCache` keeps every layer's keys and values,
contiguous, one slot per position (the readable decode loop). The softmax itself is in `attention.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.attention import (
    attention,
    block_mask,
    fused_attention,
    fused_fits,
    kept_block_mask,
    varlen_attention,
    varlen_fits,
)
from litlm.config import Config, LayerConfig


class Context(ABC):
    """What one forward pass attends to.

    fresh: there is nothing before the pass's own tokens. row_lengths: (B, 1) or (B, T), the length of what each token
    is part of, for ropes that depend on it; None where that is the whole row.
    """

    fresh: bool = True
    row_lengths: Tensor | None = None

    @abstractmethod
    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        """Start a pass over `length` new tokens a row; returns their positions, (B, T) or (1, T)."""

    def prepare(self, x: Tensor, layers: Iterable[LayerConfig]) -> None:  # noqa: B027 - most contexts need nothing
        """Make what attention in these layers will share. x: (B, T, C), what goes into the first.

        `GPT.forward` calls it after `begin` and before the layers, which may be compiled and computed again in the
        backward pass: what is made inside of them does not outlive them there.
        """

    @abstractmethod
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
        """Attention of layer `layer`. q: (B, H, T, D); k, v: (B, K, T, D or E), new tokens only -> (B, H, T, E).

        k, v None: those that this layer brought earlier in this pass, with share=True, are attended to again.
        window: a query sees this many last tokens, itself included; chunk: it sees its own chunk of this many; neither:
        all before it. stored: in a fresh pass, what a cache keeps instead of k and v (`LayerConfig.kv_sizes`).
        softmax: scale, softcap, sinks and slopes of `attention`.
        """

    def once(self, layer: int, compute: Callable[[], Tensor]) -> Tensor:
        """A tensor that layer `layer` needs in every pass; a context that lives through many may keep it."""
        return compute()


def send(t: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. To CUDA it goes from pinned memory: else the host would wait for all work before it."""
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def visible(queries: Tensor, keys: Tensor, window: int | None, chunk: int | None = None) -> Tensor:
    """Mask (B, 1, T, S), True where the key position is seen. queries: (B, T), keys: (S,) positions."""
    distance = queries[:, :, None] - keys  # (B, T, S)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if chunk is not None:
        mask &= queries[:, :, None] // chunk == keys // chunk
    return mask[:, None]


def shared_kv(
    kept: dict[int, tuple[Tensor, Tensor]], layer: int, k: Tensor | None, v: Tensor | None, share: bool
) -> tuple[Tensor, Tensor]:
    """A layer's keys and values; where it brings none, those that were kept. share: keep them for later layers."""
    if k is None or v is None:
        return kept[layer]
    if share:
        kept[layer] = (k, v)
    return k, v


def needs_blocks(
    x: Tensor, layers: Iterable[LayerConfig], *, document: bool = False
) -> Iterator[tuple[int | None, int | None]]:
    """The (window, chunk) of the layers that go through `fused_attention`. x: (B, T, C). document: rows are packed."""
    for layer in layers:
        a = layer.attention
        sizes = layer.head_dim, layer.head_dim if a.latent is None else a.latent.v_head_dim
        q, v = (x.new_empty(1).expand(1, 1, x.size(1), size) for size in sizes)
        softmax = dict(softcap=a.softcap, sinks=a.sinks or None, slopes=a.alibi or None)
        if document and varlen_fits(q, v, softmax, layer.chunk):
            continue
        if fused_fits(q, v, softmax, document=document):
            yield layer.window, layer.chunk


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
