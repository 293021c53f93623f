"""Files that are either old or new, never half written, and folders that one process at a time writes to. No torch.

Whatever keeps something from being written (a full disk, a folder that may not be written to) is a ValueError that
names the path and the reason, and nothing temporary stays behind.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

LOCK = ".litlm.lock"
_held: set[int] = set()  # descriptors of the locks that this process has


# --- writing -------------------------------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """Why something could not be written. A ValueError of ours is about one of the files: what it was caused by."""
    if isinstance(error, ValueError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # of several files
        return str(error.args[0][0][-1])
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full or gone is said with the file's name."""
    try:
        yield
    except OSError as e:
        raise ValueError(f"{path} could not be written ({reason(e)})") from e


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name near `path` to write to; it takes the place of `path` when the block ends well."""
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, because libraries (safetensors) put temporary files of theirs beside what they write.
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        part = folder / path.name
        yield part
        flush(part)
        part.chmod(0o644)
        os.replace(part, path)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path} could not be written ({reason(e)}); what was there before is untouched") from e
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(out: Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder to write to. When the block ends well, its files take their places in `out` together.

    replaces: patterns of names; older files in `out` that they mean, and that were not written anew, are removed.
    """
    part = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=out, prefix=".save.", suffix=".part"))
        yield part
        new = [p.relative_to(part) for p in part.rglob("*") if p.is_file()]
        for name in new:
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a directory there")
        _replace_all(part, out, sorted(new, key=lambda name: (name == Path("config.json"), name)))
        for old in {p for pattern in replaces for p in out.glob(pattern) if p.relative_to(out) not in new}:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError, ValueError) as e:
        if isinstance(e, ValueError) and not isinstance(e.__cause__, (OSError, SafetensorError)):
            raise  # not about the disk
        raise ValueError(f"{out} could not be written ({reason(e)}); what was there before is untouched") from e
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _replace_all(part: Path, out: Path, names: Sequence[Path]) -> None:
    """Rename files from `part` to `out`. Where one fails, those before it are undone."""
    with ExitStack() as undo:
        for name in names:
            new, target, kept = part / name, out / name, part / ".before" / name
            target.parent.mkdir(exist_ok=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                try:
                    os.link(target, kept)  # not moved: a process that is killed here leaves the old file or the new one
                except OSError:  # a file system without links
                    shutil.copy2(target, kept)
                undo.callback(os.replace, kept, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            os.replace(new, target)
        undo.pop_all()


def clear_parts(folder: Path) -> None:
    """Remove what killed processes left half written in the folder. Only for who has it `locked`."""
    for left in folder.glob(".*.part"):
        shutil.rmtree(left, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the system write the file to disk."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


def write_file(path: Path, data: str | bytes) -> None:
    with atomic_file(path) as part:
        if isinstance(data, str):
            part.write_text(data, encoding="utf-8")
        else:
            part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_file(path, text)


# --- one process at a time -----------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, *, option: str = "out_dir") -> Iterator[None]:
    """Make the folder if need be and have it for this process alone, as far as others ask for it in the same way.

    A ValueError says which process has it, since when, or why nothing can be written there. The lock is the system's
    (flock), so it ends with its process, however that ends, and children do not keep it. Where the block fails, folders
    that were made for it and are still empty are removed. option: how a person names another folder.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    fd = None
    try:
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file; name a folder")
            folder.mkdir(parents=True, exist_ok=True)
            fd = _lock(folder)
        except OSError as e:
            raise ValueError(f"{option}={str(folder)!r} can't be written to ({reason(e)})") from e
        if fd is None:
            raise ValueError(
                f"{option}={str(folder)!r} is being written by {_holder(folder / LOCK)}. Wait until that is over, or "
                f"name another --{option}"
            )
        yield
    except BaseException:
        _unlock(fd, folder)
        fd = None
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        _unlock(fd, folder)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock; None if another process has it. -1 where the file system knows no locks."""
    path = folder / LOCK
    for attempt in range(20):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by programs that are started
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no flock")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            if e.errno in (errno.EAGAIN, errno.EACCES):
                if attempt:
                    return None
                time.sleep(0.1)  # so that the other one has said who it is
                continue
            if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                print(
                    f"litlm: {folder} can't be locked ({reason(e)}); see to it that no other process writes there",
                    file=sys.stderr,
                )
                return -1
            raise
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):  # not one that its last holder has just removed
                _held.add(fd)
                _sign(fd)
                return fd
        os.close(fd)
    return None


def _sign(fd: int) -> None:
    """Who has the lock; only for people, so a full disk is no reason to fail."""
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(facts).encode(), 0)


def _holder(path: Path) -> str:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"another process: pid {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _unlock(fd: int | None, folder: Path) -> None:
    if fd is not None and (fd == -1 or fd in _held):  # a forked child has closed it already
        with suppress(OSError):  # while it is held: who has opened the file meanwhile sees that it is gone
            (folder / LOCK).unlink()
        if fd != -1:
            _held.discard(fd)
            os.close(fd)


def _forget() -> None:
    """In a forked child: a copy of the descriptor would keep the lock after its process is gone."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
