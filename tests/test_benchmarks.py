"""The benchmark scripts run, with a tiny model; what they measure here means nothing."""

import json
from pathlib import Path

import pytest

from litlm.train.flops import train_flops_per_token

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import training  # pyright: ignore[reportMissingImports]

    return training


def test_a_row_adds_its_line(training, tmp_path, monkeypatch):
    row = training.Row("pretrain", "tiny", 2, 64, (), warmup=2, steps=3)
    monkeypatch.setitem(training.ROWS, "tiny", row)
    out = tmp_path / "rows.jsonl"
    out.write_text("{}\n")
    training.measure("tiny", "litlm:autocast", out, False)
    found = json.loads(out.read_text().splitlines()[1])
    assert (found["row"], found["impl"], found["steps"]) == ("tiny", "litlm:autocast", 3)
    assert found["tok_s"] > 0
    assert 5.4 < found["loss"] < 5.7  # log 256


@pytest.mark.parametrize(("name", "length"), [("llama-124m", 1024), ("llama-1b", 4096), ("llama-8b", 2048)])
@pytest.mark.parametrize("frozen", [False, True])
def test_flops_are_those_of_the_trainer(training, name, length, frozen):
    ours = train_flops_per_token(training.config_of(name), length, frozen=frozen)
    assert training.SHAPES[name].flops(length, frozen=frozen) == pytest.approx(ours, rel=2e-3)


def test_packing_has_the_examples_of_padding(training):
    packed, padded = (training.Examples(100, 1024, packing, n=64) for packing in (True, False))
    for data in (packed, padded):
        batches = data.batches(range(64), 8)
        assert sum(b.n_tokens for b in batches) == sum(training.lengths(64, seed=0))
        assert sum(b.n_targets for b in batches) == sum(
            n - training.prompt_of(n) + 1 for n in training.lengths(64, seed=0)
        )
    assert packed.places < 0.7 * padded.places


def test_lengths_are_as_described(training):
    lengths = sorted(training.lengths(20_000, seed=1))
    assert 32 <= lengths[0] < lengths[-1] == 1024
    assert 145 < sum(lengths) / len(lengths) < 155
    assert 118 < lengths[10_000] < 122
    assert lengths[-200] > 450
