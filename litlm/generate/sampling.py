"""From logits to tokens. Rows are independent: a row's random numbers depend on the seed alone, not on the batch.

The order is that of transformers (`generation/logits_process.py`): repetition penalty, temperature, top-k, top-p,
min-p, then one draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from litlm.settings import SamplingSettings


class Sampler:
    """Chooses one token per row; holds each row's generator and, for the repetition penalty, the tokens so far."""

    def __init__(self, settings: SamplingSettings, prompts: list[list[int]], vocab_size: int, device: torch.device):
        self.settings = settings
        self.generators = [torch.Generator() for _ in prompts]
        for generator in self.generators:
            if settings.seed is None:
                generator.seed()
            else:
                generator.manual_seed(settings.seed)
        self.occurred: Tensor | None = None  # (B, V) bool
        if settings.repetition_penalty != 1.0:
            self.occurred = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self.occurred, prompts, strict=True):
                row[torch.tensor(prompt, device=device)] = True

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (B, V) -> tokens (B,)."""
        settings, logits = self.settings, logits.float()
        if self.occurred is not None:  # Keskar et al. 2019
            penalty, occurred = settings.repetition_penalty, self.occurred[:, : logits.size(-1)]
            logits = torch.where(occurred, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        if settings.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = self._draw(filter_logits(logits, settings).softmax(dim=-1))
        if self.occurred is not None:
            self.occurred.scatter_(1, tokens[:, None], True)
        return tokens

    def _draw(self, probs: Tensor) -> Tensor:
        """Inverse transform sampling: probs (B, V) -> tokens (B,)."""
        uniform = torch.stack([torch.rand(1, generator=g) for g in self.generators]).to(probs.device)  # (B, 1)
        # A parallel cumsum may differ in the last bit where nothing was added; where and cummax keep it monotonic.
        cumulative = torch.where(probs > 0, probs.cumsum(dim=-1), 0).cummax(dim=-1).values
        total = cumulative[:, -1:]
        # right=True never selects a token of probability 0; minimum guards against uniform * total rounding to total.
        index = torch.searchsorted(cumulative, uniform * total, right=True)
        return torch.minimum(index, (cumulative < total).sum(dim=-1, keepdim=True))[:, 0]


def filter_logits(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits (B, V) divided by the temperature, in fp32; -inf for tokens that top-k, top-p or min-p exclude.

    top-p: Holtzman et al. 2020. min-p: Nguyen et al. 2024.
    """
    logits = logits.float()
    # Subtracting the maximum first keeps very low temperatures from overflowing.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(settings.top_k).values[:, -1:], -torch.inf)
    if settings.top_p is not None and settings.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        # Drop the least likely tokens while their sum is at most 1 - top_p; the most likely one always stays.
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - settings.top_p
        drop[:, -1] = False
        logits = logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    if settings.min_p:
        probs = logits.softmax(dim=-1)
        logits = logits.masked_fill(probs < settings.min_p * probs.amax(dim=-1, keepdim=True), -torch.inf)
    return logits
