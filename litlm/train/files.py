"""What a run writes down, and how it is read back: metrics.csv, samples.jsonl, settings.yaml. Itself it imports no
torch.

The first two survive a kill: half a line is left out when they are read.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Mapping
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
    """One CSV row a step, in the file at once: a killed run keeps its log. Later rows may bring new columns."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path, self._last = path, step
        columns, rows = read_table(path) if step and path.is_file() else ([], [])
        self._replace(columns, [row for row in rows if int(row["step"]) <= step])

    def write(self, row: Row) -> None:
        step = int(row["step"] or 0)
        back, new = step <= self._last, [name for name in row if name not in self.columns]
        if back or new:
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
    """The columns and rows of a metrics.csv, as they are written there."""
    lines = _whole_lines(path)
    try:
        columns, *cells = csv.reader(lines) if lines else [[]]
    except csv.Error as e:
        raise ValueError(f"{path} is no CSV file ({e})") from None
    rows = [dict(zip(columns, row, strict=True)) for row in cells if len(row) == len(columns)]
    return columns, [row for row in rows if row.get("step", "").isdecimal()]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, without the cells that are empty."""
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
    # What follows the last newline was being written when the run was killed; a crash of the system may leave NULs.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [line for line in lines if line.strip() and "\0" not in line]


# --- an earlier run in the same folder -----------------------------------------------------------------------------

# What a run writes beside its checkpoints, and what another one in the same folder would write over.
RECORDS = ("settings.yaml", "metrics.csv", "samples.jsonl", "report.html", "loss.png", "tensorboard")


def n_steps(out_dir: Path) -> int:
    """Steps that the metrics.csv in a folder has; one at least where it is no such file of ours."""
    path = out_dir / "metrics.csv"
    try:
        columns, rows = read_table(path) if path.is_file() else ([], [])
    except ValueError:
        return 1
    return len(rows) if "step" in columns or not columns else 1


def put_aside(settings: RunSettings, out_dir: Path) -> Path | None:
    """Move what an earlier run wrote into a folder of its own, earlier-1/ or the next that is free, and return that.

    None where there is nothing to lose: a run that has done no step, with the same settings.
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
    """Remove what an earlier run wrote, but for its checkpoints and what trials of this one have just written."""
    for path in (*map(out_dir.joinpath, ("final", *RECORDS)), *out_dir.glob("left-step-*"), *out_dir.glob("earlier-*")):
        with writing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# --- settings, and where a run ran ---------------------------------------------------------------------------------


def settings_text(settings: RunSettings) -> str:
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


def read_settings(path: Path) -> dict[str, Any]:
    """What a settings.yaml holds; nothing where there is no such file."""
    found = read_yaml(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def changed_training(settings: RunSettings, path: Path) -> list[str]:
    """What `settings` say about training that the run of this settings.yaml did not, such as "lr=0.1 (it was 0.2)"."""
    now = _plain(dataclasses.asdict(settings.train))
    try:
        before = dict(read_settings(path)["train"])
    except (ValueError, KeyError, TypeError):  # it is only for comparison: the checkpoint has all that the run needs
        return []
    return [f"{k}={now[k]} (it was {before[k]})" for k in now if k in before and now[k] != before[k]]


def command() -> str:
    """The command line as it was typed."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name if Path(sys.argv[0]).name == "litlm" else sys.argv[0], *sys.argv[1:]])


def origin(device: torch.device | None) -> list[str]:
    """What a run ran with."""
    import platform

    names = ("torch", "lightning", "safetensors", "tokenizers")
    versions = [f"Python {platform.python_version()}", f"litlm {__version__}"]
    versions += [f"{name} {version(name)}" for name in names]
    return [", ".join(versions)] + ([] if device is None else [device_name(device)])


def revision() -> str:
    """The git commit that the working directory is at, with -dirty where files differ; nothing where there is none."""
    import subprocess

    ask = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else ""


def device_name(device: torch.device) -> str:
    import platform
    import re

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
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{seconds:02} min"
