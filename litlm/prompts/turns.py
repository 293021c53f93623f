"""Prompt styles that are a table of markers around each role's content, and helpers for the other files of styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from litlm.prompts import jinja
from litlm.prompts.base import Message, PromptStyle

Turn = tuple[str, str]  # role, content
Markers = tuple[str, str]  # before and after a content


def shared_markers(before: str, after: str, **names: str) -> dict[str, Markers]:
    """Markers that differ only in the role's name, `{role}`. names: where it is not ours."""
    roles = ("system", "user", "assistant")
    return {role: (before.replace("{role}", names.get(role, role)), after) for role in roles}


def role_markers(system: Markers | None, user: Markers, assistant: Markers) -> dict[str, Markers]:
    """Markers of each role; None for system: there are no system turns."""
    markers = {"user": user, "assistant": assistant}
    return markers if system is None else {"system": system, **markers}


class MarkerStyle(PromptStyle):
    """A style that is a table of markers.

    Attributes:
        prefix: the beginning of the text.
        markers: what precedes and follows the content of each role.
        generation_prompt: what asks for an answer; None: what precedes every answer.
        default_system: the system text of conversations without one.
        strip: the roles whose contents lose their outer whitespace.
        alternating: whether user and assistant must take turns, the user first.
        merge_system: what precedes and follows a system text that is written into a user message; None: it is a turn.
        merge_into: which user message that is: 0, the first, or -1, the last.
        jinja_parts: what `jinja.marker_template` needs to know where a subclass differs from the table.
    """

    prefix: str = ""
    markers: Mapping[str, Markers] = {}
    generation_prompt: str | None = None
    default_system: str | None = None
    strip: tuple[str, ...] = ()
    alternating: bool = False
    merge_system: Markers | None = None
    merge_into: int = 0
    jinja_parts: Mapping[str, Any] = {}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.prefix
        for role, content in self.turns(messages):
            before, after = self.markers[role]
            text += before + content + after
        if add_generation_prompt:
            return text + (self.markers["assistant"][0] if self.generation_prompt is None else self.generation_prompt)
        return text + self.suffix

    def jinja(self) -> str | None:
        return jinja.marker_template(self, **self.jinja_parts)

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """Roles and contents as they are written. Raises ValueError for roles in an order that can't be."""
        system = [("system", self.default_system)] if self.default_system is not None else []
        turns = [(m["role"], m["content"].strip() if m["role"] in self.strip else m["content"]) for m in messages]
        if turns and turns[0][0] == "system":
            system = [turns.pop(0)]
        for i, (role, _) in enumerate(turns):
            if role not in self.markers or (role == "system" and self.alternating):
                raise ValueError(f"prompt style {self.name!r}: a system message can only be the first message")
            if self.alternating and role != ("user", "assistant")[i % 2]:
                raise ValueError(
                    f"prompt style {self.name!r}: after an optional system message, user and assistant take turns, "
                    f"but message {i + len(messages) - len(turns)} is another {role}'s"
                )
        users = [i for i, (role, _) in enumerate(turns) if role == "user"]
        if self.merge_system is None or not system:
            return [*system, *turns]
        if users:
            i = users[self.merge_into]
            turns[i] = ("user", self.merge_system[0] + system[0][1] + self.merge_system[1] + turns[i][1])
        return turns


def without_reasoning(content: str) -> str:
    """What follows the reasoning in an answer."""
    return content.split("</think>")[-1]


def split_reasoning(message: Message) -> tuple[str, str]:
    """An answer's reasoning and the rest: from `reasoning_content`, else what precedes `</think>`."""
    content, reasoning = message["content"], message.get("reasoning_content")
    if reasoning is None and "</think>" in content:
        before, *_, content = content.split("</think>")
        return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), content.lstrip("\n")
    return reasoning or "", content


def first_system_only(messages: Sequence[Message]) -> list[Message]:
    """The messages without system messages after the first message."""
    return [message for i, message in enumerate(messages) if i == 0 or message["role"] != "system"]


def today(format: str, day: date | None = None) -> str:
    """A date (None: today's) in strftime's format. A date has no time: hours and minutes are 0."""
    return (day or datetime.now()).strftime(format)
