"""What users see of a run: a live line on the console, metrics.csv, samples, report.html and loggers.

loss.png and report.html are drawn from metrics.csv and samples.jsonl, so those of a resumed run show all of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litlm import __version__
from litlm.io.writing import write_text, writing
from litlm.settings import RunSettings
from litlm.train.files import (
    Metrics,
    Row,
    command,
    device_name,
    duration,
    first_start,
    flat,
    read_metrics,
    read_samples,
    revision,
    starts,
)


class Report:
    """The report of a run. Without `out_dir` no files are written (`fit` in a notebook).

    Raises ValueError for loggers that are not installed, or have no folder to write to.
    """

    def __init__(
        self,
        out_dir: Path | None,
        settings: RunSettings | None,
        *,
        loggers: tuple[str, ...] = (),
        quiet: bool = False,
    ) -> None:
        check_loggers(loggers)
        if out_dir is None and loggers:
            raise ValueError(f"loggers={loggers} need an out_dir to write to")
        self.out_dir, self.settings = out_dir, settings
        self.facts: dict[str, Any] = {}
        self._started = datetime.now().astimezone()
        self._names, self._loggers = loggers, []
        self._console = Console(quiet)
        self._metrics: Metrics | None = None
        self._last, self._finished = 0, False

    def __enter__(self) -> Report:
        return self

    def __exit__(self, exc_type: Any, error: BaseException | None, trace: Any) -> None:
        """Report a run that failed too, but never let an error of the report hide the run's."""
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            if isinstance(error, Exception) and self._metrics is not None:
                self._finish(str(error) or type(error).__name__, "failed")
        self._close("success" if error is None else "failed")

    def describe(self, **facts: Any) -> None:
        """Facts for report.html: model, parameters, trainable, examples, device, notes, ..."""
        if "device" in facts:
            facts["device"] = device_name(facts["device"])
        self.facts.update(facts)

    def start(self, *, step: int) -> None:
        """The run starts, or continues after `step`: later rows and samples in the files are dropped."""
        self._last = step
        if self.out_dir is not None:
            origins = starts(self.out_dir / "settings.yaml")  # of a resumed run more than one
            self._started = (first_start(origins) if step else None) or self._started
            self.facts |= {"host": platform.node(), "commit": revision() or f"litlm {__version__}"}
            self.facts["command"] = "\n".join(origins) if step and origins else command()
            self._metrics = Metrics(self.out_dir / "metrics.csv", step)
            self._cut_samples(step or -1)
            self._loggers = open_loggers(self._names, self.out_dir, step)
            for logger in self._loggers:
                logger.log_hyperparams(flat(self.settings) if self.settings else {})

    def step(self, row: Row, progress: float | None = None) -> None:
        """Log an optimizer step. progress: the finished share of the run. An earlier step again (after a rollback)
        replaces all later ones.
        """
        step = int(row["step"] or 0)
        if step <= self._last:
            self._cut_samples(step - 1)
        self._last = step
        self._console.show(row, progress)
        if self._metrics is not None:
            self._metrics.write(row)
        values = {k: v for k, v in row.items() if k != "step" and v is not None}
        for logger in self._loggers:
            logger.log_metrics(values, step)

    def say(self, text: str) -> None:
        """A line on the console."""
        self._console.say(text)

    def samples(self, step: int, texts: list[tuple[str, str]]) -> None:
        """Log (prompt, continuation) pairs of the model after `step`."""
        for prompt, text in texts:
            self._console.say(f"  {_short(prompt, 30)} → {_short(text, 100)}")
        if self.out_dir is not None:
            lines = [json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n" for prompt, text in texts]
            with writing(path := self.out_dir / "samples.jsonl"), path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def draw(self) -> None:
        """Write report.html while the run continues; an error does not end it."""
        if self.out_dir is None:
            return
        try:
            # With the time, so that it stays true if the process is killed.
            self._write(f"Running, step {self._last:,}, as of {datetime.now().astimezone():%Y-%m-%d %H:%M %z}")
        except Exception as e:
            self.say(f"report.html could not be written ({e})")

    def finish(self, *, stopped: str | None) -> None:
        """Write report.html and loss.png. stopped: why the run ended early."""
        self._finish(stopped, "success")

    def _finish(self, stopped: str | None, status: str) -> None:
        if self._finished:
            return
        self._finished = True
        self._console.close()
        if self.out_dir is not None:
            from litlm.train.plot import plot_loss

            rows = self._write(f"Stopped: {stopped}" if stopped else "Finished")
            if rows:
                title = " · ".join(filter(None, (self.out_dir.resolve().name, str(self.facts.get("model") or ""))))
                plot_loss(rows, self.out_dir / "loss.png", title)
        self._close(status)

    def _write(self, state: str) -> list[dict[str, float]]:
        from litlm.train.html import write_report

        assert self.out_dir is not None
        rows = read_metrics(self.out_dir / "metrics.csv")
        samples = read_samples(self.out_dir / "samples.jsonl")
        facts = self.facts | {"when": between(self._started, datetime.now().astimezone())}
        write_report(self.out_dir, self.settings, facts, rows, samples, state)
        return rows

    def _close(self, status: str) -> None:
        self._console.close()
        loggers, self._loggers = self._loggers, []
        for logger in loggers:
            logger.finalize(status)

    def _cut_samples(self, step: int) -> None:
        if self.out_dir is None or not (path := self.out_dir / "samples.jsonl").is_file():
            return
        kept = [sample for sample in read_samples(path) if sample["step"] <= step]
        write_text(path, "".join(json.dumps(sample) + "\n" for sample in kept))


# --- the console ---------------------------------------------------------------------------------------------------


class Console:
    """Loss, speed and time left on stderr: on a terminal a line that is updated in place, else a line now and then.

    The loss is the step's, as in metrics.csv; speeds are running means.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.interval = 0.1 if self.live else 10.0
        self._means: dict[str, float] = {}
        self._parts: list[str] = []
        self._rows, self._shown, self._at = 0, 0, -math.inf
        self._open = False  # whether a live line is on the screen
        self._first: tuple[float, float] | None = None  # time and progress after the first step
        self._val: float | None = None

    def show(self, row: Row, progress: float | None) -> None:
        """A step's row."""
        if self.quiet:
            return
        now, val = time.monotonic(), row.get("val_loss")
        self._rows += 1
        self._val = self._val if val is None else val
        for name in ("tokens_per_s", "mfu"):
            if (value := row.get(name)) is not None and math.isfinite(value):
                before = self._means.get(name, value)
                self._means[name] = before + (value - before) * max(0.1, 1 / self._rows)
        self._parts = self._describe(row, progress, now)
        if val is not None or self._rows == 1 or now - self._at >= self.interval:
            self._at = now
            self._print(permanent=val is not None)

    def _describe(self, row: Row, progress: float | None, now: float) -> list[str]:
        """The most important part first: parts that don't fit on the terminal are left out."""
        parts = [f"step {row['step']}" + ("" if progress is None else f" {math.floor(100 * progress)}%")]
        parts += [] if (loss := row.get("loss")) is None else [f"loss {loss:.3f}"]
        parts += [] if self._val is None else [f"val {self._val:.3f}"]
        if progress is not None:
            if self._first is None:
                self._first = now, progress  # the first step doesn't count: it compiles
            elif progress > self._first[1]:
                started, before = self._first
                parts.append(f"{duration((now - started) / (progress - before) * (1 - progress))} left")
        parts += [f"{self._means['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in self._means else []
        parts += [] if (lr := row.get("lr")) is None else [f"lr {lr:.1e}"]
        parts += [f"MFU {self._means['mfu']:.0%}"] if "mfu" in self._means else []
        parts += [] if (memory := row.get("memory_gb")) is None else [f"{memory:.1f} GB"]
        return parts

    def _print(self, permanent: bool) -> None:
        self._shown = self._rows
        parts = list(self._parts)
        if self.live:
            while len(parts) > 1 and len("  ".join(parts)) >= _columns():
                parts.pop()
            print("\r\033[K" + "  ".join(parts), end="\n" if permanent else "", file=sys.stderr, flush=True)
            self._open = not permanent
        else:
            print("  ".join(parts), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of text, above the live line."""
        if self.quiet:
            return
        print(("\r\033[K" if self._open else "") + text, file=sys.stderr, flush=True)
        if self._open:
            self._print(permanent=False)

    def close(self) -> None:
        """Leave the last step on the screen."""
        if self._rows > self._shown or self._open:
            self._print(permanent=True)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80


def _short(text: str, length: int) -> str:
    """On one line, without control characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def between(start: datetime, end: datetime) -> str:
    """2026-08-02 10:11 to 10:31 +0100; with the second date if it differs."""
    shown = end.strftime("%H:%M" if start.date() == end.date() else "%Y-%m-%d %H:%M")
    return f"{start:%Y-%m-%d %H:%M} to {shown} {end:%z}"


# --- loggers -------------------------------------------------------------------------------------------------------


def check_loggers(names: tuple[str, ...]) -> None:
    """Raises ValueError, before anything is loaded, if a logger's package is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"train.logger={', '.join(missing)} needs a package that is not installed: pip install {' '.join(missing)}"
        )


def open_loggers(names: tuple[str, ...], out_dir: Path, step: int) -> list[Any]:
    """Lightning's loggers. A run that continues after `step` continues the same W&B or MLflow run.

    Raises ValueError if a logger's package is too old.
    """
    known = out_dir / "loggers.json"
    ids: dict[str, str] = json.loads(known.read_text(encoding="utf-8")) if step and known.is_file() else {}
    project, found = "litlm", []
    try:
        if "tensorboard" in names:
            from lightning.fabric.loggers.tensorboard import TensorBoardLogger

            options: dict[str, Any] = {"purge_step": step + 1} if step else {}
            found.append(TensorBoardLogger(out_dir, name="tensorboard", version="", default_hp_metric=False, **options))
        if "wandb" in names:
            from lightning.pytorch.loggers import WandbLogger

            logger = WandbLogger(name=out_dir.name, save_dir=out_dir, project=project, id=ids.get("wandb"))
            ids["wandb"] = logger.experiment.id
            found.append(logger)
        if "mlflow" in names:
            from lightning.pytorch.loggers import MLFlowLogger

            logger = MLFlowLogger(experiment_name=project, run_name=out_dir.name, run_id=ids.get("mlflow"))
            ids["mlflow"] = str(logger.run_id)
            found.append(logger)
    except ModuleNotFoundError as e:  # installed, but too old for Lightning
        raise ValueError(f"train.logger: {e}") from None
    if ids:
        write_text(known, json.dumps(ids))
    return found
