"""A checkpoint's Jinja chat template, run as transformers does, and the choice between it and a named style."""

from __future__ import annotations

import copy
import functools
import os.path
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from litlm.prompts import jinja
from litlm.prompts.base import Message, PromptStyle, RenderedConversation, get_style
from litlm.prompts.messages import PLACEHOLDER, REASONING_KEYS

if TYPE_CHECKING:
    from litlm.tokenizer import Tokenizer

TOOL_USE = "tool_use"  # the template that transformers takes for conversations with tools, where there is one


def style_for(tokenizer: Tokenizer, style_name: str | None = None, saved_style: str | None = None) -> PromptStyle:
    """The style to prompt a checkpoint with: its own chat template, else the named style, else `plain`.

    saved_style: the style that litlm saved with the checkpoint, by name and as its template. If the checkpoint has
    another template by now, that is used. Raises ValueError for unknown names.
    """
    named = get_style(style_name or "plain")
    tool_use = tokenizer.chat_templates.get(TOOL_USE)
    try:
        template = tokenizer.chat_template
    except ValueError as error:  # several templates and no default: an error only for those who need one
        return TemplateStyle(jinja.refuse(str(error)), tool_use_template=tool_use, **tokenizer.special_tokens)
    if saved_style is not None:
        try:
            style = get_style(saved_style)
        except ValueError:
            if template is None:
                raise ValueError(
                    f"the model was trained in prompt style {saved_style!r}, which is not defined: import the code "
                    "that does, or use another style"
                ) from None
        else:
            if template in (None, jinja.chat_template(style, tokenizer)):
                return style
    if template is None:
        return named
    return TemplateStyle(template, tool_use_template=tool_use, **tokenizer.special_tokens)


class TemplateStyle(PromptStyle):
    """A checkpoint's Jinja template, rendered as transformers' `apply_chat_template` does. Verified against it.

    tool_use_template: used in its place for conversations with tools. variables: what the templates may refer to beside
    `messages`, `tools`, `documents` and `add_generation_prompt`: `bos_token`, `eos_token`, switches such as
    `enable_thinking`. Templates are untrusted: they run in Jinja's sandbox. Raises ValueError for a template that is
    not valid Jinja; so do its methods for what the template raises or fails on.
    """

    roles = ("system", "developer", "user", "assistant", "tool")

    def __init__(self, template: str, *, tool_use_template: str | None = None, **variables: Any) -> None:
        import jinja2

        self.name = "template"  # of objects alone: the class needs a template, so `get_style` can't make one
        self.source, self.tool_use_template, self.variables = template, tool_use_template, variables
        try:
            jinja.compiled(template)
            words = [value for _, token, value in jinja.environment().lex(template) if token in ("name", "string")]
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line})" if line else ""
            raise ValueError(f"the chat template is not valid Jinja: {error}{where}") from None
        self._words = {word.strip("\"'") for word in words}  # variables, attributes and keys, among others
        self._removed_suffix = ""
        self._unconditional_prompt, self._prompt_is_unclear = self._find_unconditional_prompt()
        self.suffix = self._find_suffix()

    @functools.cached_property
    def tool_use_style(self) -> TemplateStyle | None:
        """The style of `tool_use_template`, if there is one."""
        return None if self.tool_use_template is None else TemplateStyle(self.tool_use_template, **self.variables)

    def bind(
        self, tools: Sequence[Mapping[str, Any]] | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> TemplateStyle:
        """With these tools and variables. Raises ValueError for variables that the template does not use."""
        kwargs = {key: value for key, value in (template_kwargs or {}).items() if value is not None}
        if tools and not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError("tools must be a list of JSON schemas, each a dict")
        if own := sorted({"messages", "tools", "add_generation_prompt"} & kwargs.keys()):
            raise ValueError(f"template_kwargs can't hold {', '.join(own)}: it is passed on its own")
        style = (self.tool_use_style if tools else None) or self
        known = style._words | {"documents"}  # `normalize` checks whether they are written
        if unknown := sorted(key for key, value in kwargs.items() if _is_set(value) and key not in known):
            raise ValueError(f"the chat template does not use {', '.join(unknown)}; leave it out of template_kwargs")
        if not tools and not kwargs:
            return self
        bound = copy.copy(style)
        bound.current_date = self.current_date
        bound.variables = self.variables | kwargs | ({"tools": list(tools)} if tools else {})
        return bound

    def normalize(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Raises ValueError for what the template would silently drop: tools, their results, documents. Developer
        messages become system messages if the template has no developer role, as in llama.cpp.
        """
        normalized = super().normalize(messages)
        if not self._renders_role("developer", normalized):
            normalized = [m | {"role": "system"} if m["role"] == "developer" else m for m in normalized]
        if not self._renders_role("tool", normalized):
            self.render(normalized, False)  # it may raise an error of its own
            raise ValueError("the chat template does not write messages of role 'tool'; leave them out")
        for key in ("tools", "documents"):
            without = copy.copy(self)
            without.variables = self.variables | {key: None}
            if self.variables.get(key) and self._renders_same(normalized, without, normalized):
                raise ValueError(f"the chat template does not write {key}; leave them out, or use another checkpoint")
        return normalized

    def _renders_role(self, role: str, messages: list[dict[str, Any]]) -> bool:
        """Whether the text depends on the contents of that role."""
        changed = [
            m | {"content": f"{m.get('content', '')}{PLACEHOLDER}"} if m["role"] == role else m for m in messages
        ]
        try:
            return changed == messages or self.render(messages, False) != self.render(changed, False)
        except ValueError:
            return False

    def renders_key(self, key: str, messages: Sequence[Message]) -> bool:
        without = [{k: v for k, v in message.items() if k != key} for message in messages]
        # templates leave the reasoning of earlier answers out on purpose
        return (key in REASONING_KEYS and key in self._words) or not self._renders_same(messages, self, without)

    def jinja(self) -> str:
        return self.source

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        own = dict(messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt)
        refusal = "the chat template rejects this conversation"
        text = jinja.render(self.source, refusal, self.current_date, own | self.variables)
        return text if add_generation_prompt else text.removesuffix(self._removed_suffix)

    def render_with_spans(self, *args: Any, **options: Any) -> RenderedConversation:
        """As `PromptStyle` does, without the generation prompt that some templates write in any case. Raises ValueError
        if that can't be told from the text before it.
        """
        style = copy.copy(self)
        style._removed_suffix = self._unconditional_prompt
        if self._prompt_is_unclear:
            raise ValueError(
                "the chat template asks for another answer after the last one, whatever add_generation_prompt says, so "
                "its answers can't be distinguished from what follows them; put that part of the template into "
                "{% if add_generation_prompt %}, or name a prompt style"
            )
        return super(TemplateStyle, style).render_with_spans(*args, **options)

    def _find_unconditional_prompt(self) -> tuple[str, bool]:
        """The generation prompt of templates that write it after every conversation, and whether there is one that
        can't be told from the text before it.
        """
        user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": PLACEHOLDER}
        try:
            asked, answered, followed = (
                self.render(turns, False) for turns in ([user], [user, answer], [user, answer, user])
            )
            if asked != self.render([user], True):
                return "", False
        except ValueError:
            return "", False
        ending = os.path.commonprefix([asked[::-1], answered[::-1]])[::-1]
        if not ending.strip() or not answered.startswith(asked) or followed.startswith(answered):
            return "", False
        try:
            empty = self.render([], False)
        except ValueError:
            empty = ""
        # what an empty conversation ends with; a default system text before it would hide where it begins
        prompt = empty.removeprefix(str(self.variables.get("bos_token") or ""))
        clear = bool(prompt.strip()) and ending.endswith(prompt) and followed.startswith(answered.removesuffix(prompt))
        return (prompt, False) if clear else ("", True)

    def _find_suffix(self) -> str:
        """The end of text that Phi-3's template writes after every conversation, after the end of the turn."""
        eos, turns = str(self.variables.get("eos_token") or ""), [{"role": "user", "content": "x"}]
        try:
            asked = self.render(turns, False)
            answered = self.render([*turns, {"role": "assistant", "content": PLACEHOLDER}], False)
        except ValueError:
            return ""
        end_of_turn = answered.rpartition(PLACEHOLDER)[2].removesuffix(eos).strip()
        return eos if end_of_turn and asked.endswith(eos) and not answered.startswith(asked) else ""

    def _renders_same(self, messages: Sequence[Message], other: TemplateStyle, others: Sequence[Message]) -> bool:
        """Whether `other` renders `others` as this style renders `messages`."""
        try:
            return self.render(messages, False) == other.render(others, False)
        except ValueError:  # one of them is refused
            return False


def _is_set(value: Any) -> bool:
    """Whether a variable's value tells a template anything; table columns are filled up with empty ones."""
    return isinstance(value, (bool, int, float)) or bool(value)
