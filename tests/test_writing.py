"""Files that are old or new, and folders that one process at a time writes to: with processes, kills and full disks."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from litlm.io import lock
from litlm.io.lock import LOCK, locked
from litlm.io.writing import atomic_file, atomic_folder, write_text, writing

HOLD = """
import os, sys, time
from pathlib import Path
from litlm.io.lock import locked
with locked(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:  # a worker that outlives its parent
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)
    os.write(1, b"locked\\n")
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the folder until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = sorted(process.stdout.readline().strip() for _ in range(1 + len(more)))
        assert lines[-1] == "locked"
        process.children = [int(line) for line in lines[:-1]]  # type: ignore[attr-defined]
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with holder(out) as first:
        for same in (out, out / ".." / "out"):
            with pytest.raises(ValueError) as e, locked(same):
                pass
            said = str(e.value)
            assert f"is being written by another process: pid {first.pid} on {os.uname().nodename}, since 20" in said
            assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\. Wait", said)
        first.communicate("")
    assert not (out / LOCK).exists(), "a lock that is given back leaves nothing"
    with locked(out):
        assert (out / LOCK).is_file()
    assert list(out.iterdir()) == []


def test_a_lock_ends_with_its_process_and_no_child_keeps_it(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as first:
        (child,) = first.children  # type: ignore[attr-defined]
        try:
            with pytest.raises(ValueError, match=f"pid {first.pid} "), locked(tmp_path):
                pass
            first.send_signal(signal.SIGKILL)
            first.wait()
            os.kill(child, 0)  # is still there
            assert (tmp_path / LOCK).is_file()
            with locked(tmp_path):
                assert str(os.getpid()) in (tmp_path / LOCK).read_text()
        finally:
            os.kill(child, signal.SIGKILL)
    assert not (tmp_path / LOCK).exists()


def test_one_at_a_time_among_many_threads(tmp_path: Path) -> None:
    """Each holder removes the file that the next one locks: nobody may get a lock on a file that is gone."""
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, entered
        end = time.monotonic() + 20
        for _ in range(3):
            while True:
                try:
                    with locked(tmp_path / "out"):
                        with guard:
                            inside, entered = inside + 1, entered + 1
                            most = max(most, inside)
                        time.sleep(0.001)
                        with guard:
                            inside -= 1
                    break
                except ValueError:
                    assert time.monotonic() < end

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 18)


def test_where_there_are_no_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_flock)
    with locked(tmp_path):
        pass
    assert "can't be locked (No locks available)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        said = r"out_dir='.*' can't be written to \((it is a file|Not a directory)"
        with pytest.raises(ValueError, match=said), locked(place):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b" / "c"):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "folders made for nothing are removed"

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with (
        pytest.raises(ValueError, match=r"out_dir='.*new' can't be written to \(No space left"),
        locked(tmp_path / "new"),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- files and folders ---------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    old = {"model-1.safetensors": "a", "model-2.safetensors": "b", "config.json": "c", "mine.txt": "d"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)

    def content() -> dict[str, str]:
        return {p.name: p.read_text() for p in tmp_path.iterdir()}

    def fail(error: Exception, inner: bool) -> None:
        with atomic_folder(tmp_path, ("model*.safetensors",)) as part:
            write_text(part / "config.json", "new")
            with writing(part / "x") if inner else nullcontext():
                raise error

    for inner in (False, True):
        with pytest.raises(ValueError, match=rf"^{tmp_path} could not be written \(No space left on device\)"):
            fail(OSError(errno.ENOSPC, "No space left on device"), inner)
    with pytest.raises(ValueError, match="^other$"), atomic_folder(tmp_path):
        raise ValueError("other")
    assert content() == old
    with atomic_folder(tmp_path, ("model*.safetensors",)) as part:
        write_text(part / "model-1.safetensors", "A")
        write_text(part / "config.json", "C")
    assert content() == {"model-1.safetensors": "A", "config.json": "C", "mine.txt": "d"}


def test_a_rename_that_fails_midway_undoes_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"a.json": "a", "z.json": "z", "config.json": "c"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    rename = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "z.json" and Path(source).parent.name != ".before":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)

    def save() -> None:
        with atomic_folder(tmp_path) as part:
            for name in (*old, "b.json"):
                (part / name).write_text("new")

    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(Input/output error\); what was there before is untouched"):
            save()
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == old
    monkeypatch.undo()
    (tmp_path / "z.json").unlink()
    (tmp_path / "z.json").mkdir()
    with pytest.raises(ValueError, match=r"z\.json is a directory there"):
        save()
    assert (tmp_path / "a.json").read_text() == "a"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_that_can_not_be_written_leaves_the_old_one(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail() -> None:
        with atomic_file(path) as part:
            part.write_text("ne")
            raise OSError(number, os.strerror(number))

    with pytest.raises(ValueError, match=rf"a\.json could not be written \({os.strerror(number)}\); what was there"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
