"""Pictures of runs: loss.png of one run, `litlm plot` for several."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from litlm.settings import PlotCommand
from litlm.train.files import duration, flat, read_metrics, read_settings
from litlm.train.html import extent, running_mean, series

IGNORED_SETTINGS = ("out_dir", "resume", "overwrite")  # don't tell runs apart


def plot_loss(rows: list[dict[str, float]], path: Path, title: str = "") -> None:
    """The loss curve as a PNG: each step faint, a running mean on top, validation as points."""
    figure = _figure((7, 4))
    axes = figure.add_subplot()
    points, vals = series(rows, "loss"), series(rows, "val_loss")
    if points:
        mean = running_mean(points)
        axes.plot(*_xy(points), color="tab:blue", alpha=0.3, linewidth=1, label="training, each step")
        axes.plot(*_xy(mean), color="tab:blue", linewidth=2, label="training, running mean")
    if vals:
        axes.plot(*_xy(vals), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(_plain(_short(title, 80)), fontsize="medium")
    axes.grid(alpha=0.3)
    _fit(axes, [y for _, y in (*points, *vals)])
    if points or vals:
        axes.legend(frameon=False)
    _save(figure, path, "png")


class Run(NamedTuple):
    """path: as typed. folder: of the run. settings: flat, empty if there is no settings.yaml."""

    path: str
    folder: Path
    rows: list[dict[str, float]]
    settings: dict[str, Any]


def plot_command(settings: PlotCommand) -> None:
    """`litlm plot`: draw the runs and print a table. Raises ValueError if a run or a metric can't be drawn."""
    from matplotlib import rc_context

    out = Path(settings.out)
    if out.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"out={settings.out} must end in .png or .svg")
    runs = read_runs(settings.runs)
    names = labels(runs)
    figure = draw(runs, names, settings)
    with rc_context({"svg.fonttype": "none"}):  # text that can be searched
        _save(figure, out, out.suffix[1:].lower())
    print(table(runs, names, settings.smooth))
    print(f"\nDrawn to {out}")


def read_runs(paths: tuple[str, ...]) -> list[Run]:
    """The runs at these paths. Raises ValueError with the problems of all paths."""
    runs, problems = [], []
    for path in paths:
        file = Path(path) / "metrics.csv" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            what = "is not a run: there is no metrics.csv in it" if Path(path).is_dir() else "does not exist"
            problems.append(f"{path} {what}")
            continue
        try:
            rows = read_metrics(file)
            if rows:
                runs.append(Run(path, file.resolve().parent, rows, flat(read_settings(file.parent / "settings.yaml"))))
            else:
                problems.append(f"{file} has no steps yet, or is not a run's metrics.csv")
        except (OSError, ValueError) as e:
            problems.append(f"{path} can't be read ({e})")
    if problems:
        raise ValueError("These runs can't be drawn:\n" + "\n".join(f"- {p}" for p in problems))
    return runs


def labels(runs: list[Run]) -> list[str]:
    """The settings in which the runs differ, or their directories if that doesn't tell them apart."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings if key not in IGNORED_SETTINGS))
    differ = [key for key in keys if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)]
    by_settings = [", ".join(_setting(key, run.settings[key]) for key in differ if key in run.settings) for run in runs]
    for found in (by_settings, [run.folder.name for run in runs]):
        if all(found) and len(set(found)) == len(runs) and max(map(len, found)) <= 60:  # fits beside a picture
            return found
    return [run.path for run in runs]


def _setting(key: str, value: Any) -> str:
    value = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.removeprefix('train.')}={value if len(value) <= 40 else '…' + value[-39:]}"


def draw(runs: list[Run], names: list[str], settings: PlotCommand) -> Any:
    """A matplotlib figure with one row per metric. Raises ValueError if no run has a metric."""
    known = sorted({name for run in runs for row in run.rows for name in row})
    missing = [m for m in settings.metrics if m not in known and m != "val_loss"]
    metrics = [m for m in settings.metrics if m in known]
    if missing or not metrics:
        wanted = ", ".join(missing or settings.metrics)
        raise ValueError(f"metrics: no run has {wanted}; there are {', '.join(known)}")
    if settings.x not in known:
        raise ValueError(f"x={settings.x}: no run has it; there are {', '.join(known)}")
    names = [" " * name.startswith("_") + _plain(name) for name in names]  # _ in front hides a label
    figure = _figure((8, 1.2 + 3.2 * len(metrics)))
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for metric, axes in zip(metrics, panels, strict=True):
        values = []
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            points = series(run.rows, metric, settings.x)
            if not points:
                continue
            values += [y for _, y in points]
            # Metrics that are not measured in every step, such as the validation loss, are not smoothed.
            if 2 * len(points) < len(run.rows) or settings.smooth == 1:
                style = "o-" if 2 * len(points) < len(run.rows) else "-"
                axes.plot(*_xy(points), style, color=f"C{i}", markersize=4, label=name)
            else:
                axes.plot(*_xy(points), color=f"C{i}", alpha=0.2, linewidth=1)
                axes.plot(*_xy(running_mean(points, settings.smooth)), color=f"C{i}", label=name)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        _fit(axes, values, integer_x=settings.x != "seconds")
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
    panels[-1].set_xlabel(settings.x)
    return figure


def table(runs: list[Run], names: list[str], smooth: int = 1) -> str:
    """Losses, steps and speed of the runs."""
    rows = [("run", "loss", "best val", "steps", "tokens/s", "time")]
    for run, name in zip(runs, names, strict=True):
        last, loss = run.rows[-1], running_mean(series(run.rows, "loss"), smooth)
        vals = [y for _, y in series(run.rows, "val_loss")]
        seconds, tokens = last.get("seconds", math.nan), last.get("tokens", math.nan)
        rows.append(
            (
                name,
                f"{loss[-1][1]:.4f}" if loss else "-",
                f"{min(vals):.4f}" if vals else "-",
                f"{int(last['step']):,}",
                f"{tokens / seconds:,.0f}" if seconds > 0 and math.isfinite(tokens) else "-",
                duration(seconds) if math.isfinite(seconds) else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _xy(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _plain(text: str) -> str:
    """Escaped for matplotlib, in which $ starts a formula."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def _short(text: str, length: int) -> str:
    """Without its middle if it is too long: names differ at the ends."""
    return text if len(text) <= length else f"{text[: length // 3]}…{text[-(length * 2 // 3 - 1) :]}"


def _fit(axes: Any, ys: list[float], *, integer_x: bool = True) -> None:
    """Limit the axes to the values without outliers. integer_x: only integer ticks on the x axis."""
    from matplotlib.ticker import MaxNLocator

    if integer_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not ys:
        return
    low, high, beyond = extent(ys)
    if not beyond:
        return
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    values = "1 value is" if beyond == 1 else f"{beyond} values are"
    axes.text(0.01, 0.98, f"{values} beyond the axis", transform=axes.transAxes, va="top", fontsize="small", alpha=0.7)


def _save(figure: Any, path: Path, file_format: str) -> None:
    from litlm.io.writing import atomic_file

    with atomic_file(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box is drawn instead
        figure.savefig(part, format=file_format)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever backend is configured
    return figure
