"""What a prompt style is: a conversation's text, its token ids, which of them the assistant wrote; the names of styles.

Unusual:
- `encode` leaves it to the text: a chat text holds its own special tokens, so nothing is added around it.
- `encode_with_mask` finds what the assistant wrote by rendering the conversation's beginnings and checking that each is
  a beginning of the whole; it needs no markers in the template, and refuses templates where that does not hold.
"""

from __future__ import annotations

import bisect
import difflib
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from litlm.tokenizer import Tokenizer

Message = Mapping[str, Any]
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
        adds_prefix: whether the tokenizer's BOS belongs before the text (styles made of plain text).
        closing: what is written behind a conversation that asks for no answer; it belongs to no turn.
        verified: whether a test compares the style's text with a source from outside, which the docstring names.
    """

    name: str = ""
    stop: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "user", "assistant")
    adds_prefix: bool = False
    closing: str = ""
    verified: bool = False

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

    def encode_with_mask(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, first: int = 0
    ) -> tuple[list[int], list[bool]]:
        """A finished conversation as ids, and for each whether the assistant produced it.

        Returns `encode(messages, tokenizer, add_generation_prompt=False)` and a mask of the same length: True for the
        assistant's content and the token that ends its turn, in every assistant turn from message `first` on. A token
        that holds both prompt and answer characters counts as the assistant's. Where the style writes no token after
        the last answer (`plain`, `alpaca`), `tokenizer.eos_id` is appended to both, True.

        Templates that write earlier turns differently from the last (Qwen3 drops their reasoning) show the model
        earlier turns that it would not have written so: then only the last assistant turn is True. Raises ValueError
        where even that turn does not continue its own prompt.
        """
        return self.encode_marked(self.mark(messages, first=first), tokenizer)

    def mark(self, messages: Sequence[Message], *, first: int = 0, without_thoughts: bool = False) -> Marked:
        """The text of a finished conversation and where the assistant's turns from message `first` on are in it.

        without_thoughts: templates that ask with an opened thought (DeepSeek-R1: `<think>`) and write answers without
        it are refused, because no such answer continues its prompt; take the answers as they are written instead.
        """
        text = self.format(messages, add_generation_prompt=False)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
        spans = {i: self._turn(messages, i, text) for i in turns}
        bare = without_thoughts and bool(turns) and spans[turns[-1]] is None
        if bare:
            spans = {i: span or self._turn(messages, i, text, bare=True) for i, span in spans.items()}
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
        try:
            header = self.render(messages[:i], True)
            written = text if i == len(messages) - 1 else self.render(messages[: i + 1], False)
            if bare:
                before = self.render(messages[:i], False).removesuffix(self.closing)
                other = self.render([*messages[:i], {"role": "assistant", "content": "\ue000"}], False)
                header = os.path.commonprefix([header, other])
                if not header.startswith(before):
                    return None
        except ValueError:  # a template may refuse a beginning, such as no messages at all
            return None
        written = written.removesuffix(self.closing)
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
