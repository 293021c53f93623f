"""Prompt styles: how a conversation becomes the text a model was finetuned on.

Messages are dicts with `role` ("system", "user", "assistant") and `content`. A style is a small class that writes them
out; `TemplateStyle` runs the Jinja template a checkpoint brings, as transformers does. `style_for` chooses: the
checkpoint's own template, else the named style, else `plain`. Unusual:
- `encode` leaves it to the text: a chat text holds its own special tokens, so nothing is added around it.
- `encode_with_mask` finds what the assistant wrote by rendering the conversation's beginnings and checking that each is
  a beginning of the whole; it needs no markers in the template, and refuses templates where that does not hold.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension

    from litlm.tokenizer import Tokenizer

Message = Mapping[str, Any]


class PromptStyle:
    """Base class. A style defines `name` and `render`.

    Attributes:
        name: what `get_style` finds it by.
        stop: texts that end an answer, beside the tokenizer's `eos_ids`; single tokens where the vocabulary has them.
        roles: those the style can write.
        adds_prefix: whether the tokenizer's BOS belongs before the text (styles made of plain text).
    """

    name: str = ""
    stop: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "user", "assistant")
    adds_prefix: bool = False

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of valid messages."""
        raise NotImplementedError

    def format(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.

        Raises ValueError that lists everything wrong with the messages.
        """
        _check(messages, self)
        return self.render(messages, add_generation_prompt)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of `format`, with the tokenizer's BOS only where the style wants it and the text has none."""
        text = self.format(messages, add_generation_prompt=add_generation_prompt)
        return [*self._prefix(text, tokenizer), *tokenizer.encode(text, add_special_tokens=False)]

    def count_tokens(self, messages: Sequence[Message], tokenizer: Tokenizer) -> int:
        """Tokens of the prompt that asks for the next answer."""
        return len(self.encode(messages, tokenizer))

    def encode_with_mask(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """A finished conversation as ids, and for each whether the assistant produced it.

        Returns `encode(messages, tokenizer, add_generation_prompt=False)` and a mask of the same length: True for the
        assistant's content and the token that ends its turn, in every assistant turn. A token that holds both prompt
        and answer characters counts as the assistant's. Where the style writes no token after the last answer
        (`plain`, `alpaca`), `tokenizer.eos_id` is appended to both, True.

        Templates that write earlier turns differently from the last (Qwen3 drops their reasoning) show the model
        earlier turns that it would not have written so: then only the last assistant turn is True. Raises ValueError
        where even that turn does not continue its own prompt.
        """
        text = self.format(messages, add_generation_prompt=False)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = {i: self._turn(messages, i, text) for i in turns}
        if turns and None in spans.values():
            spans = {turns[-1]: spans[turns[-1]]}
        ids, places = tokenizer.encode_with_spans(text)
        mask = [False] * len(ids)
        for i, span in spans.items():
            if span is None:
                raise ValueError(
                    f"prompt style {self.name!r}: message {i}, the last assistant turn, is not written as a "
                    "continuation of its own prompt, so its tokens cannot be told from the template's; end the "
                    "conversation with it, or use another template"
                )
            start, end = span
            inside = [k for k, (left, right) in enumerate(places) if left < end and right > start]
            for k in inside:
                mask[k] = True
            # what a template writes after the end-of-turn token ("\n", mostly) is not the assistant's
            last = next((k for k in reversed(inside) if ids[k] in tokenizer.special_ids), None)
            tail = [k for k in inside if last is not None and k > last]
            if tail and not text[places[tail[0]][0] : end].strip():
                for k in tail:
                    mask[k] = False
        prefix = self._prefix(text, tokenizer)
        ids, mask = [*prefix, *ids], [*[False] * len(prefix), *mask]
        ends = tokenizer.special_ids.union(tokenizer.eos_ids)
        produced = [token for token, by_assistant in zip(ids, mask, strict=True) if by_assistant]
        open_ended = turns[-1:] == [len(messages) - 1] and (not produced or produced[-1] not in ends)
        if open_ended and tokenizer.eos_id is not None:
            ids, mask = [*ids, tokenizer.eos_id], [*mask, True]
        return ids, mask

    def _turn(self, messages: Sequence[Message], i: int, text: str) -> tuple[int, int] | None:
        """Where in the whole text message i's answer is, from behind its header; None if that is not well defined."""
        try:
            header, written = self.render(messages[:i], True), self.render(messages[: i + 1], False)
        except ValueError:  # a template may refuse a beginning, such as no messages at all
            return None
        return (len(header), len(written)) if text.startswith(written) and written.startswith(header) else None

    def _prefix(self, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
        if not self.adds_prefix or not tokenizer.prefix_ids:
            return ()
        doubled = text.startswith(str(tokenizer.id_to_token(tokenizer.prefix_ids[0])))
        return () if doubled else tokenizer.prefix_ids


def _check(messages: Any, style: PromptStyle) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is a {type(messages).__name__}: pass a list of dicts with 'role' and 'content'")
    if not messages:
        raise ValueError("messages is empty: pass at least one message")
    problems = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            problems.append(f"message {i} is a {type(message).__name__}, not a dict")
            continue
        if "role" not in message:
            problems.append(f"message {i} has no 'role'")
        elif message["role"] not in style.roles:
            problems.append(f"message {i} has role={message['role']!r}, not one of {', '.join(style.roles)}")
        if "content" not in message:
            problems.append(f"message {i} has no 'content'")
        elif not isinstance(message["content"], str):
            problems.append(f"message {i} has content of type {type(message['content']).__name__}, not a string")
    if problems:
        raise ValueError(f"bad messages for prompt style {style.name!r}: {'; '.join(problems)}")


_STYLES: dict[str, type[PromptStyle]] = {}


def register_style(style: type[PromptStyle]) -> type[PromptStyle]:
    """Class decorator: make a style known by its `name`. A taken name is an error."""
    if not style.name:
        raise ValueError(f"{style.__name__}.name is empty: give the prompt style a name")
    taken = _STYLES.setdefault(style.name, style)
    if (taken.__module__, taken.__qualname__) != (style.__module__, style.__qualname__):
        raise ValueError(f"name={style.name!r} is already the prompt style {taken.__qualname__}; choose another name")
    _STYLES[style.name] = style  # the same class again: a notebook cell that was run twice
    return style


def get_style(name: str) -> PromptStyle:
    """The registered style of that name; ValueError with the closest names otherwise."""
    if name not in _STYLES:
        close = difflib.get_close_matches(str(name), _STYLES, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"Unknown prompt style {name!r}. {hint}Known: {', '.join(sorted(_STYLES))}.")
    return _STYLES[name]()


def style_for(tokenizer: Tokenizer, style_name: str | None = None) -> PromptStyle:
    """How to talk to this checkpoint: its own template, else the named style, else `plain`."""
    named = get_style(style_name or "plain")
    if tokenizer.chat_template is None:
        return named
    return TemplateStyle(tokenizer.chat_template, **tokenizer.special_tokens)


# --- styles -------------------------------------------------------------------------------------------------------
@register_style
class Plain(PromptStyle):
    """Base models: the contents one after another, nothing added. By definition; there is no oracle to compare with."""

    name = "plain"
    adds_prefix = True

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return "".join(message["content"] for message in messages)


@register_style
class ChatML(PromptStyle):
    """`<|im_start|>role`, content, `<|im_end|>`. Verified against a ChatML template run by transformers."""

    name = "chatml"
    stop = ("<|im_end|>",)
    default_system: str | None = None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [(message["role"], message["content"]) for message in messages]
        if self.default_system is not None and (not turns or turns[0][0] != "system"):
            turns.insert(0, ("system", self.default_system))
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


@register_style
class SmolLM2(ChatML):
    """ChatML with SmolLM's system text where there is none. Verified against the template in SmolLM2's GGUF file."""

    name = "smollm2"
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@register_style
class Qwen3(ChatML):
    """ChatML; the last answer is preceded by its reasoning, earlier answers lose theirs.

    Reasoning is a message's `reasoning_content`, or what stands before `</think>` in its content; an empty think block
    is written where there is none. Compared with Qwen3's published template outside this repository's tests; those
    compare with a retelling of it.
    """

    name = "qwen3"

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        queries = [i for i, message in enumerate(messages) if message["role"] == "user" and not _tool_answer(message)]
        last_query = max(queries, default=len(messages))
        turns = []
        for i, message in enumerate(messages):
            content, reasoning = message["content"], message.get("reasoning_content")
            if message["role"] == "assistant":
                if reasoning is None and "</think>" in content:
                    before, *_, content = content.split("</think>")
                    reasoning = before.rstrip("\n").split("<think>")[-1].lstrip("\n")
                    content = content.lstrip("\n")
                reasoning = reasoning or ""
                if i > last_query and (reasoning or i == len(messages) - 1):
                    reasoning = reasoning.strip("\n")
                    content = content.lstrip("\n")
                    content = f"<think>\n{reasoning}\n</think>\n\n{content}"
            turns.append({"role": message["role"], "content": content})
        return super().render(turns, add_generation_prompt)


def _tool_answer(message: Message) -> bool:
    """Qwen's way of passing a tool's result: as the user, in tags."""
    return message["content"].startswith("<tool_response>") and message["content"].endswith("</tool_response>")


@register_style
class Llama3(PromptStyle):
    """Llama 3's header tokens; contents are stripped. Verified against a template of that form run by transformers.

    Llama 3.1 and later also write dates into a system turn: their checkpoints' own templates do that.
    """

    name = "llama3"
    stop = ("<|eot_id|>", "<|eom_id|>")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        def header(role: str) -> str:
            return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

        text = "".join(header(message["role"]) + message["content"].strip() + "<|eot_id|>" for message in messages)
        return "<|begin_of_text|>" + text + (header("assistant") if add_generation_prompt else "")


@register_style
class Zephyr(PromptStyle):
    """`<|role|>`, content, `</s>`, as TinyLlama's chat models. Verified against a template of that form."""

    name = "zephyr"
    stop = ("</s>",)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = "".join(f"<|{message['role']}|>\n{message['content']}</s>\n" for message in messages)
        return text + ("<|assistant|>\n" if add_generation_prompt else "")


@register_style
class Alpaca(PromptStyle):
    """Stanford Alpaca's instruction text; a user message may carry its `input`. A system message replaces the opening.

    The single-turn texts are Alpaca's; further turns repeat the sections. No outside oracle is installed to verify it.
    """

    name = "alpaca"
    adds_prefix = True
    stop = ("### Instruction:",)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        with_input = next((message.get("input") for message in messages if message["role"] == "user"), None)
        context = ", paired with an input that provides further context" if with_input else ""
        opening = (
            f"Below is an instruction that describes a task{context}. "
            "Write a response that appropriately completes the request."
        )
        sections = [] if messages and messages[0]["role"] == "system" else [opening]
        for message in messages:
            if message["role"] == "user":
                sections.append(f"### Instruction:\n{message['content']}")
                if message.get("input"):
                    sections.append(f"### Input:\n{message['input']}")
            elif message["role"] == "assistant":
                sections.append(f"### Response:\n{message['content']}")
            else:
                sections.append(message["content"])
        if add_generation_prompt:
            sections.append("### Response:\n")
        return "\n\n".join(sections)


# --- the checkpoint's own template --------------------------------------------------------------------------------
class TemplateStyle(PromptStyle):
    """A checkpoint's Jinja template, rendered as transformers' `apply_chat_template` does. Verified against it.

    variables: what the template may refer to beside `messages`, `tools`, `documents` and `add_generation_prompt`:
    `bos_token`, `eos_token`, switches such as `enable_thinking`. Templates come from strangers: they run in Jinja's
    sandbox. What a template raises or trips over is a ValueError.
    """

    name = "template"
    roles = ("system", "user", "assistant", "tool")

    def __init__(self, template: str, **variables: Any) -> None:
        import jinja2

        self.variables = variables
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line})" if line else ""
            raise ValueError(f"the chat template is not valid Jinja: {error}{where}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        # as transformers: a key without a value is a key that is not there
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        own = dict(messages=plain, tools=None, documents=None, add_generation_prompt=add_generation_prompt)
        try:
            return self._template.render(**(own | self.variables))
        except Exception as error:  # the template is a program: it raises what it likes
            raise ValueError(f"the chat template rejects this conversation: {error}") from None


def _environment() -> jinja2.Environment:
    """Jinja as chat templates expect it."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> str:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _generation_tag() -> type[Extension]:
    """`{% generation %}` marks the assistant's text for transformers; here its content is just written."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a scope of its own, as in transformers, where the block is a call
            return nodes.Scope(body, lineno=line)

    return Generation
