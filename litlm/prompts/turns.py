"""Prompt styles that are a table of markers around each role's content, and helpers for the other files of styles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litlm.prompts import jinja
from litlm.prompts.base import PromptStyle

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

    def jinja(self) -> str | None:
        return jinja.marker_template(self, **self.jinja_parts)
