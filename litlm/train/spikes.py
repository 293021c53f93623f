"""Watches the losses of a run for one that is not finite or jumps far above the others."""

from __future__ import annotations

import math
from typing import Any

_WARM = 20  # losses before any is judged
_WINDOW = 100  # about how many of the latest losses count


class SpikeWatch:
    """`factor`: standard deviations above the running mean that make a spike; None judges only what is not finite.

    Mean and variance weigh all losses the same until there are _WINDOW of them, then the latest exponentially more.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.n, self.mean, self.variance = 0, 0.0, 0.0

    def check(self, loss: float, grad_norm: float | None = None) -> str | None:
        """What is wrong with a step, in words, or None. The loss of a bad step leaves no trace in the statistics."""
        for what, value in (("loss", loss), ("gradient norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                return f"the {what} is {value}"
        if self.factor is not None and self.n >= _WARM:
            # Losses that hardly differ would make a spike of every rounding error.
            std = max(math.sqrt(self.variance), 1e-3 * abs(self.mean), 1e-12)
            far = (loss - self.mean) / std
            if far > self.factor:
                return f"the loss {loss:.4g} is {far:.1f} standard deviations above its running mean {self.mean:.4g}"
        self.n += 1
        weight = max(1 / self.n, 1 / _WINDOW)
        change = loss - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change**2)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n, self.mean, self.variance = state["n"], state["mean"], state["variance"]
