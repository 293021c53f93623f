"""Prompt styles: how a conversation becomes text and token ids, and which of these the assistant wrote.

- `encode` adds no special tokens around the text: a chat template writes its own.
- `encode_with_mask` finds what the assistant wrote by rendering the beginnings of a conversation and checking that each
  is a prefix of the whole. So templates need no markers, and those that break the rule are refused. Where no user
  message precedes an answer, templates refuse or change such beginnings; there it compares with another answer.
"""

from __future__ import annotations

import bisect
import copy
import difflib
import os.path
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from litlm.prompts import jinja
from litlm.prompts.messages import PLACEHOLDER, Message, normalize_messages

if TYPE_CHECKING:
    from litlm.tokenizer import Tokenizer

Style = TypeVar("Style", bound="PromptStyle")
_STYLES: dict[str, type[PromptStyle]] = {}


@dataclass(frozen=True)
class RenderedConversation:
    """A finished conversation as text.

    spans: (start, end) in characters of the assistant's messages. n_rewritten: messages without a span, because the
    template writes them differently from how they were generated. ends_with_answer: whether the assistant spoke last.
    missing_thinking: whether an answer lacks the thought that its prompt opens.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    n_rewritten: int
    ends_with_answer: bool
    missing_thinking: bool = False


class PromptStyle:
    """Base class. A style defines `jinja`, or `render` in Python, which other tools can't run.

    A subclass that sets a `name` is registered under it for `get_style`; ValueError if another class has the name.

    Attributes:
        name: for `get_style` and errors.
        stop: texts that end an answer, beside the tokenizer's `eos_ids`; single tokens if the vocabulary has them.
        roles: those the style can write.
        message_keys: of messages, beside role and content, that it writes: "reasoning_content", "thinking".
        adds_bos: whether the tokenizer's prefix (BOS) belongs before the text (styles of plain text).
        suffix: what follows a conversation that asks for no answer; it belongs to no message.
        unverified: whether no test compares the text with an external source, which the docstring otherwise names.
        current_date: what the text gives as today's date; None: the actual date.
    """

    name: str = ""
    stop: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "user", "assistant")
    message_keys: tuple[str, ...] = ()
    adds_bos: bool = False
    suffix: str = ""
    unverified: bool = False
    current_date: date | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "turns" in vars(cls):  # styles used to write their turns in Python
            raise TypeError(f"{cls.__name__}.turns is not called any more: override jinja_parts, or render")
        if not (name := vars(cls).get("name")):  # an inherited one is the parent's
            return
        taken = _STYLES.get(name, cls)
        # the same class may come again: a notebook cell that was run twice
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"name={name!r} is already the prompt style {taken.__qualname__}; choose another name")
        _STYLES[name] = cls

    def with_date(self: Style, day: str | date | None) -> Style:
        """This style with a fixed current date (ISO format: 2026-07-26), so that its text is the same every day."""
        style = copy.copy(self)
        style.current_date = date.fromisoformat(day) if isinstance(day, str) else day
        return style

    def jinja(self) -> str | None:
        """The style as a Jinja chat template, which `render` runs; None if there is none."""
        return None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of normalized messages. Raises ValueError for conversations that the template refuses."""
        if (template := self.jinja()) is None:
            raise NotImplementedError(f"{type(self).__name__} defines neither jinja nor render")
        variables = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return jinja.render(template, f"prompt style {self.name!r}", self.current_date, variables)

    def bind(
        self, tools: Sequence[Mapping[str, Any]] | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> PromptStyle:
        """The style for one conversation, with its tools (JSON schemas) and template variables (`enable_thinking`,
        `documents`), as transformers' `apply_chat_template` takes them. Raises ValueError if the style can't write
        them; most named styles can't.
        """
        kwargs = dict(template_kwargs or {})
        arguments = (("tools", tools), ("documents", kwargs.pop("documents", None)), ("template_kwargs", kwargs))
        if unsupported := [name for name, value in arguments if value]:
            raise ValueError(
                f"prompt style {self.name!r} can't write {' and '.join(unsupported)}; use a checkpoint whose own chat "
                "template does (and name no style), or leave them out"
            )
        return self

    def normalize(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as `render` takes them, see `normalize_messages`. Raises ValueError for all that is wrong."""
        return normalize_messages(messages, self)

    def renders_key(self, key: str, messages: Sequence[Message]) -> bool:
        """Whether the text contains what messages hold under `key`, beside role and content."""
        return key in self.message_keys

    def format(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.

        tools, template_kwargs: see `bind`. Raises ValueError that lists everything wrong with the messages.
        """
        style = self.bind(tools, template_kwargs)
        return style.render(style.normalize(messages), add_generation_prompt)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, **arguments: Any
    ) -> list[int]:
        """Token ids of `format`, after the tokenizer's BOS if the style wants it and the text has none.

        arguments: tools and template_kwargs.
        """
        text = self.format(messages, add_generation_prompt=add_generation_prompt, **arguments)
        return [*self._bos_ids(text, tokenizer), *tokenizer.encode(text, add_special_tokens=False)]

    def count_tokens(self, messages: Sequence[Message], tokenizer: Tokenizer, **arguments: Any) -> int:
        """Tokens of the prompt for the next answer. arguments: tools and template_kwargs."""
        return len(self.encode(messages, tokenizer, **arguments))

    def missing_tokens(self, tokenizer: Tokenizer) -> list[str]:
        """The special tokens in this style's text that the tokenizer lacks; [] if it has those that end an answer.

        For then the others are plain text, as in some published models (Zephyr's `<|user|>`).
        """
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = self.format(talk, add_generation_prompt=False)
        ends = {stop for stop in self.stop if stop in text and stop[-1] in ">]|["}  # not "### Instruction:"
        if all(tokenizer.token_to_id(end) is not None for end in ends):
            return []
        written = sorted({*ends, *re.findall(r"<\|[^|<>\s]+\|>", text)}, key=text.index)
        return [token for token in written if tokenizer.token_to_id(token) is None]

    def encode_with_mask(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, first: int = 0, **arguments: Any
    ) -> tuple[list[int], list[bool]]:
        """A finished conversation as ids, and for each whether the assistant produced it.

        Returns `encode(messages, tokenizer, add_generation_prompt=False)` and a mask of the same length. The mask is
        True for the content and end token of the assistant's messages from message `first` on. A token with characters
        of both prompt and answer counts as the assistant's. If the style writes no token after the last answer
        (`plain`, `alpaca`), `tokenizer.eos_id` is appended, True. arguments: tools and template_kwargs.

        Some templates write earlier answers differently from how they were generated (Qwen3 drops their reasoning):
        then only the last answer is True. Raises ValueError if even that is not a continuation of its own prompt.
        """
        return self.encode_rendered(self.render_with_spans(messages, first=first, **arguments), tokenizer)

    def render_with_spans(
        self,
        messages: Sequence[Message],
        *,
        first: int = 0,
        skip: Collection[int] = (),
        allow_missing_thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedConversation:
        """The text of a finished conversation, and where the assistant's messages from `first` on are in it.

        skip: messages to leave out of the spans. allow_missing_thinking: some templates open a thought in the prompt
        (DeepSeek-R1: `<think>`) and write answers without it, which continue no prompt; take such answers as they are
        written. tools, template_kwargs: see `bind`. Raises ValueError if the last answer does not continue its prompt.
        """
        style = self.bind(tools, template_kwargs)
        messages = style.normalize(messages)
        text = style.render(messages, False)
        answers = (i for i, message in enumerate(messages) if message["role"] == "assistant")
        answers = [i for i in answers if i >= first and i not in skip]
        spans = {i: style._answer_span(messages, i, text) for i in answers}
        missing_thinking = allow_missing_thinking and bool(answers) and spans[answers[-1]] is None
        if missing_thinking:
            spans = {i: span or style._answer_span(messages, i, text, shared=True) for i, span in spans.items()}
        if answers and None in spans.values():
            spans = {answers[-1]: spans[answers[-1]]}
        for i, span in spans.items():
            if span is None:
                raise ValueError(
                    f"prompt style {self.name!r}: message {i}, the last assistant turn, is not written as a "
                    "continuation of its own prompt, so its tokens can't be distinguished from the template's; end the "
                    "conversation with it, or use another template"
                )
        found = tuple(span for span in spans.values() if span is not None)
        ends_with_answer = messages[-1]["role"] == "assistant"
        return RenderedConversation(text, found, len(answers) - len(found), ends_with_answer, missing_thinking)

    def encode_rendered(self, rendered: RenderedConversation, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Ids and mask, as `encode_with_mask` returns them, of what `render_with_spans` returned."""
        text = rendered.text
        ids, offsets = tokenizer.encode_with_spans(text)
        mask = [False] * len(ids)
        starts, ends = [left for left, _ in offsets], [right for _, right in offsets]
        for start, end in rendered.spans:
            inside = range(bisect.bisect_right(ends, start), bisect.bisect_left(starts, end))
            for k in inside:
                mask[k] = True
            # what a template writes after the end-of-turn token (mostly "\n") is not the assistant's
            last = next((k for k in reversed(inside) if ids[k] in tokenizer.special_ids), None)
            tail = [k for k in inside if last is not None and k > last]
            if tail and not text[offsets[tail[0]][0] : end].strip():
                for k in tail:
                    mask[k] = False
        bos = self._bos_ids(text, tokenizer)
        ids, mask = [*bos, *ids], [*[False] * len(bos), *mask]
        if rendered.ends_with_answer and tokenizer.eos_id is not None:
            if rendered.spans:
                n = next((k + 1 for k in reversed(range(len(ids))) if mask[k]), 0)
            else:  # up to the last token that is not trailing whitespace
                n = len(bos) + bisect.bisect_left(starts, len(text.rstrip()))
            if n == 0 or ids[n - 1] not in tokenizer.special_ids.union(tokenizer.eos_ids):
                ids, mask = [*ids, tokenizer.eos_id], [*mask, bool(rendered.spans)]
        return ids, mask

    def _answer_span(
        self, messages: Sequence[Message], i: int, text: str, *, shared: bool = False
    ) -> tuple[int, int] | None:
        """Where answer i is in the text, without its header; None if that is not well defined.

        shared: its header is what the prompt and any written answer have in common.
        """
        asked = any(message["role"] == "user" for message in messages[:i]) and messages[i - 1]["role"] != "assistant"
        try:
            start = (self._answer_start if asked else self._unasked_start)(messages, i, text, shared)
            end = self._answer_end(messages, i, text)
        except ValueError:  # a template may refuse any conversation
            return None
        return None if start is None or end is None or start > end else (start, end)

    def _answer_start(self, messages: Sequence[Message], i: int, text: str, shared: bool) -> int | None:
        """Where the answer begins: where its prompt ends."""
        header = self.render(messages[:i], True)
        if shared:
            before = self.render(messages[:i], False).removesuffix(self.suffix)
            other = self.render([*messages[:i], {"role": "assistant", "content": PLACEHOLDER}], False)
            header = os.path.commonprefix([header, other])
            if not header.startswith(before):
                return None
        return len(header) if text.startswith(header) else None

    def _unasked_start(self, messages: Sequence[Message], i: int, text: str, shared: bool) -> int | None:
        """Where an answer begins that follows no user message. There, templates may write no header, or leave out
        their own system text.

        That is after what precedes any other answer there, or within it, at the end of the generation prompt.
        """
        try:
            other = self.render([*messages[:i], {"role": "assistant", "content": PLACEHOLDER}], False)
        except ValueError:
            other = self.render(_with_content(messages, i, PLACEHOLDER), False)
        common = os.path.commonprefix([text, other])
        question = [*messages[:i], {"role": "user", "content": PLACEHOLDER}]
        without_prompt = self.render(question, False).removesuffix(self.suffix)
        with_prompt = self.render(question, True)
        before = len(os.path.commonprefix([common, without_prompt]))
        generation_prompt = with_prompt[len(os.path.commonprefix([with_prompt, without_prompt])) :]
        if not generation_prompt:
            return before
        start = common.rfind(generation_prompt) + len(generation_prompt)
        return start if generation_prompt in common and start > before else len(common) if shared else None

    def _answer_end(self, messages: Sequence[Message], i: int, text: str) -> int | None:
        """Where the answer ends: with the conversation, if it ended there; None if it is written differently then."""
        if i == len(messages) - 1:
            return len(text.removesuffix(self.suffix))
        try:
            written = self.render(messages[: i + 1], False).removesuffix(self.suffix)
            return len(written) if text.startswith(written) else None
        except ValueError:
            if any(message["role"] == "user" for message in messages[:i]):
                raise
        # the template wants a user message: take what follows the content here and follows every other answer
        answered = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PLACEHOLDER}]
        ends = [self.render(m, False).rpartition(PLACEHOLDER)[2] for m in (answered, [*answered, answered[0]])]
        ending = os.path.commonprefix([ends[0].removesuffix(self.suffix), ends[1]])
        other = self.render(_with_content(messages, i, PLACEHOLDER), False)
        at = len(text) - len(os.path.commonprefix([text[::-1], other[::-1]]))
        return at + len(ending) if text.startswith(ending, at) else None

    def _bos_ids(self, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
        if not self.adds_bos or not tokenizer.prefix_ids:
            return ()
        has_bos = text.startswith(str(tokenizer.id_to_token(tokenizer.prefix_ids[0])))
        return () if has_bos else tokenizer.prefix_ids


def _with_content(messages: Sequence[Message], i: int, content: str) -> list[Message]:
    return [*messages[:i], {**messages[i], "content": content}, *messages[i + 1 :]]


def get_style(name: str) -> PromptStyle:
    """The registered style of that name. Raises ValueError with the closest names if there is none."""
    if name not in _STYLES:
        close = difflib.get_close_matches(str(name), _STYLES, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"Unknown prompt style {name!r}. {hint}Known: {', '.join(sorted(_STYLES))}.")
    return _STYLES[name]()
