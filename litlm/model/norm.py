"""The norms of a `NormConfig`: PyTorch's own, and variants that store their weight as its difference from 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import NormConfig
from litlm.ops.norm import rms_norm


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) whose weight is stored as its difference from 1 (Gemma)."""

    def reset_parameters(self) -> None:
        """A weight of 1."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps, offset=True)


class OffsetLayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) whose weight is stored as its difference from 1 (Nemotron)."""

    def reset_parameters(self) -> None:
        """A weight of 1, no bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C), computed in fp32."""
        weight, bias = 1 + self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def make_norm(config: NormConfig, size: int) -> nn.Module:
    """The config's norm over a last dimension of `size`."""
    if config.kind == "rms":
        norm = OffsetRMSNorm if config.offset else nn.RMSNorm
        return norm(size, eps=config.eps, elementwise_affine=config.weight)
    norm = OffsetLayerNorm if config.offset else nn.LayerNorm
    return norm(size, eps=config.eps, elementwise_affine=config.weight, bias=config.bias)
