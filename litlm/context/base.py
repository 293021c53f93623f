"""Where queries find their keys: the one object that carries state through a forward pass.

`GPT.forward` calls `begin` once, each attention layer calls `attend` once. The softmax itself is in `ops/sdpa.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from litlm.config import LayerConfig
from litlm.ops.sdpa import fused_fits, varlen_fits


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
