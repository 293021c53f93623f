"""Prompt styles that are tables of what stands around each role's content; what the other files of styles share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime

from litlm.prompts import jinja
from litlm.prompts.base import Message, PromptStyle

Turn = tuple[str, str]


def same(before: str, after: str, **names: str) -> dict[str, tuple[str, str]]:
    """Markers that differ in the role's name only; `names` gives it where it is not ours."""
    roles = ("system", "user", "assistant")
    return {role: (before.replace("{role}", names.get(role, role)), after) for role in roles}


def by_role(system: tuple[str, str] | None, user: tuple[str, str], assistant: tuple[str, str]) -> dict[str, Turn]:
    markers = {"user": user, "assistant": assistant}
    return markers if system is None else {"system": system, **markers}


class Turns(PromptStyle):
    """A style that is a table.

    Attributes:
        begin: what the text starts with.
        markers: what stands before and after the content of each role.
        opening: what asks for an answer; None: what stands before every answer.
        default_system: the system text of a conversation that has none.
        strip: the roles whose contents lose their outer whitespace.
        alternating: whether users and assistants must take turns, users first.
        merge: what stands before and after a system text that is written into a user message; None: it is a turn.
        merge_into: into which user message: 0, the first, or -1, the last.
    """

    begin: str = ""
    markers: Mapping[str, tuple[str, str]] = {}
    opening: str | None = None
    default_system: str | None = None
    strip: tuple[str, ...] = ()
    alternating: bool = False
    merge: tuple[str, str] | None = None
    merge_into: int = 0

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.begin
        for role, content in self.turns(messages):
            before, after = self.markers[role]
            text += before + content + after
        if add_generation_prompt:
            return text + (self.markers["assistant"][0] if self.opening is None else self.opening)
        return text + self.closing

    def jinja(self) -> str | None:
        return jinja.table(self)

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """Roles and contents as they are written."""
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
        if self.merge is None or not system:
            return [*system, *turns]
        if users:
            i = users[self.merge_into]
            turns[i] = ("user", self.merge[0] + system[0][1] + self.merge[1] + turns[i][1])
        return turns


def answer(content: str) -> str:
    """What follows the reasoning in an answer."""
    return content.split("</think>")[-1]


def split_reasoning(message: Message) -> tuple[str, str]:
    """An answer's reasoning and the rest: from `reasoning_content`, else what stands before `</think>`."""
    content, reasoning = message["content"], message.get("reasoning_content")
    if reasoning is None and "</think>" in content:
        before, *_, content = content.split("</think>")
        return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), content.lstrip("\n")
    return reasoning or "", content


def one_system(messages: Sequence[Message]) -> list[Message]:
    """Without the system messages that are not the first message."""
    return [message for i, message in enumerate(messages) if i == 0 or message["role"] != "system"]


def last_user(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)


def today(form: str, day: date | None = None) -> str:
    """The day (None: the one it is) in strftime's form. A day has no time: hours and minutes are 0."""
    return (day or datetime.now()).strftime(form)
