"""litlm: models that no Hugging Face family can express, in the same layout of files.

`config.json` holds litlm's own config under `config`, and the tensors have our names. Only litlm reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.weights import Match, Rule, WeightMap

if TYPE_CHECKING:
    from litlm.config import Config


class _SameNames(WeightMap):
    def __init__(self) -> None:
        super().__init__(())

    def from_theirs(self, name: str) -> Match | None:
        return Match(Rule(name, (name,)), name, (name,))

    def from_ours(self, name: str, shape: Sequence[int]) -> list[Match]:
        return [Match(Rule(name, (name,)), name, (name,))]


class _OwnFormat(Family):
    def weights_of(self, config: Config) -> WeightMap:
        return _SameNames()


def from_hf(hf: HFFields) -> dict[str, Any]:
    return {**hf.take("config"), "family": "litlm"}  # plain data, for Config.from_dict


def to_hf(config: Config) -> dict[str, Any]:
    return {"config": {key: value for key, value in config.to_dict().items() if key != "family"}}


FAMILY = _OwnFormat(model_type="litlm", architecture="GPT", from_hf=from_hf, to_hf=to_hf, rules=())
