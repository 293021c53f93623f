"""The learning rate of a step: a linear warm-up times a shape over the whole run.

The shape goes by the share of the run that is over, not by steps, so that it also ends where it should when tokens or
time are the limit.
"""

from __future__ import annotations

import math

from litlm.settings import TrainSettings


def learning_rate(step: int, progress: float, settings: TrainSettings, *, steps: int | None = None) -> float:
    """The rate of step 0, 1, ..., with `progress` in [0, 1] over when it begins. steps: see `warmup_of`."""
    assert settings.lr != "find", "lr=find needs the rate that was found"
    warmup = warmup_of(settings, steps)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return settings.lr * rise * _shape(progress, settings)


def warmup_of(settings: TrainSettings, steps: int | None) -> int:
    """Steps of the warm-up. steps: of the whole run, where their number is known; it takes at most half of them."""
    return settings.warmup_steps if steps is None else min(settings.warmup_steps, steps // 2)


def _shape(progress: float, settings: TrainSettings) -> float:
    """From 1 to settings.min_lr."""
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "linear":
        left = 1 - progress
    else:
        left = min(1.0, (1 - progress) / settings.decay_fraction)
    return settings.min_lr + (1 - settings.min_lr) * left
