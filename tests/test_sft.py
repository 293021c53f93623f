"""Data for finetuning: what is read, what is learned, and what is said about files that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from litlm.data.sft import IGNORE, Dataset, Example, collate, load_sft, read_records, split, stream, to_messages
from litlm.llm import LLM
from litlm.prompts import get_style

ALPACA = [
    {"instruction": "Name a fox.", "input": "", "output": "Reynard."},
    {"instruction": "Translate.", "input": "lazy dog", "output": "東京\u2028naïve"},
    {"instruction": "Say it.", "output": "abab"},
    {"instruction": "No input.", "input": None, "output": "ba"},
]
CHAT = [
    {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "Yes."}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first answer"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "second 🙂"},
        ],
        "id": 7,
    },
]


@pytest.fixture
def llm() -> LLM:
    return tiny.shared()


def _write(path: Path, records: list[Any], *, lines: bool, newline: str = "\n", ascii_only: bool = False) -> Path:
    dumps = lambda value: json.dumps(value, ensure_ascii=ascii_only)  # noqa: E731
    text = newline.join(map(dumps, records)) + newline if lines else dumps(records)
    path.write_bytes(text.encode())
    return path


def _load(path: Path, llm: LLM, max_len: int = 200) -> Dataset:
    return load_sft(path, llm.tokenizer, llm.style, max_len)


def _turns(example: Example, llm: LLM) -> list[str]:
    """The learned stretches, decoded."""
    turns: list[list[int]] = []
    before = False
    for token, learn in zip(example.ids, example.learn, strict=True):
        if learn and not before:
            turns.append([])
        if learn:
            turns[-1].append(token)
        before = learn
    return [llm.tokenizer.decode(turn) for turn in turns]


# --- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [True, False])
def test_only_answers_are_learned(lines: bool, tmp_path: Path, llm: LLM) -> None:
    alpaca = _load(_write(tmp_path / "alpaca.json", ALPACA, lines=lines), llm)
    assert [_turns(e, llm) for e in alpaca.examples] == [[f"{r['output']}<|im_end|>"] for r in ALPACA]
    chat = _load(_write(tmp_path / "chat.json", CHAT, lines=lines), llm)
    assert [_turns(e, llm) for e in chat.examples] == [
        ["Yes.<|im_end|>"],
        ["first answer<|im_end|>", "second 🙂<|im_end|>"],
    ]
    assert (alpaca.cut, alpaca.empty, chat.cut, chat.empty) == (0, 0, 0, 0)


def test_the_whole_text_is_what_transformers_template_writes(tmp_path: Path, llm: LLM) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder())
    examples = _load(_write(tmp_path / "d.jsonl", [*CHAT, *ALPACA], lines=True), llm).examples
    conversations = [r["messages"] for r in CHAT]
    for r in ALPACA:
        question = r["instruction"] + (f"\n\n{r['input']}" if r.get("input") else "")
        conversations.append([{"role": "user", "content": question}, {"role": "assistant", "content": r["output"]}])
    for example, messages in zip(examples, conversations, strict=True):
        assert example.ids == list(tokenizer.apply_chat_template(messages)["input_ids"])


def test_a_plain_style_learns_the_answer_and_an_end_token(llm: LLM) -> None:
    messages = to_messages(ALPACA[0])
    assert not isinstance(messages, str)
    ids, learn = get_style("alpaca").encode_with_mask(messages, llm.tokenizer)
    assert _turns(Example(ids, learn), llm)[0].strip() == "Reynard.<|im_end|>"


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_windows_files_and_blank_lines(lines: bool, newline: str, bom: bytes, tmp_path: Path) -> None:
    path = _write(tmp_path / "d", ALPACA, lines=lines, newline=newline)
    blank = newline.encode()
    path.write_bytes(bom + blank * lines + path.read_bytes().replace(blank, blank * 2 + b"  \t" + blank))
    assert [record for _, record in read_records(path)] == ALPACA


@pytest.mark.parametrize("separator", list("\u2028\u2029\x85\x1c\x1d\x1e\x0b\x0c\r\n"), ids=lambda c: f"U+{ord(c):04X}")
def test_separators_inside_texts_split_nothing(separator: str, tmp_path: Path) -> None:
    """str.splitlines breaks at all of these; JSON texts hold the first three as they are, the rest escaped."""
    records = [{"instruction": f"a{separator}b", "output": separator}] * 2
    path = _write(tmp_path / "d.jsonl", records, lines=True)
    assert read_records(path) == [(f"{path}, line {i}", records[0]) for i in (1, 2)]


def test_without_a_last_newline_and_with_escapes(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.jsonl", ALPACA, lines=True, ascii_only=True)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [record for _, record in read_records(path)] == ALPACA


def test_broken_lines_are_all_named(tmp_path: Path, llm: LLM) -> None:
    good = json.dumps(ALPACA[0])
    path = tmp_path / "d.jsonl"
    path.write_text(f"{good}\n{{'a': 1}}\n\n{good[:-3]}\n3\n{good} {good}\n[1]\n")
    with pytest.raises(ValueError, match="The data can't be used") as e:
        _load(path, llm)
    lines = str(e.value).splitlines()[1:]
    assert [line.split(",")[1].split(":")[0].strip() for line in lines] == [
        "line 2",
        "line 4",
        "line 6",
        "line 5",
        "line 7",
    ]
    assert all(str(path) in line for line in lines)
    assert "not valid JSON" in lines[0]
    assert "not a JSON object" in lines[3]


@pytest.mark.parametrize("lines", [True, False])
def test_wrong_records_are_all_named_with_what_they_hold(lines: bool, tmp_path: Path, llm: LLM) -> None:
    records = [
        ALPACA[0],
        {"prompt": "a", "completion": "b"},
        {},
        {"instruction": "a"},
        {"instruction": 3, "output": "b"},
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": []},
    ]
    with pytest.raises(ValueError, match="The data can't be used") as e:
        _load(_write(tmp_path / "d", records, lines=lines), llm)
    found = str(e.value).splitlines()[1:]
    texts = [
        "keys completion, prompt; needed are instruction and output (Alpaca), or messages (chat)", "keys (none)",
        "keys instruction;", "must be text", "at least one message", "no assistant turn",
        "messages[0] must have a role", "robot", "keys conversations",
    ]  # fmt: skip
    assert len(found) == len(texts)
    for number, (line, text) in enumerate(zip(found, texts, strict=True), 2):
        assert f"{'line' if lines else 'record'} {number}:" in line
        assert text in line


def test_very_many_wrong_records_are_counted(tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"and 980 more") as e:
        _load(_write(tmp_path / "d", [{"a": 1}] * 1000, lines=True), llm)
    assert len(str(e.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no examples"),
        (b"\n \n", "holds no examples"),
        (b"[]", "holds no examples"),
        (b"[{]", "not valid JSON"),
        (b'{\n "data": [\n {"instruction": "a", "output": "b"}\n ]\n}', "one JSON object"),
        (b"\xff\xfe{}", "can't be read as UTF-8"),
        (b'"text"', "not a JSON object"),
    ],
)
def test_files_that_hold_no_records(content: bytes, text: str, tmp_path: Path, llm: LLM) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=text) as e:
        _load(tmp_path / "d.jsonl", llm)
    assert str(tmp_path / "d.jsonl") in str(e.value)


def test_files_that_are_none(tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        _load(tmp_path / "none.json", llm)
    with pytest.raises(ValueError, match="can't be read"):
        _load(tmp_path, llm)


# --- length --------------------------------------------------------------------------------------------------------


def test_long_examples_are_cut_and_counted(tmp_path: Path, llm: LLM) -> None:
    long_answer = {"instruction": "a", "output": "b " * 100}
    long_question = {"instruction": "a " * 100, "output": "b"}
    path = _write(tmp_path / "d", [ALPACA[0], long_answer, long_question], lines=True)
    whole = _load(path, llm, 1000)
    assert (len(whole), whole.cut, whole.empty) == (3, 0, 0)
    data = _load(path, llm, 40)
    assert (len(data), data.cut, data.empty) == (2, 2, 1)
    assert [len(e.ids) for e in data.examples] == [len(whole.examples[0].ids), 40]
    assert data.examples[1].ids == whole.examples[1].ids[:40]
    assert data.examples[1].learn == whole.examples[1].learn[:40]
    exact = _load(path, llm, len(whole.examples[1].ids))
    assert exact.examples[1] == whole.examples[1]


def test_nothing_left_to_learn(tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match="max_len=5"):
        _load(_write(tmp_path / "d", ALPACA, lines=True), llm, 5)


# --- batches -------------------------------------------------------------------------------------------------------


def _examples(lengths: list[int], seed: int = 0) -> list[Example]:
    gen = torch.Generator().manual_seed(seed)
    return [
        Example(torch.randint(1, 300, (n,), generator=gen).tolist(), (torch.rand(n, generator=gen) < 0.5).tolist())
        for n in lengths
    ]


@pytest.mark.parametrize("seed", range(5))
def test_targets_are_the_next_learned_tokens(seed: int) -> None:
    examples = _examples([7, 2, 19, 4, 3], seed)
    tokens, targets = collate(examples)
    assert tokens.shape == targets.shape == (5, 18)
    assert tokens.dtype == targets.dtype == torch.int64
    for row, e in enumerate(examples):
        for t in range(18):
            if t < len(e.ids) - 1:
                assert tokens[row, t] == e.ids[t]
                assert targets[row, t] == (e.ids[t + 1] if e.learn[t + 1] else IGNORE)
            else:
                assert targets[row, t] == IGNORE


def test_padding_changes_no_states_where_there_are_targets() -> None:
    llm = tiny.shared()
    examples = _examples([5, 30, 12])
    tokens, targets = collate(examples)
    with torch.no_grad():
        together = llm.model(tokens)
        for row, e in enumerate(examples):
            alone = llm.model(torch.tensor([e.ids[:-1]]))[0]
            torch.testing.assert_close(together[row, : len(e.ids) - 1], alone, rtol=1e-4, atol=1e-4)


def test_split() -> None:
    data = Dataset(_examples([3] * 20), cut=2, empty=1)
    train, val = split(data, 0.25, seed=5)
    assert val is not None
    assert (len(train), len(val), train.cut, train.empty) == (15, 5, 2, 1)
    places = [data.examples.index(e) for e in (*train.examples, *val.examples)]
    assert sorted(places) == list(range(20))
    assert split(data, 0.25, seed=5) == (train, val)
    assert split(data, 0.25, seed=6) != (train, val)
    assert split(data, 0.0, seed=5) == (data, None)
    assert [len(part) for part in split(data, 0.001, 0) if part] == [19, 1]
    assert [len(part) for part in split(data, 0.999, 0) if part] == [1, 19]
    one = Dataset(_examples([3]))
    assert split(one, 0.5, 0) == (one, None)


def test_stream_visits_each_example_once_an_epoch() -> None:
    indexes = stream(7, seed=3)
    epochs = [[next(indexes) for _ in range(7)] for _ in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    again = stream(7, seed=3)
    assert [next(again) for _ in range(35)] == sum(epochs, [])
    other = stream(7, seed=4)
    assert [next(other) for _ in range(35)] != sum(epochs, [])
