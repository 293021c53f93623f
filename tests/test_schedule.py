"""The learning rate against closed formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

from litlm.settings import TrainSettings
from litlm.train.schedule import learning_rate


def rate(step: int, progress: float, steps: int | None = None, **settings: Any) -> float:
    return learning_rate(step, progress, TrainSettings(**{"warmup_steps": 0, **settings}), steps=steps)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.37, 0.5, 0.83, 1.0])
@pytest.mark.parametrize("low", [0.0, 0.1, 1.0])
def test_shapes(progress: float, low: float) -> None:
    s: dict[str, Any] = dict(lr=3e-3, min_lr=low)
    assert rate(5, progress, schedule="constant", **s) == 3e-3
    linear = 3e-3 * (1 - progress) + 3e-3 * low * progress
    assert rate(5, progress, schedule="linear", **s) == pytest.approx(linear, rel=1e-12)
    cosine = 3e-3 * (low + (1 - low) * math.cos(math.pi * progress / 2) ** 2)
    assert rate(5, progress, schedule="cosine", **s) == pytest.approx(cosine, rel=1e-12, abs=1e-18)


def test_wsd_is_flat_and_then_a_straight_line_down() -> None:
    s: dict[str, Any] = dict(schedule="wsd", lr=2.0, min_lr=0.1, decay_fraction=0.25)
    expected = {0.0: 2.0, 0.5: 2.0, 0.75: 2.0, 0.8: 1.64, 0.875: 1.1, 1.0: 0.2}
    for progress, lr in expected.items():
        assert rate(9, progress, **s) == pytest.approx(lr, rel=1e-12)
    assert rate(0, 0.5, schedule="wsd", lr=1.0, decay_fraction=1.0) == pytest.approx(0.5)


def test_warm_up_multiplies_the_shape() -> None:
    s: dict[str, Any] = dict(schedule="linear", lr=1.0, warmup_steps=4)
    rates = [rate(step, step / 100, **s) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96, 0.95], rel=1e-12)


def test_warm_up_takes_at_most_half_of_a_run_of_known_length() -> None:
    s: dict[str, Any] = dict(schedule="constant", lr=1.0, warmup_steps=10)
    assert [rate(step, 0, steps=6, **s) for step in range(6)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert rate(0, 0, steps=1, **s) == 1
    assert rate(0, 0, steps=30, **s) == pytest.approx(0.1)
    assert rate(0, 0, steps=None, **s) == pytest.approx(0.1)
