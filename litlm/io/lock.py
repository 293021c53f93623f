"""A lock on a folder, so that only one process at a time writes to it."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from litlm.io.errors import error_reason

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

LOCK = ".litlm.lock"
NO_LOCKS = -1
_held: set[int] = set()  # file descriptors of the locks that this process holds


@contextmanager
def locked(folder: Path, *, option: str = "out_dir") -> Iterator[None]:
    """Create the folder if needed and hold its lock, so that no other litlm process writes there.

    The lock is the system's (flock): it ends with its process, and child processes don't inherit it. If the block
    fails, folders that were created for it and are still empty are removed. option: the flag that names the folder.
    Raises ValueError if another process holds the lock (and says which) or the folder can't be written to.
    """
    created = [p for p in (folder, *folder.parents) if not p.exists()]
    fd = None
    try:
        try:
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "it is a file; name a folder")
            folder.mkdir(parents=True, exist_ok=True)
            fd = _lock(folder)
        except OSError as e:
            raise ValueError(f"{option}={str(folder)!r} can't be written to ({error_reason(e)})") from e
        if fd is None:
            raise ValueError(
                f"{option}={str(folder)!r} is being written by {_holder(folder / LOCK)}. Wait for it to end, or name "
                f"another --{option}"
            )
        yield
    except BaseException:
        _unlock(fd, folder)
        fd = None
        for path in created:
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        _unlock(fd, folder)


def _lock(folder: Path) -> int | None:
    """The file descriptor that holds the lock, None if another process does, NO_LOCKS if the file system has none."""
    path = folder / LOCK
    for attempt in range(20):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # Python's descriptors are not inherited by exec
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no flock")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(fd)
            if e.errno in (errno.EAGAIN, errno.EACCES):
                if attempt:
                    return None
                time.sleep(0.1)  # the holder may not have written who it is yet
                continue
            if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                print(
                    f"litlm: {folder} can't be locked ({error_reason(e)}); make sure no other process writes there",
                    file=sys.stderr,
                )
                return NO_LOCKS
            raise
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):  # else the last holder has just removed this file
                _held.add(fd)
                _write_holder(fd)
                return fd
        os.close(fd)
    return None


def _write_holder(fd: int) -> None:
    """Note which process holds the lock, for messages; a full disk must not make this fail."""
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
    if fd is not None and (fd == NO_LOCKS or fd in _held):  # a forked child has closed it already
        with suppress(OSError):  # before the lock is released, so that a waiting process sees that the file is gone
            (folder / LOCK).unlink()
        if fd != NO_LOCKS:
            _held.discard(fd)
            os.close(fd)


def _close_in_child() -> None:
    """A forked child's copy of the descriptor would hold the lock after its parent has ended."""
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
