"""What people look at during a run and after it: a live line, metrics.csv, samples, loggers, settings that run again.

The files are the truth: the pictures and report.html are drawn from what metrics.csv and samples.jsonl hold, so those
of a resumed run show all of it.
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
from typing import TYPE_CHECKING, Any

from litlm import __version__
from litlm.io.writing import write_text, writing
from litlm.settings import RunSettings
from litlm.train.files import (
    Metrics,
    Row,
    command,
    device_name,
    duration,
    flat,
    origin,
    read_metrics,
    read_samples,
    revision,
    settings_text,
)

if TYPE_CHECKING:
    import torch


class Report:
    """One run's. `out_dir` None writes no files: a call of `fit` in a notebook."""

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
        self._began = datetime.now().astimezone()
        self._names, self._loggers = loggers, []
        self._console = Console(quiet)
        self._metrics: Metrics | None = None
        self._last, self._finished = 0, False

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """A run that failed is reported as well, but never so that the report's problems hide the run's."""
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            if isinstance(error, Exception) and self._metrics is not None:
                self._finish(str(error) or type(error).__name__, "failed")
        self._close("success" if error is None else "failed")

    def describe(self, **facts: Any) -> None:
        """What report.html says about the run: model, parameters, trainable, examples, device, notes, ..."""
        if "device" in facts:
            facts["device"] = device_name(facts["device"])
        self.facts.update(facts)

    def start(self, *, step: int) -> None:
        """The run begins, or goes on after `step`: what the files hold beyond it is dropped."""
        self._last = step
        if self.out_dir is not None:
            self.facts |= {"host": platform.node(), "commit": revision() or f"litlm {__version__}"}
            self._metrics = Metrics(self.out_dir / "metrics.csv", step)
            self._cut_samples(step or -1)
            self._loggers = open_loggers(self._names, self.out_dir, step)
            for logger in self._loggers:
                logger.log_hyperparams(flat(self.settings) if self.settings else {})

    def step(self, row: Row, progress: float | None = None) -> None:
        """One optimizer step. progress: the share of the run that is over. A step that came before replaces what
        followed it (a run that rolled back).
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
        self._console.say(text)

    def samples(self, step: int, texts: list[tuple[str, str]]) -> None:
        """(prompt, continuation) of the model as it is after `step`."""
        for prompt, text in texts:
            self._console.say(f"  {_short(prompt, 30)} → {_short(text, 100)}")
        if self.out_dir is not None:
            lines = [json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n" for prompt, text in texts]
            with writing(path := self.out_dir / "samples.jsonl"), path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def draw(self) -> None:
        """report.html as the run stands, which goes on whatever comes of that."""
        if self.out_dir is None:
            return
        try:
            self._write(f"Running, step {self._last:,}")
        except Exception as e:
            self.say(f"report.html could not be written ({e})")

    def finish(self, *, stopped: str | None) -> None:
        """report.html and loss.png. stopped: why the run ended before its end."""
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
        facts = self.facts | {"when": between(self._began, datetime.now().astimezone())}
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
    """Loss, speed and time left on stderr: a line that rewrites itself on a terminal, some lines elsewhere.

    The loss is that of the step, as in metrics.csv; speeds are running means.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.pause = 0.1 if self.live else 10.0
        self._means: dict[str, float] = {}
        self._parts: list[str] = []
        self._rows, self._shown, self._at = 0, 0, -math.inf
        self._open = False  # a live line that the next one replaces
        self._first: tuple[float, float] | None = None
        self._val: float | None = None

    def show(self, row: Row, progress: float | None) -> None:
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
        if val is not None or self._rows == 1 or now - self._at >= self.pause:
            self._at = now
            self._print(stays=val is not None)

    def _describe(self, row: Row, progress: float | None, now: float) -> list[str]:
        """The most important first: what does not fit on the terminal is left out."""
        parts = [f"step {row['step']}" + ("" if progress is None else f" {math.floor(100 * progress)}%")]
        parts += [] if (loss := row.get("loss")) is None else [f"loss {loss:.3f}"]
        parts += [] if self._val is None else [f"val {self._val:.3f}"]
        if progress is not None:
            if self._first is None:
                self._first = now, progress  # without the first step, which compiles
            elif progress > self._first[1]:
                began, before = self._first
                parts.append(f"{duration((now - began) / (progress - before) * (1 - progress))} left")
        parts += [f"{self._means['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in self._means else []
        parts += [] if (lr := row.get("lr")) is None else [f"lr {lr:.1e}"]
        parts += [f"MFU {self._means['mfu']:.0%}"] if "mfu" in self._means else []
        parts += [] if (memory := row.get("memory_gb")) is None else [f"{memory:.1f} GB"]
        return parts

    def _print(self, stays: bool) -> None:
        self._shown = self._rows
        parts = list(self._parts)
        if self.live:
            while len(parts) > 1 and len("  ".join(parts)) >= _columns():
                parts.pop()
            print("\r\033[K" + "  ".join(parts), end="\n" if stays else "", file=sys.stderr, flush=True)
            self._open = not stays
        else:
            print("  ".join(parts), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self.quiet:
            return
        print(("\r\033[K" if self._open else "") + text, file=sys.stderr, flush=True)
        if self._open:
            self._print(stays=False)

    def close(self) -> None:
        """Leave the last step on the screen."""
        if self._rows > self._shown or self._open:
            self._print(stays=True)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80


def _short(text: str, length: int) -> str:
    """On one line, without what would move the cursor."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def between(began: datetime, now: datetime) -> str:
    """2026-08-02 10:11 to 10:31 +0100; with the second date where it is another."""
    end = now.strftime("%H:%M" if began.date() == now.date() else "%Y-%m-%d %H:%M")
    return f"{began:%Y-%m-%d %H:%M} to {end} {now:%z}"


# --- loggers -------------------------------------------------------------------------------------------------------


def check_loggers(names: tuple[str, ...]) -> None:
    """Before anything is loaded: are the packages there?"""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"train.logger={', '.join(missing)} needs a package that is not installed: pip install {' '.join(missing)}"
        )


def open_loggers(names: tuple[str, ...], out_dir: Path, step: int) -> list[Any]:
    """Lightning's loggers. A run that goes on after `step` goes on in the same W&B or MLflow run."""
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
    except ModuleNotFoundError as e:  # there, but too old for Lightning
        raise ValueError(f"train.logger: {e}") from None
    if ids:
        write_text(known, json.dumps(ids))
    return found


# --- settings ------------------------------------------------------------------------------------------------------


def write_settings(settings: RunSettings, out_dir: Path, device: torch.device | None = None) -> None:
    """The fully resolved settings as YAML that `litlm COMMAND --config` runs again; above it where it ran."""
    header = "\n".join([command(), *origin(device)]).splitlines()  # YAML takes no control characters, even in comments
    header = ["# " + "".join(c if c.isprintable() else "\ufffd" for c in line) for line in header]
    write_text(out_dir / "settings.yaml", "\n".join(header) + "\n" + settings_text(settings))
