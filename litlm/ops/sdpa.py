"""Scaled dot-product attention: PyTorch's fused kernels where they support what a layer has, plain products elsewhere.

They don't support softcap or sinks, nor ALiBi in half precision; for these, long rows on CUDA use FlexAttention.
Packed rows use flash attention's kernel for sequences of different lengths.

Shapes: B batch, T query length, S key length, H heads, K kv heads, D size of a query or key, E size of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MAX_SCORES = 2**27  # scores that plain products hold at a time, unless gradients are needed


@dataclass(frozen=True)
class AttentionSpec:
    """How one layer attends: its numbers; its tensors are `SinksAndSlopes`.

    window: a query attends to the last `window` tokens, itself included. chunk: rows are cut into chunks of this many
    tokens, and a query attends within its own. With neither: to all tokens up to itself. scale: factor of the scores;
    None: D ** -0.5. softcap: scores become softcap * tanh(score / softcap).
    """

    window: int | None = None
    chunk: int | None = None
    scale: float | None = None
    softcap: float | None = None

    def is_full(self, length: int) -> bool:
        """Whether neither window nor chunk hides anything in a row of `length` tokens."""
        return min(self.window or length, self.chunk or length) >= length

    def first_visible(self, position: int) -> int:
        """The first position that a query at `position` attends to."""
        after_window = 0 if self.window is None else position + 1 - self.window
        return max(after_window, 0 if self.chunk is None else position // self.chunk * self.chunk, 0)


class SinksAndSlopes(TypedDict, total=False):
    """The per-head tensors of `attention`, where a layer has them: attention sinks, ALiBi's slopes."""

    sinks: Tensor | None
    slopes: Tensor | None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k' + mask) v. q: (B, H, T, D); k: (B, K, S, D); v: (B, K, S, E) -> (B, H, T, E).

    mask: (B or 1, 1, T or 1, S), True where a key is visible, or floats to add; it must include the spec's window and
    chunk, which are not applied here. causal: query t sees keys up to t (T = S, no mask). sinks: (H,), one more score
    in each softmax, without a value (gpt-oss). slopes: (H,), ALiBi (Press et al. 2021): slope * position of the key is
    added to the score. (Without sinks it is the same as subtracting slope * distance: a softmax ignores what all its
    scores share.)
    """
    plain = spec.softcap is None and sinks is None
    if slopes is not None and plain and q.dtype == torch.float32:
        # As an additive mask, which the fused kernels support; half precision would round it too much.
        bias = slopes.view(1, -1, 1, 1) * torch.arange(k.size(2), dtype=torch.float32, device=k.device)
        if causal:
            mask = _causal_mask(q, k)
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
        mask, causal, slopes = bias, False, None
    if plain and slopes is None:
        grouped = q.size(1) != k.size(1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=spec.scale, enable_gqa=grouped
        )
    if causal:
        mask = _causal_mask(q, k)
    rows = max(1, _MAX_SCORES // (q.size(0) * q.size(1) * k.size(2)))
    if rows >= q.size(2) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _math_attention(q, k, v, spec, mask, sinks=sinks, slopes=slopes)
    queries = q.split(rows, dim=2)
    masks = [mask] * len(queries) if mask is None or mask.size(2) == 1 else mask.split(rows, dim=2)
    parts = zip(queries, masks, strict=True)
    return torch.cat([_math_attention(part, k, v, spec, m, sinks=sinks, slopes=slopes) for part, m in parts], 2)


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(1, 1, T, S)"""
    return torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()[None, None]


def _math_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    **sinks_and_slopes: Unpack[SinksAndSlopes],
) -> Tensor:
    """`attention` as plain products, all scores at once."""
    sinks, slopes = sinks_and_slopes.get("sinks"), sinks_and_slopes.get("slopes")
    (B, H, T, D), K = q.shape, k.size(1)
    q = q.reshape(B, K, H // K, T, D)
    scale = D**-0.5 if spec.scale is None else spec.scale
    scores = (q @ k[:, :, None].transpose(-1, -2)) * scale  # (B, K, H / K, T, S)
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if slopes is not None:
        positions = torch.arange(k.size(2), dtype=torch.float32, device=k.device)
        scores = scores.float() + slopes.view(1, K, H // K, 1, 1) * positions
    if mask is not None:
        mask = mask[:, :, None]  # (B, 1, 1, T, S)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks.view(1, K, H // K, 1, 1).expand(B, -1, -1, T, 1).to(scores.dtype)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return (weights @ v[:, :, None]).reshape(B, H, T, v.size(-1))


def alibi_slopes(n_head: int, device: torch.device) -> Tensor:
    """(H,) in fp32: 2 ** (-8 i / n) with i = 1, ..., n for the first n heads, n the largest power of 2 up to H; for the
    others the values between these, i = 0.5, 1.5, ... (Press et al. 2021; transformers modeling_bloom.py)."""
    n = 2 ** (n_head.bit_length() - 1)
    exponents = [8 * (i + 1) / n for i in range(n)] + [4 * (2 * i + 1) / n for i in range(n_head - n)]
    return torch.tensor([2.0**-x for x in exponents], dtype=torch.float32, device=device)


# --- flash attention for sequences of different lengths --------------------------------------------------------------


def can_use_varlen(q: Tensor, v: Tensor, spec: AttentionSpec, *, has_sinks_or_slopes: bool) -> bool:
    """Whether flash attention supports this: CUDA (Ampere or newer), half precision, a head size that it has, and no
    chunks, softcap, sinks or slopes. q: (B, H, T, D); v: (B, K, T, E)."""
    plain = spec.chunk is None and spec.softcap is None and not has_sinks_or_slopes
    sizes = q.size(3) == v.size(3) <= 256 and q.size(3) % 8 == 0
    half = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    return plain and sizes and half and torch.cuda.get_device_properties(q.device).major >= 8


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """Causal `attention` within each document, all rows taken as one long sequence.

    q: (B, H, T, D); k, v: (B, K, T, D) -> (B, H, T, D). cu_seqlens: int32, 0 and the end of each document in that
    sequence. max_seqlen: at least the longest document's length.
    """
    from torch.nn.attention.varlen import varlen_attn

    window = (-1 if spec.window is None else spec.window - 1, 0)
    options: dict[str, Any] = dict(scale=spec.scale, window_size=window)
    if _varlen_has_gqa():
        options["enable_gqa"] = q.size(1) != k.size(1)
    elif q.size(1) != k.size(1):
        k, v = (t.repeat_interleave(q.size(1) // k.size(1), dim=1) for t in (k, v))
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]  # (B T, H, D)
    y = varlen_attn(flat[0], flat[1], flat[2], cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    assert isinstance(y, Tensor)
    return y.view(q.size(0), q.size(2), q.size(1), -1).transpose(1, 2)


def _varlen_has_gqa() -> bool:
    """Whether this PyTorch's kernel supports fewer kv heads than heads (2.12 does)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in (varlen_attn.__kwdefaults__ or {})  # not cached: the compiler warns about caches


# --- FlexAttention (Dong et al. 2024) --------------------------------------------------------------------------------


def can_use_flex_attention(
    q: Tensor, v: Tensor, spec: AttentionSpec, *, has_sinks_or_slopes: bool, packed: bool = False
) -> bool:
    """Whether to use `flex_attention`: for what `attention` has no fused kernel for, on CUDA in half precision, with
    rows of 128 tokens or more and heads of 64, 128 or 256.

    q: (B, H, T, D); v: (B, K, T, E). packed: rows hold several documents, which also need it unless `can_use_varlen`.
    """
    special = packed or has_sinks_or_slopes or spec.softcap is not None
    sizes = {q.size(3), v.size(3)}
    return special and q.is_cuda and q.dtype != torch.float32 and q.size(2) >= 128 and sizes <= {64, 128, 256}


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, block_mask: Any, **sinks_and_slopes: Unpack[SinksAndSlopes]
) -> Tensor:
    """`attention` of whole rows (T = S) by FlexAttention (Dong et al. 2024).

    q: (B, H, T, D); k, v: (B, K, T, D) -> (B, H, T, D). block_mask: from `make_block_mask`, called outside of compiled
    layers (docs/decisions.md says why).
    """

    def scalar(value: float | None) -> Tensor | None:
        # A tensor: if a plain number changes between calls, the compiler makes it an input of the kernel and fails.
        return None if value is None else torch.full((1,), value, device=q.device)

    sinks, slopes = sinks_and_slopes.get("sinks"), sinks_and_slopes.get("slopes")
    default = q.size(3) ** -0.5
    factor = scalar(None if spec.scale is None or spec.scale == default else spec.scale / default)
    score_mod = _score_mod(factor, scalar(spec.softcap), slopes)
    options: dict[str, Any] = dict(score_mod=score_mod, block_mask=block_mask, enable_gqa=q.size(1) != k.size(1))
    kernel = _flex_kernel()
    if sinks is None:
        return kernel(q, k, v, **options)
    y, log_sum = kernel(q, k, v, return_lse=True, **options)
    # A sink is one more term in the softmax's denominator, so it scales down the whole output.
    return (y * torch.sigmoid(log_sum - sinks.float().view(1, -1, 1))[..., None]).to(q.dtype)


def _score_mod(
    factor: Tensor | None, cap: Tensor | None, slopes: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """FlexAttention's function of a score, None if it would change nothing. factor, cap: (1,); slopes: (H,)."""
    if factor is None and cap is None and slopes is None:
        return None

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if factor is not None:
            score = score * factor[0]
        if cap is not None:
            score = cap[0] * torch.tanh(score / cap[0])
        return score if slopes is None else score + slopes[head] * (key - query)

    return score_mod


_BLOCK = 128  # queries and keys in a block, FlexAttention's default
# Each combination of window, cap and sinks compiles a kernel; past its limit the compiler silently falls back to eager.
_KERNELS = 64


def make_block_mask(
    length: int, window: int | None, chunk: int | None, device: torch.device, document: Tensor | None = None
) -> Any:
    """FlexAttention's BlockMask for rows of `length` tokens: causal, within a window or chunk, and within documents.

    document: (B, T), the index of each token's document, rising along a row. `create_block_mask` would hold a mask of
    length x length. Here the first and last tokens of two blocks decide whether their pair is skipped, visible as a
    whole, or masked token by token in the kernel.
    """
    from torch.nn.attention.flex_attention import BlockMask

    segment = document
    if chunk is not None:
        index = torch.arange(length, device=device)[None]
        inside = (index if document is None else index - _document_starts(document)) // chunk
        segment = inside if document is None else document * length + inside

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mask = query >= key
        if window is not None:
            mask = mask & (query - key < window)
        if segment is not None:
            row = batch if document is not None else 0
            mask = mask & (segment[row, query] == segment[row, key])
        return mask

    n = -(-length // _BLOCK)
    apart = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)  # (n, n): in blocks
    partial_blocks, full_blocks = (apart >= 0)[None], (apart > 0)[None]
    if window is not None:
        partial_blocks = partial_blocks & (apart * _BLOCK - (_BLOCK - 1) < window)
        full_blocks = full_blocks & (apart * _BLOCK + (_BLOCK - 1) < window)
    if segment is not None:
        last = torch.arange(1, n + 1, device=device).mul_(_BLOCK).clamp_(max=length) - 1
        low, high = segment[:, ::_BLOCK], segment[:, last]  # (B, n), the first and the last segment in a block
        partial_blocks = partial_blocks & (high[:, None] >= low[:, :, None])
        full_blocks = full_blocks & (low[:, None] == high[:, :, None])
    true_first = partial(torch.argsort, dim=-1, descending=True, stable=True)
    listed = [t for b in (partial_blocks & ~full_blocks, full_blocks) for t in (b.sum(-1), true_first(b.byte()))]
    counts_and_indices = [t.int()[:, None] for t in listed]  # (B or 1, 1, ...), one mask for all heads
    return BlockMask.from_kv_blocks(
        *counts_and_indices, BLOCK_SIZE=_BLOCK, mask_mod=mask_mod, seq_lengths=(length, length)
    )


def _document_starts(document: Tensor) -> Tensor:
    """(B, T): the start of each token's document in its row. document: (B, T)."""
    index = torch.arange(document.size(1), device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values


# For rows of one document each. Masks of packed documents differ from batch to batch, so they are not cached.
cached_block_mask = lru_cache(maxsize=32)(make_block_mask)


def _flex_kernel() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention as kernel

    return kernel if torch.compiler.is_compiling() else _compiled_flex_kernel()


@cache
def _compiled_flex_kernel() -> Callable[..., Any]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention as kernel

    config, compiled = torch._dynamo.config, torch.compile(kernel)

    def run(*args: Any, **options: Any) -> Any:
        with nullcontext() if config.recompile_limit >= _KERNELS else config.patch(recompile_limit=_KERNELS):
            return compiled(*args, **options)

    return run
