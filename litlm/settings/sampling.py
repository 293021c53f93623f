"""How tokens are sampled: of generation, chat, and the Python API."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from litlm.io.errors import did_you_mean
from litlm.settings.base import Settings, as_tuples, below_one, raise_problems


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """How tokens are sampled.

    Args:
        max_new_tokens: Generate at most this many tokens; fewer if the context is full.
        temperature: 0 is greedy; higher is more random.
        top_k: Sample from the k most likely tokens only.
        top_p: Sample from the smallest set of most likely tokens whose probabilities add up to this.
        min_p: Sample only from tokens at least this fraction as likely as the most likely one.
        repetition_penalty: Above 1, tokens that occurred before become less likely.
        stop: Text that ends an answer (and is not part of it).
        seed: Makes sampling repeatable.
        ignore_eos: Continue past the model's end token.
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
        problems = below_one(self, "max_new_tokens", "top_k")
        if not self.temperature >= 0:
            problems.append(f"temperature={self.temperature} must be 0 (greedy) or more")
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
        raise_problems("Sampling settings", problems)

    def note(self) -> str | None:
        """What of these settings has no effect, for people; None if all have one."""
        given = {key: getattr(self, key) for key in ("top_k", "top_p", "min_p", "seed")}
        unused = [f"{key}={value}" for key, value in given.items() if value is not None]
        if self.temperature or not unused:
            return None
        return f"{', '.join(unused)} without effect: temperature=0 is greedy; set it too, such as to 0.7, to sample"

    def changed(self, **options: Any) -> SamplingSettings:
        """These settings with other values. Raises ValueError for an unknown field or a value out of range."""
        known = [f.name for f in fields(SamplingSettings)]
        unknown = sorted(options.keys() - known)
        problems = [f"{name} is unknown" + did_you_mean(name, known) for name in unknown]
        raise_problems("Sampling settings", problems)
        return replace(self, **options) if options else self
