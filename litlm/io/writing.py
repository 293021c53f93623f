"""Files that are written completely or not at all. No torch.

Errors of the disk (full, read-only, …) become a ValueError that names the path and the reason; no temporary files stay.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from litlm.io.errors import error_reason


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OSErrors of the block as a ValueError that names `path`."""
    try:
        yield
    except OSError as e:
        raise ValueError(f"{path} could not be written ({error_reason(e)})") from e


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` if the block succeeds. Raises ValueError if writing fails."""
    # In a folder of its own, since libraries (safetensors) put their temporary files beside the one they write.
    with _temporary_folder(path.parent, f".{path.name}.", path) as folder:
        part = folder / path.name
        yield part
        fsync(part)
        part.chmod(0o644)
        os.replace(part, path)


@contextmanager
def atomic_folder(out: Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder to write to; if the block succeeds, its files move into `out`, all of them or none.

    replaces: glob patterns; other files in `out` that match are removed. Raises ValueError if writing fails.
    """
    with _temporary_folder(out, ".save.", out) as part:
        yield part
        new = [p.relative_to(part) for p in part.rglob("*") if p.is_file()]
        for name in new:
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a directory there")
        _replace_all(part, out, sorted(new, key=lambda name: (name == Path("config.json"), name)))
        for old in {p for pattern in replaces for p in out.glob(pattern) if p.relative_to(out) not in new}:
            old.unlink(missing_ok=True)


@contextmanager
def _temporary_folder(parent: Path, prefix: str, target: Path) -> Iterator[Path]:
    """A folder in `parent` that is removed at the end; failures to write are ValueErrors that name `target`."""
    folder = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=".part"))
        yield folder
    except (OSError, SafetensorError, ValueError) as e:
        if isinstance(e, ValueError) and not isinstance(e.__cause__, (OSError, SafetensorError)):
            raise
        reason = error_reason(e)
        raise ValueError(f"{target} could not be written ({reason}); what was there before is untouched") from e
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _replace_all(part: Path, out: Path, names: Sequence[Path]) -> None:
    """Rename files from `part` to `out`; if one fails, undo those before it."""
    with ExitStack() as undo:
        for name in names:
            new, target, backup = part / name, out / name, part / ".before" / name
            target.parent.mkdir(exist_ok=True)
            backup.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                try:
                    os.link(target, backup)  # a move would leave neither file if the process is killed here
                except OSError:  # a file system without links
                    shutil.copy2(target, backup)
                undo.callback(os.replace, backup, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            os.replace(new, target)
        undo.pop_all()


def clear_parts(folder: Path) -> None:
    """Remove the temporary files of killed processes. The caller must hold the folder's lock."""
    for left in folder.glob(".*.part"):
        shutil.rmtree(left, ignore_errors=True)


def fsync(path: Path) -> None:
    """Have the system write the file to disk."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all. Raises ValueError if that fails."""
    with atomic_file(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())
