"""What a forward pass attends to: the one object that carries state through it.

`GPT.forward` calls `begin` and `prepare` once; each layer attends, convolves or recurs through its own `layer(i)`. The
math of attention is in `ops/sdpa.py`, that of the recurrence in `ops/delta_rule.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.ops.conv import causal_conv
from litlm.ops.delta_rule import DeltaRule
from litlm.ops.sdpa import AttentionSpec, SinksAndSlopes, can_use_flex_attention, can_use_varlen, flex_attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from litlm.model import DecoderLayer

MaskKey = tuple[int | None, int | None]  # window, chunk


class LayerContext:
    """One layer's access to the other tokens and to its own state.

    torch.compile reuses a graph only if its guards hold, so two layers with equal configs must get contexts that differ
    in nothing but the contents of tensors.

    has_past: earlier passes have cached tokens; False for a whole prompt and in training. cached_weights: tensors
    derived from the weights, by name, which a cache keeps; None without a cache.
    """

    has_past: bool = False
    cached_weights: dict[str, Tensor] | None = None

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
        """q: (B, H, T, D); k: (B, K, T, D); v: (B, K, T, E), of the pass's tokens only -> (B, H, T, E).

        k, v None: the layer has none of its own and reads those of an earlier layer (`LayerConfig.kv_layer`).
        cache_entry: (B, K', T, D'), what a cache stores instead of k and v (`LayerConfig.state_spec`): with latent
        attention and no past, queries attend to expanded keys and values, but only latents are cached.
        sinks_and_slopes: (H,) each, see `ops.sdpa.attention`.
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

    seq_lens: (B, 1) or (B, T), the length of the sequence that each token belongs to (a packed document, a row without
    its padding), for ropes whose frequencies depend on it; None: each row ends at its last position in the pass.
    """

    seq_lens: Tensor | None = None

    @abstractmethod
    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """Start a pass over `length` new tokens in each of `batch` rows; returns their positions, (B, T) or (1, T).

        lengths: each row's length without the padding at its end, earlier tokens included.
        """

    def prepare(self, x: Tensor, layers: Sequence[DecoderLayer]) -> None:  # noqa: B027 - some contexts need nothing
        """Make what the layers share, such as masks. x: (B, T, C), the input of the first.

        `GPT.forward` calls it after `begin` and before the layers. A layer can't make it for the others: it may be
        compiled, or run a second time under activation checkpointing.
        """

    @abstractmethod
    def layer(self, i: int) -> LayerContext:
        """What layer `i` (0-based) attends through in this pass."""


class SharingLayer(LayerContext):
    """Lets later layers attend to one layer's keys and values. shared: [k, v], one list for all of them, which that
    layer fills."""

    def __init__(self, context: LayerContext, shared: list[Tensor]) -> None:
        self.context, self.shared = context, shared

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, spec: AttentionSpec, **options: Any) -> Tensor:
        if k is None or v is None:
            k, v = self.shared
        else:
            self.shared[:] = k, v
        return self.context.attend(q, k, v, spec, **options)


class CachelessContext(Context, LayerContext):
    """The base of `Causal` and `Packed`: whole rows in one pass, without a cache.

    Nothing differs by layer, so the context is also the `LayerContext` of all layers, except those that share keys and
    values. packed: rows hold several documents.
    """

    packed: bool = False
    positions: Tensor  # (B or 1, T)
    documents: Tensor | None = None  # (B, T), the index of each token's document; None: a row is one document

    def clear(self) -> None:
        """Drop what the previous pass made."""
        self._shared_kv: dict[int, list[Tensor]] = {}
        self._masks: dict[Any, Tensor] = {}
        self._block_masks: dict[MaskKey, Any] = {}

    def prepare(self, x: Tensor, layers: Sequence[DecoderLayer]) -> None:
        """Make FlexAttention's block masks, and the lists through which layers share keys and values. x: (B, T, C)."""
        for key in block_mask_keys(x, layers, packed=self.packed):
            self.block_mask(*key)
        for i, layer in enumerate(layers):
            if (source := layer.config.kv_layer) is not None:
                self._shared_kv[i] = self._shared_kv.setdefault(source, [])

    def layer(self, i: int) -> LayerContext:
        """The context itself, or a wrapper for a layer that shares keys and values."""
        return SharingLayer(self, self._shared_kv[i]) if i in self._shared_kv else self

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
        assert k is not None
        assert v is not None
        has_sinks_or_slopes = any_sinks_or_slopes(sinks_and_slopes)
        if can_use_flex_attention(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes, packed=self.packed):
            return flex_attention(q, k, v, spec, self.block_mask(spec.window, spec.chunk), **sinks_and_slopes)
        return self._attend(q, k, v, spec, sinks_and_slopes)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return causal_conv(x, weight, bias, positions=self.positions if self.packed else None)

    def recur(self, rule: DeltaRule) -> Tensor:
        return rule.run(documents=self.documents)[0]

    @abstractmethod
    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks_and_slopes: SinksAndSlopes) -> Tensor:
        """`attend` where FlexAttention isn't used."""

    @abstractmethod
    def _make_block_mask(self, window: int | None, chunk: int | None) -> Any: ...

    def block_mask(self, window: int | None, chunk: int | None) -> Any:
        """FlexAttention's mask for layers with this window and chunk."""
        return cached_mask(self._block_masks, (window, chunk), lambda: self._make_block_mask(window, chunk))


def cached_mask(masks: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """masks[key], which the first layer that needs it makes and stores for the others.

    Compiled layers store nothing: storing would give the first layer a graph of its own. Making the mask in each layer
    costs little there, because the compiler fuses it into what uses it.
    """
    if key in masks:
        return masks[key]
    mask = make()
    if not torch.compiler.is_compiling():
        masks[key] = mask
    return mask


def any_sinks_or_slopes(sinks_and_slopes: Mapping[str, object]) -> bool:
    """Whether either is given; fewer attention kernels support them."""
    return sinks_and_slopes.get("sinks") is not None or sinks_and_slopes.get("slopes") is not None


def send(t: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor of any shape on `device`.

    It is pinned on its way to CUDA: the copy of a pageable tensor would wait for all work queued before it.
    """
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def visible(queries: Tensor, keys: Tensor, window: int | None, chunk: int | None = None) -> Tensor:
    """Mask (B, 1, T, S), True where a query attends to a key. queries: (B, T) and keys: (S,) are positions."""
    distance = queries[:, :, None] - keys  # (B, T, S)
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if chunk is not None:
        mask &= queries[:, :, None] // chunk == keys // chunk
    return mask[:, None]


def block_mask_keys(x: Tensor, layers: Iterable[DecoderLayer], *, packed: bool = False) -> Iterator[MaskKey]:
    """The (window, chunk) of each layer that uses `flex_attention`. x: (B, T, C). packed: rows hold several
    documents."""
    attending = [layer for layer in layers if layer.config.recurrent is None]
    distinct = {(layer.attn.spec, layer.config.head_dim, layer.config.value_dim): layer for layer in attending}
    for (spec, *sizes), layer in distinct.items():
        q, v = (x.new_empty(1).expand(1, 1, x.size(1), size) for size in sizes)
        has_sinks_or_slopes = layer.config.attention.sinks or layer.config.attention.alibi
        if packed and can_use_varlen(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes):
            continue
        if can_use_flex_attention(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes, packed=packed):
            yield spec.window, spec.chunk
