"""The softmax of the cross-entropy as one Triton kernel. Only imported where Triton is there, which comes with CUDA.

Written with tensor operations, the way from logits to their gradient reads and writes all of them eight times or more.
Here a program takes a row, reads it twice (the second time mostly from cache) and writes it once, in the logits' own
dtype, with all arithmetic in fp32.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from litlm.data.base import IGNORE

ALIGN = 64  # elements: rows that start at a multiple of it are read in the widest pieces
BLOCK, WARPS = 8192, 16  # how much of a row a program works on at once, and by how many threads
BY_LANE = False  # a maximum for each lane, not one for all: no waiting for each other, but twice the exponentials

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
    BY_LANE: tl.constexpr,
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
        top = tl.full((BLOCK,) if BY_LANE else (), -1e38, tl.float32)  # not -inf, for lanes that see no token
        sums = tl.zeros((BLOCK,), tl.float32)  # of exp(x - top), for each lane
        for i in range(n_blocks):
            at = i * BLOCK + lanes
            x = tl.load(logits + at, mask=at < stride, other=0.0, eviction_policy="evict_last")
            x = tl.where(at < V, _finish(x, scale, softcap, CAPPED), -float("inf"))
            higher = tl.maximum(top, x if BY_LANE else tl.max(x))
            sums = sums * tl.exp(top - higher) + tl.exp(x - higher)
            top = higher
        if BY_LANE:
            highest = tl.max(top)
            log_norm = highest + tl.log(tl.sum(sums * tl.exp(top - highest)))
        else:
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
            CAPPED=softcap is not None, GRADIENT=gradient, BY_LANE=BY_LANE, BLOCK=block,
            num_warps=max(1, min(WARPS, block // 256)), enable_fp_fusion=True,  # the default, of which Triton 3.9 warns
        )  # fmt: skip
