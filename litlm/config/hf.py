"""A Hugging Face `config.json` as a Config and back, through the family that its model_type names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from litlm.config.model import Config
from litlm.families import HFFields, get_family
from litlm.families.base import FieldsError
from litlm.io.reading import read_json


def config_from_hf(source: str | Path | Mapping[str, Any], ignore_fields: Collection[str] = ()) -> Config:
    """`Config.from_hf`. Raises ValueError if the file can't be read or has fields that litlm doesn't support."""
    if isinstance(source, Mapping):
        return _from_fields(source, ignore_fields)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {_what_else(path.parent)}")
    data = read_json(path)
    try:
        return dataclasses.replace(_from_fields(data, ignore_fields), name=path.parent.resolve().name)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def _what_else(folder: Path) -> str:
    """What to do about a directory without config.json."""
    if files := sorted(folder.glob("*.gguf")):
        return f"the directory holds {files[0].name}: name that file ({files[0]})"
    if (folder / "adapter_config.json").is_file():
        return "the directory holds an adapter: give its model here, and the directory as --adapter"
    return "a checkpoint directory needs a config.json"


def _from_fields(data: Mapping[str, Any], ignore_fields: Collection[str]) -> Config:
    model_type = data.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError("the config has no model_type, so its family is unknown; is this a Hugging Face config.json?")
    family, fields = get_family(model_type), HFFields(data, ignore_fields)
    try:
        values = family.from_hf(fields)
    except FieldsError:  # of a nested config
        raise
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as e:
        # Text instead of a number, a division by zero: families don't check for what no published file has.
        raise ValueError(
            f"model_type {model_type!r}: a field of the config has a value of the wrong kind "
            f"({type(e).__name__}: {e}); compare it with the original config.json"
        ) from e
    fields.finish()
    fields.check_ignored()
    if model_type == "litlm":  # our own fields, as plain data
        return Config.from_dict(values)
    return Config(**{"family": model_type, **values})  # the text part of a multimodal model names its own family


def config_to_hf(config: Config) -> dict[str, Any]:
    """`Config.to_hf`. Raises ValueError if what was written, read back, is not this config."""
    family = get_family(config.family)
    data = {"architectures": [family.architecture], "model_type": family.model_type} | family.to_hf(config)
    read_back = dataclasses.replace(config_from_hf(data), name=config.name)
    if read_back != config:
        lost = [
            f"- {f.name}: {getattr(config, f.name)} would become {getattr(read_back, f.name)}"
            for f in dataclasses.fields(Config)
            if getattr(read_back, f.name) != getattr(config, f.name)
        ]
        raise ValueError(f"Hugging Face's {config.family!r} format can't express this config:\n" + "\n".join(lost))
    return data
