"""Mixture of experts against formulas in float64 that compute every expert for every token, and against transformers'
balancing loss; on a CUDA device, the grouped product in bf16 as well.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import cases
from parity.case import Case
from rounding import within_roundoff
from torch import Tensor

from litlm.config import Config, MLPConfig, MoEConfig
from litlm.model.moe import MoE, Router, RouterWatch, Routing, watch_routers
from litlm.ops.grouped import group_ends, grouped_linear

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def close(actual: Tensor, expected: Tensor, tolerance: float, floor: float = 1e-12) -> None:
    """The largest difference, against the largest expected value (or floor)."""
    assert actual.shape == expected.shape
    worst = (actual.double().cpu() - expected.double().cpu()).abs().max().item()
    largest = max(expected.abs().max().item(), floor)
    assert worst <= tolerance * largest, f"off by {worst:.1e}, of {largest:.1e}"


# --- the formula -----------------------------------------------------------------------------------------------------


def _weights(scores: Tensor, choice: Tensor, c: MoEConfig) -> dict[int, Tensor]:
    """Expert -> weight for one token, by sorting Python lists."""
    allowed = set(range(c.n_expert))
    if c.n_group > 1:
        size = c.n_expert // c.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]

        def worth(group: list[int]) -> float:
            best = sorted((choice[e].item() for e in group), reverse=True)
            return best[0] if c.group_score == "max" else best[0] + best[1]

        allowed = {e for g in sorted(groups, key=worth, reverse=True)[: c.n_group_per_token] for e in g}
    ranked = sorted(allowed, key=lambda e: choice[e].item(), reverse=True)
    chosen = ranked[: c.n_expert_per_token]
    if len(ranked) > len(chosen):
        margin = choice[chosen[-1]] - choice[ranked[len(chosen)]]
        assert margin > 1e-5, "a near tie; choose another seed"
    total = torch.stack([scores[e] for e in chosen]).sum() if c.normalize else 1.0
    return {e: scores[e] / total * c.scale for e in chosen}


def _sparsemixer(logits: Tensor, jitter: float) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for _ in range(2):
        left = [e for e in range(len(logits)) if e not in found]
        best = max(left, key=lambda e: logits[e].item())
        near = [e for e in left if (logits[best] - logits[e]) / max(abs(logits[e]), logits[best]) <= 2 * jitter]
        found[best] = (logits[best] - torch.stack([logits[e] for e in near]).logsumexp(0)).exp()
    return found


def _act(gate: Tensor, up: Tensor, mlp: MLPConfig) -> Tensor:
    if mlp.activation == "clamped":
        gate, up = gate.clamp(max=mlp.limit), up.clamp(-mlp.limit, mlp.limit)
        return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
    return gate / (1 + torch.exp(-gate)) * up


def _dense(x: Tensor, p: dict[str, Tensor], c: MoEConfig, mlp: MLPConfig) -> Tensor:
    """x: (N, C) and all parameters in float64."""
    logits = x @ p["router.weight"].T + p.get("router.bias", torch.zeros(()))
    scores = logits.softmax(-1) if c.scoring == "softmax" else 1 / (1 + torch.exp(-logits))
    choice = scores + p.get("router.selection_bias", torch.zeros(()))
    rows = []
    for n in range(len(x)):
        weights = _sparsemixer(logits[n], c.jitter) if c.scoring == "sparsemixer" else _weights(scores[n], choice[n], c)
        row = torch.zeros_like(x[n])
        for e in range(c.n_expert):
            weight = weights.get(e, torch.zeros((), dtype=x.dtype))
            taken = x[n] * weight if c.scale_input else x[n]
            parts = []
            for name in ("gate", "up"):
                part = p[f"experts.{name}_proj"][e] @ taken
                parts.append(part + p[f"experts.{name}_bias"][e] if c.expert_bias else part)
            y = p["experts.down_proj"][e] @ _act(parts[0], parts[1], mlp)
            y = y + p["experts.down_bias"][e] if c.expert_bias else y
            if e in weights:
                row = row + (y if c.scale_input else y * weight)
        if c.shared_intermediate_size:
            gate, up = p["shared.gate_proj.weight"] @ x[n], p["shared.up_proj.weight"] @ x[n]
            y = p["shared.down_proj.weight"] @ _act(gate, up, mlp)
            row = row + (y / (1 + torch.exp(-p["shared_gate.weight"] @ x[n])) if c.shared_gate else y)
        rows.append(row)
    return torch.stack(rows)


_SMALL: dict[str, Any] = dict(n_expert=6, n_expert_per_token=2, intermediate_size=11)
KINDS: dict[str, tuple[MoEConfig, MLPConfig]] = {
    "softmax": (MoEConfig(**_SMALL), MLPConfig()),
    "softmax-raw": (
        MoEConfig(n_expert=5, n_expert_per_token=2, intermediate_size=11, normalize=False, scale=3.5), MLPConfig(),
    ),
    "softmax-groups": (
        MoEConfig(**_SMALL, normalize=False, n_group=3, n_group_per_token=2, shared_intermediate_size=7), MLPConfig(),
    ),
    "softmax-shared-gate": (
        MoEConfig(**_SMALL, shared_intermediate_size=13, shared_gate=True, selection_bias=True), MLPConfig(),
    ),
    "sigmoid-bias": (MoEConfig(**_SMALL, scoring="sigmoid", selection_bias=True, scale=2.5), MLPConfig()),
    "sigmoid-groups": (
        MoEConfig(
            n_expert=9, n_expert_per_token=4, intermediate_size=10, scoring="sigmoid", selection_bias=True, n_group=3,
            n_group_per_token=2, group_score="top2", shared_intermediate_size=9,
        ),
        MLPConfig(),
    ),
    "one-of-three": (MoEConfig(n_expert=3, n_expert_per_token=1, intermediate_size=5), MLPConfig()),
    "all-of-four": (MoEConfig(n_expert=4, n_expert_per_token=4, intermediate_size=5, router_bias=True), MLPConfig()),
    "scaled-input": (
        MoEConfig(**_SMALL, scoring="sigmoid", normalize=False, scale_input=True, shared_intermediate_size=11),
        MLPConfig(),
    ),
    "biases-clamped": (
        MoEConfig(**_SMALL, router_bias=True, expert_bias=True), MLPConfig(activation="clamped", limit=0.8),
    ),
    "sparsemixer": (MoEConfig(**_SMALL, scoring="sparsemixer", jitter=0.2), MLPConfig()),
}  # fmt: skip


def _module(kind: str, seed: int, n_embd: int = 14, **changes: Any) -> tuple[MoE, MoEConfig, MLPConfig]:
    moe, mlp = KINDS[kind]
    moe = dataclasses.replace(moe, **changes)
    config = Config(vocab_size=7, n_layer=1, n_embd=n_embd, n_head=1, moe=moe, mlp=mlp)
    module = MoE(config.layer(0), moe)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            spread = 0.3 if name.endswith("bias") else 1.5 * p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=gen) * spread)
    return module, moe, mlp


def _compare(module: MoE, moe: MoEConfig, mlp: MLPConfig, x: Tensor, tolerance: float) -> None:
    """Value and all gradients of a random scalar of the output."""
    held = module.state_dict()
    params = {name: t.detach().double().cpu().requires_grad_() for name, t in held.items()}
    wide = x.detach().double().cpu().requires_grad_()
    expected = _dense(wide.flatten(0, -2), params, moe, mlp).view_as(wide)
    out = x.detach().requires_grad_()
    actual = module(out)
    close(actual, expected, tolerance)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * direction).sum().backward()
    (actual * direction.to(actual.dtype).to(actual.device)).sum().backward()
    assert out.grad is not None
    assert wide.grad is not None
    close(out.grad, wide.grad, tolerance)
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in params.items()}
    # One expert whose weight is normalized to 1 leaves the router without a gradient: rounding, against the others'.
    floor = 0.1 * max(grad.abs().max().item() for grad in grads.values())
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        close(p.grad, grads[name], tolerance, floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "shape"), [(0, (2, 7)), (1, (1, 1)), (3, (3, 5))])
def test_values_and_gradients(kind: str, seed: int, shape: tuple[int, int]) -> None:
    module, moe, mlp = _module(kind, seed)
    x = torch.randn(*shape, 14, generator=torch.Generator().manual_seed(100 + seed))
    _compare(module, moe, mlp, x, 1e-5)


def test_a_compiled_layer_has_one_graph() -> None:
    module, moe, mlp = _module("sigmoid-groups", 5)
    x = torch.randn(1, 1, 14, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        actual = torch.compile(module, backend="eager", fullgraph=True)(x)
        params = {name: t.double() for name, t in module.state_dict().items()}
        close(actual, _dense(x[0].double(), params, moe, mlp)[None], 1e-5)


# --- products of sorted rows -----------------------------------------------------------------------------------------

SIZES = [[3, 0, 5, 1], [0, 0, 9], [0, 1], [1], [4, 4, 4], [0, 7, 0, 0, 2, 0]]


def _grouped(sizes: list[int], n_in: int, n_out: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(sum(sizes) + n_in)
    shapes = [(sum(sizes), n_in), (len(sizes), n_out, n_in), (len(sizes), n_out), (sum(sizes), n_out)]
    return tuple(torch.randn(shape, generator=gen).to(device, dtype) for shape in shapes)


def _exactly(sizes: list[int], tensors: tuple[Tensor, ...], bias: bool) -> list[Tensor]:
    """The products and the gradients of x, the weight and perhaps the bias, in float64."""
    x, weight, offset, direction = (t.double().cpu().requires_grad_() for t in tensors)
    rows = x.split(sizes)
    y = torch.cat([rows[e] @ weight[e].T + (offset[e] if bias else 0.0) for e in range(len(sizes))])
    return [y.detach(), *torch.autograd.grad((y * direction).sum(), [x, weight, *([offset] if bias else [])])]


def _check_grouped(
    sizes: list[int], n_in: int, n_out: int, bias: bool, dtype: torch.dtype, device: str, tolerance: float | None
) -> None:
    """tolerance: None is what rounding in fp32 may do."""
    tensors = _grouped(sizes, n_in, n_out, dtype, device)
    experts = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
    ours = [t.clone().requires_grad_() for t in tensors[: 3 if bias else 2]]
    ends = group_ends(experts, len(sizes))
    assert ends.tolist() == [sum(sizes[: e + 1]) for e in range(len(sizes))]
    y = grouped_linear(ours[0], ours[1], ends, experts, ours[2] if bias else None)
    assert y.dtype == dtype
    (y * tensors[3]).sum().backward()
    actual = [y.detach(), *(t.grad for t in ours)]
    size = _exactly(sizes, tuple(t.abs() for t in tensors), bias)
    for mine, expected, most in zip(actual, _exactly(sizes, tensors, bias), size, strict=True):
        assert mine is not None
        if tolerance is None:
            within_roundoff(mine, expected, most, terms=max(n_in + 1, n_out, *sizes))
        else:
            close(mine, expected, tolerance)
    for t in ours[1:]:  # experts without rows get a gradient of exactly zero
        assert t.grad is not None
        assert not t.grad[[e for e, size in enumerate(sizes) if size == 0]].any()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(8, 16), (7, 3), (1, 5), (13, 1)])
def test_grouped_linear(sizes: list[int], n_in: int, n_out: int, bias: bool) -> None:
    _check_grouped(sizes, n_in, n_out, bias, torch.float32, "cpu", None)


class TestOnCUDA:
    pytestmark = gpu

    @pytest.mark.parametrize("sizes", [*SIZES, [300, 0, 1, 129], [2000, 0, 5001]], ids=str)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize(("n_in", "n_out"), [(64, 32), (8, 72), (40, 8), (24, 31), (30, 16)])
    def test_grouped_linear(self, sizes: list[int], n_in: int, n_out: int, bias: bool) -> None:
        """In bf16, whose products are rounded to 8 bits; sizes that are not whole 16 bytes take the loop."""
        _check_grouped(sizes, n_in, n_out, bias, torch.bfloat16, "cuda", 0.01)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("seed", "shape"), [(0, (2, 7)), (1, (1, 1)), (2, (3, 40))])
    def test_values_and_gradients(self, kind: str, seed: int, shape: tuple[int, int]) -> None:
        module, moe, mlp = _module(kind, seed, n_embd=32, intermediate_size=48)
        # At the limit the slope jumps, and there rounding decides on which side a value is: out of reach here.
        mlp = dataclasses.replace(mlp, limit=100.0)
        module.experts.act.limit = mlp.limit
        x = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(200 + seed))
        _compare(module.to("cuda", torch.bfloat16), moe, mlp, x.to("cuda", torch.bfloat16), 0.03)


# --- losses and statistics -------------------------------------------------------------------------------------------

_MODEL: dict[str, Any] = dict(
    vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, num_experts_per_tok=2, max_position_embeddings=64,
)  # fmt: skip
LOSSES = [
    Case("moe-mixtral", "mixtral", _MODEL | dict(num_local_experts=5), 1),
    Case("moe-qwen3", "qwen3_moe", _MODEL | dict(num_experts=6, moe_intermediate_size=12, head_dim=10), 2),
    Case("moe-qwen3-dense-layers", "qwen3_moe",
         _MODEL | dict(num_experts=7, num_experts_per_tok=3, mlp_only_layers=[1], moe_intermediate_size=9), 3),
]  # fmt: skip


@pytest.mark.parametrize("case", LOSSES, ids=str)
@pytest.mark.parametrize("lengths", [[11, 11, 11], [11, 1, 6]], ids=str)
def test_balance_loss(case: Case, lengths: list[int]) -> None:
    """transformers' own auxiliary loss of the same model: its value, and its gradients by every weight."""
    theirs, ids = cases.build(case), cases.tokens(case, 3, 11)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    model = cases.load(cases.write(case))
    theirs.zero_grad(set_to_none=True)
    expected = theirs(ids, attention_mask=mask.long(), output_router_logits=True, use_cache=False).aux_loss
    expected.backward()
    with watch_routers(model) as watch:
        model(ids)
        actual = watch.balance_loss(None if mask.all() else mask)
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    grads = cases.gradients(case)
    theirs.zero_grad(set_to_none=True)
    scale = max(grad.abs().max().item() for grad in grads.values())
    assert scale > 1e-4
    for name, p in model.named_parameters():
        mine = torch.zeros_like(p) if p.grad is None else p.grad
        assert (mine - grads[name]).abs().max() <= 1e-5 * scale, name
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, Router))


def _routing(logits: Tensor, experts: Tensor) -> Routing:
    return Routing(torch.ones_like(experts, dtype=torch.float32), experts, logits)


@pytest.mark.parametrize("seed", range(3))
def test_z_loss(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    layers = [(4 * torch.randn(9, 5, generator=gen)).requires_grad_() for _ in range(2)]
    mask = torch.tensor([[True, True, False], [True, True, True], [seed > 0, False, False]])
    loss = RouterWatch([_routing(logits, torch.zeros(9, 1, dtype=torch.long)) for logits in layers]).z_loss(mask)
    loss.backward()
    logits = torch.cat([t.detach().double()[mask.flatten()] for t in layers])
    total = logits.exp().sum(-1).log()
    assert loss.item() == pytest.approx((total**2).mean().item(), rel=1e-6)
    slope = 2 * total[:, None] * logits.exp() / logits.exp().sum(-1, keepdim=True) / len(logits)
    grads = [t.grad for t in layers if t.grad is not None]
    close(torch.cat([grad[mask.flatten()] for grad in grads]), slope, 1e-6)
    assert not any(grad[~mask.flatten()].any() for grad in grads)


def test_statistics() -> None:
    even = _routing(torch.zeros(6, 3), torch.tensor([[0, 1], [1, 2], [2, 0]] * 2))
    one = _routing(torch.tensor([[50.0, 0.0, 0.0]] * 4), torch.zeros(4, 1, dtype=torch.long))
    mixed = _routing(torch.tensor([[1.0, 1.0, -90.0]] * 4), torch.tensor([[0], [0], [0], [1]]))

    def check(seen: list[Routing], max_load: float, unused: float, entropy: float) -> None:
        found = {name: value.item() for name, value in RouterWatch(seen).statistics().items()}
        assert found == pytest.approx(
            dict(router_max_load=max_load, router_unused=unused, router_entropy=entropy), abs=1e-6
        )

    ln2_of_3 = 0.6309297535714574
    check([even], 1.0, 0.0, 1.0)
    check([one], 3.0, 2 / 3, 0.0)
    check([mixed], 0.75 * 3, 1 / 3, ln2_of_3)
    check([even, mixed], 0.75 * 3, 1 / 6, (1 + ln2_of_3) / 2)
    watch = RouterWatch([even])
    watch.clear()
    assert watch.statistics() == {}


def test_balance_loss_of_known_routers() -> None:
    """k where experts are taken evenly, n_expert where one takes everything with certainty."""
    experts = torch.tensor([[0, 1], [1, 2], [2, 0]])
    assert RouterWatch([_routing(torch.zeros(3, 3), experts)]).balance_loss().item() == pytest.approx(2)
    sure = torch.tensor([[90.0, 0.0, 0.0, 0.0]] * 5)
    watch = RouterWatch([_routing(sure, torch.zeros(5, 1, dtype=torch.long))])
    assert watch.balance_loss().item() == pytest.approx(4)
    # A skew by hand: shares 3/4 and 1/4, probabilities 0.8 and 0.2.
    logits = torch.tensor([[0.8, 0.2]]).log().expand(4, 2)
    watch = RouterWatch([_routing(logits, torch.tensor([[0], [0], [1], [0]]))])
    assert watch.balance_loss().item() == pytest.approx(2 * (0.75 * 0.8 + 0.25 * 0.2))


def test_switched_off_experts_cost_nothing() -> None:
    """What an unused expert holds, even infinities, never reaches the output."""
    module, _, _ = _module("one-of-three", 4)
    x = torch.randn(1, 5, 14, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        used = set(module.router(x[0]).experts.flatten().tolist())
        before = module(x)
        unused = [e for e in range(3) if e not in used]
        assert unused, "choose a seed that leaves an expert out"
        for p in (module.experts.up_proj, module.experts.down_proj):
            p[unused] = torch.inf
        assert torch.equal(module(x), before)
        assert torch.isfinite(F.relu(before)).all()
