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


@pytest.mark.parametrize("package", ["model", "context"])
def test_the_model_needs_torch_alone(package: str) -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "litlm" / package).glob("*.py")]
    assert len(trees) > 3
    found = set()
    for node in (node for tree in trees for node in _run_time(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found <= {"torch", "litlm", *sys.stdlib_module_names}


# What each package may import, also lazily; the README draws the same (test_docs.py). A class that is only named in
# annotations (under TYPE_CHECKING) is no arrow. Slots and counts are below the families, `Config` above them.
ARROWS = {
    "io": "",
    "zoo": "io",
    "config.layers": "",
    "config.counts": "config.layers",
    "families": "io config.layers",
    "config": "io zoo config.layers config.counts families",
    "settings": "io",
    "tokenizer": "io",
    "prompts": "io tokenizer",
    "ops": "",
    "context": "config ops",
    "model": "config ops context",
    "transforms": "io settings config ops context model",
    "checkpoint": "io zoo settings config families tokenizer ops context model transforms",
    "generate": "settings config tokenizer ops context model",
    "llm": "io zoo settings config families tokenizer prompts context model transforms checkpoint generate",
    "data": "io settings config families tokenizer prompts ops context checkpoint",
    "train": "io zoo settings config config.counts families tokenizer prompts ops context model transforms checkpoint "
    "generate llm data",
    "cli": "io zoo settings config config.counts families tokenizer prompts checkpoint generate llm data train",
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "litlm").with_suffix("").parts).removesuffix(".__init__")


MODULE_NAMES = {_module(path) for path in MODULES}


def _package(module: str) -> str:
    """The row of ARROWS that a module (within litlm) belongs to."""
    return module if module in ARROWS else module.split(".")[0]


def _run_time(tree: ast.Module) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    left_out = {id(inner) for node in typing_only for inner in ast.walk(node)}
    return [node for node in ast.walk(tree) if id(node) not in left_out]


def _imports(path: Path) -> set[str]:
    """The modules within litlm that a file imports, anywhere in it."""
    found = set()
    for node in _run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "litlm":
            base = (node.module or "").removeprefix("litlm").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULE_NAMES else base)
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("litlm").removeprefix(".") for a in node.names if a.name.split(".")[0] == "litlm"
            }
    return found - {""}  # `from litlm import __version__`


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_dependencies_point_inward(path: Path) -> None:
    own = _package(_module(path))
    if own in ("__init__", "__main__"):  # they name what users import
        return
    assert own in ARROWS, f"{_name(path)}: say in ARROWS what {own} may import"
    allowed = {own, *ARROWS[own].split()}
    for module in sorted(_imports(path)):
        assert _package(module) in allowed, f"{_name(path)} imports litlm.{module}, which is further out"


def test_arrows_have_no_circle() -> None:
    order = list(ARROWS)
    for package, allowed in ARROWS.items():
        assert all(order.index(other) < order.index(package) for other in allowed.split()), package


def test_few_loose_modules_at_the_top() -> None:
    assert len(list((ROOT / "litlm").glob("*.py"))) <= 6


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
