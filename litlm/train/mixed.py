"""Mixed precision: the model computes in bf16, and the optimizer works on fp32 copies of the trained weights.

bf16 has 8 bits of mantissa: a step of 1e-4 of a weight would be lost in it. Unlike autocast, which casts every weight
in every pass and keeps the residual stream in fp32, this casts once a step; gradients are summed up in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from litlm.model import GPT
from litlm.transforms.adapter import Adapter
from litlm.transforms.lora import LoRA


class MasterWeights:
    """fp32 copies of the parameters that require gradients; the model itself becomes bf16.

    Gradients move to the copies as soon as they are there. An optimizer made from this one's `named_parameters` updates
    the copies, and `publish` then rounds them into the model. Adapters are fp32 in any model, and need no copies.

    rounded: the model's parameter for each copy. keeps_low: a gradient stays bf16, in `low`, until a second one is to
    be added to it; for optimizers that ask `gradient` for it.
    """

    def __init__(self, model: GPT) -> None:
        self.rounded: dict[Tensor, nn.Parameter] = {}
        self.keeps_low = False
        self.low: dict[Tensor, Tensor] = {}
        self._trained: dict[str, nn.Parameter] = {}
        adapters = _of_adapters(model)
        for name, p in model.named_parameters():
            if p.requires_grad:
                self._trained[name] = p
            if p.requires_grad and p not in adapters:
                self._trained[name] = nn.Parameter(p.detach().to(torch.float32, copy=True))
                self.rounded[self._trained[name]] = p
        for p in _rounded_parameters(model):
            p.data = p.data.to(torch.bfloat16)
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p, master=master: self._move(p, master))
            for master, p in self.rounded.items()
        ]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._trained.items())

    def gradient(self, p: Tensor) -> Tensor | None:
        """Of one of the `named_parameters`, in bf16 or fp32."""
        return self.low.get(p, p.grad)

    def gradients(self) -> list[Tensor]:
        found = map(self.gradient, self._trained.values())
        return [grad for grad in found if grad is not None]

    def clear(self) -> None:
        """Forget gradients that were kept in bf16."""
        self.low.clear()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the copies into the model."""
        if self.rounded:
            ours: list[Tensor] = [*self.rounded.values()]
            torch._foreach_copy_(ours, list(self.rounded))  # pyright: ignore[reportPrivateImportUsage]

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _move(self, p: Tensor, master: Tensor) -> None:
        grad, p.grad = p.grad, None
        assert grad is not None
        if self.keeps_low and self.gradient(master) is None:
            self.low[master] = grad
            return
        if master in self.low:
            master.grad = self.low.pop(master).to(torch.float32)
        if master.grad is None:
            master.grad = grad.to(torch.float32)
        else:
            master.grad += grad
        for hook in (master._post_accumulate_grad_hooks or {}).values():  # autograd never reaches the copies itself
            hook(master)


def _of_adapters(model: nn.Module) -> set[nn.Parameter]:
    return {p for module in model.modules() if isinstance(module, (LoRA, Adapter)) for p in module.parameters()}


def _rounded_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What bf16 is enough for: not adapters, and not the packed weights of quantized layers, which are no floats."""
    adapters = _of_adapters(model)
    return [p for p in model.parameters() if p.is_floating_point() and p not in adapters]


@contextmanager
def hooks_of(*things: Any) -> Iterator[None]:
    """Take the hooks of master weights or an optimizer off when the block ends, or the model would go on learning."""
    try:
        yield
    finally:
        for thing in things:
            if hasattr(thing, "remove_hooks"):
                thing.remove_hooks()


@contextmanager
def rounded(model: GPT) -> Iterator[None]:
    """In the block, the model is what it will be in mixed precision: bf16."""
    kept = [(p, p.data) for p in _rounded_parameters(model)]
    for p, data in kept:
        p.data = data.to(torch.bfloat16)
    try:
        yield
    finally:
        for p, data in kept:
            p.data = data
