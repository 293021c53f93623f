"""Prompt styles as Jinja chat templates, so that other tools ask a model as it was trained; and what ends an answer.

A style's `jinja` writes the template: for tables here, for the rest beside their `render`. It counts only where nothing
that it mirrors was overridden below it (a subclass with a `render` of its own needs a `jinja` of its own).
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

from litlm.prompts.base import PromptStyle

if TYPE_CHECKING:
    from litlm.prompts.turns import Turns
    from litlm.tokenizer import Tokenizer

_MIRRORED = ("render", "turns")

# an answer's `reasoning` and the rest, `content`, as `turns.split_reasoning` tells them apart
REASONING = r"""{%- set content = message.content -%}
{%- set reasoning = message.reasoning_content or "" -%}
{%- if message.reasoning_content is not defined and "</think>" in content -%}
{%- set reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") -%}
{%- set content = content.split("</think>")[-1].lstrip("\n") -%}
{%- endif -%}"""

# where the last question is
LAST_USER = """{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}"""


def chat_template(style: PromptStyle, tokenizer: Tokenizer) -> str | None:
    """The style as a chat template for this tokenizer; None where there is none.

    Tools add no BOS to what a template writes, so styles that leave it to the tokenizer have it in their template.
    """
    classes = type(style).__mro__
    depth = {n: next((i for i, c in enumerate(classes) if n in vars(c)), len(classes)) for n in ("jinja", *_MIRRORED)}
    template = style.jinja() if all(depth["jinja"] <= depth[name] for name in _MIRRORED) else None
    if template is None or not style.adds_prefix:
        return template
    prefix = "".join(tokenizer.id_to_token(token) or "" for token in tokenizer.prefix_ids)
    return (say(text(prefix)) if prefix else "") + template


def turn_ends(style: PromptStyle, tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens that end an answer in this style: those it stops at, and what it has answers learned with."""
    ends = {i for stop in style.stop if (i := tokenizer.token_to_id(stop)) in tokenizer.special_ids}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids, learned = style.encode_marked(style.mark(talk, without_thoughts=True), tokenizer)
    except ValueError:  # a template that refuses it, or that writes answers unlike how they are asked for
        return frozenset(ends)
    last = max((k for k, yes in enumerate(learned) if yes), default=None)
    return frozenset(ends if last is None else ends | ({ids[last]} & tokenizer.special_ids))


def text(literal: str) -> str:
    """A text in a template's expression."""
    return json.dumps(literal, ensure_ascii=False)


def say(*parts: str) -> str:
    """Write expressions, one after another."""
    return "{{- " + " + ".join(part for part in parts if part != '""') + " -}}" if any(p != '""' for p in parts) else ""


def fill(template: str, **values: str) -> str:
    """A template with texts of Jinja in the place of `$name`."""
    refused = refuse("roles are system, user, assistant")
    return string.Template(template.strip()).substitute(values, refuse=refused)


def refuse(why: str) -> str:
    return "{{- raise_exception(" + text(why) + ") -}}"


def table(
    style: Turns,
    *,
    begin: str = "",
    default: str = "",
    system: str = "messages[0].content",
    first: str = "",
    keep: str = "",
    content: Mapping[str, str] | None = None,
    after: Mapping[str, str] | None = None,
    turn: Mapping[str, str] | None = None,
) -> str:
    """The template of a style that is a table. What differs from the table is given in Jinja:

    begin: statements to begin with. default: the expression of the system text where none is given. system: that of a
    given one. first: what writes the variable `system`. keep: which of the other messages are written. By role, the
    expressions: content, of its text (`content` is that of the table); after, what follows it; turn, all of the turn.
    """
    content, after, turn = content or {}, after or {}, turn or {}
    default = default or ("none" if style.default_system is None else text(style.default_system))
    # a first system message that is like any other turn needs no care
    apart = style.merge is not None or style.alternating or default != "none" or bool(first)
    lines = [begin]
    if apart:
        lines += ["{%- set system = " + default + " -%}", "{%- set rest = messages -%}"]
    if apart and "system" in style.roles:
        given = f"({system}) | trim" if "system" in style.strip else system
        lines += [
            '{%- if messages and messages[0].role == "system" -%}',
            "{%- set system = " + given + " -%}",
            "{%- set rest = messages[1:] -%}",
            "{%- endif -%}",
        ]
    lines.append(say(text(style.begin)))
    if apart and style.merge is None and "system" in style.markers:
        before, behind = map(text, style.markers["system"])
        lines += ["{%- if system is not none -%}", first or say(before, "system", behind), "{%- endif -%}"]
    if style.merge is not None:
        unset = "" if style.merge_into else " and into.turn < 0"
        lines += [
            "{%- set into = namespace(turn=-1) -%}",
            "{%- for message in rest -%}",
            '{%- if message.role == "user"' + unset + " -%}{%- set into.turn = loop.index0 -%}{%- endif -%}",
            "{%- endfor -%}",
        ]
    lines.append("{%- for message in " + ("rest" if apart else "messages") + (f" if {keep}" if keep else "") + " -%}")
    if style.alternating:
        lines.append('{%- if (message.role == "user") != (loop.index0 % 2 == 0) -%}')
        lines += [refuse("user and assistant must take turns, after an optional system message"), "{%- endif -%}"]
    roles = [role for role in style.markers if role in style.roles and not (role == "system" and style.alternating)]
    for i, role in enumerate(roles):
        before, behind = map(text, style.markers[role])
        own = "message.content" + (" | trim" if role in style.strip else "")
        lines.append("{%- " + ("elif" if i else "if") + f' message.role == "{role}" -%}}')
        merged = role == "user" and style.merge is not None
        if merged or role in content or role in turn:
            lines.append("{%- set content = " + own + " -%}")
        if merged and style.merge is not None:
            around = " + ".join(
                x for x in (text(style.merge[0]), "system", text(style.merge[1]), "content") if x != '""'
            )
            lines.append("{%- if system is not none and loop.index0 == into.turn -%}")
            lines.append("{%- set content = " + around + " -%}{%- endif -%}")
        elif role not in content and role not in turn:
            content = {**content, role: f"({own})" if "|" in own else own}
        lines.append(turn.get(role) or say(before, content.get(role, "content"), after.get(role, behind)))
    lines += ["{%- else -%}", refuse(f"roles are {', '.join(roles)}"), "{%- endif -%}", "{%- endfor -%}"]
    opening = style.markers["assistant"][0] if style.opening is None else style.opening
    if style.closing:
        lines += ["{%- if add_generation_prompt -%}", say(text(opening)), "{%- else -%}", say(text(style.closing))]
        lines.append("{%- endif -%}")
    elif opening:
        lines += ["{%- if add_generation_prompt -%}", say(text(opening)), "{%- endif -%}"]
    return "\n".join(line for line in lines if line)
