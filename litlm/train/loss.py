"""Objectives: what a training step minimizes.

A loss runs inside `model.forward`, as its `output`: the output projection is then part of the forward pass, which is
the only place where a sharded model (FSDP2) has the whole weight.

Shapes: B batch, T length, C embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from litlm.data.base import Batch
from litlm.model import GPT
from litlm.ops.cross_entropy import cross_entropy_sum, head_losses, token_losses
from litlm.ops.linear import Linear
from litlm.transforms.lora import is_adapted


def loss_sum(model: GPT, hidden: Tensor, targets: Tensor, target_positions: Tensor | None = None) -> Tensor:
    """The summed cross-entropy of the model's output head, a scalar in fp32. hidden: (B, T, C), the final states;
    targets: (B, T) with IGNORE; target_positions: see `cross_entropy_sum`.
    """
    if not _has_plain_head(model):
        return model_token_losses(model, hidden, targets, target_positions).sum()
    options = _head_options(model)
    return cross_entropy_sum(hidden, model.head_weight, targets, target_positions=target_positions, **options)


def model_token_losses(model: GPT, hidden: Tensor, targets: Tensor, target_positions: Tensor | None = None) -> Tensor:
    """The cross-entropy of each position (B, T) in fp32, 0 without a target; arguments as `loss_sum`."""
    head = model.lm_head
    if head is None or _has_plain_head(model):
        options = _head_options(model)
        return token_losses(hidden, model.head_weight, targets, target_positions=target_positions, **options)
    logits = lambda h: model.finish_logits(head(h).float())  # noqa: E731
    return head_losses(logits, hidden, targets, model.config.n_output, target_positions)


def _has_plain_head(model: GPT) -> bool:
    """Whether the head is no more than a product with its weight, which then suffices."""
    return model.lm_head is None or (type(model.lm_head) is Linear and not is_adapted(model.lm_head))


def _head_options(model: GPT) -> dict[str, Any]:
    bias = model.head_bias if model.lm_head is None else model.lm_head.bias
    return dict(bias=bias, scale=model.config.logit_scale, softcap=model.config.logit_softcap)


class Objective(ABC):
    """What a step minimizes: the sum over its micro batches of `loss_sum`, divided by the sum of `count`."""

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """What the micro batch adds to the divisor."""

    @abstractmethod
    def loss_sum(self, model: GPT, batch: Batch) -> Tensor:
        """The micro batch's summed loss, a scalar in fp32. model: perhaps in Fabric's wrapper, which forwards its
        attributes.
        """

    def metrics(self) -> dict[str, Tensor]:
        """What else to log about the micro batches since the last call: scalars, still on the device."""
        return {}


class NextToken(Objective):
    """Cross-entropy of the tokens to learn."""

    def count(self, batch: Batch) -> int:
        return batch.n_targets

    def loss_sum(self, model: GPT, batch: Batch) -> Tensor:
        return model(
            batch.tokens,
            context=batch.context(),
            output=lambda hidden: loss_sum(model, hidden, batch.targets, batch.target_positions),
        )
