"""`litlm chat`: what its commands do to a conversation, and what a real terminal does to its input."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from litlm.cli import chat as chat_module
from litlm.cli.chat import Conversation
from litlm.data.sft import parse
from litlm.llm import LLM
from litlm.settings import SamplingSettings


def conversation(system: str | None = None, **sampling: Any) -> Conversation:
    return Conversation(tiny.shared(), SamplingSettings(**sampling), system)


def said(talk: Conversation) -> list[str]:
    return [m["content"] for m in talk.messages]


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_says_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny.shared()
    ids = llm.generate("The quick", max_new_tokens=30, return_ids=True, ignore_eos=True)

    def ended(**options: Any) -> tuple[str | None, list[int]]:
        stream = llm.generate("The quick", stream=True, **options)
        assert stream.finish_reason is None
        list(stream)
        return stream.finish_reason, stream.token_ids

    assert ended(max_new_tokens=7, ignore_eos=True) == ("length", ids[:7])
    monkeypatch.setattr(LLM, "_stop_ids", lambda self: frozenset({ids[4]}))
    assert ended(max_new_tokens=30) == ("stop", ids[: ids.index(ids[4]) + 1])
    assert ended(max_new_tokens=ids.index(ids[4]) + 1)[0] == "stop", "the end token is the last that was allowed"
    assert ended(max_new_tokens=300, ignore_eos=True)[0] == "length", "the context is full"
    text = llm.tokenizer.decode(ids[:9])
    assert ended(max_new_tokens=30, ignore_eos=True, stop=text[3:5])[0] == "stop"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_piped_bytes_that_are_not_utf8_end_it_in_one_line(errors: str) -> None:
    """Strict is Python in most locales, surrogateescape in C's."""
    command = [sys.executable, "-m", "litlm", "chat", str(tiny.folder()), "--max_new_tokens", "2"]
    env = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    for text, code in ((b"ab\xff\nab\n", 1), ("café\n".encode(), 0)):
        done = subprocess.run(command, input=text, env=env, capture_output=True, timeout=300)
        assert done.returncode == code
        shown = done.stderr.decode().splitlines()[2:]
        if code:
            assert shown == ["litlm: standard input is not UTF-8 text; convert it, for example with iconv"]
            assert done.stdout == b""


# --- commands ------------------------------------------------------------------------------------------------------


def test_a_cut_answer_says_so_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = conversation(max_new_tokens=12, ignore_eos=True), conversation(max_new_tokens=5, ignore_eos=True)
    whole.process("hello")
    capsys.readouterr()
    cut.process("hello")
    assert "[cut at max_new_tokens=5; /continue, or raise --max_new_tokens]" in capsys.readouterr().err
    cut.process("/continue")
    cut.sampling = SamplingSettings(max_new_tokens=2, ignore_eos=True)
    cut.process("/continue")
    # A character may be cut in two, which is a replacement character on either side.
    plain = [text.replace("\ufffd", "") for text in (said(whole)[1], said(cut)[1])]
    assert plain[0] == plain[1]
    assert cut._unfinished == whole._unfinished
    long = conversation(max_new_tokens=300, ignore_eos=True)
    long.process("hello")
    assert "context of 256 tokens is full" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model's context is 256"):
        long.process("/continue")


def test_an_answer_that_ended_does_not_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    talk = conversation(max_new_tokens=9)
    for stopped, error in ((frozenset(range(343)), "there is none"), (frozenset(), "")):
        monkeypatch.setattr(LLM, "_stop_ids", lambda self, stopped=stopped: stopped)
        talk.process("hello")
        assert ("[cut" in capsys.readouterr().err) == (not error)
        if error:
            with pytest.raises(ValueError, match=error):
                talk.process("/continue")


def test_retry_samples_what_greedy_answers_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(max_new_tokens=12, ignore_eos=True)
    with pytest.raises(ValueError, match="there is none yet"):
        talk.process("/retry")
    talk.process("one")
    talk.process("two")
    first = said(talk)
    capsys.readouterr()
    answers = set()
    for _ in range(8):  # drawn without a seed: one of them may be what the best tokens say
        talk.process("/retry")
        assert "temperature 0.7" in capsys.readouterr().err
        assert said(talk)[:3] == first[:3]
        answers.add(said(talk)[3])
    assert answers - {first[3]}
    talk.process("/retry 0")
    assert said(talk) == first
    with pytest.raises(ValueError, match="hot.*a number"):
        talk.process("/retry hot")
    seeded = [conversation(max_new_tokens=12, temperature=1.0, seed=3, ignore_eos=True) for _ in range(2)]
    for talk in seeded:
        talk.process("one")
        first = said(talk)
        talk.process("/retry")
        assert said(talk) != first
    assert said(seeded[0]) == said(seeded[1])


def test_saved_conversations_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text('{"messages": []}')  # without a line end
    talk = conversation("You are brief.", max_new_tokens=3)
    with pytest.raises(ValueError, match="nothing to save"):
        talk.process(f"/save {file}")
    talk.process("one\ntwö")
    talk.process(f"/save {file}")
    talk.process("three")
    talk.process(f"/save {file}")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [[m["role"][0] for m in r["messages"]] for r in records] == [[], ["s", "u", "a"], ["s", *"uaua"]]
    assert [m["content"] for m in parse(records[2]).messages] == ["You are brief.", *said(talk)]
    assert "twö" in file.read_text(encoding="utf-8")
    for name in ("", "talks.txt", str(tmp_path)):
        with pytest.raises(ValueError, match="ends with .jsonl"):
            talk.process(f"/save {name}")
    with pytest.raises(ValueError, match="could not be written"):
        talk.process(f"/save {tmp_path}/nowhere/talks.jsonl")
    assert len(talk.messages) == 4


def test_a_cut_answer_is_saved_with_weight_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talks.jsonl"
    talk = conversation(max_new_tokens=3)
    talk.process("one")
    talk.process("two")
    talk._cut.discard(1)  # as if it had ended
    talk.process(f"/save {file}")
    messages = json.loads(file.read_text())["messages"]
    assert [m.get("weight") for m in messages] == [None, None, None, 0]
    assert [m.get("train") for m in parse({"messages": messages}).messages][1::2] == [None, False]
    assert "1 cut answer saved with weight 0" in capsys.readouterr().err
    talk.process("/reset")
    assert not talk._cut


def test_saving_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text('{"messages": []}\n')
    talk = conversation(max_new_tokens=3)
    talk.process("one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        for file in (old, new):
            with pytest.raises(ValueError, match="could not be written .File too large"):
                talk.process(f"/save {file}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert old.read_text() == '{"messages": []}\n'
    assert not new.exists()


def test_paths_are_messages_and_words_are_commands() -> None:
    talk = conversation(max_new_tokens=2)
    talk.process("/usr/bin holds programs")
    assert said(talk)[0] == "/usr/bin holds programs"
    with pytest.raises(ValueError, match="no command /cler"):
        talk.process("/cler")


def test_what_is_left_out_of_a_full_context_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(max_new_tokens=8)
    for i in range(7):
        capsys.readouterr()
        talk.process(f"{i} " + "quick brown fox " * 5)
    left = int(capsys.readouterr().err.partition("the first ")[2].split()[0])
    assert 0 < left < 6
    assert len(talk.messages) == 14, "it is still there to be saved"


def test_ctrl_c_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        finish_reason = None

        def __init__(self, n: int) -> None:
            self.token_ids = [65] * n

        def __iter__(self) -> Iterator[str]:
            yield from "ab"[: len(self.token_ids)]
            raise KeyboardInterrupt

    talk = conversation()
    monkeypatch.setattr(LLM, "chat", lambda *args, **options: Interrupted(2))
    talk.process("one")
    assert said(talk) == ["one", "ab"]
    assert talk._unfinished[-2:] == [65, 65]
    assert "/continue" in capsys.readouterr().err
    monkeypatch.setattr(LLM, "chat", lambda *args, **options: Interrupted(0))
    talk.process("two")
    assert said(talk) == ["one", "ab"], "nothing was answered"


# --- the terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """`litlm chat` with a terminal of its own."""

    def __init__(self, *argv: str | Path, cwd: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        env = os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(cwd / "state"), "PROMPT_TOOLKIT_NO_CPR": "1"}

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        command = [sys.executable, "-m", "litlm", "chat", *map(str, argv)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=cwd, preexec_fn=own_terminal
        )
        os.close(slave)
        self.shown, self.seen = "", 0

    def read(self, until: str) -> str:
        """What is shown until this text is, which comes after all that was waited for before."""
        start, end = self.seen, time.monotonic() + 60
        while (found := self.shown.find(until, start)) < 0:
            assert time.monotonic() < end, self.shown
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert until in self.shown[start:], self.shown
        self.seen = found + len(until)
        return self.shown[start : self.seen]

    def type(self, text: str, until: str = ">>>") -> str:
        os.write(self.master, text.encode())
        return self.read(until)


def test_in_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tiny.folder(), "--device", "cpu", "--max_new_tokens", "4", "--ignore_eos", cwd=tmp_path)
    try:
        terminal.read(">>>")
        assert "[cut at max_new_tokens=4" in terminal.type("\x1b[200~one\ntwo\n\nthree\x1b[201~\r", "tokens/s")
        terminal.read(">>>")
        terminal.type("half a line", "half a line")
        terminal.type("\x03", "")  # clears it
        terminal.type("whole \\\r", "...")
        terminal.type("line\r", "tokens/s")
        terminal.read(">>>")
        terminal.type("lost \\\r", "...")
        terminal.type("\x03")  # so does it what was begun
        terminal.type("/nonsense\r", "no command")
        terminal.read(">>>")
        terminal.type("/save talk.jsonl\r", "(2 exchanges)")
        terminal.read(">>>")
        terminal.type("\x1b[A\x1b[A", "nonsense")  # recalled
        terminal.type("\x03", "")
        time.sleep(0.2)
        os.write(terminal.master, b"\x03")  # on an empty line: leaves
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    messages = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [m["content"] for m in messages[::2]] == ["one\ntwo\n\nthree", "whole \nline"]
    history = tmp_path / "state" / "litlm" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "half" not in history.read_text(encoding="utf-8")


def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "litlm" / "chat_history", chat_module._history()


def test_lines_are_kept_across_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, history = kept(tmp_path, monkeypatch)
    history.store_string("one\ntwo")
    history.store_string("three")
    file.chmod(0o644)
    assert list(chat_module._history().load_history_strings()) == ["three", "one\ntwo"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for i in range(300):
        history.store_string(f"{i} " + "x" * 5000)
    again = list(chat_module._history().load_history_strings())
    assert file.stat().st_size < 600_000
    assert again[0].startswith("299 ")
    assert all(line.split()[0].isdigit() for line in again), "no half a line"


def test_a_history_that_can_not_be_kept_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, history = kept(tmp_path, monkeypatch)
    file.unlink()
    file.mkdir()
    history.store_string("one")  # it was a file when the conversation began
    _, history = kept(tmp_path, monkeypatch)
    history.append_string("two")
    assert history.get_strings() == ["two"], "in this session it can be recalled"
