"""What a forward pass attends to: the one object that carries state through it.

`GPT.forward` calls `begin` and `prepare` once; each layer attends, convolves or recurs through its own `layer(i)`. The
softmax itself is in `ops/sdpa.py`, the recurrence in `ops/delta_rule.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.ops.conv import causal_conv
from litlm.ops.delta_rule import DeltaRule
from litlm.ops.sdpa import AttentionSpec, PerHead, flex_attention, flex_attention_fits, varlen_fits

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from litlm.model import Block

MaskKey = tuple[int | None, int | None]  # window, chunk


class LayerContext:
    """What one layer sees the other tokens through. Equal layers get equal ones, so that they compile to one graph.

    is_prefill: nothing precedes the pass's own tokens. cached_weights: tensors computed from the weights, by name, kept
    by a cache; None elsewhere.
    """

    is_prefill: bool = True
    cached_weights: dict[str, Tensor] | None = None

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
        """q: (B, H, T, D); k: (B, K, T, D); v: (B, K, T, E), of the pass's tokens only -> (B, H, T, E).

        k, v None: the layer has none of its own and reads those of an earlier layer (`LayerConfig.kv_layer`).
        cache_entry: (B, K', T, D'), in a prefill, what a cache keeps instead of k and v (`LayerConfig.state_spec`).
        per_head: sinks and slopes, (H,), see `ops.sdpa.attention`.
        """
        raise NotImplementedError

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (B, T, C), of the pass's tokens only -> (B, T, C). weight: (C, W). See `ops.conv.causal_conv`.

        Each token sees itself and the W - 1 before it in its document, earlier passes included.
        """
        raise NotImplementedError

    def recur(self, rule: DeltaRule) -> Tensor:
        """The outputs of a recurrence, (B, T, H, E), whose state goes on from pass to pass within a document."""
        raise NotImplementedError


class Context(ABC):
    """What one forward pass attends to.

    row_lengths: (B, 1) or (B, T), the length of what each token is part of, for ropes that depend on it; None where
    that is the whole row.
    """

    row_lengths: Tensor | None = None

    @abstractmethod
    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Start a pass over `length` new tokens in each of `batch` rows; returns their positions, (B, T) or (1, T).

        lengths: how long each row really is without the padding at its end, earlier tokens included.
        """

    def prepare(self, x: Tensor, blocks: Sequence[Block]) -> None:  # noqa: B027 - some contexts need nothing
        """Make what the layers will share. x: (B, T, C), the input of the first.

        `GPT.forward` calls it after `begin` and before the layers. Layers may be compiled, and under activation
        checkpointing run twice: what they make does not outlive them, so what they share is made here.
        """

    @abstractmethod
    def layer(self, i: int) -> LayerContext:
        """What layer `i` (0-based) attends through in this pass."""


class SharingLayer(LayerContext):
    """Lets later layers read one layer's keys and values. shared: [k, v], one list for all, filled by that layer."""

    def __init__(self, context: LayerContext, shared: list[Tensor]) -> None:
        self.context, self.shared = context, shared

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, spec: AttentionSpec, **options: Any) -> Tensor:
        if k is None or v is None:
            k, v = self.shared
        else:
            self.shared[:] = k, v
        return self.context.attend(q, k, v, spec, **options)


class CachelessContext(Context, LayerContext):
    """Rows of which nothing was read before: every layer attends through the context itself, but for those that share
    keys and values.

    packed: rows hold several documents.
    """

    packed: bool = False
    positions: Tensor  # (B or 1, T)
    documents: Tensor | None = None  # (B, T), which one a token is in; None: a row is one

    def clear(self) -> None:
        """Forget an earlier pass."""
        self._shared_kv: dict[int, list[Tensor]] = {}
        self._masks: dict[Any, Tensor] = {}
        self._block_masks: dict[MaskKey, Any] = {}

    def prepare(self, x: Tensor, blocks: Sequence[Block]) -> None:
        """Make FlexAttention's masks, and what layers share keys and values through. x: (B, T, C)."""
        for key in block_mask_keys(x, blocks, packed=self.packed):
            self.block_mask(*key)
        for i, block in enumerate(blocks):
            if (source := block.config.kv_layer) is not None:
                self._shared_kv[i] = self._shared_kv.setdefault(source, [])

    def layer(self, i: int) -> LayerContext:
        """The same for all layers but those that share keys and values."""
        return SharingLayer(self, self._shared_kv[i]) if i in self._shared_kv else self

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
        assert k is not None
        assert v is not None
        if flex_attention_fits(q, v, spec, per_head=any_given(per_head), packed=self.packed):
            return flex_attention(q, k, v, spec, self.block_mask(spec.window, spec.chunk), **per_head)
        return self._attend(q, k, v, spec, per_head)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return causal_conv(x, weight, bias, positions=self.positions if self.packed else None)

    def recur(self, rule: DeltaRule) -> Tensor:
        return rule.run(documents=self.documents)[0]

    @abstractmethod
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, per_head: PerHead) -> Tensor:
        """Without FlexAttention."""

    @abstractmethod
    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any: ...

    def block_mask(self, window: int | None, chunk: int | None) -> Any:
        """FlexAttention's mask for layers with this window and chunk."""
        return cached_mask(self._block_masks, (window, chunk), lambda: self._make_block_mask(window, chunk))


def cached_mask(masks: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """masks[key], made where it is missing and stored for the other layers.

    Compiled code does not store, and makes a mask where it is used (the compiler fuses the two): if the first layer
    stored one for the others, its graph would differ from theirs.
    """
    if key in masks:
        return masks[key]
    mask = make()
    if not torch.compiler.is_compiling():
        masks[key] = mask
    return mask


def any_given(per_head: Mapping[str, object]) -> bool:
    """Whether there are sinks or slopes, for which softmax has fewer kernels."""
    return per_head.get("sinks") is not None or per_head.get("slopes") is not None


def send(t: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor of any shape on `device`.

    To CUDA it goes from pinned memory: otherwise the host would wait for all work before it.
    """
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def visible(queries: Tensor, keys: Tensor, window: int | None, chunk: int | None = None) -> Tensor:
    """Mask (B, 1, T, S), True where a query attends to a key. queries: (B, T), keys: (S,), both positions."""
    distance = queries[:, :, None] - keys  # (B, T, S)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if chunk is not None:
        mask &= queries[:, :, None] // chunk == keys // chunk
    return mask[:, None]


def block_mask_keys(x: Tensor, blocks: Iterable[Block], *, packed: bool = False) -> Iterator[MaskKey]:
    """The (window, chunk) of the layers that go through `flex_attention`. x: (B, T, C). packed: rows hold several
    documents."""
    attending = [block for block in blocks if block.config.recurrent is None]
    distinct = {(block.attn.spec, block.config.head_dim, block.config.value_dim): block for block in attending}
    for (spec, *sizes), block in distinct.items():
        q, v = (x.new_empty(1).expand(1, 1, x.size(1), size) for size in sizes)
        per_head = block.config.attention.sinks or block.config.attention.alibi
        if packed and varlen_fits(q, v, spec, per_head=per_head):
            continue
        if flex_attention_fits(q, v, spec, per_head=per_head, packed=packed):
            yield spec.window, spec.chunk
