"""A run's folder: one run at a time, nothing of an earlier one lost, what fails is said early; and full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from safetensors import SafetensorError
from test_resume import stop_at, what_counts
from test_run import Files, content, rows_of, run, settings_of, write_files
from test_writing import holder

from litlm.cli.main import main
from litlm.data.base import EpochSampler
from litlm.io.lock import locked
from litlm.llm import LLM
from litlm.settings import DataSettings, MethodSettings, TextData, TrainTokenizerCommand
from litlm.train.files import write_settings
from litlm.train.loss import NextToken
from litlm.train.report import Report


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litlm.train.plot.plot_loss", lambda *args: None)


class Killed(BaseException):
    """No Exception, so nothing is tidied up for it: the process might as well have been killed."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs end at this step as if they were killed; gives what undoes it."""
    original = Report.step

    def and_die(report: Report, row: Any, progress: float | None = None) -> None:
        original(report, row, progress)
        if row["step"] == step:
            raise Killed

    patch = pytest.MonkeyPatch()
    patch.setattr(Report, "step", and_die)
    return patch.undo


# --- one run at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["lora", "dpo", "pretrain"])
def test_a_second_run_in_one_folder_is_refused(case: str, files: Files, tmp_path: Path) -> None:
    """Whatever it is told about the run that is there; and it leaves that alone. After a kill the folder is free."""
    out = tmp_path / "out"
    run(settings_of(case, files, out, max_steps=2))
    before = content(out)
    with holder(out) as first:
        (out / ".step-000009.part").mkdir()  # it is saving
        for more in ({}, dict(resume="auto"), dict(overwrite=True)):
            with pytest.raises(ValueError, match=rf"is being written by another process: pid {first.pid} on .* since"):
                run(settings_of(case, files, out, run=more))
        assert (out / ".step-000009.part").is_dir()
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert {name: data for name, data in content(out).items() if name != ".litlm.lock"} == before
    assert run(settings_of(case, files, out, run=dict(resume="auto"), max_steps=3)).steps == 3
    assert not list(out.glob(".*"))


def test_other_commands_ask_for_their_folder_as_well(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab " * 99)
    llm = tiny.shared()
    with holder(tmp_path / "out"):
        for work in (
            lambda: llm.save(tmp_path / "out"),
            lambda: main(["merge", "a", "--base", str(tiny.folder()), "--out_dir", str(tmp_path / "out")]),
            lambda: train_tokenizer(tmp_path),
        ):
            with pytest.raises((ValueError, SystemExit)) as e:
                work()
            if isinstance(e.value, ValueError):
                assert "is being written by another process" in str(e.value)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name != ".litlm.lock"]


def train_tokenizer(folder: Path) -> None:
    from litlm.data.train_tokenizer import train_tokenizer as train

    train(TrainTokenizerCommand(data=(str(folder / "text.txt"),), out_dir=str(folder / "out"), vocab_size=300))


@pytest.fixture(scope="module")
def adapter(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of the tiny model, which lies beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    shutil.copytree(tiny.folder(), folder / "base")
    run(settings_of("lora", files, folder / "run", max_steps=1, run=dict(model=str(folder / "base"))))
    return folder / "run" / "final"


def test_merge_writes_over_nothing(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = adapter.parent.parent
    (tmp_path / "link").symlink_to(root)
    tiny.load(seed=1).save(tmp_path / "other")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").touch()
    before = content(root), content(tmp_path)
    monkeypatch.chdir(root / "run")

    def merge(out: Path | str, *more: str) -> str:
        with pytest.raises(SystemExit) as e:
            main(["merge", str(adapter), "--out_dir", str(out), *more])
        assert e.value.code == 1
        return capsys.readouterr().err

    for out in (root / "base", tmp_path / "link" / "base", "../base", root / "run" / ".." / "base"):
        assert "is the model that the adapter belongs to" in merge(out)
    for out in (adapter, tmp_path / "link" / "run" / "final", "final"):
        assert "is the adapter itself" in merge(out)
        assert "is the adapter itself" in merge(out, "--overwrite")
    assert "holds an adapter" in merge(root / "run" / "step-000001", "--overwrite")
    assert "holds a model already (config.json, model.safetensors); name another" in merge(tmp_path / "other")
    assert "holds a model already (model.gguf)" in merge(tmp_path / "gguf")
    assert (content(root), content(tmp_path)) == before
    with pytest.raises(ValueError, match="holds an adapter"):
        tiny.shared().save(adapter)
    main(["merge", str(adapter), "--out_dir", str(tmp_path / "new")])
    main(["merge", str(adapter), "--out_dir", str(tmp_path / "other"), "--overwrite"])
    main(["merge", str(adapter), "--out_dir", str(tmp_path / "link" / "base"), "--overwrite"])
    merged = (tmp_path / "new" / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "other" / "model.safetensors").read_bytes()
    assert merged == (root / "base" / "model.safetensors").read_bytes()
    assert merged != (tiny.folder() / "model.safetensors").read_bytes()


def test_a_merge_holds_its_folder_from_the_beginning(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, arguments = LLM.load, ["merge", str(adapter), "--out_dir", str(tmp_path / "out")]

    def meanwhile(*args: Any, **options: Any) -> LLM:
        monkeypatch.setattr(LLM, "load", load)
        with pytest.raises(SystemExit):
            main(arguments)
        assert "is being written by another process" in capsys.readouterr().err
        return load(*args, **options)

    monkeypatch.setattr(LLM, "load", meanwhile)
    main(arguments)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_no_model_is_written_into_the_folder_of_a_run(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's folder stands for what it trained; files of a model at its top would take precedence."""
    out = adapter.parent
    before = content(out)
    for more in ((), ("--overwrite",)):
        with pytest.raises(SystemExit):
            main(["merge", str(adapter), "--out_dir", str(out), *more])
        assert "is the folder of a training run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["download", str(tiny.folder()), "--out_dir", str(out)])
    assert "is the folder of a training run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is the folder of a training run"):
        tiny.shared().save(out)
    for name in ("metrics.csv", "settings.yaml"):  # one that has saved nothing yet
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is the folder of a training run"):
        tiny.shared().save(tmp_path)
    assert content(out) == before


def test_what_a_run_saved_is_neither_merged_over_nor_trained_away(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that lies in a run, given as itself or as the run."""
    base, again = tmp_path / "base", tmp_path / "again"
    run(settings_of("full", files, base, max_steps=1))
    run(settings_of("lora", files, tmp_path / "lora", max_steps=1, run=dict(model=str(base))))
    before = content(tmp_path)
    for model in (base, base / "final", base / "step-000001", tmp_path / "lora" / ".." / "base"):
        with pytest.raises(ValueError, match=r"model=.* is part of the run in .*base, which --overwrite removes"):
            run(settings_of("lora", files, base, run=dict(model=str(model), overwrite=True)))
    with pytest.raises(ValueError, match=r"tokenizer=.* is part of the run"):
        run(settings_of("pretrain", files, base, run=dict(tokenizer=str(base), overwrite=True)))
    for more in ((), ("--overwrite",)):
        with pytest.raises(SystemExit):
            main(["merge", str(tmp_path / "lora"), "--out_dir", str(base / "final"), *more])
        assert "is what the training run in" in capsys.readouterr().err
    assert content(tmp_path) == before
    run(settings_of("lora", files, again, max_steps=1, run=dict(model=str(base))))
    run(settings_of("lora", files, again, max_steps=1, run=dict(model=str(base / "final"), overwrite=True)))


@pytest.mark.parametrize("case", ["lora", "dpo", "pretrain"])
def test_no_run_is_written_beside_a_model(case: str, adapter: Path, files: Files, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder(), tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    before = content(tmp_path)
    for name in ("base", "adapter"):
        for more in ({}, dict(overwrite=True), dict(resume="auto")):
            with pytest.raises(ValueError, match=r"holds a model or adapter \(.*config.json.*; name another --out_dir"):
                run(settings_of(case, files, tmp_path / name, run=more))
    assert content(tmp_path) == before


def test_an_adapter_is_not_trained_as_a_model(
    adapter: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is loaded; of a model in memory before anything is changed."""
    prompts = settings_of("adapter", files, tmp_path / "prompts", max_steps=1)
    run(prompts)
    llms = [LLM.load(path, device="cpu", dtype="float32") for path in (adapter, tmp_path / "prompts")]
    monkeypatch.setattr(LLM, "load", None)
    for case in ("full", "lora", "adapter", "dpo", "pretrain"):
        more: dict[str, Any] = dict(from_weights=True) if case == "pretrain" else {}
        for model, advice in (
            (adapter, "merge it first"), (adapter.parent, rf"merge it first \(litlm merge {adapter} "),
            (tmp_path / "prompts", "can't be merged, so train another adapter on"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=rf"model='{model}' is an adapter for .*{advice}"):
                run(settings_of(case, files, tmp_path / "out", run=more | dict(model=str(model))))
        for llm in llms:
            with pytest.raises(ValueError, match="has an adapter already; merge"):
                run(settings_of(case, files, tmp_path / "out", run=more), llm=llm)


def test_merge_of_a_run_says_once_what_it_takes(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["merge", str(adapter.parent), "--out_dir", str(tmp_path)])
    assert capsys.readouterr().err.count(f"Taking {adapter}\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(
    signum: signal.Signals, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = safetensors.torch.save_file

    def interrupted(*args: Any, **options: Any) -> None:
        save(*args, **options)
        signal.raise_signal(signum)

    monkeypatch.setattr("litlm.checkpoint.hf.save_file", interrupted)
    before = signal.signal(signum, signal.SIG_DFL)  # `nohup make test` ignores SIGHUP
    try:
        with pytest.raises(SystemExit) as e:
            main(["merge", str(adapter), "--out_dir", str(tmp_path / "merged")])
        assert signal.getsignal(signum) == signal.SIG_DFL
    finally:
        signal.signal(signum, before)
    assert e.value.code == 128 + signum
    assert not (tmp_path / "merged").exists()


# --- earlier runs --------------------------------------------------------------------------------------------------


def test_a_folder_with_metrics_is_a_run(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = dict(save_interval=None, samples=("ab",))
    undo = kill_at(3, monkeypatch)
    with pytest.raises(Killed):
        run(settings_of("lora", files, out, **options))
    before = content(out)
    assert {"settings.yaml", "metrics.csv", "samples.jsonl"} == before.keys()
    with pytest.raises(ValueError, match=r"already holds a run, of 3 steps and without a checkpoint; .*--resume auto"):
        run(settings_of("lora", files, out, **options))
    assert content(out) == before
    for number in (1, 2):  # killed again before it could save
        with pytest.raises(Killed):
            run(settings_of("lora", files, out, run=dict(resume="auto"), **options), quiet=False)
        said = re.sub(r"\s+", " ", capsys.readouterr().err)
        assert f"no checkpoint in {out} to go on from, so the run begins anew" in said
        assert f"what was written there before is in earlier-{number}/" in said
    for number in (1, 2):
        kept = content(out / f"earlier-{number}")
        assert kept.keys() == before.keys()
        assert kept["samples.jsonl"] == before["samples.jsonl"]
    assert content(out / "earlier-1") == before
    undo()
    run(settings_of("lora", files, out, run=dict(resume="auto"), **options))
    run(settings_of("lora", files, tmp_path / "whole", **options))
    assert what_counts(out) == what_counts(tmp_path / "whole")
    run(settings_of("lora", files, out, run=dict(overwrite=True), **options))
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_settings_file_of_the_user_is_kept(files: Files, tmp_path: Path) -> None:
    """And a run that failed before its first step is no run: it may begin again, and has nothing to keep."""
    out = tmp_path / "out"
    out.mkdir()
    own = "# what I want\nmodel: smollm2-135m\n"
    (out / "settings.yaml").write_text(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NextToken, "loss_sum", None)
        with pytest.raises(TypeError):
            run(settings_of("lora", files, out))
    assert (out / "earlier-1" / "settings.yaml").read_text() == own
    run(settings_of("lora", files, out))
    assert not (out / "earlier-2").exists()


def test_a_metrics_file_of_something_else_is_kept(files: Files, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="already holds a run"):
        run(settings_of("lora", files, tmp_path))
    run(settings_of("lora", files, tmp_path, run=dict(resume="auto"), max_steps=2))
    assert (tmp_path / "earlier-1" / "metrics.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("case", ["lora", "full", "dpo", "pretrain"])
def test_a_run_goes_on_exactly_from_a_checkpoint_by_the_clock(
    case: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes four minutes: checkpoints are written at steps 3 and 6 though nothing asks for them by number."""
    now = 0.0

    def step(*args: Any) -> list[int]:
        nonlocal now
        now += 240
        return batch(*args)

    batch = EpochSampler.batch
    monkeypatch.setattr(EpochSampler, "batch", step)
    monkeypatch.setattr(import_module("litlm.train.loop"), "time", SimpleNamespace(perf_counter=lambda: now))
    options: dict[str, Any] = dict(save_interval=None, keep=9)
    run(settings_of(case, files, tmp_path / "whole", save_time=None, **options))
    undo = kill_at(5, monkeypatch)
    with pytest.raises(Killed):
        run(settings_of(case, files, tmp_path / "out", **options))
    undo()
    assert [p.name for p in (tmp_path / "out").glob("step-*")] == ["step-000003"]
    result = run(settings_of(case, files, tmp_path / "out", run=dict(resume="auto"), **options))
    assert len(result.losses) == 5
    assert content(tmp_path / "out" / "final") == content(tmp_path / "whole" / "final")
    rows = [[row["loss"] for row in rows_of(tmp_path / name / "metrics.csv")] for name in ("out", "whole")]
    assert rows[0] == rows[1]
    assert sorted(p.name for p in (tmp_path / "out").glob("step-*")) == ["step-000003", "step-000006", "step-000008"]


# --- what is said before anything is loaded ------------------------------------------------------------------------


def test_all_that_would_fail_later_is_said_at_once(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = settings_of(
        "lora", files, tmp_path / "file" / "out", micro_batch_size="auto", early_stop=2, optimizer="adamx",
        run=dict(
            model="no/such/model", method=MethodSettings(name="adapter"), new_tokens=("<a>",),
            data=DataSettings(path=str(tmp_path / "none.jsonl"), style="chatlm", val_fraction=0),
        ),
    )  # fmt: skip
    with pytest.raises(ValueError) as e:
        run(settings)
    said = str(e.value)
    for text in (
        "optimizer='adamx'", "micro_batch_size=auto measures a GPU's memory", "Unknown prompt style 'chatlm'. Did you",
        "none.jsonl", "early_stop=2 needs data to validate on", "new_tokens need embeddings", "can't be written to (No",
    ):  # fmt: skip
        assert text in said, text
    assert said.count("\n- ") == 7
    with pytest.raises(ValueError, match="^Run settings not valid:\n- .*takes full[^\n]*\n- [^\n]*no check"):
        run(settings_of("pretrain", files, tmp_path / "p", run=dict(method=MethodSettings(), resume="step-000001")))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_one_problem_is_said_plainly_and_nothing_is_made(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="^Unknown prompt style 'x'"):
        run(settings_of("lora", files, out, run=dict(data=DataSettings(path=str(files.records), style="x"))))
    with pytest.raises(ValueError, match="^micro_batch_size=auto measures"):
        run(settings_of("lora", files, out, micro_batch_size="auto"), llm=tiny.shared())
    text = TextData(path=(str(files.text),), val_fraction=0.0)
    with pytest.raises(ValueError, match="^early_stop=1 needs data"):
        run(settings_of("pretrain", files, out, early_stop=1, run=dict(data=text)))
    assert list(tmp_path.iterdir()) == []


# --- disks that are full -------------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def litter(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.name.startswith(".") or p.name.endswith((".part", ".tmp"))]


@pytest.mark.parametrize("where", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_model_is_saved_whole_or_not_at_all(
    where: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    llm = tiny.shared()
    if exists:
        tiny.load(seed=1).save(out)
        (out / "notes.txt").write_text("mine")
    before = content(out)

    def fails(original: Any, place: int, error: Exception) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            if Path(args[place]).name == where:
                raise error
            return original(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        patch.setattr("litlm.checkpoint.hf.save_file", fails(safetensors.torch.save_file, 1, error))
        patch.setattr(Path, "write_text", fails(Path.write_text, 0, FULL))
        patch.setattr(Path, "write_bytes", fails(Path.write_bytes, 0, FULL))
        with pytest.raises(ValueError, match=rf"^{out} could not be written \(.*No space left on device.*before is un"):
            llm.save(out)
    assert content(out) == before
    assert out.exists() == exists
    llm.save(out)
    assert litter(out) == []
    if exists:
        assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "limit", "named"),
    [
        ("merge", 4096, "merged"), ("prepare", 40_000, "tokens/shard-00000.bin"), ("train-tokenizer", 300, "tokenizer"),
        ("plot", 512, "curves.png"), ("download", 4096, "copied"), ("new-family", 100, "new"),
    ],
)  # fmt: skip
def test_commands_say_in_one_line_what_could_not_be_written(
    command: str, limit: int, named: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the system's own limit on the size of files, which fails each write beyond it as a full disk does."""
    text, source = tmp_path / "text.txt", tmp_path / "source"
    text.write_text("".join(f"{i} {i * i}\n" for i in range(9000)))
    if command in ("merge", "plot"):
        run(settings_of("lora", files, tmp_path / "ready", max_steps=2))
    shutil.copytree(tiny.folder(), source)
    config = json.loads((source / "config.json").read_text()) | {"model_type": "strange"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / named.partition("/")[0]
    arguments = {
        "merge": [str(tmp_path / "ready" / "final"), "--out_dir", str(out)],
        "prepare": [str(text), "--tokenizer", str(source), "--out_dir", str(out)],
        "train-tokenizer": [str(text), "--vocab_size", "300", "--out_dir", str(out)],
        "plot": [str(tmp_path / "ready"), "--out", str(out)],
        "download": [str(source), "--out_dir", str(out)],
        "new-family": [str(tmp_path / "config.json"), "--out_dir", str(out)],
    }
    before = set(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SystemExit) as e:
            main([command, *arguments[command]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("litlm: ")]
    assert e.value.code == 1
    assert str(tmp_path / named) in said[-1]
    assert "File too large" in said[-1]
    assert litter(tmp_path) == []
    assert set(tmp_path.iterdir()) - before == ({out} if command in ("prepare", "download") else set())


@pytest.mark.parametrize("where", ["settings.yaml", "metrics.csv", "report.html"])
def test_a_run_whose_log_no_longer_fits_says_so(
    where: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of("lora", files, tmp_path / "out")
    write_settings(settings, tmp_path)
    arguments = ["finetune", "--config", str(tmp_path / "settings.yaml")]
    original, text, data = Path.open, Path.write_text, Path.write_bytes

    def full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.name == where and mode == "a" and path.is_file() and path.read_text().count("\n") > 1:
            raise FULL
        return original(path, mode, *args, **options)

    def whole(write: Any, path: Path, *args: Any, **options: Any) -> Any:
        if path.name == where and where in ("settings.yaml", "report.html"):
            raise FULL
        return write(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        patch.setattr(Path, "write_text", lambda path, *a, **k: whole(text, path, *a, **k))
        patch.setattr(Path, "write_bytes", lambda path, *a, **k: whole(data, path, *a, **k))
        with pytest.raises(SystemExit) as e:
            main(arguments)
    assert e.value.code == 1
    assert re.search(rf"out/{where} could not be written \(No space left", capsys.readouterr().err.splitlines()[-1])
    assert litter(tmp_path) == []
    main([*arguments, "--resume", "auto"])
    run(dataclasses.replace(settings, out_dir=str(tmp_path / "whole")))
    assert what_counts(tmp_path / "out") == what_counts(tmp_path / "whole")


@pytest.mark.parametrize("best", [False, True])
def test_a_final_that_does_not_fit_is_written_later(
    best: bool, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(max_steps=4)
    if best:
        options = dict(max_steps=30, lr=0.5, warmup_steps=0, val_interval=1, early_stop=2, save_interval=None)
    settings = settings_of("lora", files, tmp_path, **options)
    save, copy = safetensors.torch.save_file, shutil.copy2

    def full(original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if ".final.part" in str(path):
            raise FULL
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("litlm.checkpoint.adapter.save_file", lambda t, p, **k: full(save, p, t, p, **k))
        patch.setattr(shutil, "copy2", lambda a, b, **k: full(copy, b, a, b, **k))
        patch.setattr(shutil.copytree, "__defaults__", (False, None, shutil.copy2, False, False))
        with pytest.raises(
            ValueError, match=rf"^{tmp_path / 'final'} could not be written \(.*No space left on device"
        ):
            run(settings)
    assert litter(tmp_path) == []
    assert not (tmp_path / "final").exists()
    run(dataclasses.replace(settings, resume="auto"))
    assert (tmp_path / "final" / "adapter_model.safetensors").is_file()


def test_a_folder_in_use_by_this_process_is_in_use(files: Files, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(ValueError, match=f"pid {os.getpid()}"):
        run(settings_of("lora", files, tmp_path / "out"))
    assert torch.initial_seed() != 0
    with stop_at(2):
        assert run(settings_of("lora", files, tmp_path / "out")).steps == 2
