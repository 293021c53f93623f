"""What is limited by memory, as Triton kernels: the cross-entropy's softmax, AdamW in mixed precision, scaling.

Only imported where Triton is there, which comes with CUDA. Written with tensor operations, the way from logits to their
gradient reads and writes all of them eight times or more. Here a program takes a row, reads it twice (the second time
mostly from cache) and writes it once, in the logits' own dtype. AdamW reads and writes everything once. All arithmetic
is in fp32.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from litlm.data.base import IGNORE

ALIGN = 64  # elements: rows that start at a multiple of it are read in the widest pieces
BLOCK, WARPS = 4096, 8  # how much of a row a program works on at once, and by how many threads
FLAT_BLOCK, FLAT_WARPS = 1024, 4  # likewise, where all elements are alike: eight neighbours for each thread

_IGNORE = tl.constexpr(IGNORE)


@triton.jit
def _finish(x, scale, softcap, CAPPED: tl.constexpr):
    x = x.to(tl.float32) * scale
    if CAPPED:
        t = tl.exp(-2 * tl.abs(x / softcap))  # tanh |x| = (1 - t) / (1 + t) never overflows
        bent = softcap * (1 - t) / (1 + t)
        x = tl.where(x < 0, -bent, bent)
    return x


@triton.jit
def _row(
    logits,
    targets,
    losses,
    V,
    stride,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Loads and stores take in the padding behind a row too: its width, unlike V, is a multiple of a vector's.
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    lanes = tl.arange(0, BLOCK)
    n_blocks = tl.cdiv(V, BLOCK)
    if target == _IGNORE:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            for i in range(n_blocks):
                at = i * BLOCK + lanes
                tl.store(logits + at, tl.zeros((BLOCK,), logits.dtype.element_ty), mask=at < stride)
    else:
        # Read before anything is overwritten. A target that is no token makes the loss NaN, and reads nothing.
        is_token = (target >= 0) & (target < V)
        chosen = _finish(tl.load(logits + target, mask=is_token, other=float("nan")), scale, softcap, CAPPED)
        top = tl.full((), -1e38, tl.float32)
        sums = tl.zeros((BLOCK,), tl.float32)  # of exp(x - top), for each lane
        for i in range(n_blocks):
            at = i * BLOCK + lanes
            x = tl.load(logits + at, mask=at < stride, other=0.0, eviction_policy="evict_last")
            x = tl.where(at < V, _finish(x, scale, softcap, CAPPED), -float("inf"))
            higher = tl.maximum(top, tl.max(x))
            sums = sums * tl.exp(top - higher) + tl.exp(x - higher)
            top = higher
        log_norm = top + tl.log(tl.sum(sums))
        tl.store(losses + row, log_norm - chosen)
        if GRADIENT:
            for back in range(n_blocks):  # what was read last is most likely in the cache
                at = (n_blocks - 1 - back) * BLOCK + lanes
                x = tl.load(logits + at, mask=at < stride, other=0.0, eviction_policy="evict_first")
                x = tl.where(at < V, _finish(x, scale, softcap, CAPPED), -float("inf"))
                grad = tl.exp(x - log_norm) - tl.where(at == target, 1.0, 0.0)
                if CAPPED:
                    bent = tl.where(at < V, x / softcap, 0.0)
                    grad *= 1 - bent * bent
                tl.store(logits + at, (grad * scale).to(logits.dtype.element_ty), mask=at < stride)


def softmax_gradient_(
    logits: Tensor, targets: Tensor, losses: Tensor, *, scale: float, softcap: float | None, gradient: bool
) -> None:
    """Write the cross-entropy of each row into `losses` (N,), fp32, and with `gradient` the gradient over `logits`.

    logits: (N, V) before `scale` and `softcap`, a row's elements side by side; what lies between the rows is written
    over. targets: (N,); where there is none (IGNORE), loss and gradient are 0.
    """
    N, V = logits.shape
    assert logits.stride(1) == 1
    assert logits.stride(0) >= V
    assert targets.is_contiguous()
    assert losses.is_contiguous()
    block = min(BLOCK, triton.next_power_of_2(V))
    launch: Any = _row
    with torch.cuda.device_of(logits):
        launch[(N,)](
            logits, targets, losses, V, logits.stride(0), float(scale), float(softcap or 1.0),
            CAPPED=softcap is not None, GRADIENT=gradient, BLOCK=block,
            num_warps=max(1, min(WARPS, block // 256)), enable_fp_fusion=True,  # the default, of which Triton 3.9 warns
        )  # fmt: skip


@triton.jit
def _scale(x, out, factor, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scaled = tl.load(x + at, mask=at < n).to(tl.float32) * tl.load(factor)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=at < n)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x times a number on the device, in `dtype`. PyTorch's own product of a tensor and such a number is slow."""
    assert x.is_contiguous()
    out = torch.empty_like(x, dtype=dtype)
    launch: Any = _scale
    with torch.cuda.device_of(x):
        launch[(triton.cdiv(x.numel(), FLAT_BLOCK),)](
            x, out, factor, x.numel(), BLOCK=FLAT_BLOCK, num_warps=FLAT_WARPS, enable_fp_fusion=True
        )
    return out


@triton.jit(do_not_specialize=["i"])
def _adamw(
    weights, gradients, means, squares, rounded, rates, i, n, factor, found_inf, decay, rest1, rest2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
    if factor is not None:
        g *= tl.load(factor)
    p = tl.load(weights + at, mask=inside, other=0.0)
    m = tl.load(means + at, mask=inside, other=0.0)
    v = tl.load(squares + at, mask=inside, other=0.0)
    # Written with 1 - beta: in fp32 beta itself is off by enough to show in what is left of a thousand steps.
    m = m - rest1 * m + rest1 * g
    v = v - rest2 * v + rest2 * g * g
    p -= decay * p
    p -= tl.load(rates + 2 * i) * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), tl.load(rates + 2 * i + 1)) + eps)
    tl.store(weights + at, p, mask=inside)
    tl.store(means + at, m, mask=inside)
    tl.store(squares + at, v, mask=inside)
    if rounded is not None:
        tl.store(rounded + at, p.to(rounded.dtype.element_ty), mask=inside)


def adamw_(
    params: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    rounded: list[Tensor | None],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    factor: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """A step of AdamW, as torch's fused one does it, of contiguous fp32 parameters on one device.

    gradients: fp32 or less, each multiplied by `factor`. steps: how often each parameter was updated, counted up here.
    rounded: what else each new parameter is written into. Where found_inf is 1, nothing changes. The host waits for
    none of it.
    """
    count: Any = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
    # As a list: a lone tensor would be read as a number, for which the host waits.
    count(steps, [torch.ones_like(steps[0]) if found_inf is None else 1 - found_inf] * len(steps))
    t = torch.stack(steps).double()
    rest = [-torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t) for beta in betas]
    rates = torch.stack([lr / rest[0], rest[1].sqrt()], 1).float()
    rest1, rest2, decay = float(1 - betas[0]), float(1 - betas[1]), float(lr * weight_decay)
    launch: Any = _adamw
    with torch.cuda.device_of(rates):
        for i, (p, g, m, v, low) in enumerate(zip(params, gradients, means, squares, rounded, strict=True)):
            assert all(x is None or (x.is_contiguous() and x.shape == p.shape) for x in (p, g, m, v, low))
            assert p.dtype == m.dtype == v.dtype == torch.float32
            n = p.numel()
            if n:
                launch[(triton.cdiv(n, FLAT_BLOCK),)](
                    p, g, m, v, low, rates, i, n, factor, found_inf, decay, rest1, rest2, float(eps),
                    BLOCK=FLAT_BLOCK, num_warps=FLAT_WARPS, enable_fp_fusion=True,
                )  # fmt: skip
