"""litlm: a hackable, from-scratch LLM library.

    from litlm import LLM
    llm = LLM.load("smollm2-135m-instruct")

Names are imported when first used: `import litlm` itself loads neither torch nor anything else that is heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litlm.config import Config as Config
    from litlm.families import register_family as register_family
    from litlm.llm import LLM as LLM
    from litlm.model import GPT as GPT
    from litlm.tokenizer import Tokenizer as Tokenizer
    from litlm.zoo import list_models as list_models
    from litlm.zoo import register_model as register_model

__version__ = "0.1.0"

_HOME = {
    "LLM": "litlm.llm",
    "GPT": "litlm.model",
    "Config": "litlm.config",
    "Tokenizer": "litlm.tokenizer",
    "list_models": "litlm.zoo",
    "register_family": "litlm.families",
    "register_model": "litlm.zoo",
}
__all__ = ["GPT", "LLM", "Config", "Tokenizer", "list_models", "register_family", "register_model"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'litlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
