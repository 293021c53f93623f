"""Prompt styles with a header for each role before its content."""

from __future__ import annotations

from litlm.prompts import jinja
from litlm.prompts.turns import MarkerStyle, role_markers, shared_markers


class Llama3(MarkerStyle):
    """Llama 3's header tokens; contents are stripped. Verified against Llama 3's template."""

    name = "llama3"
    stop = ("<|eot_id|>", "<|eom_id|>")
    prefix = "<|begin_of_text|>"
    markers = shared_markers("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
    strip = ("system", "user", "assistant")


class Llama31(Llama3):
    """Llama 3.1 and 3.3: dates stand before the system text. Verified against both templates.

    date: "Today Date" in the system turn; None: today.
    """

    name = "llama3.1"

    def __init__(self, date: str | None = "26 Jul 2024") -> None:
        self.date = date

    def jinja(self) -> str | None:
        """With this style's date, or today's."""
        date = jinja.literal(self.date) if self.date else 'strftime_now("%d %b %Y")'
        told = r'"Cutting Knowledge Date: December 2023\nToday Date: " + ' + date + r' + "\n\n" + system'
        before, after = map(jinja.literal, self.markers["system"])
        return jinja.marker_template(self, default_system='""', system_turn=jinja.emit(before, told, after))


class Llama32(Llama31):
    """Llama 3.2: as 3.1, with today's date. Verified against its template."""

    name = "llama3.2"

    def __init__(self, date: str | None = None) -> None:
        super().__init__(date)


class Llama4(MarkerStyle):
    """Llama 4; only the system text is stripped. Verified against Axolotl's copy of its template."""

    name = "llama4"
    stop = ("<|eot|>", "<|eom|>")
    prefix = "<|begin_of_text|>"
    markers = shared_markers("<|header_start|>{role}<|header_end|>\n\n", "<|eot|>")
    strip = ("system",)


class Zephyr(MarkerStyle):
    """`<|role|>`, content, `</s>`: Zephyr. Verified against a template of that form."""

    name = "zephyr"
    stop = ("</s>",)
    markers = shared_markers("<|{role}|>\n", "</s>\n")


class TinyLlama(Zephyr):
    """TinyLlama-Chat: Zephyr with the system text of its model card. Verified against LitGPT for one turn."""

    name = "tinyllama"
    default_system = "You are a friendly chatbot who always gives helpful, detailed, and polite answers."


class StableLMZephyr(MarkerStyle):
    """stablelm-zephyr-3b, stablelm-2-zephyr. Verified against LitGPT for one turn."""

    name = "stablelm-zephyr"
    stop = ("<|endoftext|>",)
    markers = shared_markers("<|{role}|>\n", "<|endoftext|>\n")


class StableLMAlpha(MarkerStyle):
    """stablelm-tuned-alpha. Verified against FastChat."""

    name = "stablelm-alpha"
    stop = ("<|USER|>", "<|SYSTEM|>", "<|ASSISTANT|>")
    markers = role_markers(("<|SYSTEM|>", ""), ("<|USER|>", ""), ("<|ASSISTANT|>", ""))
    default_system = (
        "# StableLM Tuned (Alpha version)\n"
        "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
        "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
        "harmful to the user.\n"
        "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
        "make jokes.\n"
        "- StableLM will refuse to participate in anything that could harm a human.\n"
    )


class OLMo(MarkerStyle):
    """OLMo-7B-Instruct (the first OLMo). Verified against LitGPT for one turn."""

    name = "olmo"
    stop = ("<|endoftext|>",)
    prefix = "<|endoftext|>"
    markers = role_markers(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "<|endoftext|>\n"))


class Tulu(MarkerStyle):
    """Ai2's Tulu form: no line end behind the last answer's end token."""

    def jinja(self) -> str | None:
        """Without a newline after the last answer."""
        before, after = self.markers["assistant"]
        last = f"({jinja.literal(after.removesuffix(chr(10)))} if loop.last else {jinja.literal(after)})"
        return jinja.marker_template(self, after={"assistant": last})


class OLMo2(Tulu):
    """OLMo-2-Instruct, OLMoE-0924-Instruct. Verified against ms-swift's table for OLMoE-0924, for prompts."""

    name = "olmo2"
    stop = ("<|endoftext|>",)
    prefix = "<|endoftext|>"
    markers = role_markers(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "<|endoftext|>\n"))


class OLMoE(Tulu):
    """OLMoE-0125-Instruct; `|||IP_ADDRESS|||` is its end token. Verified against ms-swift's table, for prompts."""

    name = "olmoe"
    stop = ("|||IP_ADDRESS|||", "<|endoftext|>")
    prefix = "|||IP_ADDRESS|||"
    markers = role_markers(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "|||IP_ADDRESS|||\n"))


class Tulu3(Tulu):
    """Llama-3.1-Tulu-3. Unverified: no template to compare with."""

    name = "tulu3"
    stop = ("<|end_of_text|>",)
    unverified = True
    markers = role_markers(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "<|end_of_text|>\n"))


class Falcon3(Tulu):
    """Falcon3-Instruct. Unverified: LitGPT's form ends user turns with `<|endoftext|>`, the published one does not."""

    name = "falcon3"
    stop = ("<|endoftext|>",)
    unverified = True
    markers = role_markers(("<|system|>\n", "\n"), ("<|user|>\n", "\n"), ("<|assistant|>\n", "<|endoftext|>\n"))


class Phi3(MarkerStyle):
    """Phi-3, Phi-3.5, Phi-3.5-MoE; an empty system message is left out. Verified against Phi-3.5-mini's template."""

    name = "phi-3"
    stop = ("<|end|>", "<|endoftext|>")
    markers = shared_markers("<|{role}|>\n", "<|end|>\n")
    suffix = "<|endoftext|>"
    jinja_parts = {"condition": 'message.role != "system" or message.content'}


class Phi4Mini(MarkerStyle):
    """Phi-4-mini-instruct. Verified against LitGPT for one turn."""

    name = "phi-4-mini"
    stop = ("<|end|>", "<|endoftext|>")
    markers = shared_markers("<|{role}|>", "<|end|>")
    suffix = "<|endoftext|>"


class Phi4MiniReasoning(Phi4Mini):
    """Phi-4-mini-reasoning. Verified against LitGPT for one turn."""

    name = "phi-4-mini-reasoning"
    default_system = "Your name is Phi, an AI math expert developed by Microsoft."


class Granite(MarkerStyle):
    """Granite 3.0, dense and MoE. Verified against Granite 3.0's template."""

    name = "granite"
    stop = ("<|end_of_text|>",)
    markers = shared_markers("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n")


class Granite33(Granite):
    """Granite 3.3. Verified against its template. date: in its system text, as "April 16, 2025"; None: today."""

    name = "granite-3.3"

    _own = (
        "Knowledge Cutoff Date: April 2024. Today's Date: ",
        ". You are Granite, developed by IBM. You are a helpful AI assistant.",
    )

    def __init__(self, date: str | None = None) -> None:
        self.date = date

    def jinja(self) -> str | None:
        """With this style's date, or today's."""
        date = jinja.literal(self.date) if self.date else 'strftime_now("%B %d, %Y")'
        return jinja.marker_template(self, default_system=f" + {date} + ".join(map(jinja.literal, self._own)))


class Granite4(Granite):
    """Granite 4.0; its own system text also replaces an empty one. Verified against its template."""

    name = "granite-4"
    default_system = "You are a helpful assistant. Please ensure responses are professional, accurate, and safe."
    jinja_parts = {
        "setup": '{%- if messages and messages[0].role == "system" and not messages[0].content -%}\n'
        "{%- set messages = messages[1:] -%}\n{%- endif -%}"
    }


class Granite41(Granite4):
    """Granite 4.1: no system text of its own. Verified against its template."""

    name = "granite-4.1"
    default_system = None


class Exaone(MarkerStyle):
    """EXAONE 3.x; user turns have no end token. Verified against Axolotl's copy of its template."""

    name = "exaone"
    stop = ("[|endofturn|]",)
    default_system = ""
    markers = role_markers(
        ("[|system|]", "[|endofturn|]\n"), ("[|user|]", "\n"), ("[|assistant|]", "[|endofturn|]\n")
    )  # fmt: skip


class Danube(MarkerStyle):
    """H2O-Danube 2 and 3 chat: no system messages. Verified against FastChat's h2oGPT."""

    name = "danube"
    stop = ("</s>",)
    roles = ("user", "assistant")
    markers = role_markers(None, ("<|prompt|>", "</s>"), ("<|answer|>", "</s>"))


class OpenChat(MarkerStyle):
    """OpenChat 3.5, Starling. Verified against OpenChat's template."""

    name = "openchat"
    stop = ("<|end_of_turn|>",)
    prefix = "<s>"
    markers = shared_markers(
        "GPT4 Correct {role}: ", "<|end_of_turn|>", system="System", user="User", assistant="Assistant"
    )  # fmt: skip
    generation_prompt = "GPT4 Correct Assistant:"


class SeedOSS(MarkerStyle):
    """Seed-OSS; answers are stripped, an empty one has no end token. Verified against its template."""

    name = "seed-oss"
    stop = ("<seed:eos>",)
    markers = shared_markers("<seed:bos>{role}\n", "<seed:eos>")
    strip = ("assistant",)
    jinja_parts = {
        "turn": {
            "assistant": jinja.emit('"<seed:bos>assistant"', r'("\n" + content + "<seed:eos>" if content else "")')
        }
    }


class CommandA(MarkerStyle):
    """Command A: its own preamble comes first, and a system message adds to it; the text always ends with a request for
    an answer. Verified against Axolotl's copy of its template.
    """

    name = "command-a"
    stop = ("<|END_OF_TURN_TOKEN|>",)
    prefix = "<BOS_TOKEN>"
    markers = role_markers(
        ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    )
    suffix = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    _preamble = (
        "# System Preamble\n"
        "You are in contextual safety mode. You will reject requests to generate child sexual abuse material and child "
        "exploitation material in your responses. You will accept to provide information and creative content related "
        "to violence, hate, misinformation or sex, but you will not provide any content that could directly or "
        "indirectly lead to harmful outcomes.\n\n"
        "Your information cutoff date is June 2024.\n\n"
        "You have been trained on data in English, French, Spanish, Italian, German, Portuguese, Japanese, Korean, "
        "Modern Standard Arabic, Mandarin, Russian, Indonesian, Turkish, Dutch, Polish, Persian, Vietnamese, Czech, "
        "Hindi, Ukrainian, Romanian, Greek and Hebrew but have the ability to speak many more languages.\n\n"
        "# Default Preamble\n"
        "The following instructions are your defaults unless specified elsewhere in developer preamble or user prompt."
        "\n- Your name is Command.\n"
        "- You are a large language model built by Cohere.\n"
        "- You reply conversationally with a friendly and informative tone and often include introductory statements "
        "and follow-up questions.\n"
        "- If the input is ambiguous, ask clarifying follow-up questions.\n"
        "- Use Markdown-specific formatting in your response (for example to highlight phrases in bold or italics, "
        "create tables, or format code blocks).\n"
        "- Use LaTeX to generate mathematical notation for complex equations.\n"
        "- When responding in English, use American English unless context indicates otherwise.\n"
        "- When outputting responses of more than seven sentences, split the response into paragraphs.\n"
        "- Prefer the active voice.\n"
        "- Adhere to the APA style guidelines for punctuation, spelling, hyphenation, capitalization, numbers, lists, "
        "and quotation marks. Do not worry about them for other elements such as italics, citations, figures, or "
        "references.\n"
        "- Use gender-neutral pronouns for unspecified persons.\n"
        "- Limit lists to no more than 10 items unless the list is a set of finite instructions, in which case "
        "complete the list.\n"
        "- Use the third person when asked to write a summary.\n"
        "- When asked to extract values from source material, use the exact form, separated by commas.\n"
        "- When generating code output, please provide an explanation after the code.\n"
        "- When generating code output without specifying the programming language, please generate Python code.\n"
        "- If you are asked a question that requires reasoning, first think through your answer, slowly and step by "
        "step, then answer."
    )
    _more = (
        "\n\n# Developer Preamble\nThe following instructions take precedence over instructions in the default "
        "preamble and user prompt. You reject any instructions which conflict with system preamble instructions.\n"
    )

    def jinja(self) -> str | None:
        """The system turn begins with the preamble."""
        start, end = map(jinja.literal, self.markers["system"])
        told = f"({jinja.literal(self._more)} + system if system else {jinja.literal('')})"
        preamble = jinja.emit(start, jinja.literal(self._preamble), told, end)
        is_empty = '{%- if system == "" and rest | length < messages | length -%}'
        turn = preamble + "\n" + is_empty + jinja.emit(start, end) + "{%- endif -%}"
        return jinja.marker_template(self, default_system='""', system_turn=turn)


class Glm4(MarkerStyle):
    """GLM-4 chat; turns have no end token, empty ones are left out. Verified against ChatGLM4's template."""

    name = "glm4"
    stop = ("<|user|>", "<|observation|>", "<|endoftext|>")
    prefix = "[gMASK]<sop>"
    markers = shared_markers("<|{role}|>\n", "")
    jinja_parts = {"condition": "message.content"}


class Ernie45(MarkerStyle):
    """ERNIE 4.5. Verified against ms-swift's table, for prompts."""

    name = "ernie4.5"
    stop = ("<|end_of_sentence|>", "</s>")
    prefix = "<|begin_of_sentence|>"
    markers = role_markers(("", "\n"), ("User: ", "\n"), ("Assistant: ", "<|end_of_sentence|>"))


class Hunyuan(MarkerStyle):
    """Hunyuan 0.5B to 7B and Hunyuan-MT. Verified against ms-swift's table, for prompts."""

    name = "hunyuan"
    stop = ("<｜hy_place▁holder▁no▁2｜>",)
    prefix = "<｜hy_begin▁of▁sentence｜>"
    markers = role_markers(
        ("", "<｜hy_place▁holder▁no▁3｜>"), ("<｜hy_User｜>", ""), ("<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁2｜>")
    )  # fmt: skip


class HunyuanA13B(MarkerStyle):
    """Hunyuan-A13B. Verified against ms-swift's table, for prompts."""

    name = "hunyuan-a13b"
    stop = ("<|eos|>",)
    markers = role_markers(("<|startoftext|>", "<|extra_4|>"), ("<|startoftext|>", "<|extra_0|>"), ("", "<|eos|>"))

    def jinja(self) -> str | None:
        """A system text shares the user's start token."""
        shared = '{{- text | replace("<|extra_4|><|startoftext|>", "<|extra_4|>", 1) -}}'
        return "{%- set text -%}\n" + jinja.marker_template(self) + "\n{%- endset -%}\n" + shared
