"""Rotary position embedding (Su et al. 2021): which pairs of dimensions turn together is the config's choice.

The frequencies follow transformers' fp32 arithmetic step by step, so that long positions agree to the last bit. They
are a buffer that is never saved, and they recompute themselves after any move or cast: bf16 frequencies would be wrong
by whole turns after a few hundred tokens. Where they depend on the length (dynamic, LongRoPE), each row has its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from litlm.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    TemperatureConfig,
    YarnScaling,
    yarn_attention_factor,
)


class Turn(NamedTuple):
    """What positions do to queries and keys.

    cos, sin: (B, T, R / 2), None without rope. heat: (B, T, 1, 1), a factor of the queries, None without one.
    """

    cos: Tensor | None
    sin: Tensor | None
    heat: Tensor | None


def rope_frequencies(config: RopeConfig, head_dim: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Radians per position, (R / 2,) in fp32 with R = head_dim * fraction, and the factor of cos and sin.

    LongRoPE gives (2, R / 2): for short rows, and for long ones.
    """
    if config.proportional:
        whole, factor = rope_frequencies(replace(config, proportional=False, fraction=1.0), head_dim, device)
        whole[int(head_dim * config.fraction / 2) :] = 0
        return whole, factor
    turned = int(head_dim * config.fraction)
    exponents = torch.arange(0, turned, 2, dtype=torch.int64, device=device).float() / turned
    periods = config.theta**exponents
    scaling = config.scaling
    if scaling is None or isinstance(scaling, DynamicScaling):
        return 1.0 / periods, 1.0
    if isinstance(scaling, LongRopeScaling):
        divisors = torch.tensor([scaling.short_factor, scaling.long_factor], dtype=torch.float32, device=device)
        factor = scaling.attention_factor
        if factor is None:
            grows = scaling.factor > 1
            factor = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len)) if grows else 1.0
        return 1.0 / (divisors * periods), factor
    if isinstance(scaling, LinearScaling):
        return 1.0 / periods / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(1.0 / periods, scaling), 1.0
    return _yarn(periods, scaling, turned, config.theta)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    # 1 where a wavelength fits often into the trained context (kept), 0 where it hardly does (divided).
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = (scaling.original_max_seq_len / wavelengths - low) / (high - low)
    blended = (1 - keep) * frequencies / scaling.factor + keep * frequencies
    divided = torch.where(wavelengths > scaling.original_max_seq_len / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths >= scaling.original_max_seq_len / high) & (wavelengths <= scaling.original_max_seq_len / low)
    return torch.where(between, blended, divided)


def _yarn(periods: Tensor, scaling: YarnScaling, turned: int, theta: float) -> tuple[Tensor, float]:
    def dimension_of(turns: float) -> float:
        """The (fractional) pair that makes `turns` full turns within the original context."""
        return turned * math.log(scaling.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    ramp = torch.arange(turned // 2, dtype=torch.float32, device=periods.device) - low
    # Fast pairs (before `low`) keep their frequency, slow ones (after `high`) are divided by the factor.
    keep = 1 - (ramp / ((high - low) or 0.001)).clamp(0, 1)
    frequencies = 1.0 / (scaling.factor * periods) * (1 - keep) + 1.0 / periods * keep
    if scaling.attention_factor is not None:
        return frequencies, scaling.attention_factor
    return frequencies, yarn_attention_factor(scaling.factor)


class Rope(nn.Module):
    """Tables of one rope config: `forward(positions)` gives cos and sin, each (B, T, R / 2) in fp32."""

    frequencies: Tensor

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, head_dim
        # A model built on meta has its frequencies at once: computing them there would import torch's whole compiler.
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device
        frequencies, self.factor = rope_frequencies(config, head_dim, device)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.frequencies = rope_frequencies(self.config, self.head_dim, self.frequencies.device)[0]
        return self

    @torch.no_grad()
    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self._frequencies_at(positions, lengths)  # (B, T, R / 2)
        angles = -angles if self.config.reverse else angles
        return angles.cos() * self.factor, angles.sin() * self.factor

    def _frequencies_at(self, positions: Tensor, lengths: Tensor | None) -> Tensor:
        """(R / 2,), or (B, 1 or T, R / 2) where they depend on a length: `lengths`, (B, 1 or T), or up to each row's
        last position."""
        scaling = self.config.scaling
        if not isinstance(scaling, (DynamicScaling, LongRopeScaling)):
            return self.frequencies
        length = (positions.amax(-1, keepdim=True) + 1 if lengths is None else lengths)[..., None]  # (B, 1 or T, 1)
        if isinstance(scaling, LongRopeScaling):
            return torch.where(length > scaling.original_max_seq_len, self.frequencies[1], self.frequencies[0])
        turned = 2 * self.frequencies.numel()
        length = length.clamp(min=scaling.original_max_seq_len).float()
        stretch = scaling.factor * length / scaling.original_max_seq_len - (scaling.factor - 1)
        theta = self.config.theta * stretch ** (turned / (turned - 2))
        exponents = torch.arange(0, turned, 2, dtype=torch.int64, device=length.device).float() / turned
        return 1.0 / theta**exponents


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the first R dimensions of each head. x: (B, T, H, D); cos, sin: (B, T, R / 2) in x's dtype."""
    half = cos.size(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]  # (B, T, 1, R / 2)
    if interleaved:
        first, second, rest = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2], x[..., 2 * half :]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
        return torch.cat((turned, rest), dim=-1) if rest.size(-1) else turned
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def query_scale(positions: Tensor, temperature: TemperatureConfig) -> Tensor:
    steps = torch.floor((positions.float() + temperature.shift) / temperature.interval)
    return (1 + temperature.scale * torch.log1p(steps))[..., None, None]  # (B, T, 1, 1)
