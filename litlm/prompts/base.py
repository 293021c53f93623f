"""What a prompt style is: a conversation's text, its token ids, which of them the assistant wrote; the names of styles.

Unusual:
- `encode` leaves it to the text: a chat text holds its own special tokens, so nothing is added around it.
- `encode_with_mask` finds what the assistant wrote by rendering the conversation's beginnings and checking that each is
  a beginning of the whole; it needs no markers in the template, and refuses templates where that does not hold. Where
  nobody asks (the assistant begins, or goes on), templates refuse or misstate beginnings: there it compares with what
  they write for another answer.
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

from litlm.prompts.messages import PROBE, Message, accept

if TYPE_CHECKING:
    from litlm.tokenizer import Tokenizer

Style = TypeVar("Style", bound="PromptStyle")


@dataclass(frozen=True)
class Marked:
    """A finished conversation as text.

    spans: (start, end) in characters of the assistant's turns. rewritten: how many turns have no span because the
    template writes them differently from how the assistant would have. finished: whether the assistant spoke last.
    without_thoughts: whether an answer stands without the opened thought that its prompt ends with.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    rewritten: int
    finished: bool
    without_thoughts: bool = False


class PromptStyle:
    """Base class. A style defines `name` and `render`.

    Attributes:
        name: what `get_style` finds it by.
        stop: texts that end an answer, beside the tokenizer's `eos_ids`; single tokens where the vocabulary has them.
        roles: those the style can write.
        keys: of messages, beside role and content, that it writes: "reasoning_content", "thinking".
        adds_prefix: whether the tokenizer's BOS belongs before the text (styles made of plain text).
        closing: what is written behind a conversation that asks for no answer; it belongs to no turn.
        verified: whether a test compares the style's text with a source from outside, which the docstring names.
        day: what a text that tells today's date has as today; None: the day it is.
    """

    name: str = ""
    stop: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "user", "assistant")
    keys: tuple[str, ...] = ()
    adds_prefix: bool = False
    closing: str = ""
    verified: bool = False
    day: date | None = None

    def on(self: Style, day: str | date | None) -> Style:
        """This style as it writes on a day (in ISO's form, 2026-07-26), so that texts do not change overnight."""
        style = copy.copy(self)
        style.day = date.fromisoformat(day) if isinstance(day, str) else day
        return style

    def jinja(self) -> str | None:
        """The style as a Jinja chat template, for other tools; None where nobody wrote it so."""
        return None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of valid messages."""
        raise NotImplementedError

    def bind(
        self, tools: Sequence[Mapping[str, Any]] | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> PromptStyle:
        """The style for one conversation, which knows its tools (JSON schemas) and its values for the template's
        variables (`enable_thinking`, `documents`), as transformers' `apply_chat_template` takes them. ValueError if it
        can't write them, and most named styles can't.
        """
        more = dict(template_kwargs or {})
        given = (("tools", tools), ("documents", more.pop("documents", None)), ("template_kwargs", more))
        wanted = [name for name, value in given if value]
        if wanted:
            raise ValueError(
                f"prompt style {self.name!r} can't write {' and '.join(wanted)}; use a checkpoint whose own chat "
                "template does (and name no style), or leave them out"
            )
        return self

    def accept(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as `render` takes them: see `messages.py`. ValueError that lists everything wrong with them."""
        return accept(messages, self)

    def writes(self, key: str, messages: Sequence[Message]) -> bool:
        """Whether what messages hold under `key`, beside role and content, is in their text."""
        return key in self.keys

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
        return style.render(style.accept(messages), add_generation_prompt)

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, **given: Any
    ) -> list[int]:
        """Token ids of `format`, with the tokenizer's BOS only where the style wants it and the text has none.

        given: tools and template_kwargs.
        """
        text = self.format(messages, add_generation_prompt=add_generation_prompt, **given)
        return [*self._prefix(text, tokenizer), *tokenizer.encode(text, add_special_tokens=False)]

    def count_tokens(self, messages: Sequence[Message], tokenizer: Tokenizer, **given: Any) -> int:
        """Tokens of the prompt that asks for the next answer. given: tools and template_kwargs."""
        return len(self.encode(messages, tokenizer, **given))

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
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, first: int = 0, **given: Any
    ) -> tuple[list[int], list[bool]]:
        """A finished conversation as ids, and for each whether the assistant produced it.

        Returns `encode(messages, tokenizer, add_generation_prompt=False)` and a mask of the same length: True for the
        assistant's content and the token that ends its turn, in every assistant turn from message `first` on. A token
        that holds both prompt and answer characters counts as the assistant's. Where the style writes no token after
        the last answer (`plain`, `alpaca`), `tokenizer.eos_id` is appended to both, True. given: tools and
        template_kwargs.

        Templates that write earlier turns differently from the last (Qwen3 drops their reasoning) show the model
        earlier turns that it would not have written so: then only the last assistant turn is True. Raises ValueError
        where even that turn does not continue its own prompt.
        """
        return self.encode_marked(self.mark(messages, first=first, **given), tokenizer)

    def mark(
        self,
        messages: Sequence[Message],
        *,
        first: int = 0,
        skip: Collection[int] = (),
        without_thoughts: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Marked:
        """The text of a finished conversation and where the assistant's turns from message `first` on are in it.

        skip: messages that are not looked for. without_thoughts: templates that ask with an opened thought
        (DeepSeek-R1: `<think>`) and write answers without it are refused, because no such answer continues its prompt;
        take the answers as they are written instead. tools, template_kwargs: see `bind`.
        """
        style = self.bind(tools, template_kwargs)
        messages = style.accept(messages)
        text = style.render(messages, False)
        said = (i for i, message in enumerate(messages) if message["role"] == "assistant")
        turns = [i for i in said if i >= first and i not in skip]
        spans = {i: style._turn(messages, i, text) for i in turns}
        bare = without_thoughts and bool(turns) and spans[turns[-1]] is None
        if bare:
            spans = {i: span or style._turn(messages, i, text, bare=True) for i, span in spans.items()}
        if turns and None in spans.values():
            spans = {turns[-1]: spans[turns[-1]]}
        for i, span in spans.items():
            if span is None:
                raise ValueError(
                    f"prompt style {self.name!r}: message {i}, the last assistant turn, is not written as a "
                    "continuation of its own prompt, so its tokens cannot be told from the template's; end the "
                    "conversation with it, or use another template"
                )
        found = tuple(span for span in spans.values() if span is not None)
        return Marked(text, found, len(turns) - len(found), messages[-1]["role"] == "assistant", bare)

    def encode_marked(self, marked: Marked, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Ids and mask, as `encode_with_mask` returns them, of what `mark` returned."""
        text = marked.text
        ids, places = tokenizer.encode_with_spans(text)
        mask = [False] * len(ids)
        starts, ends = [left for left, _ in places], [right for _, right in places]
        for start, end in marked.spans:
            inside = range(bisect.bisect_right(ends, start), bisect.bisect_left(starts, end))
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
        if marked.finished and tokenizer.eos_id is not None:
            if marked.spans:
                n = next((k + 1 for k in reversed(range(len(ids))) if mask[k]), 0)
            else:  # the last token that is not of the blank end
                n = len(prefix) + bisect.bisect_left(starts, len(text.rstrip()))
            if n == 0 or ids[n - 1] not in tokenizer.special_ids.union(tokenizer.eos_ids):
                ids, mask = [*ids, tokenizer.eos_id], [*mask, bool(marked.spans)]
        return ids, mask

    def _turn(self, messages: Sequence[Message], i: int, text: str, *, bare: bool = False) -> tuple[int, int] | None:
        """Where in the whole text message i's answer is, from behind its header; None if that is not well defined.

        bare: its header is what the prompt and any written answer have in common.
        """
        answers = any(message["role"] == "user" for message in messages[:i]) and messages[i - 1]["role"] != "assistant"
        try:
            start = (self._start if answers else self._compared_start)(messages, i, text, bare)
            end = self._end(messages, i, text)
        except ValueError:  # a template may refuse any conversation
            return None
        return None if start is None or end is None or start > end else (start, end)

    def _start(self, messages: Sequence[Message], i: int, text: str, bare: bool) -> int | None:
        """Where the answer begins: where its prompt ends."""
        header = self.render(messages[:i], True)
        if bare:
            before = self.render(messages[:i], False).removesuffix(self.closing)
            other = self.render([*messages[:i], {"role": "assistant", "content": PROBE}], False)
            header = os.path.commonprefix([header, other])
            if not header.startswith(before):
                return None
        return len(header) if text.startswith(header) else None

    def _compared_start(self, messages: Sequence[Message], i: int, text: str, bare: bool) -> int | None:
        """The same where nobody asks: before the user has spoken, or behind another answer. There, templates may write
        no header, or leave out their own system text.

        It is behind what stands before any other answer there, or inside, where what asks for an answer ends.
        """
        try:
            other = self.render([*messages[:i], {"role": "assistant", "content": PROBE}], False)
        except ValueError:
            other = self.render(_with_content(messages, i, PROBE), False)
        known = os.path.commonprefix([text, other])
        question = [*messages[:i], {"role": "user", "content": PROBE}]
        quiet = self.render(question, False).removesuffix(self.closing)
        asking = self.render(question, True)
        before = len(os.path.commonprefix([known, quiet]))
        opening = asking[len(os.path.commonprefix([asking, quiet])) :]
        if not opening:
            return before
        start = known.rfind(opening) + len(opening)
        return start if opening in known and start > before else len(known) if bare else None

    def _end(self, messages: Sequence[Message], i: int, text: str) -> int | None:
        """Where the answer ends: with the conversation, if it ended there; None if it is written differently then."""
        if i == len(messages) - 1:
            return len(text.removesuffix(self.closing))
        try:
            written = self.render(messages[: i + 1], False).removesuffix(self.closing)
            return len(written) if text.startswith(written) else None
        except ValueError:
            if any(message["role"] == "user" for message in messages[:i]):
                raise
        # no conversation without a user: what follows its content here, as far as it follows every answer
        answered = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]
        ends = [self.render(m, False).rpartition(PROBE)[2] for m in (answered, [*answered, answered[0]])]
        ending = os.path.commonprefix([ends[0].removesuffix(self.closing), ends[1]])
        other = self.render(_with_content(messages, i, PROBE), False)
        at = len(text) - len(os.path.commonprefix([text[::-1], other[::-1]]))
        return at + len(ending) if text.startswith(ending, at) else None

    def _prefix(self, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
        if not self.adds_prefix or not tokenizer.prefix_ids:
            return ()
        doubled = text.startswith(str(tokenizer.id_to_token(tokenizer.prefix_ids[0])))
        return () if doubled else tokenizer.prefix_ids


def _with_content(messages: Sequence[Message], i: int, content: str) -> list[Message]:
    return [*messages[:i], {**messages[i], "content": content}, *messages[i + 1 :]]


_STYLES: dict[str, type[PromptStyle]] = {}


def register_style(style: type[Style]) -> type[Style]:
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
