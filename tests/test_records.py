"""Reading records: each kind of file against the library that wrote it; what is said where there is nothing to read."""

from __future__ import annotations

import builtins
import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from litlm.data import sources
from litlm.data.named import NamedDataset
from litlm.data.record_formats import RECORD_KEYS, parse
from litlm.data.records import RecordSources, check_start, format_problems, read_records, resolve_source
from litlm.data.sources import expand_patterns
from litlm.data.text import documents, find_sources

ALPACA = [
    {"instruction": "Name a fox.", "input": "", "output": "Reynard."},
    {"instruction": "Translate.", "input": "lazy dog", "output": "東京\u2028naïve"},
    {"instruction": "Say it.", "output": "abab"},
    {"instruction": "No input.", "input": None, "output": "ba"},
]
CHAT = [{"role": "user", "content": 'a, "b"\n?'}, {"role": "assistant", "content": "Yes."}]


def write(path: Path, rows: list[Any], *, lines: bool, newline: str = "\n", ascii_only: bool = False) -> Path:
    dumps = lambda value: json.dumps(value, ensure_ascii=ascii_only)  # noqa: E731
    text = newline.join(map(dumps, rows)) + newline if lines else dumps(rows)
    path.write_bytes(text.encode())
    return path


def read(source: str | Path, **options: Any) -> list[dict[str, Any]]:
    return [record for _, record in read_records(source, **options)]


# --- JSON -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_windows_files_and_blank_lines(lines: bool, newline: str, bom: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "d", ALPACA, lines=lines, newline=newline)
    blank = newline.encode()
    path.write_bytes(bom + blank + path.read_bytes().replace(blank, blank * 2 + b"  \t" + blank))
    assert read(path) == read(str(path)) == ALPACA


@pytest.mark.parametrize("separator", list("\u2028\u2029\x85\x1c\x1d\x1e\x0b\x0c\r\n"), ids=lambda c: f"U+{ord(c):04X}")
def test_separators_inside_texts_split_nothing(separator: str, tmp_path: Path) -> None:
    """str.splitlines breaks at all of these; JSON texts hold the first three as they are, the rest escaped."""
    rows = [{"instruction": f"a{separator}b", "output": separator}] * 2
    path = write(tmp_path / "d.jsonl", rows, lines=True)
    assert list(read_records(path)) == [(f"{path}, line {i}", rows[0]) for i in (1, 2)]


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(
    "twice", ['{"text": "a", "id": 3, "text": "b"}', '{"text": "a", "id": [{"c": 1}, {"text": 1, "text": 1}]}']
)
def test_a_key_that_is_there_twice_is_refused(twice: str, lines: bool, tmp_path: Path) -> None:
    """Python's json keeps the last value and says nothing."""
    rows = ['{"text": "x", "id": {"text": "y"}}', twice, '{"text": "z"}', twice]
    path = tmp_path / ("d.jsonl" if lines else "d.json")
    path.write_text("\n".join(rows) if lines else f"[{', '.join(rows)}]")
    unit = "line" if lines else "record"
    with pytest.raises(ValueError, match=rf"{path}, {unit}s 2, 4 \(2 in all\): has the key 'text' twice; keep one"):
        read(path)
    with pytest.raises(ValueError, match=f"{path}, {unit} 2: has the key 'text' twice; keep one of them"):
        list(documents([str(path)]))


def test_a_key_that_is_there_twice_in_json_text(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], ['[{"role": "user", "content": "a", "content": "b"}]']])
    with pytest.raises(ValueError, match="line 2: the cell messages has the key 'content' twice"):
        read(path)
    call = {"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}
    with pytest.raises(ValueError, match=r"arguments of f has the key 'x' twice; keep one of them"):
        parse({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]})


def test_without_a_last_newline_and_with_escapes(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ALPACA, lines=True, ascii_only=True)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path) == ALPACA


def test_broken_lines_are_all_named(tmp_path: Path) -> None:
    good = json.dumps(ALPACA[0])
    path = tmp_path / "d.jsonl"
    path.write_text(f"{good}\n{{'a': 1}}\n\n{good[:-3]}\n3\n{good} {good}\n[1]\n")
    rows = read_records(path)
    assert next(rows) == (f"{path}, line 1", ALPACA[0])
    with pytest.raises(ValueError, match="The data can't be used") as e:
        list(rows)
    lines = str(e.value).splitlines()[1:]
    places = [line.removeprefix(f"- {path}, ").split(":")[0] for line in lines]
    assert places == ["line 2", "line 4", "lines 5, 7 (2 in all)", "line 6"]
    assert all(str(path) in line for line in lines)
    assert "not valid JSON" in lines[0]
    assert "not a JSON object" in lines[2]


def test_very_many_broken_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [1] * 1000, lines=True)
    with pytest.raises(ValueError, match="The data can't be used") as e:
        read(path)
    assert str(e.value).splitlines()[1:] == [
        f"- {path}, lines 1, 2, 3, 4, 5, 6, 7, 8, ... (1,000 in all): not a JSON object"
    ]
    header = "a,b\n" + "".join("1" + ",2" * (2 + i) + "\n" for i in range(1000))
    (tmp_path / "d.csv").write_text(header)
    with pytest.raises(ValueError, match=r"and 980 more") as e:
        read(tmp_path / "d.csv")
    assert len(str(e.value).splitlines()) == 22


def test_equal_problems_are_one_line_for_each_file_and_kind() -> None:
    problems = [
        "a, b.jsonl, line 3: x: y",
        "c, row 3: x: y",
        "a, b.jsonl, line 4: x: y",
        "no place",
        "c, record 3: x: y",
    ]
    assert format_problems(problems).splitlines()[1:] == [
        "- a, b.jsonl, lines 3, 4 (2 in all): x: y", "- c, row 3: x: y", "- no place", "- c, record 3: x: y",
    ]  # fmt: skip


def test_the_start_of_a_file_is_checked(tmp_path: Path) -> None:
    def parse(record: dict[str, Any]) -> None:
        if record["a"] == "3":
            raise ValueError("a is 3")

    rows = [{"a": str(i)} for i in range(9)]
    files = [tmp_path / f"a.{end}" for end in ("jsonl", "json", "csv", "parquet")]
    write(files[0], rows, lines=True)
    write(files[1], rows, lines=False)
    files[2].write_text("a\n" + "".join(f"{i}\n" for i in range(9)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files[3])
    for file in files:
        check_start(file, parse, limit=3)
        with pytest.raises(ValueError, match=r"(line|record|row) \d: a is 3"):
            check_start(file, parse, limit=4)
    check_start("alpaca", parse)
    files[0].write_text('{"a": "1"}\n{\n')
    check_start(files[0], parse, limit=1)
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        check_start(files[0], parse)


def test_several_sources_are_read_one_after_the_other(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, ALPACA, lines=True) for name in ("a.jsonl", "b.jsonl", "c.json"))
    found = RecordSources((str(tmp_path / "*.jsonl"), str(c)), "train")
    assert [record for _, record in found] == [*ALPACA, *ALPACA, *ALPACA]
    assert [where.split(",")[0] for where, _ in found][:: len(ALPACA)] == [str(a), str(b), str(c)]
    assert (found.sources, found.name) == ([str(a), str(b), str(c)], f"{a} and 2 more")
    read_once = RecordSources((str(a), str(b)), "train")
    list(read_once)
    assert read_once.notes(RECORD_KEYS) == [f"{path}: {len(ALPACA)} records" for path in (a, b)]
    assert RecordSources((str(a),), "train").notes(RECORD_KEYS) == []
    for path in (a, b):
        path.write_text("1\n{}\n")
    with pytest.raises(ValueError, match=f"(?s){a}, line 1: not a JSON object.*{b}, line 1: not"):
        list(RecordSources((str(a), str(b)), "train"))


def test_a_broken_line_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    """Also one that ends too early, which json places in a line 2; and in text for pretraining."""
    (path := tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": }\n{"text": "y"\n')
    with pytest.raises(ValueError) as e:
        list(read_records(path))
    assert str(e.value).splitlines()[1:] == [
        f"- {path}, line 2: not valid JSON (Expecting value, column 10)",
        f"- {path}, line 3: not valid JSON (Expecting ',' delimiter, column 13)",
    ]
    with pytest.raises(ValueError) as e:
        list(documents([str(path)]))
    assert str(e.value) == f"{path}, line 2: not valid JSON (Expecting value, column 10)"


def test_patterns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "in/d.txt", "[x].txt"):
        (tmp_path / name).write_text("t")
    assert expand_patterns([f"{tmp_path}/[ab].txt", "org/name", f"{tmp_path}/c.md"]) == [
        f"{tmp_path}/a.txt", f"{tmp_path}/b.txt", "org/name", f"{tmp_path}/c.md",
    ]  # fmt: skip
    assert f"{tmp_path}/in/d.txt" in expand_patterns([f"{tmp_path}/**/*.txt"])
    assert expand_patterns([f"{tmp_path}/[x].txt"]) == [f"{tmp_path}/[x].txt"]  # the file's own name
    with pytest.raises(ValueError, match=r"\*.csv matches no file"):
        expand_patterns([f"{tmp_path}/*.csv"])


def test_a_file_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a.jsonl", "b.jsonl", "in/a.jsonl", "in/b.jsonl"):
        (tmp_path / name).write_text('{"text": "t"}\n')
    for again in ("b.jsonl", "./b.jsonl", "in/../b.jsonl", f"{tmp_path}/b.jsonl"):
        for named in (("b.jsonl", "a.jsonl", again), ("*.jsonl", again)):
            with pytest.raises(ValueError, match=f"^{re.escape(again)} would be read twice; name it once"):
                RecordSources(named, "train")
    with pytest.raises(ValueError, match=r"^org/name would be read twice"):
        expand_patterns(("org/name", "org/name:a", "org/name"))
    read = lambda *sources: [s.path for s in find_sources(sources, text_key="text", split="train")]  # noqa: E731
    with pytest.raises(ValueError, match=r"^in/b\.jsonl would be read twice; .* or its folder"):
        read("in", "in/b.jsonl")
    with pytest.raises(ValueError, match=r"^in/ would be read twice"):
        read("in", "in/")
    assert read("in", "b.jsonl") == ["in/a.jsonl", "in/b.jsonl", "b.jsonl"]
    assert read("org/name:a", "org/name:b") == ["org/name", "org/name"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no examples"),
        (b"\n \n", "holds no examples"),
        (b"[]", "holds no examples"),
        (b"[{]", "not valid JSON"),
        (b"[1, {}]", "record 1: not a JSON object"),
        (b'{\n "data": [\n {"instruction": "a", "output": "b"}\n ]\n}', "one JSON object"),
        (b"\xff\xfe{}", "can't be read as UTF-8"),
        (b'{"a": 1}\n\xff', "can't be read as UTF-8"),
        (b'"text"', "not a JSON object"),
    ],
)
def test_writing_that_hold_no_records(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=text) as e:
        read(tmp_path / "d.jsonl")
    assert str(tmp_path / "d.jsonl") in str(e.value)


# --- CSV --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(newline: str, tmp_path: Path) -> None:
    rows = [
        {"instruction": 'say "x",\n\ny', "messages": None, "output": "東京\u2028"},
        {"instruction": "", "messages": CHAT, "output": "[not json"},
    ]
    with (tmp_path / "d.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([json.dumps(v) if isinstance(v, list) else v for v in row.values()])
    found = list(read_records(tmp_path / "d.csv"))
    assert [row for _, row in found] == rows
    assert [where.rsplit(", ")[-1] for where, _ in found] == ["line 2", "line 5"]  # where they begin


def test_csv_prompts_may_be_messages(tmp_path: Path) -> None:
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "chosen"], ["[1] is text", json.dumps(CHAT)], ['[{"not json', "x" * 200_000]]
        )
    assert read(tmp_path / "d.csv") == [
        {"prompt": "[1] is text", "chosen": CHAT},
        {"prompt": '[{"not json', "chosen": "x" * 200_000},
    ]


def test_csv_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('a,messages\n1\n\n"x\ny",[]\n2,3,4\n2,{bad\n"open')
    with pytest.raises(ValueError, match="can't be used") as e:
        read(path)
    lines = str(e.value).splitlines()[1:]
    assert [line.removeprefix(f"- {path}, ")[:6] for line in lines] == ["line 2", "line 6", "line 7", "line 8"]
    for line, text in zip(
        lines, ["has 1 cells", "has 3 cells", "messages is not valid JSON", "not valid CSV"], strict=True
    ):
        assert text in line
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="columns a more than once"):
        read(path)
    for text in ("", "a,b\n", "a,b\n\n\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no examples"):
            read(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read(path)


# --- Parquet ----------------------------------------------------------------------------------------------------------
def test_parquet(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "id": i, "none": None} for i in range(2500)]  # more than one batch
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=999)
    found = list(read_records(tmp_path / "d.parquet"))
    assert [row for _, row in found] == rows
    assert found[-1][0].endswith("d.parquet, row 2500")


def test_parquet_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"d\.parquet is no valid parquet file"):
        read(tmp_path / "d.parquet")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([], pyarrow.schema([("a", "string")])), tmp_path / "e.parquet"
    )
    with pytest.raises(ValueError, match="holds no examples"):
        read(tmp_path / "e.parquet")
    table = pyarrow.Table.from_pylist([{"text": "a" * 9999}])
    pyarrow.parquet.write_table(table, path := tmp_path / "f.parquet", compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[40:80] = b"\xff" * 40  # inside of a page
    path.write_bytes(data)
    for rows in (read_records(path), documents([str(path)])):
        with pytest.raises(ValueError, match=r"f\.parquet (can't be read|is no valid parquet file)"):
            list(rows)
    _without(monkeypatch, "pyarrow")
    with pytest.raises(ValueError, match=r"pip install pyarrow"):
        read(tmp_path / "d.parquet")


def _without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """As if the library were not installed."""
    normal = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return normal(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


# --- names ------------------------------------------------------------------------------------------------------------
def test_what_exists_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve_source("alpaca"), NamedDataset)
    write(tmp_path / "alpaca", ALPACA, lines=True)
    assert resolve_source("alpaca") == Path("alpaca")
    assert read("alpaca") == ALPACA
    (tmp_path / "org").mkdir()
    write(tmp_path / "org" / "name", ALPACA, lines=False)
    assert read("org/name") == ALPACA


def test_what_names_mean() -> None:
    dolly = resolve_source("Dolly")
    assert isinstance(dolly, NamedDataset)
    assert dolly.hub_id == "databricks/databricks-dolly-15k"
    assert resolve_source("databricks/databricks-dolly-15k") is dolly
    other = resolve_source("someone/some.data:a-config")
    assert isinstance(other, NamedDataset)
    assert (other.hub_id, other.config, other.split) == ("someone/some.data", "a-config", "train")
    socratic = resolve_source("openai/gsm8k:socratic")
    assert isinstance(socratic, NamedDataset)
    assert socratic.config == "socratic"


def test_sources_that_are_none(tmp_path: Path) -> None:
    for source in (
        tmp_path / "none",
        str(tmp_path / "none.csv"),
        "none.jsonl",
        "./alpaca",
        "~/none",
        "org/name.parquet",
    ):
        with pytest.raises(ValueError, match="does not exist"):
            read_records(source)
    with pytest.raises(ValueError, match="can't be read: it is a folder"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match=r"'alpacca' is neither.*Did you mean alpaca .*org/name.*dolly.*ultrachat"):
        read_records("alpacca")
    for source in ("a b", "a/b/c/d", "zzzzzzz"):
        with pytest.raises(ValueError, match="is neither a file") as e:
            read_records(source)
        assert "Did you mean" not in str(e.value)


# --- the hub ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of repositories. `datasets` treats a folder as it does a repository, but for fetching it."""
    real = datasets.load_dataset
    folder = tmp_path / "hub"

    def load(path: str, name: str | None, *, split: str, data_files: str | None = None) -> Any:
        if data_files is not None:
            files = data_files.replace("hf://datasets/", f"{folder}/")
            return real(path, data_files=files, split=split, cache_dir=str(tmp_path / "cache"))
        return real(str(folder / path), name, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_hub_is_reachable", lambda: True)
    datasets.disable_progress_bars()
    return folder


def _publish(folder: Path, **splits: list[Any]) -> None:
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        write(folder / f"{name}.jsonl", rows, lines=True)


def test_hub_datasets(hub: Path) -> None:
    _publish(hub / "org" / "data", train=[{"messages": CHAT}] * 2, test=[{"messages": CHAT[:1]}])
    assert list(read_records("org/data")) == [(f"org/data, train, row {i}", {"messages": CHAT}) for i in (1, 2)]
    assert read("org/data", split="test") == [{"messages": CHAT[:1]}]
    assert len(read("org/data", split="train[:1]")) == 1
    with pytest.raises(ValueError, match=r"org/data: .*\(split 'valid'\) can't be read.*train.*--data.split"):
        read("org/data", split="valid")


def test_named_datasets_with_their_columns_splits_and_files(hub: Path) -> None:
    _publish(hub / "akoksal" / "LongForm", train=[{"input": "a", "output": "b", "source": "c"}])
    assert read("longform") == [{"prompt": "a", "completion": "b", "source": "c"}]
    _publish(hub / "Muennighoff" / "flan", train=[{"other": "a"}])
    with pytest.raises(ValueError, match=r"expected the columns inputs, targets; has other"):
        read("flan")
    folder = hub / "HuggingFaceH4" / "ultrachat_200k"
    (folder / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist([{"messages": CHAT}])
    for name in ("train_sft", "train_gen"):
        pyarrow.parquet.write_table(table, folder / "data" / f"{name}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("train_sft", "train_gen"))
        + "---\n"
    )
    found = list(read_records("ultrachat"))
    assert [row for _, row in found] == [{"messages": CHAT}]
    _publish(hub / "GAIR" / "lima", train=[{"conversations": ["a", "b"], "source": "s"}])
    (hub / "GAIR" / "lima" / "lima.py").write_text("raise SystemExit")
    assert read("lima") == [{"conversations": ["a", "b"], "source": "s"}]
    with pytest.raises(ValueError, match=r"no split 'valid'; it has train, test"):
        read("lima", split="valid")


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "datasets")
    with pytest.raises(ValueError, match=r"tatsu-lab/alpaca: .* hub needs.*pip install datasets"):
        read_records("alpaca")


def test_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert not sources._hub_is_reachable()
    for name in ("alpaca", "lima"):
        with pytest.raises(ValueError, match=r"split 'train'.*the hub does not answer.*HF_ENDPOINT.*name one"):
            read_records(name)
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError("Dataset 'x/y' is a gated dataset on the Hub."), r"gated.*Ask for access.*HF_TOKEN"),
        (
            FileNotFoundError("Dataset 'x/y' doesn't exist on the Hub or cannot be accessed."),
            "doesn't exist.*Is the n",
        ),
        (ValueError("Config name is missing.\nPlease pick one among ['a', 'b']"), r"\['a', 'b'\].*x/y:CONFIG"),
        (ConnectionError("Couldn't reach x/y"), r"the hub does not answer \(Couldn't reach x/y\).*name one of them"),
        (
            RuntimeError("Dataset scripts are no longer supported, but found y.py"),
            "holds a loading script.*name one of them",
        ),
        (KeyError(), "KeyError"),
    ],
)
def test_what_the_library_raises_is_explained(error: Exception, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_hub_is_reachable", lambda: True)
    with pytest.raises(ValueError, match=text):
        read_records("x/y")
