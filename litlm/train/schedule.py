"""The learning rate of a step: a linear warmup times a decay over the whole run.

The decay follows the progress of the run, not its steps, so that it also ends on time if tokens or time are the limit.
"""

from __future__ import annotations

import math

from litlm.settings import TrainSettings


def learning_rate(step: int, progress: float, settings: TrainSettings, *, steps: int | None = None) -> float:
    """The rate of step 0, 1, ..., which begins at `progress` in [0, 1] of the run. steps: see `warmup_steps`."""
    assert settings.lr != "find", "lr=find must be resolved first"
    warmup = warmup_steps(settings, steps)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return settings.lr * rise * _decay(progress, settings)


def warmup_steps(settings: TrainSettings, steps: int | None) -> int:
    """Steps of the warmup: at most half of the run's `steps`, if their number is known."""
    return settings.warmup_steps if steps is None else min(settings.warmup_steps, steps // 2)


def _decay(progress: float, settings: TrainSettings) -> float:
    """The factor of the peak rate, from 1 down to settings.min_lr."""
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "linear":
        left = 1 - progress
    else:
        left = min(1.0, (1 - progress) / settings.decay_fraction)
    return settings.min_lr + (1 - settings.min_lr) * left
