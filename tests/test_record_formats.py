"""What the keys of records do: ids against transformers' chat templates, masks against what must be learned."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from litlm.data.base import Example, TokenizedDataset
from litlm.data.preference import Pair, load_preference, parse_pair
from litlm.data.record_formats import Conversation, Text, parse, template_arguments
from litlm.data.records import read_records
from litlm.data.sft import Encoder, load_sft
from litlm.llm import LLM
from litlm.prompts import PromptStyle, TemplateStyle, get_style
from litlm.settings.data import DataSettings, PreferenceData

# As Qwen's: tools, calls and results, reasoning that a switch turns off, and a name.
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}<call>{{ call.function.name }}({{ call.function.arguments | tojson }})</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
    "{% if enable_thinking is defined %}{{ '<!-- thinking: ' ~ enable_thinking ~ ' -->' if not messages }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "unit": None}}}
USER, SAID = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}
CALLED: dict[str, Any] = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "dry"}
TALK = [USER, CALLED, RESULT, SAID]


@pytest.fixture
def llm() -> LLM:
    return tiny.shared()


@pytest.fixture(scope="module")
def hf() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.folder())


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def sft(
    path: Path, records: list[Any], llm: LLM, style: PromptStyle | None = None, **settings: Any
) -> TokenizedDataset:
    data = DataSettings(path=write(path / "d.jsonl", records), **({"val_fraction": 0} | settings))
    return load_sft(data, llm.tokenizer, style or TemplateStyle(TEMPLATE), 1000)[0]


def pairs(path: Path, records: list[Any], llm: LLM, style: PromptStyle | None = None) -> list[Pair]:
    data = PreferenceData(path=write(path / "p.jsonl", records), val_fraction=0)
    found = load_preference(data, llm.tokenizer, style or TemplateStyle(TEMPLATE), 1000)[0]
    return [found[i] for i in range(len(found))]


def learned(example: Example, llm: LLM) -> list[str]:
    runs = itertools.groupby(zip(example.ids, example.learn, strict=True), key=lambda pair: pair[1])
    return [llm.tokenizer.decode([token for token, _ in run]) for learn, run in runs if learn]


# --- tools, and values for the template -------------------------------------------------------------------------------
def test_tools_reach_the_template_as_in_transformers(tmp_path: Path, llm: LLM, hf: Any) -> None:
    forms: list[dict[str, Any]] = [
        {"tools": TOOLS}, {"tools": json.dumps(TOOLS)}, {"functions": [TOOLS[0]["function"]]}, {"tools": []},
        {"tools": ""}, {"tools": None}, {},
    ]  # fmt: skip
    for form in forms:
        tools = TOOLS if any(form.values()) else None
        expected = list(hf.apply_chat_template(TALK, tools=tools, chat_template=TEMPLATE)["input_ids"])
        (example,) = sft(tmp_path, [form | {"messages": TALK}], llm)
        assert example.ids == expected
        call = '<call>weather({"city": "Rome", "unit": null})</call><|im_end|>'
        assert learned(example, llm) == [call, "No.<|im_end|>"]
        for prompt in ({"prompt": TALK[:3]}, {"prompt": "Rain?"}):
            asked = TALK[:3] if isinstance(prompt["prompt"], list) else [USER]
            ((chosen, rejected),) = pairs(tmp_path, [form | prompt | {"chosen": "No.", "rejected": [CALLED]}], llm)
            for answer, said in ((chosen, SAID), (rejected, CALLED)):
                theirs = hf.apply_chat_template([*asked, said], tools=tools, chat_template=TEMPLATE)
                assert answer.ids == list(theirs["input_ids"])
            assert [learned(answer, llm) for answer in (chosen, rejected)] == [["No.<|im_end|>"], [call]]


def test_values_for_the_template_reach_it(tmp_path: Path, llm: LLM, hf: Any) -> None:
    asked = "{{ '<off>' if enable_thinking is defined and not enable_thinking }}" + TEMPLATE
    style = TemplateStyle(asked)
    for form in ({"enable_thinking": False}, '{"enable_thinking": false}', {"enable_thinking": True, "more": ""}):
        kwargs = json.loads(form) if isinstance(form, str) else form
        record = {"messages": [USER, SAID], "chat_template_kwargs": form}
        (example,) = sft(tmp_path, [record], llm, style)
        theirs = hf.apply_chat_template([USER, SAID], chat_template=asked, **kwargs)
        assert example.ids == list(theirs["input_ids"])
        record = {"prompt": [USER], "chosen": "No.", "rejected": "Yes.", "chat_template_kwargs": form}
        ((chosen, _),) = pairs(tmp_path, [record], llm, style)
        assert chosen.ids == example.ids


def test_documents_reach_the_template_as_in_transformers(tmp_path: Path, llm: LLM, hf: Any) -> None:
    template = "{% for d in documents or [] %}<doc>{{ d.title }}: {{ d.text }}</doc>{% endfor %}" + TEMPLATE
    style = TemplateStyle(template)
    documents = [{"title": "Rome", "text": "dry"}, {"title": "Oslo", "text": "wet"}]
    for form in (documents, json.dumps(documents), [], "", None):
        theirs = hf.apply_chat_template([USER, SAID], documents=documents if form else None, chat_template=template)
        expected = list(theirs["input_ids"])
        for record in ({"messages": [USER, SAID]}, {"prompt": "Rain?", "completion": "No."}):
            assert sft(tmp_path, [record | {"documents": form}], llm, style)[0].ids == expected
        pair = {"prompt": "Rain?", "chosen": "No.", "rejected": "Yes.", "documents": form}
        assert pairs(tmp_path, [pair], llm, style)[0].chosen.ids == expected


TOLD = {"messages": [USER, SAID]}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
PLAIN = tiny.TEMPLATE


@pytest.mark.parametrize(
    ("record", "style", "text"),
    [
        (TOLD | {"tools": TOOLS}, TemplateStyle(PLAIN), "the chat template does not write tools"),
        (TOLD | {"tools": TOOLS}, get_style("chatml"), "prompt style 'chatml' can't write tools; use a checkpoint"),
        (TOLD | {"documents": [{"text": "d"}]}, TemplateStyle(PLAIN), "the chat template does not write documents"),
        (
            TOLD | {"documents": [{"text": "d"}]}, TemplateStyle("{% if documents %}{% endif %}" + PLAIN),
            "the chat template does not write documents",
        ),
        (TOLD | {"documents": [{"text": "d"}]}, get_style("chatml"), "'chatml' can't write documents; use"),
        *(({"messages": [USER, SAID | {key: "x"}]}, style, f"message 1 has {key!r}, which this style does not write")
          for style in (TemplateStyle(PLAIN), get_style("chatml"))
          for key in ("tools", "tool_plan", "thoughts", "refusal", "documents", "citations")),
        (TOLD | {"tools": "weather"}, TemplateStyle(TEMPLATE), "tools is not valid JSON"),
        (TOLD | {"tools": ["weather"]}, TemplateStyle(TEMPLATE), "tools must be a list of JSON schemas"),
        (TOLD | {"functions": {"a": 1}}, TemplateStyle(TEMPLATE), "functions must be a list of JSON schemas"),
        (TOLD | {"tools": TOOLS, "functions": TOOLS}, TemplateStyle(TEMPLATE), "tools and functions are both"),
        (TOLD | {"chat_template_kwargs": {"thinking": True}}, TemplateStyle(TEMPLATE), "does not use thinking"),
        (TOLD | {"chat_template_kwargs": {"messages": []}}, TemplateStyle(TEMPLATE), "can't hold messages"),
        (TOLD | {"chat_template_kwargs": {"x": 1}}, get_style("chatml"), "'chatml' can't write template_kwargs"),
        (TOLD | {"chat_template_kwargs": [1]}, TemplateStyle(TEMPLATE), "chat_template_kwargs must be an object"),
        ({"messages": TALK}, get_style("chatml"), "message 2 has role='tool', not one of"),
        ({"messages": [USER, CALLED]}, get_style("chatml"), "message 1 has 'tool_calls', which this style"),
        ({"messages": [USER, CALLED | {"content": ""}]}, TemplateStyle(PLAIN), "message 1 has 'tool_calls', which"),
        (
            {"messages": [USER, RESULT, SAID]},
            TemplateStyle(PLAIN.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}")),
            "does not write messages of role 'tool'",
        ),
        ({"messages": [USER, SAID | {"reasoning_content": "why"}]}, get_style("chatml"), "has 'reasoning_content'"),
        ({"messages": [USER, SAID | {"thinking": "why"}]}, TemplateStyle(PLAIN), "has 'reasoning_content'"),
        ({"messages": [USER | {"name": "Ann"}, SAID]}, TemplateStyle(PLAIN), "message 0 has 'name'"),
    ],
)  # fmt: skip
def test_what_a_style_can_not_write_is_refused(
    record: dict[str, Any], style: PromptStyle, text: str, tmp_path: Path, llm: LLM
) -> None:
    with pytest.raises(ValueError, match="line 2: ") as e:
        sft(tmp_path, [TOLD, record], llm, style)
    assert text in str(e.value)
    *asked, said = record["messages"]
    pair = {k: v for k, v in record.items() if k != "messages"} | {"prompt": asked, "chosen": [said], "rejected": "z"}
    with pytest.raises(ValueError, match="line 2: ") as e:
        pairs(tmp_path, [PAIR, pair], llm, style)
    assert text in str(e.value)


# --- messages ---------------------------------------------------------------------------------------------------------
def test_forms_of_messages() -> None:
    """OpenAI's, its older one, and ShareGPT's: all become what transformers' templates take."""
    called = CALLED | {"content": None}
    name, arguments = "weather", {"city": "Rome", "unit": None}
    text = {"name": name, "arguments": json.dumps(arguments)}
    forms: list[dict[str, Any]] = [
        called,
        CALLED | {"function_call": None, "refusal": None},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": text}]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": text},
        {"from": "function_call", "value": json.dumps({"name": name, "arguments": arguments})},
        {"from": "function_call", "value": json.dumps([{"name": name, "arguments": arguments}])},
        {"role": "tool_call", "content": json.dumps(text)},
    ]
    for form in forms:
        assert parse({"messages": [USER, form]}) == Conversation([USER, CALLED])
        assert parse_pair({"prompt": [USER], "chosen": [form], "rejected": "a"})[0] == [USER, CALLED]
    for role in ("observation", "function_response", "tool_response", "function"):
        assert parse({"conversations": [CALLED, {"from": role, "value": "dry"}]}) == Conversation([CALLED, RESULT])
    parts = [{"type": "text", "text": "Ra"}, {"type": "text", "text": "in?", "image_url": None}]
    assert parse({"messages": [{"role": "user", "content": parts}, SAID]}) == Conversation([USER, SAID])
    assert parse_pair(PAIR | {"prompt": [{"role": "user", "content": parts}]})[0][0] == USER
    both = CALLED | {"content": "I look.", "tool_calls": [CALL, CALL]}
    assert parse({"messages": [USER, both]}) == Conversation([USER, both])
    developer = {"role": "developer", "content": "d"}
    assert parse({"messages": [developer, USER, SAID]}) == Conversation([developer, USER, SAID])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, "messages[1] must have a role and a content"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "messages[1] has content with a part of type 'image"),
        ({"content": [{"type": "text", "text": "a", "weight": 0}]}, "messages[1] has content with 'weight' in a part"),
        ({"content": ["a"]}, "a part of type 'str'"),
        ({"content": "a", "images": ["x.png"]}, "messages[1].images can't be used: litlm trains on text only"),
        ({"content": "a", "prefix": True}, "messages[1].prefix can't be used"),
        ({"content": "a", "training_detail": [{"train": True}]}, "messages[1].training_detail can't be used"),
        ({"content": "a", "weight": 0.5}, "messages[1].weight=0.5: a message is trained on (1, true) or not"),
        ({"content": "a", "train": "yes"}, "messages[1].train='yes'"),
        ({"tool_calls": "[{"}, "messages[1].tool_calls is not valid JSON"),
        ({"tool_calls": ["f"]}, "messages[1].tool_calls must be a list of objects"),
        ({"tool_calls": [{"function": {"arguments": {}}}]}, "messages[1] has a tool call without the name"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "x="}}]}, "arguments of f is not valid JSON"),
        ({"role": "function_call", "content": "f(x)"}, "messages[1], a tool call, is not valid JSON"),
        ({"role": "user", "content": "a", "train": True}, "messages[1].train=True on a message of role 'user'"),
    ],
)
def test_wrong_messages(message: dict[str, Any], text: str) -> None:
    message = {"role": "assistant"} | message
    for call in (
        lambda: parse({"messages": [USER, message, SAID]}),
        lambda: parse_pair({"chosen": [USER, message, USER, SAID], "rejected": [USER, SAID, USER, SAID]}),
    ):
        with pytest.raises(ValueError) as e:  # noqa: PT011
            call()
        assert text.removeprefix("messages[1]") in str(e.value)


# --- weights ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
def test_answers_of_weight_0_are_not_learned(key: str, tmp_path: Path, llm: LLM) -> None:
    style = TemplateStyle(PLAIN)

    def talk(*weights: Any) -> dict[str, Any]:
        answers = [{"role": "assistant", "content": f"a{i}", key: weight} for i, weight in enumerate(weights)]
        return {"messages": [m for answer in answers for m in (USER, answer)]}

    def said(record: dict[str, Any], **settings: Any) -> list[str]:
        (example,) = sft(tmp_path, [record], llm, style, **settings)
        assert '"' + key not in llm.tokenizer.decode(example.ids)
        return learned(example, llm)

    a0, a1, a2 = (f"a{i}<|im_end|>" for i in range(3))
    assert said(talk(0, 1, None)) == [a1, a2]
    assert said(talk(False, 1.0, 0.0)) == [a1]  # what follows the last answer to learn is left out
    assert said(talk(True, 0, 1)) == [a0, a2]
    assert said(talk(0, 1, 1), loss_on="completion") == [a2]
    unweighted = {"messages": [{k: v for k, v in m.items() if k != key} for m in talk(0, 1, 1)["messages"]]}
    assert sft(tmp_path, [talk(0, 1, 1)], llm, style)[0].ids == sft(tmp_path, [unweighted], llm, style)[0].ids
    human = {"from": "human", "value": "q", "weight": 0}  # as SlimOrca writes it
    assert said({"conversations": [human, {"from": "gpt", "value": "a0", "weight": 1}]}) == [a0]

    data = sft(tmp_path, [talk(0, 0), talk(1), talk(1, 0)], llm, style, loss_on="completion")
    assert len(data) == 1
    assert data.notes[1].endswith("2 examples left out because the answers have weight 0")
    with pytest.raises(ValueError, match=r"(?s)nothing to train on.*weight 0"):
        sft(tmp_path, [talk(0)], llm, style)
    with pytest.raises(ValueError, match="message 1 is not to be trained on.*loss_on=all"):
        sft(tmp_path, [talk(0, 1)], llm, style, loss_on="all")
    assert len(sft(tmp_path, [talk(1, 1)], llm, style, loss_on="all")) == 1
    asked = {"messages": [USER | {key: 0}, SAID]}
    assert said(asked) == ["No.<|im_end|>"]
    with pytest.raises(ValueError, match="message 0 is not to be trained on.*loss_on=all"):
        sft(tmp_path, [asked], llm, style, loss_on="all")

    prompt = talk(0, 1)["messages"]
    ((chosen, _),) = pairs(tmp_path, [{"prompt": [*prompt, USER], "chosen": "c", "rejected": "r"}], llm, style)
    assert learned(chosen, llm) == ["c<|im_end|>"]
    with pytest.raises(ValueError, match="an answer has weight 0"):
        pairs(tmp_path, [{"chosen": prompt, "rejected": talk(1, 0)["messages"]}], llm, style)


# --- other keys -------------------------------------------------------------------------------------------------------
SYSTEM, OLD = (
    {"role": "system", "content": "s"},
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
)


def test_history_comes_first_and_is_learned_as_in_llama_factory(tmp_path: Path, llm: LLM) -> None:
    q, a = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    for rounds in ([["x", "y"]], [("x", "y")], '[["x", "y"]]'):
        record = {"instruction": "q", "output": "a", "history": rounds, "system": "s"}
        assert parse(record) == Conversation([SYSTEM, *OLD, q, a])
        pair = {"instruction": "q", "chosen": "a", "rejected": "b", "history": rounds, "system": "s"}
        assert parse_pair(pair)[0] == [SYSTEM, *OLD, q, a]
        (example,) = sft(tmp_path, [record], llm, TemplateStyle(PLAIN))
        assert learned(example, llm) == ["y<|im_end|>", "a<|im_end|>"]
    for none in ([], "", None):
        assert parse({"instruction": "q", "output": "a", "history": none}) == Conversation([q, a], 1)
        assert parse_pair(PAIR | {"history": none}) == parse_pair(PAIR)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        *((TOLD | {key: ["a.png"]}, f"{key} can't be used: litlm trains on text only")
          for key in ("image", "images", "videos", "audios")),
        ({"text": "a", "image": {"bytes": "x"}}, "image can't be used"),
        (TOLD | {"available_tools": TOOLS}, "available_tools can't be used: call it tools"),
        (TOLD | {"only_last": True}, "--data.loss_on completion"),
        (TOLD | {"history": [["x", "y"]]}, "history can't be used beside messages"),
        ({"prompt": [USER], "completion": "a", "history": [["x", "y"]]}, "history can't be used beside a list of mess"),
        ({"prompt": "q", "completion": "a", "history": [["x"]]}, "history must be a list of rounds"),
        *((record | {key: false}, f"{key}={false!r} marks a bad answer")
          for record in (TOLD, {"prompt": "q", "completion": "a"}, {"question": "q", "output": "a"})
          for key in ("label", "kto_tag") for false in (False, 0, 0.0, "False", "false", "0", "no", " FALSE ")),
        *((record | {key: false}, f"{key}={false!r} says not to train on the record")
          for record in (TOLD, {"prompt": "q", "completion": "a"}, {"text": "t"})
          for key in ("weight", "train", "training") for false in (False, 0, 0.0, "false", "0")),
        *((TOLD | {key: value}, f"{key} can't be used: put it into chat_template_kwargs")
          for key, value in (("enable_thinking", False), ("enable_thinking", True), ("reasoning_effort", "low"))),
        *(({"text": "t", key: value}, f"{key} can't be used beside text") for key, value in (
            ("system", "s"), ("system_prompt", "s"), ("system_message", "s"), ("tools", TOOLS), ("functions", TOOLS),
            ("documents", [{"text": "d"}]), ("chat_template_kwargs", {"a": 1}), ("history", [["x", "y"]]))),
        (TOLD | {"text": "t"}, "text can't be used beside messages"),
        (TOLD | {"conversations": ["a", "b"]}, "messages and conversations hold different messages"),
        ({"messages": [USER, SAID | {"value": "Yes."}]}, "has a content and a value that differ"),
        ({"messages": [USER | {"from": "gpt"}, SAID]}, "has a role and a from that differ"),
        ({"prompt": "p", "question": "q", "answer": "a"}, "prompt and question are 2 prompts"),
        ({"prompt": "p", "output": "o", "answer": "a"}, "output and answer are 2 answers"),
        ({"prompt": "p", "input": "o", "context": "a", "answer": "a"}, "input and context are 2 inputs"),
        ({"prompt": "p", "context": {"a": 1}, "answer": "a"}, "context must be text"),
        ({"prompt": [USER], "input": "o", "completion": "a"}, "input can't be used beside a list of messages"),
        *(({"question": "q", key: ["x"], "answer": "a"}, f"{key} can't be used beside question")
          for key in ("choices", "options", "passage")),
        (TOLD | {"documents": ["d"]}, "documents must be a list of objects"),
        (TOLD | {"documents": "[{"}, "documents is not valid JSON"),
        (TOLD | {"documents": [{}], "chat_template_kwargs": {"documents": [{}]}}, "are both there"),
        (TOLD | {"rejected_response": "x"}, "`litlm dpo`"),
        ({"messages": [SYSTEM, *OLD], "system": "t"}, "two different system texts"),
        ({"system": "s", "system_prompt": "t", **TOLD}, "two different system texts"),
    ],
)  # fmt: skip
def test_keys_that_can_not_be_honoured_are_refused(record: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(record)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        *(({"text": "t", key: "x y"}, f"{key} can't be used beside text, which does not hold it")
          for key in ("prompt", "question", "instruction", "input", "context", "completion", "answer", "output",
                      "reasoning", "reasoning_content", "thinking")),
        ({"text": "t", "prompt": [USER]}, "prompt can't be used beside text"),
        *((TOLD | {key: "x y"}, f"{key} can't be used beside messages, which does not hold it")
          for key in ("prompt", "question", "input", "context", "reasoning", "reasoning_content", "thinking")),
        *(({"conversations": ["a", "b"], key: "x y"}, f"{key} can't be used beside conversations")
          for key in ("input", "context", "reasoning")),
        (TOLD | {"context": {"title": "x"}}, "context can't be used beside messages"),
        (TOLD | {"input": [USER | {"content": "another"}]}, "input can't be used beside messages"),
        ({"messages": [USER, SAID, USER], "completion": "lost"}, "completion can't be used beside messages"),
        (TOLD | {"history": '[["x", "y"]]'}, "history can't be used beside messages"),
        ({"prompt": "q", "completion": "a", "reasoning": "r", "thinking": "s"}, "are 2 reasoning texts"),
        ({"prompt": "q", "completion": "a", "reasoning": ["r"]}, "reasoning can't be used: it must be text"),
        ({"prompt": "q", "completion": [SAID], "reasoning": "r"}, "beside a text as completion"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_by_its_name(record: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(record)


def test_what_is_there_already_is_no_loss() -> None:
    """no_robots and ultrachat repeat the first question beside the messages; Alpaca the whole record as a text."""
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "What  is\nit?"}, SAID]
    for beside in (
        {"prompt": "what is it?"},
        {"prompt": [asked[1]]},
        {"input": ""},
        {"context": "[]"},
        {"question": None},
    ):
        assert parse({"messages": asked} | beside) == Conversation(asked)
    assert parse({"messages": asked, "answer": "42"}) == Conversation(asked)  # to grade with
    whole = {"instruction": "q", "input": "i", "output": "a", "text": "### Instruction:\nq\n### Response:\na"}
    assert parse(whole) == parse({k: v for k, v in whole.items() if k != "text"})
    assert parse({"text": whole["text"], "prompt": "q"}) == Text(whole["text"])
    thought = [USER, SAID | {"reasoning_content": "It is dry."}]
    assert parse({"messages": thought, "reasoning": "It is dry."}) == Conversation(thought)


def test_reasoning_of_a_record_comes_before_its_answer_as_in_transformers(tmp_path: Path, llm: LLM, hf: Any) -> None:
    for key in ("reasoning", "reasoning_content", "thinking"):
        record = {"prompt": "Rain?", "completion": "No.", key: "It is dry."}
        messages = [USER, SAID | {"reasoning_content": "It is dry."}]
        assert parse(record) == Conversation(messages, 1)
        (example,) = sft(tmp_path, [record], llm)
        assert example.ids == list(hf.apply_chat_template(messages, chat_template=TEMPLATE)["input_ids"])
        assert learned(example, llm) == ["<think>It is dry.</think>No.<|im_end|>"]
        with pytest.raises(ValueError, match="line 1: .*has 'reasoning_content', which this style does not write"):
            sft(tmp_path, [record], llm, get_style("chatml"))
        assert parse(record | {key: ""}) == parse(record | {key: None}) == Conversation([USER, SAID], 1)
        talk = record | {"history": [["x", "y"]]}
        assert parse(talk) == Conversation([*OLD, *messages])


@pytest.mark.parametrize("key", ["input", "context", "reasoning", "thinking"])
def test_pairs_lose_nothing_either(key: str) -> None:
    whole = {"chosen": [USER, SAID], "rejected": [USER, SAID | {"content": "Yes."}]}
    assert parse_pair(whole | {key: ""}) == parse_pair(whole | {key: "rain?"}) == parse_pair(whole)
    with pytest.raises(ValueError, match=f"{key} can't be used beside chosen and rejected, which does not hold it"):
        parse_pair(whole | {key: "x y"})
    if key in ("reasoning", "thinking"):
        with pytest.raises(ValueError, match=f"{key} can't be used beside chosen and rejected"):
            parse_pair(PAIR | {key: "x y"})


def test_a_false_label_in_a_cell_is_refused_and_a_true_one_is_not(tmp_path: Path, llm: LLM) -> None:
    for label, fine in (("True", True), ("1", True), ("yes", True), ("", True), ("False", False), ("0", False)):
        (tmp_path / "l.csv").write_text(f"prompt,completion,label\nq,a,{label}\n", encoding="utf-8")
        data = DataSettings(path=str(tmp_path / "l.csv"), val_fraction=0)
        if fine:
            assert len(load_sft(data, llm.tokenizer, TemplateStyle(PLAIN), 100)[0]) == 1
        else:
            with pytest.raises(ValueError, match=r"line 2: label='.*' marks a bad answer"):
                load_sft(data, llm.tokenizer, TemplateStyle(PLAIN), 100)
    assert parse({"text": "a film", "label": 0}) == Text("a film")  # a class


def test_empty_and_harmless_keys_are_passed_over() -> None:
    quiet: dict[str, Any] = dict(
        images=[], videos=None, tools=[], history=[], only_last=False, label=True, id=7, source="web", name="n",
        parallel_tool_calls=True, score=0.5,
    )  # fmt: skip
    assert parse(TOLD | quiet) == Conversation([USER, SAID])
    assert parse_pair(PAIR | quiet) == parse_pair(PAIR)
    empty = {"content": "No.", "role": "assistant", "images": [], "prefix": False, "tool_calls": [], "weight": 1}
    assert parse({"messages": [USER, empty]}) == Conversation([USER, SAID])
    assert template_arguments(TOLD | quiet) == {"tools": None, "template_kwargs": None}


def test_system_texts() -> None:
    for key in ("system", "system_prompt", "system_message"):
        assert parse({key: "s", "messages": OLD}) == Conversation([SYSTEM, *OLD])
        assert parse({key: "s", "messages": [SYSTEM, *OLD]}) == Conversation([SYSTEM, *OLD])
        assert parse({key: "s", "prompt": "x", "completion": "y"}) == Conversation([SYSTEM, *OLD], 2)
        whole = [*OLD[:1], {"role": "assistant", "content": "z"}]
        for prompt in ({}, {"prompt": "x"}, {"prompt": OLD[:1]}):
            assert parse_pair({key: "s", "chosen": OLD, "rejected": whole} | prompt)[0] == [SYSTEM, *OLD]


def test_empty_texts_are_left_out_and_counted(tmp_path: Path, llm: LLM) -> None:
    data = sft(tmp_path, [{"text": "ab"}, {"text": ""}, {"text": " \n"}, {"text": None, "id": 3}], llm)
    assert len(data) == 1
    assert data.notes[-1].endswith("3 examples left out because the text is empty")
    with pytest.raises(ValueError, match=r"(?s)nothing to train on\n.*the text is empty"):
        sft(tmp_path, [{"text": ""}], llm)
    assert parse({"text": None}) == Text("")


# --- pairs ------------------------------------------------------------------------------------------------------------
def test_pairs_of_llama_factory_and_pairs_that_the_assistant_begins() -> None:
    hello = {"role": "assistant", "content": "Hello"}
    asked = [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Rain?"}]
    record = {
        "conversations": asked,
        "chosen": {"from": "gpt", "value": "No."},
        "rejected": {"from": "gpt", "value": "b"},
    }
    expected = [hello, USER, SAID], [hello, USER, SAID | {"content": "b"}]
    assert parse_pair(record) == expected
    whole = {"chosen": expected[0], "rejected": expected[1]}
    assert parse_pair(whole) == expected
    assert parse_pair(whole | {"prompt": [hello, USER]}) == expected
    assert parse_pair({"prompt": [hello, USER], "chosen": "No.", "rejected": "b"}) == expected


def test_earlier_calls_tell_prompts_apart_but_not_by_their_ids(tmp_path: Path, llm: LLM) -> None:
    other = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}

    def pair(call: dict[str, Any]) -> dict[str, Any]:
        return {
            "chosen": TALK,
            "rejected": [USER, {"role": "assistant", "tool_calls": [call]}, RESULT, SAID | {"content": "b"}],
        }

    with pytest.raises(ValueError, match="part at message 1"):
        parse_pair(pair(other))
    assert parse_pair(pair(CALL | {"id": "call_1"}))[1][:3] == TALK[:3]
    calls = {"prompt": [USER], "chosen": [CALLED], "rejected": [{"role": "assistant", "tool_calls": [other]}]}
    ((chosen, rejected),) = pairs(tmp_path, [calls], llm)  # neither is empty, and they are not the same
    assert "Rome" in learned(chosen, llm)[0]
    assert "Oslo" in learned(rejected, llm)[0]


# --- files ------------------------------------------------------------------------------------------------------------
CELLS = (
    "instruction", "prompt", "question", "input", "context", "output", "completion", "response", "answer", "chosen",
    "rejected", "text",
)  # fmt: skip


@pytest.mark.parametrize("column", CELLS)
def test_json_in_cells_is_text_unless_it_is_messages(column: str, tmp_path: Path) -> None:
    texts = [
        '[{"name": "Ann"}]', '[{"role": "admin", "content": "x"}]', '[{"role": "user"}]', "[]", "[1]", '{"a": 1}', "[",
        "{", "[{'name': 'Ann'}]", '{"content": "x"}', "null", "3",
    ]  # fmt: skip
    messages = [[USER], [{"from": "human", "value": "q"}], [{"role": "assistant", "tool_calls": [CALL]}], TALK, USER]
    cells = [*texts, *map(json.dumps, messages), " " + json.dumps(messages[0])]
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[column, "tools"], *([text, ""] for text in cells)])
    assert [record[column] for _, record in read_records(tmp_path / "d.csv")] == [*texts, *messages, messages[0]]
    # what pandas makes of a list: Python, which is no JSON
    for cell in (str([USER]), str(USER), "[{'content': 'a', 'role': 'user'}\n {'content'", '[{"role": "user", "conte'):
        with (tmp_path / "p.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[column], [cell]])
        with pytest.raises(ValueError, match=f"line 2: the cell {column} is not valid JSON .*json.dumps"):
            list(read_records(tmp_path / "p.csv"))


def test_messages_in_cells_are_learned_as_those_of_json_lines(tmp_path: Path, llm: LLM) -> None:
    for asked, answer in (("question", "answer"), ("instruction", "output"), ("prompt", "response")):
        record = {asked: [USER, CALLED, RESULT], answer: [SAID]}
        with (tmp_path / "d.csv").open("w", newline="") as file:
            csv.writer(file).writerows([record, map(json.dumps, record.values())])
        data = DataSettings(path=str(tmp_path / "d.csv"), val_fraction=0)
        found, _ = load_sft(data, llm.tokenizer, TemplateStyle(TEMPLATE), 1000)
        assert found[0] == sft(tmp_path, [record], llm)[0]
    for column in ("input", "context", "text"):  # these take no messages, and say so
        with (tmp_path / "d.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", "completion", column], ["q", "a", json.dumps([USER])]])
            if column == "text":
                file.seek(0)
                file.truncate()
                csv.writer(file).writerows([["text"], [json.dumps([USER])]])
        with pytest.raises(ValueError, match=f"line 2: {column} must be text"):
            load_sft(DataSettings(path=str(tmp_path / "d.csv"), val_fraction=0), llm.tokenizer, llm.style, 1000)


def test_columns_of_structs_lose_their_padding(tmp_path: Path) -> None:
    """Arrow gives every object in a column all keys; a column of JSON keeps what was written."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def call(**arguments: Any) -> dict[str, Any]:
        return {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
            ]
        }

    rows = [call(city="Rome"), call(unit="C")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "s.parquet")
    assert [record for _, record in read_records(tmp_path / "s.parquet")] == rows
    if not hasattr(pyarrow, "json_"):  # before pyarrow 19
        return
    rows = [call(city=None), {"messages": [USER, SAID]}]
    column = pyarrow.array([[json.dumps(m) for m in row["messages"]] for row in rows], pyarrow.list_(pyarrow.string()))
    column = column.cast(pyarrow.list_(pyarrow.json_()))
    parquet.write_table(pyarrow.table({"messages": column}), tmp_path / "j.parquet")
    assert [record for _, record in read_records(tmp_path / "j.parquet")] == rows


def test_nothing_of_a_message_is_left_for_the_template_but_what_it_may_write(llm: LLM) -> None:
    style = TemplateStyle("{% for m in messages %}{{ m | tojson }}{% endfor %}")
    record = {
        "messages": [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a", "weight": 0}]
    }
    content = parse(record)
    example = Encoder(llm.tokenizer, style)(content)
    assert llm.tokenizer.decode(example.ids).startswith(
        '{"role": "user", "content": "q"}{"role": "assistant", "content": "a"}'
    )
