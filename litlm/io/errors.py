"""Wording that the ValueErrors users see share: why a file can't be read or written, what a name may be meant for."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path

_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EISDIR: "it is a directory",
    errno.ENOENT: "it does not exist",
}


def error_reason(error: BaseException) -> str:
    """Why reading or writing failed. For a ValueError about a file, the error that caused it decides."""
    if isinstance(error, ValueError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # of several files
        return str(error.args[0][0][-1])
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error)
    generic = error.strerror == os.strerror(error.errno)
    return _REASONS.get(error.errno, error.strerror) if generic else error.strerror


def unreadable(path: str | Path, error: OSError) -> ValueError:
    """The error to raise for a file that can't be opened. It does not suggest that the content is damaged."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return ValueError(f"{path} can't be read: it is a link to {os.readlink(path)}, which does not exist")
    return ValueError(f"{path} can't be read: {error_reason(error)}")


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """A suggestion to append to "`name` is unknown", or nothing if no known name is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
