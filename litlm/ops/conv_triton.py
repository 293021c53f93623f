"""One token of the causal depthwise convolution in one Triton kernel, for decoding on CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _conv_step(x, before, weight, bias, out, C, W: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    b, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    new = tl.load(x + b * C + c, inside, 0.0)
    total = new.to(tl.float32) * tl.load(weight + c * W + W - 1, inside, 0.0).to(tl.float32)
    for w in tl.static_range(W - 1):  # pyright: ignore[reportGeneralTypeIssues]
        old = tl.load(before + (b * (W - 1) + w) * C + c, inside, 0.0)
        total += old.to(tl.float32) * tl.load(weight + c * W + w, inside, 0.0).to(tl.float32)
        if w > 0:
            tl.store(before + (b * (W - 1) + w - 1) * C + c, old, inside)
    tl.store(before + (b * (W - 1) + W - 2) * C + c, new, inside)
    if HAS_BIAS:
        total += tl.load(bias + c, inside, 0.0).to(tl.float32)
    tl.store(out + b * C + c, total, inside)


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor) -> Tensor:
    """`ops.conv.conv_step` on CUDA: x (B, 1, C), weight (C, W), bias (C,), before (B, W - 1, C) -> (B, 1, C)."""
    (B, _, C), W, x, out = x.shape, weight.size(1), x.contiguous(), torch.empty_like(x)
    options = dict(W=W, HAS_BIAS=bias is not None, BLOCK=256)
    _conv_step[(B, triton.cdiv(C, 256))](x, before, weight, weight if bias is None else bias, out, C, **options)  # type: ignore[index]
    return out
