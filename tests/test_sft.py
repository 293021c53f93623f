"""Data for finetuning: what records say, what is learned of them, and what is said about those that can't be used."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from litlm.data.base import IGNORE, Example, TokenizedDataset, micro_batches, row_length
from litlm.data.sft import Conversation, Encoder, Text, load_sft, parse
from litlm.llm import LLM
from litlm.prompts import PromptStyle, TemplateStyle, get_style
from litlm.settings.data import DataSettings
from litlm.tokenizer import Tokenizer

ALPACA = [
    {"instruction": "Name a fox.", "input": "", "output": "Reynard."},
    {"instruction": "Translate.", "input": "lazy dog", "output": "東京\u2028naïve"},
    {"instruction": "Say it.", "output": "abab"},
    {"instruction": "No input.", "input": None, "output": "ba"},
]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


TWO = [user("one"), assistant("first answer"), user("two"), assistant("second 🙂")]
CHAT = [
    {"messages": [user("a?"), assistant("Yes.")]},
    {"messages": [{"role": "system", "content": "Be brief."}, *TWO], "id": 7},
]


@pytest.fixture
def llm() -> LLM:
    return tiny.shared()


def write(path: Path, records: Iterable[Any]) -> str:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


def load(path: str | Path, llm: LLM, context_len: int = 200, **settings: Any) -> TokenizedDataset:
    settings = dict(path=str(path), val_fraction=0) | settings
    data, val = load_sft(DataSettings(**settings), llm.tokenizer, llm.style, context_len)
    assert val is None
    return data


def examples(data: TokenizedDataset) -> list[Example]:
    return [data[i] for i in range(len(data))]


def learned(example: Example, tokenizer: Tokenizer) -> list[str]:
    """The learned stretches, decoded."""
    runs = itertools.groupby(zip(example.ids, example.learn, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for learn, run in runs if learn]


# --- forms ------------------------------------------------------------------------------------------------------------
ASKED = [user("q"), assistant("a")]
FORMS: list[tuple[dict[str, Any], Conversation | Text]] = [
    ({"instruction": "q", "output": "a"}, Conversation(ASKED, 1)),
    ({"instruction": "q", "input": "", "output": "a", "text": "other"}, Conversation(ASKED, 1)),
    ({"instruction": "q", "response": "a", "context": None, "category": "c"}, Conversation(ASKED, 1)),
    ({"prompt": "q", "completion": "a"}, Conversation(ASKED, 1)),
    ({"prompt": "q", "response": "a"}, Conversation(ASKED, 1)),
    ({"question": "q", "answer": "a"}, Conversation(ASKED, 1)),
    ({"prompt": ASKED[:1], "completion": ASKED[1:]}, Conversation(ASKED, 1)),
    ({"prompt": TWO[:3], "completion": TWO[3:]}, Conversation(TWO, 3)),
    ({"prompt": TWO[:3], "completion": "second 🙂"}, Conversation(TWO, 3)),
    ({"prompt": "one", "completion": TWO[1:]}, Conversation(TWO, 1)),
    ({"messages": TWO, "prompt": "one"}, Conversation(TWO)),
    ({"messages": TWO, "conversations": None, "text": None, "instruction": None, "output": None}, Conversation(TWO)),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, Conversation(ASKED)),
    ({"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]}, Conversation(ASKED)),
    ({"conversations": [{**user("q"), "from": None}, assistant("a")]}, Conversation(ASKED)),
    ({"conversations": ["one", "first answer", "two", "second 🙂"]}, Conversation(TWO)),
    (
        {"conversations": [{"from": "system", "value": "s", "w": None}, {"from": "gpt", "value": "a", "w": 1}]},
        Conversation([{"role": "system", "content": "s"}, assistant("a") | {"w": 1}]),
    ),
    (
        {"system": "s", "prompt": "q", "completion": "a"},
        Conversation([{"role": "system", "content": "s"}, *ASKED], 2),
    ),
    ({"system": "", "conversations": ["q", "a"]}, Conversation(ASKED)),
    ({"text": "t"}, Text("t")),
]  # fmt: skip
FORMS += [
    (
        {question: "q", about: "i", answer: "a"},
        Conversation([user("q\n\ni") | {"instruction_and_input": ("q", "i")}, assistant("a")], 1),
    )
    for question in ("instruction", "prompt", "question")
    for about in ("input", "context")
    for answer in ("output", "completion", "response", "answer")
]  # fmt: skip
FORMS += [
    ({"prompt": "", "question": "q", "input": "", "output": "", "answer": "a"}, Conversation(ASKED, 1)),
    ({"question": "q", "choices": [], "options": "", "answer": "a"}, Conversation(ASKED, 1)),
    ({"prompt": "q", "output": ""}, Conversation([user("q"), assistant("")], 1)),
    ({"messages": TWO, "conversations": ["one", "first answer", "two", "second 🙂"]}, Conversation(TWO)),
    ({"messages": [{"role": "user", "from": "human", "content": "q", "value": "q"}, ASKED[1]]}, Conversation(ASKED)),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), FORMS)
def test_forms(record: dict[str, Any], expected: Conversation | Text) -> None:
    assert parse(record) == expected


def test_a_file_may_mix_forms(tmp_path: Path, llm: LLM) -> None:
    data = load(write(tmp_path / "d.jsonl", [record for record, _ in FORMS]), llm)
    assert len(data) == len(FORMS)
    for example, (_, expected) in zip(examples(data), FORMS, strict=True):
        if isinstance(expected, Text):
            assert learned(example, llm.tokenizer) == [expected.text + "<|im_end|>"]
        else:
            said = [m["content"] for m in expected.messages[expected.n_prompt :] if m["role"] == "assistant"]
            assert learned(example, llm.tokenizer) == [f"{text}<|im_end|>" for text in said]


def test_the_whole_text_is_what_transformers_template_writes(tmp_path: Path, llm: LLM) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder())
    data = load(write(tmp_path / "d.jsonl", [*CHAT, *ALPACA]), llm)
    conversations: list[Any] = [r["messages"] for r in CHAT]
    for r in ALPACA:
        question = r["instruction"] + (f"\n\n{r['input']}" if r.get("input") else "")
        conversations.append([user(question), assistant(r["output"] or "")])
    for example, messages in zip(examples(data), conversations, strict=True):
        assert example.ids == list(tokenizer.apply_chat_template(messages)["input_ids"])


def test_alpacas_style_has_a_section_for_the_input(tmp_path: Path, llm: LLM) -> None:
    """What LitGPT's and Stanford's prompt for the second record is."""
    data = load(write(tmp_path / "d.jsonl", ALPACA), llm, 1000, style="alpaca")
    assert llm.tokenizer.decode(data[1].ids) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nlazy dog\n\n"
        "### Response:\n東京\u2028naïve<|im_end|>"
    )
    assert [learned(e, llm.tokenizer) for e in examples(data)] == [[f"{r['output']}<|im_end|>"] for r in ALPACA]
    assert "### Input" not in llm.tokenizer.decode(data[0].ids)


def test_wrong_records_are_all_named_with_what_they_hold(tmp_path: Path, llm: LLM) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"a": 1, "b": 2}, "has the keys a, b; needed are instruction and output (Alpaca), "),
        ({}, "keys (none)"),
        ({"instruction": "a"}, "keys instruction;"),
        ({"instruction": 3, "output": "b"}, "instruction must be text or a list"),
        ({"prompt": "a", "completion": 3}, "completion must be text or a list"),
        ({"messages": []}, "messages must be a list with at least one message"),
        ({"messages": [user("a")]}, "messages has no assistant message"),
        ({"messages": [{"role": "assistant"}]}, "messages[0] must have a role and a content, both text"),
        ({"messages": [user("a"), {"role": "robot", "content": "a"}, assistant("b")]}, "role='robot'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "conversations[0] must have a from and a value"),
        ({"conversations": ["only asked"]}, "conversations has no assistant message"),
        ({"prompt": "a", "completion": [user("b")]}, "completion has no assistant message"),
        ({"text": 3}, "text must be text"),
        ({"text": None, "instruction": "a"}, "keys instruction;"),
        ({"system": 3, "messages": ASKED}, "system must be text"),
    ]
    with pytest.raises(ValueError, match="The data can't be used") as e:
        load(write(tmp_path / "d", [ALPACA[0], *(record for record, _ in wrong), ALPACA[0]]), llm)
    found = str(e.value).splitlines()[1:]
    for number, (_, text) in enumerate(wrong, 2):  # equal problems share a line
        assert [line for line in found if text in line and re.search(rf"lines?\b[\d, ]* {number}\b", line)], text


def test_very_many_wrong_records_are_counted(tmp_path: Path, llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"lines 1, 2, .*\(1,000 in all\): has the keys a; needed are") as e:
        load(write(tmp_path / "d", [{"a": 1}] * 1000), llm)
    assert len(str(e.value).splitlines()) == 2


def test_several_files_are_one_data_set(tmp_path: Path, llm: LLM) -> None:
    a, b = ({"instruction": f"{n}?", "output": "yes " * n} for n in (1, 2))
    files = [write(tmp_path / "1.jsonl", [a, a, b]), write(tmp_path / "2.jsonl", [b])]
    whole = load(write(tmp_path / "all", [a, a, b, b]), llm)
    for path in (tuple(map(str, files)), f"{tmp_path}/?.jsonl"):
        data, _ = load_sft(DataSettings(path=path, val_fraction=0), llm.tokenizer, llm.style, 200)
        assert data.fingerprint() == whole.fingerprint()
        assert data.notes[0].startswith(f"{files[0]} and 1 more: 4 examples")
        assert data.notes[1:] == (f"{files[0]}: 3 records", f"{files[1]}: 1 record")


# --- what is learned --------------------------------------------------------------------------------------------------
def byte_tokenizer(folder: Path) -> Tokenizer:
    """A token for each byte and for each end of turn, so that no token lies across the border of an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = ["<eos>", *sorted({end.strip() for _, end in AROUND.values()} - {""})]
    core.add_special_tokens([AddedToken(end, special=True, normalized=False) for end in ends])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(dict(eos_token="<eos>", tokenizer_class="PreTrainedTokenizerFast"))
    )
    return Tokenizer.from_dir(folder)


# what the model writes around each answer, from the models' published templates: a space that the prompt does not end
# with before, the end of turn behind
AROUND = {
    "chatml": ("", "<|im_end|>"), "smollm2": ("", "<|im_end|>"), "qwen2.5": ("", "<|im_end|>"),
    "llama2": (" ", " </s>"), "llama3": ("", "<|eot_id|>"), "llama3.1": ("", "<|eot_id|>"), "llama4": ("", "<|eot|>"),
    "mistral-v1": (" ", "</s>"), "mistral-v3": (" ", "</s>"), "mistral-v7-tekken": ("", "</s>"),
    "gemma": ("", "<end_of_turn>"), "gemma3": ("", "<end_of_turn>"), "gemma4": ("", "<turn|>"),
    "phi-3": ("", "<|end|>"), "phi-4": ("", "<|im_end|>"), "olmo2": ("", "<|endoftext|>"), "vicuna": (" ", "</s>"),
    "zephyr": ("", "</s>"), "deepseek-v3": ("", "<｜end▁of▁sentence｜>"), "deepseek-r1": ("", "<｜end▁of▁sentence｜>"),
    "granite-4": ("", "<|end_of_text|>"), "command-r": ("", "<|END_OF_TURN_TOKEN|>"), "qwq": ("", "<|im_end|>"),
    "minimax-m2": ("", "[e~["), "plain": ("", ""), "alpaca": ("", ""),
}  # fmt: skip
TALK = [user("q1 <x>"), assistant("<b>ä 🤗</b>"), user("q2\n"), assistant("second\n\n  x")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def answers(text: str, contents: Iterable[str], before: str, end: str) -> Iterator[tuple[int, int]]:
    """Where in the text the answers are: found by what they say, in their order."""
    at = 0
    for content in contents:
        start = text.index(before + content + end, at)
        at = start + len(before + content + end)
        yield start, at


@pytest.mark.parametrize("loss_on", ["assistant", "completion", "all"])
@pytest.mark.parametrize("name", AROUND)
def test_learned_tokens_are_the_answers_in_the_rendered_text(name: str, loss_on: Any, tokenizer: Tokenizer) -> None:
    style, (before, end) = get_style(name), AROUND[name]
    for messages in (TALK, TALK[:2], [*TALK, *TALK[:2]]):
        text = style.format(messages, add_generation_prompt=False)
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
        spans = list(answers(text, contents, before, end))
        spans = {"assistant": spans, "completion": spans[-1:], "all": [(0, len(text))]}[loss_on]
        expected = [False] * len(text.encode())
        for start, stop in spans:
            for byte in range(len(text[:start].encode()), len(text[:stop].encode())):
                expected[byte] = True
        example = Encoder(tokenizer, style, loss_on)(Conversation(messages))
        ids, learn = list(example.ids), list(example.learn)
        if not end:  # nothing in the text ends the answer
            assert (ids.pop(), learn.pop()) == (tokenizer.eos_id, True)
        got: list[bool] = []
        for token, is_learned in zip(ids, learn, strict=True):
            got += [is_learned] * len(tokenizer.decode([token]).encode() if token >= 256 else b"x")
        assert tokenizer.decode(ids) == text
        assert got == expected


def test_learned_tokens_are_those_that_transformers_marks(llm: LLM) -> None:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(tiny.folder())
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for style in (llm.style, TemplateStyle(marked), get_style("chatml")):
        for messages in (TWO, TALK, CHAT[1]["messages"]):
            theirs = hf.apply_chat_template(
                messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
            )
            ours = Encoder(llm.tokenizer, style)(Conversation(messages))
            assert ours == Example(list(theirs["input_ids"]), [bool(m) for m in theirs["assistant_masks"]])


def test_what_loss_on_chooses(tmp_path: Path, llm: LLM) -> None:
    path = write(tmp_path / "d", [CHAT[1], {"prompt": TWO[:2], "completion": TWO[2:]}, {"text": "ab"}])
    said = [["first answer<|im_end|>", "second 🙂<|im_end|>"], ["second 🙂<|im_end|>"], ["ab<|im_end|>"]]
    assert [learned(e, llm.tokenizer) for e in examples(load(path, llm))] == said
    last = [turns[-1:] for turns in said]
    assert [learned(e, llm.tokenizer) for e in examples(load(path, llm, loss_on="completion"))] == last
    assert all(all(e.learn) for e in examples(load(path, llm, loss_on="all")))


def test_what_follows_the_last_answer_is_left_out(llm: LLM) -> None:
    unanswered = Conversation([*TWO, user("three")])
    assert Encoder(llm.tokenizer, llm.style)(unanswered) == Encoder(llm.tokenizer, llm.style)(Conversation(TWO))
    every = Encoder(llm.tokenizer, llm.style, "all")(unanswered)
    assert llm.tokenizer.decode(every.ids).endswith("three<|im_end|>\n")


def test_every_token_gets_one_end(tokenizer: Tokenizer) -> None:
    """loss_on=all needs no turns to be found, and still ends where the style's text does not."""
    ids = Encoder(tokenizer, get_style("alpaca"), "all")(Conversation(TALK)).ids
    assert ids.count(tokenizer.eos_id) == 1
    assert ids[-1] == tokenizer.eos_id
    for name in ("chatml", "deepseek-r1", "qwen3", "gemma"):
        assert tokenizer.eos_id not in Encoder(tokenizer, get_style(name), "all")(Conversation(TALK)).ids
    assert Encoder(tokenizer, get_style("plain"))(Text("ab<eos>")).ids.count(tokenizer.eos_id) == 1


def test_empty_answers_are_counted(tmp_path: Path, llm: LLM) -> None:
    """They are learned as they are; of several answers one is enough."""
    records = [
        *ALPACA, {"prompt": "q", "completion": ""}, {"instruction": "q", "output": " \n"},
        {"messages": [user("q"), assistant("a"), user("q"), assistant("")]},
        {"prompt": [user("q"), assistant("given")], "completion": [user("q"), assistant("")]},
    ]  # fmt: skip
    path = write(tmp_path / "d", records)
    for loss_on, count in (("assistant", 3), ("completion", 4), ("all", 0)):
        data = load(path, llm, 1000, loss_on=loss_on)
        notes = [note for note in data.notes if "empty answer" in note]
        said = f"{path}: {count} examples with an empty answer: only its end is trained on"
        assert notes == ([said] if count else [])
        assert len(data) == len(records)
    assert learned(load(path, llm, 1000)[len(ALPACA)], llm.tokenizer) == ["<|im_end|>"]
    path = write(tmp_path / "one", [ALPACA[0], records[-1]])
    assert load(path, llm).notes[1].endswith("1 example with an empty answer: only its end is trained on")
    assert not load(write(tmp_path / "none", ALPACA), llm).notes[1:]


def test_columns_that_are_not_used_are_named(tmp_path: Path, llm: LLM) -> None:
    misspelt = {"id": 1, "instruction": "a", "inptu": "important", "output": "b", "empty": None}
    path = write(tmp_path / "d.jsonl", [misspelt, *CHAT, {"prompt": "a", "completion": "b", "sytem": "c"}])
    assert load(path, llm).notes[1] == (
        f"{path}: columns not used: inptu (did you mean input?), sytem (did you mean system?), id"
    )
    known = {"instruction": "a", "input": "b", "output": "c", "label": True, "weight": 1, "inputs": "d"}
    path = write(tmp_path / "known.jsonl", [known | {f"c{i}": i for i in range(1, 11)}])
    named = "inputs, c1, c2, c3, c4, c5, c6, c7 and 3 more"  # `input` is there, so it was not misspelt
    assert load(path, llm).notes[1] == f"{path}: columns not used: {named}"


def test_templates_that_write_earlier_answers_differently_are_reported(tmp_path: Path, llm: LLM) -> None:
    path = write(tmp_path / "d", [CHAT[1], CHAT[0]])
    data = load(path, llm, style="qwen3")
    assert [learned(e, llm.tokenizer) for e in examples(data)] == [
        ["<think>\n\n</think>\n\nsecond 🙂<|im_end|>"], ["<think>\n\n</think>\n\nYes.<|im_end|>"]
    ]  # fmt: skip
    assert any("only the last answer of 1 conversation is trained on" in note for note in data.notes)
    assert not any("only the last" in note for note in load(path, llm).notes)
    assert not any("only the last" in note for note in load(path, llm, style="qwen3", loss_on="completion").notes)


ALWAYS = tiny.TEMPLATE[: tiny.TEMPLATE.index("{% if add")] + "{{ '<|im_start|>assistant\n' }}"


def test_templates_that_always_ask_for_an_answer(llm: LLM) -> None:
    """What they write behind the conversation is not part of it: as ChatML, whose template asks when it is told to."""
    style, chatml = TemplateStyle(ALWAYS), TemplateStyle(tiny.TEMPLATE)
    for messages in (ASKED, TWO, [*ASKED, assistant("b")], [{"role": "system", "content": "s"}, *TWO], ASKED + TWO):
        for loss_on in ("assistant", "completion", "all"):
            ours, theirs = (Encoder(llm.tokenizer, s, loss_on)(Conversation(messages)) for s in (style, chatml))
            assert ours == theirs
        assert style.format(messages) == chatml.format(messages)
    assert learned(Encoder(llm.tokenizer, style)(Conversation(TWO)), llm.tokenizer) == [
        "first answer<|im_end|>", "second 🙂<|im_end|>",
    ]  # fmt: skip
    # needs a first message, so what it always writes can't be seen alone
    unclear = TemplateStyle("{{ messages[0].content and '' }}" + ALWAYS)
    with pytest.raises(ValueError, match=r"asks for another answer after the last.*if add_generation_prompt"):
        Encoder(llm.tokenizer, unclear)(Conversation(ASKED))
    assert unclear.format(ASKED) == chatml.format(ASKED)
    # no such template: nothing asks, and [/INST] asks by itself
    inst = (
        "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' "
        "else ' ' + m.content + '</s>' }}{% endfor %}"
    )
    assert TemplateStyle(inst).format(TWO, add_generation_prompt=False).endswith("second 🙂</s>")


def test_templates_that_ask_with_an_opened_thought_are_reported(tmp_path: Path, llm: LLM) -> None:
    data = load(write(tmp_path / "d", CHAT), llm, style="deepseek-r1")
    assert any("2 conversations teach answering without thinking" in note for note in data.notes)
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    style: PromptStyle = TemplateStyle(template)
    messages = [user("a"), assistant("<think>b"), user("c"), assistant("<|d")]
    example = Encoder(llm.tokenizer, style)(Conversation(messages))
    assert learned(example, llm.tokenizer) == ["b<|im_end|>", "<|d<|im_end|>"]  # the first continues its prompt


# --- length -----------------------------------------------------------------------------------------------------------
def test_long_examples_are_cut_and_counted(tmp_path: Path, llm: LLM) -> None:
    long_answer = {"instruction": "a", "output": "b " * 100}
    long_question = {"instruction": "a " * 100, "output": "b"}
    path = write(tmp_path / "d", [ALPACA[0], long_answer, long_question])
    whole = load(path, llm, 1000)
    assert len(whole) == 3
    assert len(whole.notes) == 1
    n = sum(len(e.ids) for e in examples(whole))
    count = sum(sum(e.learn) for e in examples(whole))
    assert f"3 examples of {n / 3:.0f} tokens on average, {n} in all, {count} trained on" in whole.notes[0]
    for options in (dict(max_len=40), dict(context_len=40), dict(max_len=90, context_len=40)):
        data = load(path, llm, **options)
        assert [len(e.ids) for e in examples(data)] == [len(whole[0].ids), 40]
        assert data[1] == Example(whole[1].ids[:40], whole[1].learn[:40])
        assert data.notes[1].endswith("1 example cut to max_len=40 tokens")
        assert data.notes[2].endswith("1 example left out because nothing to train on was left")
    one, n = write(tmp_path / "one", [long_answer]), len(whole[1].ids)
    assert len(load(one, llm, n).notes) == 1
    assert load(one, llm, n)[0] == whole[1]
    assert load(one, llm, n - 1).notes[1] == f"{one}: 1 example cut to max_len={n - 1} tokens"


def test_nothing_left_to_learn(tmp_path: Path, llm: LLM) -> None:
    path = write(tmp_path / "d", ALPACA)
    with pytest.raises(ValueError, match=r"nothing to train on after cutting to max_len=5 tokens"):
        load(path, llm, max_len=5)
    with pytest.raises(ValueError, match=r"other: nothing to train on"):
        load(path, llm, max_len=40, val_path=write(tmp_path / "other", [{"prompt": "a " * 50, "completion": "b"}]))


@pytest.mark.parametrize(
    ("longest", "limit", "packing", "expected"),
    [
        (100, 131072, True, 512), (100, 131072, False, 100), (3000, 131072, True, 3000), (100, 256, True, 256),
        (100, None, True, 512), (700, None, False, 700), (40, 40, True, 40),
    ],
)  # fmt: skip
def test_rows_are_as_long_as_the_data_needs(longest: int, limit: int | None, packing: bool, expected: int) -> None:
    assert row_length(longest, limit, packing=packing) == expected
    data = TokenizedDataset.from_examples([Example([1] * longest, [True] * longest)], max_len=limit, packing=packing)
    assert data.max_len == expected


# --- the data set -----------------------------------------------------------------------------------------------------
def random_examples(lengths: list[int], seed: int = 0) -> list[Example]:
    gen = torch.Generator().manual_seed(seed)
    return [
        Example(torch.randint(1, 300, (n,), generator=gen).tolist(), (torch.rand(n, generator=gen) < 0.5).tolist())
        for n in lengths
    ]


def test_examples_come_back_as_they_were() -> None:
    made = random_examples([7, 2, 19, 4, 3])
    data = TokenizedDataset.from_examples(iter(made))
    assert examples(data) == made
    assert data.ids.dtype == np.int32
    assert data.learn.dtype == np.bool_
    assert all(type(token) is int for token in data[0].ids)
    assert all(type(learn) is bool for learn in data[0].learn)
    picked = data.select([3, 0, 3])
    assert examples(picked) == [made[3], made[0], made[3]]
    assert picked.ids is data.ids
    assert len(TokenizedDataset.from_examples([])) == 0
    with pytest.raises(ValueError, match="19 tokens, more than max_len=18"):
        TokenizedDataset.from_examples(made, max_len=18)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("packing", "static_shapes"), [(False, False), (False, True), (True, False), (True, True)])
def test_batches_hold_every_learned_token_once(seed: int, packing: bool, static_shapes: bool) -> None:
    made = random_examples([7, 2, 190, 44, 3, 60, 61, 300, 250, 9], seed)
    data = TokenizedDataset.from_examples(made, max_len=400, packing=packing)
    data.static_shapes = static_shapes
    indexes = [9, 2, 4, 7, 1, 8]
    batches = data.batches(indexes, 2)
    found = {}
    for batch in batches:
        assert batch.tokens.size(0) <= 2
        assert batch.tokens.size(1) <= data.max_len
        assert data.max_len == (400 if packing else 300)
        if static_shapes:
            assert batch.tokens.size(1) in ([400] if packing else [64, 128, 192, 256, 300])
        for row in range(batch.tokens.size(0)):
            at = 0
            for number, length in zip(batch.examples[row], batch.lengths[row], strict=True):
                part = slice(at, at + length)
                found[number] = (batch.tokens[row, part].tolist(), batch.targets[row, part].tolist())
                at += length
            assert (batch.targets[row, at:] == IGNORE).all()
    assert sorted(found) == list(range(len(indexes)))
    for number, i in enumerate(indexes):
        e = made[i]
        assert found[number][0] == e.ids[:-1]
        assert found[number][1] == [t if learn else IGNORE for t, learn in zip(e.ids[1:], e.learn[1:], strict=True)]
    direct = micro_batches([made[i] for i in indexes], 2, data.max_len, packing=packing, static_shapes=static_shapes)
    assert [b.lengths for b in batches] == [b.lengths for b in direct]


def test_split() -> None:
    made = random_examples([3] * 20)
    data = TokenizedDataset.from_examples(made)
    data.notes = ("note",)
    train, val = data.split(0.25, seed=5)
    assert val is not None
    assert (len(train), len(val), train.notes, val.notes) == (15, 5, ("note",), ())
    places = [made.index(e) for e in (*examples(train), *examples(val))]
    assert sorted(places) == list(range(20))
    assert places[:15] == sorted(places[:15])
    again, val_again = data.split(0.25, seed=5)
    assert val_again is not None
    assert examples(again) + examples(val_again) == examples(train) + examples(val)
    assert examples(data.split(0.25, seed=6)[0]) != examples(train)
    assert data.split(0.0, seed=5) == (data, None)
    assert [len(part) for part in data.split(0.001, 0) if part] == [19, 1]
    assert [len(part) for part in data.split(0.999, 0) if part] == [1, 19]
    one = TokenizedDataset.from_examples(random_examples([3]))
    assert one.split(0.5, 0) == (one, None)


def test_validation(tmp_path: Path, llm: LLM) -> None:
    path, other = write(tmp_path / "d", ALPACA * 5), write(tmp_path / "other", CHAT)
    train, val = load_sft(DataSettings(path=path, val_fraction=0.25), llm.tokenizer, llm.style, 200)
    assert val is not None
    assert (len(train), len(val)) == (15, 5)
    train, val = load_sft(DataSettings(path=path, val_path=other, packing=False), llm.tokenizer, llm.style, 200)
    assert val is not None
    assert (len(train), len(val), train.packing, val.packing) == (20, 2, False, False)
    assert train.notes[0].startswith(f"{path}: 20 examples")
    assert val.notes[0].startswith(f"{other}: 2 examples")
    assert val.max_len == max(len(e.ids) for e in examples(val))
