"""House rules that a machine can watch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "litlm").rglob("*.py"))


def _tracked() -> list[Path]:
    """Files that git tracks or would; without git, all that are not hidden."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        found = (path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts))
        return [path for path in found if path.is_file()]
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_says_what_it_is_for_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{_name(path)} has no docstring"
    assert text.count("\n") <= 650, f"{_name(path)} holds more than one idea"


def _imports_torch(module: str) -> bool:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    return done.stdout.strip() == "True"


@pytest.mark.parametrize(
    "module", ["config", "settings", "families", "zoo", "cli.main", "cli.describe", "checkpoint.download", "prompts"]
)
def test_settings_and_facts_need_no_torch(module: str) -> None:
    assert not _imports_torch(f"litlm.{module}")


def test_family_files_need_no_torch() -> None:
    names = [path.stem for path in (ROOT / "litlm" / "families").glob("*.py") if path.stem != "__init__"]
    assert len(names) > 3
    assert not _imports_torch(", ".join(f"litlm.families.{name}" for name in names))


def test_the_model_needs_torch_alone() -> None:
    tree = ast.parse((ROOT / "litlm" / "model" / "gpt.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found <= {"torch", "litlm", *sys.stdlib_module_names}


def test_dependencies_point_inward() -> None:
    """config < model < checkpoint, transforms < train < cli: no module, when loaded, imports from further out."""
    layers = [
        {"config", "families", "zoo", "settings", "rope"}, {"context", "model", "ops"}, {"checkpoint", "transforms"},
        {"train"}, {"cli", "chat", "quickstart"},
    ]  # fmt: skip
    place = {name: i for i, names in enumerate(layers) for name in names}
    for path in MODULES:
        own = place.get(path.relative_to(ROOT / "litlm").parts[0].removesuffix(".py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if own is None or not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("litlm."):
                continue
            other = place.get((node.module or "").split(".")[1])
            assert other is None or other <= own, f"{_name(path)} imports {node.module}"


def test_no_machine_and_no_loose_end_in_what_is_published() -> None:
    # Written in two parts, so that this file does not hold what it looks for.
    loose = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]))
    places = re.compile("|".join(["/ro" + "ot/", "/wo" + "rk/", "/ho" + r"me/\w", "/Us" + r"ers/\w"]))
    found = []
    for path in _tracked():
        if path.suffix in (".png", ".gguf", ".safetensors", ".model") or path.name.endswith(".lock"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if loose.search(line) or places.search(line):
                found.append(f"{_name(path)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
