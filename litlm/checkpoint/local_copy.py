"""Copies of models on this machine, litlm's cache, and sha256 checksums, computed once per file. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from litlm.io.errors import error_reason, unreadable
from litlm.io.writing import write_text


@dataclass(frozen=True)
class LocalCopy:
    """A model on disk. fetched: whether it was downloaded just now. names: the files of the directory `path` that
    belong to the model; None if `path` is a file.
    """

    path: Path
    fetched: bool
    names: tuple[str, ...] | None = None


def cache_root() -> Path:
    """The folder of litlm's cache."""
    if root := os.environ.get("LITLM_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "litlm"


def verify(files: Iterable[tuple[Path, str]]) -> None:
    """Compare files with their sha256, unless they passed before; removes those that differ and raises ValueError."""
    unverified = [(path, sha256) for path, sha256 in files if not _is_verified(path, sha256)]
    total = sum(path.stat().st_size for path, _ in unverified)
    bad = []
    with _progress(total) as bar:
        for path, sha256 in unverified:
            digest = hashlib.sha256()
            try:
                with open(path, "rb") as stream:
                    while chunk := stream.read(1 << 22):
                        digest.update(chunk)
                        bar.update(len(chunk))
            except OSError as e:
                raise unreadable(path, e) from None
            if digest.hexdigest() == sha256.lower():
                mark_verified(path, sha256)
            else:
                discard(path)
                bad.append(f"{path.name} (should be {sha256[:12]}..., is {digest.hexdigest()[:12]}...)")
    if bad:
        raise ValueError(
            f"Damaged in transfer, or changed on disk: the sha256 of {', '.join(bad)} is wrong. Removed; run the same "
            f"command again to download {'it' if len(bad) == 1 else 'them'} again"
        )


def _marker(path: Path, sha256: str) -> tuple[Path, str]:
    """A file in the cache, and its content if `path` in its present state has this checksum."""
    real = path.resolve()
    stat = real.stat()
    return cache_root() / "verified" / sha256.lower(), f"{real} {stat.st_size} {stat.st_mtime_ns}\n"


def _is_verified(path: Path, sha256: str) -> bool:
    marker, text = _marker(path, sha256)
    try:
        return marker.read_text(encoding="utf-8") == text
    except OSError:
        return False


def mark_verified(path: Path, sha256: str) -> None:
    """Remember that the file has this checksum, until it changes."""
    with contextlib.suppress(ValueError):  # a read-only cache only means checking again next time
        write_text(*_marker(path, sha256))


def discard(path: Path) -> None:
    """Remove a damaged file, and the blob that a link in the Hugging Face cache points to."""
    for target in (path.resolve(), path):
        try:
            target.unlink(missing_ok=True)
        except OSError as err:
            raise ValueError(f"{target} is damaged and could not be removed ({error_reason(err)}): delete it") from err


def copy_and_hash(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy and sync to disk; returns the sha256 of the content, as hex digits."""
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


def _progress(total: int) -> Any:
    from tqdm import tqdm

    # disable=None shows the bar in a terminal only.
    disable = True if total < 1 << 30 else None
    return tqdm(total=total, unit="B", unit_scale=True, desc="Checking sha256 (once)", disable=disable)
