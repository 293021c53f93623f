"""Precision: in which dtype the model computes, and what the optimizer updates. Everything that casts a weight for
training is here; the loop and the runs only call it.

`bf16-mixed`: the model computes in bf16 and the optimizer works on fp32 copies of the trained weights. bf16 has 8 bits
of mantissa, so a relative step of 1e-4 would be lost in it. Unlike autocast, which casts every weight in every pass and
keeps the residual stream in fp32, this casts once per step; gradients are summed in fp32.

For FSDP2, which shards the weights and casts them when it gathers them, `optimized_weights` is what to replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from litlm.model import GPT
from litlm.settings import RunSettings
from litlm.transforms.adapter import Adapter
from litlm.transforms.lora import LoRA


def resolve_precision(settings: RunSettings, device: torch.device) -> Any:
    """The precision of a run, with auto resolved: the model's own weights need fp32 copies, or small steps are lost in
    bf16; adapters are fp32 anyway.
    """
    from litlm.train.methods import get_method

    if settings.train.precision != "auto":
        return settings.train.precision
    method = get_method(settings.method.name)
    trains_base = method.trains_base_weights(settings.method) or bool(getattr(settings, "new_tokens", ()))
    if device.type == "cuda":
        return "bf16-mixed" if trains_base else "bf16-true"
    return "32-true" if trains_base else "auto"


def load_dtype(precision: str) -> str:
    """The dtype to load a model in: of bf16-mixed the one from which fp32 copies are made."""
    return {"auto": "auto", "bf16-true": "bfloat16"}.get(precision, "float32")


def check_dtype(model: GPT, precision: str) -> None:
    """Raises ValueError if the model has another dtype than a `-true` precision trains in."""
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}.get(precision)
    if dtype is not None and model.embed.weight.dtype != dtype:
        name = str(model.embed.weight.dtype).removeprefix("torch.")
        raise ValueError(f"precision={precision}, but the model is {name}; load it in the dtype to train in")


def describe_precision(model: GPT, precision: str) -> str:
    """For people: auto as what the weights have, and the formats of quantized weights."""
    from litlm.transforms.quantize import formats

    if precision == "auto":
        precision = "bf16-true" if model.embed.weight.dtype == torch.bfloat16 else "32-true"
    packed = formats(model)
    return f"{precision}, frozen weights in {', '.join(packed)}" if packed else precision


class OptimizedWeights:
    """What the optimizer updates: here the model's own parameters."""

    def __init__(self, model: GPT) -> None:
        self._params = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters, under the model's names."""
        return iter(self._params.items())

    def copy_to_model(self) -> None:
        """Write what the optimizer has updated into the model."""

    def remove_hooks(self) -> None:
        """Take off what was hooked onto the model."""


class MasterWeights(OptimizedWeights):
    """fp32 copies of the parameters that require gradients; the model itself becomes bf16.

    Gradients move to the copies as they arrive. An optimizer made from this one's `named_parameters` updates the
    copies, and `copy_to_model` rounds them into the model. Adapters are fp32 in any model and need no copies.

    model_params: the model's parameter for each copy. keep_bf16_grads: a gradient stays bf16, in `bf16_grads`, until a
    second one is added to it; for optimizers that ask `gradient` for it.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self.model_params: dict[Tensor, nn.Parameter] = {}
        self.keep_bf16_grads = False
        self.bf16_grads: dict[Tensor, Tensor] = {}
        adapters = _adapter_parameters(model)
        for name, p in self._params.items():
            if p not in adapters:
                self._params[name] = nn.Parameter(p.detach().to(torch.float32, copy=True))
                self.model_params[self._params[name]] = p
        for p in _bf16_parameters(model):
            p.data = p.data.to(torch.bfloat16)
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p, master=master: self._take_gradient(p, master))
            for master, p in self.model_params.items()
        ]

    def gradient(self, p: Tensor) -> Tensor | None:
        """The gradient of one of the `named_parameters`, of the same shape, in bf16 or fp32."""
        return self.bf16_grads.get(p, p.grad)

    def gradients(self) -> list[Tensor]:
        """All gradients that there are, of the parameters' shapes."""
        found = map(self.gradient, self._params.values())
        return [grad for grad in found if grad is not None]

    @torch.no_grad()
    def copy_to_model(self) -> None:
        if self.model_params:
            ours: list[Tensor] = [*self.model_params.values()]
            torch._foreach_copy_(ours, list(self.model_params))  # pyright: ignore[reportPrivateImportUsage]

    def remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _take_gradient(self, p: Tensor, master: Tensor) -> None:
        grad, p.grad = p.grad, None
        assert grad is not None
        if self.keep_bf16_grads and self.gradient(master) is None:
            self.bf16_grads[master] = grad
            return
        if master in self.bf16_grads:
            master.grad = self.bf16_grads.pop(master).to(torch.float32)
        if master.grad is None:
            master.grad = grad.to(torch.float32)
        else:
            master.grad += grad
        for hook in (master._post_accumulate_grad_hooks or {}).values():  # autograd never reaches the copies itself
            hook(master)


def optimized_weights(model: GPT, precision: str) -> OptimizedWeights:
    """Cast the model to what `precision` computes in; what the optimizer is to update."""
    return MasterWeights(model) if precision == "bf16-mixed" else OptimizedWeights(model)


@contextmanager
def casts_undone(model: GPT, precision: str) -> Iterator[None]:
    """After the block, the parameters that `optimized_weights` has cast are what they were before, to the last bit."""
    weights = [(p, p.data.to("cpu", copy=True)) for p in model.parameters()] if precision == "bf16-mixed" else []
    try:
        yield
    finally:
        for p, data in weights:
            p.data = data.to(p.device)


@contextmanager
def computing_in(model: GPT, precision: str) -> Iterator[None]:
    """In the block, the model computes as it will while training in `precision`."""
    params = _bf16_parameters(model) if precision == "bf16-mixed" else []
    originals = [(p, p.data) for p in params]
    for p in params:
        p.data = p.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for p, data in originals:
            p.data = data


def _adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    return {p for module in model.modules() if isinstance(module, (LoRA, Adapter)) for p in module.parameters()}


def _bf16_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All but adapters and the packed weights of quantized layers, which are no floats."""
    adapters = _adapter_parameters(model)
    return [p for p in model.parameters() if p.is_floating_point() and p not in adapters]
