"""Prompt styles: how a conversation becomes the text a model was finetuned on.

Messages are dicts with `role` ("system", "user", "assistant") and `content`; `messages.py` says what else they may
hold. A style is a small class that writes them out: `base.py` says what it must do, `turns.py` has the table that most
are. `TemplateStyle` runs the Jinja template a checkpoint brings, as transformers does. `style_for` chooses: the
checkpoint's own template, else the named style, else `plain`. Unusual:
- Every style is also a Jinja template (`jinja.py`), which is saved with a model that was trained in it.
- A style follows the template its models were published with, oddities included: stripped contents, a missing end
  token, reasoning taken out of earlier answers.
- Only a checkpoint's own template writes tools. What a style would leave out without a word (tools and their calls, a
  name, reasoning that it never writes) is refused.
- Each docstring names the models and the source that tests compare the text with; "unverified" where there is none.
"""

from litlm.prompts.base import Message, PromptStyle, get_style, register_style
from litlm.prompts.chatml import ChatML, Qwen3, SmolLM2, SmolLM3
from litlm.prompts.headers import Granite33, Llama3, Llama31, Llama32, Zephyr
from litlm.prompts.instruct import Llama2FunctionCalling
from litlm.prompts.reasoning import Apertus, DeepSeekV31, Gemma4, Glm45, GptOss
from litlm.prompts.template import TemplateStyle, style_for
from litlm.prompts.text import Alpaca, Plain
from litlm.prompts.turns import Turns

__all__ = [
    "Alpaca", "Apertus", "ChatML", "DeepSeekV31", "Gemma4", "Glm45", "GptOss", "Granite33", "Llama2FunctionCalling",
    "Llama3", "Llama31", "Llama32", "Message", "Plain", "PromptStyle", "Qwen3", "SmolLM2", "SmolLM3", "TemplateStyle",
    "Turns", "Zephyr", "get_style", "register_style", "style_for",
]  # fmt: skip
