"""Causal depthwise convolution over a few tokens (the "short convolution" of recurrent layers).

Shapes: B batch, T tokens, C channels, W the kernel's width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    before: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """y[t] = sum over j < W of weight[:, W - 1 - j] * x[t - j], plus bias (C,): (B, T, C) -> (B, T, C).

    weight: (C, W). before: (B, W - 1, C), the inputs that precede x; None: zeros. positions: (B or 1, T), of each token
    in its document, for rows that hold several: no document sees another. Sums are in fp32.
    """
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
