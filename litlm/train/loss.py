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
from litlm.model import GPT
from litlm.ops import linear

_CHUNK_BYTES = 64 * 2**20  # fp32 logits held at once


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        rows = max(1, _CHUNK_BYTES // (4 * weight.size(0)))
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.size(0), rows):
            h, t = hidden[start : start + rows], targets[start : start + rows, None]
            logits = linear(h, weight, bias).float()  # (rows, V)
            if scale != 1:
                logits *= scale
            slope = None
            if softcap is not None:
                bent = logits.div_(softcap).tanh_()
                slope = 1 - bent.square() if want_hidden or want_weight or want_bias else None
                logits = bent.mul_(softcap)
            log_norm = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_norm - logits.gather(1, t)).sum()
            if not (want_hidden or want_weight or want_bias):
                continue
            # d loss / d logits = softmax - one-hot, made in place
            grad = logits.sub_(log_norm).exp_()
            grad.scatter_add_(1, t, grad.new_full(t.shape, -1.0))
            if slope is not None:
                grad *= slope
            if scale != 1:
                grad *= scale
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = linear(grad, weight.t())
            if grad_weight is not None:
                grad_weight += linear(grad.t(), h.t())
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return *(None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors), *[None] * 3


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The summed cross-entropy in fp32. hidden: (B, T, C), weight: (V, C), targets: (B, T) with IGNORE where none.

    bias: (V,). Logits are multiplied by `scale`, then become cap * tanh(logit / cap) for a `softcap`.
    """
    wanted = targets.flatten() != IGNORE
    rows = hidden.flatten(0, 1)
    if not bool(wanted.all()):
        index = wanted.nonzero()[:, 0]
        rows, targets = rows.index_select(0, index), targets.flatten().index_select(0, index)
    return _LinearCrossEntropy.apply(rows, weight, bias, targets.flatten(), scale, softcap)  # type: ignore[return-value]


def loss_sum(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy_sum` of the model's output head, from the states of `model(tokens, output="hidden")`."""
    bias = model.head_bias if model.lm_head is None else model.lm_head.bias
    config = model.config
    return cross_entropy_sum(
        hidden, model.head_weight, targets, bias=bias, scale=config.logit_scale, softcap=config.logit_softcap
    )
