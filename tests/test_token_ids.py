"""Tokens that the model's embedding has no row for are refused by name, before anything is computed with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
from test_run import run

from litlm.data.prepare import load_tokenizer, prepare
from litlm.llm import LLM
from litlm.settings import (
    DataSettings,
    DPOSettings,
    FinetuneSettings,
    MethodSettings,
    PreferenceData,
    PretrainSettings,
    TextData,
    TrainSettings,
)
from litlm.settings.data import PrepareCommand

WORDS = ("<in>", "<rows>", "<of>", "<out>", "<far>")  # the tiny model has rows for the first three
ROWS, OUT = 343, [343, 344]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fewer rows than its tokenizer has tokens."""
    path = tmp_path_factory.mktemp("beyond") / "model"
    shutil.copytree(tiny.folder(), path)
    core = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    core.add_tokens(list(WORDS))
    core.save(str(path / "tokenizer.json"))
    llm = LLM.load(path)
    assert (llm.config.vocab_size, llm.tokenizer.vocab_size) == (ROWS, ROWS + 2)
    return path


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def settings_of(kind: str, model: Path, text: str, place: Path, **more: Any) -> Any:
    """One step on data that has `text` in it."""
    train = dict(max_steps=1, batch_size=2, micro_batch_size=1, val_interval=None, save_interval=None, warmup_steps=0)
    name = "full" if kind in ("full", "dpo", "pretrain", "new", "prepared") else "lora"
    common: dict[str, Any] = dict(model=str(model), out_dir=str(place / "out"), device="cpu")
    common |= dict(method=MethodSettings(name=name), train=TrainSettings(**(train | more.pop("train", {}))), **more)
    if kind == "dpo":
        pairs = [dict(prompt="ab", chosen="ab", rejected=text), dict(prompt="a", chosen="b", rejected="a")]
        data = PreferenceData(path=lines(place / "d.jsonl", pairs), val_fraction=0.5)
        return DPOSettings(data=data, **common)
    if kind in ("lora", "full"):
        records = [dict(prompt="ab", completion=text), dict(prompt="a", completion="b")]
        return FinetuneSettings(data=DataSettings(path=lines(place / "d.jsonl", records), val_fraction=0.5), **common)
    (place / "text.txt").write_text("abab baab " * 40 + text + " ab" * 40)
    paths = (str(place / "text.txt"),)
    if kind == "prepared":  # with the tokenizer of this model, for one with fewer rows
        command = PrepareCommand(data=paths, tokenizer="", out_dir=str(place / "shards"), workers=1)
        paths = (str(prepare(command, load_tokenizer(model)).folder),)
    text_data = TextData(path=paths, val_fraction=0, max_len=16)
    return PretrainSettings(data=text_data, **({"from_weights": kind != "new"} | common))


@pytest.mark.parametrize("kind", ["lora", "full", "dpo", "pretrain", "prepared", "new"])
def test_training_refuses_tokens_without_a_row(folder: Path, tmp_path: Path, kind: str) -> None:
    more: dict[str, Any] = dict(model_args=dict(vocab_size=ROWS)) if kind == "new" else {}
    bad = settings_of(kind, folder, "x <far><in><out>", tmp_path, **more)
    with pytest.raises(ValueError) as e:
        run(bad)
    text = str(e.value)
    assert text.startswith("The data holds token ids outside 0 to 342, the rows of the model's embedding: ")
    assert "343 ('<out>'), 344 ('<far>') (the tokenizer has 345)" in text
    assert "--new_tokens" in text
    assert not (tmp_path / "out" / "metrics.csv").exists()
    (tmp_path / "fine").mkdir()
    run(settings_of(kind, folder, "x <in><rows><of>", tmp_path / "fine", **more))  # those it has rows for are no fault


def test_the_remedy_is_one(folder: Path, tmp_path: Path) -> None:
    run(settings_of("full", folder, "x <out>", tmp_path, new_tokens=("<out>",)))
    llm = LLM.load(tmp_path / "out" / "final")
    assert llm.config.vocab_size == ROWS + 1
    assert llm.generate("<out>", max_new_tokens=1, return_ids=True, ignore_eos=True)


def test_prompts_without_a_row(folder: Path) -> None:
    llm = LLM.load(folder)
    for ask in (llm.generate, lambda text: llm.chat([{"role": "user", "content": text}])):
        with pytest.raises(ValueError, match=r"the prompt holds token ids outside 0 to 342.*343 \('<out>'\)\n") as e:
            ask("a <out>")
        assert "The tokenizer has 345 tokens: use the model's own tokenizer" in str(e.value)
    assert isinstance(llm.generate("a <of>", max_new_tokens=1), str)
    with pytest.raises(ValueError, match="rows of the model's embedding: 400, 401, 402, 403, 404 and 2 more"):
        tiny.shared().generate(range(400, 407))


def test_samples_are_looked_at_before_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 holds token ids outside.*344 \('<far>'\)"):
        run(settings_of("lora", folder, "x", tmp_path, train=dict(samples=("ok", "<far>"))))
