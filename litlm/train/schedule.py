"""Learning rate over the steps: a linear warm-up, then a shape."""

from __future__ import annotations

import math

from litlm.settings import TrainSettings


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The rate of step 0 <= step < steps. The warm-up takes at most half of a short run."""
    warmup = min(settings.warmup_steps, steps // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    return settings.lr
