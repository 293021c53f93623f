"""What a run shows and leaves: a live line, a CSV log, a loss curve, and settings that run again."""

from __future__ import annotations

import csv
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from litlm.checkpoint.base import atomic_file, write_text
from litlm.settings import FinetuneSettings


class Log:
    """One CSV row a step, flushed at once: a killed run keeps its log. The first row's fields are the columns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows: csv.DictWriter[str] | None = None

    def write(self, **row: float | None) -> None:
        if self._rows is None:
            self._rows = csv.DictWriter(self._file, list(row))
            self._rows.writeheader()
        self._rows.writerow({k: "" if v is None else f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Progress:
    """Loss, speed and time left: one line that rewrites itself on a terminal, a line every few seconds elsewhere."""

    def __init__(self, steps: int, seconds_between_lines: float = 10.0) -> None:
        self.steps, self.pause = steps, seconds_between_lines
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self.start = self.last = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            print(file=sys.stderr)

    def show(self, step: int, loss: float, val_loss: float | None, tokens_per_s: float) -> None:
        now = time.monotonic()
        left = (now - self.start) / step * (self.steps - step)
        text = f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {loss:.3f}"
        text += f"  val {val_loss:.3f}" if val_loss is not None else ""
        text += f"  {tokens_per_s:,.0f} tokens/s  {duration(left)} left"
        if self.live:
            end = "\n" if val_loss is not None else ""
            print(f"\r\033[K{text}", end=end, file=sys.stderr, flush=True)
        elif val_loss is not None or step in (1, self.steps) or now - self.last >= self.pause:
            self.last = now
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{seconds:02} min"


def plot_loss(losses: list[float], val_losses: list[tuple[int, float]], path: Path) -> None:
    """The loss curve as a PNG: each step faint, a running mean on top, validation as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training, each step")
    window = max(1, len(losses) // 20)
    mean = [sum(part) / len(part) for part in (losses[max(0, i - window) : i + 1] for i in range(len(losses)))]
    axes.plot(steps, mean, color="tab:blue", linewidth=2, label=f"training, mean of {window + 1} steps")
    if val_losses:
        x, y = zip(*val_losses, strict=True)
        axes.plot(x, y, "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(path) as part:
        figure.savefig(part, format="png")


def write_settings(settings: FinetuneSettings, out_dir: Path) -> None:
    """The fully resolved settings as YAML that `litlm finetune --config` runs again, with versions and the command."""
    import platform
    import shlex
    from importlib.metadata import version

    import yaml

    names = ("litlm", "torch", "lightning", "safetensors", "tokenizers")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    data = _plain(dataclasses.asdict(settings))
    header = f"# {shlex.join(sys.argv)}\n# Python {platform.python_version()}, {versions}\n"
    write_text(out_dir / "settings.yaml", header + yaml.safe_dump(data, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
