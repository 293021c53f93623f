"""What a prompt style is: a conversation's text, its token ids, which of them the assistant wrote; the names of styles.

Unusual:
- `encode` leaves it to the text: a chat text holds its own special tokens, so nothing is added around it.
- `encode_with_mask` finds what the assistant wrote by rendering the conversation's beginnings and checking that each is
  a beginning of the whole; it needs no markers in the template, and refuses templates where that does not hold.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from litlm.tokenizer import Tokenizer

Message = Mapping[str, Any]
Style = TypeVar("Style", bound="PromptStyle")


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
