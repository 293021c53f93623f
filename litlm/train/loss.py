"""Cross-entropy straight from the final hidden states, without ever holding all logits.

A vocabulary is wide: the logits of 2,048 tokens of SmolLM2 alone take 400 MB, and their gradient as much again. Here a
chunk of rows goes through the output projection, gives its loss and, at once, its gradient with respect to the hidden
states; its logits are then forgotten. Only positions with a target take part, so masked prompts cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from litlm.data.sft import IGNORE
from litlm.ops import linear

_CHUNK_BYTES = 64 * 2**20  # fp32 logits held at once


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, _CHUNK_BYTES // (4 * weight.size(0)))
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.size(0), rows):
            h, t = hidden[start : start + rows], targets[start : start + rows, None]
            logits = linear(h, weight).float()  # (rows, V)
            log_norm = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_norm - logits.gather(1, t)).sum()
            if not (want_hidden or want_weight):
                continue
            # d loss / d logits = softmax - one-hot, made in place
            grad = logits.sub_(log_norm).exp_()
            grad.scatter_add_(1, t, grad.new_full(t.shape, -1.0))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = linear(grad, weight.t())
            if grad_weight is not None:
                grad_weight += linear(grad.t(), h.t())
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else hidden * grad.to(hidden.dtype),
            None if weight is None else weight * grad.to(weight.dtype),
            None,
        )


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy in fp32. hidden: (B, T, C), weight: (V, C), targets: (B, T) with IGNORE where none."""
    wanted = targets.flatten() != IGNORE
    rows = hidden.flatten(0, 1)
    if not bool(wanted.all()):
        index = wanted.nonzero()[:, 0]
        rows, targets = rows.index_select(0, index), targets.flatten().index_select(0, index)
    return _LinearCrossEntropy.apply(rows, weight, targets.flatten())  # type: ignore[return-value]
