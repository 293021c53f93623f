"""The gated short convolution of LFM2 (transformers modeling_lfm2.py). Gated DeltaNet shares `DepthwiseConv`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from litlm.config import LayerConfig, ShortConvConfig
from litlm.context import LayerContext
from litlm.model.rope import RopeTables
from litlm.ops.linear import Linear


class DepthwiseConv(nn.Module):
    """The weights of a causal depthwise convolution, which `LayerContext.convolve` runs."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None


class ShortConv(nn.Module):
    """out_proj(c * conv(b * x)), with b, c and x from one projection and no activation function."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        mixer, width = config.recurrent, config.n_embd
        assert isinstance(mixer, ShortConvConfig)
        self.in_proj = Linear(width, 3 * width, bias=mixer.bias)
        self.conv = DepthwiseConv(width, mixer.kernel_size, bias=mixer.bias)
        self.out_proj = Linear(width, width, bias=mixer.bias)

    def forward(self, x: Tensor, rotary: RopeTables, context: LayerContext) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        b, c, x = self.in_proj(x).chunk(3, -1)
        return self.out_proj(c * context.convolve(b * x, self.conv.weight, self.conv.bias))
