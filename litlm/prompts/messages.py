"""Messages of a conversation: the forms that chat APIs and transformers share, made one before a style writes them.

`role` and `content`, which is text or a list of text parts, and may be missing beside `tool_calls`; further keys as
transformers' templates read them. A key without a value is a key that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litlm.prompts.base import PromptStyle

Message = Mapping[str, Any]
PROBE = "\ue000"  # a text that stands in no conversation, to see where templates write it
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing by three names, as in transformers
# Keys beside role and content that say something: a style writes them or refuses them.
SAYING = (
    "tool_calls", "function_calls", "functions", "name", "tools", "tool_plan", "tool_responses", "thoughts", "refusal",
    "documents", "citations", *REASONING,
)  # fmt: skip


def text_of(content: Any) -> str:
    """A content's text: itself, or its text parts one behind the other. ValueError, with what it is, otherwise."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"content of type {type(content).__name__}, not a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"content with a part of type {kind!r}; litlm reads and writes text")
        if marks := {"weight", "train", "training"} & {key for key, value in part.items() if value is not None}:
            raise ValueError(f"content with {marks.pop()!r} in a part; whole messages are learned or not")
        texts.append(part["text"])
    return "".join(texts)


def accept(messages: Any, style: PromptStyle) -> list[dict[str, Any]]:
    """The messages in the form that `style.render` writes. ValueError that lists everything wrong with them.

    A developer message is a system message where the style knows no developer.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is a {type(messages).__name__}: pass a list of dicts with 'role' and 'content'")
    if not messages:
        raise ValueError("messages is empty: pass at least one message")
    problems: list[str] = []
    accepted: list[dict[str, Any]] = []
    for i, given in enumerate(messages):
        if not isinstance(given, Mapping):
            problems.append(f"message {i} is a {type(given).__name__}, not a dict")
            continue
        message = {key: value for key, value in given.items() if value is not None}
        role = message.get("role")
        if "role" not in message:
            problems.append(f"message {i} has no 'role'")
        elif role == "developer" and role not in style.roles and "system" in style.roles:
            message["role"] = "system"
        elif role not in style.roles:
            problems.append(f"message {i} has role={role!r}, not one of {', '.join(style.roles)}")
        if "content" in message:
            try:
                message["content"] = text_of(message["content"])
            except ValueError as e:
                problems.append(f"message {i} has {e}")
        elif not message.get("tool_calls"):
            problems.append(f"message {i} has no 'content'")
        reasoning = next((message[key] for key in REASONING if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        accepted.append(message)
    if not problems:
        problems = _unwritten(accepted, style)
    if problems:
        raise ValueError(f"bad messages for prompt style {style.name!r}: {'; '.join(problems)}")
    return accepted


def _unwritten(messages: list[dict[str, Any]], style: PromptStyle) -> list[str]:
    """What the messages say that the style would leave out without a word."""
    problems = []
    for key in SAYING:
        # the results of tools are told apart by their ids and places, too
        having = [i for i, m in enumerate(messages) if m.get(key) and not (key == "name" and m["role"] == "tool")]
        if key in REASONING[1:] or not having:
            continue
        names = REASONING if key == REASONING[0] else (key,)
        if not any(style.writes(name, messages) for name in names):
            problems.append(
                f"message {having[0]} has {key!r}, which this style does not write; remove it, or use a checkpoint "
                "whose own chat template writes it"
            )
    return problems
