"""Prompt styles of the ChatML form: `<|im_start|>role`, content, `<|im_end|>`."""

from __future__ import annotations

from litlm.prompts import jinja
from litlm.prompts.turns import MarkerStyle, shared_markers

_SYSTEM_TURN = r'{{- "<|im_start|>system\n" + system + "<|im_end|>\n" -}}'


class ChatML(MarkerStyle):
    """Plain ChatML: Yi, OpenHermes, Hermes 2 and 3, Qwen3-Instruct-2507, Qwen3-Coder. Verified against Axolotl's
    template and Qwen's.
    """

    name = "chatml"
    stop = ("<|im_end|>",)
    markers = shared_markers("<|im_start|>{role}\n", "<|im_end|>\n")


class SmolLM2(ChatML):
    """SmolLM2-Instruct. Verified against the template in SmolLM2's GGUF file."""

    name = "smollm2"
    default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class SmolLM3(ChatML):
    """SmolLM3: a system turn that says whether to reason; `/think` and `/no_think` in a system message switch it.

    date: "Today Date" in the system turn, such as "08 July 2025"; left out if None. Verified, without a date, against
    llama.cpp's copy of the template.
    """

    name = "smollm3"
    _reason = (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face. Your role as an assistant involves "
        "thoroughly exploring questions through a systematic thinking process before providing the final precise and "
        "accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, "
        "reassessment, reflection, backtracking, and iteration to develop well-considered thinking process. Please "
        "structure your response into two main sections: Thought and Solution using the specified format: <think> "
        "Thought section </think> Solution section. In the Thought section, detail your reasoning process in steps. "
        "Each step should include detailed considerations such as analysing questions, summarizing relevant findings, "
        "brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and revisiting "
        "previous steps. In the Solution section, based on various attempts, explorations, and reflections from the "
        "Thought section, systematically present the final solution that you deem correct. The Solution section "
        "should be logical, accurate, and concise and detail necessary steps needed to reach the conclusion."
    )

    _brief = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."

    def __init__(self, *, thinking: bool = True, date: str | None = None) -> None:
        self.thinking, self.date = thinking, date

    def jinja(self) -> str | None:
        """With this style's reasoning mode and date."""
        own, brief = map(jinja.literal, (self._reason, self._brief))
        thinking = "true" if self.thinking else '"/think" in given'
        dated = "" if self.date is None else f"Today Date: {self.date}\n"
        about = jinja.literal(
            f"<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n{dated}Reasoning Mode: "
        )
        template = r"""
{%- set given = messages[0].content if messages and messages[0].role == "system" else "" -%}
{%- set thinking = "/no_think" not in given and ($thinking) -%}
{%- set system = given.replace("/no_think", "").replace("/think", "").rstrip() or ($own if thinking else $brief) -%}
{%- set header = "<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n") -%}
{{- $about + ("/think" if thinking else "/no_think") + "\n\n## Custom Instructions\n\n" -}}
{{- system + "\n\n<|im_end|>\n" -}}
{%- for message in messages -%}
{%- if message.role == "user" -%}{{- "<|im_start|>user\n" + message.content + "<|im_end|>\n" -}}
{%- elif message.role == "assistant" -%}{{- header + message.content.lstrip("\n") + "<|im_end|>\n" -}}
{%- elif message.role != "system" -%}$refuse
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- header -}}{%- endif -%}"""
        return jinja.fill(template, thinking=thinking, own=own, brief=brief, about=about)


class Qwen2(ChatML):
    """Qwen1.5 and Qwen2. Verified against Axolotl's Qwen2-VL template, the same for text."""

    name = "qwen2"
    default_system = "You are a helpful assistant."


class Qwen25(ChatML):
    """Qwen2.5 and Qwen2.5-Coder. Verified against Qwen2.5's template."""

    name = "qwen2.5"
    default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


class Qwen25Math(ChatML):
    """Qwen2.5-Math. Verified against LitGPT for one turn."""

    name = "qwen2.5-math"
    default_system = "Please reason step by step, and put your final answer within \\boxed{}."


class QwQPreview(ChatML):
    """QwQ-32B-Preview. Verified against LitGPT for one turn."""

    name = "qwq-preview"
    default_system = (
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
    )


class QwQ(ChatML):
    """QwQ-32B: asked to think; earlier answers lose their reasoning. Verified against its template."""

    name = "qwq"
    generation_prompt = "<|im_start|>assistant\n<think>\n"
    jinja_parts = {"content": {"assistant": r'(content if loop.last else content.split("</think>")[-1].lstrip("\n"))'}}


class Qwen3(ChatML):
    """Qwen3, thinking: the last answer is preceded by its reasoning, earlier answers lose theirs.

    Reasoning is a message's `reasoning_content`, or what stands before `</think>` in its content; an empty think block
    is written where there is none. Verified against Qwen3-0.6B's template.
    """

    name = "qwen3"
    message_keys = ("reasoning_content",)
    jinja_parts = {
        "turn": {
            "assistant": jinja.REASONING
            + r"""
{%- if loop.index0 > last.query and (reasoning or loop.last) -%}
{%- set content = "<think>\n" + reasoning.strip("\n") + "\n</think>\n\n" + content.lstrip("\n") -%}
{%- endif -%}
{{- "<|im_start|>assistant\n" + content + "<|im_end|>\n" -}}"""
        },
        "setup": """{%- set last = namespace(query=messages | length) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}
{%- if not (message.content.startswith("<tool_response>") and message.content.endswith("</tool_response>")) -%}
{%- set last.query = loop.index0 -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}""",
    }


class Qwen3NoThink(Qwen3):
    """Qwen3 with thinking disabled. Verified against Qwen3-0.6B's template with `enable_thinking` off."""

    name = "qwen3-no-think"
    generation_prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Qwen3Thinking(Qwen3):
    """Qwen3-Thinking-2507: as Qwen3, asked to think. Unverified: no template to compare the opening with."""

    name = "qwen3-thinking"
    unverified = True
    generation_prompt = "<|im_start|>assistant\n<think>\n"


class Salamandra(ChatML):
    """Salamandra-Instruct. Verified against LitGPT for one turn."""

    name = "salamandra"
    default_system = (
        "I am Salamandra, an AI language model developed at the Barcelona Supercomputing Centre (BSC) by the Language "
        "Technologies Unit. My knowledge base was last updated on August 2023. Today Date: 2024-09-30\n"
        "Soy Salamandra, un modelo lingüístico de IA desarrollado en el Barcelona Supercomputing Centre (BSC) por la "
        "Language Technologies Unit. Mi base de conocimientos se actualizó por última vez en agosto de 2023.\n"
        "Soc Salamandra, un model de llenguatge d'IA desenvolupat al Barcelona Supercomputing Centre (BSC) per la "
        "Language Technologies Unit."
    )


class FalconH1(ChatML):
    """Falcon-H1-Instruct; later system messages are left out. Verified against Axolotl's template."""

    name = "falcon-h1"
    prefix = "<|begin_of_text|>"
    jinja_parts = {"system_turn": _SYSTEM_TURN, "condition": 'message.role != "system"'}


class LFM2(ChatML):
    """LFM2; an empty system message is left out. Verified against LFM2-8B-A1B's template."""

    name = "lfm2"
    prefix = "<|startoftext|>"
    jinja_parts = {"system_turn": "{%- if system -%}" + _SYSTEM_TURN + "{%- endif -%}"}


class OLMo3(ChatML):
    """Olmo-3-Instruct: says that there are no functions; `<|endoftext|>` ends the last answer.

    Unverified: no template to compare with.
    """

    name = "olmo3"
    stop = ("<|endoftext|>", "<|im_end|>")
    unverified = True
    default_system = (
        "You are a helpful function-calling AI assistant. You do not currently have access to any functions. "
        "<functions></functions>"
    )
    _no_functions = " You do not currently have access to any functions. <functions></functions>"
    jinja_parts = {
        "given_system": f"messages[0].content + {jinja.literal(_no_functions)}",
        "content": {"system": f"content + {jinja.literal(_no_functions)}"},
        "after": {"assistant": r'("<|endoftext|>" if loop.last and not add_generation_prompt else "<|im_end|>\n")'},
    }


class OLMo3Think(OLMo3):
    """Olmo-3-Think: asked to think. Unverified: no template to compare with."""

    name = "olmo3-think"
    default_system = (
        "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November 2024, and "
        "your model weights are available at https://huggingface.co/allenai. You do not currently have access to any "
        "functions. <functions></functions>"
    )
    generation_prompt = "<|im_start|>assistant\n<think>"


class Phi4(ChatML):
    """phi-4. Verified against llama.cpp's copy of its template, where an answer is asked for."""

    name = "phi-4"
    markers = shared_markers("<|im_start|>{role}<|im_sep|>", "<|im_end|>")


class Phi4Reasoning(Phi4):
    """Phi-4-reasoning and -plus; later system messages are left out. Verified against Axolotl's template."""

    name = "phi-4-reasoning"
    default_system = (
        "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves "
        "thoroughly exploring questions through a systematic thinking process before providing the final precise and "
        "accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, "
        "reassessment, reflection, backtracing, and iteration to develop well-considered thinking process. Please "
        "structure your response into two main sections: Thought and Solution using the specified format: <think> "
        "{Thought section} </think> {Solution section}. In the Thought section, detail your reasoning process in "
        "steps. Each step should include detailed considerations such as analysing questions, summarizing relevant "
        "findings, brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and "
        "revisiting previous steps. In the Solution section, based on various attempts, explorations, and reflections "
        "from the Thought section, systematically present the final solution that you deem correct. The Solution "
        "section should be logical, accurate, and concise and detail necessary steps needed to reach the conclusion. "
        "Now, try to solve the following question through the above guidelines:"
    )
    jinja_parts = {"condition": 'message.role != "system"'}


class KimiK2(MarkerStyle):
    """Kimi-K2-Instruct. Verified against Moonshot's template."""

    name = "kimi-k2"
    stop = ("<|im_end|>",)
    default_system = "You are a helpful assistant"
    markers = shared_markers("<|im_{role}|>{role}<|im_middle|>", "<|im_end|>")
