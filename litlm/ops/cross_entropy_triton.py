"""The softmax of cross-entropy as a Triton kernel, which overwrites logits with their gradient. Imported only where
Triton is installed, as it is with CUDA builds of PyTorch.

It is memory-bound. With tensor operations, going from logits to their gradient reads and writes them eight times or
more; here a program reads its row twice (the second time mostly from cache) and writes it once, in the logits' own
dtype. All arithmetic is in fp32.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from litlm.ops.cross_entropy import IGNORE

ALIGN = 64  # elements: rows that start at a multiple of it are read with the widest loads
BLOCK, WARPS = 4096, 8  # elements of a row that a program handles at once, and its warps
FLAT_BLOCK, FLAT_WARPS = 1024, 4  # likewise for elementwise kernels: eight neighbors per thread

_IGNORE = tl.constexpr(IGNORE)


@triton.jit
def _final_logits(x, scale, softcap, CAPPED: tl.constexpr):
    x = x.to(tl.float32) * scale
    if CAPPED:
        t = tl.exp(-2 * tl.abs(x / softcap))  # tanh |x| = (1 - t) / (1 + t) never overflows
        capped = softcap * (1 - t) / (1 + t)
        x = tl.where(x < 0, -capped, capped)
    return x


@triton.jit
def _softmax_gradient(
    logits, targets, losses, V, stride, scale, softcap,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Loads and stores include the padding after a row: `stride`, unlike V, is a multiple of the vector loads' width.
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
        # Read before anything is overwritten. A target outside the vocabulary reads nothing and makes the loss NaN.
        is_token = (target >= 0) & (target < V)
        target_logit = _final_logits(
            tl.load(logits + target, mask=is_token, other=float("nan")), scale, softcap, CAPPED
        )
        maximum = tl.full((), -1e38, tl.float32)
        sums = tl.zeros((BLOCK,), tl.float32)  # of exp(x - maximum), per lane
        for i in range(n_blocks):
            at = i * BLOCK + lanes
            x = tl.load(logits + at, mask=at < stride, other=0.0, eviction_policy="evict_last")
            x = tl.where(at < V, _final_logits(x, scale, softcap, CAPPED), -float("inf"))
            higher = tl.maximum(maximum, tl.max(x))
            sums = sums * tl.exp(maximum - higher) + tl.exp(x - higher)
            maximum = higher
        log_norm = maximum + tl.log(tl.sum(sums))
        tl.store(losses + row, log_norm - target_logit)
        if GRADIENT:
            for back in range(n_blocks):  # backwards: what was read last is most likely in the cache
                at = (n_blocks - 1 - back) * BLOCK + lanes
                x = tl.load(logits + at, mask=at < stride, other=0.0, eviction_policy="evict_first")
                x = tl.where(at < V, _final_logits(x, scale, softcap, CAPPED), -float("inf"))
                grad = tl.exp(x - log_norm) - tl.where(at == target, 1.0, 0.0)
                if CAPPED:
                    tanh = tl.where(at < V, x / softcap, 0.0)
                    grad *= 1 - tanh * tanh
                tl.store(logits + at, (grad * scale).to(logits.dtype.element_ty), mask=at < stride)


def softmax_gradient_(
    logits: Tensor, targets: Tensor, losses: Tensor, *, scale: float, softcap: float | None, gradient: bool
) -> None:
    """Write each row's cross-entropy into `losses` (N,), fp32, and overwrite the logits by its gradient if `gradient`.

    logits: (N, V) before `scale` and `softcap`, each row contiguous; what lies between rows is overwritten too.
    targets: (N,); with IGNORE, loss and gradient are 0.
    """
    N, V = logits.shape
    assert logits.stride(1) == 1
    assert logits.stride(0) >= V
    assert targets.is_contiguous()
    assert losses.is_contiguous()
    block = min(BLOCK, triton.next_power_of_2(V))
    launch: Any = _softmax_gradient
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
    """x times a scalar tensor on the device, in `dtype`; PyTorch's own product of these is slow."""
    assert x.is_contiguous()
    out = torch.empty_like(x, dtype=dtype)
    launch: Any = _scale
    with torch.cuda.device_of(x):
        launch[(triton.cdiv(x.numel(), FLAT_BLOCK),)](
            x, out, factor, x.numel(), BLOCK=FLAT_BLOCK, num_warps=FLAT_WARPS, enable_fp_fusion=True
        )
    return out
