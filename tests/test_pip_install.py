""".ci/pip_install.py shows what pip does."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parent.parent / ".ci" / "pip_install.py"


@pytest.fixture
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("pip_install", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_shown(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = tool.Progress(tmp_path)
    for line in (
        "Collecting numpy>=1.26 (from litlm==0.1.0)",
        "  Downloading numpy-2.3.5-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (62 kB)",
        "  Downloading numpy-2.3.5-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)",
        "Processing ./rich-15.0.0-py3-none-any.whl (from litlm==0.1.0)",
        "Collecting torch>=2.11 (from litlm==0.1.0)",
    ):
        progress.take(line + "\n")
    assert capsys.readouterr().out == "", "small files are over before a line could be read"
    progress.show(now=True)
    assert capsys.readouterr().out == "0:00  looking for packages, 3 found\n"
    (tmp_path / "pip-unpack-x").mkdir()
    with (tmp_path / "pip-unpack-x" / "torch.whl").open("wb") as file:
        file.truncate(int(0.25 * 766.7e6))
    progress.take("Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (766.7 MB)\n")
    assert capsys.readouterr().out == "0:00  fetching torch 2.13.0 (766.7 MB), 25%\n"
    progress.show()  # the same minute
    progress.take("Installing collected packages: numpy, rich, torch\n")
    assert capsys.readouterr().out == "0:00  unpacking, 0 of 3 packages\n"


def test_pip_is_called_and_its_failures_are_shown(tmp_path: Path) -> None:
    # An environment whose pip is a script: nothing is installed in that of the tests.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    (place,) = (tmp_path / "env").glob("lib/*/site-packages")
    (place / "pip.py").write_text(
        "import os, sys\n"
        "print('Collecting', *sys.argv[1:])\n"
        "print('Collecting b'); print('Installing collected packages: a, b')\n"
        "if 'bad' in sys.argv: sys.exit('ERROR: No matching distribution found for bad')\n"
    )
    good = subprocess.run([python, TOOL, "-e", "."], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert re.fullmatch(r"0:\d\d  unpacking, 0 of 2 packages\nInstalled in 0:\d\d\.\n", good.stdout)
    log = tmp_path / "env" / "install.log"
    assert "Collecting install --disable-pip-version-check --progress-bar off -e .\n" in log.read_text()
    bad = subprocess.run([python, TOOL, "bad"], capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stdout.endswith(f"ERROR: No matching distribution found for bad\npip could not install this; all it "
                               f"said is in {log}\n")  # fmt: skip
    assert not list((tmp_path / "env").glob(".pip-*"))
