"""Chat templates: `TemplateStyle` against transformers on every template of the packages in `conversations.py`, and the
choice among several templates of one checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conversations import CONVERSATIONS, FOLDERS, NOW, ODD, TEXT, Messages, fix_clock, rendered, talk, templates
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from litlm.data.sft import load_sft
from litlm.prompts import TemplateStyle, style_for
from litlm.prompts.jinja import end_of_turn_ids
from litlm.settings import DataSettings
from litlm.tokenizer import Tokenizer

CHATML = tiny.TEMPLATE


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_clock(monkeypatch)


@pytest.mark.parametrize("package", [*FOLDERS, "llama.cpp test"])
def test_template_style_renders_as_transformers(package: str) -> None:
    """Two hundred published templates; where one complains, both do, in the same words."""

    def outcome(render: Callable[[], str], expected: type[Exception]) -> tuple[str, str]:
        try:
            return "text", render()
        except expected as error:
            return "error", str(error)

    compared, kinds = 0, set()
    for name, source in templates().items():
        if name.split("/")[0] != package:
            continue
        style = TemplateStyle(source, **TEXT)
        for k, messages in enumerate(CONVERSATIONS + ODD):
            prompt = (k + compared) % 2 == 0
            kind, theirs = outcome(lambda: rendered(source, messages, prompt, **TEXT), Exception)  # noqa: B023
            same, ours = outcome(lambda: style.format(messages, add_generation_prompt=prompt), ValueError)  # noqa: B023
            assert same == kind, name
            assert ours == theirs if kind == "text" else ours.endswith(f"rejects this conversation: {theirs}"), name
            kinds.add(kind)
        compared += 1
    assert compared > 30
    assert kinds == {"text", "error"}


TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object",
          "properties": {"at": {"type": "string", "description": "Where."}}, "required": ["at"]}}}]  # fmt: skip
CALL = {"type": "function", "id": "abcdef123", "function": {"name": "look", "arguments": {"at": "x"}}}
CALLED: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "seen", "name": "look", "tool_call_id": "abcdef123"}
WITH_TOOLS: list[Messages] = [
    talk("q"),
    [*talk("q"), CALLED, RESULT, {"role": "assistant", "content": "an answer"}],
    [*talk("q", system="s"), {k: v for k, v in CALLED.items() if k != "content"}, RESULT],
    [{"role": "developer", "content": "rules"}, *talk("q", "a")],
    [*talk("q"), {"role": "assistant", "content": "a", "reasoning_content": "because"}],
]


@pytest.mark.parametrize("package", ["llama.cpp", "axolotl"])
def test_tools_render_as_in_transformers_or_are_refused(package: str) -> None:
    """Refused is what transformers drops without a word: there the text is the same without it."""
    compared = refused = 0
    for name, source in templates().items():
        if name.split("/")[0] != package:
            continue
        style = TemplateStyle(source, **TEXT)
        for messages, tools in zip(WITH_TOOLS, (TOOLS, TOOLS, TOOLS, None, None), strict=True):

            def theirs(messages: Messages, tools: Any) -> str | None:
                try:
                    return rendered(source, messages, False, tools=tools, **TEXT)  # noqa: B023
                except Exception:
                    return None

            expected = theirs(messages, tools)
            try:
                text = style.format(messages, add_generation_prompt=False, tools=tools)
            except ValueError as e:
                reason = str(e)
            else:
                if messages[0]["role"] == "developer" and expected != text:
                    expected = theirs([messages[0] | {"role": "system"}, *messages[1:]], tools)
                assert text == expected, name
                compared += 1
                continue
            without = [{k: v for k, v in m.items() if k not in ("tool_calls", "reasoning_content")} for m in messages]
            silent = [m | {"content": "?"} if m["role"] == "tool" else m for m in messages]
            dropped = {
                "does not write tools": theirs(messages, None), "role 'tool'": theirs(silent, tools),
                "has 'tool_calls'": theirs(without, tools), "has 'reasoning_content'": theirs(without, tools),
                "rejects this conversation": None,
            }  # fmt: skip
            (found,) = (same for part, same in dropped.items() if part in reason)
            assert found == expected, (name, reason)
            refused += expected is not None
    assert compared > 30
    assert refused > 30


# Templates that mark what is learned from behind the prompt on, in transformers' way.
GENERATION = [
    "axolotl/phi_4", "trl/glm4moe_training", "trl/lfm2_2_5", "trl/lfm2_v2_training", "trl/llama3_training",
    "trl/qwen2_5_training", "trl/qwen3_instruct_2507_training", "trl/qwen3_training",
]  # fmt: skip


@pytest.mark.parametrize("name", GENERATION)
def test_spans_are_those_that_templates_mark(name: str) -> None:
    """Whoever begins, and whoever goes on."""
    source = templates()[name]
    style, (user, answer) = TemplateStyle(source, **TEXT), talk("Q", "A 1")
    last, system = {"role": "assistant", "content": "B\n2"}, talk(system="S")
    conversations = [
        [user, answer, user, last], [answer], [answer, user], [answer, user, last], [*system, answer, user, last],
        [answer, last, user, last], [user, answer, last], [user, user, last], [*system, user, user, answer, user],
    ]  # fmt: skip
    if style.renders_key("tool_calls", [user, CALLED, user]):
        conversations += [[user, CALLED, RESULT, last], [user, CALLED | {"content": None}, RESULT, RESULT, last]]
    for messages in conversations:
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        (text,), (spans,) = chat_template_utils.render_jinja_template(
            [given], chat_template=source, return_assistant_tokens_mask=True, **TEXT
        )
        marked = style.render_with_spans(messages)
        assert marked.text == text
        assert [text[slice(*span)].strip() for span in marked.spans] == [text[slice(*span)].strip() for span in spans]
        assert marked.n_rewritten == 0
        skipped = style.render_with_spans(
            messages, skip=[i for i, m in enumerate(messages) if m["role"] == "assistant"][-1:]
        )
        assert skipped.spans == marked.spans[:-1]


@pytest.mark.parametrize("name", ["llama.cpp/microsoft-Phi-3.5-mini-instruct", "trl/phi3"])
def test_what_ends_a_conversation_is_no_answers(name: str) -> None:
    """Phi-3's template writes the end of text behind whatever comes last, beside the end of the turn."""
    style = TemplateStyle(templates()[name], eos_token="<|endoftext|>")
    for messages in (talk("q", "a", "r", "b"), talk("q", "a", "r", "b")[1:], talk("q", "b")):
        marked = style.render_with_spans(messages)
        answers = [f"{m['content']}<|end|>" for m in messages if m["role"] == "assistant"]
        assert [marked.text[slice(*span)].strip() for span in marked.spans] == answers
        assert marked.text.endswith("b<|end|>\n<|endoftext|>")


# --- several templates ------------------------------------------------------------------------------------------------
def folder_with(path: Path, named: dict[str, str]) -> Path:
    """tiny's tokenizer with named templates, as the config of Command R and Hermes 2 Pro lists them."""
    path.mkdir()
    (path / "tokenizer.json").write_bytes((tiny.folder() / "tokenizer.json").read_bytes())
    config = json.loads((tiny.folder() / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": template} for name, template in named.items()]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


HERMES = "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"


@pytest.mark.parametrize("names", [("default", "tool_use"), ("default", "rag", "tool_use"), ("default", "rag")])
def test_the_template_is_the_one_that_transformers_takes(names: tuple[str, ...], tmp_path: Path) -> None:
    source = dict(default=CHATML, rag="rag" + CHATML, tool_use=templates()[HERMES])
    folder = folder_with(tmp_path / "t", {name: source[name] for name in names})
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.from_dir(folder)
    style = style_for(tokenizer)
    for messages, tools in zip(WITH_TOOLS, (TOOLS, TOOLS, TOOLS, None, None), strict=True):
        messages = [m for m in messages if m["role"] != "developer"]
        messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
        for prompt in (True, False):
            if tools and "tool_use" not in names:
                with pytest.raises(ValueError, match="does not write"):
                    style.format(messages, tools=tools)
                continue
            expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt)["input_ids"]
            assert style.encode(messages, tokenizer, add_generation_prompt=prompt, tools=tools) == list(expected)
    if "tool_use" in names:
        expected = theirs.apply_chat_template(talk("q", "a"), tools=TOOLS)["input_ids"]
        ids, mask = style.encode_with_mask(talk("q", "a"), tokenizer, tools=TOOLS)
        assert ids == list(expected)
        assert tokenizer.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == "a<|im_end|>"


def test_templates_for_tools_alone_are_no_error_for_those_who_have_tools(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "t", {"tool_use": templates()[HERMES], "rag": CHATML})
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.from_dir(folder)
    style = style_for(tokenizer)
    expected = theirs.apply_chat_template(WITH_TOOLS[0], tools=TOOLS, tokenize=False)
    assert style.format(WITH_TOOLS[0], tools=TOOLS, add_generation_prompt=False) == expected
    for tools in (None, []):
        with pytest.raises(ValueError, match="none called default"):
            style.format(WITH_TOOLS[0], tools=tools)


def test_dates_and_variables_reach_the_template_for_tools() -> None:
    template = "{{ strftime_now('%Y') }}{{ eos_token }}{{ brief }}{% for m in messages %}{{ m.content }}{% endfor %}"
    style = TemplateStyle(CHATML, tool_use_template=template + "{{ tools | tojson }}", eos_token="</s>")
    bound = style.with_date("1999-12-31").bind(TOOLS, {"brief": "b"})
    assert bound.format(talk("q")) == "1999</s>bq" + json.dumps(TOOLS)
    assert style.bind(TOOLS).format(talk("q")) == f"{NOW.year}</s>q" + json.dumps(TOOLS)
    with pytest.raises(ValueError, match="does not use brief"):
        style.format(talk("q"), template_kwargs={"brief": "b"})


def test_records_and_chats_with_tools_take_the_template_for_tools(tmp_path: Path) -> None:
    named = {"default": CHATML, "tool_use": templates()[HERMES]}
    folder = folder_with(tmp_path / "t", named)
    theirs, llm = AutoTokenizer.from_pretrained(folder), tiny.load()
    llm.tokenizer = Tokenizer.from_dir(folder)
    messages = WITH_TOOLS[1]
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"messages": messages[:1] + messages[3:], "tools": t}) + "\n" for t in (TOOLS, None))
    )
    data = DataSettings(path=str(tmp_path / "d.jsonl"), val_fraction=0)
    examples, _ = load_sft(data, llm.tokenizer, llm.style, 10_000)
    for example, tools in zip((examples[0], examples[1]), (TOOLS, None), strict=True):
        expected = theirs.apply_chat_template([messages[0], messages[-1]], tools=tools)["input_ids"]
        assert example.ids == list(expected)
    # saved and loaded again, both are there
    llm.save(tmp_path / "saved")
    again = style_for(Tokenizer.from_dir(tmp_path / "saved"))
    for tools in (TOOLS, None):
        assert again.format(messages[:1], tools=tools) == llm.style.format(messages[:1], tools=tools)
    # a style that is set is kept as it is, with both templates
    llm.style = style_for(llm.tokenizer)
    llm.save(tmp_path / "set")
    assert Tokenizer.from_dir(tmp_path / "set").chat_templates == named


def test_ends_of_turns_are_those_of_both_templates() -> None:
    tokenizer = tiny.shared().tokenizer
    style = TemplateStyle(CHATML, tool_use_template=CHATML.replace("<|im_end|>", "<|endoftext|>"))
    assert end_of_turn_ids(style, tokenizer) == {0, 2}
    assert end_of_turn_ids(TemplateStyle(CHATML), tokenizer) == {2}
