"""report.html: a self-contained page about a run that works on a phone, in dark mode, and years later.

Everything is there without scripts; with them, `report.js` adds the values under the pointer and other axes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from litlm.io.format import format_count
from litlm.settings import RunSettings
from litlm.train.files import duration, flat, origin, settings_text

MAX_POINTS = 1000
TITLES = {
    "loss": "Loss", "lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_s": "Tokens per second",
    "memory_gb": "Peak memory (GB)", "mfu": "Model FLOPs utilization",
}  # fmt: skip
MEAN = "running mean"
AXES = {"step": "step", "tokens": "tokens", "seconds": "time"}
NO_CHART = {"step", "val_loss", "tokens", "seconds"}


def write_report(
    out_dir: Path,
    settings: RunSettings | None,
    facts: dict[str, Any],
    rows: list[dict[str, float]],
    samples: list[dict[str, Any]],
    state: str,
) -> None:
    """Write the page. state: such as Finished. facts: see `Report.describe`."""
    from litlm.io.writing import atomic_file

    name = out_dir.resolve().name
    what = " · ".join(filter(None, (str(facts.get("model") or getattr(settings, "model", "")), method(settings))))
    where = " · ".join(str(facts[key]) for key in ("when", "host", "commit") if facts.get(key))
    parts = [
        f"<h1>{text(name)}</h1><p>{text(what)}</p><p class=soft>{text(state)}</p><p class=soft>{text(where)}</p>",
        summary(rows),
        f"<h2>Curves</h2>{controls(rows)}<div class=grid>{''.join(charts(rows))}</div>{numbers(rows)}" if rows else "",
        side_by_side(samples),
        configuration(settings),
        details(facts),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{text(name)}</title><style>{_resource('report.css')}</style><body>{''.join(parts)}"
        f"<script>{_resource('report.js')}</script></body></html>\n"
    )
    with atomic_file(out_dir / "report.html") as part:
        part.write_bytes(page.encode("utf-8", "replace"))  # arguments that are not UTF-8 are lone surrogates


def _resource(name: str) -> str:
    return files("litlm.train").joinpath(name).read_text(encoding="utf-8")


def text(value: Any) -> str:
    """Escaped for HTML, which takes no control characters."""
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", str(value)))


def number(value: float) -> str:
    """For people: 12,345 or four digits."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def method(settings: RunSettings | None) -> str:
    """The command, the preference loss and the method: dpo, orpo, lora."""
    if settings is None:
        return ""
    command = type(settings).__name__.removesuffix("Settings").lower()
    name = getattr(getattr(settings, "method", None), "name", "")
    preference = getattr(getattr(settings, "preference", None), "loss", "")
    return ", ".join(dict.fromkeys(filter(None, (command, preference, name))))


def summary(rows: list[dict[str, float]]) -> str:
    """The run in a few numbers."""
    if not rows:
        return "<p>The run ended before its first step.</p>"
    last, loss = rows[-1], [row["loss"] for row in rows if math.isfinite(row.get("loss", math.nan))]
    vals = [(row["val_loss"], int(row["step"])) for row in rows if math.isfinite(row.get("val_loss", math.nan))]
    facts = {"Steps": number(last["step"])}
    if loss:
        facts["Loss, first → last"] = f"{loss[0]:.4g} → {loss[-1]:.4g}"
    if vals:
        facts["Best validation"] = f"{min(vals)[0]:.4g} (step {min(vals)[1]:,})"
    if "tokens" in last:
        facts["Tokens"] = number(last["tokens"])
    if last.get("seconds"):
        facts["Time"] = duration(last["seconds"])
        if "tokens" in last:
            facts["Tokens per second"] = number(round(last["tokens"] / last["seconds"], 1))
    if memory := [row["memory_gb"] for row in rows if "memory_gb" in row]:
        facts["Peak memory"] = f"{max(memory):.1f} GB"
    if mfu := sorted(row["mfu"] for row in rows if "mfu" in row):
        facts["MFU, median"] = f"{mfu[len(mfu) // 2]:.1%}"
    return (
        f"<dl class=facts>{''.join(f'<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>' for k, v in facts.items())}</dl>"
    )


# --- curves --------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A line of a chart. style: CSS classes; dots: mark the points."""

    name: str
    points: list[tuple[float, float]]
    style: str
    dots: bool = False


def charts(rows: list[dict[str, float]]) -> list[str]:
    """A chart for each metric."""
    names = list(
        dict.fromkeys(["loss", *(n for n in TITLES if any(n in r for r in rows)), *(n for r in rows for n in r)])
    )
    found = []
    for name in names:
        if name in NO_CHART or not (points := series(rows, name)):
            continue
        title = TITLES.get(name, name.replace("_", " "))
        if len(points) > MAX_POINTS:
            title += f" (means of {math.ceil(len(points) / MAX_POINTS)} steps)"
        by_axis = {x: curves_of(rows, name, x) for x in AXES}
        content = chart(by_axis["step"], f"beyond-{len(found)}")
        found.append(f'<div class="card chart"><h3>{text(title)}</h3>{content}{data(by_axis)}</div>')
    return found


def curves_of(rows: list[dict[str, float]], name: str, x: str) -> list[Curve]:
    """The curves of one chart; the loss comes with its running mean and the validation loss."""
    points = series(rows, name, x)
    curves = [Curve(name, thin(points), "one", dots=2 * len(points) < len(rows))]
    if name == "loss" and len(points) > 20:
        curves = [
            Curve("each step", thin(points), "one faint"),
            Curve(MEAN, thin(running_mean(points)), "one"),
        ]
    if name == "loss" and (vals := series(rows, "val_loss", x)):
        curves.append(Curve("validation", thin(vals), "two", dots=len(vals) <= 100))
    return curves


def data(by_axis: dict[str, list[Curve]]) -> str:
    """The curves again, for the script: by each axis that all their points have."""
    found = []
    for i, curve in enumerate(by_axis["step"]):
        same = {x: curves[i].points for x, curves in by_axis.items() if len(curves) == len(by_axis["step"])}
        axes = {x: [_short(p) for p, _ in points] for x, points in same.items() if len(points) == len(curve.points)}
        values = [_short(y) for _, y in curve.points]
        found.append({"name": curve.name, "style": curve.style, "dots": curve.dots, "x": axes, "y": values})
    content = json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type=application/json>{content}</script>"


def _short(value: float) -> float:
    value = float(f"{value:.7g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def controls(rows: list[dict[str, float]]) -> str:
    """The form for the script: x axis and scale."""
    names = {x: title for x, title in AXES.items() if x == "step" or any(x in row for row in rows)}
    choices = " ".join(
        f"<label><input type=radio name=x value={x}{' checked' * (x == 'step')}> {title}</label>"
        for x, title in names.items()
    )
    scale = "<label><input type=checkbox name=log> log scale</label>"
    return f"<form class=controls hidden autocomplete=off>{choices} {scale}</form>"


def numbers(rows: list[dict[str, float]], max_rows: int = 20) -> str:
    """A table of some rows, for pages without scripts: those with a validation, or evenly spaced."""
    some = [row for row in rows if "val_loss" in row] or rows
    if len(some) > max_rows:
        some = [some[round(i * (len(some) - 1) / max(1, max_rows - 1))] for i in range(max_rows)]
    columns = [name for name in ("step", "loss", "val_loss", "lr", "tokens", "seconds") if any(name in r for r in some)]
    lines = [tuple("time" if name == "seconds" else name.replace("_", " ") for name in columns)]
    for row in some:
        cells = {name: f"{row[name]:.5g}" for name in columns if name in row}
        cells |= {name: number(row[name]) for name in ("step", "tokens") if name in row}
        cells |= {"seconds": duration(row["seconds"])} if math.isfinite(row.get("seconds", math.nan)) else {}
        lines.append(tuple(cells.get(name, "") for name in columns))
    return f"<details><summary>Numbers</summary><div class=numbers>{_table(lines, 'wide')}</div></details>"


def series(rows: list[dict[str, float]], name: str, x: str = "step") -> list[tuple[float, float]]:
    """The finite values of a metric, by step or another column."""
    return [(row[x], row[name]) for row in rows if x in row and math.isfinite(row.get(name, math.nan))]


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS, each the mean of equally many neighboring points."""
    size = math.ceil(len(points) / MAX_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def running_mean(points: list[tuple[float, float]], size: int | None = None) -> list[tuple[float, float]]:
    """The mean of the last `size` values (by default a fiftieth of all)."""
    size, total, found = size or max(2, len(points) // 50), 0.0, []
    for i, (x, y) in enumerate(points):
        total += y - (points[i - size][1] if i >= size else 0.0)
        if i % size == 0:  # sum anew: rounding errors of a huge value would stay
            total = sum(y for _, y in points[max(0, i + 1 - size) : i + 1])
        found.append((x, total / min(i + 1, size)))
    return found


def extent(ys: Sequence[float]) -> tuple[float, float, int]:
    """The range of an axis, and how many values are beyond it: a few outliers."""
    found, few = sorted(ys), math.ceil(len(ys) / 50)
    if len(found) < 5:
        return found[0], found[-1], 0
    low, high = found[few], found[-1 - few]
    far = 5 * (high - low) or math.inf
    kept = [y for y in found if low - far <= y <= high + far]
    return kept[0], kept[-1], len(found) - len(kept)


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """Round numbers between the two."""
    rough = (high - low) / n
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= 0.7 * rough)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick(value: float) -> str:
    """A label of an axis."""
    return format_count(value) if abs(value) >= 10000 else f"{value:.4g}"


def chart(curves: list[Curve], clip: str, width: int = 400, height: int = 220) -> str:
    """An SVG whose data-* attributes give the values at its edges, to read points back. clip: id of the clip path."""
    xs = [x for c in curves for x, _ in c.points]
    x0, x1 = min(xs), max(xs)
    y0, y1, beyond = extent([y for c in curves if c.name != MEAN for _, y in c.points])
    x1 += x0 == x1
    margin = (y1 - y0) * 0.05 or abs(y0) * 0.1 or 1.0
    y0, y1 = y0 - margin if y0 < 0 or y0 >= margin else 0.0, y1 + margin
    left, right, top, bottom = 52, width - 10, 8, height - 24  # as in report.js

    def pixel(x: float, y: float) -> tuple[float, float]:
        at = bottom - (y - y0) / (y1 - y0) * (bottom - top)
        return left + (x - x0) / (x1 - x0) * (right - left), max(-9999.0, min(9999.0, at))

    axes, lines = [], []
    for y in ticks(y0, y1):
        _, at = pixel(x0, y)
        axes.append(f'<line class=axis x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        axes.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor=end>{tick(y)}</text>')
    for x in ticks(x0, x1):
        at, _ = pixel(x, y0)
        if x == int(x):
            anchor = "end" if at > right - 14 else "middle"
            axes.append(f'<text x="{at:.1f}" y="{height - 6}" text-anchor={anchor}>{tick(x)}</text>')
    for curve in curves:
        dots = [(*pixel(x, y), x, y) for x, y in curve.points]
        path = " ".join(f"{px:.2f},{py:.2f}" for px, py, *_ in dots)
        lines.append(f'<polyline class="{curve.style}" data-name="{text(curve.name)}" points="{path}"/>')
        if curve.dots or len(dots) == 1:
            lines += [
                f'<circle class="{curve.style}" cx="{px:.2f}" cy="{py:.2f}" r="2.5">'
                f"<title>step {x:g}: {y:.6g}</title></circle>"
                for px, py, x, y in dots
            ]
    legend = " ".join(
        f'<span class="{c.style.split()[0]}">{text(c.name)}</span>' for c in curves if "faint" not in c.style
    )
    edges = (
        f'data-x0="{x0!r}" data-x1="{x1!r}" data-y0="{y0!r}" data-y1="{y1!r}" data-box="{left} {right} {top} {bottom}"'
    )
    box = f'<clipPath id="{clip}"><rect x="0" y="{top - 3}" width="{width}" height="{bottom - top + 6}"/></clipPath>'
    inner = f'<g class=axes>{"".join(axes)}</g><g class=plot clip-path="url(#{clip})">{"".join(lines)}</g>'
    svg = f'<svg viewBox="0 0 {width} {height}" role=img {edges}>{box}{inner}</svg>'
    values = "1 value is" if beyond == 1 else f"{beyond} values are"
    note = f'<p class="soft beyond">{values} beyond the axis</p>' if beyond else ""
    return svg + (f"<p>{legend}</p>" if len(curves) > 1 else "") + note


# --- the rest ------------------------------------------------------------------------------------------------------


def side_by_side(samples: list[dict[str, Any]]) -> str:
    """For each prompt the model's first and last sample; those in between on demand."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        prompts.setdefault(str(sample["prompt"]), []).append(sample)
    parts = []
    for prompt, found in prompts.items():
        ends = [found[0], found[-1]] if len(found) > 1 else found
        parts.append(f"<h3>{text(prompt)}</h3><div class=grid>{''.join(map(_sample, ends))}</div>")
        if between := found[1:-1]:
            parts.append(
                f"<details><summary>{len(between)} in between</summary>{''.join(map(_sample, between))}</details>"
            )
    return f"<h2>Samples</h2>{''.join(parts)}" if parts else ""


def _sample(sample: dict[str, Any]) -> str:
    when = f"after step {sample['step']}" if sample["step"] else "before"
    return f"<div><span class=soft>{text(when)}</span><pre>{text(sample['text'])}</pre></div>"


def configuration(settings: RunSettings | None) -> str:
    """The settings that differ from their defaults, and all of them on demand."""
    if settings is None:
        return ""
    default = flat(defaults(type(settings)))
    rows = [(k, v, default.get(k)) for k, v in flat(settings).items() if k not in default or v != default[k]]
    rows = [("setting", "value", "default"), *((k, v, "" if d is None else d) for k, v, d in rows)]
    table = _table(rows, "pairs settings")
    everything = f"<details><summary>All settings</summary><pre>{text(settings_text(settings))}</pre></details>"
    return f"<h2>Configuration</h2>{table}{everything}"


def defaults(cls: type) -> dict[str, Any]:
    """The default values of a settings class; required fields are left out."""
    from typing import get_type_hints

    types, found = get_type_hints(cls), {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            found[f.name] = f.default
        elif f.default_factory is not dataclasses.MISSING:
            value = f.default_factory()
            found[f.name] = flat(value) if dataclasses.is_dataclass(value) else value
        elif dataclasses.is_dataclass(types[f.name]):
            found[f.name] = defaults(types[f.name])
    return found


def details(facts: dict[str, Any]) -> str:
    """Hardware, versions, data, command."""
    facts = {k: v for k, v in facts.items() if k not in ("model", "when", "host", "commit")}  # in the header
    notes, command = facts.pop("notes", None) or [], facts.pop("command", "")
    rows = [(k.replace("_", " "), number(v) if type(v) in (int, float) else v) for k, v in facts.items()]
    rows += [("versions", line) for line in origin(None)]
    rows += [("data", note) for note in ([notes] if isinstance(notes, str) else notes)]
    return f"<h2>Details</h2>{_table(rows)}<p class=soft>Command</p><pre>{text(command)}</pre>"


def _table(rows: list[tuple[Any, ...]], css_class: str = "pairs") -> str:
    lines = [f"<tr><th>{text(first)}</th>{''.join(f'<td>{text(c)}</td>' for c in rest)}</tr>" for first, *rest in rows]
    return f'<table class="{css_class}">{"".join(lines)}</table>'
