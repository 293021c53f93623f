"""Training's transforms of the layers: compiled, computed again in the backward pass instead of kept, MLPs in pieces.

They wrap the layers' forward (and an MLP's, by its class) and touch no weight or name. Generation, whose cache they
don't know, goes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from litlm.context import Context, KVCache
from litlm.model import GPT, Block
from litlm.model.mlp import MLP
from litlm.model.moe import forget_routing
from litlm.model.rope import Turn
from litlm.transforms.quantize import QuantizedLinear

Checkpointing = Literal["none", "selective", "full"]
Forward = Callable[..., Tensor]


@contextmanager
def training_blocks(model: GPT, *, compile: bool = False, checkpointing: Checkpointing = "none") -> Iterator[None]:
    """While the block runs, the model's layers are compiled (a graph for layers of a kind) and keep fewer activations.

    full: a layer keeps its input only. selective: it keeps the products with weights too, the expensive part.
    """
    step: Forward = Block.forward
    cut = [b.mlp for b in model.layers if checkpointing == "full" and _can_be_cut(b.mlp)]
    if checkpointing != "none":
        step = partial(_again, step, checkpointing == "selective")
    if compile:  # around the checkpointing: the compiler knows what to keep, and what it made is no product to keep
        step = torch.compile(step)
    before = [block.__dict__.get("forward") for block in model.layers]
    for block in model.layers:
        block.forward = partial(_forward, step, block)  # type: ignore[method-assign]
    for mlp in cut:
        mlp.__class__ = _MLPInPieces  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch._dynamo.config.patch(
            # An adapter is a hook, and layers share a graph: without guards on hooks, a layer would run another's.
            skip_nnmodule_hook_guards=False,
            # What a layer leaves in its context (masks, keys that others share) it leaves in the forward pass.
            skip_fwd_side_effects_in_bwd_under_checkpoint=True,
            recompile_limit=max(64, torch._dynamo.config.recompile_limit),
        ):
            yield
    finally:
        for mlp in cut:
            mlp.__class__ = MLP  # pyright: ignore[reportAttributeAccessIssue]
        for block, forward in zip(model.layers, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward  # type: ignore[method-assign]


def _forward(
    step: Forward, block: Block, x: Tensor, turn: Turn, context: Context, layer: int, given: Tensor | None = None
) -> Tensor:
    if isinstance(context, KVCache):
        return Block.forward(block, x, turn, context, layer, given)
    return step(block, x, turn, context, layer, given)


def _again(step: Forward, selective: bool, block: Block, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return step(block, *args)
    if torch.compiler.is_compiling():
        options = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if selective else {}
    else:
        options = {"context_fn": partial(_contexts, selective, block)}
    return checkpoint(step, block, *args, use_reentrant=False, **options)  # type: ignore[return-value]


def _contexts(selective: bool, block: Block) -> tuple[Any, Any]:
    """What the first pass through a layer and the second one run in."""
    first, second = create_selective_checkpoint_contexts(_policy) if selective else (nullcontext(), nullcontext())
    return first, _second(block, second)


@contextmanager
def _second(block: Block, inner: Any) -> Iterator[None]:
    try:
        with inner:
            yield
    finally:
        forget_routing(block)  # or it would hold on to this pass, and be counted twice


# Pieces of an MLP, and where its weights are packed; the fewest rows of one, or products are slow; from which width on.
_PIECES, _PACKED_PIECES, _ROWS, _WIDE = 4, 8, 512, 4096


class _MLPInPieces(MLP):
    """An MLP that takes some rows after the others: the backward pass holds the wide tensors of a few rows at a time.

    There are nine as wide with LoRA, and most of what a layer's backward pass holds. Packed weights are unpacked once
    for all pieces where this is compiled; three of them are held then, so the pieces are smaller.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        n, count = rows.size(0), _PIECES
        if isinstance(self.up_proj, QuantizedLinear):  # not compiled, each piece would unpack them anew
            count = _PACKED_PIECES if torch.compiler.is_compiling() else 1
        while count > 1 and n < count * _ROWS:
            count //= 2
        if count == 1 or not torch.is_grad_enabled():
            return super().forward(x)
        pieces = rows.split([n // count] * (count - 1) + [n - n // count * (count - 1)])
        return torch.cat([super(_MLPInPieces, self).forward(piece) for piece in pieces]).view(x.shape)


def _can_be_cut(mlp: Any) -> bool:
    """Weights that are trained would get a gradient from each piece, each as large as the weight."""
    if type(mlp) is not MLP or mlp.up_proj.out_features < _WIDE:
        return False
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return not any(layer is not None and layer.weight.requires_grad for layer in layers)


_KEPT: tuple[Any, ...] = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.litlm.grouped_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # of `ops.linear`
    _KEPT += (torch.ops.mkldnn._linear_pointwise.default,)


def _policy(_context: Any, op: Any, *_args: Any, **_options: Any) -> CheckpointPolicy:
    kept = op in _KEPT or getattr(op, "namespace", "") == "torch_attn"  # which PyTorch registers when it is first used
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
