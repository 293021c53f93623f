"""FP8 training (torchao): linear layers within the decoder layers multiply 8-bit copies of their inputs and weights.

Weights and their names stay as they are; each product scales its inputs, with one factor per matrix (one per row would
be more exact, and slower). Embeddings, head, routers and small gates are left out: they are few products, where errors
cost most. It is undone after training, so that saving sees plain layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from litlm.model import GPT
from litlm.ops.linear import Linear
from litlm.transforms.quantize import SMALL_GATES

_ALIGN = 16  # FP8 kernels need matrix sizes that are multiples of this
_MIN_CAPABILITY = (8, 9)


@contextmanager
def fp8_training(model: GPT, *, emulate: bool = False) -> Iterator[list[str]]:
    """In the block, the linear layers of the model's layers multiply in FP8; yields their names.

    emulate: the same rounding with ordinary products, for other devices. Raises ValueError if model or device can't.
    """
    float8 = _torchao()
    layers = _layers(model)
    _check(model, layers, emulate=emulate)
    # The weight's gradient is a product over tokens, whose number may be odd.
    config = replace(float8.Float8LinearConfig.from_recipe_name("tensorwise"), pad_inner_dim=True, emulate=emulate)
    try:
        # The filter gets a layer's name within what is converted.
        float8.convert_to_float8_training(model, module_filter_fn=lambda _, name: name in layers, config=config)
        for name, layer in layers.items():  # the new ones have the old ones' weights, but are in training mode
            model.get_submodule(name).train(layer.training)
        yield list(layers)
    finally:
        for name, layer in layers.items():
            owner, _, leaf = name.rpartition(".")
            layer.train(model.get_submodule(name).training)
            setattr(model.get_submodule(owner), leaf, layer)


def _torchao() -> Any:
    try:
        return import_module("torchao.float8")
    except ImportError as e:
        raise ValueError(f"fp8=True needs torchao ({e}): pip install torchao") from None


def _layers(model: GPT) -> dict[str, nn.Linear]:
    """The layers to convert: those with sizes that FP8 kernels take, but small gates."""
    return {
        name: m
        for name, m in model.named_modules()
        if name.startswith("layers.")
        and name.rpartition(".")[2] not in SMALL_GATES
        and isinstance(m, nn.Linear)
        and m.in_features % _ALIGN == 0
        and m.out_features % _ALIGN == 0
    }


def _check(model: GPT, layers: dict[str, nn.Linear], *, emulate: bool) -> None:
    problems = []
    device = model.embed.weight.device
    if not emulate and device.type != "cuda":
        problems.append(f"it needs a CUDA device of capability 8.9 or more, and the model is on {device.type}")
    elif not emulate and torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        has = ".".join(map(str, torch.cuda.get_device_capability(device)))
        problems.append(f"it needs a CUDA device of capability 8.9 or more (H100, L4, RTX 40), and this one has {has}")
    if odd := [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and not _is_plain(m)]:
        name, layer = odd[0]
        problems.append(
            f"{name} is a {type(layer).__name__} with adapters or quantized weights, and FP8 takes plain layers; use "
            "method full, or leave fp8 out"
        )
    elif not layers:
        problems.append(f"no linear layer in the decoder layers has sizes divisible by {_ALIGN}; leave fp8 out")
    if problems:
        raise ValueError("fp8=True can't be used:\n" + "\n".join(f"- {p}" for p in problems))


def _is_plain(layer: nn.Linear) -> bool:
    """Adapters are children of their layer."""
    return type(layer) in (Linear, nn.Linear) and not any(True for _ in layer.children())
