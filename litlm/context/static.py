"""The cache for compiled decoding: what a layer gets of it are tensors alone, so that equal layers share one graph.

While a row grows, nothing about these tensors changes but their contents: new tokens, the slot of the next one and
which slots are visible are written in place. Only the number of slots looked at grows, in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch._dynamo
from torch import Tensor

from litlm.context.base import LayerContext, any_given, visible
from litlm.context.cache import KVCache, RecurrentLayer, attend_one
from litlm.ops.sdpa import AttentionSpec, PerHead, attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from litlm.model import Block

_STEP = 64  # slots are looked at in multiples of this


class StaticLayer(LayerContext):
    """One layer's share of a cache of one row, for one new token.

    k: (1, K, S, D); v: (1, K, S, E), None where values are part of the keys. slot: (1,), where the token's own go.
    bias: (1, 1, 1, S), -inf where a slot is not visible and 0 elsewhere.
    """

    is_prefill = False

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
        **per_head: Unpack[PerHead],
    ) -> Tensor:
        values = self.v
        if k is not None and v is not None:  # otherwise they are another layer's, which has written them
            self.k.index_copy_(2, self.slot, k)
            if values is None:
                values = self.k[..., : v.size(-1)]
            else:
                values.index_copy_(2, self.slot, v)
        assert values is not None
        if any_given(per_head):
            return attention(q, self.k, values, spec, mask=self.bias, **per_head)
        return attend_one(q, self.k, values, spec, self.bias)


class StaticRecurrentLayer(RecurrentLayer):
    """The same tensors, for one new token in one row."""


class StaticCache(KVCache):
    """A `KVCache` whose layers are static while one row on a CPU reads one token at a time."""

    _static: Sequence[StaticLayer | StaticRecurrentLayer] = ()
    _is_static = False

    def prepare(self, x: Tensor, blocks: Sequence[Block]) -> None:
        """Bring the static layers up to this pass's token. x: (B, T, C)."""
        super().prepare(x, blocks)
        counts = self.lengths == [self.step.end]  # a token that does not must leave recurrent states as they are
        self._is_static = x.shape[:2] == (1, 1) and x.device.type == "cpu" and not self.step.is_prefill and counts
        if not self._is_static:
            return
        n_slots = min(-(-self.step.end // _STEP) * _STEP, self.max_len)
        if not self._static or n_slots != len(self._slots):
            specs = [None if block.config.recurrent is not None else block.attn.spec for block in blocks]
            self._make_layers(n_slots, specs, x.dtype)
        self._slot.copy_(self.step.positions[0])
        for (window, chunk), bias in self._biases.items():
            bias.zero_().masked_fill_(~visible(self.step.positions, self._slots, window, chunk), -torch.inf)

    def layer(self, i: int) -> LayerContext:
        """A static one where this pass has one."""
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
