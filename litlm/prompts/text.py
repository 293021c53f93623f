"""Prompt styles without special tokens for the roles."""

from __future__ import annotations

from litlm.prompts import jinja
from litlm.prompts.base import PromptStyle
from litlm.prompts.turns import MarkerStyle, role_markers


class Plain(PromptStyle):
    """Base models: the concatenated contents. Unverified: there is nothing to compare with."""

    name = "plain"
    unverified = True
    adds_bos = True

    def jinja(self) -> str | None:
        return "{%- for message in messages -%}{{- message.content -}}{%- endfor -%}"


class Alpaca(PromptStyle):
    """Stanford Alpaca's instruction text; a user message may carry its `input`. A system message replaces the opening.

    Verified against LitGPT for one turn; further turns repeat the sections.
    """

    name = "alpaca"
    adds_bos = True
    stop = ("### Instruction:",)

    def jinja(self) -> str | None:
        return jinja.fill(
            r"""
{%- set asked = messages | selectattr("role", "equalto", "user") | list -%}
{%- if not messages or messages[0].role != "system" -%}
{{- "Below is an instruction that describes a task" -}}
{%- if asked and asked[0].input -%}{{- ", paired with an input that provides further context" -}}{%- endif -%}
{{- ". Write a response that appropriately completes the request.\n\n" -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}
{{- "### Instruction:\n" + message.content -}}
{%- if message.input -%}{{- "\n\n### Input:\n" + message.input -}}{%- endif -%}
{%- elif message.role == "assistant" -%}
{{- "### Response:\n" + message.content -}}
{%- elif message.role == "system" -%}
{{- message.content -}}
{%- else -%}
$refuse
{%- endif -%}
{%- if not loop.last or add_generation_prompt -%}{{- "\n\n" -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "### Response:\n" -}}{%- endif -%}"""
        )


class Sections(MarkerStyle):
    """Plain text formats. Most are published for one turn only; further turns repeat it.

    The separator between turns is not written after a last answer, where the end token belongs.
    """

    adds_bos = True
    roles = ("user", "assistant")

    def jinja(self) -> str | None:
        """Without the separator after a last answer."""
        after = self.markers["assistant"][1]
        last = f'("" if loop.last and not add_generation_prompt else {jinja.literal(after)})'
        parts = {"after": {"assistant": last}} if after.isspace() else {}
        return jinja.marker_template(self, **parts, **self.jinja_parts)


class NousHermes(Sections):
    """Nous-Hermes (Llama 2): Alpaca's sections without its opening. Unverified: its model card shows one turn."""

    name = "nous-hermes"
    unverified = True
    stop = ("### Instruction:",)
    roles = PromptStyle.roles
    markers = role_markers(("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"))


class Platypus(Sections):
    """Platypus and Camel-Platypus. Verified against LitGPT for one turn."""

    name = "platypus"
    stop = ("### Instruction:",)
    markers = role_markers(None, ("### Instruction:\n\n", "\n\n"), ("### Response:\n", "\n\n"))


class FreeWilly2(Sections):
    """FreeWilly2 (Stable Beluga 2). Verified against LitGPT for one turn."""

    name = "freewilly2"
    stop = ("### User:",)
    roles = PromptStyle.roles
    default_system = "This is a system prompt, please behave and help the user."
    markers = role_markers(("### System:\n", "\n\n"), ("### User:\n", "\n\n"), ("### Assistant:\n", "\n\n"))


class StableCode(Sections):
    """StableCode-Instruct-Alpha. Verified against LitGPT for one turn."""

    name = "stablecode"
    stop = ("###Instruction",)
    markers = role_markers(None, ("###Instruction\n", ""), ("###Response\n", "\n"))


class Phi1(Sections):
    """phi-1 and phi-1.5, asked a question. Verified against LitGPT for one turn."""

    name = "phi-1"
    stop = ("\nAnswer:",)
    markers = role_markers(None, ("", "\n\n"), ("Answer:", "\n"))


class Phi2(Sections):
    """phi-2. Verified against LitGPT for one turn."""

    name = "phi-2"
    stop = ("\nInstruct:",)
    markers = role_markers(None, ("Instruct: ", "\n"), ("Output:", "\n"))


class Falcon(Sections):
    """Falcon base models asked a question, LitGPT's style for all of Falcon. Verified against it for one turn."""

    name = "falcon"
    stop = ("\nUser", "User:")
    markers = role_markers(None, ("", "\n"), ("Answer:", "\n"))


class FalconInstruct(Sections):
    """falcon-7b-instruct, falcon-40b-instruct; empty lines in contents become line ends. Verified against FastChat."""

    name = "falcon-instruct"
    stop = ("\nUser:",)
    markers = role_markers(None, ("User: ", "\n\n"), ("Assistant: ", "\n\n"))
    generation_prompt = "Assistant:"
    jinja_parts = {"content": dict.fromkeys(markers, r'(content | replace("\r\n", "\n") | replace("\n\n", "\n"))')}


class RedPajamaChat(Sections):
    """RedPajama-INCITE-Chat. Verified against FastChat, less the line end it starts with."""

    name = "redpajama-chat"
    stop = ("<human>:",)
    markers = role_markers(None, ("<human>: ", "\n"), ("<bot>: ", "\n"))
    generation_prompt = "<bot>:"


class RedPajamaInstruct(Sections):
    """RedPajama-INCITE-Instruct, asked a question. Unverified: the models were made for few-shot prompts."""

    name = "redpajama-instruct"
    unverified = True
    stop = ("\nQ:",)
    markers = role_markers(None, ("Q: ", "\n"), ("A: ", "\n"))
    generation_prompt = "A:"


class Vicuna(Sections):
    """Vicuna 1.1 to 1.5, LongChat. Verified against FastChat."""

    name = "vicuna"
    stop = ("</s>", "USER:")
    roles = PromptStyle.roles
    default_system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    markers = role_markers(("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>"))
    generation_prompt = "ASSISTANT:"


class StarCoder2(Sections):
    """starcoder2-15b-instruct. Unverified: no template to compare with."""

    name = "starcoder2"
    unverified = True
    stop = ("<|endoftext|>", "### Instruction")
    adds_bos = False
    prefix = (
        "<|endoftext|>You are an exceptionally intelligent coding assistant that consistently delivers accurate and "
        "reliable responses to user instructions.\n\n"
    )
    markers = role_markers(None, ("### Instruction\n", "\n\n"), ("### Response\n", "<|endoftext|>\n\n"))


class Nemotron(Sections):
    """Nemotron-4, Minitron and Nemotron-Mini instruct. Unverified: no template to compare with."""

    name = "nemotron"
    unverified = True
    stop = ("<extra_id_1>",)
    roles = PromptStyle.roles
    adds_bos = False
    default_system = ""
    markers = role_markers(
        ("<extra_id_0>System\n", "\n\n"), ("<extra_id_1>User\n", "\n"), ("<extra_id_1>Assistant\n", "\n")
    )  # fmt: skip
