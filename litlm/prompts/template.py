"""The Jinja template a checkpoint brings, run as transformers does, and the choice between it and a named style."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from litlm.prompts.base import Message, PromptStyle, get_style

if TYPE_CHECKING:
    import jinja2
    from jinja2.ext import Extension

    from litlm.tokenizer import Tokenizer


def style_for(tokenizer: Tokenizer, style_name: str | None = None) -> PromptStyle:
    """How to talk to this checkpoint: its own template, else the named style, else `plain`."""
    named = get_style(style_name or "plain")
    if tokenizer.chat_template is None:
        return named
    return TemplateStyle(tokenizer.chat_template, **tokenizer.special_tokens)


class TemplateStyle(PromptStyle):
    """A checkpoint's Jinja template, rendered as transformers' `apply_chat_template` does. Verified against it.

    variables: what the template may refer to beside `messages`, `tools`, `documents` and `add_generation_prompt`:
    `bos_token`, `eos_token`, switches such as `enable_thinking`. Templates come from strangers: they run in Jinja's
    sandbox. What a template raises or trips over is a ValueError.
    """

    name = "template"
    roles = ("system", "user", "assistant", "tool")
    verified = True

    def __init__(self, template: str, **variables: Any) -> None:
        import jinja2

        self.variables = variables
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line})" if line else ""
            raise ValueError(f"the chat template is not valid Jinja: {error}{where}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        # as transformers: a key without a value is a key that is not there
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        own = dict(messages=plain, tools=None, documents=None, add_generation_prompt=add_generation_prompt)
        try:
            return self._template.render(**(own | self.variables))
        except Exception as error:  # the template is a program: it raises what it likes
            raise ValueError(f"the chat template rejects this conversation: {error}") from None


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
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
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
