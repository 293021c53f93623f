"""The Jinja template a checkpoint brings, run as transformers does, and the choice between it and a named style."""

from __future__ import annotations

import copy
import json
import os.path
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

from litlm.prompts.base import Marked, Message, PromptStyle, get_style
from litlm.prompts.messages import PROBE, REASONING
from litlm.prompts.turns import today

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension

    from litlm.tokenizer import Tokenizer


def style_for(tokenizer: Tokenizer, style_name: str | None = None, noted: str | None = None) -> PromptStyle:
    """How to talk to this checkpoint: its own template, else the named style, else `plain`.

    noted: the style whose name litlm saved with the checkpoint, beside the template that it made of it. If that
    template is another's by now, it is the one to follow.
    """
    named = get_style(style_name or "plain")
    try:
        template = tokenizer.chat_template
    except ValueError as error:
        return _Undecided(str(error))
    if noted is not None:
        from litlm.prompts.jinja import chat_template

        try:
            style = get_style(noted)
        except ValueError:
            if template is None:
                raise ValueError(
                    f"the model was trained in prompt style {noted!r}, which nothing here defines: import the code "
                    "that does (with register_style), or ask in another style"
                ) from None
        else:
            if template in (None, chat_template(style, tokenizer)):
                return style
    return named if template is None else TemplateStyle(template, **tokenizer.special_tokens)


class _Undecided(PromptStyle):
    """Of a checkpoint with several templates and no default: an error for who needs it, not for who brings another."""

    name = "undecided"
    roles = ("system", "user", "assistant", "tool")

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        raise ValueError(self.reason)


class TemplateStyle(PromptStyle):
    """A checkpoint's Jinja template, rendered as transformers' `apply_chat_template` does. Verified against it.

    variables: what the template may refer to beside `messages`, `tools`, `documents` and `add_generation_prompt`:
    `bos_token`, `eos_token`, switches such as `enable_thinking`. Templates come from strangers: they run in Jinja's
    sandbox. What a template raises or trips over is a ValueError.
    """

    name = "template"
    roles = ("system", "developer", "user", "assistant", "tool")
    verified = True

    def __init__(self, template: str, **variables: Any) -> None:
        import jinja2

        self.source, self.variables = template, variables
        environment = _environment()
        try:
            self._template = environment.from_string(template)
            words = [value for _, kind, value in environment.lex(template) if kind in ("name", "string")]
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line})" if line else ""
            raise ValueError(f"the chat template is not valid Jinja: {error}{where}") from None
        self._names = {word.strip("\"'") for word in words}  # variables, attributes and keys, among others
        self._dropped = ""
        self._always, self._unclear = self._always_written()
        self.closing = self._closing()

    def bind(
        self, tools: Sequence[Mapping[str, Any]] | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> TemplateStyle:
        """With these tools and variables, too. ValueError for variables that the template never looks at."""
        given = {key: value for key, value in (template_kwargs or {}).items() if value is not None}
        if tools and not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError("tools must be a list of JSON schemas, each a dict")
        if own := sorted({"messages", "tools", "add_generation_prompt"} & given.keys()):
            raise ValueError(f"template_kwargs can't hold {', '.join(own)}: it is passed on its own")
        known = self._names | {"documents"}  # `accept` sees whether they are written
        if unknown := sorted(key for key, value in given.items() if _says(value) and key not in known):
            raise ValueError(f"the chat template does not use {', '.join(unknown)}; leave it out of template_kwargs")
        if not tools and not given:
            return self
        bound = copy.copy(self)
        bound.variables = self.variables | given | ({"tools": list(tools)} if tools else {})
        return bound

    def accept(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Refuses what the template leaves out without a word: tools and their results. Developers are the system for
        templates that know no other, as llama.cpp has it.
        """
        accepted = super().accept(messages)
        if not self._hears("developer", accepted):
            accepted = [m | {"role": "system"} if m["role"] == "developer" else m for m in accepted]
        if not self._hears("tool", accepted):
            self.render(accepted, False)  # what it says itself
            raise ValueError("the chat template does not write messages of role 'tool'; leave them out")
        for key in ("tools", "documents"):
            without = copy.copy(self)
            without.variables = self.variables | {key: None}
            if self.variables.get(key) and self._same(accepted, without, accepted):
                raise ValueError(f"the chat template does not write {key}; leave them out, or use another checkpoint")
        return accepted

    def _hears(self, role: str, messages: list[dict[str, Any]]) -> bool:
        """Whether what that role says changes the text."""
        other = [m | {"content": f"{m.get('content', '')}{PROBE}"} if m["role"] == role else m for m in messages]
        try:
            return other == messages or self.render(messages, False) != self.render(other, False)
        except ValueError:
            return False

    def writes(self, key: str, messages: Sequence[Message]) -> bool:
        without = [{k: v for k, v in message.items() if k != key} for message in messages]
        # templates take the reasoning out of earlier answers on purpose
        return (key in REASONING and key in self._names) or not self._same(messages, self, without)

    def on(self, day: str | date | None) -> TemplateStyle:
        style = super().on(day)
        style.variables = self.variables | {"strftime_now": partial(today, day=style.day)}
        return style

    def jinja(self) -> str:
        return self.source

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        own = dict(messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt)
        try:
            text = self._template.render(**(own | self.variables))
            return text if add_generation_prompt else text.removesuffix(self._dropped)
        except Exception as error:  # the template is a program: it raises what it likes
            raise ValueError(f"the chat template rejects this conversation: {error}") from None

    def mark(self, *args: Any, **given: Any) -> Marked:
        """The conversation ends with its last turn, also where the template asks for another answer behind it."""
        if self._unclear:
            raise ValueError(
                "the chat template asks for another answer behind the last one, whatever add_generation_prompt says, "
                "so its answers can't be told from what follows them; put that part of the template into "
                "{% if add_generation_prompt %}, or name a prompt style"
            )
        style = copy.copy(self)
        style._dropped = self._always
        return super(TemplateStyle, style).mark(*args, **given)

    def _always_written(self) -> tuple[str, bool]:
        """What asks for an answer, of templates that write it behind every conversation, wanted or not; and whether
        they do, but it is not clear what it is.
        """
        user, said = {"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}
        try:
            asked, answered, followed = (
                self.render(turns, False) for turns in ([user], [user, said], [user, said, user])
            )
            if asked != self.render([user], True):
                return "", False
        except ValueError:
            return "", False
        again = os.path.commonprefix([asked[::-1], answered[::-1]])[::-1]
        if not again.strip() or not answered.startswith(asked) or followed.startswith(answered):
            return "", False
        try:
            empty = self.render([], False)
        except ValueError:
            empty = ""
        # what asks where nobody has spoken; a default system text before it would hide where it begins
        header = empty.removeprefix(str(self.variables.get("bos_token") or ""))
        clear = bool(header.strip()) and again.endswith(header) and followed.startswith(answered.removesuffix(header))
        return (header, False) if clear else ("", True)

    def _closing(self) -> str:
        """Phi-3's template writes the end of text behind every conversation, after the end of the turn."""
        end, turns = str(self.variables.get("eos_token") or ""), [{"role": "user", "content": "x"}]
        try:
            asked = self.render(turns, False)
            answered = self.render([*turns, {"role": "assistant", "content": PROBE}], False)
        except ValueError:
            return ""
        own_end = answered.rpartition(PROBE)[2].removesuffix(end).strip()
        return end if own_end and asked.endswith(end) and not answered.startswith(asked) else ""

    def _same(self, messages: Sequence[Message], style: TemplateStyle, others: Sequence[Message]) -> bool:
        """Whether `style` writes others as this one writes messages."""
        try:
            return self.render(messages, False) == style.render(others, False)
        except ValueError:  # one of them is refused
            return False


def _says(value: Any) -> bool:
    """Whether a variable's value tells a template anything; columns of files fill up with empty ones."""
    return isinstance(value, (bool, int, float)) or bool(value)


def _environment() -> jinja2.Environment:
    """Jinja as chat templates expect it."""
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
    environment.globals["strftime_now"] = today
    return environment


def _generation_tag() -> type[Extension]:
    """`{% generation %}` marks the assistant's text for transformers; here its content is just written."""
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
