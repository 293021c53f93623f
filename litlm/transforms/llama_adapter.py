"""LLaMA-Adapter (Zhang et al. 2023) and LLaMA-Adapter V2 (Gao et al. 2023), as LitGPT computes them.

adapter: all queries of a layer also attend to P learned positions, in a separate softmax, and each head adds the result
times its gate. Gates start at zero, so the model starts unchanged. The positions become keys and values through the
layer's own projections; keys get neither rope nor norm. (The paper has one gate per head too, PEFT one per layer.)
adapter_v2 also trains all norms, and every linear layer in the decoder layers becomes y = scale * (W x + bias). The
head has none: the loss uses its weight without running the layer.

Each adapter is a child named `adapter` of the module it adapts, used by a forward hook, so modules keep their classes
and their weights' names, and the same transform fits a quantized model. Adapters are fp32 in any model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from litlm.context import LayerContext
from litlm.model import GPT, Attention
from litlm.model.attention import PerHeadNorm
from litlm.model.rope import RopeTables
from litlm.ops.sdpa import AttentionSpec, attention
from litlm.settings import MethodSettings
from litlm.transforms.lora import Adapter


class LLaMAAdapter(Adapter):
    """Base of the adapters of this file."""


class Prompt(LLaMAAdapter):
    """Positions (P, C) that all queries attend to, and a gate for each head (H,)."""

    def __init__(self, length: int, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(length, n_embd, dtype=torch.float32))
        self.gate = nn.Parameter(torch.zeros(n_head, dtype=torch.float32))


class ScaleBias(LLaMAAdapter):
    """A scale and a bias (out,) of a linear layer's output."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=torch.float32))

    def forward(self, y: Tensor) -> Tensor:
        """The layer's output (..., out) -> (..., out)"""
        y = y + self.bias.to(y.dtype)
        # Not scale * y: bf16 has no number between 1 and 1.008, so small changes of a scale would have no effect.
        return torch.addcmul(y, y, (self.scale - 1).to(y.dtype))


class NormCopy(LLaMAAdapter):
    """An fp32 copy of a norm, which is trained in its place."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm).to(torch.float32).requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x (..., C), in x's dtype."""
        return self.norm(x.float()).to(x.dtype)


class _PromptedLayer(LayerContext):
    """What a layer attends through whose queries also attend to the layer's prompt."""

    def __init__(self, context: LayerContext, attn: Attention) -> None:
        self.context, self.attn = context, attn

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None, spec: AttentionSpec, **options: Any) -> Tensor:
        y = self.context.attend(q, k, v, spec, **options)  # (B, H, T, D)
        adapter, cached = self.attn.adapter, self.context.cached_weights
        assert isinstance(adapter, Prompt)
        if cached is None:
            prompt_kv = _keys_and_values(self.attn, adapter.prompt.to(q.dtype))
        else:
            if "prompt_kv" not in cached:
                cached["prompt_kv"] = _keys_and_values(self.attn, adapter.prompt.to(q.dtype))
            prompt_kv = cached["prompt_kv"]
        keys, values = prompt_kv.expand(-1, q.size(0), -1, -1, -1)
        attended = attention(q, keys, values, spec)
        return torch.addcmul(y, adapter.gate.to(y.dtype).view(1, -1, 1, 1), attended)


def _keys_and_values(attn: Attention, prompt: Tensor) -> Tensor:
    """(P, C) -> (2, 1, K, P, D)"""
    assert attn.k_proj is not None
    k = attn.k_proj(prompt[None])
    v = attn.split_heads(k if attn.v_proj is None else attn.v_proj(prompt[None]))
    v = v if attn.v_norm is None else attn.v_norm(v)
    return torch.stack((attn.split_heads(k), v)).transpose(2, 3)


def _attend_to_prompt(attn: Attention, args: tuple[Tensor, RopeTables, LayerContext]) -> Any:
    x, rotary, context = args
    return None if attn.adapter.disabled else (x, rotary, _PromptedLayer(context, attn))  # type: ignore[union-attr]


def _scale_and_shift(linear: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output if linear.adapter.disabled else linear.adapter(output)  # type: ignore[operator,union-attr]


def _replace_norm(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output if norm.adapter.disabled else norm.adapter(args[0])  # type: ignore[operator,union-attr]


def make_adapters(model: GPT, method: MethodSettings, *, v2: bool) -> dict[str, LLaMAAdapter]:
    """New adapters for the modules that the method adapts, by the names of these; the model is not changed.

    v2: those of adapter_v2. Raises ValueError if the model can't have them.
    """
    _check(model, method)
    made: dict[str, LLaMAAdapter] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            if int(name.split(".")[1]) >= method.start_layer:
                c = module.config
                made[name] = Prompt(method.prompt_length, c.n_embd, c.n_head).to(module.o_proj.weight.device)
        elif not v2:
            continue
        elif isinstance(module, nn.Linear) and name.startswith("layers."):
            made[name] = ScaleBias(module.out_features).to(module.weight.device)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm, PerHeadNorm)) and any(True for _ in module.parameters()):
            made[name] = NormCopy(module)
    return made


def _check(model: GPT, method: MethodSettings) -> None:
    family, n_layer = model.config.family, model.config.n_layer
    problems = []
    if any(isinstance(m, Adapter) for m in model.modules()):
        problems.append(
            "the model has adapters already; merge LoRA adapters first (litlm merge), or load the base model"
        )
    if method.start_layer >= n_layer:
        problems.append(f"start_layer={method.start_layer} must be less than the model's {n_layer} layers")
    layers = [model.config.layer(i) for i in range(method.start_layer, n_layer)]
    if any(c.attention.latent is not None for c in layers):
        problems.append(
            f"{family} has latent attention, whose keys and values a prompt can't share; use method lora instead"
        )
    if model.config.recurrent is not None:
        problems.append(f"{family} has recurrent layers, in which nothing attends to a prompt; use method lora instead")
    if readers := [i for i, c in enumerate(layers, method.start_layer) if c.kv_layer is not None]:
        problems.append(
            f"{family}: layers {readers[0]} to {readers[-1]} read another layer's keys and values and have no "
            "projections of their own for a prompt; use method lora instead"
        )
    if problems:
        raise ValueError(f"method {method.name} does not fit the model:\n" + "\n".join(f"- {p}" for p in problems))


def attach_adapters(model: GPT, adapters: dict[str, LLaMAAdapter]) -> None:
    """Add the adapters to the modules that they are named after."""
    for name, adapter in adapters.items():
        module = model.get_submodule(name)
        module.add_module("adapter", adapter.train(module.training))
        if isinstance(adapter, Prompt):
            module.register_forward_pre_hook(_attend_to_prompt)
        else:
            module.register_forward_hook(_scale_and_shift if isinstance(adapter, ScaleBias) else _replace_norm)


def apply_adapter(model: GPT, method: MethodSettings, *, v2: bool = False) -> list[str]:
    """Freeze the model and add the adapters of method adapter (v2: adapter_v2); returns the adapted modules' names.

    Raises ValueError if the model can't have them.
    """
    adapters = make_adapters(model, method, v2=v2)
    model.requires_grad_(False)
    attach_adapters(model, adapters)
    return list(adapters)


def prompt_adapters(model: nn.Module) -> Iterator[tuple[str, LLaMAAdapter]]:
    """(name of the adapted module, adapter) for each adapter of this file."""
    for name, module in model.named_modules():
        if isinstance(module, LLaMAAdapter):
            yield name.removesuffix(".adapter"), module
