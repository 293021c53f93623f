"""Prompt styles of models that reason: they write, ask for or remove thoughts before an answer. Qwen's: `chatml.py`."""

from __future__ import annotations

from litlm.prompts import jinja
from litlm.prompts.base import PromptStyle
from litlm.prompts.turns import MarkerStyle, role_markers, shared_markers

_SYSTEMS = r"""{%- set systems = messages | selectattr("role", "equalto", "system") -%}
{%- set systems = systems | map(attribute="content") | join("\n\n") -%}"""


class DeepSeekV2(MarkerStyle):
    """DeepSeek-V2-Chat and -Lite, DeepSeek LLM and MoE chat. Verified against DeepSeek-V2's template."""

    name = "deepseek-v2"
    stop = ("<｜end▁of▁sentence｜>",)
    prefix = "<｜begin▁of▁sentence｜>"
    markers = role_markers(("", "\n\n"), ("User: ", "\n\n"), ("Assistant: ", "<｜end▁of▁sentence｜>"))
    generation_prompt = "Assistant:"


class DeepSeekV25(DeepSeekV2):
    """DeepSeek-V2.5. Verified against Axolotl's template."""

    name = "deepseek-v2.5"
    markers = role_markers(("", "\n\n"), ("<｜User｜>", ""), ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"))
    generation_prompt = None


class DeepSeekV3(DeepSeekV2):
    """DeepSeek-V3 and V3-0324; system texts come first, answers lose their reasoning. Verified against its template."""

    name = "deepseek-v3"
    markers = role_markers(("", ""), ("<｜User｜>", ""), ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"))
    generation_prompt = None
    jinja_parts = {
        "setup": _SYSTEMS,
        "default_system": "systems",
        "given_system": "systems",
        "condition": 'message.role != "system"',
        "content": {"assistant": 'content.split("</think>")[-1]'},
    }


class DeepSeekV31(DeepSeekV3):
    """DeepSeek-V3.1: marks before each answer whether the model thinks.

    Unverified: llama.cpp's copy of the template writes `<think></think>` where the model card has `</think>`; the rest
    is compared with it.
    """

    name = "deepseek-v3.1"
    unverified = True

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking

    def jinja(self) -> str | None:
        """With or without an opened thought in the prompt."""
        opening = jinja.literal("<｜Assistant｜>" + ("<think>" if self.thinking else "</think>"))
        template = r"""
$systems
{%- set asked = namespace(yes=false) -%}
{{- $begin + systems -}}
{%- for message in messages if message.role != "system" -%}
{%- if message.role == "user" -%}{{- "<｜User｜>" + message.content -}}
{%- elif message.role == "assistant" -%}
{{- ("<｜Assistant｜></think>" if asked.yes else "") + message.content.split("</think>", 1)[-1] -}}
{{- "<｜end▁of▁sentence｜>" -}}
{%- else -%}$refuse
{%- endif -%}
{%- set asked.yes = message.role == "user" -%}
{%- endfor -%}
{%- if add_generation_prompt and asked.yes -%}{{- $opening -}}{%- endif -%}"""
        return jinja.fill(template, systems=_SYSTEMS, begin=jinja.literal(self.prefix), opening=opening)


class DeepSeekR1(DeepSeekV3):
    """DeepSeek-R1 and its distillations: asked to think. Verified against R1's and R1-Distill's templates."""

    name = "deepseek-r1"
    generation_prompt = "<｜Assistant｜><think>\n"


class Exaone4(MarkerStyle):
    """EXAONE 4.0, not thinking: an empty think block stands before each answer. Verified against Axolotl's template."""

    name = "exaone4"
    stop = ("[|endofturn|]",)
    markers = shared_markers("[|{role}|]\n", "[|endofturn|]\n")
    generation_prompt = "[|assistant|]\n<think>\n\n</think>\n\n"
    jinja_parts = {
        "content": {
            "assistant": r'("<think>\n\n</think>\n\n" + '
            '(content.split("</think>")[-1] | trim if "</think>" in content else content) if content else "")'
        }
    }


class Gemma4(MarkerStyle):
    """Gemma 4: contents are stripped, answers lose their thoughts; a second answer continues the first's turn.

    Verified against Gemma 4's template. thinking: ask for thoughts; without it the prompt ends with an empty
    thought, so no answer continues it, and `encode_with_mask` refuses.
    """

    name = "gemma4"
    stop = ("<turn|>",)

    def __init__(self, *, thinking: bool = False) -> None:
        self.thinking = thinking

    def jinja(self) -> str | None:
        """With or without thinking."""
        start, think = "", ""
        if self.thinking:
            own = jinja.literal("<|turn>system\n<|think|>\n<turn|>\n")
            start = '{%- if not (messages and messages[0].role == "system") -%}{{- ' + own + " -}}{%- endif -%}"
            think = r'{%- if loop.first and message.role == "system" -%}{{- "<|think|>\n" -}}{%- endif -%}'
        opening = jinja.literal("<|turn>model\n" + ("" if self.thinking else "<|channel>thought\n<channel|>"))
        template = r"""
{{- "<bos>" -}}$start
{%- set before = namespace(role="") -%}
{%- for message in messages -%}
{%- if message.role not in ("system", "user", "assistant") -%}$refuse{%- endif -%}
{%- if not (message.role == "assistant" and before.role == "assistant") -%}
{{- "<|turn>" + ("model" if message.role == "assistant" else message.role) + "\n" -}}
{%- endif -%}$think
{%- set said = namespace(text=message.content) -%}
{%- if message.role == "assistant" -%}
{%- set said.text = "" -%}
{%- for part in message.content.split("<channel|>") -%}
{%- set said.text = said.text + part.split("<|channel>")[0] -%}
{%- endfor -%}
{%- endif -%}
{{- said.text.strip() + "<turn|>\n" -}}
{%- set before.role = message.role -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- $opening -}}{%- endif -%}"""
        return jinja.fill(template, start=start, think=think, opening=opening)


class GptOss(PromptStyle):
    """gpt-oss (Harmony): a system message becomes the developer's instructions. Verified against its template.

    date: today's, as "2025-08-05"; None: today. effort: "low", "medium" or "high". A last answer's `thinking` is
    written before it; earlier answers lose theirs.
    """

    name = "gpt-oss"
    message_keys = ("thinking",)
    stop = ("<|return|>", "<|call|>")

    def __init__(self, *, date: str | None = None, effort: str = "medium") -> None:
        self.date, self.effort = date, effort

    def jinja(self) -> str | None:
        date = jinja.literal(self.date) if self.date else 'strftime_now("%Y-%m-%d")'
        template = r"""
{{- "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: " -}}
{{- "2024-06\nCurrent date: " + $date + "\n\nReasoning: $effort\n\n# Valid channels: analysis, commentary, " -}}
{{- "final. Channel must be included for every message.<|end|>" -}}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{%- if loop.first and message.content -%}
{{- "<|start|>developer<|message|># Instructions\n\n" + message.content + "\n\n<|end|>" -}}
{%- endif -%}
{%- elif message.role == "user" -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" -}}
{%- elif message.role == "assistant" -%}
{%- set i = loop.index0 -%}
{%- for text in (message.content, message.thinking or "") -%}
{%- if "<|channel|>analysis<|message|>" in text or "<|channel|>final<|message|>" in text -%}
$refuse_channels
{%- endif -%}
{%- endfor -%}
{%- set finished = loop.last and not add_generation_prompt -%}
{%- if finished and message.thinking is defined and message.thinking is not none -%}
{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" -}}
{%- endif -%}
{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + ("<|return|>" if finished else "<|end|>") -}}
{%- else -%}$refuse
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start|>assistant" -}}{%- endif -%}"""
        reason = "holds channel tokens; pass the final text as 'content' and the analysis as 'thinking'"
        effort = jinja.literal(self.effort)[1:-1]
        return jinja.fill(template, date=date, effort=effort, refuse_channels=jinja.refuse(reason, "i"))


class Glm45(PromptStyle):
    """GLM-4.5 and GLM-4.6: answers are stripped and preceded by their reasoning, earlier ones by an empty think block.

    Verified against their templates. thinking: ask for reasoning.
    """

    name = "glm-4.5"
    message_keys = ("reasoning_content",)
    stop = ("<|user|>", "<|observation|>", "<|endoftext|>")

    def __init__(self, *, thinking: bool = True) -> None:
        self.thinking = thinking

    def jinja(self) -> str | None:
        quiet = "" if self.thinking else r' + ("" if message.content.endswith("/nothink") else "/nothink")'
        opening = jinja.literal("<|assistant|>" + ("" if self.thinking else "\n<think></think>"))
        template = r"""
{{- "[gMASK]<sop>" -}}
$last_user
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
$reasoning
{%- set reasoning = reasoning.strip() if loop.index0 > last.user else "" -%}
{{- "<|assistant|>\n<think>" + reasoning + "</think>" + ("\n" + content.strip() if content.strip() else "") -}}
{%- elif message.role == "user" -%}{{- "<|user|>\n" + message.content$quiet -}}
{%- elif message.role == "system" -%}{{- "<|system|>\n" + message.content -}}
{%- else -%}$refuse
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- $opening -}}{%- endif -%}"""
        return jinja.fill(template, last_user=jinja.LAST_USER, reasoning=jinja.REASONING, quiet=quiet, opening=opening)


class Apertus(PromptStyle):
    """Apertus-Instruct: an answer's end token is written when the user speaks again. Verified against its template.

    date: today's in its own system text, as "2025-09-02"; None: today. thinking: allow deliberation.
    """

    name = "apertus"
    stop = ("<|assistant_end|>",)

    def __init__(self, *, date: str | None = None, thinking: bool = False) -> None:
        self.date, self.thinking = date, thinking

    def jinja(self) -> str | None:
        date = jinja.literal(self.date) if self.date else 'strftime_now("%Y-%m-%d")'
        enabled = "enabled" if self.thinking else "disabled"
        template = r"""
{%- set system = "You are Apertus, a helpful assistant created by the SwissAI initiative.\n" -%}
{%- set system = system + "Knowledge cutoff: 2024-04\nCurrent date: " + $date -%}
{%- set rest = messages -%}
{%- if messages and messages[0].role == "system" -%}
{%- set system = messages[0].content -%}
{%- set rest = messages[1:] -%}
{%- endif -%}
{{- "<s><|system_start|>" + system + "<|system_end|><|developer_start|>Deliberation: $enabled\n" -}}
{{- "Tool Capabilities: disabled<|developer_end|>" -}}
{%- set answering = namespace(yes=false) -%}
{%- for message in rest -%}
{%- if message.role == "user" -%}
{{- ("<|assistant_end|>" if answering.yes else "") + "<|user_start|>" + message.content + "<|user_end|>" -}}
{%- elif message.role == "assistant" -%}
{{- ("" if answering.yes else "<|assistant_start|>") + message.content -}}
{%- else -%}$refuse_roles
{%- endif -%}
{%- set answering.yes = message.role == "assistant" -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant_start|>" -}}{%- endif -%}"""
        reason = "is out of turn: roles are user and assistant, after an optional first system message"
        refuse = jinja.refuse(reason, jinja.INDEX_OF_REST)
        return jinja.fill(template, date=date, enabled=enabled, refuse_roles=refuse)


class MiniMaxM2(PromptStyle):
    """MiniMax-M2: asked to think; answers to earlier questions lose their reasoning. Verified against its template."""

    name = "minimax-m2"
    message_keys = ("reasoning_content",)
    stop = ("[e~[",)

    def jinja(self) -> str | None:
        template = r"""
{%- set system = "You are a helpful assistant." -%}
{%- set rest = messages -%}
{%- if messages and messages[0].role == "system" -%}
{%- set system = messages[0].content or system -%}
{%- set rest = messages[1:] -%}
{%- endif -%}
$last_user
{{- "]~!b[]~b]system\n" + system + "[e~[\n" -}}
{%- for message in rest -%}
{%- if message.role == "user" -%}{{- "]~b]user\n" + message.content + "[e~[\n" -}}
{%- elif message.role == "assistant" -%}
$reasoning
{%- if message.reasoning_content is not defined and "</think>" in message.content -%}
{%- set reasoning = reasoning.strip("\n") -%}{%- set content = content.strip("\n") -%}
{%- endif -%}
{{- "]~b]ai\n" -}}
{%- if reasoning and loop.index0 > last.user -%}{{- "<think>\n" + reasoning + "\n</think>\n\n" -}}{%- endif -%}
{{- content + "[e~[\n" -}}
{%- elif message.role != "system" -%}$refuse
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "]~b]ai\n<think>\n" -}}{%- endif -%}"""
        last_user = jinja.LAST_USER.replace("in messages", "in rest")
        return jinja.fill(template, last_user=last_user, reasoning=jinja.REASONING)
