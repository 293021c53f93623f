"""The range test on quadratics, whose rates are known: gradient descent on curvature L diverges above 2 / L."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litlm.settings import TrainSettings
from litlm.train.lr_finder import find_lr, plot, restore, snapshot
from litlm.train.optim import make_optimizer, optimizer_state


def quadratic(curvature: float, condition: float, seed: int, noise: float = 0.0) -> Callable[[float], float]:
    """Gradient descent on sum h x^2 / 2 + c, with h from curvature / condition to curvature."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(20, generator=gen, dtype=torch.float64)
    h = curvature * torch.logspace(0, -math.log10(condition), 20, dtype=torch.float64)
    rest = 0.3 * (h * x * x).sum() / 2

    def step(lr: float) -> float:
        loss = (h * x * x).sum() / 2 + rest
        x.sub_(lr * h * x)
        return float(loss * (1 + noise * torch.randn((), generator=gen)))

    return step


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("condition", [1, 30])
@pytest.mark.parametrize("curvature", [3.0, 40.0, 1000.0])
def test_the_order_of_magnitude_is_right(curvature: float, condition: float, seed: int) -> None:
    sweep = find_lr(quadratic(curvature, condition, seed))
    assert 0.05 / curvature <= sweep.suggestion <= 2 / curvature
    assert sweep.lrs[0] == pytest.approx(1e-7)
    assert sweep.suggestion in sweep.lrs
    ratios = {round(b / a, 9) for a, b in zip(sweep.lrs, sweep.lrs[1:], strict=False)}
    assert ratios == {round(1e7 ** (1 / 99), 9)}
    assert 2 / curvature < sweep.lrs[-1] < 40 / curvature or sweep.lrs[-1] == pytest.approx(1)  # stopped early


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_different_difficulty_do_not_mislead(seed: int) -> None:
    sweep = find_lr(quadratic(40, 10, seed, noise=0.1))
    assert 0.02 / 40 <= sweep.suggestion <= 2 / 40


@pytest.mark.parametrize("taken", [0, 3])
def test_a_model_and_its_optimizer_come_back(taken: int) -> None:
    """With AdamW on a small net: the rate found learns, ten times less learns less, and the sweep leaves no trace."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))
    model[0].bias.requires_grad_(False)
    optimizer = make_optimizer(model, TrainSettings())
    inputs, targets = torch.randn(64, 10), torch.randint(0, 4, (64,))

    def step(lr: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for _ in range(taken):
        step(2e-4)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {k: v.clone() for k, v in optimizer_state(optimizer)[0].items()}
    saved = snapshot(model, optimizer)
    sweep = find_lr(step)
    assert any(not torch.equal(p, weights[n]) for n, p in model.named_parameters())

    def after(lr: float) -> float:
        restore(model, optimizer, saved)
        for name, p in model.named_parameters():
            assert torch.equal(p, weights[name]), name
        tensors, _ = optimizer_state(optimizer)
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensors[key], value) for key, value in state.items())
        assert all(group["lr"] == 2e-4 for group in optimizer.param_groups)
        return [step(lr) for _ in range(30)][-1]

    assert 1e-3 <= sweep.suggestion <= 0.2
    assert after(sweep.suggestion) < 0.5 * sweep.losses[0]
    assert after(sweep.suggestion) < after(sweep.suggestion / 10)


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_never_falls_is_said(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    with pytest.raises(ValueError, match="the loss never fell .* set lr by hand"):
        find_lr(lambda lr: float(3 + 0.3 * torch.randn((), generator=gen) + 100 * lr))
    with pytest.raises(ValueError, match="the loss never fell"):
        find_lr(lambda lr: 3.0)


def test_a_loss_that_breaks_at_once_is_said() -> None:
    with pytest.raises(ValueError, match="diverged after 0 steps"):
        find_lr(lambda lr: math.nan)
    with pytest.raises(ValueError, match="diverged after .* set lr by hand"):
        find_lr(quadratic(1e9, 1, 0))
    with pytest.raises(ValueError, match="20 or more steps"):
        find_lr(lambda lr: 1.0, lr_min=2.0)


def test_plot(tmp_path: Path) -> None:
    plot(find_lr(quadratic(40, 10, 0)), tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
