"""The commands and programs shown in the tutorials and the README run as they are printed.

Blocks marked `bash` and `python` are run, a document's blocks in order and in one empty folder. Blocks marked `sh` or
`text` are only shown (cloning, make, transcripts).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted((ROOT / "tutorials").glob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_runs(document: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks, f"{document.name} shows nothing to run"
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "default"}
    for kind, text in blocks:
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n--- printed:\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or "cat >" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_named_exists(document: Path) -> None:
    """Links, recipes, commands and options, also in blocks and sentences that are not run."""
    import dataclasses
    import typing

    import litlm.settings
    from litlm.cli import COMMANDS, recipe

    text = re.sub(r"^```text.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / link).exists(), link
    for name in re.findall(r"--config ((?:finetune|dpo|pretrain)/[\w.-]+)", text):
        assert Path(recipe(name)).is_file()
    for name in re.findall(r"(?:^|`)litlm ([a-z][a-z-]*)", text, re.M):
        assert name in COMMANDS, name

    def options(cls: type, prefix: str = "") -> set[str]:
        hints, found = typing.get_type_hints(cls), set()
        for field in dataclasses.fields(cls):
            found.add(prefix + field.name)
            if dataclasses.is_dataclass(hints[field.name]):
                found |= options(hints[field.name], f"{prefix}{field.name}.")
        return found

    known = {"config", "auto", "help", "print_config"}.union(
        *(options(getattr(litlm.settings, command.settings)) for command in COMMANDS.values())
    )
    assert sorted(set(re.findall(r"(?<![\w-])--([a-z][\w.]*\w)", text)) - known) == []


def test_readme_shows_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make quickstart" in text
    assert "make test" in text
