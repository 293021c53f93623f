"""`pip install`, in one line that moves: `make` calls it as `python .ci/pip_install.py ARGUMENTS OF PIP INSTALL`.

pip itself is either silent for the minutes that PyTorch takes (-q), or prints hundreds of lines. Its whole output is
kept in install.log of the environment, and shown if it fails. The standard library alone: nothing else is there yet.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

_FILE = re.compile(r"\s*(?:Downloading|Using cached) (\S+?)-(\d[^-\s]*)\S*\.(?:whl|tar\.gz|zip) \(([\d.]+) (\wB)\)")
_FOUND = re.compile(r"(?:Collecting|Processing) ")
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


class Progress:
    """What pip is doing, from its lines and from the files that grow."""

    def __init__(self, temporary: Path) -> None:
        self.temporary, self.began = temporary, time.monotonic()
        self.last = self.began
        self.live = sys.stdout.isatty()
        self.found, self.installing, self.there = 0, 0, 0
        self.file: tuple[str, float] | None = None  # being fetched, and its bytes

    def take(self, line: str) -> None:
        if _FOUND.match(line):
            self.found, self.file = self.found + 1, None
        elif match := _FILE.match(line):
            name, version, number, unit = match.groups()
            self.file = (f"{name} {version} ({number} {unit})", float(number) * _BYTES.get(unit, 1.0))
            if self.file[1] > 2e7:
                self.show(now=True)
        elif line.startswith("Installing collected packages:"):
            self.installing, self.there = line.count(",") + 1, self._installed()
            self.show(now=True)

    def show(self, now: bool = False) -> None:
        """The line, every second in a terminal, and elsewhere every half minute."""
        if not now and time.monotonic() - self.last < (1 if self.live else 30):
            return
        self.last = time.monotonic()
        text = f"{self.clock()}  "
        if self.installing:
            done = min(max(self._installed() - self.there, 0), self.installing)
            text += f"unpacking, {done} of {self.installing} packages"
        elif self.file:
            text += f"fetching {self.file[0]}, {self._share(self.file[1]):.0%}"
        else:
            text += f"looking for packages, {self.found} found"
        print(f"\r\033[K{text[:100]}" if self.live else text, end="" if self.live else "\n", flush=True)

    def end(self, text: str) -> None:
        print(("\r\033[K" if self.live else "") + text, flush=True)

    def clock(self) -> str:
        seconds = int(time.monotonic() - self.began)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _share(self, total: float) -> float:
        sizes = [path.stat().st_size for path in self.temporary.glob("pip-*/*") if path.is_file()]
        return min(max(sizes, default=0) / total, 1.0)

    def _installed(self) -> int:
        return len(list(Path(sysconfig.get_path("purelib")).glob("*.dist-info")))


def main(arguments: list[str]) -> int:
    log = Path(sys.prefix) / "install.log"
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    # pip's temporary files lie beside where they go: /tmp is often too small for PyTorch.
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=sys.prefix) as temporary, log.open("w") as kept:
        env = os.environ | {"TMPDIR": temporary}
        pip = subprocess.Popen(
            [*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert pip.stdout is not None
            for line in pip.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        progress = Progress(Path(temporary))
        try:
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    progress.show()
                    continue
                if line is None:
                    break
                kept.write(line)
                progress.take(line)
                progress.show()
        except KeyboardInterrupt:  # pip has got it as well
            pip.wait()
            progress.end("Stopped; the same command goes on with what was fetched.")
            return 130
    code = pip.wait()
    if code:
        output = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        wrong = [line for line in output if line.lstrip().lower().startswith("error")]
        progress.end("\n".join([*(wrong or output[-10:]), f"pip could not install this; all it said is in {log}"]))
    else:
        progress.end(f"Installed in {progress.clock()}." if progress.installing else "All packages are there.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
