"""Rotary position embedding (Su et al. 2021), with the variants and scalings of `RopeConfig`.

The frequencies follow transformers' fp32 arithmetic step by step (modeling_rope_utils.py), so that far positions agree
to the last bit. Where they depend on a sequence's length (dynamic, LongRoPE), each row has its own frequencies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

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
from litlm.model.buffers import ComputedBuffer


class RopeTables(NamedTuple):
    """Rope's cos and sin at the positions of a pass, computed once for all layers with the same rope.

    cos, sin: (B, T, R / 2); None: the layer has no rope. query_scale: (B, T, 1, 1), the factor of the queries of layers
    with attention temperature (`TemperatureConfig`), which also depends on positions alone; None elsewhere.
    """

    cos: Tensor | None
    sin: Tensor | None
    query_scale: Tensor | None


def rope_frequencies(config: RopeConfig, head_dim: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Frequencies in radians per position, (R / 2,) in fp32 with R = head_dim * fraction, and the attention factor.

    The attention factor multiplies cos and sin, and so the scores by its square (YaRN, LongRoPE). LongRoPE (Ding et al.
    2024) has frequencies (2, R / 2): for short rows, and for long ones. Proportional rope has R = head_dim, and
    frequencies of 0 for the pairs that aren't rotated.
    """
    if config.proportional:
        whole = replace(config, proportional=False, fraction=1.0)
        frequencies, attention_factor = rope_frequencies(whole, head_dim, device)
        frequencies[int(head_dim * config.fraction / 2) :] = 0
        return frequencies, attention_factor
    rotary_dim = int(head_dim * config.fraction)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=device).float() / rotary_dim
    theta_powers = config.theta**exponents
    scaling = config.scaling
    if scaling is None or isinstance(scaling, DynamicScaling):
        return 1.0 / theta_powers, 1.0
    if isinstance(scaling, LongRopeScaling):
        divisors = torch.tensor([scaling.short_factor, scaling.long_factor], dtype=torch.float32, device=device)
        attention_factor = scaling.attention_factor
        if attention_factor is None:
            attention_factor = 1.0
            if scaling.factor > 1:
                attention_factor = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len))
        return 1.0 / (divisors * theta_powers), attention_factor
    if isinstance(scaling, LinearScaling):
        return 1.0 / theta_powers / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(1.0 / theta_powers, scaling), 1.0
    return _yarn(theta_powers, scaling, rotary_dim, config.theta)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule, (R / 2,) -> (R / 2,) (transformers modeling_rope_utils.py)."""
    wavelengths = 2 * math.pi / frequencies
    # From 0 for a wavelength that fits low_freq_factor times into the trained context to 1 for high_freq_factor times.
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_seq_len / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    divided = torch.where(wavelengths > scaling.original_max_seq_len / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths >= scaling.original_max_seq_len / high) & (wavelengths <= scaling.original_max_seq_len / low)
    return torch.where(between, blended, divided)


def _yarn(theta_powers: Tensor, scaling: YarnScaling, rotary_dim: int, theta: float) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023): frequencies and attention factor. theta_powers: (R / 2,), one over the unscaled ones."""

    def pair_with(rotations: float) -> float:
        """The (fractional) index of the pair that makes this many full rotations within the original context."""
        length = scaling.original_max_seq_len / (rotations * 2 * math.pi)
        return rotary_dim * math.log(length) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = torch.arange(rotary_dim // 2, dtype=torch.float32, device=theta_powers.device) - low
    # Fast pairs (before `low`) keep their frequency; that of slow ones (after `high`) is divided by the factor.
    unchanged = 1 - (ramp / ((high - low) or 0.001)).clamp(0, 1)
    frequencies = 1.0 / (scaling.factor * theta_powers) * (1 - unchanged) + 1.0 / theta_powers * unchanged
    if scaling.attention_factor is not None:
        return frequencies, scaling.attention_factor
    return frequencies, yarn_attention_factor(scaling.factor)


def _frequencies(config: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    return rope_frequencies(config, head_dim, device)[0]


class Rope(ComputedBuffer):
    """One rope config: `forward(positions)` gives cos and sin, each (B, T, R / 2) in fp32.

    values: the frequencies. attention_factor: multiplies cos and sin. For both see `rope_frequencies`.
    """

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__(partial(_frequencies, config, head_dim))  # picklable, unlike a lambda
        self.config = config
        self.attention_factor = rope_frequencies(config, head_dim, torch.device("cpu"))[1]

    @torch.no_grad()
    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """positions: (B, T); lengths: (B, 1 or T), of the sequences, for ropes that depend on it; by default each row
        ends at its last position."""
        angles = positions[..., None].float() * self._frequencies_at(positions, lengths)  # (B, T, R / 2)
        angles = -angles if self.config.reverse else angles
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def _frequencies_at(self, positions: Tensor, lengths: Tensor | None) -> Tensor:
        """(R / 2,), or (B, 1 or T, R / 2) where they depend on the length. positions: (B, T); lengths: (B, 1 or T)"""
        scaling = self.config.scaling
        if not isinstance(scaling, (DynamicScaling, LongRopeScaling)):
            return self.values
        length = (positions.amax(-1, keepdim=True) + 1 if lengths is None else lengths)[..., None]  # (B, 1 or T, 1)
        if isinstance(scaling, LongRopeScaling):
            return torch.where(length > scaling.original_max_seq_len, self.values[1], self.values[0])
        rotary_dim = 2 * self.values.numel()
        length = length.clamp(min=scaling.original_max_seq_len).float()
        stretch = scaling.factor * length / scaling.original_max_seq_len - (scaling.factor - 1)
        theta = self.config.theta * stretch ** (rotary_dim / (rotary_dim - 2))
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=length.device).float() / rotary_dim
        return 1.0 / theta**exponents


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the first R dimensions of each head. x: (B, T, H, D); cos, sin: (B, T, R / 2) in x's dtype."""
    half = cos.size(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]  # (B, T, 1, R / 2)
    if interleaved:
        first, second, rest = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2], x[..., 2 * half :]
        rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
        return torch.cat((rotated, rest), dim=-1) if rest.size(-1) else rotated
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def query_scale(positions: Tensor, temperature: TemperatureConfig) -> Tensor:
    """(B, T) -> (B, T, 1, 1): attention temperature, as a factor of the queries at these positions (transformers
    modeling_llama4.py)."""
    steps = torch.floor((positions.float() + temperature.shift) / temperature.interval)
    return (1 + temperature.scale * torch.log1p(steps))[..., None, None]  # (B, T, 1, 1)
