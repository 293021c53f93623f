"""Text to shards: what is read, that the tokens are the tokenizers library's, and that a killed run goes on exactly."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tiny
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from litlm.data import prepare as module
from litlm.data import text
from litlm.data.prepare import load_tokenizer, prepare, prepare_command, splits_cleanly, tokenizer_fingerprint
from litlm.data.text import documents
from litlm.io.lock import locked
from litlm.settings import PrepareCommand
from litlm.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox.\nJumps over\n\nthe lazy dog.\n", "a", "café naïve 東京 🙂\r\nlines\r\n", "  space\tand tabs ",
    "x = 12345\nfor i in range(10):\n    print(i)\n", "ends <|im_end|> inside", "\u2028 odd \x85 lines \x0c here",
]  # fmt: skip


def settings(data: Any, out: Path, **options: Any) -> PrepareCommand:
    return PrepareCommand(**(dict(data=data, tokenizer=str(tiny.folder()), out_dir=str(out)) | options))


def stored(folder: Path) -> np.ndarray:
    """The stream, read with the index alone."""
    index = json.loads((folder / "index.json").read_text())
    files = [
        np.fromfile(folder / shard["file"], "<u2" if index["dtype"] == "uint16" else "<u4") for shard in index["shards"]
    ]
    assert [len(file) for file in files] == [shard["tokens"] for shard in index["shards"]]
    assert index["tokens"] == sum(map(len, files))
    assert sorted(p.name for p in folder.glob("shard-*")) == [shard["file"] for shard in index["shards"]]
    return np.concatenate(files)


def expected(texts: list[str], folder: Path | None = None, eos: str = "<|im_end|>") -> list[int]:
    core = tokenizers.Tokenizer.from_file(str((folder or tiny.folder()) / "tokenizer.json"))
    return [token for text in texts for token in [*core.encode(text).ids, core.token_to_id(eos)]]


def jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, key: t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- what is read -------------------------------------------------------------------------------------------------
def make_folder(path: Path) -> list[tuple[str, str]]:
    """A folder of everything; what it holds, in order."""
    files: dict[str, bytes] = {
        "a.txt": b"\xef\xbb\xbf" + TEXTS[0].encode(),
        "b/c.py": TEXTS[4].encode(),
        "b/deep/readme": TEXTS[2].encode(),
        "b.md": TEXTS[3].encode(),
        "empty.txt": b"",
        "image.png": b"\x89PNG\r\n\0\0 text",
        "latin.txt": "é".encode("latin-1"),
        "no-gzip.gz": b"plain",
        "notes.txt.gz": gzip.compress(TEXTS[5].encode()),
        "package.json": b'{"name": "x",\n "text": 1}'.replace(b'"text"', b'"version"'),
        "records.json": json.dumps([{"text": TEXTS[6]}, {"text": ""}, {"text": None}, {"text": "é"}]).encode(),
        "records.jsonl.gz": gzip.compress(b'\n{"text": "one"}\r\n  \n{"text": "two", "id": 3}'),
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "__pycache__/x.txt": b"hidden",
    }
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    where = lambda name, more="": f"{path / name}{more}"  # noqa: E731
    return [
        (where("a.txt"), TEXTS[0]), (where("b.md"), TEXTS[3]), (where("b/c.py"), TEXTS[4]),
        (where("b/deep/readme"), TEXTS[2]), (where("notes.txt.gz"), TEXTS[5]),
        (where("package.json"), files["package.json"].decode()), (where("records.json", ", record 1"), TEXTS[6]),
        (where("records.json", ", record 4"), "é"), (where("records.jsonl.gz", ", line 2"), "one"),
        (where("records.jsonl.gz", ", line 4"), "two"),
    ]  # fmt: skip


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    holds = make_folder(tmp_path / "docs")
    assert list(documents([str(tmp_path / "docs")])) == holds
    done = prepare(settings((str(tmp_path / "docs"),), tmp_path / "out", shard_tokens=50))
    texts = [text for _, text in holds]
    assert stored(tmp_path / "out").tolist() == expected(texts)
    assert done.skipped == ("docs/image.png", "docs/latin.txt", "docs/no-gzip.gz")
    assert (done.documents, done.tokens, done.dtype) == (len(texts), len(expected(texts)), "uint16")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert {s["tokens"] for s in index["shards"][:-1]} == {50}
    assert sum(s["documents"] for s in index["shards"]) == len(texts)
    again = Tokenizer.from_dir(tmp_path / "out")
    assert (tokenizer_fingerprint(again), index["vocab_size"], index["eos_id"]) == (
        index["tokenizer"],
        again.vocab_size,
        2,
    )
    assert again.decode(stored(tmp_path / "out")) == "".join(text + "<|im_end|>" for text in texts)


def test_the_output_inside_the_data_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    for _ in range(2):
        assert prepare(settings(str(tmp_path), tmp_path / "out")).documents == 1
    assert stored(tmp_path / "out").tolist() == expected(["abc"])


def test_prepared_tokens_inside_the_data_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "corp" / "docs").mkdir(parents=True)
    (tmp_path / "corp" / "docs" / "a.txt").write_text("abc")
    corp, inner = str(tmp_path / "corp"), tmp_path / "corp" / "data" / "t1"
    prepare(settings(corp, inner))
    assert prepare(settings(corp, inner)).documents == 1
    message = "corp holds prepared tokens in data/t1; pass that folder, or texts without it"
    for sources in (corp, str(tmp_path / "corp" / "data")):
        with pytest.raises(ValueError, match=message.replace("data/t1", "(data/)?t1").replace("corp ", "(corp|data) ")):
            list(documents([sources]))
    with pytest.raises(ValueError, match=message):
        prepare(settings(corp, tmp_path / "out"))


@pytest.mark.parametrize("form", ["jsonl", "list", "lines in .json", "one"])
def test_named_record_files(form: str, tmp_path: Path) -> None:
    records = [{"id": i, "body": t} for i, t in enumerate(TEXTS[:1] if form == "one" else TEXTS)]
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    content = {"list": json.dumps(records), "one": json.dumps(records[0], indent=2)}.get(form, lines)
    path = tmp_path / ("d.jsonl" if form == "jsonl" else "d.json")
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert [text for _, text in documents([str(path)], text_key="body")] == TEXTS[: len(records)]


def test_half_characters_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a \\ud83d\\ude42 b"}\n{"text": "lone \\ud83d x"}')
    assert [t for _, t in documents([str(path)])] == ["a 🙂 b", "lone \ufffd x"]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [f"{t} {i}" for i in range(100) for t in TEXTS]
    table = pyarrow.table({"id": list(range(len(texts))), "text": [*texts[:-1], None]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=97)
    found = list(documents([str(tmp_path)]))
    assert [t for _, t in found] == texts[:-1]
    assert found[300][0] == f"{tmp_path / 'd.parquet'}, row 301"
    prepare(settings(str(tmp_path / "d.parquet"), tmp_path / "out", shard_tokens=1000))
    assert stored(tmp_path / "out").tolist() == expected(texts[:-1])
    with pytest.raises(ValueError, match=r"d\.parquet: no field 'body' among id, text.*--text_key"):
        list(documents([str(tmp_path / "d.parquet")], text_key="body"))
    with pytest.raises(ValueError, match=r"row 1: the field 'id' is a int, not text"):
        list(documents([str(tmp_path / "d.parquet")], text_key="id"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ValueError, match="bad.parquet is no valid parquet file"):
        list(documents([str(tmp_path / "bad.parquet")]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install pyarrow"):
        list(documents([str(tmp_path / "d.parquet")]))


def test_a_hub_dataset_is_streamed_at_one_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> Any:
        asked.append((name, subset, options))
        return datasets.Dataset.from_list([{"text": t} for t in TEXTS]).to_iterable_dataset()

    class Info:
        sha = "abc123"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda name: Info())
    prepare(settings("org/name:small", tmp_path / "out", split="validation", workers=1, shard_tokens=31))
    assert stored(tmp_path / "out").tolist() == expected(TEXTS)
    assert asked == [("org/name", "small", {"split": "validation", "revision": "abc123", "streaming": True})]

    def offline(*_: Any) -> Any:
        raise AssertionError("what is complete needs no hub")

    monkeypatch.setattr(huggingface_hub, "dataset_info", offline)
    done = prepare(settings("org/name:small", tmp_path / "out", split="validation", shard_tokens=31))
    assert done.written == 0
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda name: Info())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"org/name: there is no such file.*pip install datasets"):
        list(documents(["org/name"]))


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    code = (
        "from litlm.data.prepare import prepare; from litlm.data.text import documents\n"
        "from litlm.settings import PrepareCommand\nimport sys\n"
        "for run in (lambda: list(documents(['org/name'])), lambda: prepare(PrepareCommand(data='org/name',"
        "tokenizer=sys.argv[1], out_dir=sys.argv[2]))):\n"
        "    try: run()\n"
        "    except ValueError as e: print(e)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tiny.folder()), str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("org/name: the hub dataset (split 'train') can't be read" in line for line in lines)


# --- long documents -----------------------------------------------------------------------------------------------
def byte_level(path: Path, pattern: str | None) -> Tokenizer:
    """With GPT-2's own splitting, or another pattern's."""
    core = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*split, level])  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([Path(text.__file__).read_text()], trainer)
    return saved(core, path)


def saved(core: tokenizers.Tokenizer, path: Path, **config: str) -> Tokenizer:
    path.mkdir()
    core.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} | config))
    return Tokenizer.from_dir(path)


@pytest.mark.parametrize(
    "pattern", [None, r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
)
def test_cut_documents_have_the_tokens_of_the_whole(
    pattern: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_SIZE", 200)
    monkeypatch.setattr(text, "_BLOCK_SIZE", 333)  # bytes, so that reads end inside characters
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 500)
    tokenizer = byte_level(tmp_path / "tokenizer", pattern)
    assert splits_cleanly(tokenizer)
    long = (Path(text.__file__).read_text() + "\n" + "".join(TEXTS[:5])) * 2
    source = tmp_path / "docs"
    source.mkdir()
    (source / "a.txt").write_bytes(long.encode())
    (source / "b.txt.gz").write_bytes(gzip.compress(long[::-1].encode()))
    jsonl(source / "c.jsonl", [long, "short"])
    (source / "late.txt").write_bytes(b"x\n" * 2000 + b"\xff")  # found not to be text before any of it is used
    parts = [
        p for _, _, p in text.read_chunks(text.find_sources([str(source)], text_key="text", split=""), skipped=set())
    ]
    assert len(parts) > 300
    done = prepare(settings(str(source), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer"), shard_tokens=999))
    whole = [long, long[::-1], long, "short"]
    assert stored(tmp_path / "out").tolist() == expected(whole, tmp_path / "tokenizer", "</s>")
    assert (done.documents, done.skipped) == (4, ("docs/late.txt",))
    assert [t for _, t in documents([str(source)])] == whole


def test_tokenizers_that_join_text_get_whole_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK_SIZE", 20)
    core = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "▁abcdeno;T\nwthr.")], 0)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    core.decoder = decoders.Metaspace()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])  # type: ignore[assignment]
    core.add_special_tokens(["</s>"])
    tokenizer = saved(core, tmp_path / "tokenizer")
    assert not splits_cleanly(tokenizer)
    words = "abc de\nabc now there\n" * 20
    (tmp_path / "d.txt").write_text(words)
    prepare(settings(str(tmp_path / "d.txt"), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer")))
    reference = core.encode(words).ids
    assert reference[0] == 0  # what the tokenizer puts before a text, as for a BOS
    assert stored(tmp_path / "out").tolist() == [*reference, 1]


# --- what is written ----------------------------------------------------------------------------------------------
def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(70_000)} | {"</s>": 70_000}
    core = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    core.add_special_tokens(["</s>"])
    saved(core, tmp_path / "tokenizer")
    jsonl(tmp_path / "d.jsonl", ["w69999 w1 w65536", "w65535"])
    done = prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer")))
    assert done.dtype == "uint32"
    assert stored(tmp_path / "out").tolist() == [69999, 1, 65536, 70000, 65535, 70000]


@pytest.mark.parametrize("limit", [1, 40, 50, 77, 10_000])
def test_max_tokens_is_exact(limit: int, tmp_path: Path) -> None:
    jsonl(tmp_path / "d.jsonl", TEXTS)
    done = prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / "out", max_tokens=limit, shard_tokens=20))
    tokens = expected(TEXTS)
    assert stored(tmp_path / "out").tolist() == tokens[:limit]
    before = np.cumsum([len(expected([t])) for t in TEXTS])
    assert (done.tokens, done.documents) == (min(limit, len(tokens)), int((before <= limit).sum()))


def test_the_number_of_threads_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 300)
    jsonl(tmp_path / "d.jsonl", [f"{t} {i}" for i in range(30) for t in TEXTS])
    for workers in (1, 2, 5):
        prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / f"{workers}", shard_tokens=700, workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")
    assert len(contents(tmp_path / "1")) > 8


@pytest.mark.parametrize("setting", [None, "true", "false"])
def test_batches_are_encoded_at_once_and_read_only_a_little_ahead(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, workers, read, most = "TOKENIZERS_PARALLELISM", 3, [0], [0]
    monkeypatch.delenv(name, raising=False)
    if setting is not None:
        monkeypatch.setenv(name, setting)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1)  # one text is a batch
    jsonl(tmp_path / "d.jsonl", TEXTS * 10)
    read_chunks, write = text.read_chunks, module._ShardWriter.write
    meeting, first = threading.Barrier(workers, timeout=300), list(range(workers))

    class Watched(Tokenizer):
        def encode_batch(self, *args: Any, **options: Any) -> Any:
            if first:
                first.pop()
                meeting.wait()  # passes if as many threads get here
            assert os.environ[name] == "false"
            return super().encode_batch(*args, **options)

    def counted(*args: Any, **options: Any) -> Any:
        for entry in read_chunks(*args, **options):
            read[0] += 1
            yield entry

    def watched(*args: Any) -> None:
        read[0] -= 1
        most[0] = max(most[0], read[0])
        write(*args)

    monkeypatch.setattr(text, "read_chunks", counted)
    monkeypatch.setattr(module._ShardWriter, "write", watched)
    tokenizer = Watched.from_dir(tiny.folder())
    prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / "out", workers=workers), tokenizer)
    assert stored(tmp_path / "out").tolist() == expected(TEXTS * 10)
    assert most[0] == 4 * workers - 1
    assert os.environ.get(name) == setting


def test_a_sentencepiece_model_in_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 2000)
    lines = Path(text.__file__).read_text().splitlines()
    model = io.BytesIO()
    options: Any = dict(vocab_size=400, model_type="bpe", byte_fallback=True, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(model.getvalue())
    texts = [*lines, *TEXTS, "\n".join(lines)] * 3
    source = jsonl(tmp_path / "d.jsonl", [line for line in texts if line])
    prepare(settings(str(source), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer"), workers=4))
    core = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    reference = [token for line in texts if line for token in [1, *core.encode(line), 2]]  # BOS and end token
    assert stored(tmp_path / "out").tolist() == reference


# --- going on -----------------------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
from litlm.data import prepare as module, text
from litlm.io.lock import locked
from litlm.settings import PrepareCommand

def main():
    data, tokenizer, out, workers, name, left = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5], [int(sys.argv[6])]
    text.CHUNK_SIZE, text._BLOCK_SIZE, module._BATCH_CHARACTERS = 200, 300, 300
    def event(what):
        left[0] -= what == name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def watched(function, name):
        def run(*args):
            event(f"before {name}")
            result = function(*args)
            event(f"after {name}")
            return result
        return run
    module._write_index = watched(module._write_index, "index")
    module._ShardWriter.write = watched(module._ShardWriter.write, "write")
    module.os = type("os", (), {**vars(os), "replace": staticmethod(watched(os.replace, "rename"))})
    module.prepare(PrepareCommand(
        data=data, tokenizer=tokenizer, out_dir=out, workers=workers, shard_tokens=600, max_tokens=7000))

if __name__ == "__main__":
    main()
"""
MOMENTS = [  # threads, the moment at which the run is killed, how many shards are indexed then
    (1, "before index", 1, None), (1, "after index", 1, 0), (1, "after write", 2, 0), (1, "before rename", 1, 0),
    (1, "after rename", 1, 0), (1, "after index", 3, 2), (2, "before rename", 2, 3), (2, "after rename", 1, 3),
    (1, "before index", 4, 5), (1, "before write", 8, 7),
]  # fmt: skip


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    for number in range(5):
        jsonl(source / f"{number}.jsonl", [f"{t} {i}" for i in range(8) for t in TEXTS])
        (source / f"{number}.bin").write_bytes(b"\0")
        (source / f"{number}.txt").write_text("".join(TEXTS[:5]) * 10)
    monkeypatch.setattr(text, "CHUNK_SIZE", 200)
    options = dict(shard_tokens=600, max_tokens=7000)
    prepare(settings(str(source), tmp_path / "whole", workers=1, **options))
    script, out = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(KILLED)
    for workers, moment, count, shards in MOMENTS:
        command = [sys.executable, script, source, tiny.folder(), out, workers, moment, count]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
        assert done.returncode == -9, done.stderr
        assert (out / "index.json").is_file() == (shards is not None)
        if shards is not None:
            assert len(json.loads((out / "index.json").read_text())["shards"]) >= shards, moment
    done = prepare(settings(str(source), out, workers=1, **options))
    assert 0 < done.written < done.tokens == 7000
    assert contents(out) == contents(tmp_path / "whole")
    assert prepare(settings(str(source), out, **options)).written == 0
    texts = [t for _, t in documents([str(source)])]
    assert stored(out).tolist() == expected(texts)[:7000]


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "d.jsonl", TEXTS), tmp_path / "out"
    with locked(out), pytest.raises(ValueError, match=rf"out_dir='{out}' is being written by .*: pid {os.getpid()} on"):
        prepare(settings(str(source), out))
    assert prepare(settings(str(source), out)).documents == len(TEXTS)
    assert stored(out).tolist() == expected(TEXTS)
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("where", ["index", "tokenizer", "shard", "second shard", "end of a shard"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room again the run goes on, and comes out the same."""
    source, out = jsonl(tmp_path / "d.jsonl", TEXTS), tmp_path / "out"
    options = dict(shard_tokens=100, workers=1)
    whole = contents(prepare(settings(str(source), tmp_path / "whole", **options)).folder)
    name = {"index": "index.json", "tokenizer": "tokenizer_config.json", "second shard": "shard-00001.bin"}.get(
        where, "shard-00000.bin"
    )
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        """A file on a full disk: what it is given is not there when it is to be written out."""

        def __init__(self, path: Any, mode: str) -> None:
            self.name, self.file = path, open(path, mode)  # noqa: SIM115

        def write(self, data: bytes) -> None:
            if where != "end of a shard":
                raise full

        def flush(self) -> None:
            self.file.close()
            raise full

        close = flush

    def opened(path: Any, mode: str) -> Any:
        return Full(path, mode) if f"{name}.part" in str(path) else open(path, mode)

    def text(path: Path, data: str, **_: Any) -> int:
        if path.name == name:
            raise full
        return path.write_bytes(data.encode())

    def data(path: Path, data: bytes) -> int:
        if path.name == name:
            raise full
        with path.open("wb") as f:
            return f.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", opened, raising=False)
        patch.setattr(Path, "write_text", text)
        patch.setattr(Path, "write_bytes", data)
        with pytest.raises(ValueError, match=rf"{out / name} could not be written \(No space left on device\)"):
            prepare(settings(str(source), out, **options))
    left = {p.name for p in out.iterdir()} if out.exists() else set()
    assert not [n for n in left if n.startswith(".") or n.endswith((".part", ".tmp"))]
    if where == "index":
        assert not out.exists()
    assert contents(prepare(settings(str(source), out, **options)).folder) == whole


def test_what_was_read_ahead_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, data in {"a.txt": b"abc", "b.bin": b"\0", "c.txt": b"def", "d.bin": b"\0", "e.txt": b"x"}.items():
        (tmp_path / "docs" / name).write_bytes(data)
    limit = len(expected(["abc", "def"]))
    done = prepare(settings(str(tmp_path / "docs"), tmp_path / "out", max_tokens=limit))
    assert (done.documents, done.skipped) == (2, ("docs/b.bin",))


def test_another_setting_is_refused_unless_overwritten(tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "d.jsonl", TEXTS), tmp_path / "out"
    prepare(settings(str(source), out, shard_tokens=20))
    before = contents(out)
    with pytest.raises(ValueError) as e:
        prepare(settings(str(source), out, shard_tokens=30, max_tokens=5, text_key="id"))
    for what in ("shard_tokens was 20, is now 30", "max_tokens was None, is now 5", "text_key was 'text', is now 'id'"):
        assert what in str(e.value)
    byte_level(tmp_path / "other", None)
    with pytest.raises(ValueError, match="tokenizer was '.*', is now '.*'\n.*vocab_size was .*--overwrite|--overwrite"):
        prepare(settings(str(source), out, shard_tokens=20, tokenizer=str(tmp_path / "other")))
    jsonl(source, TEXTS[:3])
    with pytest.raises(ValueError, match=r"data was .*d\.jsonl \(1 files, .*, is now .*d\.jsonl \(1 files"):
        prepare(settings(str(source), out, shard_tokens=20))
    assert contents(out) == before
    prepare(settings(str(source), out, shard_tokens=40, overwrite=True))
    assert stored(out).tolist() == expected(TEXTS[:3])


def test_a_folder_may_move(tmp_path: Path) -> None:
    make_folder(tmp_path / "docs")
    prepare(settings(str(tmp_path / "docs"), tmp_path / "out"))
    (tmp_path / "new").mkdir()
    (tmp_path / "docs").rename(tmp_path / "new" / "docs")
    assert prepare(settings(str(tmp_path / "new" / "docs"), tmp_path / "out")).written == 0


# --- errors -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", r"d\.jsonl, line 2: not valid JSON"),
        (
            '{"body": "x", "id": 1}',
            r"d\.jsonl, line 2: no field 'text' among body, id; .* --text_key \(litlm pretrain: --data.text_key\)",
        ),
        ('{"text": 5}', r"line 2: the field 'text' is a int, not text"),
        ('["x"]', r"line 2: a JSON list, where an object"),
        ('{"text": "a", "id": {"b": 1, "c": 2, "c": 2}}', r"d\.jsonl, line 2: has the key 'c' twice; keep one of them"),
        ("\udcff", r"line 2: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    content = f'{{"text": "fine"}}\n{line}\n'.encode(errors="surrogateescape")
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / "out"))
    jsonl(tmp_path / "d.jsonl", TEXTS)  # mended: nothing had been written that is in the way
    assert prepare(settings(str(tmp_path / "d.jsonl"), tmp_path / "out")).documents == len(TEXTS)


def test_sources_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text .*0xe9.*iconv"):
        list(documents([str(tmp_path / "latin.txt")]))
    with pytest.raises(ValueError) as e:
        list(documents([str(tmp_path / "empty"), "gone.txt", "data/gone.jsonl", "https://x.org/a/b"]))
    assert str(e.value).count("does not exist") == 3
    assert "empty is a folder without files" in str(e.value)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-50])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz can't be read"):
        list(documents([str(tmp_path / "cut.txt.gz")]))
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ValueError, match=r"There is no text in .*none\.txt"):
        prepare(settings(str(tmp_path / "none.txt"), tmp_path / "out"))


def test_folders_that_can_not_be_written(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", TEXTS)
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds other files \(tokenizer\.json"):
            prepare(settings(str(source), model, overwrite=overwrite))
    assert (model / "tokenizer.json").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file; name a folder"):
        prepare(settings(str(source), source))
    prepare(settings(str(source), tmp_path / "out", shard_tokens=20))
    with pytest.raises(ValueError, match="is prepared already; pass it to `litlm pretrain`"):
        prepare(settings(str(tmp_path / "out"), tmp_path / "again"))
    shard = tmp_path / "out" / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"shard-00001\.bin has 38 bytes, the index says 40"):
        prepare(settings(str(source), tmp_path / "out", shard_tokens=20))


def test_a_tokenizer_needs_an_end_token(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_file(str(tiny.folder() / "tokenizer.json"))
    (tmp_path / "t").mkdir()
    core.save(str(tmp_path / "t" / "tokenizer.json"))
    source = jsonl(tmp_path / "d.jsonl", TEXTS)
    with pytest.raises(ValueError, match="has no end token"):
        prepare(settings(str(source), tmp_path / "out", tokenizer=str(tmp_path / "t" / "tokenizer.json")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"is neither a \.gguf file nor called tokenizer\.json"):
        load_tokenizer(source)


def test_a_tokenizer_from_gguf_is_kept_with_the_tokens(smollm2_gguf: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", TEXTS)
    prepare(settings(str(source), tmp_path / "out", tokenizer=str(smollm2_gguf)))
    assert stored(tmp_path / "out").tolist() == expected(TEXTS, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (
        tokenizer_fingerprint(Tokenizer.from_dir(tmp_path / "out"))
        == index["tokenizer"]
        != tokenizer_fingerprint(load_tokenizer(tiny.folder()))
    )


def test_the_command_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "docs")
    prepare_command(settings(str(tmp_path / "docs"), tmp_path / "out"))
    prepare_command(settings(str(tmp_path / "docs"), tmp_path / "out"))
    told = capsys.readouterr().out
    assert told.count("tokens of 10 documents in 1 shard (uint16)") == 2
    assert (
        told.count(
            "3 files were skipped because they are not UTF-8 text: docs/image.png, docs/latin.txt, docs/no-gzip.gz\n"
        )
        == 2
    )
    assert told.count("Already complete.") == 1
    assert told.endswith(f"Go on with: litlm pretrain MODEL --data.path {tmp_path / 'out'}\n")
    prepare_command(settings(str(tmp_path / "docs"), tmp_path / "my out"))
    assert capsys.readouterr().out.endswith(f"--data.path '{tmp_path / 'my out'}'\n")


def test_bos_and_eos_that_a_text_has_are_not_doubled(tmp_path: Path) -> None:
    """Prepared documents are what transformers encodes, with one BOS in front and one end token behind."""
    import transformers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<s>", eos_token="</s>")))
    texts = ["ab", "<s>cd", "ef</s>", "<s>gh</s>", "<s>", "</s>", "i</s>j", "k<s>", "<s>" + "lm\n" * 90_000 + "</s>"]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(dict(text=text)) + "\n" for text in texts))
    command = PrepareCommand(
        data=(str(tmp_path / "d.jsonl"),), tokenizer=str(tmp_path / "tokenizer.json"), out_dir=str(tmp_path / "out")
    )
    done = prepare(command)
    plain = [text.removeprefix("<s>").removesuffix("</s>") for text in texts]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = [token for text in plain for token in [*theirs.encode(text), 257]]
    assert np.fromfile(tmp_path / "out" / "shard-00000.bin", "<u2").tolist() == expected
    assert done.documents == len(texts)
