"""Trained tokenizers: read alike by litlm, transformers and tokenizers, split by the pattern, the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import regex
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from litlm.data.prepare import prepare
from litlm.data.train_tokenizer import PATTERN, train_tokenizer, train_tokenizer_command
from litlm.settings import PrepareCommand, TrainTokenizerCommand
from litlm.tokenizer import Tokenizer

SOURCES = [
    str(Path(os.__file__).parent / name)
    for name in ("argparse.py", "heapq.py", "json", "_pydecimal.py", "tarfile.py", "typing.py")
]
ODD = [
    "", " ", "\n\n", "Hello world", "don't DON'T we'll I'M", "x=12345.678e-9", "½ ² ٣٤٥ 一二三", "naïve e\u0301 Å",
    "你好，世界！", "👩‍👩‍👧 🏳️‍🌈", "\u200d\ufeff\u00a0\u3000x\u2028y", "a\x00b\x7f", "\r\n\r\n  \r\nend\r", "  a  b   ",
    "def f(x):\n        return  x**2\n\n\n", "<|im_start|>user\nHi<|im_end|><|endoftext|>", "1234567 12 1 0001",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tokenizer"
    made = train_tokenizer(TrainTokenizerCommand(data=tuple(SOURCES), out_dir=str(out), vocab_size=1000))
    assert (made.vocab_size, made.held_out, made.folder) == (1000, True, out)
    return out


def test_litlm_and_transformers_agree(trained: Path) -> None:
    ours = Tokenizer.from_dir(trained)
    assert (ours.vocab_size, ours.eos_id, ours.eos_ids, ours.prefix_ids) == (1000, 0, (0,), ())
    samples = [*ODD, Path(SOURCES[1]).read_text()]
    for theirs in (AutoTokenizer.from_pretrained(trained), PreTrainedTokenizerFast.from_pretrained(trained)):
        assert (len(theirs), theirs.eos_token) == (1000, "<|endoftext|>")
        for text in samples:
            ids = ours.encode(text)
            assert ids == theirs(text)["input_ids"], text
            assert ours.decode(ids) == theirs.decode(ids) == text
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [ours.token_to_id(name) for name in special] == [0, 1, 2]
    assert ours.special_ids == {0, 1, 2}
    assert ours.decode(ours.encode(ODD[-2]), skip_special_tokens=True) == "user\nHi"


def test_no_token_reaches_over_what_the_pattern_splits(trained: Path) -> None:
    ours = Tokenizer.from_dir(trained)
    for text in [*(t for t in ODD if "<|" not in t), Path(SOURCES[1]).read_text()]:
        pieces = regex.findall(PATTERN, text)
        assert "".join(pieces) == text
        assert ours.encode(text) == [token for piece in pieces for token in ours.encode(piece)]
    words = [ours.decode([token]) for token in range(1000)]
    assert max(sum(c.isdigit() for c in word) for word in words[3:]) <= 3
    assert regex.findall(PATTERN, "I'LL pay 1234567 (no)…\n\n  x") == [
        "I", "'LL", " pay", " ", "123", "456", "7", " (", "no", ")…\n\n", " ", " x",
    ]  # fmt: skip
    merged = sum(len(word) > 1 for word in words)
    assert merged > 600


def test_training_again_gives_the_same_file(trained: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from litlm.data.train_tokenizer import train_tokenizer; from litlm.settings import "
        "TrainTokenizerCommand\n"
        "train_tokenizer(TrainTokenizerCommand(data=tuple(sys.argv[2:]), out_dir=sys.argv[1], vocab_size=1000))"
    )
    env = os.environ | {"TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "5"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t"), *SOURCES], env=env, check=True, timeout=600)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "t" / name).read_bytes() == (trained / name).read_bytes()


def test_bytes_per_token_and_max_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the théme of the thing is the théory. " * 20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.png").write_bytes(b"\0")
    made = train_tokenizer(
        TrainTokenizerCommand(
            data=(str(tmp_path),), out_dir=str(tmp_path / "all"), vocab_size=300, special_tokens=("</s>",)
        )
    )
    ids = Tokenizer.from_dir(tmp_path / "all").encode(text)
    assert made.bytes_per_token == pytest.approx(len(text.encode()) / len(ids))
    assert (made.bytes_read, made.held_out, made.skipped) == (len(text.encode()), False, 1)

    limit = text.encode().index("é".encode()) + 1  # in the middle of a character
    settings = TrainTokenizerCommand(
        data=(str(tmp_path / "a.txt"),), out_dir=str(tmp_path / "few"), vocab_size=5000, max_bytes=limit
    )
    train_tokenizer_command(settings)
    told = capsys.readouterr().out
    assert f"trained on {limit} bytes" in told
    assert "vocab_size=5,000 was not reached" in told
    few = Tokenizer.from_dir(tmp_path / "few")
    assert few.token_to_id("th") is not None
    assert few.token_to_id("is") is None  # comes after the limit
    assert told.splitlines()[-1] == (
        f"Go on with: litlm prepare --data {tmp_path / 'a.txt'} --tokenizer {tmp_path / 'few'} --out_dir tokens"
    )


def test_what_comes_next_reads_the_same_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "a b.jsonl", tmp_path / "my tokenizer"
    file.write_text(json.dumps({"body": "this is it " * 50}) + "\n")
    train_tokenizer_command(
        TrainTokenizerCommand(data=(str(file),), out_dir=str(out), vocab_size=300, text_key="body", split="test")
    )
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"Go on with: litlm prepare --data '{file}' --split test --text_key body --tokenizer '{out}' --out_dir tokens"
    )


def test_held_out_text_is_not_learned(tmp_path: Path) -> None:
    lines = [f"{'common word ' * 600}\n"] * 63 + ["zqzq " * 1500] + ["common word\n"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    out = tmp_path / "t"
    made = train_tokenizer(TrainTokenizerCommand(data=(str(tmp_path / "a.jsonl"),), out_dir=str(out), vocab_size=300))
    tokenizer = Tokenizer.from_dir(out)
    assert tokenizer.token_to_id("Ġword") is not None
    assert tokenizer.token_to_id("zq") is None
    assert made.held_out
    assert made.bytes_per_token == pytest.approx(1.0)


def test_trained_tokenizers_prepare_text(trained: Path, tmp_path: Path) -> None:
    done = prepare(PrepareCommand(data=(SOURCES[1],), tokenizer=str(trained / "tokenizer.json"), out_dir=str(tmp_path)))
    assert done.tokens == len(Tokenizer.from_dir(trained).encode(Path(SOURCES[1]).read_text())) + 1


def test_a_runs_folder_is_refused(tmp_path: Path) -> None:
    for name in ("metrics.csv", "settings.yaml"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is the folder of a training run; name another out_dir"):
        train_tokenizer(TrainTokenizerCommand(data=(SOURCES[0],), out_dir=str(tmp_path)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "settings.yaml"]


def test_bad_settings_are_named(trained: Path, tmp_path: Path) -> None:
    before = (trained / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="already holds tokenizer.json; name another folder") as e:
        train_tokenizer(TrainTokenizerCommand(data=(SOURCES[0],), out_dir=str(trained), special_tokens=()))
    assert "special_tokens is empty" in str(e.value)
    assert (trained / "tokenizer.json").read_bytes() == before
    with pytest.raises(ValueError, match="distinct, non-empty texts"):
        train_tokenizer(TrainTokenizerCommand(data=(SOURCES[0],), out_dir=str(tmp_path), special_tokens=("a", "a")))
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ValueError, match=r"There is no text in .*none\.txt"):
        train_tokenizer(TrainTokenizerCommand(data=(str(tmp_path / "none.txt"),), out_dir=str(tmp_path / "t")))
    assert not (tmp_path / "t").exists()
