"""Model files in Python packages, as a source where no hub can be reached. No torch.

Wheels are downloaded with the user's own pip or uv, with their indexes, caches and logins; nothing is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from litlm.checkpoint.local_copy import LocalCopy, cache_root, copy_and_hash, mark_verified, verify
from litlm.io.errors import error_reason
from litlm.io.format import format_bytes

_SOURCE = re.compile(
    r"pypi:(?P<package>\w[\w.-]*)==(?P<version>\w[\w.!+-]*)/(?P<member>[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?",
    re.ASCII,
)
_NO_NETWORK = re.compile(
    "Retrying [(]|Failed to establish|NameResolution|Name or service not known|timed out|Connection ?Error"
    "|Connection reset|Network is unreachable|ProxyError|SSLError|error sending request|dns error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PackagedFile:
    """One file in a wheel. spec: package==version, as for pip. path: its place in litlm's cache."""

    spec: str
    member: str
    sha256: str | None
    path: Path

    @classmethod
    def parse(cls, source: str) -> PackagedFile:
        """From `pypi:package==version/path/in/wheel[#sha256=...]`. Raises ValueError for a text of another form."""
        match = _SOURCE.fullmatch(source)
        parts = PurePosixPath(match["member"]).parts if match else ("/",)
        if match is None or ".." in parts or "/" in parts or "\\" in source:
            raise ValueError(
                f"{source!r} is not of the form pypi:package==version/path/in/wheel[#sha256=64 hex digits]"
            )
        package, version, member, sha256 = match.group("package", "version", "member", "sha256")
        folder = f"{re.sub('[-_.]+', '-', package).lower()}-{version}"
        return cls(f"{package}=={version}", member, sha256, cache_root().joinpath("pypi", folder, *parts))

    def cached(self) -> LocalCopy | None:
        """The verified copy in the cache, if there is one."""
        if not self.path.is_file():
            return None
        if self.sha256:
            verify([(self.path, self.sha256)])
        return LocalCopy(self.path, False)

    def resolve(self, note: str = "") -> LocalCopy:
        """The copy in the cache, or one downloaded now; then `note` is printed first. Raises ValueError on failure."""
        if copy := self.cached():
            return copy
        if note:
            print(note, file=sys.stderr)
        folder = cache_root() / "pypi"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(".fetch-*"):  # of a killed process
                if time.time() - old.stat().st_mtime > 86400:
                    shutil.rmtree(old, ignore_errors=True)
            # Not in /tmp, which is often small; and the last step has to be a rename within one file system.
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as tmp:
                unpacked, part = Path(tmp, "package"), Path(tmp, "part")
                _download(self.spec, unpacked)
                with _open_member(self.spec, self.member, unpacked) as stream, open(part, "wb") as out:
                    digest = copy_and_hash(stream, out)
                if self.sha256 and digest != self.sha256.lower():
                    raise ValueError(
                        f"{self.member} in {self.spec}: sha256 should be {self.sha256[:12]}..., is {digest[:12]}... "
                        "Not kept. Either the checksum belongs to another version, or the index holds a changed file: "
                        "find out before using it"
                    )
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, self.path)
        except OSError as err:
            raise ValueError(
                f"{self.spec}: cannot be kept in {folder}: {error_reason(err)}. Set LITLM_CACHE to another folder"
            ) from err
        mark_verified(self.path, digest)
        size = format_bytes(self.path.stat().st_size)
        print(f"Kept {self.path.name} ({size}, sha256 {digest[:12]}...) in {self.path.parent}", file=sys.stderr)
        return LocalCopy(self.path, True)


def _download(spec: str, folder: Path) -> None:
    """Download the wheel of `spec` (pip) or its unpacked files (uv) into `folder`, with the user's index settings."""
    terminal = bool(sys.stderr) and sys.stderr.isatty()
    stdout: int | IO[str] = subprocess.PIPE
    if importlib.util.find_spec("pip"):
        tool = "pip"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "-d", str(folder), spec]
        if terminal:
            stdout = sys.stderr  # pip's progress bar; our stdout stays clean
        else:
            command.insert(4, "-q")
    elif uv := shutil.which("uv"):
        tool = "uv"
        command = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
        command += ["--target", str(folder), spec]
    else:
        raise ValueError(
            f"{spec}: this Python has no pip, and there is no uv on PATH to fetch it with. Install either one"
        )
    print(f"Fetching the Python package {spec} with {tool}; nothing gets installed", file=sys.stderr)
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if done.returncode == 0:
        return
    output = (done.stdout or "") + (done.stderr or "")
    versions = re.search(r"\(from versions: ([^)]+)\)", output)
    if "No space left" in output:
        why = f"the disk of {cache_root()} (or of the temporary directory) is full. Free space, or set LITLM_CACHE"
    elif _NO_NETWORK.search(output):
        why = "the package index does not answer. Check the connection and the index settings, then run again"
    elif versions and versions[1] != "none":
        why = f"the index has other versions: {versions[1]}"
    else:
        why = "the configured index has no wheel of that name and version that fits this Python"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if line.startswith("ERROR")] or lines[-4:]
    raise ValueError("\n  ".join([f"{spec}: {why}. {tool} says:", *lines]))


@contextlib.contextmanager
def _open_member(spec: str, member: str, folder: Path) -> Iterator[IO[bytes]]:
    """Open one file of the wheel, or of the unpacked files, that `_download` put into `folder`."""
    wheel = next(folder.glob("*.whl"), None)
    try:
        with contextlib.ExitStack() as stack:
            if wheel is not None:
                archive = stack.enter_context(zipfile.ZipFile(wheel))
                names = archive.namelist()
            else:
                archive = None
                names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            if member not in names:
                models = [f"pypi:{spec}/{name}" for name in names if name.endswith((".gguf", ".safetensors"))]
                raise ValueError(f"{spec} has no file {member!r}. Model files in it: {', '.join(models) or 'none'}")
            yield stack.enter_context(archive.open(member) if archive else (folder / member).open("rb"))
    except zipfile.BadZipFile as err:
        raise ValueError(
            f"{spec}: its wheel is damaged ({err}). Run again, after `pip cache purge` if it recurs"
        ) from err
