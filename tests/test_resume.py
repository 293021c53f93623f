"""Runs that end early go on as if nothing had happened: to the last bit, wherever they were killed.

Each run is a process of its own, forked from a server that has everything heavy imported already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import save_file
from test_run import CASES, Files, content, rows_of, run, settings_of, write_files

from litlm.checkpoint.training import Checkpoints, load_checkpoint
from litlm.cli.main import main
from litlm.data.base import EpochSampler
from litlm.settings import DataSettings, MethodSettings, RunSettings
from litlm.train.files import write_settings
from litlm.train.loss import NextToken
from litlm.train.report import Report

TIMES = ("tokens_per_s", "seconds")  # columns of metrics.csv that differ between equal runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


# --- processes that are killed -------------------------------------------------------------------------------------


def child(settings: RunSettings, plan: dict[str, Any]) -> None:
    """A run that ends as planned. at: kill it at this event; after: kill it after so many seconds; count: where to
    write how many events there were.
    """
    from litlm.train import plot

    torch.set_num_threads(1)
    plot.plot_loss = lambda *args: None  # a third of the time of so short a run
    events = Events(plan.get("at"))
    events.install()
    if "after" in plan:
        timer = threading.Timer(plan["after"], kill)
        timer.daemon = True
        timer.start()
    run(settings)
    if "count" in plan:
        Path(plan["count"]).write_text(str(events.n))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Events:
    """Counts what a run does to its files, and kills it at one of these moments: before it, after it, or half way."""

    def __init__(self, last: int | None) -> None:
        self.last, self.n = last, 0

    def happen(self, half: Callable[[], None] = lambda: None) -> None:
        self.n += 1
        if self.n == self.last:
            half()
            kill()

    def wrap(self, owner: Any, name: str, half: Callable[..., None] | None = None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.happen()
            if half is not None:
                self.happen(lambda: half(original, *args, **options))
            out = original(*args, **options)
            self.happen()
            return out

        setattr(owner, name, wrapped)

    def install(self) -> None:
        from litlm.checkpoint import adapter, hf, training
        from litlm.train import files

        def half_a_file(original: Any, tensors: Any, path: Any, *args: Any, **options: Any) -> None:
            original(tensors, path, *args, **options)
            os.truncate(path, os.path.getsize(path) // 2)

        def half_a_text(original: Any, path: Path, text: str, *args: Any, **options: Any) -> None:
            original(path, text[: len(text) // 2], *args, **options)

        def half_a_folder(original: Any, path: Any, *args: Any, **options: Any) -> None:
            for file in [p for p in Path(path).rglob("*") if p.is_file()][:2]:
                file.unlink()

        def half_a_row(original: Any, metrics: Any, row: Any) -> None:
            line = files._lines([[files._cell(row.get(name)) for name in metrics.columns]])
            with metrics.path.open("a") as f:
                f.write(line[: len(line) // 2])

        for module in (training, hf, adapter):
            self.wrap(module, "save_file", half_a_file)
        self.wrap(Path, "write_text", half_a_text)
        self.wrap(shutil, "rmtree", half_a_folder)
        self.wrap(files.Metrics, "write", half_a_row)
        self.wrap(os, "replace")
        self.wrap(os, "fsync")


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Start a run in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume", *HEAVY])
    with pytest.MonkeyPatch.context() as patch:  # before Python 3.13 the server does not get sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        forkserver.ensure_running()
    processes = []

    def start(target: Callable[..., None], *args: Any) -> Any:
        processes.append(context.Process(target=target, args=args))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


HEAVY = [
    "bitsandbytes", "lightning.fabric", "matplotlib.backends.backend_agg", "matplotlib.figure", "litlm.llm",
    "litlm.train.run", "litlm.train.trials", "litlm.train.html", "litlm.train.plot", "litlm.data.sft",
    "litlm.data.preference", "litlm.data.shards", "litlm.data.prepare", "litlm.checkpoint.hf", "litlm.checkpoint.peft",
    "litlm.checkpoint.adapter", "litlm.transforms.quantize", "litlm.transforms.lora", "litlm.transforms.llama_adapter",
    "litlm.train.preference", "jsonargparse", "litlm.tokenizer.backends", "litlm.zoo", "litlm.checkpoint.download",
    "yaml",
]  # fmt: skip


def ended(process: Any) -> int:
    process.join(600)  # seconds, of runs that take a few: what a busy machine may need
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def what_counts(out: Path) -> dict[str, Any]:
    """Of a run that is over: the result, the losses, and the state of the last checkpoint, all but the times."""
    last = max(out.glob("step-*"))
    state = json.loads((last / "training" / "state.json").read_text())
    state["state"].pop("seconds")
    state["optimizer"]["tensors"].sort()
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(out / "metrics.csv")]
    tensors = {name: data for name, data in content(last).items() if not name.endswith("state.json")}
    steps = sorted(p.name for p in out.glob("step-*"))
    return dict(final=content(out / "final"), rows=rows, state=state, tensors=tensors, steps=steps)


def until_over(start: Callable[..., Any], settings: RunSettings, plans: Iterator[dict[str, Any]]) -> int:
    """Kill the run by each plan until it ends by itself; how often it was killed."""
    kills = 0
    while True:
        code = ended(start(child, settings, next(plans, {})))
        if code == 0:
            return kills
        assert code == -signal.SIGKILL
        kills += 1


def plans(rng: random.Random, events: int, seconds: float, n: int) -> Iterator[dict[str, Any]]:
    """Ends at random: mostly at an event, sometimes at any moment."""
    for i in range(n):
        yield dict(after=rng.uniform(0, seconds)) if i % 4 == 3 else dict(at=rng.randint(1, events))


def killed_and_whole(start: Any, files: Files, out: Path, case: str, *, least: int, each: int) -> int:
    """A run left alone, and others that are killed at least so often in all; the kills."""
    ended_well = ended(start(child, settings_of(case, files, out / "whole"), dict(count=str(out / "count"))))
    assert ended_well == 0
    events, whole = int((out / "count").read_text()), what_counts(out / "whole")
    assert events > 100
    rng, kills, turn = random.Random(case), 0, 0
    while kills < least:
        folder = out / f"killed-{turn}"
        settings = settings_of(case, files, folder, run=dict(resume="auto"))
        kills += until_over(start, settings, plans(rng, events // 2, 1.0, each))
        killed = what_counts(folder)
        assert killed.keys() == whole.keys()
        for key in whole:
            assert killed[key] == whole[key], (key, turn)
        assert not list(folder.glob(".*")), "something is left over"
        shutil.rmtree(folder)
        turn += 1
    return kills


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("full-bf16", "lora-mixed", "dpo-full")])
def test_a_killed_run_goes_on_to_the_same_bits(case: str, start: Any, files: Files, tmp_path: Path) -> None:
    assert killed_and_whole(start, files, tmp_path, case, least=2, each=2) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twenty_kills(case: str, start: Any, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kills = killed_and_whole(start, files, tmp_path, case, least=20, each=10)
    with capsys.disabled():
        print(f"\n{case}: {kills} kills, all equal", file=sys.stderr)


# --- runs that are stopped politely --------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litlm.train.plot.plot_loss", lambda *args: None)


pytestmark = pytest.mark.usefixtures("quick")


@contextlib.contextmanager
def stop_at(step: int, turn: int = 1, signum: int = signal.SIGTERM) -> Iterator[None]:
    """Within the block runs get a signal when they report this step (for the turn-th time)."""
    original, turns = Report.step, itertools.count(1)

    def and_stop(report: Report, row: Any, progress: float | None = None) -> None:
        original(report, row, progress)
        if row["step"] == step and next(turns) == turn:
            os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "step", and_stop)
        yield


def command(said: Path, arguments: list[str], step: int, signum: int) -> None:
    """`litlm` as a process of a terminal (`nohup make test &` ignores two signals) that gets a signal in a step."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with (
        said.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file),
        stop_at(step, signum=signum),
    ):  # fmt: skip
        main(arguments)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_end_well(signum: signal.Signals, start: Any, files: Files, tmp_path: Path) -> None:
    """As commands, and with what they say to go on."""
    settings = settings_of("lora", files, tmp_path / "out", save_interval=None)
    run(dataclasses.replace(settings, out_dir=str(tmp_path / "whole")))
    write_settings(settings, tmp_path)
    arguments = ["finetune", "--config", str(tmp_path / "settings.yaml")]
    assert ended(start(command, tmp_path / "said", arguments, 3, signum)) == 128 + signum
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert f"Stopped by {'Ctrl-C' if signum == signal.SIGINT else signum.name} after step 3" in said
    assert "Continue with the same command and --resume auto" in said
    assert not (tmp_path / "out" / "final").exists()
    assert len(list((tmp_path / "out").glob("step-*"))) == 1
    assert ended(start(command, tmp_path / "said", [*arguments, "--resume", "auto"], 0, signum)) == 0
    assert content(tmp_path / "out" / "final") == content(tmp_path / "whole" / "final")
    whole, again = (rows_of(tmp_path / name / "metrics.csv") for name in ("whole", "out"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in again]


def test_a_signal_in_the_last_step_leaves_a_run_that_can_be_finished(files: Files, tmp_path: Path) -> None:
    run(settings_of("lora", files, tmp_path / "whole"))
    with stop_at(8, signum=signal.SIGTERM):
        assert run(settings_of("lora", files, tmp_path / "out")).stopped == "SIGTERM"
    assert not (tmp_path / "out" / "final").exists()
    run(settings_of("lora", files, tmp_path / "out", run=dict(resume="auto")))
    assert content(tmp_path / "out" / "final") == content(tmp_path / "whole" / "final")


def test_every_start_of_a_run_is_named(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In settings.yaml and on the page, the latest first; and the page counts from the first."""
    from test_report import Page

    class Clock(datetime):
        day = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 11, cls.day, 10, 11).astimezone()

    for module in ("files", "report"):
        monkeypatch.setattr(f"litlm.train.{module}.datetime", Clock)
    for day, step in ((3, 2), (4, 5), (5, 0)):
        Clock.day = day
        monkeypatch.setattr(sys, "argv", ["/bin/litlm", "finetune", f"--day={day}"])
        with stop_at(step) if step else contextlib.nullcontext():
            run(settings_of("lora", files, tmp_path, run=dict(resume="auto")))
    text = (tmp_path / "settings.yaml").read_text()
    days = [int(line[-1]) for line in text.splitlines() if line.startswith("# litlm finetune --day=")]
    assert days == [5, 4, 3]
    page = Page(tmp_path / "report.html").text
    assert "2026-11-03 10:11 to 2026-11-05 10:11" in page
    assert [f"--day={day}" in page for day in (3, 4, 5)] == [True] * 3
    yaml.safe_load(text)
    Clock.day = 6
    run(settings_of("lora", files, tmp_path, run=dict(overwrite=True)))
    assert "--day=4" not in (tmp_path / "settings.yaml").read_text()


@pytest.mark.parametrize(
    ("case", "train", "packing"),
    [("lora", dict(micro_batch_size=4), True), ("full", dict(micro_batch_size=1), True), ("full", {}, False)],
)
def test_resuming_with_other_micro_batches_keeps_the_data(
    case: str, train: dict[str, Any], packing: bool, files: Files, tmp_path: Path
) -> None:
    method = MethodSettings(name="full") if case == "full" else MethodSettings(r=4)  # dropout differs by micro batch
    options: dict[str, Any] = dict(run=dict(method=method), lr=1e-3)
    whole = run(settings_of(case, files, tmp_path / "whole", **options))
    with stop_at(3):
        run(settings_of(case, files, tmp_path / "out", **options))
    data = DataSettings(path=str(files.records), val_fraction=0.2, packing=packing)
    options["run"] |= dict(resume="auto", data=data)
    again = run(settings_of(case, files, tmp_path / "out", **(options | train)))
    assert again.losses == pytest.approx(whole.losses[3:], rel=1e-4)
    one, two = (rows_of(tmp_path / name / "metrics.csv") for name in ("whole", "out"))
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]


def test_what_a_resumed_run_changes_is_said(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(**train: Any) -> str:
        options = dict(schedule="constant", samples=("ab",)) | train
        run(settings_of("lora", files, tmp_path, run=dict(resume="auto"), **options), quiet=False)
        return "\n".join(line for line in capsys.readouterr().err.splitlines() if "other settings" in line)

    assert said(max_steps=2) == ""
    assert said(max_steps=4, lr=1e-5) == (
        "Going on from step-000002 with other settings than before: max_steps=4 (it was 2), lr=1e-05 (it was 0.005)"
    )
    assert said(max_steps=4, lr=1e-5) == ""
    changed = said(max_steps=6, lr=1e-5, epochs=9, optimizer_args={"betas": (0.8, 0.9)})
    assert changed.endswith(
        ": max_steps=6 (it was 4), epochs=9 (it was None), optimizer_args={'betas': [0.8, 0.9]} (it was {})"
    )
    for damaged in ("a: [", "- 1", "train:"):
        (tmp_path / "settings.yaml").write_text(damaged)
        assert said(max_steps=6) == ""


def test_other_paths_and_models_are_said(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where they are the same data and the same model elsewhere."""
    run(settings_of("full", files, tmp_path / "out", max_steps=2))
    shutil.copytree(tiny.folder(), tmp_path / "moved")
    shutil.copy(files.records, tmp_path / "copy.jsonl")
    data = DataSettings(path=str(tmp_path / "copy.jsonl"), val_fraction=0.2)
    options = dict(resume="auto", data=data, model=str(tmp_path / "moved"))
    run(settings_of("full", files, tmp_path / "out", run=options), quiet=False)
    said = capsys.readouterr().err
    assert f"model={tmp_path / 'moved'} (it was {tiny.folder()})" in said
    assert f"data.path=['{tmp_path / 'copy.jsonl'}'] (it was ['{files.records}'])" in said
    assert "date=" not in said
    assert "validation data" not in said


def test_another_base_is_refused_where_all_weights_are_trained(files: Files, tmp_path: Path) -> None:
    tiny.load(seed=5).save(tmp_path / "other")
    for case in ("full", "dpo-full", "pretrain"):
        options = dict(from_weights=True) if case == "pretrain" else {}
        run(settings_of(case, files, tmp_path / case, max_steps=2, run=options))
        before = content(tmp_path / case)
        options |= dict(resume="auto", model=str(tmp_path / "other"))
        with pytest.raises(ValueError, match=rf"goes with another model than .*--model {tiny.folder()}"):
            run(settings_of(case, files, tmp_path / case, run=options))
        assert content(tmp_path / case) == before


def test_losses_on_other_validation_data_are_not_compared(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_run import RECORDS

    vals = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, records in zip(vals, (RECORDS[:4], RECORDS[4:9]), strict=True):
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    def go_on(val: Path, **train: Any) -> tuple[Any, str]:
        data = DataSettings(path=str(files.records), val_path=str(val), val_fraction=0)
        options = dict(resume="auto", data=data)
        result = run(settings_of("lora", files, tmp_path / "out", run=options, **train), quiet=False)
        return result, capsys.readouterr().err

    train: dict[str, Any] = dict(val_interval=1, keep=9, save_interval=1)
    assert go_on(vals[0], max_steps=3, **train)[0].best_step
    checkpoint = tmp_path / "out" / "step-000003" / "training" / "state.json"
    content = json.loads(checkpoint.read_text())
    content["state"] |= dict(best=0.0, best_step=1, waited=2)
    checkpoint.write_text(json.dumps(content))
    result, said = go_on(vals[1], max_steps=5, early_stop=2, **train)
    assert "The validation data have changed" in said
    assert f"data.val_path=['{vals[1]}'] (it was ['{vals[0]}'])" in said
    assert result.best_step >= 4
    assert "validation data" not in go_on(vals[1], max_steps=6, **train)[1]


def test_a_finished_run_is_left_as_it_is(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings_of("lora", files, tmp_path, max_steps=4))
    before = content(tmp_path)
    options: dict[str, Any] = dict(max_steps=4, lr=0.5, samples=("ab",))
    result = run(settings_of("lora", files, tmp_path, run=dict(resume="auto"), **options), quiet=False)
    said = capsys.readouterr().err
    assert "Already finished at step 4 (max_steps=4): nothing is trained or written" in said
    assert "oing on from" not in said
    assert (result.steps, result.losses) == (4, [])
    assert content(tmp_path) == before


def test_a_final_of_fewer_steps_is_not_the_end(files: Files, tmp_path: Path) -> None:
    """Killed after the last checkpoint and before final/ was replaced."""
    run(settings_of("lora", files, tmp_path, max_steps=4))
    shutil.copytree(tmp_path / "final", tmp_path / "old")
    run(settings_of("lora", files, tmp_path, run=dict(resume="auto")))
    final = content(tmp_path / "final")
    shutil.rmtree(tmp_path / "final")
    (tmp_path / "old").rename(tmp_path / "final")
    assert content(tmp_path / "final") != final
    run(settings_of("lora", files, tmp_path, run=dict(resume="auto")))
    assert content(tmp_path / "final") == final


def test_resuming_where_nothing_is_starts_anew(files: Files, tmp_path: Path) -> None:
    run(settings_of("lora", files, tmp_path / "a"))
    run(settings_of("lora", files, tmp_path / "b", run=dict(resume="auto")))
    assert what_counts(tmp_path / "a") == what_counts(tmp_path / "b")


def test_resuming_a_run_that_is_over_changes_nothing_or_goes_on(files: Files, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(schedule="constant")
    run(settings_of("lora", files, tmp_path / "out", max_steps=4, **options))
    before = what_counts(tmp_path / "out")
    result = run(settings_of("lora", files, tmp_path / "out", run=dict(resume="auto"), max_steps=4, **options))
    assert (result.steps, result.losses) == (4, [])
    assert what_counts(tmp_path / "out") == before
    run(settings_of("lora", files, tmp_path / "out", run=dict(resume="auto"), **options))
    run(settings_of("lora", files, tmp_path / "whole", **options))
    assert content(tmp_path / "out" / "final") == content(tmp_path / "whole" / "final")


def test_resuming_from_an_earlier_checkpoint(files: Files, tmp_path: Path) -> None:
    """Twice: later checkpoints are put aside, those that were put aside before are replaced."""
    out = tmp_path / "out"
    run(settings_of("lora", files, out, keep=9))
    whole = what_counts(out)
    for step in (4, 2):
        result = run(settings_of("lora", files, out, run=dict(resume=str(out / f"step-{step:06d}")), keep=9))
        assert len(result.losses) == 8 - step
        assert what_counts(out) == whole
        aside = {p.name for p in out.glob("left-*")}
        assert aside == {f"left-step-{s:06d}" for s in (4, 6, 8) if s > step}
    with pytest.raises(ValueError, match=r"no checkpoint of .*; there: step-000002, step-000004"):
        run(settings_of("lora", files, out, run=dict(resume=str(out / "step-000003"))))


def test_what_a_killed_save_left_is_cleared_away(files: Files, tmp_path: Path) -> None:
    """Killed after the last checkpoint was there, and before the one that it replaces was gone."""
    run(settings_of("lora", files, tmp_path))
    whole = what_counts(tmp_path)
    shutil.rmtree(tmp_path / "final")
    shutil.copytree(tmp_path / "step-000006", tmp_path / "step-000004")
    for name in (".step-000008.part", ".step-000002.old", ".metrics.csv.ab12.part", ".final.part"):
        (tmp_path / name).mkdir()
    run(settings_of("lora", files, tmp_path, run=dict(resume="auto")))
    assert what_counts(tmp_path) == whole
    assert not list(tmp_path.glob(".*"))


def test_a_used_directory_is_refused_and_left_alone(files: Files, tmp_path: Path) -> None:
    settings = settings_of("lora", files, tmp_path / "out", max_steps=2)
    run(settings)
    (tmp_path / "out" / ".step-000009.part").mkdir()
    (tmp_path / "out" / ".step-000009.part" / "of another run that is saving").touch()
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"already holds a run; .*--resume auto.*--overwrite.*--out_dir"):
        run(settings)
    assert content(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / "step-000002")  # final/ alone is a run as well
    with pytest.raises(ValueError, match="already holds a run"):
        run(settings)
    with pytest.raises(ValueError, match="give one of them"):
        settings_of("lora", files, tmp_path / "out", run=dict(overwrite=True, resume="auto"))


def test_overwriting_leaves_nothing_of_the_run_before(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings_of("lora", files, out, keep=9, samples=("ab",)))
    run(settings_of("lora", files, out, keep=9, run=dict(resume=str(out / "step-000004"))))
    run(settings_of("lora", files, out, max_steps=5, run=dict(overwrite=True)))
    run(settings_of("lora", files, tmp_path / "fresh", max_steps=5))
    assert what_counts(out) == what_counts(tmp_path / "fresh")
    names = [{p.name for p in folder.iterdir()} for folder in (out, tmp_path / "fresh")]
    assert names[0] == names[1]


@pytest.mark.parametrize(("keep", "left"), [(1, [2, 8]), (2, [2, 7, 8])])
def test_the_best_checkpoint_is_kept_beside_the_last(
    keep: int, left: list[int], files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 3.0, 4.0, 3.0, 6.0, 3.5, 7.0, 8.0])
    monkeypatch.setattr(sys.modules["litlm.train.loop"], "validate", lambda *args: {"val_loss": next(losses)})
    with stop_at(5):
        run(settings_of("lora", files, tmp_path, val_interval=1, save_interval=1, keep=keep))
    # The signal at step 5 saves before it validates.
    result = run(
        settings_of("lora", files, tmp_path, val_interval=1, save_interval=1, keep=keep, run=dict(resume="auto"))
    )
    assert [int(p.name[5:]) for p in sorted(tmp_path.glob("step-*"))] == left
    assert result.best_step == 2


# --- what must not go on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "train", "text"),
    [
        (dict(method=MethodSettings(name="adapter", start_layer=1)), {}, "method.name=adapter, it had lora"),
        (dict(method=MethodSettings(r=8)), {}, r"method.r=8, it had 4"),
        (dict(method=MethodSettings(r=4, targets=("q_proj",))), {}, r"targets=\['q_proj'\], it had \['all"),
        (dict(model="gpt_neox"), {}, r"another model .*n_head=3, it had 4, .* weights .* are others .*--model /"),
        ({}, dict(optimizer="sgd"), "optimizer=sgd, it had adamw"),
    ],
)  # fmt: skip
def test_another_run_is_not_gone_on_with(
    change: dict[str, Any], train: dict[str, Any], text: str, files: Files, tmp_path: Path
) -> None:
    """And what is there stays as it is: settings.yaml is what the message says to resume with."""
    run(settings_of("lora", files, tmp_path, max_steps=4))
    before = content(tmp_path)
    if "model" in change:
        change = dict(model=str(tiny.folder(change["model"])))
    for resume in ("auto", str(tmp_path / "step-000002")):
        with pytest.raises(ValueError, match=text):
            run(settings_of("lora", files, tmp_path, run=change | dict(resume=resume), **train))
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["state.json", "optimizer.safetensors", "weights.safetensors", "random.safetensors"]
)  # fmt: skip
def test_damaged_checkpoints_are_named_and_others_go_on(name: str, files: Files, tmp_path: Path) -> None:
    run(settings_of("lora", files, tmp_path))
    whole = content(tmp_path / "final")
    file = tmp_path / "step-000008" / "training" / name
    data = file.read_bytes()
    damages = [data[: len(data) // 2], data[:4], b"", b"null" if name == "state.json" else b"\0" * len(data)]
    for damage in damages:
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"step-000008 is damaged \(.*resume from another: --resume DIR"):
            run(settings_of("lora", files, tmp_path, run=dict(resume="auto")))
    run(settings_of("lora", files, tmp_path, run=dict(resume=str(tmp_path / "step-000006"))))
    assert content(tmp_path / "final") == whole


@pytest.mark.parametrize("where", ["training", "peft", "hf", "text"])
def test_a_full_disk_leaves_earlier_checkpoints(
    where: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it is that no longer fits; with room again the run goes on."""

    write: dict[str, Any] = dict(
        training=("litlm.checkpoint.training.save_file", save_file),
        peft=("litlm.checkpoint.adapter.save_file", save_file), hf=("litlm.checkpoint.hf.save_file", save_file),
        text=("pathlib.Path.write_text", Path.write_text),
    )  # fmt: skip
    name, original = write[where]
    case = "full" if where == "hf" else "lora"

    def full(*args: Any, **options: Any) -> Any:
        path = args[0] if where == "text" else args[1]
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **options)

    with stop_at(2):
        run(settings_of(case, files, tmp_path))
    before = content(tmp_path / "step-000002")
    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        message = r"^checkpoint \S+/step-000004 could not be written \(No space left on device\); earlier ones [a-z ]+$"
        with pytest.raises(
            ValueError,
            match=message,
        ):
            run(settings_of(case, files, tmp_path, run=dict(resume="auto")))
    assert content(tmp_path / "step-000002") == before
    assert not list(tmp_path.glob(".*"))
    run(settings_of(case, files, tmp_path, run=dict(resume="auto")))
    run(settings_of(case, files, tmp_path / "whole"))
    assert content(tmp_path / "final") == content(tmp_path / "whole" / "final")


# --- limits, spikes, rates -----------------------------------------------------------------------------------------


def test_early_stopping_is_remembered(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss is lowest at step 3, whatever a CPU makes of the weights."""
    loop = sys.modules["litlm.train.loop"]
    step, validate = 0, loop.Trainer._validate

    def noted(trainer: Any, val: Any) -> dict[str, float]:
        nonlocal step
        step = trainer.state.step
        return validate(trainer, val)

    monkeypatch.setattr(loop.Trainer, "_validate", noted)
    monkeypatch.setattr(loop, "validate", lambda *args: {"val_loss": abs(step - 3.0)})
    options: dict[str, Any] = dict(max_steps=30, val_interval=1, early_stop=2, save_interval=None)
    whole = run(settings_of("lora", files, tmp_path / "whole", **options))
    assert whole.steps == 5
    assert whole.stopped == "no better validation loss since step 3"
    before = content(tmp_path / "whole")
    again = run(settings_of("lora", files, tmp_path / "whole", run=dict(resume="auto"), **options))
    assert (again.steps, again.stopped, again.losses) == (whole.steps, whole.stopped, [])
    assert content(tmp_path / "whole") == before
    for killed in ("before final/ was written", "on the way"):
        out = tmp_path / killed[:2]
        if killed == "on the way":
            with stop_at(1):  # saves before it validates
                run(settings_of("lora", files, out, **(options | dict(val_interval=2))))
            again = run(settings_of("lora", files, out, run=dict(resume="auto"), **options))
        else:
            run(settings_of("lora", files, out, **options))
            shutil.rmtree(out / "final")
            again = run(settings_of("lora", files, out, run=dict(resume="auto"), **options))
            assert again.losses == []
        assert (again.steps, again.stopped) == (whole.steps, whole.stopped)
        assert content(out / "final") == content(tmp_path / "whole" / "final")


def test_a_run_that_rolled_back_goes_on(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 3 is bad, so its step 4 goes back to step 2 and leaves batches 2 and 3 out, killed before or after."""
    number = 0
    batch, loss_sum = EpochSampler.batch, NextToken.loss_sum

    def noted(order: EpochSampler, n: int, size: int) -> list[int]:
        nonlocal number
        number = n
        return batch(order, n, size)

    def broken(*args: Any) -> torch.Tensor:
        return loss_sum(*args) * (math.inf if number == 3 else 1.0)

    monkeypatch.setattr(EpochSampler, "batch", noted)
    monkeypatch.setattr(NextToken, "loss_sum", broken)
    settings = functools.partial(settings_of, "lora", files, on_spike="rollback", val_interval=8)
    whole = run(settings(tmp_path / "whole"))
    assert number == 9
    assert whole.steps == 8
    for step, turn in ((2, 1), (3, 1), (3, 2)):  # what a signal saved on the way is not gone back to
        out = tmp_path / f"{step}-{turn}"
        with stop_at(step, turn):
            run(settings(out))
        run(settings(out, run=dict(resume="auto")))
        assert what_counts(out)["final"] == what_counts(tmp_path / "whole")["final"]
        assert what_counts(out)["rows"] == what_counts(tmp_path / "whole")["rows"]


def test_going_back_again_and_again_ends(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are broken themselves: leaving out data does not help, and must not go on forever."""
    loss_sum, calls = NextToken.loss_sum, itertools.count()
    monkeypatch.setattr(NextToken, "loss_sum", lambda *args: loss_sum(*args) * (math.nan if next(calls) > 3 else 1.0))
    options: dict[str, Any] = dict(on_spike="rollback", val_interval=99, micro_batch_size=4)
    with pytest.raises(ValueError, match="step 5: the loss is nan .* After 10 returns"):
        run(settings_of("lora", files, tmp_path, **options))
    assert next(calls) == 4 + 11


@pytest.mark.parametrize("change", [dict(batch_size=2), dict(seed=8)], ids=str)
def test_a_run_that_would_see_other_data_is_refused(change: dict[str, int], files: Files, tmp_path: Path) -> None:
    run(settings_of("lora", files, tmp_path, max_steps=2))
    ((key, value),) = change.items()
    options: dict[str, Any] = dict(resume="auto") | (change if key == "seed" else {})
    settings = settings_of("lora", files, tmp_path, run=options, **({} if key == "seed" else change))
    with pytest.raises(ValueError, match=f"other data or of another order: {key}={value}, it had"):
        run(settings)


def test_a_checkpoint_that_is_saved_again_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between taking the old one away and putting the new one there."""

    class Killed(BaseException):
        pass

    replace, calls = os.replace, itertools.count(1)

    def killed(*args: Any) -> None:
        if next(calls) == 2:
            raise Killed
        replace(*args)

    checkpoints = Checkpoints(tmp_path, lambda folder: None, keep=1)
    state: tuple[dict[str, torch.Tensor], Any] = ({"a": torch.ones(2)}, {})
    checkpoints.save(3, {"n": 1}, {"w": torch.zeros(3)}, state)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            checkpoints.save(3, {"n": 2}, {"w": torch.ones(3)}, state)
    assert not checkpoints.steps()
    checkpoints.remove_partial()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003"]
    found, weights, _ = load_checkpoint(checkpoints.steps()[3])
    assert found == {"n": 1}
    assert torch.equal(weights["w"], torch.zeros(3))
    checkpoints.save(3, {"n": 2}, {"w": torch.ones(3)}, state)
    assert load_checkpoint(checkpoints.steps()[3])[0] == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003"]


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        (dict(max_steps=3), 3), (dict(max_steps=None, epochs=2), 6), (dict(max_steps=None), 3),
        (dict(max_steps=4, epochs=2), 4), (dict(max_steps=40, epochs=1), 3), (dict(max_steps=None, max_tokens=1), 1),
        (dict(max_steps=None, max_tokens=10**9, epochs=1), 3), (dict(max_steps=None, max_time="0.0001s"), 1),
        (dict(max_steps=5, max_time="1d", max_tokens=10**9), 5),
    ],
)  # fmt: skip
def test_the_nearest_limit_ends_a_run(limits: dict[str, Any], steps: int, files: Files, tmp_path: Path) -> None:
    """11 examples, 4 a step."""
    assert run(settings_of("lora", files, tmp_path, save_interval=None, **limits)).steps == steps
    assert [p.name for p in tmp_path.glob("step-*")] == [f"step-{steps:06d}"]


def test_a_limit_of_tokens_counts_on_after_resuming(files: Files, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(max_steps=None, max_tokens=500, schedule="linear")
    whole = run(settings_of("lora", files, tmp_path / "whole", **options))
    tokens = [int(row["tokens"]) for row in rows_of(tmp_path / "whole" / "metrics.csv")]
    assert tokens[-2] < 500 <= tokens[-1]
    with stop_at(2):
        run(settings_of("lora", files, tmp_path / "out", **options))
    again = run(settings_of("lora", files, tmp_path / "out", run=dict(resume="auto"), **options))
    assert again.steps == whole.steps
    assert content(tmp_path / "out" / "final") == content(tmp_path / "whole" / "final")


def test_a_rate_that_is_found_leaves_no_trace_and_is_kept(files: Files, tmp_path: Path) -> None:
    """The run is the same as one with that rate in its settings; a resumed one does not look for another."""
    options: dict[str, Any] = dict(lr="find")
    run(settings_of("lora", files, tmp_path / "found", **options))
    lr = json.loads((tmp_path / "found" / "found.json").read_text())["lr"]
    assert 1e-5 < lr < 1
    run(settings_of("lora", files, tmp_path / "given", lr=lr))
    assert what_counts(tmp_path / "found") == what_counts(tmp_path / "given")
    shutil.rmtree(tmp_path / "found" / "final")
    again = settings_of("lora", files, tmp_path / "found", run=dict(resume="auto"), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("litlm.train.trials.find_lr", None)  # is not asked again
        run(dataclasses.replace(again, resume=str(tmp_path / "found" / "step-000006")))
    assert what_counts(tmp_path / "found") == what_counts(tmp_path / "given")
