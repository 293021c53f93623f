"""From logits to tokens. Every row is on its own: its random numbers depend on its seed alone, never on its neighbours.

The order is transformers': repetition penalty, temperature, top-k, top-p, min-p, then one draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from litlm.settings import SamplingSettings


class Sampler:
    """Chooses one token a row. `seen` collects the tokens so far where the repetition penalty needs them."""

    def __init__(self, settings: SamplingSettings, prompts: list[list[int]], vocab_size: int, device: torch.device):
        self.settings = settings
        self.randoms = [torch.Generator() for _ in prompts]
        for random in self.randoms:
            if settings.seed is None:
                random.seed()
            else:
                random.manual_seed(settings.seed)
        self.seen: Tensor | None = None
        if settings.repetition_penalty != 1.0:
            self.seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self.seen, prompts, strict=True):
                row[torch.tensor(prompt, device=device)] = True

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (B, V) -> tokens (B,)."""
        settings, logits = self.settings, logits.float()
        if self.seen is not None:
            penalty = settings.repetition_penalty
            logits = torch.where(self.seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        if settings.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = self._draw(filtered(logits, settings).softmax(dim=-1))
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _draw(self, probs: Tensor) -> Tensor:
        """Invert each row's cumulative distribution at one uniform number."""
        uniform = torch.stack([torch.rand(1, generator=random) for random in self.randoms]).to(probs.device)  # (B, 1)
        # A parallel sum may waver in its last bit, up where nothing was added: cummax and where keep the steps honest.
        cumulative = torch.where(probs > 0, probs.cumsum(dim=-1), 0).cummax(dim=-1).values
        total = cumulative[:, -1:]
        # right=True never lands on a token of probability 0; the minimum guards against u * total rounding up to total.
        index = torch.searchsorted(cumulative, uniform * total, right=True)
        return torch.minimum(index, (cumulative < total).sum(dim=-1, keepdim=True))[:, 0]


def filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits (B, V) divided by the temperature, -inf where top-k, top-p or min-p rule a token out. fp32."""
    logits = logits.float()
    # Relative to the highest, so that no temperature, however low, takes it past the largest float.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(settings.top_k).values[:, -1:], -torch.inf)
    if settings.top_p is not None and settings.top_p < 1:
        ordered, order = logits.sort(dim=-1)
        # From the least likely up: what together has no more than 1 - top_p goes; the likeliest always stays.
        drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - settings.top_p
        drop[:, -1] = False
        logits = logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    if settings.min_p:
        probs = logits.softmax(dim=-1)
        logits = logits.masked_fill(probs < settings.min_p * probs.amax(dim=-1, keepdim=True), -torch.inf)
    return logits
