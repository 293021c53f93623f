"""Buffers that follow from the config alone: in fp32 whatever the model's dtype, and never saved."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class ComputedBuffer(nn.Module):
    """A module with one such buffer, called `name`, which it computes again after any move or cast.

    (A cast would round it: bf16 rope frequencies are wrong by whole turns after a few hundred tokens.)
    """

    name: str

    @abstractmethod
    def compute(self, device: torch.device) -> Tensor:
        """The buffer's content."""

    def register(self) -> None:
        """Make the buffer, once `compute` knows what it needs."""
        # Also in a model built on meta it has its values at once: computing there would import torch's whole compiler.
        device = torch.get_default_device()
        values = self.compute(torch.device("cpu") if device.type == "meta" else device)
        self.register_buffer(self.name, values, persistent=False)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        setattr(self, self.name, self.compute(getattr(self, self.name).device))
        return self
