"""benchmarks/pretrain_stdlib.py: its three steps on a small library, with numbers found out by other means."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import lzma
import math
import random
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import pretrain_stdlib as script  # noqa: E402  # pyright: ignore[reportMissingImports]

sys.path.pop(0)

ROWS, VOCAB, ONE_OF = 32, 320, 4
WORDS = ["read", "lines", "stack", "push", "pop", "open", "value", "übung", "size", "item", "total", "name"]


def _library(folder: Path) -> dict[str, str]:
    """Small modules, and beside them what has to be left out."""
    rng, files = random.Random(0), {}
    for i in range(40):
        pick = lambda: rng.choice(WORDS)  # noqa: E731
        lines = [f"def {pick()}_{i}({pick()}):\n    return {pick()} + {rng.randint(0, 99)}\n\n" for _ in range(6)]
        files[f"{'test/' if i % 3 else ''}module{i}.py"] = "".join(lines)
    odd = {
        "same.py": files["module0.py"], "empty.py": "\n", "site-packages/other.py": "x = 1\n", "notes.txt": "no\n",
        "__pycache__/cached.py": "y = 1\n",
    }  # fmt: skip
    for name, text in (files | odd).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(b"# \xe9\n")
    return files


def _settings(data: Path) -> Any:
    usual = script.recipe(data)
    train = dataclasses.replace(
        usual.train, max_steps=6, max_time=None, batch_size=4, micro_batch_size=2, warmup_steps=1, val_interval=2,
        save_interval=6, lr=1e-2, samples=("def read", "x = `` \n"),
    )  # fmt: skip
    sizes = dict(n_layer=1, n_head=2, n_kv_head=1, head_dim=8, n_embd=16, intermediate_size=32, max_seq_len=ROWS)
    return dataclasses.replace(
        usual, train=train, model_args=sizes, data=dataclasses.replace(usual.data, max_len=ROWS), device="cpu"
    )


class Made(NamedTuple):
    files: dict[str, str]
    data: Path
    facts: dict[str, Any]
    out: Path
    weights: Path
    rows: list[dict[str, str]]
    record: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("stdlib")
    (folder / "library").mkdir()
    files, data = _library(folder / "library"), folder / "data"
    facts = script.prepare(data, folder / "library", settings=_settings(data), vocab_size=VOCAB, one_of=ONE_OF)
    out, weights = folder / "out", folder / "weights"
    assert script.run(data, out, settings=_settings(data), weights=weights)
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return Made(files, data, facts, out, weights, rows, json.loads((out / "run.json").read_text()))


def _tokens(folder: Path) -> list[int]:
    return np.concatenate([np.fromfile(f, "<u2") for f in sorted(folder.glob("shard-*.bin"))]).tolist()


def test_whole_files_are_held_out(made: Made) -> None:
    held = made.facts["val"]["files"]
    assert 4 <= len(held) <= 16
    assert made.facts["train"]["files"] + len(held) == made.facts["files"] == len(made.files)
    assert set(held) < set(made.files)
    tokenizer = _library_tokenizer(made.data / "train")
    learned = tokenizer.decode(_tokens(made.data / "train"), skip_special_tokens=False)
    texts = sorted(name for name in made.files if name not in held)
    assert learned == "".join(made.files[name] + "<|endoftext|>" for name in texts)


def _library_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_held_out_bytes_and_what_xz_makes_of_them(made: Made) -> None:
    tokens, val = _tokens(made.data / "val"), made.facts["val"]
    assert val["tokens"] == len(tokens)
    assert val["targets"] == len(tokens) - 1
    assert val["targets"] % (2 * ROWS) == 0  # whole micro batches
    text = _library_tokenizer(made.data / "val").decode(tokens[1:], skip_special_tokens=True)
    assert abs(len(text.encode()) - val["bytes"]) <= 2  # a character may be cut at the end
    every = b"".join(made.files[name].encode() for name in sorted(val["files"]))
    assert text.encode()[:-4] in every
    held = every[: val["bytes"]]
    assert made.facts["xz_bits_per_byte"] == 8 * len(lzma.compress(held, preset=9)) / len(held)
    assert 0.1 < made.facts["xz_after_training_text"] < 0.8 * made.facts["xz_bits_per_byte"]


def test_the_recipe_is_what_the_command_reads(made: Made) -> None:
    from litlm.cli.main import parse

    assert parse("pretrain", ["--config", str(made.data / "recipe.yaml")]) == _settings(made.data)


def test_the_large_recipe_fits_its_data() -> None:
    settings = script.recipe(Path("data"))
    assert script.VOCAB_SIZE % 64 == 0
    assert settings.train.batch_size % settings.train.micro_batch_size == 0
    assert settings.train.max_steps % settings.train.val_interval == 0


def test_only_small_files_come_back(made: Made) -> None:
    assert sorted(f.name for f in made.out.iterdir()) == sorted([*script.BACK, "run.json"])
    assert made.record["problems"] == []
    assert len(made.rows) == 6
    said = [json.loads(line) for line in (made.out / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in said] == [step for step in (0, 2, 4, 6) for _ in range(2)]
    assert [s["prompt"] for s in made.record["best"]["samples"]] == ["def read", "x = `` \n"]


def test_held_out_loss_is_that_of_transformers(made: Made) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made.weights / "final", dtype=torch.float32)
    tokens = torch.tensor(_tokens(made.data / "val"))
    n = len(tokens) // ROWS
    with torch.no_grad():
        logits = model(tokens[: n * ROWS].view(n, ROWS)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[1 : n * ROWS + 1]).item()
    assert float(made.rows[-1]["val_loss"]) == pytest.approx(loss, rel=1e-4)
    assert loss < 0.99 * math.log(VOCAB)
    bits = loss * n * ROWS / math.log(2) / made.facts["val"]["bytes"]
    assert script.bits_per_byte(loss, made.facts["val"]) == pytest.approx(bits, rel=1e-12)


def test_the_page_shows_the_run(made: Made, tmp_path: Path) -> None:
    text = script.show(made.out, tmp_path).read_text(encoding="utf-8")
    vals = {int(row["step"]): float(row["val_loss"]) for row in made.rows if row["val_loss"]}
    assert list(vals) == [2, 4, 6]
    best = min(vals, key=lambda step: vals[step])
    for step, loss in vals.items():
        mean = sum(float(row["loss"]) for row in made.rows[step - 2 : step]) / 2
        bits = loss / math.log(2) * made.facts["val"]["targets"] / made.facts["val"]["bytes"]
        line = next(line for line in text.splitlines() if line.startswith(f"| {step} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:] == [
            f"{step * 4 * ROWS / made.facts['train']['tokens']:.1f}", f"{mean:.3f}",
            f"{loss:.3f}" + (" (best)" if step == best else ""), f"{bits:.3f}",
        ]  # fmt: skip
    assert f"the model after step {best} |" in text
    assert re.search(r"^````text\nx = ``", text, re.M) or "```text\nx = ``" in text
    assert text.count("After step 0:") == 2
    assert "/tmp" not in text.replace(str(tmp_path), "")

    svg = ET.parse(tmp_path / "pretraining-run.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    lines = {e.get("data-name"): e.get("points", "") for e in svg.iter() if e.get("data-name")}
    x0, x1, y0, y1 = (float(svg.get(f"data-{edge}", "")) for edge in ("x0", "x1", "y0", "y1"))
    left, right, top, bottom = map(float, svg.get("data-box", "").split())
    for point, (step, loss) in zip(lines["held out"].split(), vals.items(), strict=True):
        x, y = map(float, point.split(","))
        assert x0 + (x - left) / (right - left) * (x1 - x0) == pytest.approx(step, abs=0.01)
        assert y0 + (bottom - y) / (bottom - top) * (y1 - y0) == pytest.approx(loss, abs=0.01 * (y1 - y0))


def test_what_there_is_comes_back_when_something_fails(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no samples today")

    fail.__name__ = "long_samples"
    monkeypatch.setattr(script, "long_samples", fail)
    monkeypatch.setattr(script, "roomy", lambda: None)
    out = tmp_path / "out"
    assert not script.run(made.data, out, settings=_settings(made.data))
    assert "no samples today" in capfd.readouterr().err
    assert sorted(f.name for f in out.iterdir()) == sorted([*script.BACK, "run.json"])
    record = json.loads((out / "run.json").read_text())
    assert record["problems"] == ["long_samples: RuntimeError: no samples today"]
    assert record["result"]["steps"] == 6
    assert script.show(out, tmp_path).is_file()

    settings = dataclasses.replace(_settings(made.data), model="no-such-model")
    assert not script.run(made.data, tmp_path / "none", settings=settings)
    record = json.loads((tmp_path / "none" / "run.json").read_text())
    assert "no-such-model" in record["problems"][0]
    assert record["facts"] == made.facts


def test_a_clone_that_is_not_installed_has_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import litlm

    missing = importlib.metadata.PackageNotFoundError("litlm")

    def version(name: str) -> str:
        raise missing

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "path", [*sys.path])
    script.run_clone(tmp_path)
    known = list(importlib.metadata.distributions(name="litlm", path=[sys.path[-1]]))
    assert [d.version for d in known] == [litlm.__version__]
