"""adapter and adapter_v2 (LLaMA-Adapter): see `transforms.llama_adapter`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from litlm.settings import MethodSettings
from litlm.train.methods.base import AppliedMethod, Method

if TYPE_CHECKING:
    from litlm.llm import LLM


class AdapterMethod(Method):
    """Learned prompts with a gate in each layer."""

    name = "adapter"
    v2: ClassVar[bool] = False

    def apply(self, llm: LLM, settings: MethodSettings) -> AppliedMethod:
        from litlm.checkpoint.adapter import save
        from litlm.transforms.llama_adapter import apply_adapter

        adapted = apply_adapter(llm.model, settings, v2=self.v2)
        return AppliedMethod.of_adapters(llm, adapted, save)


class AdapterV2Method(AdapterMethod):
    """Also biases, scales and norms."""

    name, v2 = "adapter_v2", True


METHODS = (AdapterMethod(), AdapterV2Method())
