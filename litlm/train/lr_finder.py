"""Learning rate range test (Smith 2017): a short run whose rate grows from step to step, to see where the loss falls
fastest and where it diverges. It knows nothing of models: the caller gives a function that takes a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from litlm.io.writing import atomic_file
from litlm.train.optim import HasParameters, load_optimizer_state, optimizer_state

_MOMENTUM = 0.8  # of the running mean
_DIVERGED = 4.0  # times the best loss
_SLOPE_WINDOW = 0.1  # share of the sweep on each side for measuring a slope: batches differ in difficulty


@dataclass(frozen=True)
class LRSweep:
    """losses[i] is the loss before the step at lrs[i]; smoothed: their running mean; suggestion: the rate to use."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def find_lr(
    train_step: Callable[[float], float], *, lr_min: float = 1e-7, lr_max: float = 1.0, steps: int = 100
) -> LRSweep:
    """Sweep the rate exponentially, stop when the loss diverges, and suggest the rate at which it falls most steeply.

    train_step: takes one optimizer step at the given rate and returns the loss that its gradient came from. It changes
    the model; `snapshot` before and `restore` after undo that. Raises ValueError if the loss has no clear fall.
    """
    if not (0 < lr_min < lr_max and steps >= 20):
        raise ValueError(f"a sweep needs 0 < lr_min < lr_max and 20 or more steps, not {lr_min}, {lr_max} and {steps}")
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for i in range(steps):
        lr = lr_min * (lr_max / lr_min) ** (i / (steps - 1))
        loss = train_step(lr)
        if not math.isfinite(loss):
            break
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * loss
        lrs.append(lr)
        losses.append(loss)
        smoothed.append(mean / (1 - _MOMENTUM ** (i + 1)))
        if smoothed[-1] > _DIVERGED * min(smoothed):
            break
    return LRSweep(lrs, losses, smoothed, _steepest(lrs, losses, smoothed, max(3, round(_SLOPE_WINDOW * steps))))


def _steepest(lrs: list[float], losses: list[float], smoothed: list[float], window: int) -> float:
    hint = "set lr by hand"
    if len(losses) < 3 * window:
        raise ValueError(
            f"lr=find: the loss diverged after {len(losses)} steps, at a learning rate of "
            f"{lrs[-1] if lrs else 0:.1e}; {hint}"
        )
    best = min(range(len(smoothed)), key=smoothed.__getitem__)
    start = sum(losses[:window]) / window
    if start - smoothed[best] <= max(_noise(losses), 1e-3 * abs(start)):
        raise ValueError(
            f"lr=find: the loss never fell between learning rates of {lrs[0]:.1e} and {lrs[-1]:.1e} "
            f"(it began at {start:.4g}, its lowest running mean was {smoothed[best]:.4g}); {hint}"
        )
    # The slope of the straight line through the points around each, against the logarithm of the rate.
    offsets = range(-window, window + 1)
    middle = range(window, min(best + 1, len(losses) - window))
    slopes = {i: sum(k * losses[i + k] for k in offsets) for i in middle}
    if not slopes or min(slopes.values()) >= 0:
        raise ValueError(f"lr=find: the loss has no clear fall before it rises; {hint}")
    # A step at i shows in the loss at i + 1.
    return lrs[max(0, min(slopes, key=slopes.__getitem__) - 1)]


def _noise(losses: list[float]) -> float:
    """How far below its start a running mean of losses would get that only vary by chance."""
    curvatures = sorted(abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False))
    std = curvatures[len(curvatures) // 2] / (0.6745 * math.sqrt(6))  # second differences ignore a trend
    return 5 * std * math.sqrt((1 - _MOMENTUM) / (1 + _MOMENTUM))


class Snapshot(NamedTuple):
    """Copies, on the CPU, of parameters and an optimizer's state."""

    parameters: dict[str, Tensor]
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    lrs: list[float]


def snapshot(model: HasParameters, optimizer: Optimizer) -> Snapshot:
    """Copy the trained parameters and the optimizer's state, so that `restore` can undo any number of steps."""
    parameters = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}
    tensors, info = optimizer_state(optimizer)
    tensors = {key: value.to("cpu", copy=True) for key, value in tensors.items()}
    return Snapshot(parameters, tensors, info, [group["lr"] for group in optimizer.param_groups])


@torch.no_grad()
def restore(model: HasParameters, optimizer: Optimizer, saved: Snapshot) -> None:
    """Undo all steps since the `snapshot`."""
    for name, parameter in model.named_parameters():
        if name in saved.parameters:
            parameter.copy_(saved.parameters[name])
    optimizer.zero_grad(set_to_none=True)
    load_optimizer_state(optimizer, saved.tensors, saved.info)
    for group, lr in zip(optimizer.param_groups, saved.lrs, strict=True):
        group["lr"] = lr


def plot(sweep: LRSweep, path: Path) -> None:
    """Draw the sweep as a PNG: each loss faint, the running mean on top, the suggestion as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(sweep.lrs, sweep.losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss, each step")
    axes.plot(sweep.lrs, sweep.smoothed, color="tab:blue", linewidth=2, label="running mean")
    axes.axvline(sweep.suggestion, color="tab:orange", label=f"steepest fall: {sweep.suggestion:.2e}")
    low, high = min(sweep.losses), max(sweep.losses[:10])
    room = 0.1 * (high - low)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - room, high + 5 * room))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(path) as part:
        figure.savefig(part, format="png")
