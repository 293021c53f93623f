"""Cross-entropy straight from the final hidden states, without holding more than a chunk of the logits.

A vocabulary is wide: the logits of 2,048 tokens of SmolLM2 alone take 400 MB, and their gradient as much again. Here a
chunk of rows goes through the output projection, gives its loss and, at once, its gradient with respect to the hidden
states; its logits are then forgotten. Only positions with a target take part, so masked prompts cost nothing.

On CUDA a chunk's logits stay in the model's dtype, and a Triton kernel turns them into their gradient where they are.
The plain path is for the CPU and where there is no Triton; the two take the same steps. A head that is more than its
weight, such as one with an adapter, is run as it is, chunk by chunk, and again in the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from litlm.data.base import IGNORE, Batch
from litlm.model import GPT
from litlm.ops.linear import Linear, linear

_CHUNK_BYTES = 32 * 2**20  # fp32 logits held at once; larger blocks of memory are not used again by glibc
# Logits held at once on CUDA; less on small devices. Each chunk reads and writes the whole gradient of the weight, so
# few large ones are faster (four times as many: 15 % slower). Where the weight is frozen, an eighth is as fast.
_KERNEL_BYTES = 2**31
_TILE = 128  # rows: what fast products on CUDA are cut into


def _chunk(
    h: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None, *, want: bool
) -> tuple[Tensor, Tensor | None]:
    """The losses (rows,) of some rows and, if wanted, their gradients (rows, V) by what `h @ weight.T + bias` gives."""
    logits, t = linear(h, weight, bias).float(), targets[:, None]
    if scale != 1:
        logits *= scale
    slope = None
    if softcap is not None:
        bent = logits.div_(softcap).tanh_()
        slope = 1 - bent.square() if want else None
        logits = bent.mul_(softcap)
    chosen, top = logits.gather(1, t), logits.amax(-1, keepdim=True)
    # One exponential serves the loss and its gradient; all in place.
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    losses = (total.log() + top - chosen)[:, 0]
    if not want:
        return losses, None
    grad = logits.mul_(total.reciprocal())  # d loss / d logits = softmax - one-hot
    grad.scatter_add_(1, t, grad.new_full(t.shape, -1.0))
    if slope is not None:
        grad *= slope
    if scale != 1:
        grad *= scale
    return losses, grad


def _chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    *,
    want: bool,
    frozen: bool,
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """`_chunk` for some rows at a time, with the slice that they are. A gradient holds until the next is asked for.

    frozen: the weight's gradient is not wanted.
    """
    N, V = hidden.size(0), weight.size(0)
    kernels = _kernels(hidden, weight)
    if kernels is None:
        rows = max(1, _CHUNK_BYTES // (4 * V))
        for start in range(0, N, rows):
            part = slice(start, start + rows)
            yield part, *_chunk(hidden[part], targets[part], weight, bias, scale, softcap, want=want)
        return
    width = -(-V // kernels.ALIGN) * kernels.ALIGN
    most = max(1, _kernel_bytes(hidden.device) // (8 if frozen else 1) // (width * hidden.element_size()))
    n_chunks = max(1, -(-N // most))
    rows = max(1, -(-N // (n_chunks * _TILE))) * _TILE  # nearly equal chunks: a small last one would be slow
    buffer = hidden.new_empty(min(N, rows), width)
    for start in range(0, N, rows):
        part = slice(start, min(N, start + rows))
        h, t = hidden[part], targets[part]
        logits = buffer[: h.size(0), :V]
        if bias is None:
            torch.mm(h, weight.t(), out=logits)
        else:
            torch.addmm(bias, h, weight.t(), out=logits)
        losses = hidden.new_empty(h.size(0), dtype=torch.float32)
        kernels.softmax_gradient_(logits, t, losses, scale=scale, softcap=softcap, gradient=want)
        yield part, losses, logits if want else None


def _kernels(hidden: Tensor, weight: Tensor) -> ModuleType | None:
    """`litlm.train.kernels`, where it can run."""
    known = hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return triton_kernels() if known and hidden.device.type == weight.device.type == "cuda" else None


@cache
def triton_kernels() -> ModuleType | None:
    """`litlm.train.kernels`, where Triton is installed."""
    if find_spec("triton") is None:
        return None
    from litlm.train import kernels

    return kernels


@cache
def _total_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def _kernel_bytes(device: torch.device) -> int:
    return min(_KERNEL_BYTES, _total_memory(device) // 40)


def _put_product(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """out (rows, C) = grad (rows, V) @ weight (V, C)"""
    if out.device.type == "cuda":
        torch.mm(grad, weight, out=out)
    else:
        out.copy_(linear(grad, weight.t()))


def _room(weight: Tensor, hidden: Tensor) -> Tensor:
    """For the gradient of a weight, which the first chunk fills if there is one."""
    return (torch.empty_like if len(hidden) else torch.zeros_like)(weight, dtype=torch.float32)


def _add_product(total: Tensor, grad: Tensor, h: Tensor, *, first: bool) -> None:
    """total (V, C) += grad (rows, V).T @ h (rows, C): summed up in fp32, whatever the dtype of the factors.

    first: `total` holds nothing yet.
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
    """t times a number, in `dtype`."""
    kernels = triton_kernels() if t.device.type == "cuda" else None
    return (t * factor).to(dtype) if kernels is None else kernels.scaled(t, factor, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = _room(weight, hidden) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias and bias is not None else None
        want = want_hidden or want_weight or want_bias
        total = hidden.new_zeros((), dtype=torch.float32)
        options: Any = dict(want=want, frozen=not want_weight)
        for part, losses, grad in _chunks(hidden, weight, bias, targets, scale, softcap, **options):
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
    """The same for each row by itself. What a row adds to `hidden`'s gradient is known but for a factor, the incoming
    gradient; the weight's is a sum over rows, so it takes the logits once more."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        ctx.scale, ctx.softcap = scale, softcap
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        losses = hidden.new_empty(hidden.size(0), dtype=torch.float32)
        each = torch.empty_like(hidden) if want_hidden else None
        options: Any = dict(want=want_hidden, frozen=True)
        for part, some, grad in _chunks(hidden, weight, bias, targets, scale, softcap, **options):
            losses[part] = some
            if each is not None and grad is not None:
                _put_product(each[part], grad.to(hidden.dtype), weight)
        again = (hidden, weight, bias, targets) if want_weight or want_bias else [None] * 4
        ctx.save_for_backward(each, *again)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        each, hidden, weight, bias, targets = ctx.saved_tensors
        grad = grad[:, None]
        grad_hidden = None if each is None else (each * grad).to(each.dtype)
        if hidden is None:
            return grad_hidden, *[None] * 5
        grad_weight = _room(weight, hidden) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        options: Any = dict(want=True, frozen=not ctx.needs_input_grad[1])
        for part, _, slope in _chunks(hidden, weight, bias, targets, ctx.scale, ctx.softcap, **options):
            assert slope is not None
            slope, factors = slope.to(hidden.dtype), grad[part]  # factors: (rows, 1)
            if grad_bias is not None:
                _add_product(grad_bias[:, None], slope, factors.to(hidden.dtype), first=part.start == 0)
            if grad_weight is not None:
                _add_product(grad_weight, slope, (hidden[part] * factors).to(hidden.dtype), first=part.start == 0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None if grad_bias is None else grad_bias.to(bias.dtype), *[None] * 3


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """The summed cross-entropy in fp32. hidden: (B, T, C), weight: (V, C), targets: (B, T) with IGNORE where none.

    bias: (V,). Logits are multiplied by `scale`, then become cap * tanh(logit / cap) for a `softcap`. wanted: (N,), the
    indexes into B * T that have a target, for callers that know them: finding them on CUDA would wait for the device.
    """
    rows, targets, _ = _with_target(hidden, weight, targets, wanted)
    return _LinearCrossEntropy.apply(rows, weight, bias, targets, scale, softcap)  # type: ignore[return-value]


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    wanted: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of each position (B, T) in fp32, 0 where it has no target; arguments as `cross_entropy_sum`."""
    rows, wanted_targets, index = _with_target(hidden, weight, targets, wanted)
    losses: Tensor = _TokenLosses.apply(rows, weight, bias, wanted_targets, scale, softcap)  # type: ignore[assignment]
    return _in_place(losses, index, targets.shape)


def _in_place(losses: Tensor, index: Tensor | None, shape: torch.Size) -> Tensor:
    """The losses of the positions in `index`, or of all, as (B, T)."""
    if index is not None:
        losses = losses.new_zeros(shape.numel()).index_copy(0, index, losses)
    return losses.view(shape)


def _with_target(
    hidden: Tensor, weight: Tensor, targets: Tensor, wanted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states (N, C) and targets (N,) of the positions that have one; which these are, None if all.

    Where nobody knows which, the kernel gets all positions, and has no loss for those without a target.
    """
    rows, targets = hidden.flatten(0, 1), targets.flatten()
    if wanted is None and _kernels(hidden, weight) is None:
        has_target = targets != IGNORE
        wanted = None if bool(has_target.all()) else has_target.nonzero()[:, 0]
    if wanted is None:
        return rows, targets, None
    return rows.index_select(0, wanted), targets.index_select(0, wanted), wanted


def loss_sum(model: GPT, hidden: Tensor, targets: Tensor, wanted: Tensor | None = None) -> Tensor:
    """`cross_entropy_sum` of the model's output head, from the states of `model(tokens, output="hidden")`."""
    if _is_adapted(model):
        rows, targets, _ = _with_target(hidden, model.head_weight, targets, wanted)
        return _adapted_losses(model, rows, targets).sum()
    return cross_entropy_sum(hidden, model.head_weight, targets, wanted=wanted, **_head(model))


def model_token_losses(model: GPT, hidden: Tensor, targets: Tensor, wanted: Tensor | None = None) -> Tensor:
    """`token_losses` of the model's output head, likewise."""
    if _is_adapted(model):
        rows, some, index = _with_target(hidden, model.head_weight, targets, wanted)
        return _in_place(_adapted_losses(model, rows, some), index, targets.shape)
    return token_losses(hidden, model.head_weight, targets, wanted=wanted, **_head(model))


def _is_adapted(model: GPT) -> bool:
    """Is the head more than a product with its weight? What adapts a layer is a hook, or changes its class."""
    return model.lm_head is not None and (type(model.lm_head) is not Linear or bool(model.lm_head._forward_hooks))


def _adapted_losses(model: GPT, rows: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy (N,) in fp32 of some rows (N, C), 0 where there is no target, through whatever the head is."""

    def losses(h: Tensor, t: Tensor) -> Tensor:
        assert model.lm_head is not None
        logits = model.finish_logits(model.lm_head(h).float())
        return F.cross_entropy(logits, t, ignore_index=IGNORE, reduction="none")

    size = _kernel_bytes(rows.device) // 8 if rows.device.type == "cuda" else _CHUNK_BYTES
    parts = [t.split(max(1, size // (4 * model.config.vocab_size))) for t in (rows, targets)]
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in zip(*parts, strict=True)])  # type: ignore[misc]


def _head(model: GPT) -> dict[str, Any]:
    bias = model.head_bias if model.lm_head is None else model.lm_head.bias
    return dict(bias=bias, scale=model.config.logit_scale, softcap=model.config.logit_softcap)


Runner = Callable[..., Tensor]  # the model as Fabric wraps it: runner(tokens, output="hidden", context=...)


class Objective(ABC):
    """What a step minimizes: the sum over its micro batches of `loss_sum`, divided by the sum of `count`."""

    name = "loss"

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """What the micro batch adds to the divisor."""

    @abstractmethod
    def loss_sum(self, model: GPT, runner: Runner, batch: Batch) -> Tensor:
        """The micro batch's summed loss, in fp32."""

    def metrics(self) -> dict[str, Tensor]:
        """What else there is to log about the micro batches since the last call: scalars, still on the device."""
        return {}


class NextToken(Objective):
    """Cross-entropy of the tokens that are to be learned."""

    def count(self, batch: Batch) -> int:
        return batch.n_targets

    def loss_sum(self, model: GPT, runner: Runner, batch: Batch) -> Tensor:
        hidden = runner(batch.tokens, output="hidden", context=batch.context())
        return loss_sum(model, hidden, batch.targets, batch.target_positions)
