"""Prompt styles in which users and assistants must take turns; most write a system text into the user's message."""

from __future__ import annotations

from litlm.prompts.base import PromptStyle
from litlm.prompts.turns import MarkerStyle, role_markers, shared_markers


class Gemma(MarkerStyle):
    """Gemma 1 and 2, CodeGemma: no system messages; contents are stripped. Verified against Gemma 2's template."""

    name = "gemma"
    stop = ("<end_of_turn>",)
    roles = ("user", "assistant")
    prefix = "<bos>"
    markers = shared_markers("<start_of_turn>{role}\n", "<end_of_turn>\n", assistant="model")
    strip = ("user", "assistant")
    alternating = True


class Gemma3(Gemma):
    """Gemma 3: the system text begins the first user message. Verified against Axolotl's copy of its template."""

    name = "gemma3"
    roles = PromptStyle.roles
    merge_system = ("", "\n\n")


class Llama2(MarkerStyle):
    """Llama-2-Chat: the system text begins the first user message; contents are stripped. Verified against FastChat."""

    name = "llama2"
    stop = ("</s>",)
    markers = role_markers(None, ("<s>[INST] ", " [/INST]"), (" ", " </s>"))
    alternating = True
    merge_system = ("<<SYS>>\n", "\n<</SYS>>\n\n")
    generation_prompt = ""

    jinja_parts = {"content": dict.fromkeys(markers, "(content | trim)")}


class CodeLlama(Llama2):
    """CodeLlama-Instruct: Llama 2's form. Verified against LitGPT for one turn."""

    name = "codellama"


class Llama2FunctionCalling(Llama2):
    """Llama-2-7b-chat-hf-function-calling-v2. Verified against LitGPT for one turn.

    functions: their JSON descriptions, which precede the first message.
    """

    name = "llama2-function-calling"
    markers = role_markers(None, ("[INST]", "[/INST]\n\n"), ("", "</s>"))

    def __init__(self, functions: str = "") -> None:
        self.prefix = f"<FUNCTIONS>{functions}</FUNCTIONS>\n\n" if functions else ""


class MistralV1(MarkerStyle):
    """Mistral-7B-Instruct v0.1 and v0.2, Mixtral-8x7B-Instruct: the system text begins the first user message.

    Verified against mistral-common, text and token ids.
    """

    name = "mistral-v1"
    stop = ("</s>",)
    prefix = "<s>"
    markers = role_markers(None, (" [INST] ", " [/INST]"), (" ", "</s>"))
    generation_prompt = ""
    alternating = True
    merge_system = ("", "\n\n")


class MistralV3(MistralV1):
    """Mistral-7B-Instruct v0.3, Mixtral-8x22B, Codestral, Mistral-Large-2407 (Mistral's tokenizers v2 and v3).

    The system text begins the last user message. Verified against mistral-common, text and token ids.
    """

    name = "mistral-v3"
    markers = role_markers(None, ("[INST] ", "[/INST]"), (" ", "</s>"))
    merge_into = -1


class MistralV3Tekken(MistralV3):
    """Mistral-Nemo-Instruct-2407, Ministral-8B-2410. Verified against mistral-common."""

    name = "mistral-v3-tekken"
    markers = role_markers(None, ("[INST]", "[/INST]"), ("", "</s>"))


class MistralV7(MistralV1):
    """Mistral-Large-2411: system messages are turns. Verified against mistral-common, text and token ids."""

    name = "mistral-v7"
    markers = role_markers(("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), ("[INST] ", "[/INST]"), (" ", "</s>"))
    merge_system = None


class MistralV7Tekken(MistralV7):
    """Mistral-Small 3 to 3.2, Devstral; their own system texts are not added. Verified against mistral-common."""

    name = "mistral-v7-tekken"
    markers = role_markers(("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ("[INST]", "[/INST]"), ("", "</s>"))


class MistralV13(MistralV7Tekken):
    """Magistral, Ministral 3, Mistral-Large 3: as v7 for plain chat. Verified against mistral-common."""

    name = "mistral-v13"


class CommandR(MarkerStyle):
    """Command R and R+, Aya 23, Aya Expanse; all but system texts are stripped. Verified against their templates."""

    name = "command-r"
    stop = ("<|END_OF_TURN_TOKEN|>",)
    prefix = "<BOS_TOKEN>"
    markers = shared_markers(
        "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>", "<|END_OF_TURN_TOKEN|>", system="SYSTEM", user="USER",
        assistant="CHATBOT",
    )  # fmt: skip
    strip = ("user", "assistant")
    alternating = True
