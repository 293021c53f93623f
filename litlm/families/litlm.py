"""litlm: models that no Hugging Face family can express, in the same layout of files.

`config.json` holds litlm's own config under `config`, and the tensors have our names. Only litlm reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from litlm.config import Config
from litlm.families.base import Family, HFFields, Match, Rule, WeightMap


class _OwnNames(WeightMap):
    """Every name is its own."""

    def __init__(self) -> None:
        super().__init__(())

    def from_theirs(self, name: str) -> Match | None:
        return Match(Rule(name, (name,)), name, (name,))

    def from_ours(self, name: str, shape: Sequence[int]) -> list[Match]:
        return [Match(Rule(name, (name,)), name, (name,))]


class _Own(Family):
    def weights_of(self, config: Config) -> WeightMap:
        return _OwnNames()


def from_hf(hf: HFFields) -> dict[str, Any]:
    config = Config.from_dict({**hf.take("config"), "family": "litlm"})
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}


def to_hf(config: Config) -> dict[str, Any]:
    return {"config": {key: value for key, value in config.to_dict().items() if key != "family"}}


FAMILY = _Own(model_type="litlm", architecture="GPT", from_hf=from_hf, to_hf=to_hf, rules=())
