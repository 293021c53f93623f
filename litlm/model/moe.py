"""Mixture of experts: a router picks a few MLPs for each token.

What is unusual: the experts of a layer are three stacked tensors, and tokens are sorted by expert, so that each expert
gets its tokens as contiguous rows. A grouped matrix product runs all experts at once where the device has one, and a
loop runs them one by one elsewhere. A router returns its choice as the module's output, so a forward hook can collect
statistics and balancing losses (`watch_routers`).

Shapes: N tokens, E experts, k experts per token, C embedding, I width of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import LayerConfig, MoEConfig
from litlm.model.mlp import MLP, Activation
from litlm.model.norm import make_norm
from litlm.ops.grouped import group_ends, grouped_linear
from litlm.ops.linear import Linear, linear


class Routing(NamedTuple):
    """What a router returns. weights and experts: (N, k), of the chosen experts; logits: (N, E), in fp32."""

    weights: Tensor
    experts: Tensor
    logits: Tensor


class Router(nn.Module):
    """Chooses k of E experts for each token, and the weights of their outputs."""

    last_routing: Routing | None = None  # of the current pass, for `watch_routers`

    def __init__(self, n_embd: int, config: MoEConfig, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        # Scales the router's own input (Gemma 4's router.scale); `MoEConfig.scale_input` is about the experts' input.
        self.input_scale = _weight(n_embd) if config.router_scales else None
        self.expert_scale = _weight(config.n_expert) if config.router_scales else None
        self.weight = _weight(config.n_expert, n_embd)
        self.bias = _weight(config.n_expert) if config.router_bias else None
        self.selection_bias: Tensor | None
        self.register_buffer("selection_bias", torch.zeros(config.n_expert) if config.selection_bias else None)

    def forward(self, x: Tensor) -> Routing:
        """(N, C) -> each token's experts and their weights"""
        # In fp32 whatever the model's dtype: rounding would change which experts are chosen.
        x = x.float()
        if self.input_scale is not None:
            x = F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.input_scale.float() * x.size(-1) ** -0.5
        logits = linear(x, self.weight.float(), None if self.bias is None else self.bias.float())
        if self.config.scoring == "sparsemixer":
            return Routing(*_sparsemixer(logits, self.config.jitter), logits)
        scores = logits.softmax(-1) if self.config.scoring == "softmax" else logits.sigmoid()
        ranking = scores if self.config.select_by == "scores" else logits
        experts = self._choose(ranking if self.selection_bias is None else ranking + self.selection_bias.float())
        weights = scores.gather(-1, experts)
        if self.config.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + self.config.normalize_eps)
        if self.config.scale != 1:
            weights = weights * self.config.scale
        if self.expert_scale is not None:
            weights = weights * self.expert_scale.float()[experts]
        return Routing(weights, experts, logits)

    @torch.no_grad()
    def _choose(self, scores: Tensor) -> Tensor:
        """(N, E) -> (N, k): the best experts, of a token's best groups where there are groups (DeepSeek-V3, 2024)."""
        c = self.config
        if c.n_group > 1:
            groups = scores.view(-1, c.n_group, c.n_expert // c.n_group)  # (N, groups, E / groups)
            group_scores = groups.amax(-1) if c.group_score == "max" else groups.topk(2, -1).values.sum(-1)
            best = group_scores.topk(c.n_group_per_token, -1).indices
            excluded = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best, False)
            scores = groups.masked_fill(excluded[:, :, None], -torch.inf).flatten(1)
        return scores.topk(c.n_expert_per_token, -1).indices


def _sparsemixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Phi-3.5-MoE's top-2 routing (Liu et al. 2024) without its training noise: each of the two experts is weighted by
    a softmax over those whose logits are close to its own. (N, E) -> weights (N, 2), experts (N, 2)"""
    weights, experts = [], []
    remaining = logits
    for _ in range(2):
        best, expert = remaining.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > 2 * jitter
        weights.append(remaining.masked_fill(far, -torch.inf).softmax(-1).gather(-1, expert))
        experts.append(expert)
        remaining = remaining.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, -1), torch.cat(experts, -1)


class Experts(nn.Module):
    """E gated or plain MLPs as stacked weights, each (E, out, in) like a linear layer's."""

    def __init__(self, layer: LayerConfig, config: MoEConfig) -> None:
        super().__init__()
        self.act = Activation(layer.mlp)
        E, size, gated = config.n_expert, config.intermediate_size, layer.mlp.kind == "gated"
        self.gate_proj = _weight(E, size, layer.n_embd) if gated else None
        self.up_proj = _weight(E, size, layer.n_embd)
        self.down_proj = _weight(E, layer.n_embd, size)
        self.gate_bias = _weight(E, size) if config.expert_bias and gated else None
        self.up_bias = _weight(E, size) if config.expert_bias else None
        self.down_bias = _weight(E, layer.n_embd) if config.expert_bias else None

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """x: (M, C), rows sorted by expert; experts: (M,), the expert of each row -> (M, C)"""
        ends = group_ends(experts, self.up_proj.size(0))
        up = grouped_linear(x, self.up_proj, ends, experts, self.up_bias)
        gate = None
        if self.gate_proj is not None:
            gate = grouped_linear(x, self.gate_proj, ends, experts, self.gate_bias)
        return grouped_linear(self.act(gate, up), self.down_proj, ends, experts, self.down_bias)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


class _Permute(torch.autograd.Function):
    """tokens (N, C) -> (N k, C): a copy of a token for each of its k experts, sorted by expert.

    order: (N k,), the permutation that sorts the choices. Because it is one, the backward pass (and `_Unpermute`'s)
    copies rows and sums over k in a fixed order; autograd's own would use atomic adds, whose order varies.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return tokens[order // k]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (order,) = ctx.saved_tensors
        rows = torch.empty_like(grad).index_copy_(0, order, grad)
        return rows.unflatten(0, (-1, ctx.k)).sum(1), None, None


class _Unpermute(torch.autograd.Function):
    """Undoes `_Permute`'s sorting: rows (N k, C) by expert -> (N k, C) by token."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.empty_like(rows).index_copy_(0, order, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (order,) = ctx.saved_tensors
        return grad[order], None


class MoE(nn.Module):
    """The weighted sum of a token's experts, plus the shared expert, an MLP that every token uses."""

    def __init__(self, layer: LayerConfig, config: MoEConfig) -> None:
        super().__init__()
        self.config = config

        def norm(wanted: bool = True) -> nn.Module:
            return make_norm(layer.norm, layer.n_embd) if config.own_norms and wanted else nn.Identity()

        self.router = Router(layer.n_embd, config, layer.norm.eps)
        self.norm = norm()
        self.experts = Experts(layer, config)
        self.post_norm = norm()
        has_shared = config.shared_intermediate_size > 0
        self.shared_norm = norm(has_shared)  # of the shared expert's input; `Config.shared_norm` is another thing
        self.shared = MLP(layer, config.shared_intermediate_size) if has_shared else None
        self.post_shared_norm = norm(has_shared)
        self.shared_gate = Linear(layer.n_embd, 1, bias=False) if config.shared_gate else None
        self.output_norm = make_norm(layer.norm, layer.n_embd) if config.output_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        tokens = x.flatten(0, -2)  # (N, C)
        weights, experts, _ = self.router(tokens)
        weights = weights.to(x.dtype)
        normed, k = self.norm(tokens), experts.size(1)
        sorted_experts, order = experts.flatten().sort(stable=True)  # (N * k,)
        compiled = torch.compiler.is_compiling()  # the compiler derives the backward passes itself
        rows: Tensor = normed[order // k] if compiled else _Permute.apply(normed, order, k)  # type: ignore[assignment]
        if self.config.scale_input:
            rows = rows * weights.flatten()[order, None]
        y: Tensor = self.experts(rows, sorted_experts)
        # Back to the tokens' order, so that the sum over k has the same order in every run.
        y = y[order.argsort()] if compiled else _Unpermute.apply(y, order)  # type: ignore[assignment]
        y = y.unflatten(0, (-1, k))  # (N, k, C)
        y = self.post_norm(y.sum(1) if self.config.scale_input else (y * weights[..., None]).sum(1))
        if self.shared is not None:
            shared = self.post_shared_norm(self.shared(self.shared_norm(tokens)))
            y = y + (shared if self.shared_gate is None else self.shared_gate(tokens).sigmoid() * shared)
            y = y / 2 if self.config.shared_average else y
        y = y if self.output_norm is None else self.output_norm(y)
        return y.view_as(x)


# --- losses and statistics -----------------------------------------------------------------------------------------


@dataclass
class RouterWatch:
    """The choices of a model's routers since `clear`, one `Routing` per layer and pass."""

    routings: list[Routing] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all passes so far."""
        self.routings.clear()

    def balance_loss(self, mask: Tensor | None = None) -> Tensor:
        """E * sum over experts of (times chosen per token) * (mean probability), over all layers' tokens together.

        The load-balancing loss of Switch Transformers (Fedus et al. 2021, eq. 4), extended to k experts a token as in
        transformers: k when perfectly balanced. mask: (B, T), True for the tokens that count, the same for every pass
        since `clear`. Raises ValueError if no router ran.
        """
        logits, experts = self._all(mask)
        n_expert = logits.size(-1)
        share = F.one_hot(experts, n_expert).sum(1).float().mean(0)  # (E,)
        return n_expert * (share * logits.softmax(-1).mean(0)).sum()

    def z_loss(self, mask: Tensor | None = None) -> Tensor:
        """Mean of logsumexp(logits) squared (Zoph et al. 2022, eq. 5), which keeps router logits small.

        mask: as of `balance_loss`. Raises ValueError if no router ran.
        """
        return self._all(mask)[0].logsumexp(-1).square().mean()

    def _all(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """logits (N, E) and experts (N, k) of all layers' tokens that count."""
        if not self.routings:
            raise ValueError(
                "no router ran with gradients on since `clear`, so there is nothing to compute a loss from"
            )
        index = slice(None) if mask is None else mask.flatten()
        return torch.cat([r.logits[index] for r in self.routings]), torch.cat([r.experts[index] for r in self.routings])

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Scalars for a log, still on the device; empty if there was no router.

        router_max_load: the busiest expert's load relative to an even share, in the worst layer. router_unused: the
        fraction of experts without a token. router_entropy: of the probabilities, 1 if uniform, mean over layers.
        """
        if not self.routings:
            return {}
        loads, entropies = [], []
        for routing in self.routings:
            n_expert = routing.logits.size(-1)
            experts, p = routing.experts.flatten(), routing.logits.softmax(-1)
            load = p.new_zeros(n_expert, dtype=torch.float32)  # bincount would wait for the device
            loads.append(load.scatter_add_(0, experts, torch.ones_like(experts, dtype=torch.float32)) / experts.numel())
            entropies.append(-(p * p.clamp(min=1e-30).log()).sum(-1).mean() / math.log(n_expert))
        load = torch.stack(loads)
        return {
            "router_max_load": load.max() * load.size(1),
            "router_unused": (load == 0).float().mean(),
            "router_entropy": torch.stack(entropies).mean(),
        }


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[RouterWatch]:
    """Within the context, collect the routings of passes with gradients on."""
    watch = RouterWatch()
    routers = [module for module in model.modules() if isinstance(module, Router)]

    # Collected after the pass: appending to one list would give every layer a compiled graph of its own.
    def store(router: nn.Module, _args: Any, routing: Any) -> None:
        if torch.is_grad_enabled():  # a reference model's routings (DPO) don't count
            router.last_routing = routing

    def collect(*_: Any) -> None:
        watch.routings += [router.last_routing for router in routers if router.last_routing is not None]
        clear_routing(model)

    hooks = [router.register_forward_hook(store) for router in routers]
    hooks += [model.register_forward_pre_hook(lambda *_: clear_routing(model)), model.register_forward_hook(collect)]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        clear_routing(model)


def clear_routing(module: nn.Module) -> None:
    """Drop the routings stored in routers, such as those of a layer recomputed in the backward pass."""
    for router in module.modules():
        if isinstance(router, Router):
            router.last_routing = None
