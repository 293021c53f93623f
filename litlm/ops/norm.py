"""RMSNorm (Zhang & Sennrich 2019) in forms that PyTorch lacks: weights stored as differences from 1, gated results."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

_HAS_TRITON = find_spec("triton") is not None


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    round_first: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """x / rms(x) * weight * silu(gate) over the last dimension in fp32, rounded at the end: (..., D) -> (..., D).

    weight: (D,). offset: it is stored as its difference from 1. round_first: x / rms(x) is rounded to x's dtype before
    the weight is applied, and so is the product. gate: (..., D); None: there is none.
    """
    if type(x) is Tensor and runs_fused(x):
        from litlm.ops.norm_triton import rms_norm as fused

        return fused(x, weight, eps, offset, round_first, gate)
    wide, shape = x.float(), x.shape[-1:]
    if round_first:
        y = weight * F.rms_norm(wide, shape, None, eps).to(x.dtype)
    else:  # in fp32: in bf16, 1 + weight would lose most of the weight's digits
        y = F.rms_norm(wide, shape, 1 + weight.float() if offset else weight.float(), eps)
    return (y if gate is None else y * F.silu(gate.float())).to(x.dtype)


def runs_fused(x: Tensor) -> bool:
    """Whether one Triton kernel replaces PyTorch's several: on CUDA, without gradients, in code that isn't compiled.

    Decoding is bound by kernel launches, not by arithmetic.
    """
    return x.is_cuda and _HAS_TRITON and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
