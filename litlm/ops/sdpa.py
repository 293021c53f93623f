"""Softmax attention: PyTorch's fused kernel where it does what is asked, plain products elsewhere, and for long rows on
CUDA a kernel made by the compiler (FlexAttention), because capped scores, sinks and ALiBi have no fused one.

Shapes: B batch, T query length, S key length, H heads, K kv heads, D size of a query or key, E size of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**27  # scores held at once where no gradient is wanted


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k' + mask) v. q: (B, H, T, D); k: (B, K, S, D); v: (B, K, S, E) -> (B, H, T, E).

    mask: (B or 1, 1, T, S), True where a key is seen, or floats to add. causal: query t sees keys up to t (T = S, no
    mask). softcap: scores become cap * tanh(score / cap). sinks: (H,), a score more in each softmax, without a value.
    slopes: (H,), ALiBi; a key's score grows with its place by its head's slope. (Falling with the distance is the same
    to a softmax without sinks.)
    """
    if slopes is not None and softcap is None and sinks is None and q.dtype == torch.float32:
        # As numbers to add, which the fused kernel takes (half precision would round them).
        bias = slopes.view(1, -1, 1, 1) * torch.arange(k.size(2), dtype=torch.float32, device=k.device)
        seen = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril() if causal else mask
        if seen is not None:
            bias = bias.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else bias + seen
        mask, causal, slopes = bias, False, None
    if softcap is None and sinks is None and slopes is None:
        grouped = q.size(1) != k.size(1)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    if causal:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()[None, None]
    softmax: dict[str, Any] = dict(scale=scale, softcap=softcap, sinks=sinks, slopes=slopes)
    rows = max(1, _AT_ONCE // (q.size(0) * q.size(1) * k.size(2)))
    if rows >= q.size(2) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _plain(q, k, v, mask, **softmax)
    masks = [None] * -(-q.size(2) // rows) if mask is None else mask.split(rows, dim=2)
    return torch.cat([_plain(part, k, v, m, **softmax) for part, m in zip(q.split(rows, dim=2), masks, strict=True)], 2)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    slopes: Tensor | None,
) -> Tensor:
    B, H, T, D = q.shape
    K = k.size(1)
    q = q.reshape(B, K, H // K, T, D)
    scores = (q @ k[:, :, None].transpose(-1, -2)) * (D**-0.5 if scale is None else scale)  # (B, K, H / K, T, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if slopes is not None:
        places = torch.arange(k.size(2), dtype=torch.float32, device=k.device)
        scores = scores.float() + slopes.view(1, K, H // K, 1, 1) * places
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
    """(H,): 2 ** (-8 i / n), i from 1, for the n = 2 ** m first heads; the others have the values between these."""
    n = 2 ** (n_head.bit_length() - 1)
    exponents = [8 * (i + 1) / n for i in range(n)] + [4 * (2 * i + 1) / n for i in range(n_head - n)]
    return torch.tensor([2.0**-x for x in exponents], device=device)


def varlen_fits(q: Tensor, v: Tensor, softmax: Mapping[str, Any], chunk: int | None) -> bool:
    """Whether `varlen_attention` can do it: on CUDA from Ampere on, in half precision, plain softmax, heads of a size
    that flash attention takes."""
    plain = chunk is None and all(softmax.get(key) is None for key in ("softcap", "sinks", "slopes"))
    sizes = q.size(3) == v.size(3) <= 256 and q.size(3) % 8 == 0
    half = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    return plain and sizes and half and torch.cuda.get_device_properties(q.device).major >= 8


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, *, window: int | None, scale: float | None
) -> Tensor:
    """Causal `attention` within documents, which end at `ends` (0 first, int32) of all rows laid end to end."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = dict(scale=scale, window_size=(-1 if window is None else window - 1, 0))
    if _varlen_groups():
        options["enable_gqa"] = q.size(1) != k.size(1)
    elif q.size(1) != k.size(1):
        k, v = (t.repeat_interleave(q.size(1) // k.size(1), dim=1) for t in (k, v))
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]  # (B T, H, D)
    y = varlen_attn(flat[0], flat[1], flat[2], ends, ends, longest, longest, **options)
    assert isinstance(y, Tensor)
    return y.view(q.size(0), q.size(2), q.size(1), -1).transpose(1, 2)


def _varlen_groups() -> bool:
    """Whether this PyTorch's kernel takes fewer kv heads than heads (2.12)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in (varlen_attn.__kwdefaults__ or {})  # not kept: the compiler warns of caches


def fused_fits(q: Tensor, v: Tensor, softmax: Mapping[str, Any], *, document: bool = False) -> bool:
    """Whether `fused_attention` is the better way: on CUDA, in half precision, for rows of some length.

    document: rows hold several, for which plain softmax has no other fused kernel either.
    """
    special = document or any(softmax.get(key) is not None for key in ("softcap", "sinks", "slopes"))
    sizes = {q.size(3), v.size(3)}
    return special and q.is_cuda and q.dtype != torch.float32 and q.size(2) >= 128 and sizes <= {64, 128, 256}


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Any,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """`attention` of rows with nothing before them (T = S) by FlexAttention. blocks: which keys each query sees, from
    `block_mask`. It is made outside of compiled layers: see docs/decisions.md.
    """

    def number(value: float | None) -> Tensor | None:
        # As a tensor: where a plain number differs from the last call's, the compiler makes it an input, and fails.
        return None if value is None else torch.full((1,), value, device=q.device)

    usual = q.size(3) ** -0.5
    more = number(None if scale is None or scale == usual else scale / usual)
    change = _score_change(more, number(softcap), slopes)
    options: dict[str, Any] = dict(score_mod=change, block_mask=blocks, enable_gqa=q.size(1) != k.size(1))
    flex = _flex()
    if sinks is None:
        return flex(q, k, v, **options)
    y, log_sum = flex(q, k, v, return_lse=True, **options)
    # One more term in the sum: what it takes from all others.
    return (y * torch.sigmoid(log_sum - sinks.float().view(1, -1, 1))[..., None]).to(q.dtype)


def _score_change(
    more: Tensor | None, cap: Tensor | None, slopes: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    if more is None and cap is None and slopes is None:
        return None

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if more is not None:
            score = score * more[0]
        if cap is not None:
            score = cap[0] * torch.tanh(score / cap[0])
        return score if slopes is None else score + slopes[head] * (key - query)

    return change


_BLOCK = 128  # queries and keys in a block, FlexAttention's default


def block_mask(
    length: int, window: int | None, chunk: int | None, device: torch.device, document: Tensor | None = None
) -> Any:
    """FlexAttention's BlockMask for rows of `length` tokens: a query sees itself and what is before it, within its
    `window` or `chunk`, and with document (B, T), numbers that rise along a row, within its own.

    `create_block_mask` would hold a tensor of length x length. Here a pair of blocks is judged by its ends: left out,
    seen whole, or else looked at pair by pair in the kernel.
    """
    from torch.nn.attention.flex_attention import BlockMask

    part = document
    if chunk is not None:
        at = torch.arange(length, device=device)[None]
        inside = (at if document is None else at - _first_of(document)) // chunk
        part = inside if document is None else document * length + inside

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mask = query >= key
        if window is not None:
            mask = mask & (query - key < window)
        if part is not None:
            row = batch if document is not None else 0
            mask = mask & (part[row, query] == part[row, key])
        return mask

    n = -(-length // _BLOCK)
    apart = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)  # (n, n), queries' less keys'
    some, whole = (apart >= 0)[None], (apart > 0)[None]
    if window is not None:
        some = some & (apart * _BLOCK - (_BLOCK - 1) < window)
        whole = whole & (apart * _BLOCK + (_BLOCK - 1) < window)
    if part is not None:
        last = torch.arange(1, n + 1, device=device).mul_(_BLOCK).clamp_(max=length) - 1
        low, high = part[:, ::_BLOCK], part[:, last]  # (B, n), the first and the last part in a block
        some = some & (high[:, None] >= low[:, :, None])
        whole = whole & (low[:, None] == high[:, :, None])
    first_ones = partial(torch.argsort, dim=-1, descending=True, stable=True)
    listed = [t for blocks in (some & ~whole, whole) for t in (blocks.sum(-1), first_ones(blocks.byte()))]
    numbers = [t.int()[:, None] for t in listed]  # a head's worth
    return BlockMask.from_kv_blocks(*numbers, BLOCK_SIZE=_BLOCK, mask_mod=seen, seq_lengths=(length, length))


def _first_of(document: Tensor) -> Tensor:
    """(B, T): where the document that each token is part of begins."""
    at = torch.arange(document.size(1), device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return torch.where(begins, at, 0).cummax(dim=1).values


kept_block_mask = lru_cache(maxsize=32)(block_mask)


def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Callable[..., Any]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # Windows, caps and sinks each make a kernel of their own; past the limit the compiler would give up in silence.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention)
