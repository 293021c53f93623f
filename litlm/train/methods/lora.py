"""lora and qlora (LoRA on quantized weights): low-rank adapters beside frozen weights; see `transforms.lora`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from litlm.settings import MethodSettings
from litlm.train.methods.base import AppliedMethod, Method

if TYPE_CHECKING:
    from litlm.llm import LLM


class LoRAMethod(Method):
    """Low-rank adapters, and the modules in `modules_to_save`, which are trained whole."""

    name, mergeable = "lora", True

    def apply(self, llm: LLM, settings: MethodSettings) -> AppliedMethod:
        from litlm.checkpoint.peft import save_adapter
        from litlm.transforms.lora import adapters_disabled, apply_lora

        adapted = apply_lora(llm.model, settings)
        llm.config = llm.model.config  # an adapter on one side of tied embeddings unties them
        return AppliedMethod.of_adapters(llm, adapted, save_adapter, adapters_disabled)

    def trains_base_weights(self, settings: MethodSettings) -> bool:
        return bool(settings.modules_to_save)

    def for_new_tokens(self, settings: MethodSettings, modules: tuple[str, ...]) -> MethodSettings:
        if both := [name for name in ("embed", "lm_head") if name in settings.targets]:
            raise ValueError(f"new_tokens trains the embeddings whole; leave {' and '.join(both)} out of targets")
        return dataclasses.replace(
            settings, modules_to_save=tuple(dict.fromkeys((*settings.modules_to_save, *modules)))
        )


class QLoRAMethod(LoRAMethod):
    """LoRA on a model that is loaded quantized."""

    name = "qlora"


METHODS = (LoRAMethod(), QLoRAMethod())
