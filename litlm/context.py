"""Where queries find their keys: the one object that carries state through a forward pass.

`GPT.forward` calls `begin` once, each attention layer calls `attend` once. `Causal` keeps nothing (training, scoring);
`KVCache` keeps every layer's keys and values, contiguous, one slot per position (the readable decode loop).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.config import Config


class Context(ABC):
    """What one forward pass attends to."""

    @abstractmethod
    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        """Start a pass over `length` new tokens a row; returns their positions, (B, T) or (1, T)."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Softmax attention of layer `layer`. q: (B, H, T, D); k, v: (B, K, T, D), new tokens only -> (B, H, T, D).

        window: a query sees this many last tokens, itself included; None sees all before it.
        """


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Mask (B, 1, T, S), True where the key position is seen. queries: (B, T), keys: (S,) positions."""
    distance = queries[:, :, None] - keys  # (B, T, S)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    return mask[:, None]


class Causal(Context):
    """Each token sees itself and what came before it in the same row. Right padding needs no mask of its own."""

    def __init__(self) -> None:
        self._masks: dict[int, Tensor] = {}

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        self.positions = torch.arange(length, device=device)[None]
        self._masks.clear()
        return self.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        grouped = q.size(1) != k.size(1)
        if window is None or window >= q.size(2):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        if window not in self._masks:
            self._masks[window] = visible(self.positions, self.positions[0], window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._masks[window], enable_gqa=grouped)


class KVCache(Context):
    """Keys and values of all positions so far: slot s of a row holds position s.

    Rows may have different lengths. A batch of prompts is right-padded and read in one pass; `truncate` then says how
    long each row really is, and what the padding left behind is overwritten before any query can see it.
    """

    def __init__(
        self, config: Config, batch: int, max_len: int, *, device: torch.device | str = "cpu", dtype: torch.dtype
    ) -> None:
        layers = [config.layer(i) for i in range(config.n_layer)]
        self.max_len = max_len
        self.lengths = [0] * batch
        self.k = [torch.zeros(batch, c.n_kv_head, max_len, c.head_dim, device=device, dtype=dtype) for c in layers]
        self.v = [torch.zeros_like(k) for k in self.k]
        self.views: dict[int, tuple[int, Tensor, Tensor]] = {}  # what compiled decoding last looked at, by layer

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        assert batch == len(self.lengths), f"cache for {len(self.lengths)} rows got {batch}"
        self.start = self.lengths
        self.lengths = [n + length for n in self.start]
        assert max(self.lengths) <= self.max_len, f"cache of {self.max_len} tokens is full"
        self.even = len(set(self.start)) == 1
        steps = torch.arange(length, device=device)
        first = self.start[:1] if self.even else self.start
        self.positions = torch.tensor(first, device=device)[:, None] + steps
        self._masks: dict[int | None, Tensor] = {}
        return self.positions

    def truncate(self, lengths: list[int]) -> None:
        """Keep the first lengths[b] tokens of each row b."""
        assert all(new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self.lengths = list(lengths)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        length, end = q.size(2), max(self.lengths)
        keys, values = self.k[layer], self.v[layer]
        if self.even:
            keys[:, :, self.start[0] : end] = k
            values[:, :, self.start[0] : end] = v
        else:
            rows = torch.arange(q.size(0), device=q.device)[:, None]
            keys[rows, :, self.positions] = k.transpose(1, 2).to(keys.dtype)  # (B, T, K, D)
            values[rows, :, self.positions] = v.transpose(1, 2).to(values.dtype)
        grouped = q.size(1) != k.size(1)
        if self.even and (window is None or window >= end):
            if self.start[0] == 0:  # nothing before these tokens
                return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=grouped)
            if length == 1:
                # The heads that share a kv head are rows of one product: all of them see every key.
                rows = q.reshape(q.size(0), k.size(1), -1, q.size(-1))  # (B, K, H / K, D)
                return F.scaled_dot_product_attention(rows, keys[:, :, :end], values[:, :, :end]).reshape(q.shape)
        if window not in self._masks:
            self._masks[window] = visible(self.positions, torch.arange(end, device=q.device), window)
        mask = self._masks[window]
        return F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, enable_gqa=grouped
        )

    def row_bias(self, end: int, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For one row and one new token: its slot (1,), and what to add to the scores of `end` slots (1, end).

        Slots behind it are out of sight, so a caller may look at more of them than are filled.
        """
        if window not in self._masks:
            seen = visible(self.positions, torch.arange(end, device=self.positions.device), window)[0, 0]
            self._masks[window] = torch.zeros(1, end, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return self.positions[0], self._masks[window]
