"""Compiled decoding on the CPU: one graph for all layers, for one row at a time.

Decoding one token is a walk through all weights, so the limit is memory bandwidth; eager PyTorch stays well under it.
Compiled, a layer's products become plain loops at memory speed with norms, rope and activation fused in. A layer's keys
and values come in as views whose length is the only thing that changes (in steps of 64, masked), so every layer and
every step runs the same code. Anything but one row goes the usual way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from litlm.context import Context, KVCache
from litlm.model import GPT, Block
from litlm.model.rope import Turn
from litlm.ops.sdpa import attention

Step = Callable[..., Tensor]
_STEP = 64  # cached tokens are attended to in multiples of this


class _Row(Context):
    """One layer's view of a cache for one new token. at: (1,), its slot; bias: (1, 1, 1, S), -inf where not visible."""

    fresh = False

    def __init__(self, k: Tensor, v: Tensor | None, at: Tensor, bias: Tensor) -> None:
        self.k, self.v, self.at, self.bias = k, v, at, bias

    def begin(self, batch: int, length: int, device: torch.device) -> Tensor:
        return self.at[None]

    def attend(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, **options: Any) -> Tensor:
        values = self.v
        if k is not None and v is not None:  # otherwise they are another layer's, which has written them
            self.k.index_copy_(2, self.at, k)
            if values is None:
                values = self.k[..., : v.size(-1)]
            else:
                values.index_copy_(2, self.at, v)
        assert values is not None
        softmax = {key: options[key] for key in ("scale", "softcap", "sinks", "slopes") if key in options}
        if softmax.get("sinks") is not None or softmax.get("slopes") is not None:
            return attention(q, self.k, values, mask=self.bias, **softmax)
        rows = q.reshape(q.size(0), self.k.size(1), -1, q.size(-1))  # (1, K, H / K, D)
        return attention(rows, self.k, values, mask=self.bias, **softmax).reshape(*q.shape[:3], -1)


def _layer(
    block: Block, x: Tensor, turn: Turn, given: Tensor | None, k: Tensor, v: Tensor | None, at: Tensor, bias: Tensor
) -> Tensor:
    return Block.forward(block, x, turn, _Row(k, v, at, bias), 0, given)


def _one_row(x: Tensor) -> bool:
    return x.size(0) == x.size(1) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled()


def _forward(
    step: Step, block: Block, x: Tensor, turn: Turn, context: Context, layer: int, given: Tensor | None = None
) -> Tensor:
    if not _one_row(x) or not isinstance(context, KVCache):
        return Block.forward(block, x, turn, context, layer, given)
    layer = layer if block.config.kv_layer is None else block.config.kv_layer
    end = min(-(-context.lengths[0] // _STEP) * _STEP, context.max_len)
    at, bias = context.row_bias(end, block.config.window, block.config.chunk, x.dtype)
    if context.views.get(layer, (0,))[0] != end:
        own = context.v[layer]
        k, v = context.k[layer][:, :, :end], None if own is None else own[:, :, :end]
        for tensor, dim in ((k, 2), (v, 2), (bias, 3)):
            if tensor is not None:
                torch._dynamo.mark_dynamic(tensor, dim)
        context.views[layer] = (end, k, v)
    return step(block, x, turn, given, *context.views[layer][1:], at, bias)


def _head(last: Step, model: GPT, x: Tensor) -> Tensor:
    return last(model, x) if _one_row(x) else GPT.head(model, x)


def compile_decoding(model: GPT) -> None:
    """Run decoding with a `KVCache` of one row compiled. The first tokens then wait some seconds for the compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "cl"))):
        raise ValueError("compile=True needs a C++ compiler, and none was found; install g++ or leave compile out")
    # An adapter is a hook, and layers share a graph: without guards on hooks, a layer would run another's graph.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    step, last = torch.compile(_layer, fullgraph=True), torch.compile(GPT.head, fullgraph=True)
    model.head = partial(_head, last, model)  # type: ignore[method-assign]
    for block in model.layers:
        block.forward = partial(_forward, step, block)  # type: ignore[method-assign]
