"""What a run shows and leaves: metrics.csv, samples, report.html, the live line, loggers and settings, read back."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litlm import __version__
from litlm.cli import main as cli
from litlm.settings import (
    DataSettings,
    DPOSettings,
    FinetuneSettings,
    MethodSettings,
    PreferenceData,
    PreferenceSettings,
    PretrainSettings,
    RunSettings,
    TextData,
    TrainSettings,
)
from litlm.train import report as reports
from litlm.train.files import duration, flat, read_metrics, read_samples, read_settings, write_settings
from litlm.train.html import charts, controls, defaults, extent, numbers, running_mean, series, thin, ticks
from litlm.train.report import Report, between, check_loggers

SETTINGS = FinetuneSettings(
    model="some/model", data=DataSettings(path="data.jsonl"), method=MethodSettings(name="qlora", r=4),
    train=TrainSettings(lr=1e-3, samples=("<b>Hi</b>",)), out_dir="out/x",
)  # fmt: skip


def _row(step: int, **more: Any) -> dict[str, Any]:
    return dict(
        step=step, loss=3 + math.sin(step) / step, val_loss=None, lr=1e-3 / step, grad_norm=1.5 * step,
        tokens=100 * step, tokens_per_s=1000.0 + step, seconds=step / 10,
    ) | more  # fmt: skip


def _cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def _run(out: Path, steps: range, *, start: int = 0, **options: Any) -> Report:
    report = Report(out, SETTINGS, quiet=True, **options)
    report.start(step=start)
    for step in steps:
        report.step(_row(step), progress=step / 100)
    return report


# --- metrics.csv ---------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 6))
    report.step(_row(6, val_loss=2.25, loss=math.nan, tokens=10**9))
    rows = _cells(tmp_path / "metrics.csv")  # while the run goes on
    assert list(rows[0]) == list(_row(1))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(r["loss"]) for r in rows[:5]] == pytest.approx([_row(i)["loss"] for i in range(1, 6)], rel=1e-5)
    assert [r["val_loss"] for r in rows] == ["", "", "", "", "", "2.25"]
    assert (rows[5]["loss"], rows[5]["tokens"]) == ("nan", "1000000000")
    assert "val_loss" not in read_metrics(tmp_path / "metrics.csv")[0]


def test_columns_may_come_late(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 4))
    report.step(_row(4, val_accuracy=0.5))
    report.step(_row(5))
    report.step(_row(6, router_unused=0.25, val_accuracy=0.75))
    rows = _cells(tmp_path / "metrics.csv")
    assert list(rows[0]) == [*_row(1), "val_accuracy", "router_unused"]
    assert [r["val_accuracy"] for r in rows] == ["", "", "", "0.5", "", "0.75"]
    assert [r["router_unused"] for r in rows] == ["", "", "", "", "", "0.25"]
    assert [int(r["tokens"]) for r in rows] == [100, 200, 300, 400, 500, 600]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("tail", ["", "8,3.0", "8,3.0,,0.1,2,3,4,5", "8,3", "\0\0\0\0\n", "8,3.1\n9,2.8,,"])
def test_a_resumed_run_goes_on_where_the_checkpoint_was(tail: str, tmp_path: Path) -> None:
    _run(tmp_path, range(1, 8))
    with (tmp_path / "metrics.csv").open("a") as file:  # killed in the middle of a line
        file.write(tail)
    _run(tmp_path, range(6, 9), start=5)
    rows = _cells(tmp_path / "metrics.csv")
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [float(r["grad_norm"]) for r in rows] == [1.5 * i for i in range(1, 9)]
    assert list(rows[0]) == list(_row(1))
    _run(tmp_path, range(1, 3))  # a new run there replaces it
    assert [r["step"] for r in _cells(tmp_path / "metrics.csv")] == ["1", "2"]


def test_half_a_number_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,tokens\n1,2.5,100\n2,2.4,2")  # of 200
    assert read_metrics(path) == [{"step": 1, "loss": 2.5, "tokens": 100}]
    path.write_text("step,loss,tokens\n1,2.5,100\n2,2.4,200\n")
    assert [row["tokens"] for row in read_metrics(path)] == [100, 200]


def test_a_rollback_replaces_the_steps_since(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 8))
    for step in (0, 4, 6):
        report.samples(step, [("a", f"at {step}")])
    report.step(_row(5, loss=9.0))
    rows = _cells(tmp_path / "metrics.csv")
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["loss"] == "9"
    assert [s["step"] for s in read_samples(tmp_path / "samples.jsonl")] == [0, 4]


def test_samples_are_cut_where_a_run_resumes(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 7))
    for step in (0, 3, 6):
        report.samples(step, [("a\n東", f"<i>{step}"), ("b\ud800", "\x1b[2J")])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "pro')
    _run(tmp_path, range(0), start=3)
    found = read_samples(tmp_path / "samples.jsonl")
    assert [(s["step"], s["prompt"], s["text"]) for s in found] == [
        (step, *pair) for step in (0, 3) for pair in (("a\n東", f"<i>{step}"), ("b\ud800", "\x1b[2J"))
    ]
    _run(tmp_path, range(0))
    assert read_samples(tmp_path / "samples.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 3))
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"metrics\.csv could not be written \(No space left"):
        report.step(_row(3))


# --- report.html ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page says, and the points of its curves in the units of their axes."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.edges_of: dict[str, list[float]] = {}
        self.words, self.tags, self.scripts, self.title = [], [], [], ""
        self.curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
        if path is not None:
            self.feed(path.read_text(encoding="utf-8"))
            self.text = " ".join(self.words)

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls(None)
        page.feed(html)
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        assert not {"src", "href", "onload", "onclick"} & found.keys()
        if tag == "svg":
            self.edges = [float(found[f"data-{k}"] or "") for k in ("x0", "x1", "y0", "y1")]
            self.edges_of[self.title] = self.edges
            self.box = [float(n) for n in (found["data-box"] or "").split()]
        if tag == "polyline":
            (x0, x1, y0, y1), (left, right, top, bottom) = self.edges, self.box
            points = [[float(n) for n in p.split(",")] for p in (found["points"] or "").split()]
            self.curves[self.title, found["data-name"] or ""] = [
                (x0 + (x - left) / (right - left) * (x1 - x0), y0 + (bottom - y) / (bottom - top) * (y1 - y0))
                for x, y in points
            ]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.tags.append("/script")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "h3":
            self.title = data
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        elif self.tags and self.tags[-1] != "style":
            self.words.append(data)


def test_the_page_draws_what_the_csv_holds(tmp_path: Path) -> None:
    report = Report(tmp_path / "run", SETTINGS, quiet=True)
    report.describe(model="some/model", parameters=1234567, device=torch.device("cpu"), notes=["3 cut & kept"])
    report.start(step=0)
    for step in range(1, 31):
        more: dict[str, Any] = dict(memory_gb=1 + step / 100, mfu=0.4)
        if step % 10 == 0:
            more |= dict(val_loss=2 + 1 / step, accuracy=step / 30)
        report.step(_row(step, **more), progress=step / 30)
    report.finish(stopped=None)
    report.finish(stopped="twice")  # nothing more
    page = Page(tmp_path / "run" / "report.html")
    rows = [{k: float(v) for k, v in r.items() if v} for r in _cells(tmp_path / "run" / "metrics.csv")]

    def expect(title: str, name: str, column: str) -> None:
        points = [(r["step"], r[column]) for r in rows if column in r]
        drawn = page.curves[title, name]
        high, low = max(y for _, y in points), min(0, *(y for _, y in points))
        assert [x for x, _ in drawn] == pytest.approx([x for x, _ in points], abs=0.01)
        assert [y for _, y in drawn] == pytest.approx([y for _, y in points], abs=2e-4 * (high - low))

    expect("Loss", "each step", "loss")
    expect("Loss", "validation", "val_loss")
    expect("Learning rate", "lr", "lr")
    expect("Gradient norm", "grad_norm", "grad_norm")
    expect("Tokens per second", "tokens_per_s", "tokens_per_s")
    expect("Peak memory (GB)", "memory_gb", "memory_gb")
    expect("accuracy", "accuracy", "accuracy")
    assert len(page.curves) == 9  # those, the running mean of the loss, and the utilization
    for said in (
        "Finished", "some/model · finetune, qlora", "1,234,567", "3 cut & kept", "2.033 (step 30)", "40.0%", "1.3 GB",
        "3,000", f"{rows[0]['loss']:.4g} → {rows[-1]['loss']:.4g}", "cpu: ", f"torch {torch.__version__}",
    ):  # fmt: skip
        assert said in page.text, said
    assert not {"img", "link", "iframe"} & set(page.tags)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_scripts_the_numbers_are_there_and_the_controls_are_not(tmp_path: Path) -> None:
    report = Report(tmp_path, SETTINGS, quiet=True)
    report.start(step=0)
    for step in range(1, 101):
        report.step(_row(step, **({"val_loss": 2 + 1 / step} if step % 25 == 0 else {})))
    report.finish(stopped=None)
    html = (tmp_path / "report.html").read_text()
    assert re.search(r"<form class=controls hidden\b", html)
    table = html.split("<summary>Numbers</summary>")[1].split("</table>")[0]
    lines = [re.findall(r"<t[hd]>([^<]*)", line) for line in table.split("<tr>")[1:]]
    assert lines[0] == ["step", "loss", "val loss", "lr", "tokens", "time"]
    assert [line[0] for line in lines[1:]] == ["25", "50", "75", "100"]
    loss = float(f"{_row(50)['loss']:.6g}")  # what metrics.csv holds
    assert lines[2] == ["50", f"{loss:.5g}", "2.02", "2e-05", "5,000", "0:05 min"]
    dots = re.findall(r"<title>step (\d+): ([\d.]+)</title>", html)
    assert dots == [("25", "2.04"), ("50", "2.02"), ("75", "2.01333"), ("100", "2.01")]
    few = re.findall(r"<tr><th>([\d,]+)", numbers([{"step": float(step), "loss": 1 / step} for step in range(1, 1001)]))
    assert (len(few), few[0], few[-1]) == (20, "1", "1,000")


def test_the_script_is_given_what_is_drawn_by_every_axis(tmp_path: Path) -> None:
    report = Report(tmp_path, SETTINGS, quiet=True)
    report.start(step=0)
    for step in range(1, 31):
        report.step(_row(step, **{"</script><b>": 0.5}, **({"val_loss": 2.5} if step % 10 == 0 else {})))
    report.finish(stopped=None)
    page = Page(tmp_path / "report.html")
    *data, script = page.scripts
    assert len(data) == page.tags.count("svg") == 5
    assert "addEventListener" in script
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", (tmp_path / "report.html").read_text())
    rows = read_metrics(tmp_path / "metrics.csv")
    each, mean, val = json.loads(data[0])
    assert [c["name"] for c in (each, mean, val)] == ["each step", "running mean", "validation"]
    for column in ("step", "tokens", "seconds"):
        assert each["x"][column] == mean["x"][column] == [row[column] for row in rows]
        assert val["x"][column] == [row[column] for row in rows if "val_loss" in row]
    assert each["y"] == [row["loss"] for row in rows]
    assert mean["y"] == pytest.approx([y for _, y in running_mean(series(rows, "loss"))], rel=1e-6)
    assert val["y"] == [2.5] * 3
    assert json.loads(data[-1])[0]["name"] == "</script><b>"
    assert "b" not in page.tags


def test_an_axis_that_some_points_lack_is_not_offered(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 1.0 / s} | ({"tokens": 10.0 * s} if s > 2 else {}) for s in range(1, 6)]
    (curve,) = json.loads(Page.of(charts(rows)[0]).scripts[0])
    assert curve["x"] == {"step": [1, 2, 3, 4, 5]}
    assert "value=tokens" in controls(rows)
    assert "value=seconds" not in controls(rows)


def test_the_page_is_there_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = _run(tmp_path, range(1, 6))
    assert not (tmp_path / "report.html").exists()
    report.draw()
    page = Page(tmp_path / "report.html")
    assert "Running, step 5" in page.text
    assert len(page.curves["Loss", "loss"]) == 5
    assert not (tmp_path / "loss.png").exists()
    said = []
    monkeypatch.setattr(report, "say", said.append)
    with monkeypatch.context() as patch:
        patch.setattr("litlm.train.html.summary", lambda rows: 1 / 0)
        report.draw()  # the run goes on
    assert said == ["report.html could not be written (division by zero)"]
    assert "Running, step 5" in Page(tmp_path / "report.html").text  # what was there is
    report.finish(stopped=None)
    assert "Finished" in Page(tmp_path / "report.html").text
    Report(None, None).draw()


def test_when_where_and_of_which_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *args], cwd=work, check=True, capture_output=True, text=True).stdout

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr("platform.node", lambda: "my-host")

    def header(name: str) -> str:
        _run(tmp_path / name, range(1, 3)).finish(stopped=None)
        return Page(tmp_path / name / "report.html").text

    zone = datetime.now().astimezone().strftime("%z")
    when = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d to (\d{{4}}-\d\d-\d\d )?\d\d:\d\d {re.escape(zone)} · my-host"
    assert re.search(rf"{when} · litlm {re.escape(__version__)}", header("none"))
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git("init", "-q")
    (work / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")[:12]
    assert re.search(rf"{when} · commit {commit} ", header("clean"))
    (work / "file").write_text("b")
    assert f"commit {commit}-dirty" in header("dirty")


def test_the_second_date_is_said_where_it_is_another() -> None:
    began = datetime(2026, 8, 2, 23, 50, tzinfo=timezone(timedelta(hours=2)))
    assert between(began, began + timedelta(minutes=9)) == "2026-08-02 23:50 to 23:59 +0200"
    assert between(began, began + timedelta(minutes=11)) == "2026-08-02 23:50 to 2026-08-03 00:01 +0200"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([float(i % 7) for i in range(100)] + [1e6], (0.0, 6.0, 1)), ([4.0, 2.0, 1.3, 1.0, 0.8], (0.8, 4.0, 0)),
        ([10 * 0.9**i for i in range(200)], (10 * 0.9**199, 10.0, 0)), ([1.0, 1e9], (1.0, 1e9, 0)),
        ([2.0], (2.0, 2.0, 0)),
        ([3.0] * 50 + [5.0], (3.0, 5.0, 0)), ([-1e5, *([1.0, 2.0] * 30)], (1.0, 2.0, 1)),
    ],
)  # fmt: skip
def test_an_axis_leaves_out_what_is_far_from_all_else(values: list[float], expected: tuple[float, float, int]) -> None:
    assert extent(values) == expected


def test_a_spike_does_not_flatten_the_curve(tmp_path: Path) -> None:
    report = Report(tmp_path, SETTINGS, quiet=True)
    report.start(step=0)
    for step in range(1, 101):
        report.step(_row(step, loss=1e6 if step == 50 else 2 + 1 / step))
    report.finish(stopped=None)
    page = Page(tmp_path / "report.html")
    assert page.edges_of["Loss"][2:] == pytest.approx([2.01 - 0.05 * 0.99, 3 + 0.05 * 0.99])
    assert "1 value is beyond the axis" in page.text
    assert json.loads(page.scripts[0])[0]["y"][49] == 1e6  # the script has it


def test_what_models_and_people_write_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/litlm", "finetune", "--data", "</pre><script>x\udcff"])
    evil = "</pre><script>alert(1)</script>&amp;\x00"
    report = _run(tmp_path / "<i>", range(1, 4))
    report.describe(model=evil, notes=[evil])
    report.samples(0, [(evil, "first " + evil), ("twice", "a")])
    report.samples(2, [(evil, "middle"), ("twice", "b")])
    report.samples(3, [(evil, "last\n line"), ("twice", "c")])
    report.finish(stopped=evil)
    page = Page(tmp_path / "<i>" / "report.html")
    assert not {"i", "b"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("svg") + 1  # the page's own
    assert not any("alert" in script for script in page.scripts)
    shown = evil.replace("\x00", "\ufffd")
    assert page.text.count(shown) == 5
    assert "first " + shown in page.words
    assert "last\n line" in page.words
    assert [w for w in page.words if w in ("a", "b", "c")] == ["a", "c", "b"]  # before, after, then what was in between
    assert "<b>Hi</b>" in page.text
    assert "litlm finetune --data '</pre><script>x" in page.text


def test_a_run_without_steps_and_one_of_a_single_step(tmp_path: Path) -> None:
    report = _run(tmp_path / "none", range(0))
    report.finish(stopped="Ctrl-C")
    page = Page(tmp_path / "none" / "report.html")
    assert "Stopped: Ctrl-C" in page.text
    assert "before its first step" in page.text
    report = _run(tmp_path / "one", range(1, 2))
    report.step(_row(2, loss=math.nan, grad_norm=math.inf))
    report.finish(stopped=None)
    page = Page(tmp_path / "one" / "report.html")
    assert page.curves["Loss", "loss"] == [pytest.approx((1, 3 + math.sin(1)), rel=1e-3)]


def test_long_runs_are_thinned_by_means() -> None:
    points = [(float(i), float(i % 7)) for i in range(1, 25432)]
    found = thin(points)
    assert len(found) <= 1000
    assert found[0] == (26.0, pytest.approx(sum(i % 7 for i in range(1, 27)) / 26))
    assert found[-1][0] == 25431.0
    assert thin(points[:1000]) == points[:1000]
    assert thin([]) == []


def test_running_means_forget_huge_values() -> None:
    points = [(float(i), 1e20 if i == 5 else float(i)) for i in range(40)]
    assert running_mean(points, 1) == points
    for i, (x, y) in enumerate(running_mean(points, 4)):
        part = [y for _, y in points[max(0, i - 3) : i + 1]]
        if not 5 <= i < 12:
            assert (x, y) == (i, pytest.approx(sum(part) / len(part)))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.00012, 0.00093), (-3.2, 17), (1e5, 9.7e6), (5.001, 5.002)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 * high <= t <= high * (1 + 1e-9) for t in found)
    gaps = {f"{b - a:.1e}"[0] for a, b in zip(found, found[1:], strict=False)}
    assert gaps <= {"1", "2", "5"}
    assert len(gaps) == 1


def test_only_what_differs_from_the_defaults_is_shown_first(tmp_path: Path) -> None:
    report = _run(tmp_path, range(1, 3))
    report.finish(stopped=None)
    html = (tmp_path / "report.html").read_text()
    table = html.split("Configuration</h2>")[1].split("</table>")[0]
    assert re.findall(r"<tr><th>([\w.]+)", table) == [
        "setting", "model", "method.name", "method.r", "method.quantize", "train.lr", "train.samples", "out_dir",
        "data.path",
    ]  # fmt: skip
    assert "<td>0.001</td><td>0.0002</td>" in table
    usual = flat(defaults(PretrainSettings))
    assert usual["train.min_lr"] == 0.1
    assert usual["method.name"] == "full"
    assert usual["data.val_fraction"] == 0.005
    assert "data.path" not in usual
    plain = flat(PretrainSettings(model="m", data=TextData(path=("t",))))
    assert {k for k, v in plain.items() if k not in usual or usual[k] != v} == {"model", "data.path"}


# --- the console ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What it would show."""
        return [line.split("\r\033[K")[-1] for line in self.getvalue().split("\n")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    return now


def _show(clock: list[float], progress: dict[int, float], **rows: Any) -> None:
    """A step every 2 seconds."""
    with Report(None, None) as report:
        report.start(step=0)
        for step, share in progress.items():
            report.step(
                _row(step, lr=1e-3, loss=2.0, tokens_per_s=1234.0, **rows.get(f"at_{step}", {})), progress=share
            )
            clock[0] += 2
        report.finish(stopped=None)


def test_the_live_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(reports, "_columns", lambda: 120)
    monkeypatch.delenv("TERM", raising=False)
    shares = {i: i / 40 for i in range(1, 41)}
    _show(clock, shares, at_11=dict(val_loss=2.5), at_40=dict(mfu=0.41, memory_gb=12.34, val_loss=1.5))
    assert terminal.lines == [
        "step 11 27%  loss 2.000  val 2.500  0:58 min left  1,234 tokens/s  lr 1.0e-03",
        "step 40 100%  loss 2.000  val 1.500  0:00 min left  1,234 tokens/s  lr 1.0e-03  MFU 41%  12.3 GB",
        "",
    ]
    assert "step 10 25%  loss 2.000  1:00 min left" in terminal.getvalue()
    assert terminal.getvalue().count("\r\033[K") == 40


def test_words_do_not_break_the_live_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(reports, "_columns", lambda: 30)
    monkeypatch.delenv("TERM", raising=False)
    report = Report(None, None)
    report.say("hello")
    report.start(step=0)
    report.step(_row(1, loss=2.0), progress=0.1)
    report.say("a word")
    report.samples(1, [("Once\nupon", "a \x1b[2Jtime" + "!" * 200)])
    clock[0] += 0.01
    report.step(_row(2, loss=2.0), progress=0.2)  # too soon after the last
    report.finish(stopped=None)
    hello, word, sample, last, end = terminal.lines
    assert (hello, word) == ("hello", "a word")
    assert sample.startswith("  Once upon → a [2Jtime!!!!")
    assert len(sample) < 130
    assert (last, end) == ("step 2 20%  loss 2.000", "")  # as much as fits
    assert "\x1b[2J" not in terminal.getvalue()


def test_elsewhere_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    _show(clock, {i: i / 20 for i in range(1, 21)}, at_9=dict(val_loss=2.5))
    shown = capsys.readouterr().err
    assert re.findall(r"^step (\d+)", shown, re.M) == ["1", "6", "9", "14", "19", "20"]
    assert "\r" not in shown
    assert "\033" not in shown


def test_without_progress_and_quiet(clock: list[float], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = Report(None, None)
    report.start(step=0)
    report.step({"step": 1, "loss": 2.0})
    assert capsys.readouterr().err == "step 1  loss 2.000\n"
    report = Report(tmp_path, SETTINGS, quiet=True)
    report.start(step=0)
    report.say("no")
    report.samples(0, [("a", "b")])
    report.step(_row(1), progress=1.0)
    report.finish(stopped=None)
    assert capsys.readouterr().err == ""


def test_the_loss_is_the_steps_own_and_speed_a_running_mean(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    report = Report(None, None)
    report.start(step=0)
    for step, (loss, speed) in enumerate(((4.0, 100), (2.0, 300), (math.nan, None), (3.0, 1000)), start=1):
        clock[0] += 20
        report.step({"step": step, "loss": loss, "tokens_per_s": speed})
    shown = re.findall(r"loss (\S+)  (\S+) tokens/s", capsys.readouterr().err)
    assert shown == [("4.000", "100"), ("2.000", "200"), ("nan", "200"), ("3.000", "400")]


def test_durations() -> None:
    shown = {0: "0:00 min", 59.6: "1:00 min", 61: "1:01 min", 3600: "1 h 00 min", 7384: "2 h 03 min"}
    assert {s: duration(s) for s in shown} == shown


def test_a_run_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="broken data"), _run(tmp_path / "a", range(1, 4)):
        raise ValueError("broken data")
    assert "Stopped: broken data" in Page(tmp_path / "a" / "report.html").text
    with pytest.raises(KeyboardInterrupt), _run(tmp_path / "b", range(1, 4)):
        raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["metrics.csv"]  # at once
    monkeypatch.setattr("litlm.train.html.write_report", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="broken data"), _run(tmp_path / "c", range(1, 4)):
        raise ValueError("broken data")


# --- loggers -------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run(tmp_path, range(1, 6), loggers=("tensorboard",)).finish(stopped=None)
    _run(tmp_path, range(4, 8), start=3, loggers=("tensorboard",)).finish(stopped=None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(_row(1)) - {"step", "val_loss"}
    found = [(e.step, e.value) for e in events.Scalars("grad_norm")]
    assert found == [(step, pytest.approx(1.5 * step)) for step in range(1, 8)]


WANDB = """
from types import SimpleNamespace
run, log, ended = None, [], []
class Run:
    def __init__(self, options):
        self.options, self.id = options, options["id"] or "id-1"
        self.config = SimpleNamespace(update=lambda values, **_: log.append(values))
    def log(self, values):
        log.append(values)
def init(**options):
    found = Run(options)
    log.append(options)
    return found
"""
MLFLOW = """
log = []
def set_tracking_uri(uri): pass
"""
MLFLOW_TRACKING = """
from types import SimpleNamespace as Made
import mlflow
class MlflowClient:
    def __init__(self, uri): pass
    def get_experiment_by_name(self, name): return Made(lifecycle_stage="active", experiment_id=name)
    def create_run(self, experiment_id, tags):
        mlflow.log.append((experiment_id, tags))
        return Made(info=Made(run_id="run-1"))
    def get_run(self, run_id):
        mlflow.log.append(run_id)
        return Made(info=Made(experiment_id="e"))
    def log_batch(self, run_id, metrics=(), params=()):
        mlflow.log.append((run_id, {m.key: (m.step, m.value) for m in metrics}, {p.key: p.value for p in params}))
    def set_terminated(self, run_id, status): mlflow.log.append(status)
"""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As much of the packages as Lightning's loggers call; the real ones need an account or a server."""
    plain = "class {0}:\n    def __init__(self, **values): self.__dict__.update(values)\n"
    files = {
        "wandb/__init__.py": WANDB, "wandb/sdk/__init__.py": "", "wandb/sdk/lib.py": "class RunDisabled: pass",
        "wandb/wandb_run.py": "class Run: pass", "mlflow/__init__.py": MLFLOW,
        "mlflow/tracking/__init__.py": MLFLOW_TRACKING, "mlflow/tracking/context/__init__.py": "",
        "mlflow/tracking/context/registry.py": "resolve_tags = lambda tags: tags",
        "mlflow/entities.py": plain.format("Metric") + plain.format("Param"), "mlflow/utils/__init__.py": "",
        "mlflow/utils/mlflow_tags.py": "MLFLOW_RUN_NAME = 'name'",
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    import lightning.pytorch.loggers.mlflow
    import lightning.pytorch.loggers.wandb

    monkeypatch.setattr(lightning.pytorch.loggers.wandb, "_WANDB_AVAILABLE", True)
    monkeypatch.setattr(lightning.pytorch.loggers.mlflow, "_MLFLOW_AVAILABLE", True)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "mlflow")]:
        del sys.modules[name]


def test_wandb_and_mlflow_get_the_numbers_and_go_on_in_the_same_run(stubs: None, tmp_path: Path) -> None:
    out, names = tmp_path / "mine", ("wandb", "mlflow")
    check_loggers(names)
    _run(out, range(1, 3), loggers=names).finish(stopped=None)
    import mlflow
    import wandb

    options, config, *rows = wandb.log
    assert (options["project"], options["name"], options["id"]) == ("litlm", "mine", None)
    assert config["train.lr"] == 1e-3
    assert [(r["trainer/global_step"], r["grad_norm"]) for r in rows] == [(1, 1.5), (2, 3.0)]
    assert mlflow.log[0] == ("litlm", {"name": "mine"})
    assert mlflow.log[1][2]["method.name"] == "qlora"
    assert [m[1]["grad_norm"] for m in mlflow.log if isinstance(m, tuple) and len(m) == 3 and m[1]] == [
        (1, 1.5),
        (2, 3),
    ]
    assert mlflow.log[-1] == "FINISHED"
    wandb.log.clear(), mlflow.log.clear()
    with pytest.raises(ValueError, match="stop"), _run(out, range(3, 4), start=2, loggers=names):
        raise ValueError("stop")
    assert wandb.log[0]["id"] == "id-1"
    assert mlflow.log[0] == "run-1"
    assert mlflow.log[-1] == "FAILED"


def test_missing_packages_are_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="train.logger=wandb, mlflow needs.*pip install wandb mlflow"):
        Report(Path("x"), SETTINGS, loggers=("wandb", "mlflow"))


# --- settings.yaml -------------------------------------------------------------------------------------------------

ADAM = TrainSettings(max_time="2h", optimizer_args={"betas": (0.9, 0.95)})
RUNS = [
    ("finetune", dataclasses.replace(SETTINGS, new_tokens=("<a>", "ü"))),
    ("pretrain", PretrainSettings(model="m", data=TextData(path=("a.txt", "b")), train=ADAM)),
    ("pretrain", PretrainSettings(model="m", data=TextData(path=("a.txt",)))),
    (
        "dpo",
        DPOSettings(model="m", data=PreferenceData(path="p"), preference=PreferenceSettings(loss="orpo", beta=0.3)),
    ),
]


@pytest.mark.parametrize(("name", "settings"), RUNS)
def test_written_settings_run_again(
    name: str, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/bin/litlm", name, "--prompt", "two\nlines: {\u2028\x1b\udcff", "it's"])
    write_settings(settings, tmp_path, torch.device("cpu"))
    path = tmp_path / "settings.yaml"
    monkeypatch.setitem(cli.COMMANDS, name, cli.Command(type(settings).__name__, "x:y", ""))
    again = cli.parse(name, ["--config", str(path)])
    assert flat(again) == flat(settings)
    assert type(again) is type(settings)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# litlm {name} --prompt 'two\n# lines: {{\n# \ufffd\ufffd' 'it'\"'\"'s'\n# Python 3.")
    assert f"torch {torch.__version__}" in text
    assert "\n# cpu: " in text
    assert json.dumps(flat(yaml.safe_load(text))) == json.dumps(flat(settings))
    assert flat(read_settings(path)) == flat(settings)
