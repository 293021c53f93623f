"""What a run writes down, and how it is read back: metrics.csv, samples.jsonl, settings.yaml. Itself it imports no
torch.

The first two survive a kill: half a line is left out when they are read.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litlm import __version__
from litlm.plain import read_yaml
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
        from litlm.checkpoint.base import write_text  # which loads torch, and reading needs none

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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full or gone is said with the file's name."""
    try:
        yield
    except OSError as e:
        raise ValueError(f"{path} could not be written ({e.strerror or e})") from e


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
