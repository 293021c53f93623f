"""The commands and programs shown in the tutorials and the README run as they are printed, and what pages name exists.

Blocks marked `bash` and `python` are run, a document's blocks in order and in one empty folder. Blocks marked `sh` or
`text` are only shown (make, pip, transcripts).
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


# Imported before everything else: packages that the README's installation lacks are not found.
WITHOUT = """
import importlib.machinery, sys

class Core(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

    @staticmethod
    def find_distributions(context=None):
        hidden = context is not None and (context.name or "").replace("-", "_").lower() in HIDDEN
        return iter(()) if hidden else importlib.machinery.PathFinder.find_distributions(context)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Core
"""


def only_here_by_chance(text: str) -> set[str]:
    """The packages of the extras, which tests have, without those that the document tells to install."""
    every = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = {
        extra: {name.replace("-", "_").lower() for name in re.findall(r'"([\w-]+)', packages)}
        for extra, packages in re.findall(r"^(\w+) = \[(.*)\]$", every.split("[project.scripts]")[0], re.M)
    }
    told = set(re.findall(r"[\w-]+", " ".join(re.findall(r"pip install (.*)", text))))
    # torch brings triton along on CUDA machines, and looks for it everywhere.
    return (
        set().union(*extras.values()) - {"litlm", "triton"} - told - set().union(*(extras.get(t, set()) for t in told))
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_runs(document: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.M | re.S)
    assert blocks, f"{document.name} shows nothing to run"
    (tmp_path / "sitecustomize.py").write_text(f"HIDDEN = {only_here_by_chance(text)!r}{WITHOUT}")
    tmp_path, site = tmp_path / "empty", tmp_path
    tmp_path.mkdir()
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "default"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), env.get("PYTHONPATH"))))
    for kind, text in blocks:
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n--- printed:\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or "cat >" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_named_exists(document: Path) -> None:
    """Recipes, commands and options, also in blocks and sentences that are not run."""
    import dataclasses
    import typing

    import litlm.settings
    from litlm.cli.main import COMMANDS, recipe

    text = re.sub(r"^```text.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
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


PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "tutorials/*.md", "*/README.md", "extensions/*/README.md")
    for page in sorted(ROOT.glob(pattern))
]
# They name files as they were at the time.
LOGS = ("CHANGELOG.md", "decisions.md")
# What .gitignore names, such as out/, is a user's: a page may speak of files there that don't exist yet.
IGNORED = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
FOLDERS = {path.name for parent in (ROOT, ROOT / "litlm") for path in parent.iterdir() if path.is_dir()} - IGNORED


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Relative links with their anchors, and paths of this repository in backticks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link, anchor in re.findall(r"(?:\]\(|src=\")(?!\w+:)([^)#\"]*)#?([^)\"]*)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), f"{link}#{anchor}"
    if page.name in LOGS:
        return
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text):
        if path.split("/")[0] in FOLDERS and "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "litlm" / path).exists(), path


def test_readme_counts_what_there_is() -> None:
    from litlm.families import list_families
    from litlm.zoo import list_models

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = (ROOT / "docs" / "families.md").read_text(encoding="utf-8").split("\n\n")[2]
    built_in = {path.stem for path in (ROOT / "litlm" / "families").glob("*.py")}
    families = (built_in & set(list_families())) - {"litlm"}
    assert set(re.findall(r"`(\w+)`", listed)) == families
    assert f"[{len(families)} families]" in text
    assert f"{len(list_models())} have names" in text


def test_diagram_draws_the_arrows() -> None:
    """README's groups hold each package once, and their arrows are the imports that test_quality allows."""
    from test_quality import ARROWS

    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert drawn
    group_of: dict[str, str] = {}
    arrows, group = set(), ""
    for line in drawn[1].splitlines():
        if started := re.match(r"\s*subgraph (\w+)", line):
            group = started[1]
        elif line.strip() == "end":
            group = ""
        elif chain := re.findall(r"(?:^|-->)\s*(\w+)", line):
            arrows |= {(a, b) for a, b in zip(chain, chain[1:], strict=False)}
            if group:
                group_of |= dict.fromkeys(chain, group)
    groups = set(group_of.values())
    assert set(group_of) == {name for name in ARROWS if "." not in name}

    imports = {(a.split(".")[0], b.split(".")[0]) for a, row in ARROWS.items() for b in row.split()}
    assert {(a, b) for a, b in arrows if a not in groups} <= imports
    between = {(group_of[a], group_of[b]) for a, b in imports if group_of[a] != group_of[b]}
    drawn_between = {(a, b) for a, b in arrows if a in groups}
    assert drawn_between <= between

    def reached(start: str) -> set[str]:
        return {c for a, b in drawn_between if a == start for c in {b, *reached(b)}}

    assert all(b in reached(a) for a, b in between)
