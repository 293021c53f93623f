"""Published packages that tests compare litlm with, fetched once without installing them (their dependencies would not
live beside ours) and unpacked into litlm's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_SHA256 = {
    # Writers and readers of quantized checkpoints; loguru is what compressed-tensors imports.
    "autoawq==0.2.9": "f3397687118c7d23c769de0de05ff1dca8950a2644acbe1b6eb1399c691fe7ee",
    "compressed-tensors==0.17.0": "4a1b89b508f7efb8ffb4eee8a6e69e0452d9b080cae130146025c64fbe9fa9aa",
    "gptqmodel==7.7.0": "039874c39fb56ba75b750dd4870968e7fe83b6ca28890a53e94ad3c46be699d0",
    "loguru==0.7.3": "31a33c10c8e1e10422bfd431aeb5d351c7cf7fa671e3c4df004162264b28220c",
    # LitGPT: its table of models, its checkpoints.
    "litgpt==0.5.13": "da044b76c52cd44fc0564f6177ed6cf186dde24f711ce8e71e1fd9e9da5f02b2",
    # Chat templates of many models, as Jinja files; conversations as tables.
    "axolotl==0.19.0": "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
    "trl==1.16.0": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    "fschat==0.2.36": "a66ecf1e90f6db1d015096f6aa8a305d20d0a13e067951285aecdb56a33e9cb1",
    "ms-swift==4.6.0": "8888ca2b88681aeabffc981f289ffc3e4fa6e4da7f83e885114ec0edbe8d99ea",
    # The source distribution holds llama.cpp: its converter to GGUF, its chat templates.
    "llama-cpp-python==0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}


def unpacked(requirement: str) -> Path:
    """The folder that holds the package's files; `requirement` is one of the pinned ones above."""
    root = Path(os.environ.get("LITLM_CACHE") or Path.home() / ".cache" / "litlm") / "test-packages"
    root.mkdir(parents=True, exist_ok=True)
    target = root / requirement
    with (root / f"{requirement}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=root) as place:
                _fetch(requirement, Path(place))
                (Path(place) / "files").rename(target)
    return target


def _fetch(requirement: str, place: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*command, requirement, "-d", str(place)], check=True, capture_output=True, text=True)
    archive = next(p for p in place.iterdir() if p.suffix in (".whl", ".gz"))
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == _SHA256[requirement], f"{archive.name} has changed"
    files = place / "files"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(files)
    else:
        with tarfile.open(archive) as sdist:
            sdist.extractall(place / "sdist", filter="data")
        shutil.move(next((place / "sdist").iterdir()), files)
