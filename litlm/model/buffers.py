"""Buffers computed from the config alone, such as rope's frequencies: fp32 whatever the model's dtype, never saved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ComputedBuffer(nn.Module):
    """A module with one such buffer, `values`, which is recomputed after every move or cast of the model.

    (A cast to bf16 would round it: with bf16 frequencies rope is off by about a radian after 800 tokens.)
    """

    values: Tensor

    def __init__(self, compute: Callable[[torch.device], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        # In a model built on meta, too, the values are computed on the CPU: on meta, torch would import its compiler.
        device = torch.get_default_device()
        values = compute(torch.device("cpu") if device.type == "meta" else device)
        self.register_buffer("values", values, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.values = self.compute(self.values.device)
        return self
