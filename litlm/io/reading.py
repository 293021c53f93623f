"""Files on this machine, no torch: why one can't be read, JSON, and where in a run's directory its model is.

A file that can't be opened is not a damaged one. Libraries tell the two apart badly, or not at all, so the file is
opened here first, and what the system says is kept apart from "download it again".
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

STEP = re.compile(r"step-(\d+)")  # a training run's checkpoints: step-000100
_MODEL_FILES = ("config.json", "adapter_config.json", "model_config.yaml")
_REASONS = {
    errno.ENOSPC: "the disk is full; free space and run again",
    errno.EACCES: "permission denied: change that (chmod), or ask its owner",
    errno.EPERM: "permission denied: change that (chmod), or ask its owner",
    errno.EISDIR: "it is a directory",
    errno.ENOENT: "it does not exist",
    errno.EIO: "the disk fails to read it (I/O error)",
}


def os_reason(err: OSError) -> str:
    """What the operating system says, in words."""
    return _REASONS.get(err.errno or 0) or err.strerror or str(err)


def unreadable(path: str | Path, err: OSError) -> ValueError:
    """The error to raise where the system does not give a file. It says nothing about the file's content."""
    if err.errno == errno.ENOENT and os.path.islink(path):
        return ValueError(f"{path} can't be read: it is a link to {os.readlink(path)}, which does not exist")
    return ValueError(f"{path} can't be read: {os_reason(err)}")


def check_readable(path: str | Path) -> None:
    """Raise ValueError if the system does not let the file be opened and read."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as e:
        raise unreadable(path, e) from None


def read_text(path: str | Path) -> str:
    """The file's text. ValueError if it can't be read, or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise unreadable(path, e) from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text ({e}); download or copy it again") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if it can't be read, is not JSON, or holds something else."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON ({e}); download or copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}; download or copy it again")
    return value


def model_directory(path: Path) -> Path:
    """`path`, or for the directory of a training run the model (or adapter) in it, which is said.

    That is its `final/`, or its newest checkpoint where there is none yet. ValueError for a run without either.
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
            f"{path} is the directory of a training run that has saved no model yet; let it go on with litlm COMMAND "
            f"--config {path / 'settings.yaml'} --resume auto"
        )
    return path
