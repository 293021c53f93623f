"""Prepared text as rows to pretrain on, compared with plain slices of the tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from litlm.context import Causal, Packed
from litlm.data.base import IGNORE
from litlm.data.prepare import prepare
from litlm.data.shards import TextDataset, load_text, prepared_tokenizer
from litlm.settings import PrepareCommand, TextData
from litlm.tokenizer import Tokenizer

EOS = 2  # <|im_end|> of the tiny tokenizer


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["the", "quick", "abba", "fox", "naïve", "東京", "12", "France"]
    return [" ".join(rng.choice(words, rng.integers(0, 9) + (i % 7 == 0) * 20)) + "." for i in range(count)]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents), encoding="utf-8")
    return path


def prepared(folder: Path, documents: list[str], **options: Any) -> list[int]:
    """A prepared folder; its tokens, from the tokenizer alone."""
    source = write(folder.with_suffix(".jsonl"), documents)
    prepare(PrepareCommand(data=(str(source),), tokenizer=str(tiny.folder()), out_dir=str(folder), **options))
    tokenizer = Tokenizer.from_dir(tiny.folder())
    return [token for t in documents for token in [*tokenizer.encode(t), EOS]]


@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 10_000])
@pytest.mark.parametrize("max_len", [1, 5, 32])
def test_rows_are_slices_of_the_tokens(shard_tokens: int, max_len: int, tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "p", texts(12), shard_tokens=shard_tokens)
    data = TextDataset(tmp_path / "p", max_len)
    assert data.tokens == len(tokens)
    n = len(data)
    assert n * max_len + 1 <= len(tokens) < (n + 1) * max_len + 1
    batches = data.batches(range(n), 3)
    assert [len(b.tokens) for b in batches] == [3] * (n // 3) + [n % 3] * (n % 3 > 0)
    inputs, targets = (torch.cat([getattr(b, name) for b in batches]) for name in ("tokens", "targets"))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.flatten().tolist() == tokens[: n * max_len]
    assert targets.flatten().tolist() == tokens[1 : n * max_len + 1]
    assert all(isinstance(b.context(), Causal) for b in batches)
    picked = data.batches([n - 1, 0], 1)
    assert [b.tokens.tolist() for b in picked] == [[tokens[(n - 1) * max_len : n * max_len]], [tokens[:max_len]]]
    with pytest.raises(IndexError):
        data.row(n)


@pytest.mark.parametrize("max_len", [1, 6, 40])
def test_documents_apart(max_len: int, tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "p", texts(30, seed=1), shard_tokens=50)
    data = TextDataset(tmp_path / "p", max_len, document_mask=True)
    (batch,) = data.batches(range(len(data)), len(data))
    several = 0
    for row in range(len(data)):
        held = tokens[row * max_len : (row + 1) * max_len + 1]
        documents: list[list[int]] = [[]]
        targets = []
        for token, following in zip(held, held[1:], strict=False):
            documents[-1].append(token)
            targets.append(IGNORE if token == EOS else following)
            if token == EOS:
                documents.append([])
        assert batch.lengths[row] == tuple(len(d) for d in documents if d)
        assert batch.tokens[row].tolist() == held[:-1]
        assert batch.targets[row].tolist() == targets
        several += len(batch.lengths[row]) > 1
    assert (several > 0) == isinstance(batch.context(), Packed) == (max_len > 1)
    assert batch.n_tokens == batch.tokens.numel()


@pytest.mark.parametrize(("fraction", "held"), [(0.0, 0), (0.001, 1), (0.25, 10), (0.99, 38)])
def test_split_sets_whole_rows_aside(fraction: float, held: int, tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "p", texts(40), max_tokens=39 * 8 + 1)
    data = TextDataset(tmp_path / "p", 8)
    assert len(tokens) > data.tokens == 313
    assert len(data) == 39
    train, val = data.split(fraction, seed=3)
    rows = lambda d: [tuple(d.row(i)) for i in range(len(d))] if d else []  # noqa: E731
    assert len(rows(val)) == held
    numbers = {tuple(tokens[i * 8 : i * 8 + 9]): i for i in range(39)}
    assert len(numbers) == 39
    places = [[numbers[row] for row in rows(part)] for part in (train, val)]
    assert sorted(places[0] + places[1]) == list(range(39))
    again, other = data.split(fraction, seed=3)[1], data.split(fraction, seed=4)[1]
    assert rows(again) == rows(val)
    if held == 10:
        assert rows(other) != rows(val)
        inner, outer = train.split(0.5, seed=0)
        assert outer is not None
        assert sorted(rows(inner) + rows(outer)) == sorted(rows(train))


def test_folders_follow_each_other(tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "a", texts(5), shard_tokens=9) + prepared(tmp_path / "b", texts(6, seed=5))
    data = TextDataset([tmp_path / "a", tmp_path / "b"], 11)
    found = [t for b in data.batches(range(len(data)), 2) for t in b.tokens.flatten().tolist()]
    assert found == tokens[: len(data) * 11]
    assert data.tokens == len(tokens)


def test_what_is_damaged_or_too_small_is_said(tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "p", texts(9), shard_tokens=40)
    n = len(tokens)
    assert len(TextDataset(tmp_path / "p", n - 1)) == 1
    assert TextDataset(tmp_path / "p", n - 1).split(0.5, 0)[1] is None
    with pytest.raises(ValueError, match=f"{n} tokens are too few for one row of max_len={n} .*; {n + 1} are needed"):
        TextDataset(tmp_path / "p", n)
    with pytest.raises(ValueError, match=r"nowhere/index\.json can't be read"):
        TextDataset(tmp_path / "nowhere", 4)

    shard, index = tmp_path / "p" / "shard-00001.bin", tmp_path / "p" / "index.json"
    good = shard.read_bytes()
    shard.write_bytes(good[:6] + b"\xff\xff" + good[8:])
    with pytest.raises(ValueError, match="row 10 holds the token 65535, and the vocabulary has"):
        TextDataset(tmp_path / "p", 4).batches([9, 10], 2)
    shard.write_bytes(good[:-1])
    (tmp_path / "p" / "shard-00000.bin").unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.bin is missing\n.*shard-00001\.bin has 79 bytes.*says 80"):
        TextDataset(tmp_path / "p", 4)
    state = json.loads(index.read_text())
    index.write_text(json.dumps(state | {"next": [0, 3, 1]}))
    with pytest.raises(ValueError, match=r"is incomplete \(\d+ tokens so far\); run the same"):
        TextDataset(tmp_path / "p", 4)
    index.write_text(json.dumps(state | {"format": "litlm tokens 9"}))
    with pytest.raises(ValueError, match="has the format 'litlm tokens 9', this litlm reads"):
        TextDataset(tmp_path / "p", 4)
    index.write_text("{")
    with pytest.raises(ValueError, match="can't be read as the index"):
        TextDataset(tmp_path / "p", 4)


def test_text_is_prepared_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny.folder())
    source = write(tmp_path / "d.jsonl", texts(50))
    other = write(tmp_path / "v.jsonl", ["held out text. " * 9])
    settings = TextData(path=(str(source),), val_fraction=0.1, document_mask=True)
    train, val = load_text(settings, tokenizer, 16, tmp_path / "cache", seed=1)
    assert val is not None
    assert len(val) == round(0.1 * (len(train) + len(val)))
    assert train.document_mask
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.bin")}
    assert len(files) == 1
    again, _ = load_text(settings, tokenizer, 16, tmp_path / "cache", seed=1)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.bin")} == files
    assert np.array_equal(again.row(0), train.row(0))
    write(source, texts(50, seed=9))
    changed, _ = load_text(settings, tokenizer, 16, tmp_path / "cache", seed=1)
    assert not np.array_equal(changed.row(0), train.row(0))
    assert len(list((tmp_path / "cache").rglob("*.bin"))) == 2

    settings = TextData(path=(str(source),), val_path=(str(other),))
    train, val = load_text(settings, tokenizer, 16, tmp_path / "cache")
    assert val is not None
    assert (val.tokens - 1) // 16 == len(val)
    assert tokenizer.decode(val.row(0)) == ("held out text. " * 9)[: len(tokenizer.decode(val.row(0)))]
    assert len(train) == (train.tokens - 1) // 16


def test_a_broken_index_is_said(tmp_path: Path) -> None:
    prepared(tmp_path / "p", texts(9))
    (tmp_path / "p" / "index.json").write_text("{")
    tokenizer, data = Tokenizer.from_dir(tiny.folder()), TextData(path=str(tmp_path / "p"))
    with pytest.raises(ValueError, match=r"p/index.json can't be read as the index of .*; prepare it again"):
        load_text(data, tokenizer, 8, tmp_path / "cache")


def test_a_prepared_folder_knows_its_tokenizer(tmp_path: Path) -> None:
    prepared(tmp_path / "p", texts(9))
    mine, source = Tokenizer.from_dir(tiny.folder()), tmp_path / "p.jsonl"
    settings = TextData(path=(str(tmp_path / "p"),))
    found = prepared_tokenizer(settings)
    assert found is not None
    assert found.encode("naïve 東京 x") == mine.encode("naïve 東京 x")
    assert prepared_tokenizer(TextData(path=(str(source),))) is None
    train, val = load_text(settings, mine, 8, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert train.folders == (tmp_path / "p",)
    mixed = TextData(path=(str(tmp_path / "p"), str(source)))
    with pytest.raises(ValueError, match=r"p is prepared, .*p\.jsonl is not; prepare all or none"):
        load_text(mixed, mine, 8, tmp_path / "cache")
    index = tmp_path / "p" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"tokenizer": "another"}))
    with pytest.raises(ValueError, match="was prepared with another tokenizer"):
        load_text(settings, mine, 8, tmp_path / "cache")
    prepared(tmp_path / "q", texts(9))
    with pytest.raises(ValueError, match=r"several tokenizers can't be mixed \(tokenizer in .*another"):
        TextDataset([tmp_path / "p", tmp_path / "q"], 4)


def test_writing_that_are_no_text_are_noted(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text " * 20)
    (tmp_path / "docs" / "b.png").write_bytes(b"\0")
    train, _ = load_text(TextData(path=(str(tmp_path / "docs"),)), Tokenizer.from_dir(tiny.folder()), 8, tmp_path / "c")
    assert train.notes == ["1 files were skipped because they are not UTF-8 text: docs/b.png"]
