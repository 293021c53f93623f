"""LoRA (Hu et al. 2021): y = W x + scale B A x with W frozen. Also DoRA, adapters of experts and embeddings, and
modules trained whole beside them.

An adapter is a child named `lora` of the layer it adapts, and a forward hook adds its output to the layer's. So the
layer keeps its class and its weight's name, and the same transform fits a quantized or sharded layer. The experts of a
mixture get one adapter per stacked projection. Adapters are fp32 in any model: bf16 would lose most small updates.

An adapter is called as its layer (layers.0.attn.q_proj) or stacked weight (layers.0.mlp.experts.up_proj). If head and
embedding are tied, an adapter on one is for that side alone, as in PEFT: the model then has both `embed` and `lm_head`,
over one frozen weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.model import GPT
from litlm.model.moe import Experts
from litlm.ops.grouped import group_ends, grouped_linear
from litlm.ops.linear import Linear, linear
from litlm.settings import MethodSettings
from litlm.transforms.quantize import QuantizedLinear, QuantizedStack, weight_of
from litlm.transforms.resize import untie

ALL_LINEAR = "all-linear"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
NOT_MERGEABLE = (
    "an adapter that can't be merged into weights; use the model and its adapter together (MODEL --adapter DIR), or "
    "train with method lora to merge"
)


class Adapter(nn.Module):
    """What is trained beside a frozen module, in fp32. disabled: not used."""

    disabled = False


class LoRA(Adapter):
    """The low-rank adapter of a weight with `shape` (out, in); for stacked experts all shapes have E in front.

    A: (r, in), B: (out, r); B starts at zero, so the model starts unchanged.

    rslora: whether the scale was chosen as alpha / sqrt(r) (Kalajdzievski 2023), for saving. magnitude: DoRA's (out,),
    else None. saves_base: the layer's weight came with the adapter and is not the base model's, so it is saved with it.
    """

    magnitude: nn.Parameter | None
    saves_base = False
    norm_dim = -1  # DoRA's magnitudes are the norms of rows

    def __init__(
        self, shape: Sequence[int], r: int, scale: float, dropout: float = 0.0, *, rslora: bool = False
    ) -> None:
        super().__init__()
        *stack, out_features, in_features = shape
        self.scale, self.dropout, self.rslora = scale, dropout, rslora
        self.A = nn.Parameter(torch.empty(*stack, r, in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.empty(*stack, out_features, r, dtype=torch.float32))
        self.register_parameter("magnitude", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A from PEFT's distribution, and zero B."""
        bound = self.A.size(-1) ** -0.5
        nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out): what is added to the layer's output."""
        if not (self.dropout and self.training):
            return self._product(x)
        if torch.compiler.is_compiling():  # the compiler decides itself what to keep for the backward pass
            return self._product(F.dropout(x, self.dropout))
        return _DropLoRA.apply(x, self.A, self.B, self.scale, self.dropout)  # type: ignore[return-value]

    def _product(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.A.to(x.dtype)), (self.B * self.scale).to(x.dtype))

    def grouped(self, x: Tensor, ends: Tensor, experts: Tensor) -> Tensor:
        """`forward` for rows sorted by expert (M, in) -> (M, out); arguments as `grouped_linear`."""
        x = F.dropout(x, self.dropout, self.training)
        low_rank = grouped_linear(x, self.A.to(x.dtype), ends, experts)
        return grouped_linear(low_rank, (self.B * self.scale).to(x.dtype), ends, experts)

    def dora(self, x: Tensor, output: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """DoRA (Liu et al. 2024): the layer's `output` (..., out) for x (..., in), with its weight W replaced by
        m W' / |W'|, where W' is W with the adapter and |W'| has the norm of each row.
        """
        assert self.magnitude is not None
        # The norm counts as a constant (section 4.3 there), so W' itself needs no gradient.
        factor = self.magnitude / self.weight_norm(weight)
        if self.dropout and self.training:  # as in PEFT: W gets all inputs, the change by DoRA dropped ones
            x = F.dropout(x, self.dropout)
            base = linear(x, weight.to(x.dtype))
        else:
            base = output if bias is None else output - bias
        return output + (factor - 1).to(output.dtype) * base + factor.to(output.dtype) * self._product(x)

    @torch.no_grad()
    def weight_norm(self, weight: Tensor) -> Tensor:
        """(out,) in fp32: the norm of each row of the weight (out, in) with the adapter added."""
        with torch.autocast(weight.device.type, enabled=False):
            return (weight.float() + self.delta_weight()).norm(dim=self.norm_dim)

    def delta_weight(self) -> Tensor:
        """(out, in) in fp32: what the adapter adds to the weight."""
        return self.scale * (self.B.float() @ self.A.float())

    def merged_weight(self, weight: Tensor) -> Tensor:
        """(out, in) in fp32: the weight with this adapter in it."""
        if self.magnitude is None:
            return weight.float() + self.delta_weight()
        factor = (self.magnitude / self.weight_norm(weight)).unsqueeze(self.norm_dim)
        return factor * (weight.float() + self.delta_weight())


class EmbeddingLoRA(LoRA):
    """The adapter of an embedding (V, C): scale B[token] A is added to what it looks up. A: (r, C), B: (V, r).

    As in PEFT, there is no dropout, A is drawn from a normal distribution, and DoRA has one norm per column (C,).
    """

    norm_dim = 0

    def reset_parameters(self) -> None:
        """Draw A from PEFT's distribution, and zero B."""
        nn.init.normal_(self.A)
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (...) -> (..., C) in fp32."""
        return linear(F.embedding(x, self.B), self.A.t()) * self.scale


class _DropLoRA(torch.autograd.Function):
    """scale B A dropout(x) for x (..., in) -> (..., out).

    Saves a boolean mask, and x itself, which other adapters share. Autograd would save the mask in x's dtype and the
    masked x, once per adapter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, p: float) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
        low_rank = linear(x * mask, a.to(x.dtype)) * (scale / (1 - p))  # (..., r)
        ctx.save_for_backward(x, mask, low_rank, a, b)
        ctx.factor = scale / (1 - p)
        return linear(low_rank, b.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mask, low_rank, a, b = ctx.saved_tensors
        grad_low_rank = (grad @ b.to(grad.dtype)) * ctx.factor  # (..., r)
        grad_a = grad_low_rank.reshape(-1, a.size(0)).T @ (x * mask).reshape(-1, a.size(1)).to(grad.dtype)
        grad_b = grad.reshape(-1, b.size(0)).T @ low_rank.reshape(-1, b.size(1)).to(grad.dtype)
        grad_x = (grad_low_rank @ a.to(grad.dtype)).mul_(mask) if ctx.needs_input_grad[0] else None
        return None if grad_x is None else grad_x.to(x.dtype), grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


class AdaptedExperts(Experts):
    """Experts with adapters, in place of the `Experts` whose weights it takes over; `lora` has one adapter for each
    adapted projection. (No hook reaches the products inside of a stack.)
    """

    lora: nn.ModuleDict

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """(M, C) rows sorted by expert, and the expert (M,) of each -> (M, C)"""
        ends = group_ends(experts, self.up_proj.size(0))
        up = self._project("up_proj", x, ends, experts, self.up_bias)
        gate = None if self.gate_proj is None else self._project("gate_proj", x, ends, experts, self.gate_bias)
        return self._project("down_proj", self.act(gate, up), ends, experts, self.down_bias)

    def _project(self, name: str, x: Tensor, ends: Tensor, experts: Tensor, bias: Tensor | None) -> Tensor:
        y = grouped_linear(x, getattr(self, name), ends, experts, bias)
        if name not in self.lora or self.lora[name].disabled:
            return y
        return y + self.lora[name].grouped(x, ends, experts)  # type: ignore[operator]


def _replace_experts(model: nn.Module, name: str, cls: type[Experts]) -> Any:
    """Put experts of another class, with the very same parameters, in the place of the module `name`."""
    new = cls.__new__(cls)
    new.__dict__ = {key: copy.copy(value) for key, value in vars(model.get_submodule(name)).items()}
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, new)
    return new


def _add_lora(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    lora: LoRA = module.lora  # type: ignore[assignment]
    if lora.disabled:
        return output
    if lora.magnitude is None:
        return output + lora(args[0])
    return lora.dora(args[0], output, weight_of(module), module.bias)


def _add_embedding_lora(module: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    lora: EmbeddingLoRA = module.lora  # type: ignore[assignment]
    if lora.disabled:
        return output
    y = output + lora(args[0])  # in fp32
    if lora.magnitude is not None:
        y = lora.magnitude / lora.weight_norm(module.weight) * y
    return y.to(output.dtype)


def attach(
    layer: nn.Linear | nn.Embedding,
    r: int,
    scale: float,
    dropout: float = 0.0,
    *,
    rslora: bool = False,
    dora: bool = False,
) -> LoRA:
    """Add an adapter to a linear layer or embedding."""
    options: Any = dict(r=r, scale=scale, dropout=dropout, rslora=rslora)
    if isinstance(layer, nn.Embedding):
        lora = EmbeddingLoRA((layer.num_embeddings, layer.embedding_dim), **options)
        layer.register_forward_hook(_add_embedding_lora)
    else:
        lora = LoRA((layer.out_features, layer.in_features), **options)
        layer.register_forward_hook(_add_lora)
    lora.to(layer.weight.device).train(layer.training)
    if dora:
        lora.magnitude = nn.Parameter(lora.weight_norm(weight_of(layer)))
    layer.add_module("lora", lora)
    return lora


def attach_to_experts(
    model: nn.Module, name: str, r: int, scale: float, dropout: float = 0.0, *, rslora: bool = False
) -> LoRA:
    """Add an adapter to a stacked projection of experts, called `name` in the model (layers.0.mlp.experts.up_proj)."""
    owner, _, projection = name.rpartition(".")
    experts: Any = model.get_submodule(owner)
    if not isinstance(experts, AdaptedExperts):
        experts = _replace_experts(model, owner, AdaptedExperts)
        experts.add_module("lora", nn.ModuleDict())
    weight: Tensor | QuantizedStack = getattr(experts, projection)
    lora = LoRA(weight.shape, r, scale, dropout, rslora=rslora).to(weight.device)
    experts.lora[projection] = lora.train(experts.training)
    return lora


def is_adapted(layer: nn.Module) -> bool:
    """Whether the layer computes more than the product with its weight: adapters are children of their layer."""
    return any(name != "original" for name, _ in layer.named_children())


# --- targets -------------------------------------------------------------------------------------------------------


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def name_matches(full: str, pattern: str) -> bool:
    """Whether `pattern` means what is called `full`: its whole name, the end of it, or with * and ?."""
    return full == pattern or full.endswith("." + pattern) or fnmatchcase(full, pattern)


def _expert_weights(model: nn.Module) -> list[str]:
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, Experts)]
    return [f"{n}.{p}" for n, m in found for p in PROJECTIONS if getattr(m, p) is not None]


def targets(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The modules that `names` mean: linear layers, and stacked weights of experts if a name mentions experts.

    Modules outside the decoder layers, such as embed and lm_head, are only meant by their exact name, as in PEFT. A
    tied model has an lm_head here. Raises ValueError for a name that matches nothing.
    """
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    linear = [n for n in layers if n.startswith("layers.")]
    outside = [n for n in layers if n not in linear] + ["lm_head"] * _is_tied(model)
    stacked = _expert_weights(model)

    def hits(name: str) -> set[str]:
        if name == ALL_LINEAR:
            return set(linear)
        if name in outside:
            return {name}
        found = {n for n in linear if name_matches(n, name)}
        # `down_proj` alone means the linear layers, as in PEFT; experts must be named.
        if _is_pattern(name) or "experts" in name.split("."):
            found |= {n for n in stacked if name_matches(n, name) or name_matches(n.rpartition(".")[0], name)}
        return found

    chosen = {name: hits(name) for name in names}
    if unused := [name for name, found in chosen.items() if not found]:
        known = ", ".join(dict.fromkeys(n.rsplit(".", 1)[-1] for n in linear))
        raise ValueError(
            f"targets: no linear layer is called {', '.join(map(repr, unused))}; this model has {known} (or all-linear)"
            + (", and experts" if stacked else "")
            + f", and outside of its layers {', '.join(outside)}"
        )
    matched = set().union(*chosen.values())
    return [n for n in (*outside, *linear, *stacked) if n in matched]


def _is_tied(model: nn.Module) -> bool:
    return isinstance(model, GPT) and model.lm_head is None


def whole_modules(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The modules with own weights in what `modules_to_save` names.

    Raises ValueError for a name that matches nothing.
    """
    holders = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    outer = list(dict.fromkeys(n for n, m in model.named_modules() if n and any(True for _ in m.parameters())))

    def hits(name: str) -> set[str]:
        return {name} if name in outer else {n for n in outer if name_matches(n, name)}  # norm is the last one, not any

    chosen = {name: hits(name) for name in names}
    if unused := [name for name, found in chosen.items() if not found]:
        tops = ", ".join(dict.fromkeys(n.split(".")[0] for n in holders))
        inner = ", ".join(dict.fromkeys(n.rsplit(".", 1)[-1] for n in holders if n.startswith("layers.")))
        raise ValueError(
            f"modules_to_save: nothing is called {', '.join(map(repr, unused))}; this model has {tops}, "
            f"and in its layers {inner}"
            + (". Its head is tied to embed: name that" if "lm_head" in unused and "embed" in holders else "")
        )
    matched = set().union(*chosen.values()) if chosen else set()
    return [n for n in holders if any(n == m or n.startswith(m + ".") for m in matched)]


def apply_lora(model: nn.Module, method: MethodSettings) -> list[str]:
    """Freeze the model and add an adapter to each layer that `method.targets` names; returns their names.

    What `method.modules_to_save` names is trained whole. An adapter on one side of tied embeddings unties them. Raises
    ValueError if the model can't have these adapters.
    """
    if any(isinstance(m, (LoRA, OriginalWeights)) for m in model.modules()):
        raise ValueError("the model has LoRA adapters already; merge them first (litlm merge)")
    names, whole = targets(model, method.targets), whole_modules(model, method.modules_to_save)
    problems = []
    inside = [n for n in names if n in whole or n.rpartition(".")[0] in whole and n in _expert_weights(model)]
    if inside and method.targets != (ALL_LINEAR,):
        problems.append(f"{inside[0]} is in both targets and modules_to_save; leave it out of one")
    names = [n for n in names if n not in inside]
    stacked = set(_expert_weights(model)).intersection(names)
    if method.dora and stacked:
        problems.append("dora=True is for linear layers, and targets names experts; leave out one of them")
    if odd := [n for n in whole if isinstance(model.get_submodule(n), (QuantizedLinear, QuantizedStack))]:
        problems.append(f"modules_to_save names {odd[0]}, which is quantized and can't be trained whole")
    if problems:
        raise ValueError("LoRA can't be applied:\n" + "\n".join(f"- {p}" for p in problems))
    if isinstance(model, GPT) and {"embed", "lm_head"}.intersection(names):
        untie(model, shared="embed" not in whole)
    model.requires_grad_(False)
    scale = method.alpha / (math.sqrt(method.r) if method.rslora else method.r)
    for name in names:
        if name in stacked:
            attach_to_experts(model, name, method.r, scale, method.dropout, rslora=method.rslora)
        else:
            layer = model.get_submodule(name)
            assert isinstance(layer, (nn.Linear, nn.Embedding))
            attach(layer, method.r, scale, method.dropout, rslora=method.rslora, dora=method.dora)
    for name in whole:
        train_whole(model.get_submodule(name))
    return names


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRA]]:
    """(name, adapter) for each adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            yield name.removesuffix(".lora").replace(".lora.", "."), module


# --- modules trained whole -----------------------------------------------------------------------------------------


class OriginalWeights(nn.Module):
    """The weights that a module had before it was trained whole; a child of it named `original`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, p in module.named_parameters(recurse=False):
            self.register_buffer(name, p.detach().clone(), persistent=False)


def train_whole(module: nn.Module) -> None:
    """Make the module's own weights trainable, and remember the originals."""
    module.add_module("original", OriginalWeights(module))
    for p in module.parameters(recurse=False):
        p.requires_grad_(True)


def trained_whole(model: nn.Module) -> list[str]:
    """The names of the modules that are trained whole."""
    return [name.rpartition(".")[0] for name, m in model.named_modules() if isinstance(m, OriginalWeights)]


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """In the block, the model computes what it did before it was adapted. Don't train in it."""
    adapters = [m for m in model.modules() if isinstance(m, Adapter)]
    swapped = [
        (p, original)
        for name in trained_whole(model)
        for (key, p) in model.get_submodule(name).named_parameters(recurse=False)
        if (original := getattr(model.get_submodule(name).original, key)) is not None
    ]
    trained = [p.data for p, _ in swapped]
    try:
        for adapter in adapters:
            adapter.disabled = True
        for p, original in swapped:
            p.data = original.to(p.dtype)  # the model may have become bf16 since
        yield
    finally:
        for adapter in adapters:
            adapter.disabled = False
        for (p, _), data in zip(swapped, trained, strict=True):
            p.data = data


# --- merging -------------------------------------------------------------------------------------------------------


def _base_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without adapters, and with quantized weights dequantized."""
    state = {name: t for name, t in model.state_dict().items() if ".lora." not in name}
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedLinear, QuantizedStack)):
            for key in [k for k in state if k.startswith(name + ".") and k != f"{name}.bias"]:
                del state[key]
            state[name if isinstance(module, QuantizedStack) else f"{name}.weight"] = weight_of(module).detach()
    return state


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, with its shapes, and all adapters merged (in fp32, then rounded once) into it."""
    state = _base_state(model)
    for name, lora in adapters(model):
        key = name if name in state else f"{name}.weight"
        weight = state[key]
        state[key] = lora.merged_weight(weight.to(lora.A.device)).to(weight.device, weight.dtype)
    return state


def refuse_to_merge(model: nn.Module) -> None:
    """Raises ValueError if the model has adapters other than LoRA, which `merged_state` would leave out."""
    others = {type(m).__name__ for m in model.modules() if isinstance(m, Adapter) and not isinstance(m, LoRA)}
    if others:
        raise ValueError(f"the model has {' and '.join(sorted(others))}, {NOT_MERGEABLE}")


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Merge every adapter into its weight and remove it. Adapted weights that were quantized are then plain."""
    for name, lora in list(adapters(model)):
        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        if isinstance(parent, AdaptedExperts):
            weight = getattr(parent, leaf)
            if isinstance(weight, QuantizedStack):
                plain = nn.Parameter(weight_of(weight), requires_grad=False)
                delattr(parent, leaf)
                parent.register_parameter(leaf, plain)
                weight = plain
            weight.copy_(lora.merged_weight(weight))
            del parent.lora[leaf]
            if not parent.lora:
                del parent.lora
                _replace_experts(model, owner, Experts)
            continue
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, nn.Embedding))
        merged = lora.merged_weight(weight_of(layer))
        del layer.lora
        for key, hook in list(layer._forward_hooks.items()):
            if hook in (_add_lora, _add_embedding_lora):
                del layer._forward_hooks[key]
        if isinstance(layer, QuantizedLinear):
            plain = Linear(layer.in_features, layer.out_features, bias=False, device="meta").train(layer.training)
            plain.weight = nn.Parameter(merged.to(weight_of(layer).dtype), requires_grad=False)
            plain.bias = layer.bias
            setattr(parent, leaf, plain)
        else:
            # A new parameter: the old one may be shared with the layer that this one was tied to.
            layer.weight = nn.Parameter(merged.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    for name in trained_whole(model):
        del model.get_submodule(name).original
