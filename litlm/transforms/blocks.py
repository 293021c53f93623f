"""Transforms of the layers' `forward`: in training they are compiled and keep fewer activations.

They wrap the `forward` of layers (and of MLPs) and touch no weight or name. Generation with a cache goes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from litlm.context.cache import CacheLayer, RecurrentLayer
from litlm.context.static import StaticLayer
from litlm.model import GPT, DecoderLayer
from litlm.model.mlp import MLP
from litlm.model.moe import clear_routing
from litlm.transforms.quantize import QuantizedLinear

Checkpointing = Literal["none", "selective", "full"]
Forward = Callable[..., Tensor]


def wrap_forward(modules: Sequence[nn.Module], wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Run `wrapper(forward, module, *args)` in the place of each module's `forward(module, *args)`.

    What is wrapped may be wrapped again. Returns the function that undoes it.
    """

    def around(forward: Forward) -> Forward:
        return lambda module, *args, **options: wrapper(forward, module, *args, **options)

    before = [module.__dict__.get("forward") for module in modules]
    functions: list[Any] = [module.forward.__func__ for module in modules]  # type: ignore[attr-defined]
    # Methods of one function, not partials: a copied module gets its own, and compiled code can't tell layers apart.
    wrapped = {function: around(function) for function in set(functions)}
    for module, function in zip(modules, functions, strict=True):
        module.forward = MethodType(wrapped[function], module)

    def undo() -> None:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    return undo


def compiler_settings() -> Any:
    """A context in which layers may be compiled."""
    return torch._dynamo.config.patch(
        # An adapter is a hook, and layers share a graph: without guards on hooks, a layer would run another's.
        skip_nnmodule_hook_guards=False,
        # What a layer leaves in its context (keys that others read) it leaves in the forward pass.
        skip_fwd_side_effects_in_bwd_under_checkpoint=True,
        # A graph for each kind of layer, with and without adapters; past the limit the compiler would give up.
        recompile_limit=max(64, torch._dynamo.config.recompile_limit),
    )


@contextmanager
def training_blocks(model: GPT, *, compile: bool = False, checkpointing: Checkpointing = "none") -> Iterator[None]:
    """Within the context, the model's layers are compiled (equal layers share a graph) and keep fewer activations.

    checkpointing: "full", a layer keeps its input only; "selective", it keeps the products with weights too, the
    expensive part (Chen et al. 2016).
    """
    forward: Forward = DecoderLayer.forward
    if checkpointing != "none":
        forward = partial(_checkpointed, forward, checkpointing == "selective")
    if compile:  # around the checkpointing: the compiler knows what to keep, and what it made is no product to keep
        forward = torch.compile(forward)
    split: list[Any] = [layer.mlp for layer in model.layers if checkpointing == "full" and _can_be_split(layer.mlp)]
    undo_layers = wrap_forward(list(model.layers), partial(_training_forward, forward))
    undo_mlps = wrap_forward(split, _mlp_in_pieces)
    try:
        with compiler_settings():
            yield
    finally:
        undo_mlps()
        undo_layers()


def _training_forward(training: Forward, forward: Forward, layer: DecoderLayer, *args: Any) -> Tensor:
    """args: of `DecoderLayer.forward`, the layer's context third."""
    return (forward if isinstance(args[2], (CacheLayer, RecurrentLayer, StaticLayer)) else training)(layer, *args)


def _checkpointed(forward: Forward, selective: bool, layer: DecoderLayer, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(layer, *args)
    if torch.compiler.is_compiling():
        options = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if selective else {}
    else:
        options = {"context_fn": partial(_contexts, selective, layer)}
    return checkpoint(forward, layer, *args, use_reentrant=False, **options)  # type: ignore[return-value]


def _contexts(selective: bool, layer: DecoderLayer) -> tuple[Any, Any]:
    """What a layer's forward pass and its recomputation in the backward pass run in."""
    first, second = create_selective_checkpoint_contexts(_policy) if selective else (nullcontext(), nullcontext())
    return first, _recomputation(layer, second)


@contextmanager
def _recomputation(layer: DecoderLayer, context: Any) -> Iterator[None]:
    try:
        with context:
            yield
    finally:
        clear_routing(layer)  # or it would hold on to this pass, and be counted twice


# How many pieces an MLP's rows are split into, and where its weights are packed; the fewest rows of one, or products
# are slow; from which width on.
_PIECES, _PACKED_PIECES, _MIN_ROWS, _MIN_WIDTH = 4, 8, 512, 4096


def _mlp_in_pieces(forward: Forward, mlp: MLP, x: Tensor) -> Tensor:
    """Some rows of x (..., C) after the others: the backward pass holds the wide tensors of a few rows at a time.

    There are nine as wide with LoRA, and most of what a layer's backward pass holds. Packed weights are unpacked once
    for all pieces where this is compiled; three of them are held then, so the pieces are smaller.
    """
    rows = x.flatten(0, -2)
    n, count = rows.size(0), _PIECES
    if isinstance(mlp.up_proj, QuantizedLinear):  # not compiled, each piece would unpack them anew
        count = _PACKED_PIECES if torch.compiler.is_compiling() else 1
    while count > 1 and n < count * _MIN_ROWS:
        count //= 2
    if count == 1 or not torch.is_grad_enabled():
        return forward(mlp, x)
    pieces = rows.split([n // count] * (count - 1) + [n - n // count * (count - 1)])
    return torch.cat([forward(mlp, piece) for piece in pieces]).view(x.shape)


def _can_be_split(mlp: Any) -> bool:
    """Weights that are trained would get a gradient from each piece, each as large as the weight."""
    if type(mlp) is not MLP or mlp.up_proj.out_features < _MIN_WIDTH:
        return False
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return not any(layer is not None and layer.weight.requires_grad for layer in layers)


_SAVED: tuple[Any, ...] = (
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
    _SAVED += (torch.ops.mkldnn._linear_pointwise.default,)


def _policy(_context: Any, op: Any, *_args: Any, **_options: Any) -> CheckpointPolicy:
    saved = (
        op in _SAVED or getattr(op, "namespace", "") == "torch_attn"
    )  # varlen attention, registered on its first use
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
