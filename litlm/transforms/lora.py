"""LoRA (Hu et al. 2021): y = W x + (alpha / r) B A x, with W frozen.

An adapter is a child named `lora` of the linear layer it adapts, added to the layer's output by a forward hook. So the
layer keeps its class and its weight's name, and the same transform fits a quantized or sharded layer. Adapters are fp32
whatever the model's dtype: bf16 would round most small updates away.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from litlm.ops import linear
from litlm.settings import LoraMethod

ALL_LINEAR = "all-linear"


class LoRA(nn.Module):
    """The low-rank part. A: (r, in), B: (out, r); B starts at zero, so the model starts unchanged."""

    def __init__(self, in_features: int, out_features: int, r: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.A = nn.Parameter(torch.empty(r, in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.empty(out_features, r, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as PEFT does
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout and self.training:
            return _DropLoRA.apply(x, self.A, self.B, self.scale, self.dropout)  # type: ignore[return-value]
        return linear(linear(x, self.A.to(x.dtype)), (self.B * self.scale).to(x.dtype))

    def delta(self) -> Tensor:
        """(out, in) in fp32: what merging adds to the weight."""
        return self.scale * (self.B.float() @ self.A.float())


class _DropLoRA(torch.autograd.Function):
    """scale B A dropout(x). Keeps the mask as booleans, and x itself, which other adapters share.

    Autograd would keep the mask in x's dtype and the masked x, for each adapter anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, p: float) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
        low = linear(x * mask, a.to(x.dtype)) * (scale / (1 - p))  # (..., r)
        ctx.save_for_backward(x, mask, low, a, b)
        ctx.factor = scale / (1 - p)
        return linear(low, b.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mask, low, a, b = ctx.saved_tensors
        grad_low = (grad @ b.to(grad.dtype)) * ctx.factor  # (..., r)
        grad_a = grad_low.reshape(-1, a.size(0)).T @ (x * mask).reshape(-1, a.size(1)).to(grad.dtype)
        grad_b = grad.reshape(-1, b.size(0)).T @ low.reshape(-1, b.size(1)).to(grad.dtype)
        grad_x = (grad_low @ a.to(grad.dtype)).mul_(mask) if ctx.needs_input_grad[0] else None
        return None if grad_x is None else grad_x.to(x.dtype), grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def _add_lora(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + module.lora(args[0])  # type: ignore[operator]


def attach(linear: nn.Linear, r: int, scale: float, dropout: float = 0.0) -> LoRA:
    """Give one linear layer an adapter."""
    lora = LoRA(linear.in_features, linear.out_features, r, scale, dropout).to(linear.weight.device)
    lora.train(linear.training)
    linear.add_module("lora", lora)
    linear.register_forward_hook(_add_lora)
    return lora


def targets(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The linear layers inside the blocks whose names end in one of `names`; a name that fits nothing is an error."""
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("layers.")]
    if names == (ALL_LINEAR,):
        return linear
    unused = [name for name in names if not any(n == name or n.endswith("." + name) for n in linear)]
    if unused:
        known = ", ".join(dict.fromkeys(n.rsplit(".", 1)[-1] for n in linear))
        raise ValueError(
            f"targets: no linear layer is called {', '.join(map(repr, unused))}; this model has {known} (or all-linear)"
        )
    return [n for n in linear if any(n == name or n.endswith("." + name) for name in names)]


def apply_lora(model: nn.Module, method: LoraMethod, *, leave: Collection[str] = ()) -> list[str]:
    """Freeze the model and give the layers that `method.targets` names an adapter each; returns their names.

    leave: layers that get none even where all-linear names them.
    """
    if any(isinstance(m, LoRA) for m in model.modules()):
        raise ValueError("the model has LoRA adapters already; merge them first (litlm merge)")
    names = targets(model, method.targets)
    if (refused := [n for n in names if n in leave]) and method.targets != (ALL_LINEAR,):
        raise ValueError(f"targets: an adapter on {refused[0]} can't be saved for this family; leave it out")
    names = [n for n in names if n not in leave]
    model.requires_grad_(False)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        attach(linear, method.r, method.alpha / method.r, method.dropout)
    return names


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRA]]:
    """(name of the adapted layer, adapter) for each adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            yield name.removesuffix(".lora"), module


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights with every adapter added in (in fp32, then rounded once); the model itself is not changed."""
    state = {name: p.detach() for name, p in model.named_parameters() if ".lora." not in name}
    for name, lora in adapters(model):
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight.float() + lora.delta().detach().to(weight.device)).to(weight.dtype)
    return state


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every adapter to its weight, in place, and take the adapters off."""
    for name, lora in list(adapters(model)):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(linear.weight.float() + lora.delta())
        del linear.lora
        for key, hook in list(linear._forward_hooks.items()):
            if hook is _add_lora:
                del linear._forward_hooks[key]
