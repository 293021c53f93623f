"""The RMSNorms (Zhang & Sennrich 2019) of `ops.norm` in one kernel, for passes without gradients on CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm(x, weight, gate, out, D, eps, OFFSET: tl.constexpr, ROUND_FIRST: tl.constexpr, GATED: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64) * D, tl.arange(0, BLOCK)
    inside = d < D
    value = tl.load(x + row + d, inside, 0.0).to(tl.float32)
    w = tl.load(weight + d, inside, 0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / D + eps)
    if ROUND_FIRST:
        value = (value.to(out.dtype.element_ty).to(tl.float32) * w).to(out.dtype.element_ty).to(tl.float32)
    elif OFFSET:
        value *= 1.0 + w
    else:
        value *= w
    if GATED:
        g = tl.load(gate + row + d, inside, 0.0).to(tl.float32)
        value *= g * tl.sigmoid(g)
    tl.store(out + row + d, value.to(out.dtype.element_ty), inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: bool, round_first: bool, gate: Tensor | None) -> Tensor:
    """`ops.norm.rms_norm` of x (..., D) on CUDA -> (..., D)"""
    x, D, out = x.contiguous(), x.size(-1), torch.empty_like(x, memory_format=torch.contiguous_format)
    block, gates = triton.next_power_of_2(D), x if gate is None else gate.contiguous()
    warps = min(max(block // 256, 1), 16)
    if x.numel():
        _rms_norm[(x.numel() // D,)](x, weight, gates, out, D, eps, OFFSET=offset, ROUND_FIRST=round_first,
                                     GATED=gate is not None, BLOCK=block, num_warps=warps)  # type: ignore[index]  # fmt: skip
    return out
