"""Filters against transformers' logits processors; draws against the distribution they claim to follow."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import litlm
from litlm.generate.sampling import Sampler, filter_logits
from litlm.settings import SamplingSettings

CPU = torch.device("cpu")


def _theirs(logits: Tensor, prompts: list[list[int]] | None, settings: SamplingSettings) -> Tensor:
    """transformers' processors in the order in which its `generate` runs them. logits in fp32."""
    from transformers import generation as g

    steps: list[Any] = []
    if settings.repetition_penalty != 1.0:
        steps.append(g.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    steps.append(g.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k is not None:
        steps.append(g.TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None:
        steps.append(g.TopPLogitsWarper(settings.top_p))
    if settings.min_p is not None:
        steps.append(g.MinPLogitsWarper(settings.min_p))
    rows = []
    for i, row in enumerate(logits):
        scores = row[None].float()
        for step in steps:
            scores = step(torch.tensor(prompts[i] if prompts else [0])[None], scores)
        rows.append(scores[0])
    return torch.stack(rows)


def _ours(logits: Tensor, prompts: list[list[int]] | None, settings: SamplingSettings, monkeypatch: Any) -> Tensor:
    """What `Sampler` draws from."""
    seen: list[Tensor] = []
    sampler = Sampler(settings, prompts or [[0]] * len(logits), logits.size(1), CPU)
    monkeypatch.setattr(sampler, "_draw", lambda probs: seen.append(probs) or probs.argmax(-1))
    sampler(logits)
    return seen[0]


def _logits(kind: str, seed: int, vocab: int = 97, batch: int = 5) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, vocab, generator=gen) * 4
    if kind == "ties":
        logits = (logits / 2).round() * 2
    if kind == "extreme":
        logits = logits * torch.logspace(-6, 7, batch)[:, None]
    if kind == "bf16":
        logits = logits.bfloat16()
    if kind == "masked":
        logits[:, ::3] = -torch.inf
    return logits


SETTINGS = [
    {key: value for key, value in zip(("top_k", "top_p", "min_p"), values, strict=True) if value is not None}
    for values in itertools.product((None, 1, 7, 500), (None, 0.05, 0.9, 1.0), (None, 0.1, 1.0))
]


@pytest.mark.parametrize("kind", ["plain", "ties", "extreme", "bf16", "masked"])
@pytest.mark.parametrize(("temperature", "penalty"), [(1.0, 1.0), (0.3, 1.7), (2.5, 0.6), (1.0, 1.1)])
def test_filters_equal_transformers(kind: str, temperature: float, penalty: float, monkeypatch: Any) -> None:
    gen = torch.Generator().manual_seed(7)
    prompts = [torch.randint(97, (n,), generator=gen).tolist() for n in (1, 5, 40, 200, 12)]
    for seed, chosen in enumerate(SETTINGS):
        settings = SamplingSettings(temperature=temperature, repetition_penalty=penalty, **chosen)
        logits = _logits(kind, seed)
        expected = _theirs(logits, prompts, settings)
        if kind == "ties" and settings.top_p is not None:
            # Which of equal tokens stay is arbitrary: how many do, and how likely they are, is not.
            actual = _ours(logits, prompts, settings, monkeypatch).sort(-1).values
            torch.testing.assert_close(actual, expected.softmax(-1).sort(-1).values, rtol=1e-5, atol=1e-7)
            continue
        actual = _ours(logits, prompts, settings, monkeypatch)
        assert torch.equal(actual > 0, expected.softmax(-1) > 0), settings
        torch.testing.assert_close(actual, expected.softmax(-1), rtol=1e-4 if kind == "extreme" else 1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["plain", "bf16", "masked"])
def test_filtered_values_equal_transformers_up_to_a_shift(kind: str) -> None:
    for seed, chosen in enumerate(SETTINGS):
        settings = SamplingSettings(temperature=0.7, **chosen)
        logits = _logits(kind, seed)
        expected = _theirs(logits, None, settings)
        expected = expected - expected.amax(-1, keepdim=True)
        torch.testing.assert_close(filter_logits(logits, settings), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3, 1e30, math.inf])
def test_extreme_temperatures_stay_distributions(temperature: float) -> None:
    probs = filter_logits(_logits("plain", 0), SamplingSettings(temperature=temperature)).softmax(-1)
    assert probs.isfinite().all()
    if temperature < 1e-2:
        assert torch.equal(probs.argmax(-1), _logits("plain", 0).argmax(-1))
        assert probs.amax(-1).eq(1).all()
    if temperature > 1e20:
        torch.testing.assert_close(probs, torch.full_like(probs, 1 / 97))


@pytest.mark.parametrize("kind", ["plain", "bf16", "extreme", "masked"])
def test_greedy_with_a_penalty_equals_transformers_over_several_steps(kind: str) -> None:
    from transformers import generation as g

    penalty = g.RepetitionPenaltyLogitsProcessor(1.8)
    rows = [[1, 2, 3], [50] * 9, list(range(97)), [0], [96, 4]]
    sampler = Sampler(SamplingSettings(repetition_penalty=1.8), [list(r) for r in rows], 97, CPU)
    for step in range(8):
        logits = _logits(kind, step)
        expected = [
            int(penalty(torch.tensor([r]), x[None].float()).argmax()) for r, x in zip(rows, logits, strict=True)
        ]
        assert sampler(logits).tolist() == expected
        for row, token in zip(rows, expected, strict=True):
            row.append(token)


# --- drawing -------------------------------------------------------------------------------------------------------


def _counts(logits: Tensor, settings: SamplingSettings, n: int, batch: int = 50) -> Tensor:
    """How often each token was drawn in n steps of `batch` rows, each row with random numbers of its own."""
    sampler = Sampler(settings, [[0]] * batch, logits.size(-1), CPU)
    for i, random in enumerate(sampler.generators):
        random.manual_seed(1000 + i)
    draws = torch.cat([sampler(logits.expand(batch, -1)) for _ in range(n)])
    return draws.bincount(minlength=logits.size(-1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chosen", [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 1.5}])
def test_draws_follow_the_distribution(seed: int, chosen: dict[str, Any]) -> None:
    settings = SamplingSettings(**({"temperature": 1.0} | chosen))
    logits = torch.randn(1, 31, generator=torch.Generator().manual_seed(seed)) * 1.5
    expected = _theirs(logits, None, settings).softmax(-1)[0].double() * 20_000
    counts = _counts(logits, settings, 400)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi2 = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    # Wilson and Hilferty: the cube root of chi2 / freedom is close to normal; 4 standard deviations.
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 4


class _Fixed:
    """A generator's place: `torch.rand` is replaced by the number."""

    def __init__(self, u: float) -> None:
        self.u = u


@pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.25, 0.5, 1 - 2.0**-24])
def test_the_ends_of_the_unit_interval_never_hit_an_impossible_token(u: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, generator.u))
    sampler = Sampler(SamplingSettings(temperature=1.0), [[0]] * 4, 6, CPU)
    sampler.generators = [_Fixed(u)] * 4  # type: ignore[list-item]
    probs = torch.tensor([
        [0.0, 0.5, 0.0, 0.5, 0.0, 0.0], [0, 0, 0, 0, 0, 1.0], [1.0, 0, 0, 0, 0, 0], [0, 1e-30, 0, 0.7, 1e-30, 0],
    ])  # fmt: skip
    tokens = sampler._draw(probs)
    assert (probs.gather(1, tokens[:, None]) > 0).all()
    assert tokens[1:3].tolist() == [5, 0]
    assert tokens[0] == (1 if u < 0.5 else 3)


def test_a_sum_that_wavers_never_hits_an_impossible_token(monkeypatch: Any) -> None:
    """A parallel prefix sum need not be monotone in its last bits."""
    probs = torch.tensor([[0.25, 0.0, 0.25, 0.0, 0.5, 0.0]])
    wavering = torch.tensor([[0.25, 0.2500001, 0.5, 0.4999999, 1.0, 1.0000001]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: wavering)
    sampler = Sampler(SamplingSettings(temperature=1.0), [[0]], 6, CPU)
    for u in (0.25, 0.25000005, 0.4999999, 0.5, 0.99999994):
        monkeypatch.setattr(torch, "rand", lambda *size, generator, u=u: torch.full(size, u))
        assert probs[0, sampler._draw(probs)[0]] > 0


def test_a_wide_vocabulary_with_a_long_tail() -> None:
    """fp32 sums of 150,000 tiny probabilities: the tail's share must survive."""
    vocab = 150_000
    logits = torch.zeros(1, vocab)
    logits[0, 0] = math.log(vocab)  # half of all
    counts = _counts(logits, SamplingSettings(temperature=1.0), 8)
    share = counts[0].item() / 400
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 400)
    assert counts[vocab // 2 :].sum() > 60


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_seeds_repeat_and_rows_do_not_depend_on_neighbours() -> None:
    settings = SamplingSettings(temperature=1.0, seed=11)
    steps = [_logits("plain", i, batch=4) for i in range(20)]

    def run(rows: list[int], settings: SamplingSettings = settings) -> Tensor:
        sampler = Sampler(settings, [[0]] * len(rows), 97, CPU)
        return torch.stack([sampler(logits[rows]) for logits in steps], 1)

    whole = run([0, 1, 2, 3])
    assert torch.equal(whole, run([0, 1, 2, 3]))
    for row in range(4):
        assert torch.equal(run([row])[0], whole[row])
    assert torch.equal(run([3, 1]), whole[[3, 1]])
    assert not torch.equal(run([0], SamplingSettings(temperature=1.0, seed=12))[0], whole[0])


def test_without_a_seed_runs_differ_and_leave_the_global_generator_alone() -> None:
    settings = SamplingSettings(temperature=5.0)
    logits = _logits("plain", 0, batch=2)
    state = torch.random.get_rng_state()
    first = [Sampler(settings, [[0], [0]], 97, CPU)(logits).tolist() for _ in range(10)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(set(map(tuple, first))) > 1


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed="),
        ({"stop": ("a", "")}, "empty text"),
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="Sampling settings not valid") as e:
        SamplingSettings(**bad)
    assert text in str(e.value)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="Sampling") as e:
        SamplingSettings(temperature=-1, top_k=0, top_p=2, min_p=3, repetition_penalty=-1, max_new_tokens=0)
    assert len(str(e.value).splitlines()) == 7


def test_a_sampling_parameter_lives_in_few_files() -> None:
    """The field, the sampler, and where the command line names this one: /retry of chat, and hints for other names."""
    package = Path(litlm.__file__).parent
    rooms = ("settings", "generate", "llm.py", "cli", "train", "data", "checkpoint")  # elsewhere it scales attention
    files = {path for room in rooms for path in [package / room, *(package / room).rglob("*.py")] if path.is_file()}
    found = {str(path.relative_to(package)) for path in files if re.search(r"\btemperature\b", path.read_text())}
    assert found == {"settings/sampling.py", "generate/sampling.py", "cli/chat.py", "cli/hints.py"}
    for name in ("top_p", "min_p", "repetition_penalty"):
        found = {str(path.relative_to(package)) for path in files if re.search(rf"\b{name}\b", path.read_text())}
        assert found - {"cli/hints.py"} == {"settings/sampling.py", "generate/sampling.py"}
