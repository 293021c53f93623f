"""Watches the losses of a run for one that is not finite or jumps far above the others.

A step must not change the weights if its loss is a spike, and waiting for the loss would leave the device idle. So
`forbids` decides on the device, by a limit that earlier losses have set, and `check` finds the same afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_WARM = 20  # losses before any is judged
_WINDOW = 100  # about how many of the latest losses count


class SpikeWatch:
    """`factor`: standard deviations above the running mean that make a spike; None judges only what is not finite.

    Mean and variance weigh all losses the same until there are _WINDOW of them, then the latest exponentially more.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.n, self.mean, self.variance = 0, 0.0, 0.0
        self.limit_before = math.inf  # what `limit()` was before the latest loss
        self._forbidden: Tensor | None = None

    @property
    def _std(self) -> float:
        # Losses that hardly differ would make a spike of every rounding error.
        return max(math.sqrt(self.variance), 1e-3 * abs(self.mean), 1e-12)

    def limit(self) -> float:
        """The highest loss that is no spike, by the losses so far."""
        if self.factor is None or self.n < _WARM:
            return math.inf
        return torch.tensor(self.mean + self.factor * self._std, dtype=torch.float32).item()  # as the device has it

    def forbids(self, loss: Tensor, grad_norm: Tensor | None, limit: float, *, for_good: bool) -> Tensor:
        """1. on the device where a step must be left out, else 0. for_good: and so must all after it, until `forgive`:
        the run will stop or go back there, but can't know yet."""
        fine = loss.isfinite() & (loss <= limit)
        if grad_norm is not None:
            fine = fine & grad_norm.isfinite()
        bad = 1 - fine.float()
        if for_good:
            self._forbidden = bad = bad if self._forbidden is None else torch.maximum(bad, self._forbidden)
        return bad

    def forgive(self) -> None:
        self._forbidden = None

    def check(self, loss: float, grad_norm: float | None = None, limit: float | None = None) -> str | None:
        """What is wrong with a step, in words, or None. The loss of a bad step leaves no trace in the statistics.

        limit: what `limit()` was when the step was launched; by default what it is now.
        """
        self.limit_before = self.limit()
        for what, value in (("loss", loss), ("gradient norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                return f"the {what} is {value}"
        if loss > (self.limit_before if limit is None else limit):
            far = (loss - self.mean) / self._std
            return f"the loss {loss:.4g} is {far:.1f} standard deviations above its running mean {self.mean:.4g}"
        self.n += 1
        weight = max(1 / self.n, 1 / _WINDOW)
        change = loss - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change**2)
        return None

    def state_dict(self) -> dict[str, Any]:
        before = {} if math.isinf(self.limit_before) else {"limit_before": self.limit_before}
        return {"n": self.n, "mean": self.mean, "variance": self.variance} | before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n, self.mean, self.variance = state["n"], state["mean"], state["variance"]
        self.limit_before = state.get("limit_before", math.inf)
