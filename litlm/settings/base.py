"""What all settings share: validation, and the help texts of common fields."""

from __future__ import annotations

import os
from dataclasses import dataclass


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
