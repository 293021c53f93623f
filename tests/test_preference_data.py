"""Preference pairs: which records are read, what of them is learned, and how they are laid into micro batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from packages import unpacked

from litlm.data.base import IGNORE, Batch, Example, TokenizedDataset
from litlm.data.preference import Pair, PreferenceBatch, PreferenceDataset, load_preference, parse_pair
from litlm.llm import LLM
from litlm.prompts import PromptStyle
from litlm.settings.data import PreferenceData

USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = {"role": "assistant", "content": "Paris."}, {"role": "assistant", "content": "lazy dog 🙂"}
TURNS = [SYSTEM, USER, {"role": "assistant", "content": "abab"}, {"role": "user", "content": "No, say it."}]


@pytest.fixture
def llm() -> LLM:
    return tiny.shared()


def _write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def _load(
    path: Path, records: list[Any], llm: LLM, **options: Any
) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    data = PreferenceData(path=_write(path / "pairs.jsonl", records), **({"val_fraction": 0} | options))
    return load_preference(data, llm.tokenizer, llm.style, 250, seed=3)


def _read(path: Path, records: list[Any], llm: LLM, **options: Any) -> PreferenceDataset:
    return _load(path, records, llm, **options)[0]


def _pairs(data: PreferenceDataset) -> list[Pair]:
    return [data[i] for i in range(len(data))]


def _learned(e: Example) -> list[int]:
    return [token for token, learn in zip(e.ids, e.learn, strict=True) if learn]


# --- records -------------------------------------------------------------------------------------------------------

TEXTS = dict(chosen="Paris.", rejected="lazy dog 🙂")
SAME = {
    "text": dict(prompt=USER["content"], **TEXTS),
    "prompt of messages": dict(prompt=[USER], **TEXTS),
    "all messages": dict(prompt=[USER], chosen=[GOOD], rejected=[BAD]),
    "text and messages": dict(prompt=USER["content"], chosen=[GOOD], rejected=[BAD]),
    "implicit prompt": dict(chosen=[USER, GOOD], rejected=[USER, BAD]),
    "UltraFeedback": dict(
        prompt=USER["content"], prompt_id="f0e37e9f", chosen=[USER, GOOD], rejected=[USER, BAD], messages=[USER, GOOD],
        score_chosen=8.0, score_rejected=3.5,
    ),
    "prompt repeated": dict(prompt=[USER], chosen=[USER, GOOD], rejected=[USER, BAD]),
    "instruction": dict(instruction=USER["content"], input="", **TEXTS),
    "question": dict(question=USER["content"], system="", **TEXTS),
    "system is null": dict(prompt=USER["content"], system=None, **TEXTS),
    "empty cells": dict(prompt="", instruction=USER["content"], input="", question=None, **TEXTS),
}  # fmt: skip


@pytest.mark.parametrize("record", SAME.values(), ids=SAME)
def test_forms(record: dict[str, Any]) -> None:
    assert parse_pair(record) == ([USER, GOOD], [USER, BAD])


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (dict(chosen=[*TURNS, GOOD], rejected=[*TURNS, BAD]), TURNS),
        (dict(prompt=TURNS, **TEXTS), TURNS),
        (dict(prompt=TURNS, chosen=[GOOD], rejected=[*TURNS, BAD]), TURNS),
        (dict(question=USER["content"], system="Be brief.", **TEXTS), [SYSTEM, USER]),
        (dict(prompt=USER["content"], chosen=[SYSTEM, USER, GOOD], rejected=[SYSTEM, USER, BAD]), [SYSTEM, USER]),
        *(
            (
                {question: "q", about: "i"} | TEXTS,
                [{"role": "user", "content": "q\n\ni", "instruction_and_input": ("q", "i")}],
            )
            for question in ("instruction", "prompt", "question")
            for about in ("input", "context")
        ),
    ],
)
def test_forms_with_more_before_the_answer(record: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    assert parse_pair(record) == ([*prompt, GOOD], [*prompt, BAD])


def test_the_implicit_prompt_is_that_of_trl() -> None:
    """TRL's own function, taken out of its file, whose imports are not ours."""
    source = (unpacked("trl==1.16.0") / "trl/data_utils.py").read_text(encoding="utf-8")
    start = source.index("def extract_prompt(")
    namespace: dict[str, Any] = {}
    exec("from collections.abc import Sequence\n" + source[start : source.index("\ndef ", start)], namespace)
    for prompt in ([USER], [SYSTEM, USER], TURNS):
        record = dict(chosen=[*prompt, GOOD], rejected=[*prompt, BAD])
        theirs = namespace["extract_prompt"](record)
        explicit = parse_pair(theirs)
        assert explicit == parse_pair(record) == ([*prompt, GOOD], [*prompt, BAD])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (dict(prompt="a", chosen="b"), "has the keys chosen, prompt; needed are chosen and rejected"),
        (dict(), r"has the keys \(none\)"),
        (dict(**TEXTS), "chosen is only an answer"),
        (dict(prompt="", **TEXTS), "chosen is only an answer"),
        (dict(chosen=[GOOD], rejected=[BAD]), "chosen is only an answer"),
        (dict(prompt=7, **TEXTS), "prompt must be text or a list of messages"),
        (dict(instruction="a", input=["b"], **TEXTS), "input must be text"),
        (dict(prompt="p", instruction="a", input="b", **TEXTS), "instruction and prompt are 2 prompts"),
        (dict(prompt="p", input="b", context="c", **TEXTS), "input and context are 2 inputs"),
        (dict(prompt=[USER], input="b", **TEXTS), "input can't be used beside a list of messages"),
        (dict(question="p", choices=["b"], **TEXTS), "choices can't be used beside question"),
        (dict(prompt="p", chosen=[USER, GOOD], rejected=[USER, BAD]), "does not begin with the messages of prompt"),
        (
            dict(question=USER["content"], history=[["x", "y"]], chosen=[USER, GOOD], rejected=[USER, BAD]),
            "does not begin with the messages of question",
        ),
        (
            dict(chosen=[USER, GOOD | {"tool_plan": "x"}, USER, GOOD], rejected=[USER, GOOD, USER, BAD]),
            "part at message 1",
        ),
        (dict(prompt="p", weight=0, **TEXTS), "weight=0 says not to train on the record"),
        (dict(prompt="p", documents=[{"text": "d"}], **TEXTS), "does not write documents"),
        (dict(prompt=[], **TEXTS), "prompt must be a list with at least one message"),
        (dict(prompt=[{"role": "user"}], **TEXTS), r"prompt\[0\] must have a role and a content"),
        (dict(prompt="a", chosen=3, rejected="b"), "chosen must be text or a list"),
        (dict(prompt="a", chosen="b", rejected=None), "has the keys chosen, prompt; needed"),
        (dict(prompt="a", chosen="b", rejected=["c"]), r"rejected\[0\] must have a role"),
        (
            dict(prompt=[SYSTEM], chosen=[USER, GOOD], rejected=[USER, BAD]),
            "does not begin with the messages of prompt",
        ),
        (dict(chosen=[USER, GOOD, USER], rejected=[USER, BAD]), "chosen ends with a message of role 'user'"),
        (dict(chosen=[USER, GOOD], rejected=[SYSTEM, USER, BAD]), "part at message 0"),
        (dict(chosen=[USER, GOOD, USER, GOOD], rejected=[USER, BAD, USER, GOOD]), "part at message 1"),
        (dict(chosen=[USER, GOOD, USER, GOOD], rejected=[USER, GOOD]), "part at message 1"),
    ],
)
def test_what_is_wrong_with_a_record(record: dict[str, Any], message: str, tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match=message) as e:
        _read(tmp_path, [SAME["text"], record], llm)
    assert "line 2" in str(e.value)
    assert "line 1" not in str(e.value)


def test_all_bad_records_are_named_at_once(tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match="(?s)line 1.*line 3.*robot") as e:
        _read(tmp_path, [{}, SAME["text"], dict(prompt=[{"role": "robot", "content": "x"}], **TEXTS)], llm)
    assert "line 2" not in str(e.value)


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[USER], [SYSTEM, USER], TURNS], ids=len)
def test_ids_are_those_of_transformers_and_only_the_last_answer_is_learned(
    prompt: list[Any], tmp_path: Path, llm: LLM
) -> None:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(tiny.folder())
    (pair,) = _pairs(_read(tmp_path, [dict(prompt=prompt, **TEXTS)], llm))
    begin = list(hf.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
    for e, answer in zip(pair, (GOOD, BAD), strict=True):
        assert e.ids == list(hf.apply_chat_template([*prompt, answer])["input_ids"])
        assert e.ids[: len(begin)] == begin
        assert hf.decode(_learned(e)) == f"{answer['content']}<|im_end|>"
        assert e.learn[: len(begin)] == [False] * len(begin)


def test_a_plain_style_learns_the_end_token_too(tmp_path: Path, llm: LLM) -> None:
    (pair,) = _pairs(_read(tmp_path, [SAME["text"]], llm, style="alpaca"))
    assert [llm.tokenizer.decode(_learned(e)) for e in pair] == ["Paris.<|im_end|>", "lazy dog 🙂<|im_end|>"]


def test_an_input_has_its_section_in_alpacas_style(tmp_path: Path, llm: LLM) -> None:
    record = dict(instruction="Say", input="it", **TEXTS)
    (pair,) = _pairs(_read(tmp_path, [record], llm, style="alpaca"))
    assert "### Instruction:\nSay\n\n### Input:\nit\n\n### Response:\nParis." in llm.tokenizer.decode(pair.chosen.ids)
    (pair,) = _pairs(_read(tmp_path, [record], llm))
    assert "Say\n\nit<|im_end|>" in llm.tokenizer.decode(pair.chosen.ids, skip_special_tokens=False)


def test_a_token_across_prompt_and_answer_belongs_to_both_answers(tmp_path: Path, llm: LLM) -> None:
    """`abab` is one token: behind the prompt `ab` one answer begins inside it, the other behind it."""
    assert len(llm.tokenizer.encode("abab", add_special_tokens=False)) == 1
    record = dict(prompt="Say it.ab", chosen="ab", rejected="?")
    (pair,) = _pairs(_read(tmp_path, [record], llm, style="plain"))
    start = pair.chosen.learn.index(True)
    assert start == pair.rejected.learn.index(True)
    assert pair.chosen.ids[:start] == pair.rejected.ids[:start]
    assert llm.tokenizer.decode(pair.chosen.ids[:start]) == "Say it."
    assert [llm.tokenizer.decode(_learned(e)) for e in pair] == ["abab<|im_end|>", "ab?<|im_end|>"]


class Moody(PromptStyle):
    """Writes a prompt that depends on the answer."""

    name = "moody"

    def render(self, messages: Any, add_generation_prompt: bool) -> str:
        mood = "+" if any(m["content"] == "Paris." for m in messages) else "-"
        return mood + "".join(m["content"] for m in messages) + ("" if add_generation_prompt else "<|im_end|>")


class Forgetful(Moody):
    """Another one, in which either answer still continues its own prompt."""

    name = "forgetful"

    def _answer_span(self, messages: Any, i: int, text: str) -> tuple[int, int]:
        return len(text) - len(messages[i]["content"]) - len("<|im_end|>"), len(text)


def test_a_style_whose_prompt_depends_on_the_answer_is_refused(tmp_path: Path, llm: LLM) -> None:
    data = PreferenceData(path=_write(tmp_path / "pairs.jsonl", [SAME["text"]]), val_fraction=0)
    for style, message in ((Moody(), "not written as a continuation"), (Forgetful(), "prompt differently before")):
        with pytest.raises(ValueError, match=f"line 1: prompt style '{style.name}'.*{message}"):
            load_preference(data, llm.tokenizer, style, 250)


def test_a_prompt_whose_tokens_depend_on_the_answer_is_refused(tmp_path: Path, llm: LLM) -> None:
    """`baba` is `b` and `aba`, so the prompt `ba` is one token before one answer and two before the other."""
    ids = [llm.tokenizer.encode(text, add_special_tokens=False) for text in ("ba?", "baba?")]
    assert ids[0][0] != ids[1][0]
    record = dict(prompt="ba", chosen="ba", rejected="?")
    with pytest.raises(
        ValueError, match="line 1: .*'plain' writes the prompt differently before .*, or the tokenizer joins"
    ):
        _read(tmp_path, [record], llm, style="plain")
    assert len(_read(tmp_path, [record], llm)[0].chosen.ids) > 0  # the model's own style has a token in between


def test_pairs_that_are_cut_or_left_out_are_counted(tmp_path: Path, llm: LLM) -> None:
    whole = _read(tmp_path, [SAME["text"]], llm)[0]
    n_prompt = whole.chosen.learn.index(True)
    max_len = n_prompt + 5
    records = [
        dict(prompt=USER["content"], chosen="a", rejected="b"),
        dict(prompt=USER["content"], chosen="The quick brown fox jumps over", rejected="b"),  # cut
        dict(prompt=USER["content"], chosen="b", rejected="0123456789 0123456789"),  # cut
        dict(prompt=USER["content"], chosen="0123456789 a", rejected="0123456789 b"),  # the same once cut
        dict(prompt=USER["content"], chosen="same", rejected="same"),
        dict(prompt=USER["content"], chosen="a", rejected=" \n"),
        dict(prompt=USER["content"] * 3, chosen="a", rejected="b"),
    ]
    data = _read(tmp_path, records, llm, max_len=max_len)
    assert len(data) == 3
    lengths = [[len(e.ids) for e in pair] for pair in _pairs(data)]
    assert lengths[1][0] == lengths[2][1] == max_len
    assert max(map(max, lengths)) <= max_len
    assert all(len(e.ids) == len(e.learn) and e.learn.index(True) == n_prompt for pair in _pairs(data) for e in pair)
    said = "; ".join(data.notes)
    for text in ("2 pairs cut to", "1 pair left out because an answer is empty", "1 pair left out because the prompt",
                 "2 pairs left out because both answers are the same"):  # fmt: skip
        assert text in said, said
    with pytest.raises(ValueError, match="(?s)no pair is left to train on.*1 pair left out because both"):
        _read(tmp_path, [records[4]], llm)


def test_columns_that_are_not_used_are_named(tmp_path: Path, llm: LLM) -> None:
    records = [{"prompt": "a", "prompt_id": 3, "chosen": "b", "rejected": "c", "sytem": "d", "output": "e"}]
    said = "columns not used: sytem (did you mean system?), prompt_id, output"
    assert _read(tmp_path, records, llm).notes[1:] == (f"{tmp_path / 'pairs.jsonl'}: {said}",)


def test_the_models_context_is_the_upper_end_of_max_len(tmp_path: Path, llm: LLM) -> None:
    long = dict(prompt="a", chosen="lazy dog " * 200, rejected="b")
    assert len(_read(tmp_path, [long], llm, max_len=1000)[0].chosen.ids) == 250


def test_several_files_are_one_data_set(tmp_path: Path, llm: LLM) -> None:
    a, b = ({"prompt": f"{n}?", "chosen": "yes " * n, "rejected": "no"} for n in (1, 2))
    files = [_write(tmp_path / "1.jsonl", [a, b]), _write(tmp_path / "2.jsonl", [b])]
    (tmp_path / "all").mkdir()
    whole = _read(tmp_path / "all", [a, b, b], llm)
    for path in (tuple(files), f"{tmp_path}/?.jsonl"):
        data, _ = load_preference(PreferenceData(path=path, val_fraction=0), llm.tokenizer, llm.style, 250)
        assert _pairs(data) == _pairs(whole)
        assert data.notes[0].startswith(f"{files[0]} and 1 more: 3 pairs")
        assert data.notes[1:] == (f"{files[0]}: 2 records", f"{files[1]}: 1 record")


def test_validation_data(tmp_path: Path, llm: LLM) -> None:
    records = [dict(prompt=f"{i}?", chosen=f"{i} a", rejected=f"{i} b") for i in range(20)]
    text = lambda data: [llm.tokenizer.decode(_learned(p.chosen)).split()[0] for p in _pairs(data)]  # noqa: E731
    train, val = _load(tmp_path, records, llm, val_fraction=0.25)
    assert val is not None
    assert len(val) == 5
    assert sorted(text(train) + text(val), key=int) == [str(i) for i in range(20)]
    again = _load(tmp_path, records, llm, val_fraction=0.25)[1]
    assert again is not None
    assert text(again) == text(val)
    assert _load(tmp_path, records[:1], llm, val_fraction=0.5)[1] is None
    other = _write(tmp_path / "val.jsonl", records[:3])
    train, val = _load(tmp_path, records[5:], llm, val_path=other, val_fraction=0.25)
    assert val is not None
    assert (len(train), text(val)) == (15, ["0", "1", "2"])


# --- micro batches -------------------------------------------------------------------------------------------------


def _random(n: int, max_len: int, seed: int, *, packing: bool = True) -> PreferenceDataset:
    gen = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=gen))  # noqa: E731
    answers = []
    for _ in range(n):
        prompt = draw(1, max_len // 2)
        ids = torch.randint(1, 1000, (prompt,), generator=gen).tolist()
        for _ in ("chosen", "rejected"):
            answer = torch.randint(1, 1000, (draw(1, max_len - prompt),), generator=gen).tolist()
            answers.append(Example(ids + answer, [False] * prompt + [True] * len(answer)))
    return PreferenceDataset(TokenizedDataset.from_examples(answers, max_len=max_len, packing=packing))


def _documents(batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
    found = {}
    for tokens, targets, lengths, numbers in zip(
        batch.tokens.tolist(), batch.targets.tolist(), batch.lengths, batch.examples, strict=True
    ):
        at = 0
        for n, number in zip(lengths, numbers, strict=True):
            assert number not in found
            found[number] = (tokens[at : at + n], targets[at : at + n])
            at += n
        assert set(targets[at:]) <= {IGNORE}
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_once_in_a_micro_batch_with_its_counterpart(
    seed: int, micro_batch_size: int, packing: bool
) -> None:
    data = replace(_random(17, 40, seed, packing=packing), reference_logps=torch.arange(34.0).view(17, 2))
    indexes = [3, 16, 0, 8, 3, 11, 12, 13, 1, 9, 9]  # pairs 3 and 9 twice, as at an epoch's end
    seen: dict[int, tuple[list[int], list[int]]] = {}
    for batch in data.batches(indexes, micro_batch_size):
        assert isinstance(batch, PreferenceBatch)
        assert 0 < batch.tokens.size(0) <= 2 * micro_batch_size
        assert batch.tokens.size(1) <= 40
        found = _documents(batch)
        assert {n ^ 1 for n in found} == set(found)
        assert batch.reference_logps is not None
        order = [n for row in batch.examples for n in row]
        pairs = [(order[c], order[r]) for c, r in batch.answer_documents()]
        assert pairs == [(n, n + 1) for n in sorted(found) if n % 2 == 0]
        expected = [[2.0 * indexes[c // 2], 2.0 * indexes[c // 2] + 1] for c, _ in pairs]
        assert batch.to(torch.device("cpu")).reference_logps.tolist() == expected  # type: ignore[attr-defined]
        assert not seen.keys() & found.keys()
        seen |= found
    assert sorted(seen) == list(range(2 * len(indexes)))
    for n, (tokens, targets) in seen.items():
        e = data[indexes[n // 2]][n % 2]
        assert tokens == e.ids[:-1]
        assert targets == [t if learn else IGNORE for t, learn in zip(e.ids[1:], e.learn[1:], strict=True)]


def test_packing_takes_fewer_rows() -> None:
    short = _random(32, 20, 1)
    rows = {
        packing: sum(
            b.tokens.size(0)
            for b in replace(short, answers=replace(short.answers, max_len=100, packing=packing)).batches(range(32), 2)
        )
        for packing in (True, False)
    }
    assert rows[False] == 64
    n_tokens = sum(len(e.ids) - 1 for pair in _pairs(short) for e in pair)
    assert rows[True] <= 1.25 * n_tokens / 100 + 1


def test_static_shapes_have_one_width() -> None:
    data = _random(9, 30, 2)
    assert {b.tokens.size(1) for b in data.batches(range(9), 1)} != {30}
    data.static_shapes = True
    assert {b.tokens.size(1) for b in data.batches(range(9), 1)} == {30}
    assert data.select([1, 2]).static_shapes


def test_picked_pairs_bring_their_reference() -> None:
    data = replace(_random(6, 30, 3), reference_logps=torch.arange(12.0).view(6, 2))
    picked = data.select([4, 1])
    assert [picked[0], picked[1]] == [data[4], data[1]]
    assert picked.reference_logps is not None
    assert picked.reference_logps.tolist() == [[8.0, 9.0], [2.0, 3.0]]
