"""What all settings share: validation, the help texts of common fields, and how tokens are sampled."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from litlm.io.errors import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings. Holds the help texts of fields that several of them have.

    Args:
        data: Files or folders of text, .jsonl or .parquet, a named dataset, or a hub id.
        val_path: Separate sources to validate on.
        val_fraction: Without val_path, this share of `path` is set aside for validation; 0 for none.
        split: Split of a hub dataset.
        text_key: Field of a record that holds its text.
        max_len: Longer examples are cut to this many tokens (and counted); None is the model's context.
        style: Prompt style by name (alpaca, chatml, ...); None is the model's own.
        date: Today, for prompts that tell the date (2026-07-26); None is the day the run begins.
        packing: Put several examples into one row, with a mask between them. Changes the speed, not the steps.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
        ignore_fields: Fields of the model's config.json to ignore although litlm does not know them.
        seed: Seed of all random choices.
        json: Print JSON, for scripts.
    """


def as_tuples(settings: object, *names: str) -> None:
    """Turn fields that hold several texts or paths into tuples; each may be given as one, as a list or as None."""
    for name in names:
        value = getattr(settings, name)
        values = (value,) if isinstance(value, (str, os.PathLike)) else tuple(value or ())
        object.__setattr__(settings, name, tuple(os.fspath(v) if isinstance(v, os.PathLike) else v for v in values))


def below_one(settings: object, *names: str) -> list[str]:
    """Problems of fields that must be at least 1, or None."""
    values = {name: getattr(settings, name) for name in names}
    return [f"{name}={value} must be at least 1" for name, value in values.items() if value is not None and value < 1]


def raise_problems(what: str, problems: list[str]) -> None:
    """Raise one ValueError that lists all `problems`, if there are any."""
    if problems:
        raise ValueError(f"{what} not valid:\n" + "\n".join(f"- {p}" for p in problems))


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

    def changed(self, **options: Any) -> SamplingSettings:
        """These settings with other values. Raises ValueError for an unknown field or a value out of range."""
        known = [f.name for f in fields(SamplingSettings)]
        unknown = sorted(options.keys() - known)
        problems = [f"{name} is unknown" + did_you_mean(name, known) for name in unknown]
        raise_problems("Sampling settings", problems)
        return replace(self, **options) if options else self
