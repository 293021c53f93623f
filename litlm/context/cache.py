"""A contiguous KV cache: one tensor of keys and one of values per layer, allocated at once for `max_len` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.config import Config, StateSpec
from litlm.context.base import Context, LayerContext, any_sinks_or_slopes, cached_mask, send, visible
from litlm.ops.conv import causal_conv, conv_step
from litlm.ops.delta_rule import DeltaRule
from litlm.ops.sdpa import (
    AttentionSpec,
    SinksAndSlopes,
    attention,
    cached_block_mask,
    can_use_flex_attention,
    flex_attention,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from litlm.model import DecoderLayer

# Slots are allocated and masked in multiples of this: on CUDA scaled_dot_product_attention pads masks of other widths,
# a copy in every layer.
_ALIGN = 16


class KVCache(Context):
    """Keys and values of all positions so far: slot s of a row holds position s. Recurrent layers have a state instead.

    Rows may have different lengths. A batch of prompts is right-padded and read in one pass that is given the rows'
    lengths; what padding writes lies beyond a row's length, and is overwritten before any query can see it.

    Use it under `torch.no_grad()`: with gradients on, the cache would become part of the graph.

    lengths: of the rows, from `begin` on as they will be after the pass. k: for each layer (B, K, S, D); v: (B, K, S,
    E), None where values are part of the keys (latent attention).
    """

    def __init__(
        self, config: Config, batch: int, max_len: int, *, device: torch.device | str = "cpu", dtype: torch.dtype
    ) -> None:
        layers = [config.layer(i) for i in range(config.n_layer)]
        specs = [layer.state_spec for layer in layers]
        slots = -(-max_len // _ALIGN) * _ALIGN

        def allocate(heads: int, size: int) -> Tensor:
            return torch.zeros(batch, heads, slots, size, device=device, dtype=dtype)

        self.max_len = max_len
        self.lengths = [0] * batch
        self.k = [allocate(spec.n_head, spec.key_dim) for spec in specs]
        self.v = [allocate(spec.n_head, spec.value_dim) if spec.value_dim else None for spec in specs]
        self.step = CacheStep()
        states = [RecurrentLayer.allocate(spec, batch, device, dtype) if spec.conv else None for spec in specs]
        own = [
            state or CacheLayer(self.step, k, v) for state, k, v in zip(states, self.k, self.v, strict=True)
        ]  # fmt: skip
        self._layers = [own[i if layer.kv_layer is None else layer.kv_layer] for i, layer in enumerate(layers)]
        self._recurrent = [state for state in states if state is not None]
        self._snapshots: list[dict[int, RowState]] = [{} for _ in range(batch)]
        self._has_up_projections = False

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Positions (B, T) or (1, T). Raises ValueError, and changes nothing, if the pass doesn't fit into the cache.

        lengths may be greater than the rows are after the pass; LongRoPE then uses the frequencies for that length.
        """
        before, ends = self.lengths, [n + length for n in self.lengths]
        if batch != len(before):
            raise ValueError(f"tokens have {batch} rows, the cache has {len(before)}")
        if max(ends) > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens a row, and this pass would make it {max(ends)}")
        if lengths is not None and (len(lengths) != batch or any(map(int.__lt__, lengths, before))):
            raise ValueError(f"lengths={list(lengths)}: one for each row, none below the {before} that are cached")
        self.step.begin(before, length, device)
        self.seq_lens = None if lengths is None else send(torch.tensor(lengths), device)[:, None]
        self.lengths = ends if lengths is None else [min(n, end) for n, end in zip(lengths, ends, strict=True)]
        if self._recurrent:
            n_new = [after - n for n, after in zip(before, self.lengths, strict=True)]
            counts = None if n_new == [length] * batch else send(torch.tensor(n_new), device)[:, None]
            valid = None if counts is None else torch.arange(length, device=device) < counts
            for state in self._recurrent:
                state.counts, state.valid = counts, valid
        return self.step.positions

    def prepare(self, x: Tensor, layers: Sequence[DecoderLayer]) -> None:
        """Get the up-projections of latent attention, before the first pass that attends to cached latents.

        x: (B, T, C). They are computed once per cache: weights, and adapters on them, may change between generations
        but not within one.
        """
        if not self.step.has_past or self._has_up_projections:
            return
        self._has_up_projections = True
        for cached, layer in zip(self._layers, layers, strict=True):
            if layer.config.attention.latent is not None and cached.cached_weights is not None:
                attn: Any = layer.attn
                cached.cached_weights["W_UK_UV"] = attn.up_projections(x)

    def layer(self, i: int) -> LayerContext:
        """The layer's own keys and values, or those of the earlier layer that it shares (`LayerConfig.kv_layer`)."""
        return self._layers[i]

    def truncate(self, lengths: list[int]) -> None:
        """Keep the first lengths[b] tokens of each row b and drop the rest.

        Raises ValueError, and changes nothing, if a row has fewer; with recurrent layers also if a row has no snapshot
        at that length.
        """
        if len(lengths) != len(self.lengths) or any(map(int.__gt__, lengths, self.lengths)):
            raise ValueError(f"lengths={lengths}: one for each row, none above the {self.lengths} that are cached")
        shorter = [b for b, (n, now) in enumerate(zip(lengths, self.lengths, strict=True)) if n < now]
        if self._recurrent and (missing := [b for b in shorter if lengths[b] and lengths[b] not in self._snapshots[b]]):
            raise ValueError(
                f"lengths={lengths}: recurrent layers can only be truncated to a snapshot, and there is no snapshot of "
                f"{', '.join(f'row {b} at {lengths[b]} tokens' for b in missing)}; call snapshot(row) when a row has "
                "a length that you may truncate to"
            )
        for b in shorter:
            self._restore(b, lengths[b])
        self.lengths = list(lengths)

    def snapshot(self, row: int) -> RowState:
        """A copy of a row's state in the recurrent layers. From then on `truncate` can return to this length."""
        n, taken = self.lengths[row], self._snapshots[row]
        if n not in taken:
            taken[n] = RowState(n, [t[row].clone() for t in self._row_tensors()])
        return taken[n]

    def restore(self, row: int, state: RowState) -> None:
        """Return a row to a snapshot of it.

        Raises ValueError, and changes nothing, if the row has been truncated below the snapshot's length since: it may
        have other tokens there now.
        """
        if self._snapshots[row].get(state.length) is not state:
            raise ValueError(
                f"row {row} was truncated below the {state.length} tokens of this snapshot, or it is another row's; "
                "take a new one with snapshot(row)"
            )
        self._restore(row, state.length)
        self.lengths[row] = state.length

    def _restore(self, row: int, length: int) -> None:
        """Set a row's recurrent states to the snapshot at `length`, zeros if that is 0; drop later snapshots."""
        taken = self._snapshots[row] = {n: state for n, state in self._snapshots[row].items() if n <= length}
        for i, t in enumerate(self._row_tensors()):
            t[row] = taken[length].tensors[i] if length else 0

    def _row_tensors(self) -> list[Tensor]:
        return [t for layer in self._recurrent for t in (layer.conv, layer.state) if t is not None]

    def overwrite_row(self, row: int, other: KVCache) -> None:
        """Overwrite the first tokens of row `row` with the only row of `other`; lengths stay as they are."""
        (n,) = other.lengths
        self._snapshots[row].clear()  # they are of the tokens that are overwritten
        for mine, theirs in zip(self._row_tensors(), other._row_tensors(), strict=True):
            mine[row] = theirs[0]
        for mine, theirs in zip([*self.k, *self.v], [*other.k, *other.v], strict=True):
            if mine is not None and theirs is not None:
                mine[row, :, :n] = theirs[0, :, :n]


@dataclass(frozen=True)
class RowState:
    """The state of one row in all recurrent layers after `length` tokens. tensors: in the layers' order."""

    length: int
    tensors: list[Tensor]


class RecurrentLayer(LayerContext):
    """The state of one recurrent layer in a `KVCache`.

    conv: (B, W - 1, C), the last inputs of its convolution, in the model's dtype. state: (B, H, D, E), fp32, that of
    its recurrence; None: it has only the convolution. counts: (B, 1), how many of a row's tokens in this pass are real,
    and valid: (B, T), which ones; both None without padding. Padding leaves a row's state exactly as it is.
    """

    counts: Tensor | None = None
    valid: Tensor | None = None

    def __init__(self, conv: Tensor, state: Tensor | None) -> None:
        self.conv, self.state = conv, state

    @classmethod
    def allocate(cls, spec: StateSpec, batch: int, device: torch.device | str, dtype: torch.dtype) -> RecurrentLayer:
        """The state before the first token."""
        assert spec.conv is not None
        zeros = partial(torch.zeros, device=device)
        conv, state = zeros(batch, *spec.conv, dtype=dtype), spec.recurrent
        return cls(conv, None if state is None else zeros(batch, *state, dtype=torch.float32))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.size(1) == 1 and self.counts is None:
            return conv_step(x, weight, bias, self.conv)
        n, inputs = self.conv.size(1), torch.cat((self.conv, x), 1)
        if self.counts is None:
            last = inputs[:, -n:]
        else:
            index = self.counts + torch.arange(n, device=x.device)  # (B, W - 1)
            last = inputs.gather(1, index[..., None].expand(-1, -1, x.size(-1)))
        y = causal_conv(x, weight, bias, before=self.conv)
        self.conv.copy_(last)
        return y

    def recur(self, rule: DeltaRule) -> Tensor:
        assert self.state is not None
        return (rule if self.valid is None else rule.masked(self.valid)).advance(self.state)


class CacheStep:
    """The current pass over a `KVCache`, shared by its layers.

    They refer to this and not to the cache itself: a reference cycle would keep a dropped cache in memory.

    start: for each row, how many tokens are cached before this pass. end: one past the last slot that it writes.
    positions: (B, T) or (1, T).
    """

    def begin(self, start: list[int], length: int, device: torch.device) -> None:
        """A new pass, over `length` tokens a row."""
        self.start, self.end = start, max(start) + length
        self.has_past, self.equal_lengths = any(start), len(set(start)) == 1
        first = start[:1] if self.equal_lengths else start
        self.positions = send(torch.tensor(first), device)[:, None] + torch.arange(length, device=device)
        self.rows = None if self.equal_lengths else torch.arange(len(start), device=device)[:, None]
        self._masks: dict[Any, Tensor] = {}

    def mask(self, end: int, spec: AttentionSpec, dtype: torch.dtype) -> Tensor:
        """(B, 1, T, end), with B = 1 for rows of equal length.

        For a single new token it is additive, in `dtype`: scaled_dot_product_attention would convert a boolean one in
        every layer of every step.
        """

        def make() -> Tensor:
            mask = visible(self.positions, torch.arange(end, device=self.positions.device), spec.window, spec.chunk)
            if mask.size(2) > 1:
                return mask
            return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)

        return cached_mask(self._masks, (spec.window, spec.chunk, end), make)

    def write(self, slots: Tensor, new: Tensor) -> None:
        """Put new (B, K, T, D), for the pass's positions, into slots (B, K, S, D)."""
        if self.equal_lengths:
            slots[:, :, self.start[0] : self.start[0] + new.size(2)] = new
        else:
            slots[self.rows, :, self.positions] = new.transpose(1, 2).to(slots.dtype)  # (B, T, K, D)


class CacheLayer(LayerContext):
    """One layer's keys (B, K, S, D) and values (B, K, S, E) in a `KVCache`; v None: values are part of the keys."""

    def __init__(self, step: CacheStep, k: Tensor, v: Tensor | None) -> None:
        self.step, self.k, self.v, self.cached_weights = step, k, v, {}

    @property
    def has_past(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether anything was cached before this pass."""
        return self.step.has_past

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
        step, length, end = self.step, q.size(2), self.step.end
        if k is None or v is None:  # the cache is an earlier layer's, which has already written to it
            assert self.v is not None
            k, v = self.k[:, :, :end], self.v[:, :, :end]
        else:
            step.write(self.k, k if cache_entry is None else cache_entry)
            if self.v is not None:
                step.write(self.v, v)
        has_sinks_or_slopes = any_sinks_or_slopes(sinks_and_slopes)
        # Without a past the pass attends to its own k and v: by FlexAttention, causally, or with a mask.
        if not step.has_past and can_use_flex_attention(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes):
            block_mask = cached_block_mask(length, spec.window, spec.chunk, q.device)
            return flex_attention(q, k, v, spec, block_mask, **sinks_and_slopes)
        if not step.has_past and spec.is_full(end):
            return attention(q, k, v, spec, causal=length > 1, **sinks_and_slopes)
        if not step.has_past and cache_entry is not None:  # the cache has latents, and these are expanded k and v
            return attention(q, k, v, spec, mask=step.mask(end, spec, q.dtype), **sinks_and_slopes)
        # Otherwise it attends to the cache. One token in rows of equal length needs no mask: a slice of the cache has
        # just the visible slots.
        first, mask = 0, None
        if step.equal_lengths and length == 1:
            first = spec.first_visible(end - 1)
        else:
            end = -(-end // _ALIGN) * _ALIGN
            mask = step.mask(end, spec, q.dtype)
        size, k = v.size(-1), self.k[:, :, first:end]
        v = k[..., :size] if self.v is None else self.v[:, :, first:end]
        if length > 1 or has_sinks_or_slopes:
            return attention(q, k, v, spec, mask=mask, **sinks_and_slopes)
        return attend_one(q, k, v, spec, mask)


def attend_one(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None) -> Tensor:
    """`attention` of one query token, (B, H, 1, D) -> (B, H, 1, E).

    Heads that share a kv head become the T dimension, so that their keys and values are read once, in one product.
    """
    grouped = q.reshape(q.size(0), k.size(1), -1, q.size(-1))  # (B, K, H / K, D)
    return attention(grouped, k, v, spec, mask=mask).reshape(*q.shape[:3], -1)
