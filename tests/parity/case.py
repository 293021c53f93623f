"""What a parity case is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """name: test id. family: Hugging Face model_type. hf: arguments of its config class. seed: of the weights."""

    name: str
    family: str
    hf: dict[str, Any] = field(hash=False)
    seed: int

    def __str__(self) -> str:
        return self.name


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}
