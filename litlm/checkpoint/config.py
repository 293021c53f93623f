"""A model's config without its weights, from wherever it is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from litlm.checkpoint.run_folder import model_directory
from litlm.config import Config
from litlm.zoo import find_model

_YAML = (".yaml", ".yml")


def load_config(model: str, ignore_fields: Collection[str] = ()) -> Config:
    """The config of a zoo model, a checkpoint, a config.json or a YAML file. A zoo name takes precedence over a path,
    and a path over a hub id.

    Raises ValueError if there is no such model, or its config can't be read.
    """
    path = Path(model)
    if find_model(model) is not None or not (path.exists() or path.suffix.lower() in _YAML):
        return Config.from_name(model)
    path = model_directory(path)
    if path.suffix.lower() in _YAML:
        return Config.from_yaml(path)
    # These two import torch.
    if path.suffix.lower() == ".gguf":
        from litlm.checkpoint.gguf import GGUFSource

        return GGUFSource(path).config
    if not (path / "config.json").is_file() and (path / "model_config.yaml").is_file():
        from litlm.checkpoint.litgpt import LitGPTSource

        return LitGPTSource(path).config
    return Config.from_hf(path, ignore_fields=ignore_fields)
