"""Cross-entropy computed from the final hidden states in chunks, so the full logits never exist at once.

Large vocabularies make logits big: 2,048 tokens of SmolLM2 need 400 MB in fp32, and as much again for their gradient.
Here a chunk of rows goes through the output projection and yields its loss and, at once, its gradient with respect to
the hidden states; its logits are then dropped. Only positions with a target take part, so masked prompts are free.

On CUDA a chunk's logits stay in the model's dtype, and a Triton kernel overwrites them with their gradient. The plain
path is for the CPU and for installations without Triton; both compute the same. `head_losses` takes any head, such as
one with an adapter, and runs it again in the backward pass.

Shapes: N rows (positions with a target), C embedding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from litlm.ops.linear import linear

IGNORE = -100  # the target of a position without one, as in `F.cross_entropy`

_CHUNK_BYTES = 32 * 2**20  # fp32 logits held at once; glibc doesn't reuse larger blocks of memory
# Logits held at once on CUDA; less on small devices. Each chunk reads and writes the whole gradient of the weight, so
# few large chunks are faster (four times as many are 15 % slower). With a frozen weight an eighth of this is as fast.
_KERNEL_BYTES = 2**31
_TILE = 128  # rows: the tile size of fast CUDA matrix products


class _Head(NamedTuple):
    """The output projection: logits are `hidden @ weight.T + bias`, times scale, then capped."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, scale: float = 1.0,
    softcap: float | None = None, target_positions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The summed cross-entropy, a scalar in fp32. hidden: (B, T, C), weight: (V, C), targets: (B, T) with IGNORE.

    bias: (V,). Logits are multiplied by `scale` and then, with a `softcap`, become cap * tanh(logit / cap).
    target_positions: (N,) indexes into B * T of the positions with a target, from callers that know them: finding them
    on CUDA would synchronize with the device.
    """
    rows, targets, _ = _with_target(hidden, weight, targets, target_positions)
    return _LinearCrossEntropy.apply(rows, weight, bias, targets, scale, softcap)  # type: ignore[return-value]


def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, scale: float = 1.0,
    softcap: float | None = None, target_positions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The cross-entropy of each position (B, T) in fp32, 0 without a target; arguments as `cross_entropy_sum`."""
    rows, row_targets, index = _with_target(hidden, weight, targets, target_positions)
    losses: Tensor = _TokenLosses.apply(rows, weight, bias, row_targets, scale, softcap)  # type: ignore[assignment]
    return _scatter(losses, index, targets.shape)


def head_losses(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int, target_positions: Tensor | None
) -> Tensor:
    """`token_losses` for any `head` that maps hidden states (N, C) to final logits (N, V)."""

    def losses(h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), t, ignore_index=IGNORE, reduction="none")

    rows, row_targets, index = _with_target(hidden, hidden, targets, target_positions)
    size = _kernel_bytes(rows.device) // 8 if rows.device.type == "cuda" else _CHUNK_BYTES
    parts = [t.split(max(1, size // (4 * vocab_size))) for t in (rows, row_targets)]
    found = [checkpoint(losses, *part, use_reentrant=False) for part in zip(*parts, strict=True)]
    return _scatter(torch.cat(found), index, targets.shape)  # type: ignore[arg-type]


# --- rows ----------------------------------------------------------------------------------------------------------


def _with_target(
    hidden: Tensor, weight: Tensor, targets: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states (N, C) and targets (N,) of the positions with a target, and these positions (None: all).

    If positions are not given, the kernel gets them all, and gives those without a target no loss.
    """
    rows, targets = hidden.flatten(0, 1), targets.flatten()
    if positions is None and _kernels(hidden, weight) is None:
        has_target = targets != IGNORE
        positions = None if bool(has_target.all()) else has_target.nonzero()[:, 0]
    if positions is None:
        return rows, targets, None
    return rows.index_select(0, positions), targets.index_select(0, positions), positions


def _scatter(losses: Tensor, index: Tensor | None, shape: torch.Size) -> Tensor:
    """The losses (N,) of the positions `index`, or of all, as (B, T) with zeros elsewhere."""
    if index is not None:
        losses = losses.new_zeros(shape.numel()).index_copy(0, index, losses)
    return losses.view(shape)


# --- chunks --------------------------------------------------------------------------------------------------------


def _chunk(h: Tensor, targets: Tensor, head: _Head, *, need_grad: bool) -> tuple[Tensor, Tensor | None]:
    """The losses (N,) of a chunk of rows (N, C) and, if needed, their gradient (N, V) with respect to
    `h @ weight.T + bias`.
    """
    logits, t = linear(h, head.weight, head.bias).float(), targets[:, None]
    if head.scale != 1:
        logits *= head.scale
    softcap_grad = None
    if head.softcap is not None:
        tanh = logits.div_(head.softcap).tanh_()
        softcap_grad = 1 - tanh.square() if need_grad else None
        logits = tanh.mul_(head.softcap)
    target_logit, max_logit = logits.gather(1, t), logits.amax(-1, keepdim=True)
    # One exponential serves the loss and its gradient; all in place.
    total = logits.sub_(max_logit).exp_().sum(-1, keepdim=True)
    losses = (total.log() + max_logit - target_logit)[:, 0]
    if not need_grad:
        return losses, None
    grad = logits.mul_(total.reciprocal())  # d loss / d logits = softmax - one-hot
    grad.scatter_add_(1, t, grad.new_full(t.shape, -1.0))
    if softcap_grad is not None:
        grad *= softcap_grad
    if head.scale != 1:
        grad *= head.scale
    return losses, grad


def _chunks(
    hidden: Tensor, targets: Tensor, head: _Head, *, need_grad: bool, frozen: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """`_chunk` for consecutive slices of the rows (N, C): (slice, losses, gradient). The gradient's memory is reused
    for the next chunk.

    frozen: the weight's gradient is not needed.
    """
    N, V = hidden.size(0), head.weight.size(0)
    kernels = _kernels(hidden, head.weight)
    if kernels is None:
        rows = max(1, _CHUNK_BYTES // (4 * V))
        for start in range(0, N, rows):
            part = slice(start, start + rows)
            yield part, *_chunk(hidden[part], targets[part], head, need_grad=need_grad)
        return
    width = -(-V // kernels.ALIGN) * kernels.ALIGN
    max_rows = max(1, _kernel_bytes(hidden.device) // (8 if frozen else 1) // (width * hidden.element_size()))
    n_chunks = max(1, -(-N // max_rows))
    rows = max(1, -(-N // (n_chunks * _TILE))) * _TILE  # of nearly equal size: a small last chunk would be slow
    buffer = hidden.new_empty(min(N, rows), width)
    for start in range(0, N, rows):
        part = slice(start, min(N, start + rows))
        h, t = hidden[part], targets[part]
        logits = buffer[: h.size(0), :V]
        if head.bias is None:
            torch.mm(h, head.weight.t(), out=logits)
        else:
            torch.addmm(head.bias, h, head.weight.t(), out=logits)
        losses = hidden.new_empty(h.size(0), dtype=torch.float32)
        kernels.softmax_gradient_(logits, t, losses, scale=head.scale, softcap=head.softcap, gradient=need_grad)
        yield part, losses, logits if need_grad else None


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def _kernels(hidden: Tensor, weight: Tensor) -> ModuleType | None:
    """`litlm.ops.cross_entropy_triton` if it can run on these tensors."""
    known = hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return triton_kernels() if known and hidden.device.type == weight.device.type == "cuda" else None


def triton_kernels() -> ModuleType | None:
    """`litlm.ops.cross_entropy_triton` if Triton is installed."""
    if not has_triton():
        return None
    from litlm.ops import cross_entropy_triton

    return cross_entropy_triton


@cache
def _total_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def _kernel_bytes(device: torch.device) -> int:
    return min(_KERNEL_BYTES, _total_memory(device) // 40)


# --- gradients -----------------------------------------------------------------------------------------------------


def _put_product(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """out (N, C) = grad (N, V) @ weight (V, C)"""
    if out.device.type == "cuda":
        torch.mm(grad, weight, out=out)
    else:
        out.copy_(linear(grad, weight.t()))


def _grad_buffer(weight: Tensor, hidden: Tensor) -> Tensor:
    """Like the weight, in fp32: uninitialized, since the first chunk overwrites it, but zeros if there are no rows."""
    return (torch.empty_like if len(hidden) else torch.zeros_like)(weight, dtype=torch.float32)


def _add_product(total: Tensor, grad: Tensor, h: Tensor, *, first: bool) -> None:
    """total (V, C) += grad (N, V).T @ h (N, C), summed in fp32 for any dtype of the factors.

    first: `total` is uninitialized.
    """
    if total.device.type == "cuda" and grad.dtype in (torch.bfloat16, torch.float16):
        if first:
            torch.mm(grad.t(), h, out_dtype=torch.float32, out=total)
        else:
            torch.addmm(total, grad.t(), h, out_dtype=torch.float32, out=total)
        return
    if first:
        total.zero_()
    if total.device.type == "cpu":
        total += linear(h.t(), grad.t()).t()  # oneDNN copies a transposed first factor, so let it be the smaller one
    else:
        total += linear(grad.t(), h.t())


def _scaled(t: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """t times a scalar tensor, in `dtype`."""
    kernels = triton_kernels() if t.device.type == "cuda" else None
    return (t * factor).to(dtype) if kernels is None else kernels.scaled(t, factor, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of `hidden @ weight.T + bias`, whose gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = _grad_buffer(weight, hidden) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float32)
        options: Any = dict(need_grad=need_hidden or need_weight or need_bias, frozen=not need_weight)
        for part, losses, grad in _chunks(hidden, targets, _Head(weight, bias, scale, softcap), **options):
            total += losses.sum()
            if grad is None:
                continue
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=torch.float32)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                _put_product(grad_hidden[part], grad, weight)
            if grad_weight is not None:
                _add_product(grad_weight, grad, hidden[part], first=part.start == 0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if t is None else _scaled(t, grad, dtype) for t, dtype in saved), *[None] * 3


class _TokenLosses(torch.autograd.Function):
    """The cross-entropy of each row. The forward pass computes the gradient of `hidden`, up to each row's incoming
    gradient. The weight's is a sum over rows with these as factors, so the backward pass computes the logits again.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        ctx.scale, ctx.softcap = scale, softcap
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        losses = hidden.new_empty(hidden.size(0), dtype=torch.float32)
        row_grads = torch.empty_like(hidden) if need_hidden else None
        options: Any = dict(need_grad=need_hidden, frozen=True)
        for part, chunk_losses, grad in _chunks(hidden, targets, _Head(weight, bias, scale, softcap), **options):
            losses[part] = chunk_losses
            if row_grads is not None and grad is not None:
                _put_product(row_grads[part], grad.to(hidden.dtype), weight)
        recomputed = (hidden, weight, bias, targets) if need_weight or need_bias else [None] * 4
        ctx.save_for_backward(row_grads, *recomputed)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        row_grads, hidden, weight, bias, targets = ctx.saved_tensors
        grad = grad[:, None]  # (N, 1)
        grad_hidden = None if row_grads is None else (row_grads * grad).to(row_grads.dtype)
        if hidden is None:
            return grad_hidden, *[None] * 5
        grad_weight = _grad_buffer(weight, hidden) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        head, frozen = _Head(weight, bias, ctx.scale, ctx.softcap), not ctx.needs_input_grad[1]
        for part, _, logit_grad in _chunks(hidden, targets, head, need_grad=True, frozen=frozen):
            assert logit_grad is not None
            logit_grad, factors = logit_grad.to(hidden.dtype), grad[part]
            first = part.start == 0
            if grad_bias is not None:
                _add_product(grad_bias[:, None], logit_grad, factors.to(hidden.dtype), first=first)
            if grad_weight is not None:
                _add_product(grad_weight, logit_grad, (hidden[part] * factors).to(hidden.dtype), first=first)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None if grad_bias is None else grad_bias.to(bias.dtype), *[None] * 3
