"""Where the model is in the folder of a training run. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

STEP = re.compile(r"step-(\d+)")  # a run's checkpoints: step-000100
_MODEL_FILES = ("config.json", "adapter_config.json", "model_config.yaml")


def model_directory(path: Path) -> Path:
    """The model (or adapter) in a training run's folder: `final/`, or else its newest checkpoint. Any other `path` is
    returned as it is. Raises ValueError for a run that has saved no model yet.
    """
    folder = find_model(path)
    if folder != path:
        why = "" if folder.name == "final" else ", the newest checkpoint of a run that has no final/ yet"
        print(f"Taking {folder}{why}", file=sys.stderr)
    elif _has_begun(path) and not model_files(path):
        raise ValueError(
            f"{path} is the folder of a training run that has saved no model yet; continue it with litlm COMMAND "
            f"--config {path / 'settings.yaml'} --resume auto"
        )
    return folder


def find_model(path: Path) -> Path:
    """`model_directory` without messages and errors."""
    return path if model_files(path) else next(_saved_models(path), path)


def model_files(path: Path) -> list[str]:
    """The files that make the directory itself a model or an adapter."""
    return [name for name in _MODEL_FILES if (path / name).exists()]


def is_adapter(path: Path) -> bool:
    """Whether the directory holds an adapter, and no model by itself."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def is_run_folder(path: Path) -> bool:
    """Whether a training run has written to the directory."""
    return _has_begun(path) or any(True for _ in _saved_models(path))


def saved_by_run(path: Path, run: Path) -> bool:
    """Whether the model in `path`, also that of a run, is what the run in folder `run` has saved: its `final/` or a
    checkpoint."""
    folder = find_model(path).resolve()
    return folder.parent == run.resolve() and (folder.name == "final" or STEP.fullmatch(folder.name) is not None)


def refuse_run_folder(out_dir: Path) -> None:
    """Raise ValueError if the directory is a run's: with a model in it, it would not stand for what the run trained."""
    if is_run_folder(out_dir.parent) and saved_by_run(out_dir, out_dir.parent):
        raise ValueError(
            f"out_dir={str(out_dir)!r} is what the training run in {out_dir.parent} has saved; name another out_dir"
        )
    if is_run_folder(out_dir):
        raise ValueError(
            f"out_dir={str(out_dir)!r} is the folder of a training run, which would then stand for this model and not "
            f"for what it trained; name another out_dir, such as {out_dir / 'model'}"
        )


def _has_begun(path: Path) -> bool:
    return (path / "metrics.csv").is_file() and (path / "settings.yaml").is_file()


def _saved_models(path: Path) -> Iterator[Path]:
    """`final/` and the checkpoints, newest first, where they hold a model or an adapter."""
    steps = {int(match[1]): folder for folder in path.glob("step-*") if (match := STEP.fullmatch(folder.name))}
    for folder in (path / "final", *(steps[step] for step in sorted(steps, reverse=True))):
        if model_files(folder):
            yield folder
