"""What a method is."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from litlm.settings import MethodSettings

if TYPE_CHECKING:
    from litlm.llm import LLM


@dataclass
class AppliedMethod:
    """A method on a model.

    export(folder, base): write the result, which `LLM.load` reads; base: the model's name, for adapters. check: raise
    a ValueError if the export would fail, before training rather than after. disabled: a context in which the model is
    what it was; None if there is no way back. notes: for people.
    """

    export: Callable[[Path, str], None]
    check: Callable[[], object]
    disabled: Callable[[], AbstractContextManager[None]] | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_adapters(cls, llm: LLM, adapted: list[str], save: Callable[..., None]) -> AppliedMethod:
        """For a method that adapts layers. save(model, folder, base=...): write the adapters in a
        format that can be read (`checkpoint.adapter_formats`), or raise ValueError."""
        from litlm.checkpoint.peft import read_adapter_config
        from litlm.transforms.lora import adapters_disabled

        def export(folder: Path, base: str) -> None:
            save(llm.model, folder, base=base)
            llm.save_chat_format(folder)

        def check() -> None:
            with tempfile.TemporaryDirectory(prefix="litlm-") as folder:
                try:
                    export(Path(folder), "")
                    read_adapter_config(Path(folder))  # that there is a reader
                except ValueError as e:
                    text = str(e).replace(f"{folder}/", "")
                    raise ValueError(f"what is trained can't be saved: {text}") from e

        return cls(export, check, lambda: adapters_disabled(llm.model), [f"{len(adapted)} layers adapted"])


class Method(ABC):
    """How a run changes a model.

    whole_model: the result is a model by itself, not an adapter for one. mergeable: `litlm merge` can put the adapter
    into the model's weights. A model is loaded quantized if the settings say `quantize`.
    """

    name: ClassVar[str]
    whole_model: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False

    @abstractmethod
    def apply(self, llm: LLM, settings: MethodSettings) -> AppliedMethod:
        """See `apply_method`. Raises ValueError if the settings don't fit the model."""

    def trains_base_weights(self, settings: MethodSettings) -> bool:
        """Whether weights of the model itself are trained, and not only what is added to it."""
        return self.whole_model

    def for_new_tokens(self, settings: MethodSettings, modules: tuple[str, ...]) -> MethodSettings:
        """Settings that also train `modules`, which have rows for new tokens. Raises ValueError if that can't be."""
        raise ValueError(f"new_tokens need embeddings that are trained; method {self.name} has none, use lora or full")
