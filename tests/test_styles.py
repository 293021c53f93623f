"""Every named prompt style against the text of an oracle from outside; masks, stops and BOS of every style.

The oracles: chat templates as published (llama.cpp, Axolotl, TRL) and as mistral-common makes them, rendered by
transformers; FastChat's and LitGPT's own code; ms-swift's tables. None of them runs code of ours.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conversations import CONVERSATIONS, ODD, TEXT, Messages, fix_clock, rendered, talk, templates
from packages import unpacked
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from litlm.prompts import (
    Apertus,
    DeepSeekV31,
    Gemma4,
    Glm45,
    GptOss,
    Granite33,
    Llama2FunctionCalling,
    Llama31,
    PromptStyle,
    SmolLM3,
    get_style,
)
from litlm.prompts.base import _STYLES
from litlm.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_clock(monkeypatch)


# --- published templates ---------------------------------------------------------------------------------------------
LLAMA = dict(bos_token="<|begin_of_text|>")
GEMMA = dict(bos_token="<bos>")
COHERE = dict(bos_token="<BOS_TOKEN>")
DEEPSEEK = dict(bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>")
LFM = dict(bos_token="<|startoftext|>")
PHI = dict(eos_token="<|endoftext|>")


def asks(messages: Messages, prompt: bool) -> bool:
    """An answer is asked for where one is missing, as in every turn before."""
    return prompt == (messages[-1]["role"] == "user") and messages not in ODD


def asked(messages: Messages, prompt: bool) -> bool:
    return messages[-1]["role"] == "user"


def has_system(messages: Messages, prompt: bool) -> bool:
    return messages[0]["role"] == "system"


def plain_with_system(messages: Messages, prompt: bool) -> bool:
    return has_system(messages, prompt) and plain_turns(messages, prompt)


def one_system(messages: Messages, prompt: bool) -> bool:
    return sum(message["role"] == "system" for message in messages) < 2


def plain_turns(messages: Messages, prompt: bool) -> bool:
    """Mistral refuses empty answers, takes an empty system text for none and joins messages of the same role."""
    has_system = messages[0]["role"] == "system"
    turns = messages[has_system:]
    alternating = all(message["role"] == ("user", "assistant")[i % 2] for i, message in enumerate(turns))
    contents = messages[0]["content"], *(message["content"] for message in turns if message["role"] == "assistant")
    return alternating and bool(turns) and all(contents[not has_system :])


def not_alone(messages: Messages, prompt: bool) -> bool:
    return messages[-1]["role"] != "system"


# style, template, its variables, the conversations for which the template is that of the style (all, mostly)
PUBLISHED: list[tuple[str | PromptStyle, str, dict[str, Any], Any]] = [
    ("chatml", "axolotl/chatml", {}, None),
    ("chatml", "llama.cpp test/teknium/OpenHermes-2.5-Mistral-7B", {}, None),
    ("chatml", "trl/qwen3_instruct_2507", {}, None),
    ("chatml", "llama.cpp/Qwen3-Coder", {}, None),
    ("smollm3", "llama.cpp/HuggingFaceTB-SmolLM3-3B", {}, None),
    (SmolLM3(thinking=False), "llama.cpp/HuggingFaceTB-SmolLM3-3B", dict(enable_thinking=False), None),
    ("qwen2", "axolotl/qwen2_vl", {}, None),
    ("qwen2.5", "llama.cpp/Qwen-Qwen2.5-7B-Instruct", {}, None),
    ("qwen2.5", "trl/qwen2_5", {}, None),
    ("qwq", "llama.cpp/Qwen-QwQ-32B", dict(enable_thinking=True), None),
    ("qwen3", "llama.cpp/Qwen-Qwen3-0.6B", {}, None),
    ("qwen3", "trl/qwen3", {}, None),
    ("qwen3-no-think", "llama.cpp/Qwen-Qwen3-0.6B", dict(enable_thinking=False), None),
    ("falcon-h1", "axolotl/falcon_h1", LLAMA, None),
    ("lfm2", "llama.cpp/LFM2-8B-A1B", LFM, None),
    ("lfm2", "trl/lfm2", LFM, None),
    ("phi-4", "llama.cpp test/phi-4", {}, asks),  # writes the opening after every user message
    ("phi-4-reasoning", "axolotl/phi_4", {}, None),
    ("kimi-k2", "llama.cpp/moonshotai-Kimi-K2", {}, None),
    ("llama3", "axolotl/llama3", LLAMA, None),
    ("llama3", "trl/llama3", LLAMA, None),
    ("llama3.1", "llama.cpp/meta-llama-Llama-3.1-8B-Instruct", LLAMA, None),
    ("llama3.1", "llama.cpp/meta-llama-Llama-3.3-70B-Instruct", LLAMA, None),
    (Llama31("01 Jan 2026"), "trl/llama3_1", LLAMA | dict(date_string="01 Jan 2026"), None),
    ("llama3.2", "llama.cpp/meta-llama-Llama-3.2-3B-Instruct", LLAMA, None),
    ("llama4", "axolotl/llama4", LLAMA, None),
    ("phi-3", "llama.cpp/microsoft-Phi-3.5-mini-instruct", PHI, None),
    ("phi-3", "trl/phi3_5", PHI, None),
    ("granite", "llama.cpp test/ibm-granite/granite-3.0-8b-instruct", {}, None),
    ("granite-3.3", "llama.cpp/ibm-granite-granite-3.3-2B-Instruct", {}, not_alone),  # asks only behind other turns
    ("granite-4", "llama.cpp/ibm-granite-granite-4.0", {}, None),
    ("granite-4.1", "llama.cpp/ibm-granite-granite-4.1", {}, None),
    ("exaone", "axolotl/exaone", {}, None),
    ("exaone4", "axolotl/exaone4", {}, None),
    ("openchat", "llama.cpp test/openchat/openchat-3.5-0106", TEXT, None),
    ("seed-oss", "llama.cpp/ByteDance-Seed-OSS", {}, None),
    ("gemma", "llama.cpp/google-gemma-2-2b-it", GEMMA, None),
    ("gemma", "trl/gemma", GEMMA, None),
    ("gemma3", "axolotl/gemma3", GEMMA, None),
    ("gemma3", "trl/gemma3", GEMMA, None),
    ("gemma4", "llama.cpp/google-gemma-4-31B-it", GEMMA, None),
    (Gemma4(thinking=True), "llama.cpp/google-gemma-4-31B-it", GEMMA | dict(enable_thinking=True), None),
    ("mistral-v1", "axolotl/mistral_v1", TEXT, None),
    # these write the system text only if the conversation ends with a question
    ("mistral-v3-tekken", "axolotl/mistral_v3_tekken", TEXT, asked),
    ("mistral-v3-tekken", "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407", TEXT, asked),
    ("mistral-v7", "llama.cpp test/mistralai/Mistral-Large-Instruct-2411 (mistralai 'v7' template)", TEXT, None),
    # these have system texts of their own
    ("mistral-v7-tekken", "axolotl/mistral_v7_tekken", TEXT, has_system),
    ("mistral-v13", "llama.cpp/mistralai-Ministral-3-14B-Reasoning-2512", TEXT, plain_with_system),
    ("command-r", "axolotl/cohere", COHERE, None),
    ("command-r", "axolotl/aya", COHERE, None),
    ("command-r", "trl/cohere", COHERE, None),
    ("command-r", "llama.cpp test/CohereForAI/c4ai-command-r-plus", COHERE, None),
    ("command-a", "axolotl/command_a", COHERE, None),
    ("deepseek-v2", "llama.cpp test/DeepSeek-V2", DEEPSEEK, None),
    ("deepseek-v2.5", "axolotl/deepseek_v2", DEEPSEEK, None),
    ("deepseek-v3", "axolotl/deepseek_v3", DEEPSEEK, None),
    ("deepseek-r1", "trl/deepseekv3", DEEPSEEK, None),
    ("deepseek-r1", "trl/deepseek_r1_distill", DEEPSEEK, one_system),  # keeps the last system message, R1 all
    ("gpt-oss", "llama.cpp/openai-gpt-oss-120b", {}, None),
    ("gpt-oss", "trl/gptoss", {}, None),
    (GptOss(effort="high"), "llama.cpp/openai-gpt-oss-120b", dict(reasoning_effort="high"), None),
    ("glm4", "llama.cpp test/ChatGLM4", {}, None),
    ("glm-4.5", "trl/glm4moe", {}, None),
    ("glm-4.5", "llama.cpp/GLM-4.6", {}, None),
    (Glm45(thinking=False), "llama.cpp/GLM-4.6", dict(enable_thinking=False), None),
    ("apertus", "llama.cpp/Apertus-8B-Instruct", TEXT, None),
    (Apertus(thinking=True), "llama.cpp/Apertus-8B-Instruct", TEXT | dict(enable_thinking=True), None),
    ("minimax-m2", "llama.cpp/MiniMax-M2", {}, None),
]


def named(style: str | PromptStyle) -> PromptStyle:
    return get_style(style) if isinstance(style, str) else style


@pytest.mark.parametrize(("style", "template", "variables", "where"), PUBLISHED)
def test_published_templates(style: str | PromptStyle, template: str, variables: dict[str, Any], where: Any) -> None:
    compare(named(style), templates()[template], variables, where)


def compare(style: PromptStyle, template: str, variables: dict[str, Any], where: Any = None) -> None:
    """The same text, or a ValueError where the template complains; a style may also refuse an odd conversation."""
    compared = 0
    for messages, prompt in itertools.product(CONVERSATIONS + ODD, (True, False)):
        if where is not None and not where(messages, prompt):
            continue
        try:
            expected = rendered(template, messages, prompt, **variables)
        except Exception:
            with pytest.raises(ValueError, match="prompt style"):
                style.format(messages, add_generation_prompt=prompt)
            continue
        try:
            text = style.format(messages, add_generation_prompt=prompt)
        except ValueError:
            assert messages in ODD
            continue
        assert text == expected
        compared += 1
    assert compared > 9


def test_deepseek_v31_but_for_what_llama_cpp_adds() -> None:
    """The published text before an answer is `</think>` alone."""
    template = templates()["llama.cpp/deepseek-ai-DeepSeek-V3.1"]
    assert template.count("<think></think>") == 3
    template = template.replace("<think></think>", "</think>")
    compare(DeepSeekV31(), template, DEEPSEEK)
    compare(DeepSeekV31(thinking=True), template, DEEPSEEK | dict(thinking=True))


REASONING = [
    [*talk("a"), dict(role="assistant", content="b", reasoning_content="\n hidden \n")],
    [*talk("a"), dict(role="assistant", content="b</think>c", reasoning_content="r"), *talk("q", "z")],
    [*talk("a"), dict(role="assistant", content="\nb\n", reasoning_content="")],
]


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("qwen3", "llama.cpp/Qwen-Qwen3-0.6B"),
        ("glm-4.5", "llama.cpp/GLM-4.6"),
        ("minimax-m2", "llama.cpp/MiniMax-M2"),
    ],
)
def test_reasoning_content(style: str, template: str) -> None:
    for messages, prompt in itertools.product(REASONING, (True, False)):
        expected = rendered(templates()[template], messages, prompt)
        assert get_style(style).format(messages, add_generation_prompt=prompt) == expected


def test_gpt_oss_thinking() -> None:
    template = templates()["llama.cpp/openai-gpt-oss-120b"]
    thinks = dict(role="assistant", content="b", thinking="hm")
    for messages, prompt in itertools.product(([*talk("a"), thinks], [*talk("a"), thinks, *talk("c")]), (True, False)):
        assert GptOss().format(messages, add_generation_prompt=prompt) == rendered(template, messages, prompt)
    for bad in (dict(content="<|channel|>final<|message|>b"), dict(thinking="<|channel|>analysis<|message|>")):
        messages = [*talk("a"), thinks | bad]
        with pytest.raises(Exception, match="channel"):
            rendered(template, messages, False)
        with pytest.raises(ValueError, match="message 1 holds channel tokens"):
            GptOss().format(messages, add_generation_prompt=False)


def test_dates() -> None:
    assert "Current date: 2025-03-09\n" in GptOss().format(talk("a"))
    assert "Current date: 2024-02-29\n" in GptOss(date="2024-02-29").format(talk("a"))
    assert "Current date: 2024-02-29<" in Apertus(date="2024-02-29").format(talk("a"))
    assert "Today's Date: May 1, 2025." in Granite33("May 1, 2025").format(talk("a"))
    assert "Today Date: 09 Mar 2025\n" in get_style("llama3.2").format(talk("a"))
    assert "June 2025\nToday Date: 08 July 2025\nReasoning" in SmolLM3(date="08 July 2025").format(talk("a"))


# --- FastChat -------------------------------------------------------------------------------------------------------
@functools.cache
def fastchat() -> Any:
    """Its module of conversations, which imports nothing of the package."""
    spec = importlib.util.spec_from_file_location(
        "fastchat_conversation", unpacked("fschat==0.2.36") / "fastchat/conversation.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("style", "name", "system", "before"),
    [
        ("vicuna", "vicuna_v1.1", True, ""),
        ("llama2", "llama-2", True, "<s>"),
        ("falcon-instruct", "falcon", False, ""),
        ("redpajama-chat", "redpajama-incite", False, ""),
        ("stablelm-alpha", "stablelm", False, ""),
        ("danube", "h2ogpt", False, ""),
        ("openchat", "openchat_3.5", False, "<s>"),
        ("deepseek-v2", "deepseek-chat", False, ""),
        ("zephyr", "zephyr", True, ""),
    ],
)
def test_fastchat(style: str, name: str, system: bool, before: str) -> None:
    compared = 0
    for messages in CONVERSATIONS:
        given = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages if given is None else messages[1:]
        if style == "llama2":  # contents are stripped by Meta's template, not by FastChat
            turns = [message | dict(content=message["content"].strip()) for message in turns]
        # an empty message is FastChat's mark of the answer to come
        if messages[-1]["role"] != "user" or not all([given != "", *(message["content"] for message in turns)]):
            continue
        if (given is not None and not system) or (name == "zephyr" and given is None):  # it writes an empty one
            continue
        conversation = fastchat().get_conv_template(name)
        if given is not None:
            conversation.set_system_message(given)
        for message in turns:
            conversation.append_message(conversation.roles[message["role"] == "assistant"], message["content"])
        conversation.append_message(conversation.roles[1], None)
        expected = before + conversation.get_prompt()
        if name == "redpajama-incite":
            expected = expected.removeprefix("\n")
        assert get_style(style).format(messages) == expected
        compared += 1
    assert compared > 3


# --- LitGPT ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def litgpt(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Its module of prompt styles; of the package it needs `Config` for a signature only."""
    package, config = types.ModuleType("litgpt"), types.ModuleType("litgpt.config")
    config.Config = object  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "litgpt", package)
    monkeypatch.setitem(sys.modules, "litgpt.config", config)
    spec = importlib.util.spec_from_file_location("litgpt.prompts", unpacked("litgpt==0.5.13") / "litgpt/prompts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUESTIONS = ["Hi", "", "  two\n lines \n\n", "你好 \U0001f917", "<|im_end|>\n### Response: {x}"]


@pytest.mark.parametrize(
    ("style", "theirs", "system"),
    [
        ("alpaca", "Alpaca", False), ("platypus", "Platypus", False), ("freewilly2", "FreeWilly2", True),
        ("stablecode", "StableCode", False), ("phi-1", "Phi1", False), ("phi-2", "Phi2", False),
        ("falcon", "Falcon", False), ("qwen2.5-math", "Qwen2_5_Math", True), ("qwq-preview", "QwQ", True),
        ("salamandra", "Salamandra", True), ("tinyllama", "TinyLlama", True), ("phi-4", "Phi4", True),
        ("stablelm-zephyr", "StableLMZephyr", False), ("olmo", "OLMo", False), ("phi-4-mini", "Phi4Mini", True),
        ("phi-4-mini-reasoning", "Phi4MiniReasoning", True), ("chatml", "ChatML", True), ("smollm2", "SmolLM2", True),
        ("qwen2.5", "Qwen2_5", True),
    ],
)  # fmt: skip
def test_litgpt(litgpt: Any, style: str, theirs: str, system: bool) -> None:
    for question in QUESTIONS:
        assert get_style(style).format(talk(question)) == getattr(litgpt, theirs)().apply(question)
        if system:
            expected = getattr(litgpt, theirs)().apply(question, sys_prompt="Be {brief}.\n")
            assert get_style(style).format(talk(question, system="Be {brief}.\n")) == expected


def test_litgpt_instructions_in_brackets(litgpt: Any) -> None:
    for question in ("Hi", "two\nlines", "你好 \U0001f917"):  # the others strip nothing
        for system in (None, "Be brief."):
            expected = "<s>" + litgpt.CodeLlama().apply(question, sys_prompt=system)
            assert get_style("codellama").format(talk(question, system=system)) == expected
        expected = litgpt.Llama2FunctionCalling().apply(question, sys_prompt="Answer in JSON.")
        functions = expected.split("<FUNCTIONS>")[1].split("</FUNCTIONS>")[0]
        style = Llama2FunctionCalling(functions)
        assert style.format(talk(question, system="Answer in JSON.")) == expected


# --- ms-swift -------------------------------------------------------------------------------------------------------
@functools.cache
def swift() -> dict[str, dict[str, list[str]]]:
    """Its tables, read from the source: `prefix`, `system_prefix`, `prompt`, `chat_sep` of each template."""
    folder, tables = unpacked("ms-swift==4.6.0") / "swift/template/templates", {}
    fields = ("prefix", "system_prefix", "prompt", "chat_sep")
    for node in ast.walk(ast.parse((folder / "llm.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TemplateMeta" and node.args:
            name = node.args[0]
            if isinstance(name, ast.Attribute):
                tables[name.attr] = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg in fields}
    for node in ast.walk(ast.parse((folder / "baidu.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "ERNIETemplateMeta":
            tables["ernie"] = {
                getattr(line.target, "id", ""): ast.literal_eval(line.value.keywords[0].value.body)
                for line in node.body
                if isinstance(line, ast.AnnAssign)
                and isinstance(line.value, ast.Call)
                and isinstance(line.value.keywords[0].value, ast.Lambda)
            }
    return tables


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("olmo2", "olmoe_0924"),
        ("olmoe", "olmoe"),
        ("ernie4.5", "ernie"),
        ("hunyuan", "hunyuan"),
        ("hunyuan-a13b", "hunyuan_moe"),
    ],
)
def test_swift_tables(style: str, name: str) -> None:
    table, compared = {key: "".join(parts) for key, parts in swift()[name].items()}, 0
    for messages in CONVERSATIONS:
        given = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns = messages[1:] if messages[0]["role"] == "system" else messages
        if messages[-1]["role"] != "user" or (messages[0]["role"] == "system" and not given):
            continue
        expected = table["system_prefix"].replace("{{SYSTEM}}", given) if given else table["prefix"]
        for message in turns:
            user = message["role"] == "user"
            expected += table["prompt"].replace("{{QUERY}}", message["content"]) if user else message["content"]
            expected += "" if user else table["chat_sep"]
        assert get_style(style).format(messages) == expected
        compared += 1
    assert compared > 5


# --- Mistral --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("style", "version", "spm"),
    [("mistral-v1", "v1", True), ("mistral-v3", "v2", True), ("mistral-v3", "v3", True),
     ("mistral-v3-tekken", "v3", False), ("mistral-v7", "v7", True), ("mistral-v7-tekken", "v7", False),
     ("mistral-v7-tekken", "v11", False), ("mistral-v13", "v13", False)],
)  # fmt: skip
def test_mistral_templates(style: str, version: str, spm: bool) -> None:
    from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    off = dict.fromkeys(("image_support", "audio_support", "thinking_support", "plain_thinking_support"), False)
    template = generate_chat_template(
        spm=spm, tokenizer_version=TokenizerVersion(version), default_system_prompt=None, model_settings_fields=None,
        reasoning_effort_values=None, reasoning_effort_default=None, use_special_token_variables=True, **off,
    )  # fmt: skip
    compare(get_style(style), template, TEXT, plain_turns)


@pytest.mark.parametrize(
    ("style", "file"),
    [
        ("mistral-v1", "tokenizer.model.v1"),
        ("mistral-v3", "mistral_instruct_tokenizer_240216.model.v2"),
        ("mistral-v3", "mistral_instruct_tokenizer_240323.model.v3"),
        ("mistral-v7", "mistral_instruct_tokenizer_241114.model.v7"),
    ],
)
def test_mistral_token_ids(style: str, file: str, tmp_path: Path) -> None:
    import mistral_common
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = Path(mistral_common.__file__).parent / "data" / file
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    ours = Tokenizer.from_dir(tmp_path)
    kinds: dict[str, Callable[..., Any]] = dict(system=SystemMessage, user=UserMessage, assistant=AssistantMessage)
    for messages in (talk("Hi"), talk("Hi", "a b\nc", "d", system="s t"), talk("你好 \U0001f917", "é", "x", "y z")):
        finished = messages[-1]["role"] == "assistant"
        mode: Any = ValidationMode.finetuning if finished else ValidationMode.test
        request = ChatCompletionRequest(messages=[kinds[m["role"]](content=m["content"]) for m in messages])
        expected = MistralTokenizer.from_file(str(path), mode=mode).encode_chat_completion(request).tokens
        assert get_style(style).encode(messages, ours, add_generation_prompt=not finished) == expected
        assert ours.decode(expected) == get_style(style).format(messages)


# --- every style ----------------------------------------------------------------------------------------------------
TESTED_ELSEWHERE = {"smollm2"}  # against the template in its file, in test_prompts.py
STYLES = sorted(name for name, style in _STYLES.items() if style.__module__.startswith("litlm."))


def test_unverified_says_what_is_not_compared() -> None:
    """`unverified` is told by the tables above, and each docstring agrees."""
    marks = [mark for test in (test_fastchat, test_litgpt, test_swift_tables, test_mistral_templates)
             for mark in vars(test)["pytestmark"] if mark.name == "parametrize"]  # fmt: skip
    compared = {named(row[0]).name for row in PUBLISHED} | {row[0] for mark in marks for row in mark.args[1]}
    compared |= {"codellama", "llama2-function-calling"} | TESTED_ELSEWHERE
    for name in STYLES:
        style = get_style(name)
        assert style.unverified == (name not in compared), name
        text = " ".join((type(style).__doc__ or "").split())
        assert ("Verified" in text) != style.unverified, name
        assert ("Unverified" in text) == style.unverified, name


# --- masks, stops, BOS ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token for each byte, and one for each special token of every style."""
    special = sorted({"<s>", "</s>", "<|return|>", "<|endoftext|>"} | {
        token
        for name in STYLES
        for text in (*get_style(name).stop, get_style(name).format(talk("a", "b", "c")))
        for token in re.findall(r"</?s>|<[|｜][^<>\n]{,40}[|｜]>|<start_of_turn>|<end_of_turn>|</?seed:[a-z]+>|\[e~\[|"
                                r"\|\|\|[A-Z_]+\|\|\||\[\|[a-z]+\|\]|\[/?INST\]|<\|?turn\|?>|<extra_id_1>", text)
    })  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core = tokenizers.Tokenizer(models.BPE({byte: i for i, byte in enumerate(sorted(alphabet))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    bos = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    folder = tmp_path_factory.mktemp("bytes")
    core.save(str(folder / "tokenizer.json"))
    config = dict(bos_token="<s>", eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.from_dir(folder)


def produced(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> list[str]:
    """The texts of the stretches that are True."""
    runs = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for by_assistant, run in runs if by_assistant]


ANSWERS = ("an answer: 1+1\n\nis 2", "ä \U0001f917 x")
# styles that write no end token: EOS is appended behind the last answer
NO_END = {
    "alpaca", "apertus", "falcon", "falcon-instruct", "freewilly2", "glm4", "nemotron", "nous-hermes", "phi-1", "phi-2",
    "plain", "platypus", "redpajama-chat", "redpajama-instruct", "stablecode", "stablelm-alpha",
}  # fmt: skip
# The assistant's texts in a conversation with these answers, where they are not an answer and the style's first stop.
# {} is the answer; None: an earlier answer was not written as it is shown.
MASKS: dict[str, tuple[str | None, str]] = {
    "command-a": ("{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "llama2": ("{} </s>", "{} </s>"),
    "codellama": ("{} </s>", "{} </s>"),
    "gpt-oss": (None, "<|channel|>final<|message|>{}<|return|>"),
    "qwen3": (None, "<think>\n\n</think>\n\n{}<|im_end|>"),
    "qwen3-no-think": (None, "{}<|im_end|>"),
    "qwen3-thinking": (None, "\n</think>\n\n{}<|im_end|>"),
    "glm-4.5": ("\n<think></think>\n{}", "\n<think></think>\n{}</s>"),
    "olmo3": (None, "{}<|endoftext|>"),
    "llama2-function-calling": ("{}</s>", "{}</s>"),
}
# Their prompt holds an opened or empty thought that a written answer does not: the mask is refused, unless the answer
# brings the thought along.
REFUSED = {"deepseek-r1": None, "gemma4": None, "qwq": "<think>\nx\n</think>\n\n", "olmo3-think": "<think>x</think>",
           "minimax-m2": "<think>\nx\n</think>\n\n"}  # fmt: skip


@pytest.mark.parametrize("name", STYLES)
def test_masks(name: str, tokenizer: Tokenizer) -> None:
    style = get_style(name)
    for system in (None, "s"):
        if system is not None and "system" not in style.roles:
            continue
        messages = talk("q1", ANSWERS[0], "q2", ANSWERS[1], system=system)
        if name in REFUSED:
            with pytest.raises(ValueError, match="not written as a continuation"):
                style.encode_with_mask(messages, tokenizer)
            thought = REFUSED[name]
            if thought is None:
                continue
            messages[-1]["content"] = thought + ANSWERS[1]
            opened = "<think>" + "\n" * (thought[7] == "\n")
            expected = [thought.removeprefix(opened) + ANSWERS[1] + style.stop[0]]
        else:
            end = "" if name in NO_END else style.stop[0]
            forms = MASKS.get(name, ("{}" + end, "{}" + (end or "</s>")))
            expected = [form.format(answer) for form, answer in zip(forms, ANSWERS, strict=True) if form is not None]
            if name == "falcon-instruct":
                expected[0] = expected[0].replace("\n\n", "\n")
            if name in ("mistral-v3", "mistral-v3-tekken") and system is not None:
                expected = expected[1:]  # the system text moves on to the last question
        ids, mask = style.encode_with_mask(messages, tokenizer)
        assert [text.removeprefix(" ") for text in produced(ids, mask, tokenizer)] == expected
        text = style.format(messages, add_generation_prompt=False)
        eos = "" if tokenizer.decode(ids).removeprefix("<s>") == text.removeprefix("<s>") else "</s>"
        assert tokenizer.decode(ids).removeprefix("<s>") == text.removeprefix("<s>") + eos
        assert bool(eos) == (name in NO_END or name == "glm-4.5")
        ids, mask = style.encode_with_mask(messages[:-3], tokenizer)
        assert len(mask) == len(ids)
        assert not any(mask)


@pytest.mark.parametrize("name", STYLES)
def test_stops_and_bos(name: str, tokenizer: Tokenizer) -> None:
    """What ends an answer stands behind an answer that is followed by a question; BOS is there once or not at all."""
    style = get_style(name)
    prompt = style.format(talk("q"))
    if name not in ("plain", "falcon", "phi-1"):  # nothing announces a question there
        behind = style.format(talk("q", "answer", "r"), add_generation_prompt=False).split("answer")[-1]
        text = style.format(talk("q", "answer"), add_generation_prompt=False).split("answer")[-1] + behind
        assert any(stop.strip() in text for stop in style.stop), text
    ids = style.encode(talk("q"), tokenizer)
    starts_with_bos = ids[0] == tokenizer.bos_id
    assert starts_with_bos == (style.adds_bos or prompt.startswith("<s>"))
    assert tokenizer.bos_id not in ids[1:]
