"""The files that a run writes, and how they are read back: metrics.csv, samples.jsonl, settings.yaml. No torch.

The first two survive a kill: a line that was not written completely is skipped when they are read.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litlm import __version__
from litlm.io.writing import write_text, writing
from litlm.io.yaml import read_yaml
from litlm.settings import RunSettings

if TYPE_CHECKING:
    import torch

Number = float | int | None
Row = Mapping[str, Number]


# --- metrics.csv and samples.jsonl ---------------------------------------------------------------------------------


class Metrics:
    """One CSV row per step, written at once, so that a killed run keeps its log. Later rows may add columns."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path, self._last = path, step
        columns, rows = read_table(path) if step and path.is_file() else ([], [])
        self._replace(columns, [row for row in rows if int(row["step"]) <= step])

    def write(self, row: Row) -> None:
        """Append a row; one of an earlier step replaces all later rows (after a rollback)."""
        step = int(row["step"] or 0)
        rolled_back, new = step <= self._last, [name for name in row if name not in self.columns]
        if rolled_back or new:
            _, rows = read_table(self.path)
            self._replace(self.columns + new, [old for old in rows if int(old["step"]) < step])
        self._last = step
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_lines([[_cell(row.get(name)) for name in self.columns]]))

    def _replace(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        header = [columns] if columns else []
        write_text(self.path, _lines(header + [[row.get(name, "") for name in columns] for row in rows]))


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Number) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a metrics.csv, as text. Raises ValueError if it is not a CSV file."""
    lines = _whole_lines(path)
    try:
        columns, *cells = csv.reader(lines) if lines else [[]]
    except csv.Error as e:
        raise ValueError(f"{path} is no CSV file ({e})") from None
    rows = [dict(zip(columns, row, strict=True)) for row in cells if len(row) == len(columns)]
    return columns, [row for row in rows if row.get("step", "").isdecimal()]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, without empty cells."""
    rows = []
    for cells in read_table(path)[1]:
        row = {}
        for name, cell in cells.items():
            with contextlib.suppress(ValueError):
                row[name] = float(cell)
        rows.append(row)
    return rows


def read_samples(path: Path) -> list[dict[str, Any]]:
    """{"step", "prompt", "text"} of each sample."""
    found = []
    for line in _whole_lines(path) if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [
        s for s in found if isinstance(s, dict) and isinstance(s.get("step"), int) and {"prompt", "text"} <= s.keys()
    ]


def _whole_lines(path: Path) -> list[str]:
    # Text after the last newline was being written when the run was killed; a crash of the system may leave NULs.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [line for line in lines if line.strip() and "\0" not in line]


# --- an earlier run in the same folder -----------------------------------------------------------------------------

# What a run writes beside its checkpoints, and another one in the same folder would overwrite.
RECORDS = ("settings.yaml", "metrics.csv", "samples.jsonl", "report.html", "loss.png", "tensorboard")


def n_steps(out_dir: Path) -> int:
    """Steps in the folder's metrics.csv; 1 if that is not a file of ours."""
    path = out_dir / "metrics.csv"
    try:
        columns, rows = read_table(path) if path.is_file() else ([], [])
    except ValueError:
        return 1
    return len(rows) if "step" in columns or not columns else 1


def put_aside(settings: RunSettings, out_dir: Path) -> Path | None:
    """Move what an earlier run wrote into earlier-1/ or the next free folder, and return that.

    None if nothing would be lost: the earlier run has the same settings and no step.
    """
    samples, known = out_dir / "samples.jsonl", out_dir / "settings.yaml"
    lost = n_steps(out_dir) > 0 or (samples.is_file() and samples.stat().st_size > 0)
    if not lost and known.is_file():
        try:
            lost = read_settings(known) != _plain(dataclasses.asdict(settings))
        except ValueError:
            lost = True
    if not lost:
        return None
    folder = next(p for n in itertools.count(1) if not (p := out_dir / f"earlier-{n}").exists())
    with writing(folder):
        folder.mkdir()
        for name in RECORDS:
            if (out_dir / name).exists():
                os.replace(out_dir / name, folder / name)
    return folder


def clear_run(out_dir: Path) -> None:
    """Remove what an earlier run wrote, except its checkpoints, and what trials of this run have just written."""
    for path in (*map(out_dir.joinpath, ("final", *RECORDS)), *out_dir.glob("left-step-*"), *out_dir.glob("earlier-*")):
        with writing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# --- settings and origin -------------------------------------------------------------------------------------------


def settings_text(settings: RunSettings) -> str:
    """The settings as YAML."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a settings.yaml; empty if there is none. Raises ValueError if it is not YAML."""
    found = read_yaml(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def changed_settings(settings: RunSettings, path: Path) -> list[str]:
    """Settings that differ from those in this settings.yaml, such as "lr=0.1 (it was 0.2)"; data.path and the like with
    their section. Not those about the folder, nor the date, which a resumed run keeps.
    """
    try:
        before = _by_flag(read_settings(path))
    except ValueError:  # only for information: the checkpoint has everything that the run needs
        return []
    now, skipped = _by_flag(_plain(dataclasses.asdict(settings))), ("out_dir", "resume", "overwrite", "data.date")
    changed = [key for key in now if key in before and key not in skipped and now[key] != before[key]]
    return [f"{key.removeprefix('train.')}={now[key]} (it was {before[key]})" for key in changed]


def _by_flag(settings: dict[str, Any]) -> dict[str, Any]:
    """{"model": ..., "train.lr": ...}: values by the flags that set them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        is_section = name in ("data", "method", "train", "preference") and isinstance(value, dict)
        found |= {f"{name}.{key}": v for key, v in value.items()} if is_section else {name: value}
    return found


# Above the settings: how the run was started, and below that how it was started before it was resumed.
_STARTED = "started "


def write_settings(
    settings: RunSettings, out_dir: Path, device: torch.device | None = None, *, resumed: bool = False
) -> None:
    """The fully resolved settings as YAML that `litlm COMMAND --config` runs again, with the run's origin above.

    resumed: the origins that the file names already are kept.
    """
    path = out_dir / "settings.yaml"
    now = datetime.now().astimezone()
    lines = "\n".join([command(), *origin(device), f"{_STARTED}{now:%Y-%m-%d %H:%M %z}"]).splitlines()
    # YAML takes no control characters, even in comments
    lines = ["# " + "".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines]
    if resumed and (before := starts(path)):
        lines += ["#", "# Resumed. Before that:", *(f"# {line}".rstrip() for line in before)]
    write_text(path, "\n".join(lines) + "\n" + settings_text(settings))


def starts(path: Path) -> list[str]:
    """How a run was started, and before that if it was resumed: the comments at the top of its settings.yaml."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [line[2:] for line in itertools.takewhile(lambda line: line.startswith("#"), text.split("\n"))]


def first_start(lines: list[str]) -> datetime | None:
    """When a run was started first, by what `starts` returned."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            return datetime.strptime(line, f"{_STARTED}%Y-%m-%d %H:%M %z")
    return None


def command() -> str:
    """The command line as typed."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name if Path(sys.argv[0]).name == "litlm" else sys.argv[0], *sys.argv[1:]])


def origin(device: torch.device | None) -> list[str]:
    """Versions and device."""
    import platform

    names = ("torch", "lightning", "safetensors", "tokenizers")
    versions = [f"Python {platform.python_version()}", f"litlm {__version__}"]
    versions += [f"{name} {version(name)}" for name in names]
    return [", ".join(versions)] + ([] if device is None else [device_name(device)])


def revision() -> str:
    """The git commit of the working directory, with -dirty if files differ; "" if there is none."""
    import subprocess

    ask = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else ""


def device_name(device: torch.device) -> str:
    """A device for people."""
    import platform

    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    name, known = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if known.is_file() and (found := re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.M)):
        name = found[1]
    return f"{device.type}: {name}, {torch.get_num_threads()} threads"


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.lr": 2e-4, ...}"""
    data = _plain(settings if isinstance(settings, dict) else dataclasses.asdict(settings))
    found: dict[str, Any] = {}
    for name, value in data.items():
        nested = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def duration(seconds: float) -> str:
    """1:05 min, 2 h 03 min"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{seconds:02} min"
