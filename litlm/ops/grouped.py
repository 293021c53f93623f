"""Grouped matrix products: rows sorted by expert, each multiplied by its own expert's weight (Gale et al. 2022).

Shapes: M rows, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.ops.linear import linear


def group_ends(experts: Tensor, n_expert: int) -> Tensor:
    """(E,) int32: the end of each expert's rows. experts: (M,), sorted, the expert of each row."""
    # `bincount` would synchronize with the device.
    return torch.searchsorted(experts, torch.arange(n_expert, device=experts.device), right=True, out_int32=True)


def grouped_linear(
    x: Tensor, weight: Tensor | nn.Module, ends: Tensor, experts: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Rows of x (M, in), sorted by expert, each multiplied by its expert's weight (E, out, in) -> (M, out).

    ends: (E,), the end of each expert's rows; experts: (M,), the expert of each row; bias: (E, out). If weight is a
    module (`QuantizedStack`), it does the product: it is called with the other arguments.
    """
    if isinstance(weight, nn.Module):
        return weight(x, ends, experts, bias)
    aligned = x.size(1) % 8 == 0 and weight.size(1) % 8 == 0  # the fused kernel needs rows of 16-byte multiples
    if x.device.type == "cuda" and x.dtype == weight.dtype == torch.bfloat16 and aligned:
        y = (_grouped_mm if torch.compiler.is_compiling() else _grouped_mm_eager)(x, weight, ends)
        # Not bias[experts]: its gradient is summed in bf16, wrong after a few hundred rows; an embedding's in fp32.
        return y if bias is None else y + F.embedding(experts, bias)
    if torch.compiler.is_compiling():  # the loop's shapes depend on the data; a gather's don't, and it fuses
        y = (weight[experts] * x[:, None]).sum(-1)
        return y if bias is None else y + bias[experts]
    return grouped_linear_loop(x, weight, ends, bias)


def grouped_linear_loop(x: Tensor, weight: Tensor, ends: Tensor, bias: Tensor | None = None) -> Tensor:
    """`grouped_linear` as a loop over the experts that have rows. x: (M, in), weight: (E, out, in) -> (M, out)."""
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            parts.append(linear(x[start:end], weight[expert], None if bias is None else bias[expert]))
            start = end
    return torch.cat(parts)


def _grouped_mm_eager(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


# A custom operator, because the compiler chooses layouts for the backward pass in which each group must start at a
# multiple of 16 bytes, and then crashes (torch 2.11).
@torch.library.custom_op("litlm::grouped_mm", mutates_args=())
def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _grouped_mm_eager(x.contiguous(), weight, ends)


@_grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(1))


@torch.library.custom_op("litlm::grouped_mm_backward", mutates_args=())
def _grouped_mm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    grad, x, empty = grad.contiguous(), x.contiguous(), grad.new_empty(0)
    grad_x = F.grouped_mm(grad, weight, offs=ends) if want_x else empty
    return grad_x, F.grouped_mm(grad.t(), x, offs=ends) if want_weight else empty.clone()


@_grouped_mm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor, want_x: bool, want_weight: bool) -> tuple[Tensor, Tensor]:
    empty = grad.new_empty(0)
    return torch.empty_like(x) if want_x else empty, torch.empty_like(weight) if want_weight else empty.clone()


def _save_grouped_mm(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_grouped_mm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    want_x, want_weight, _ = ctx.needs_input_grad
    grad_x, grad_weight = _grouped_mm_backward(grad, x, weight, ends, want_x, want_weight)
    return grad_x if want_x else None, grad_weight if want_weight else None, None


_grouped_mm.register_autograd(_differentiate_grouped_mm, setup_context=_save_grouped_mm)
