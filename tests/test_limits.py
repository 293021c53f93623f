"""Which limit ends a run, and when."""

from __future__ import annotations

from typing import Any

import pytest

from litlm.settings import TrainSettings
from litlm.train.limits import Limits


def limits(n_examples: int = 10, **settings: Any) -> Limits:
    return Limits(TrainSettings(**{"batch_size": 4, **settings}), n_examples)


@pytest.mark.parametrize(
    ("n_examples", "settings", "steps"),
    [
        (10, {}, 3),  # one epoch, rounded up
        (8, {}, 2),
        (10, {"epochs": 3}, 8),  # 30 examples in steps of 4, the last reaching into the next epoch
        (1, {"batch_size": 8}, 1),
        (1, {"epochs": 17, "batch_size": 8}, 3),
        (10, {"max_steps": 7}, 7),
        (10, {"max_steps": 7, "epochs": 1}, 3),
        (10, {"max_steps": 2, "epochs": 1}, 2),
        (10, {"max_tokens": 100}, None),
        (10, {"max_steps": 7, "max_time": "1h"}, None),
    ],
)  # fmt: skip
def test_steps(n_examples: int, settings: dict[str, Any], steps: int | None) -> None:
    run = limits(n_examples, **settings)
    assert run.steps() == steps
    if steps is not None:
        assert not run.reached(steps - 1, 10**9, 1e9)
        assert run.reached(steps, 0, 0)


def test_progress_is_the_largest_share() -> None:
    run = limits(100, max_steps=200, max_tokens=1000, max_time="2m", epochs=4)  # 100 steps by epochs
    assert run.progress(0, 0, 0) == 0
    assert run.progress(10, 50, 6) == pytest.approx(0.1)
    assert run.progress(10, 250, 6) == pytest.approx(0.25)
    assert run.progress(10, 250, 60) == pytest.approx(0.5)
    assert run.progress(10, 5000, 60) == 1
    assert limits(100, max_steps=200).progress(10, 9999, 9999) == pytest.approx(0.05)


def test_why() -> None:
    run = limits(100, max_steps=200, max_tokens=1000, max_time="2m", epochs=4)
    assert run.why(10, 1001, 3) == "max_tokens=1000"
    assert run.why(10, 10, 121) == "max_time=2m"
    assert run.why(100, 10, 12) == "epochs=4 (100 steps)"
    assert limits(100, max_steps=200).why(200, 0, 0) == "max_steps=200"
    assert limits(2).why(1, 0, 0) == "epochs=1 (1 step)"


def test_only_a_run_without_any_limit_takes_one_epoch() -> None:
    assert not limits(4, max_tokens=1000).reached(50, 999, 1e9)
    assert limits(4, max_tokens=1000).reached(50, 1000, 0)
    assert not limits(4, max_time="90s").reached(50, 10**9, 89.9)
    assert limits(4, max_time="90s").reached(1, 1, 90)


def test_no_examples() -> None:
    with pytest.raises(ValueError, match="no examples"):
        limits(0)
