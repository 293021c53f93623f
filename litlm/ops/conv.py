"""Causal depthwise convolution over a few tokens: the "short convolution" of recurrent layers (transformers
modeling_lfm2.py).

Shapes: B batch, T tokens, C channels, W the kernel's width.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_HAS_TRITON = find_spec("triton") is not None


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    before: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """y[t] = sum over j < W of weight[:, W - 1 - j] * x[t - j], plus bias (C,): (B, T, C) -> (B, T, C).

    weight: (C, W). before: (B, W - 1, C), the inputs that precede x; None: zeros. positions: (B or 1, T), for rows that
    hold several documents: each token's position in its own, so that none sees another's. Sums are in fp32.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):  # or autograd keeps several fp32 copies
        return checkpoint(_causal_conv, x, weight, bias, before, positions, use_reentrant=False)  # type: ignore[return-value]
    return _causal_conv(x, weight, bias, before, positions)


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor) -> Tensor:
    """`causal_conv` of one token in each row, x (B, 1, C); `before` (B, W - 1, C) is shifted by one token in place."""
    if x.is_cuda and _HAS_TRITON:
        from litlm.ops.conv_triton import conv_step

        return conv_step(x, weight, bias, before)
    inputs = torch.cat((before, x), 1)
    y = (inputs.float() * weight.t().float()).sum(1, keepdim=True)
    before.copy_(inputs[:, 1:])
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, positions: Tensor | None
) -> Tensor:
    width, length = weight.size(1), x.size(1)
    padded = F.pad(x, (0, 0, width - 1, 0)) if before is None else torch.cat((before.to(x.dtype), x), 1)
    padded, taps = padded.float(), weight.float()
    y = padded[:, width - 1 :] * taps[:, -1]
    for j in range(1, width):
        shifted = padded[:, width - 1 - j : width - 1 - j + length]
        if positions is not None:
            shifted = shifted * (positions >= j)[..., None]
        y = torch.addcmul(y, shifted, taps[:, -1 - j])
    return (y if bias is None else y + bias.float()).to(x.dtype)
