"""Jinja chat templates: running them, and those of prompt styles, so that other tools prompt a model as it was trained;
and a style's end tokens.

A style's `jinja` writes the template: `marker_template` for tables of markers, other styles their own.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension

    from litlm.prompts.base import PromptStyle
    from litlm.prompts.turns import MarkerStyle
    from litlm.tokenizer import Tokenizer

# splits an answer into `reasoning` (from `reasoning_content`, else what precedes `</think>`) and `content`
REASONING = r"""{%- set content = message.content -%}
{%- set reasoning = message.reasoning_content or "" -%}
{%- if message.reasoning_content is not defined and "</think>" in content -%}
{%- set reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n") -%}
{%- set content = content.split("</think>")[-1].lstrip("\n") -%}
{%- endif -%}"""

# the index of a message in `messages`, in a loop over `rest`, which is `messages` without a first system message
INDEX_OF_REST = "loop.index0 + (messages | length) - (rest | length)"

# sets last.user to the index of the last user message
LAST_USER = """{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}"""


def chat_template(style: PromptStyle, tokenizer: Tokenizer) -> str | None:
    """The style as a chat template for this tokenizer; None if it has none: if its last word is a `render` in Python.

    Other tools add no BOS to what a template writes, so styles that leave it to the tokenizer have it in the template.
    """
    last_word = next(vars(c) for c in type(style).__mro__ if {"jinja", "render"} & vars(c).keys())
    template = style.jinja() if "jinja" in last_word else None
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


# --- running templates --------------------------------------------------------------------------------------------
def render(template: str, name: str, day: date | None, variables: Mapping[str, Any]) -> str:
    """The text that a template writes. day: what `strftime_now` gives; None: the actual date.

    Raises ValueError that begins with `name` for what the template raises or fails on.
    """
    try:
        return compiled(template).render({"strftime_now": functools.partial(today, day=day), **variables})
    except Exception as error:  # the template is a program: it raises anything
        raise ValueError(f"{name}: {error}") from None


def today(format: str, day: date | None = None) -> str:
    """A date (None: today's) in strftime's format. A date has no time: hours and minutes are 0."""
    return (day or datetime.now()).strftime(format)


@functools.lru_cache
def compiled(template: str) -> jinja2.Template:
    """Raises jinja2.TemplateError for what is not valid Jinja."""
    return environment().from_string(template)


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja as chat templates expect it (transformers utils/chat_template_utils.py)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> str:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _generation_tag() -> type[Extension]:
    """`{% generation %}` marks the assistant's text for transformers; here it only writes its content."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # a scope of its own, as in transformers, where the block is a call
            return nodes.Scope(body, lineno=line)

    return Generation


# --- parts of templates -------------------------------------------------------------------------------------------
def literal(text: str) -> str:
    """A text as a Jinja expression."""
    return json.dumps(text, ensure_ascii=False)


def emit(*expressions: str) -> str:
    """A statement that writes the concatenated expressions; "" if they are all empty."""
    parts = [part for part in expressions if part != '""']
    return "{{- " + " + ".join(parts) + " -}}" if parts else ""


def refuse(reason: str, message: str = "") -> str:
    """A statement that raises an error. message: the expression of a message's index, which precedes the reason."""
    text = f'"message " ~ ({message}) ~ {literal(" " + reason)}' if message else literal(reason)
    return "{{- raise_exception(" + text + ") -}}"


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
        lines.append('{%- if message.role != ("user" if loop.index0 % 2 == 0 else "assistant") -%}')
        optional = ", after an optional first system message" if "system" in style.roles else ""
        lines += [refuse(f"is out of turn: user and assistant take turns{optional}", INDEX_OF_REST), "{%- endif -%}"]
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
