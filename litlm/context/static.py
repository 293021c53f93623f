"""The cache for compiled decoding: its layers' contexts hold nothing but tensors, so that equal layers share one graph.

From token to token these tensors keep their shapes, and only their contents change: keys and values, the new token's
slot and the mask are written in place. The number of slots that a layer attends to grows in steps of `_STEP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch._dynamo
from torch import Tensor

from litlm.context.base import LayerContext, any_sinks_or_slopes, visible
from litlm.context.cache import KVCache, RecurrentLayer, attend_one
from litlm.ops.sdpa import AttentionSpec, SinksAndSlopes, attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from litlm.model import DecoderLayer

_STEP = 64  # a layer attends to a multiple of this many slots; those not written yet are masked


class StaticLayer(LayerContext):
    """One layer's part of a cache of one row, for one new token.

    k: (1, K, S, D); v: (1, K, S, E), None where values are part of the keys. slot: (1,), where the new token's key and
    value are written. bias: (1, 1, 1, S), added to the scores: -inf for slots that it doesn't see, 0 for the others.
    """

    has_past = True

    def __init__(self, k: Tensor, v: Tensor | None, slot: Tensor, bias: Tensor) -> None:
        self.k, self.v, self.slot, self.bias = k, v, slot, bias

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        spec: AttentionSpec,
        *,
        cache_entry: Tensor | None = None,
        **sinks_and_slopes: Unpack[SinksAndSlopes],
    ) -> Tensor:
        values = self.v
        if k is not None and v is not None:  # otherwise the cache is an earlier layer's, which wrote to it
            self.k.index_copy_(2, self.slot, k)
            if values is None:
                values = self.k[..., : v.size(-1)]
            else:
                values.index_copy_(2, self.slot, v)
        assert values is not None
        if any_sinks_or_slopes(sinks_and_slopes):
            return attention(q, self.k, values, spec, mask=self.bias, **sinks_and_slopes)
        return attend_one(q, self.k, values, spec, self.bias)


class StaticRecurrentLayer(RecurrentLayer):
    """A `RecurrentLayer` for one new token in one row. Its class tells `transforms/compile.py` to run compiled."""


class StaticCache(KVCache):
    """A `KVCache` for compiled decoding on a CPU; transformers' cache of this name also has fixed shapes.

    In passes over one token of one row, layers get static contexts over the same memory; in all others, such as the
    prompt's, they get what `KVCache` gives them.
    """

    _static: Sequence[StaticLayer | StaticRecurrentLayer] = ()
    _is_static = False

    def prepare(self, x: Tensor, layers: Sequence[DecoderLayer]) -> None:
        """Write this pass's slot and masks into the static layers' tensors. x: (B, T, C)."""
        super().prepare(x, layers)
        is_real = self.lengths == [self.step.end]  # padding must leave recurrent states as they are
        self._is_static = x.shape[:2] == (1, 1) and x.device.type == "cpu" and self.step.has_past and is_real
        if not self._is_static:
            return
        n_slots = min(-(-self.step.end // _STEP) * _STEP, self.max_len)
        if not self._static or n_slots != len(self._slots):
            specs = [None if layer.config.recurrent is not None else layer.attn.spec for layer in layers]
            self._make_layers(n_slots, specs, x.dtype)
        self._slot.copy_(self.step.positions[0])
        for (window, chunk), bias in self._biases.items():
            bias.zero_().masked_fill_(~visible(self.step.positions, self._slots, window, chunk), -torch.inf)

    def layer(self, i: int) -> LayerContext:
        """A `StaticLayer` or `StaticRecurrentLayer` in passes that run compiled."""
        return self._static[i] if self._is_static else super().layer(i)

    def _make_layers(self, n_slots: int, specs: Sequence[AttentionSpec | None], dtype: torch.dtype) -> None:
        keys = [None if spec is None else (spec.window, spec.chunk) for spec in specs]
        self._slots, self._slot = torch.arange(n_slots), torch.zeros(1, dtype=torch.int64)
        self._biases = {key: torch.zeros(1, 1, 1, n_slots, dtype=dtype) for key in keys if key}
        self._static = []
        for key, layer in zip(keys, self._layers, strict=True):
            if key is None or isinstance(layer, RecurrentLayer):
                assert isinstance(layer, RecurrentLayer)
                self._static.append(StaticRecurrentLayer(layer.conv, layer.state))
                continue
            k, v = layer.k[:, :, :n_slots], None if layer.v is None else layer.v[:, :, :n_slots]
            static = StaticLayer(k, v, self._slot, self._biases[key])
            static.cached_weights = layer.cached_weights
            self._static.append(static)
            for tensor, dim in ((k, 2), (v, 2), (self._biases[key], 3)):
                if tensor is not None:
                    torch._dynamo.mark_dynamic(tensor, dim)
