"""Preference optimization: make the chosen answers of pairs more likely than the rejected ones.

Write p(y) for the model's log-probability of an answer y given its prompt (a sum over tokens), r(y) for the reference
model's, n(y) for the number of tokens, c and j for the chosen and the rejected answer.

There is no second model in memory. With adapters the reference is the same model with its adapters disabled, in the
same micro batch. When all weights are trained, the reference's log-probabilities are computed once before training
(`precompute_reference`) and come with the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.context.base import send
from litlm.data.base import Batch
from litlm.data.preference import PreferenceBatch, PreferenceDataset
from litlm.model import GPT
from litlm.ops.cross_entropy import IGNORE
from litlm.settings.train import PreferenceSettings
from litlm.train.loss import Objective, model_token_losses


def dpo(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta m) of margins m = (p(c) - r(c)) - (p(j) - r(j)) (pairs,): Rafailov et al. 2023, eq. 7.

    With label_smoothing e: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m), for labels that are wrong with
    probability e (cdpo: Mitchell 2023, "A note on DPO with noisy preferences").
    """
    loss = -(1 - label_smoothing) * F.logsigmoid(beta * margin)
    return loss - label_smoothing * F.logsigmoid(-beta * margin) if label_smoothing else loss


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(m - 1 / (2 beta))^2 of margins m (pairs,): Azar et al. 2023, eq. 17, with beta for their tau.

    As in TRL, m is made of means over tokens, (p(c) - r(c)) / n(c) - (p(j) - r(j)) / n(j); the paper leaves that open.
    """
    return (margin - 1 / (2 * beta)).square()


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-a(c) - beta log sigmoid(log odds(c) - log odds(j)): Hong et al. 2024, eqs. 6 and 7, with beta for their lambda.

    The arguments (pairs,) are a(y) = p(y) / n(y); odds(y) = e^a / (1 - e^a). The first term is the cross-entropy of the
    chosen answer, a mean over its tokens (TRL includes the prompt's tokens and takes the mean over all pairs' tokens).
    """

    def log_odds(a: Tensor) -> Tensor:
        a = a.clamp(max=-1e-6)  # a certain answer has infinite odds
        return a - (-torch.expm1(a)).log()

    return -chosen - beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


class Preference(Objective):
    """The loss of pairs that the settings choose; `count` is pairs.

    reference: a context in which the model is the reference model (`lambda: adapters_disabled(model)`). None if batches
    bring the reference's log-probabilities, and for orpo, which has no reference.

    `metrics` are means over the pairs since the last call: each answer's reward beta (p - r) (orpo: beta p / n), their
    margin, and the accuracy, how often the chosen answer has the higher reward.
    """

    def __init__(
        self, settings: PreferenceSettings, reference: Callable[[], AbstractContextManager[None]] | None = None
    ) -> None:
        self.settings, self.reference = settings, reference
        self._sums: Tensor | None = None  # of chosen rewards, rejected rewards, chosen > rejected
        self._pairs = 0

    def count(self, batch: Batch) -> int:
        return sum(map(len, batch.examples)) // 2

    def loss_sum(self, model: GPT, batch: Batch) -> Tensor:
        assert isinstance(batch, PreferenceBatch)
        s = self.settings
        documents = send(torch.tensor(batch.answer_documents()), batch.tokens.device)  # (pairs, 2)
        ref = None if s.loss == "orpo" else self._reference(model, batch, documents)
        policy, n_tokens = (t[documents] for t in log_probs(model, batch))
        scores = policy / n_tokens if ref is None else policy - ref  # (pairs, 2)
        if s.loss == "orpo":
            losses = orpo(scores[:, 0], scores[:, 1], s.beta)
        elif s.loss == "ipo":
            means = scores / n_tokens
            losses = ipo(means[:, 0] - means[:, 1], s.beta)
        else:
            losses = dpo(scores[:, 0] - scores[:, 1], s.beta, s.label_smoothing)
        self._add_rewards(s.beta * scores.detach())
        return losses.sum()

    @torch.no_grad()
    def _reference(self, model: GPT, batch: PreferenceBatch, documents: Tensor) -> Tensor:
        """The reference's log-probabilities (pairs, 2)."""
        if self.reference is None:
            if batch.reference_logps is None:
                raise ValueError(
                    f"loss={self.settings.loss} needs a reference model: give Preference a context that disables the "
                    "adapters, or use data from precompute_reference"
                )
            return send(batch.reference_logps, batch.tokens.device)
        with _eval_mode(model), self.reference():
            return log_probs(model, batch)[0][documents]

    def _add_rewards(self, rewards: Tensor) -> None:
        """Add up rewards (pairs, 2) on the device, for `metrics`."""
        accurate = (rewards[:, 0] > rewards[:, 1]).float()
        sums = torch.cat((rewards, accurate[:, None]), dim=1).sum(0)
        self._sums = sums if self._sums is None else self._sums + sums
        self._pairs += rewards.size(0)

    def metrics(self) -> dict[str, Tensor]:
        if self._sums is None:
            return {}
        chosen, rejected, accuracy = (self._sums / self._pairs).unbind()
        self._sums, self._pairs = None, 0
        return dict(rewards_chosen=chosen, rewards_rejected=rejected, margin=chosen - rejected, accuracy=accuracy)


def log_probs(model: GPT, batch: Batch) -> tuple[Tensor, Tensor]:
    """For each document of the batch, row by row: the log-probability of its tokens to learn, and their number; both
    (documents,).
    """
    losses = model(
        batch.tokens,
        context=batch.context(),
        output=lambda hidden: model_token_losses(model, hidden, batch.targets, batch.target_positions),
    )
    width = batch.tokens.size(1)
    sizes = [[*row, width - sum(row)] for row in batch.lengths]  # the last is padding, or nothing
    is_document = [flag for row in sizes for flag in [True] * (len(row) - 1) + [False]]

    def document_sums(t: Tensor) -> Tensor:
        parts = t.flatten().split([n for row in sizes for n in row])
        return torch.stack([part.sum() for part, keep in zip(parts, is_document, strict=True) if keep])

    return -document_sums(losses), document_sums((batch.targets != IGNORE).float())


@torch.no_grad()
def precompute_reference(
    model: GPT, data: PreferenceDataset, micro_batch_size: int, device: torch.device
) -> PreferenceDataset:
    """`data` with the log-probabilities of the model as it is now: the reference for training all weights."""
    reference = torch.empty(len(data), 2)
    with _eval_mode(model):
        for start in range(0, len(data), 64):
            for batch in data.batches(range(start, min(start + 64, len(data))), micro_batch_size):
                values = log_probs(model, batch.to(device))[0].cpu()
                numbers = torch.tensor([n for row in batch.examples for n in row])
                reference[start + numbers // 2, numbers % 2] = values
    return replace(data, reference_logps=reference)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout in the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
