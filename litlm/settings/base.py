"""How settings report their problems, and how tokens are chosen."""

from __future__ import annotations

import os
from dataclasses import dataclass


def as_tuples(settings: object, *names: str) -> None:
    """Fields that hold several texts or paths may be given one, a list or none."""
    for name in names:
        value = getattr(settings, name)
        values = (value,) if isinstance(value, (str, os.PathLike)) else tuple(value or ())
        object.__setattr__(settings, name, tuple(os.fspath(v) if isinstance(v, os.PathLike) else v for v in values))


def complain(what: str, problems: list[str]) -> None:
    """One ValueError for all of them."""
    if problems:
        raise ValueError(f"{what} not valid:\n" + "\n".join(f"- {p}" for p in problems))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are chosen.

    Args:
        max_new_tokens: At most this many new tokens; fewer where the context ends.
        temperature: 0 is greedy; higher is more random.
        top_k: Only the k most likely tokens.
        top_p: Only the most likely tokens that together have this probability.
        min_p: Only tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        stop: Text that ends an answer (it is not part of it).
        seed: Makes sampling repeatable.
        ignore_eos: Go on past the model's end token.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        as_tuples(self, "stop")
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.temperature >= 0:
            problems.append(f"temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k} must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must lie in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            problems.append(f"min_p={self.min_p} must lie in [0, 1]")
        if not self.repetition_penalty > 0:
            problems.append(f"repetition_penalty={self.repetition_penalty} must be positive; 1 is none")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            problems.append(f"seed={self.seed} must lie in [0, 2**63), or be None")
        if "" in self.stop:
            problems.append("stop holds an empty text, which would end every answer at once")
        complain("Sampling settings", problems)
