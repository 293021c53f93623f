"""full: all weights are trained, or all but those that `freeze` names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from litlm.settings import MethodSettings
from litlm.train.methods.base import AppliedMethod, Method
from litlm.transforms.lora import name_matches

if TYPE_CHECKING:
    from litlm.llm import LLM


class Full(Method):
    """All weights, or some of them."""

    name, whole_model = "full", True

    def apply(self, llm: LLM, settings: MethodSettings) -> AppliedMethod:
        params = dict(llm.model.named_parameters())
        frozen = select(params, settings.freeze, "freeze")
        if len(frozen) == len(params):
            raise ValueError(f"freeze={settings.freeze} leaves nothing to train; name fewer parameters")
        for name, p in params.items():
            p.requires_grad_(name not in frozen)
        notes = [f"{len(frozen)} tensors frozen"] if frozen else []
        return AppliedMethod(lambda folder, base: llm.save(folder), llm.config.to_hf, notes=notes)

    def for_new_tokens(self, settings: MethodSettings, modules: tuple[str, ...]) -> MethodSettings:
        return settings


METHODS = (Full(),)


def select(names: Iterable[str], patterns: tuple[str, ...], setting: str) -> set[str]:
    """The parameters that patterns mean: by their name, the end of it, a module that they are in, or with * and ?.

    Raises ValueError for a pattern that matches nothing.
    """
    names, chosen = list(names), set[str]()
    for pattern in patterns:
        found = {n for n in names if name_matches(n, pattern) or n.startswith(pattern + ".")}
        if not found:
            known = ", ".join(dict.fromkeys(re.sub(r"^layers\.\d+\.", "", name) for name in names))
            raise ValueError(
                f"{setting}={pattern!r} names nothing in this model; there are {known}, and patterns like layers.0.*"
            )
        chosen |= found
    return chosen
