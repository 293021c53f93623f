"""Prompt styles: how a conversation becomes the text that a model was finetuned on.

Messages are dicts with `role` ("system", "user", "assistant") and `content`; `messages.py` says what else they may
hold. A style is a small class that writes them as text: `base.py` has the base class, `turns.py` the table of markers
that most are. `TemplateStyle` runs a checkpoint's Jinja template as transformers does. `style_for` selects: the
checkpoint's own template, else the named style, else `plain`.
- Every style is a Jinja template (`jinja.py`), which is saved with models trained in it.
- A style follows the template that its models were published with, oddities included: stripped contents, a missing end
  token, reasoning removed from earlier answers.
- Only a checkpoint's own template writes tools. What a style would silently drop (tools and their calls, a name,
  reasoning that it never writes) is refused.
- Each docstring names the models and the source that tests compare with, or says "unverified".
"""

from typing import NoReturn

from litlm.prompts.base import Message, PromptStyle, get_style
from litlm.prompts.chatml import ChatML, Qwen3, SmolLM2, SmolLM3
from litlm.prompts.headers import Granite33, Llama3, Llama31, Llama32, Zephyr
from litlm.prompts.instruct import Llama2FunctionCalling
from litlm.prompts.reasoning import Apertus, DeepSeekV31, Gemma4, Glm45, GptOss
from litlm.prompts.template import TemplateStyle, style_for
from litlm.prompts.text import Alpaca, Plain
from litlm.prompts.turns import MarkerStyle

__all__ = [
    "Alpaca", "Apertus", "ChatML", "DeepSeekV31", "Gemma4", "Glm45", "GptOss", "Granite33", "Llama2FunctionCalling",
    "Llama3", "Llama31", "Llama32", "MarkerStyle", "Message", "Plain", "PromptStyle", "Qwen3", "SmolLM2", "SmolLM3",
    "TemplateStyle", "Zephyr", "get_style", "style_for",
]  # fmt: skip


def __getattr__(name: str) -> NoReturn:
    if name == "register_style":
        raise ImportError("litlm.prompts.register_style is gone: a PromptStyle subclass with a name registers itself")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
