"""Prompt styles as Jinja chat templates, so that other tools prompt a model as it was trained; and its end tokens.

A style's `jinja` writes the template: `marker_template` for tables of markers, other styles their own beside `render`.
It is ignored in subclasses that override what it mirrors (`render`, `turns`) without overriding it too.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

from litlm.prompts.base import PromptStyle

if TYPE_CHECKING:
    from litlm.prompts.turns import MarkerStyle
    from litlm.tokenizer import Tokenizer

# splits an answer into `reasoning` and `content`, as `turns.split_reasoning` does
REASONING = r"""{%- set content = message.content -%}
{%- set reasoning = message.reasoning_content or "" -%}
{%- if message.reasoning_content is not defined and "</think>" in content -%}
{%- set reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") -%}
{%- set content = content.split("</think>")[-1].lstrip("\n") -%}
{%- endif -%}"""

# sets last.user to the index of the last user message
LAST_USER = """{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}"""


def chat_template(style: PromptStyle, tokenizer: Tokenizer) -> str | None:
    """The style as a chat template for this tokenizer; None if it has none.

    Other tools add no BOS to what a template writes, so styles that leave it to the tokenizer have it in the template.
    """
    classes = type(style).__mro__
    depth = lambda name: next((i for i, c in enumerate(classes) if name in vars(c)), len(classes))  # noqa: E731
    mirrors = min(depth("jinja"), depth("jinja_parts")) <= min(depth("render"), depth("turns"))
    template = style.jinja() if mirrors else None
    if template is None or not style.adds_bos:
        return template
    bos = "".join(tokenizer.id_to_token(token) or "" for token in tokenizer.prefix_ids)
    return emit(literal(bos)) + template


def end_of_turn_ids(style: PromptStyle, tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens that end an answer in this style: its stop tokens, and the last one of trained answers."""
    ends = {i for stop in style.stop if (i := tokenizer.token_to_id(stop)) in tokenizer.special_ids}
    if (tool_use := getattr(style, "tool_use_style", None)) is not None:
        ends |= end_of_turn_ids(tool_use, tokenizer)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        rendered = style.render_with_spans(messages, allow_missing_thinking=True)
        ids, mask = style.encode_rendered(rendered, tokenizer)
    except ValueError:  # a template that refuses it, or that writes answers differently from their prompts
        return frozenset(ends)
    last = max((k for k, trained in enumerate(mask) if trained), default=None)
    return frozenset(ends if last is None else ends | ({ids[last]} & tokenizer.special_ids))


# --- parts of templates -------------------------------------------------------------------------------------------
def literal(text: str) -> str:
    """A text as a Jinja expression."""
    return json.dumps(text, ensure_ascii=False)


def emit(*expressions: str) -> str:
    """A statement that writes the concatenated expressions; "" if they are all empty."""
    parts = [part for part in expressions if part != '""']
    return "{{- " + " + ".join(parts) + " -}}" if parts else ""


def refuse(reason: str) -> str:
    """A statement that raises an error."""
    return "{{- raise_exception(" + literal(reason) + ") -}}"


def fill(template: str, **values: str) -> str:
    """A template with Jinja code in place of each `$name`."""
    return string.Template(template.strip()).substitute(values, refuse=refuse("roles are system, user, assistant"))


def marker_template(
    style: MarkerStyle,
    *,
    setup: str = "",
    default_system: str = "",
    given_system: str = "messages[0].content",
    system_turn: str = "",
    condition: str = "",
    content: Mapping[str, str] | None = None,
    after: Mapping[str, str] | None = None,
    turn: Mapping[str, str] | None = None,
) -> str:
    """The template of a table of markers. The arguments are Jinja code, for styles that differ from the table.

    setup: statements at the beginning. default_system, given_system: expressions of the system text, if the
    conversation has none and if it has one. system_turn: statements that write the variable `system`. condition: which
    of the other messages are written. By role: content, the expression of its text (the table's is the variable
    `content`); after, of what follows it; turn, the statements of the whole turn.
    """
    default = default_system or ("none" if style.default_system is None else literal(style.default_system))
    # otherwise a system message is a turn like any other
    separate = style.merge_system is not None or style.alternating or default != "none" or bool(system_turn)
    lines = [setup]
    if separate:
        lines += ["{%- set system = " + default + " -%}", "{%- set rest = messages -%}"]
        if "system" in style.roles:
            given = f"({given_system}) | trim" if "system" in style.strip else given_system
            lines += [
                '{%- if messages and messages[0].role == "system" -%}',
                "{%- set system = " + given + " -%}",
                "{%- set rest = messages[1:] -%}",
                "{%- endif -%}",
            ]
    lines.append(emit(literal(style.prefix)))
    if style.merge_system is not None:
        is_first = "" if style.merge_into else " and into.turn < 0"
        lines += [
            "{%- set into = namespace(turn=-1) -%}",
            "{%- for message in rest -%}",
            '{%- if message.role == "user"' + is_first + " -%}{%- set into.turn = loop.index0 -%}{%- endif -%}",
            "{%- endfor -%}",
        ]
    elif separate and "system" in style.markers:
        before, end = map(literal, style.markers["system"])
        lines += ["{%- if system is not none -%}", system_turn or emit(before, "system", end), "{%- endif -%}"]
    where = f" if {condition}" if condition else ""
    lines.append("{%- for message in " + ("rest" if separate else "messages") + where + " -%}")
    if style.alternating:
        lines.append('{%- if (message.role == "user") != (loop.index0 % 2 == 0) -%}')
        lines += [refuse("user and assistant must take turns, after an optional system message"), "{%- endif -%}"]
    lines += [*_role_lines(style, content or {}, after or {}, turn or {}), "{%- endfor -%}", *_ending(style)]
    return "\n".join(line for line in lines if line)


def _role_lines(
    style: MarkerStyle, content: Mapping[str, str], after: Mapping[str, str], turn: Mapping[str, str]
) -> list[str]:
    """Statements that write one message, by its role."""
    roles = [role for role in style.markers if role in style.roles and not (role == "system" and style.alternating)]
    lines = []
    for i, role in enumerate(roles):
        before, end = map(literal, style.markers[role])
        text = "message.content" + (" | trim" if role in style.strip else "")
        lines.append("{%- " + ("elif" if i else "if") + f' message.role == "{role}" -%}}')
        merges = role == "user" and style.merge_system is not None
        if merges or role in content or role in turn:
            lines.append("{%- set content = " + text + " -%}")
            text = "content"
        if merges and style.merge_system is not None:
            merged = (literal(style.merge_system[0]), "system", literal(style.merge_system[1]), "content")
            lines.append("{%- if system is not none and loop.index0 == into.turn -%}")
            lines.append("{%- set content = " + " + ".join(x for x in merged if x != '""') + " -%}{%- endif -%}")
        expression = content.get(role, f"({text})" if "|" in text else text)
        lines.append(turn.get(role) or emit(before, expression, after.get(role, end)))
    return [*lines, "{%- else -%}", refuse(f"roles are {', '.join(roles)}"), "{%- endif -%}"]


def _ending(style: MarkerStyle) -> list[str]:
    """Statements that write the generation prompt or the suffix."""
    prompt = style.markers["assistant"][0] if style.generation_prompt is None else style.generation_prompt
    if not prompt and not style.suffix:
        return []
    suffix = ["{%- else -%}", emit(literal(style.suffix))] if style.suffix else []
    return ["{%- if add_generation_prompt -%}", emit(literal(prompt)), *suffix, "{%- endif -%}"]
