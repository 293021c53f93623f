"""Detects spikes: a loss that is not finite, or far above the running mean.

A bad step must not change the weights, and waiting for its loss would leave the device idle. So `is_bad` decides on the
device, by a limit that earlier losses have set, and `check` comes to the same result afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_WARMUP = 20  # losses before any is judged
_WINDOW = 100  # effective number of latest losses in the running mean


class SpikeWatch:
    """factor: standard deviations above the running mean that make a spike; None: only losses that are not finite.

    Mean and variance weigh all losses equally up to _WINDOW of them, and then exponentially.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.n, self.mean, self.variance = 0, 0.0, 0.0
        self.limit_before = math.inf  # `limit()` before the latest loss
        self._bad: Tensor | None = None

    @property
    def _std(self) -> float:
        # With nearly equal losses, every rounding error would be a spike.
        return max(math.sqrt(self.variance), 1e-3 * abs(self.mean), 1e-12)

    def limit(self) -> float:
        """The highest loss that is not a spike, given the losses so far."""
        if self.factor is None or self.n < _WARMUP:
            return math.inf
        return torch.tensor(self.mean + self.factor * self._std, dtype=torch.float32).item()  # as the device has it

    def is_bad(self, loss: Tensor, grad_norm: Tensor | None, limit: float, *, for_good: bool) -> Tensor:
        """1.0 on the device if the step must be skipped, else 0.0 (0-dim, fp32). for_good: then all later steps must be
        skipped too, until `reset_bad`: the run will stop or roll back, but can't know yet.
        """
        fine = loss.isfinite() & (loss <= limit)
        if grad_norm is not None:
            fine = fine & grad_norm.isfinite()
        bad = 1 - fine.float()
        if for_good:
            self._bad = bad = bad if self._bad is None else torch.maximum(bad, self._bad)
        return bad

    def reset_bad(self) -> None:
        """Let steps change the weights again, after a rollback."""
        self._bad = None

    def check(self, loss: float, grad_norm: float | None = None, limit: float | None = None) -> str | None:
        """What is wrong with a step, in words, or None. The loss of a bad step is left out of the statistics.

        limit: `limit()` when the step was launched; by default what it is now.
        """
        self.limit_before = self.limit()
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                return f"the {name} is {value}"
        if loss > (self.limit_before if limit is None else limit):
            distance = (loss - self.mean) / self._std
            return f"the loss {loss:.4g} is {distance:.1f} standard deviations above its running mean {self.mean:.4g}"
        self.n += 1
        weight = max(1 / self.n, 1 / _WINDOW)
        change = loss - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change**2)
        return None

    def state_dict(self) -> dict[str, Any]:
        """The statistics, for a checkpoint."""
        before = {} if math.isinf(self.limit_before) else {"limit_before": self.limit_before}
        return {"n": self.n, "mean": self.mean, "variance": self.variance} | before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.n, self.mean, self.variance = state["n"], state["mean"], state["variance"]
        self.limit_before = state.get("limit_before", math.inf)
