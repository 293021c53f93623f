"""Messages of a conversation, in the forms of chat APIs and transformers, normalized before a style renders them.

A message has `role` and `content`: text, or a list of text parts; it may be absent beside `tool_calls`. It may have
further keys that chat templates read. A key whose value is None counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litlm.prompts.base import PromptStyle

Message = Mapping[str, Any]
PLACEHOLDER = "\ue000"  # a text that no conversation holds, to find where templates write it
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names for the same thing, as in transformers
# Keys beside role and content that a style has to render or refuse.
RENDERED_KEYS = (
    "tool_calls", "function_calls", "functions", "name", "tools", "tool_plan", "tool_responses", "thoughts", "refusal",
    "documents", "citations", *REASONING_KEYS,
)  # fmt: skip


def content_text(content: Any) -> str:
    """The text of a content, which is text or a list of text parts. Raises ValueError for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"content of type {type(content).__name__}, not a string or a list of text parts")
    texts = []
    for part in content:
        part_type = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if part_type != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"content with a part of type {part_type!r}; litlm supports text only")
        if weights := {"weight", "train", "training"} & {key for key, value in part.items() if value is not None}:
            raise ValueError(f"content with {weights.pop()!r} in a part; only whole messages have a weight")
        texts.append(part["text"])
    return "".join(texts)


def normalize_messages(messages: Any, style: PromptStyle) -> list[dict[str, Any]]:
    """The messages as `style.render` takes them: content is text, and reasoning has all of its names.

    A developer message becomes a system message if the style has no developer role. Raises ValueError that lists
    everything wrong with the messages.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is a {type(messages).__name__}: pass a list of dicts with 'role' and 'content'")
    if not messages:
        raise ValueError("messages is empty: pass at least one message")
    problems: list[str] = []
    normalized: list[dict[str, Any]] = []
    for i, item in enumerate(messages):
        if not isinstance(item, Mapping):
            problems.append(f"message {i} is a {type(item).__name__}, not a dict")
            continue
        message = {key: value for key, value in item.items() if value is not None}
        role = message.get("role")
        if "role" not in message:
            problems.append(f"message {i} has no 'role'")
        elif role == "developer" and role not in style.roles and "system" in style.roles:
            message["role"] = "system"
        elif role not in style.roles:
            problems.append(f"message {i} has role={role!r}, not one of {', '.join(style.roles)}")
        if "content" in message:
            try:
                message["content"] = content_text(message["content"])
            except ValueError as e:
                problems.append(f"message {i} has {e}")
        elif not message.get("tool_calls"):
            problems.append(f"message {i} has no 'content'")
        reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        normalized.append(message)
    if not problems:
        problems = _unrendered_keys(normalized, style)
    if problems:
        raise ValueError(f"bad messages for prompt style {style.name!r}: {'; '.join(problems)}")
    return normalized


def _unrendered_keys(messages: list[dict[str, Any]], style: PromptStyle) -> list[str]:
    """Problems with keys that the style would silently leave out."""
    problems = []
    for key in RENDERED_KEYS:
        # a tool's results need no name: templates tell them apart by id or position
        having = [i for i, m in enumerate(messages) if m.get(key) and not (key == "name" and m["role"] == "tool")]
        if key in REASONING_KEYS[1:] or not having:
            continue
        names = REASONING_KEYS if key == REASONING_KEYS[0] else (key,)
        if not any(style.renders_key(name, messages) for name in names):
            problems.append(
                f"message {having[0]} has {key!r}, which this style does not write; remove it, or use a checkpoint "
                "whose own chat template writes it"
            )
    return problems
