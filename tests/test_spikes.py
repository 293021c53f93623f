"""Losses that jump or are not finite, against statistics computed afresh."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from litlm.train.spikes import SpikeWatch


def losses(n: int, seed: int) -> list[float]:
    return (3 + 0.2 * np.random.default_rng(seed).standard_normal(n)).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_is_a_spike_from_the_factor_on(seed: int) -> None:
    seen = losses(60, seed)
    mean, std = np.mean(seen), np.std(seen)
    for far, is_spike in ((4.99, False), (5.01, True), (-50, False)):
        watch = SpikeWatch(5)
        assert [watch.check(loss, 1.0) for loss in seen] == [None] * 60
        assert (watch.check(mean + far * std, 1.0) is not None) == is_spike


@pytest.mark.parametrize("seed", range(3))
def test_old_losses_fade(seed: int) -> None:
    """After the window is full, each loss weighs 0.99 times the one after it."""
    seen = losses(400, seed)
    watch = SpikeWatch(8)
    assert [watch.check(loss) for loss in seen] == [None] * 400
    weights = np.array([0.01 * 0.99**300] * 100 + [0.01 * 0.99 ** (399 - i) for i in range(100, 400)])
    weights[:100] = 0.99**300 / 100
    assert weights.sum() == pytest.approx(1)
    mean = (weights * seen).sum()
    std = math.sqrt((weights * (np.array(seen) - mean) ** 2).sum())
    assert watch.mean == pytest.approx(mean, rel=1e-12)
    text = watch.check(mean + 12.3 * std, 0.5)
    assert text == f"the loss {mean + 12.3 * std:.4g} is 12.3 standard deviations above its running mean {mean:.4g}"


def test_a_spike_leaves_no_trace() -> None:
    seen = losses(80, 0)
    clean, other = SpikeWatch(6), SpikeWatch(6)
    for i, loss in enumerate(seen):
        clean.check(loss, 1.0)
        other.check(loss, 1.0)
        if i > 30:
            assert other.check(50.0, 1.0) is not None
            assert other.check(math.nan, 1.0) is not None
            assert other.check(loss, math.inf) is not None
    for key in ("n", "mean", "variance"):
        assert other.state_dict()[key] == clean.state_dict()[key]
    assert other.limit_before == other.limit() == clean.limit()


def test_not_finite_is_always_a_spike() -> None:
    watch = SpikeWatch(None)
    assert watch.check(math.nan, 1.0) == "the loss is nan"
    assert watch.check(math.inf, None) == "the loss is inf"
    assert watch.check(1.0, math.inf) == "the gradient norm is inf"
    assert [watch.check(loss) for loss in (*losses(50, 0), 1e9)] == [None] * 51


def test_the_first_losses_are_not_judged() -> None:
    watch = SpikeWatch(3)
    assert [watch.check(loss) for loss in (*losses(18, 0), 1e6)] == [None] * 19


def test_equal_losses_make_no_spike_of_rounding() -> None:
    watch = SpikeWatch(3)
    assert [watch.check(2.0) for _ in range(50)] == [None] * 50
    assert watch.check(2.0 + 1e-6) is None
    assert watch.check(2.1) is not None


def test_a_resumed_watch_says_the_same() -> None:
    seen = [*losses(150, 1), 9.0, *losses(50, 2), 5.0]
    whole = SpikeWatch(5)
    said = [whole.check(loss) for loss in seen]
    assert [i for i, text in enumerate(said) if text] == [150, 201]
    first, second = SpikeWatch(5), SpikeWatch(5)
    begin = [first.check(loss) for loss in seen[:77]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begin + [second.check(loss) for loss in seen[77:]] == said
    assert second.state_dict() == whole.state_dict()
