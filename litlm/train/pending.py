"""Steps that were launched on the device and are not finalized yet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class State:
    """Where a run stands, as checkpoints store it.

    step: optimizer steps so far. offset: batches of data skipped by rollbacks; step + offset is the next batch. best:
    the lowest validation loss, at best_step. waited: validations since. spikes: the state of `SpikeWatch`.
    """

    step: int = 0
    offset: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    spikes: dict[str, Any] = field(default_factory=dict)


class DeviceEvent:
    """The moment when the device is done with everything launched so far."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Block until it has come."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: DeviceEvent) -> float:
        """Seconds between two events that have both come."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1000


class PendingMetrics:
    """Scalar tensors on their way to the host: `read` waits for them, but not for anything launched later."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._names = list(values)
        on_device = torch.stack([value.detach().float() for value in values.values()])
        self._values = on_device.to("cpu", non_blocking=on_device.is_cuda)
        self._arrival = DeviceEvent(on_device.device)

    def read(self) -> dict[str, float]:
        """The values by name."""
        self._arrival.wait()
        return dict(zip(self._names, self._values.tolist(), strict=True))


@dataclass
class Step:
    """A step that was launched.

    before: the state of the run before it. metrics: loss, grad_norm, bad (1 if the weights were left as they were),
    and those of objective and routers. spike_limit: the loss above which it is a spike. done: when the weights are
    updated. is_last: the run ends with it. validates: it is time to validate and to sample. saves: it is time for a
    checkpoint.
    """

    number: int
    before: State
    examples: list[int]
    n_tokens: int
    lr: float
    metrics: PendingMetrics
    spike_limit: float
    done: DeviceEvent
    is_last: bool = False
    validates: bool = False
    saves: bool = False
