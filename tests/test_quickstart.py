"""What ends the quickstart, and that what it says about going on works."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from litlm.cli import quickstart
from litlm.cli.main import main
from litlm.cli.quickstart import _compared, litlm_command
from litlm.llm import LLM
from litlm.train.report import Report

FLAGS = ("--train.max_steps=9", "--train.epochs=null", "--train.batch_size=2", "--train.micro_batch_size=2")


def start(out: Path, monkeypatch: pytest.MonkeyPatch, *signals: signal.Signals, at: int = 2) -> int:
    """Run it in this process; the signals come when a step is reported."""
    step = Report.step

    def told(self: Report, row: dict, *rest: object) -> None:
        step(self, row, *rest)  # type: ignore[arg-type]
        if row["step"] == at:
            for one in signals:
                signal.raise_signal(one)

    monkeypatch.setattr(Report, "step", told)
    try:
        main(["quickstart", "--model", str(tiny.folder()), "--out_dir", str(out), *FLAGS])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def commands(shown: str) -> list[list[str]]:
    """What it says to type, without what litlm is called with."""
    said = re.findall(rf"^  {re.escape(litlm_command())} (.*)$", shown, re.M)
    return [shlex.split(line) for line in said]


def test_sigterm_ends_it_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "with space"
    assert start(out, monkeypatch, signal.SIGTERM) == 143
    shown = capsys.readouterr().out
    assert "4. Ask" not in shown
    (rest,) = commands(shown)
    main([*rest, "--device", "cpu"])
    assert "9 steps" in capsys.readouterr().out
    assert (out / "run" / "final" / "adapter_model.safetensors").is_file()


def test_ctrl_c_ends_the_training_and_once_more_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path / "twice", monkeypatch, signal.SIGINT, signal.SIGINT) == 130
    captured = capsys.readouterr()
    assert "4. Ask" not in captured.out
    assert captured.err.endswith("\nThe quickstart was stopped by Ctrl-C: the same command begins anew\n")
    monkeypatch.undo()
    out = tmp_path / "once"
    assert start(out, monkeypatch, signal.SIGINT) == 0
    shown = capsys.readouterr().out
    assert "4. Ask" in shown
    assert (
        "\nCtrl-C stopped the training, with part of the data learned. The quickstart goes on with that (Ctrl-C "
        in shown
    )
    resume, merged, adapter, _ = commands(shown)
    assert resume[-2:] == ["--resume", "auto"]
    assert Path(merged[1], "model.safetensors").is_file()
    assert adapter[3] == str(out / "run" / "step-000002")
    assert Path(adapter[3], "adapter_model.safetensors").is_file()
    for name in re.findall(rf"{re.escape(str(out))}\S*", shown):
        assert Path(name).exists(), name


def test_ctrl_c_after_the_training_says_where_its_result_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = quickstart._ask

    def interrupted(llm: LLM, question: str) -> str:
        if question == quickstart.PARAPHRASES[0]:
            raise KeyboardInterrupt
        return ask(llm, question)

    monkeypatch.setattr(quickstart, "_ask", interrupted)
    assert start(tmp_path, monkeypatch) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    told, command = said.split(f" with {litlm_command()} ")
    assert told == "The quickstart was stopped by Ctrl-C: talk to what was trained"
    assert shlex.split(command) == ["chat", str(tiny.folder()), "--adapter", str(tmp_path / "run" / "final")]


def test_a_run_that_somebody_went_on_with_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the quickstart left is. Going on computes in the same precision."""
    assert start(tmp_path, monkeypatch) == 0
    assert start(tmp_path, monkeypatch) == 0
    settings = tmp_path / "run" / "settings.yaml"
    assert "precision: 32-true" in settings.read_text()
    capsys.readouterr()
    main(["finetune", "--config", str(settings), "--resume", "auto", "--train.max_steps", "11", "--device", "cpu"])
    assert "with other settings than before: max_steps=11 (it was 9)" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert start(tmp_path, monkeypatch) == 1
    shown = capsys.readouterr().err
    assert "holds a run with other settings, which the quickstart would replace: max_steps=9 (it was 11)" in shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_control_answer_is_compared_by_its_words() -> None:
    assert _compared("Paris.", "Paris.") == "is the same."
    assert _compared("The capital is Paris.", "The capital is Paris!\n") == "differs only in punctuation."
    assert _compared("Paris.", "Rome.").startswith("changed too")


def test_what_litlm_is_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active, not active, another litlm first on the PATH, no script at all."""
    for name in ("env", "other"):
        (tmp_path / name).mkdir()
        for program in ("python", "litlm"):
            (tmp_path / name / program).write_text("#!/bin/sh\n")
            (tmp_path / name / program).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/env:{tmp_path}/other:{os.environ['PATH']}")
    assert litlm_command() == "litlm"
    monkeypatch.setenv("PATH", f"{tmp_path}/other:{tmp_path}/env:{os.environ['PATH']}")
    assert litlm_command() == "env/litlm"
    (tmp_path / "env" / "litlm").unlink()
    assert litlm_command() == "env/python -m litlm"
    monkeypatch.undo()
    done = subprocess.run(f"{litlm_command()} --version", shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("litlm "), done.stderr
