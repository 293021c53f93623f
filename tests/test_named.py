"""The table of datasets against what LitGPT's data modules read."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from packages import unpacked

from litlm.data.named import closest_names, find_dataset, list_datasets

# LitGPT's data module -> our name
MODULES = dict(
    alpaca_2k="alpaca-2k", deita="deita", flan="flan", lima="lima", longform="longform", tinystories="tinystories",
    openwebtext="openwebtext",
)  # fmt: skip


@pytest.mark.parametrize(("module", "name"), MODULES.items())
def test_litgpt_reads_the_same_datasets(module: str, name: str) -> None:
    source = (unpacked("litgpt==0.5.13") / "litgpt" / "data" / f"{module}.py").read_text()
    ours = find_dataset(name)
    assert ours is not None
    theirs = re.findall(
        r"""(?:repo_id: str = (?:field\(repr=False, default=)?"|huggingface\.co/datasets/|githubusercontent\.com/"""
        r"""|load_dataset\(")([\w-]+/[\w-]+|openwebtext)""",
        source,
    )
    assert theirs
    for found in theirs:  # openwebtext stood without an owner before it moved
        assert ours.hub_id.lower() == found.lower() or ours.hub_id.endswith(f"/{found}")


def test_litgpt_reads_the_same_columns_and_splits() -> None:
    folder = unpacked("litgpt==0.5.13") / "litgpt" / "data"
    for name in ("flan", "longform"):
        ours = find_dataset(name)
        assert ours is not None
        transform = (folder / f"{name}.py").read_text().split("def _transform")[1].split("\n\n")[0]
        renamed = {theirs: to for to, theirs in re.findall(r'item\["(\w+)"\] = item\.pop\("(\w+)"\)', transform)}
        assert renamed["inputs" if name == "flan" else "input"] == "instruction"
        mean = {"instruction": "prompt", "output": "completion"}
        assert {theirs: mean[to] for theirs, to in renamed.items()}.items() <= ours.rename_columns.items()
    deita = find_dataset("deita")
    assert deita is not None
    assert f'split=["{deita.split}", ' in (folder / "deita.py").read_text()


def test_names_and_facts() -> None:
    datasets = list_datasets()
    assert len({d.name for d in datasets}) == len({(d.hub_id, d.config) for d in datasets}) == len(datasets) > 15
    for d in datasets:
        assert find_dataset(d.name) is d
        assert re.fullmatch(r"[a-z0-9-]+", d.name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", d.hub_id)
        assert d.licence
        assert d.record_keys
        assert d.n_examples > 0
    assert [d.name for d in list_datasets("preference")] == ["ultrafeedback"]
    assert {d.task for d in datasets} == {"sft", "preference", "text"}


def test_finding() -> None:
    assert find_dataset("Alpaca_2K") is find_dataset("alpaca-2k") is not None
    assert find_dataset("nothing") is None
    assert "alpaca" in closest_names("alpacca")
    assert closest_names("zzzzzz") == []


def test_no_torch() -> None:
    code = (
        "import sys, litlm.data.named, litlm.data.records; assert not {'torch', 'datasets', 'pyarrow'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
