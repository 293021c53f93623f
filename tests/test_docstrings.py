"""Docstrings, counted: what is public says what it does, tensors have shapes, errors are named, math has a source.

python tests/test_docstrings.py [PART OF A PATH]    lists what is missing
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SHARE = 0.95  # of all, for each of the four

# A family's four functions are described once, by `Family`.
PROTOCOL = {"from_hf", "to_hf", "from_gguf", "to_gguf"}
# Parts of (B, T, C), (N,), (..., V); or in words, for what takes any tensor.
SHAPE = re.compile(r"\((\.\.\.|[A-Z]\w*|\d+|\w+)( ?[-+*/] ?\w+)*(,|\))|\bscalars?\b|\bshapes?\b|0-d")
RAISES = re.compile(r"\b[Rr]aise[sd]?\b|Error\b|\berrors?\b")
SOURCE = re.compile(r"et al\.|& \w+ (19|20)\d\d|\b(19|20)\d\d\b|transformers|PEFT|torchtune|llama\.cpp|PyTorch|Triton")
WITH_A_SOURCE = ("model/", "ops/", "transforms/", "generate/sampling.py", "train/optim.py", "train/preference.py")


class Item(NamedTuple):
    """A public function, method or class. docs: its docstring; else, as `help` has it, that of the method it overrides;
    else, for `forward`, its class's."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    docs: str


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "litlm").rglob("*.py")):
        yield path.relative_to(ROOT / "litlm").as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _inherited() -> dict[tuple[str, str], str]:
    """The docstrings of all methods, also those that they have from a base, by the names of class and method."""
    classes = [node for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [(c.name, m) for c in classes for m in c.body if isinstance(m, ast.FunctionDef)]
    found = {(name, method.name): doc for name, method in methods if (doc := ast.get_docstring(method))}
    for _ in range(4):  # bases of bases
        for c in classes:
            for base in map(_base_name, c.bases):
                found |= {(c.name, m): doc for (b, m), doc in found.items() if b == base and (c.name, m) not in found}
    return found


def _base_name(base: ast.expr) -> str:
    return ast.unparse(base).split("[")[0]


INHERITED = _inherited()


def _public(where: str, body: list[ast.stmt], parent: ast.ClassDef | None = None) -> Iterator[Item]:
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        overload = any("overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in node.decorator_list)
        if overload or (where.startswith("families/") and node.name in PROTOCOL):
            continue
        docs = ast.get_docstring(node) or ""
        if parent is not None:
            docs = docs or INHERITED.get((parent.name, node.name), "")
            docs = docs or (ast.get_docstring(parent) or "" if node.name == "forward" else "")
        yield Item(f"{where}:{node.lineno} {node.name}", node, docs)
        if isinstance(node, ast.ClassDef):
            yield from _public(where, node.body, node)


def _items() -> list[Item]:
    return [item for where, tree in _trees() for item in _public(where, tree.body)]


def _has_tensors(item: Item) -> bool:
    node = item.node
    if isinstance(node, ast.ClassDef):
        return False
    hints = [a.annotation for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints if hint is not None)


def _raises(item: Item) -> bool:
    """Does its own body raise? (What it calls documents itself; a bare `raise` passes on what came.)"""
    if isinstance(item.node, ast.ClassDef):
        return False
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(item.node))


def missing() -> dict[str, tuple[list[str], int]]:
    """For each rule, what breaks it and of how many."""
    items = _items()
    tensors, raising = [i for i in items if _has_tensors(i)], [i for i in items if _raises(i)]
    modules = [(where, tree) for where, tree in _trees() if where.startswith(WITH_A_SOURCE)]
    modules = [(where, tree) for where, tree in modules if any(map(_has_tensors, _public(where, tree.body)))]
    unsourced = [where for where, tree in modules if not SOURCE.search(_all_docs(tree))]
    return {
        "documented": ([i.name for i in items if not i.docs], len(items)),
        "shapes": ([i.name for i in tensors if not SHAPE.search(i.docs)], len(tensors)),
        "errors": ([i.name for i in raising if not RAISES.search(i.docs)], len(raising)),
        "source": (unsourced, len(modules)),
    }


def _all_docs(tree: ast.Module) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))


@pytest.mark.parametrize("rule", ["documented", "shapes", "errors", "source"])
def test_docstrings(rule: str) -> None:
    lacking, total = missing()[rule]
    assert total > 10
    assert len(lacking) <= (1 - SHARE) * total, f"{len(lacking)} of {total}:\n" + "\n".join(lacking)


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    for rule, (lacking, total) in missing().items():
        print(f"{rule}: {len(lacking)} of {total} lacking", *(name for name in lacking if part in name), sep="\n  ")
