"""Compiled decoding on the CPU: one graph for all layers, for one row at a time.

Decoding one token reads every weight once, so the limit is memory bandwidth; eager PyTorch stays well under it.
Compiled, a layer's products become plain loops at memory speed with norms, rope and activation fused in. The model
makes a `StaticCache`, whose layers are tensors only, so every layer and every step runs the same code. Anything but one
row and one token goes the usual way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from litlm.context.static import StaticCache, StaticLayer, StaticRecurrentLayer
from litlm.model import GPT, DecoderLayer
from litlm.transforms.blocks import Forward, compiler_settings, wrap_forward


def compile_decoding(model: GPT) -> None:
    """Run decoding of one row compiled. The first tokens then wait some seconds for the compiler.

    Raises ValueError without a C++ compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "cl"))):
        raise ValueError("compile=True needs a C++ compiler, and none was found; install g++ or leave compile out")
    model.cache_class = StaticCache
    head = torch.compile(GPT.head, fullgraph=True)
    model.head = partial(_head, head, model)  # type: ignore[method-assign]
    wrap_forward(list(model.layers), partial(_decode, torch.compile(DecoderLayer.forward, fullgraph=True)))
    wrap_forward([model], _with_compiler_settings)


def _with_compiler_settings(forward: Callable[..., Any], model: GPT, *args: Any, **options: Any) -> Any:
    with compiler_settings():
        return forward(model, *args, **options)


def _decode(compiled: Forward, forward: Forward, layer: DecoderLayer, *args: Any) -> Tensor:
    """args: of `DecoderLayer.forward`, the layer's context third."""
    use = isinstance(args[2], (StaticLayer, StaticRecurrentLayer)) and not torch.is_grad_enabled()
    return (compiled if use else forward)(layer, *args)


def _head(compiled: Callable[[GPT, Tensor], Tensor], model: GPT, x: Tensor) -> Tensor:
    one_row = x.size(0) == x.size(1) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled()
    return compiled(model, x) if one_row else GPT.head(model, x)
