"""Where the model is in the folder of a training run. No torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path

STEP = re.compile(r"step-(\d+)")  # a run's checkpoints: step-000100
_MODEL_FILES = ("config.json", "adapter_config.json", "model_config.yaml")


def model_directory(path: Path) -> Path:
    """The model (or adapter) in a training run's folder: `final/`, or else its newest checkpoint. Any other `path` is
    returned as it is. Raises ValueError for a run that has saved no model yet.
    """
    if any((path / name).exists() for name in _MODEL_FILES):
        return path
    steps = {int(match[1]): folder for folder in path.glob("step-*") if (match := STEP.fullmatch(folder.name))}
    for folder in (path / "final", *(steps[step] for step in sorted(steps, reverse=True))):
        if any((folder / name).is_file() for name in _MODEL_FILES):
            why = "" if folder.name == "final" else ", the newest checkpoint of a run that has no final/ yet"
            print(f"Taking {folder}{why}", file=sys.stderr)
            return folder
    if (path / "metrics.csv").is_file() and (path / "settings.yaml").is_file():
        raise ValueError(
            f"{path} is the folder of a training run that has saved no model yet; continue it with litlm COMMAND "
            f"--config {path / 'settings.yaml'} --resume auto"
        )
    return path
