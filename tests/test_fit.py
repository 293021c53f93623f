"""The training loop: steps that don't depend on micro batches, transformers' losses, files that run again."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from litlm.checkpoint.training import Checkpoints
from litlm.data.base import Batch, Dataset, EpochSampler, Example, micro_batches
from litlm.llm import LLM
from litlm.settings import MethodSettings, TrainSettings
from litlm.train import Result, fit, loop
from litlm.train.loop import validate
from litlm.train.loss import NextToken
from litlm.train.process import stop_on_signals
from litlm.train.report import Report
from litlm.train.schedule import learning_rate
from litlm.train.spikes import SpikeWatch
from litlm.transforms.lora import adapters, apply_lora


class Made(Dataset):
    """Examples that were made up."""

    def __init__(self, examples: list[Example], packing: bool = True) -> None:
        self.examples, self.packing = examples, packing

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        longest = max(len(e.ids) for e in self.examples)
        return micro_batches([self.examples[i] for i in indexes], micro_batch_size, longest, packing=self.packing)


def _dataset(lengths: tuple[int, ...], seed: int = 0, packing: bool = True) -> Made:
    gen = torch.Generator().manual_seed(seed)
    examples = []
    for n in lengths:
        learn = [False, True, *(torch.rand(n - 2, generator=gen) < 0.6).tolist()]
        examples.append(Example(torch.randint(1, 340, (n,), generator=gen).tolist(), learn))
    return Made(examples, packing)


def _fit(train: Dataset, tmp: Path, *, family: str = "llama", val: Dataset | None = None, seed: int = 1, r: int = 4,
         **settings: Any) -> tuple[LLM, Result, list[int]]:  # fmt: skip
    llm = tiny.load(family)
    torch.manual_seed(seed)
    apply_lora(llm.model, MethodSettings(r=r))
    saved: list[int] = []
    checkpoints = Checkpoints(tmp / "run", lambda folder: saved.append(int(folder.name[6:12])), keep=100)
    with Report(tmp, None, quiet=True) as report:
        result = fit(
            llm.model, train, val, settings=TrainSettings(**settings), seed=seed, report=report, checkpoints=checkpoints
        )
    return llm, result, saved


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("compiled", [False, True])
def test_objects_are_frozen_after_the_first_step_of_compiled_layers(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)  # compiling itself does not matter here
    counts: list[int] = []

    class Watching(Report):
        def step(self, row: Any, progress: float | None = None) -> None:
            counts.append(gc.get_freeze_count())

    with Watching(tmp_path, None, quiet=True) as report:
        settings = TrainSettings(max_steps=3, batch_size=2, compile=compiled)
        fit(tiny.load().model, _dataset((9, 7, 12)), settings=settings, report=report)
    assert [count > 0 for count in counts] == [compiled] * 3
    assert gc.get_freeze_count() == 0


def _weights(llm: LLM) -> list[Tensor]:
    return [p.detach() for _, lora in adapters(llm.model) for p in (lora.A, lora.B)]


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_steps_depend_neither_on_the_micro_batch_nor_on_packing(family: str, tmp_path: Path) -> None:
    runs = {}
    for packing in (True, False):
        train = _dataset((3, 60, 8, 25, 4, 90, 12, 5), packing=packing)
        for size in (1, 2, 3, 4):
            options: dict[str, Any] = dict(batch_size=4, micro_batch_size=size, max_steps=6, lr=3e-3)
            runs[packing, size] = _fit(train, tmp_path, family=family, **options)
    first = runs.pop((False, 4))
    whole = torch.cat([w.flatten() for w in _weights(first[0])])
    for llm, result, _ in runs.values():
        assert result.losses == pytest.approx(first[1].losses, rel=1e-5)
        other = torch.cat([w.flatten() for w in _weights(llm)])
        # Adam divides by the gradient's size: where that is next to nothing, rounding decides.
        assert ((whole - other).abs() > 1e-5).float().mean() < 1e-3
        assert torch.dist(whole, other) < 1e-3 * whole.norm()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_the_loss_is_the_one_that_transformers_computes(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    train, val = _dataset((9, 30, 4, 17)), _dataset((40, 6, 3), seed=5)
    llm, result, _ = _fit(
        train, tmp_path, family=family, val=val, batch_size=4, micro_batch_size=2, max_steps=3, lr=1e-2
    )
    model = AutoModelForCausalLM.from_pretrained(tiny.folder(family), dtype=torch.float32).eval()

    def reference(data: Made) -> float:
        """One example at a time, in float64: all its tokens, then the whole mean."""
        total, count = 0.0, 0
        for e in data.examples:
            with torch.no_grad():
                logits = model(torch.tensor([e.ids])).logits[0].double()
            wanted = torch.tensor([i for i in range(1, len(e.ids)) if e.learn[i]])
            picked = logits.log_softmax(-1)[wanted - 1].gather(1, torch.tensor(e.ids)[wanted, None])
            total, count = total - picked.sum().item(), count + len(wanted)
        return total / count

    assert result.losses[0] == pytest.approx(reference(train), rel=1e-5)
    assert [step for step, _ in result.val_losses] == [3]
    llm.save(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert result.val_losses[0][1] == pytest.approx(reference(val), rel=1e-4)
    assert result.losses[-1] < result.losses[0]


def test_router_losses_count_no_padding_and_weigh_by_tokens() -> None:
    """Of a mixture: the same whether a micro batch is packed or padded; of several, the mean over their tokens."""
    from litlm.config import Config
    from litlm.config.layers import MoEConfig
    from litlm.model import GPT
    from litlm.model.moe import watch_routers
    from litlm.train.loop import gradients

    moe = MoEConfig(n_expert=4, n_expert_per_token=2, intermediate_size=24)
    config = Config(family="mixtral", vocab_size=352, n_layer=2, n_embd=32, n_head=4, n_kv_head=2, moe=moe)
    settings = TrainSettings(router_balance=0.7, router_z=0.3)
    torch.manual_seed(0)
    model = GPT(config)
    found = {}
    for packing in (True, False):
        (batch,) = _dataset((3, 60, 8, 25), packing=packing).batches([0, 1, 2, 3], 4)
        gradients(model, NextToken(), [batch], settings)
        found[packing] = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    for name, grad in found[True].items():
        torch.testing.assert_close(grad, found[False][name], rtol=1e-4, atol=1e-6, msg=name)
    # Each example alone, weighed by its tokens, and the cross-entropies by their targets.
    parts = _dataset((3, 60, 8, 25)).batches([0, 1, 2, 3], 1)
    gradients(model, NextToken(), parts, settings)
    wanted = model.layers[0].mlp.router.weight.grad.clone()
    model.zero_grad(set_to_none=True)
    n_tokens, n_targets = sum(b.n_tokens for b in parts), sum(b.n_targets for b in parts)
    for b in parts:
        with watch_routers(model) as routers:
            loss = NextToken().loss_sum(model, b) / n_targets
            extra = 0.7 * routers.balance_loss(b.mask()) + 0.3 * routers.z_loss(b.mask())
            (loss + extra * b.n_tokens / n_tokens).backward()
    torch.testing.assert_close(model.layers[0].mlp.router.weight.grad, wanted, rtol=1e-5, atol=1e-7)


def test_a_small_batch_is_learned_by_heart(tmp_path: Path) -> None:
    train = _dataset((12, 5, 20, 9))
    _, result, _ = _fit(train, tmp_path, r=16, batch_size=4, micro_batch_size=4, max_steps=120, lr=2e-2, warmup_steps=5)
    assert result.losses[0] > 3
    assert result.losses[-1] < 0.02


def test_equal_runs_are_equal_to_the_bit_and_seeds_differ(tmp_path: Path) -> None:
    train = _dataset((12, 5, 20, 9, 7))
    runs = [_fit(train, tmp_path, seed=s, batch_size=2, micro_batch_size=1, max_steps=7) for s in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(_weights(runs[0][0]), _weights(runs[1][0]), strict=True))
    assert runs[0][1].losses == runs[1][1].losses
    assert runs[0][1].losses != runs[2][1].losses


def test_only_the_order_of_the_first_seed_decides_which_examples_come(tmp_path: Path) -> None:
    """Every example once an epoch, also across step borders: the tokens seen after an epoch are all of them."""
    train = _dataset((12, 5, 20, 9, 7, 3))
    _, result, _ = _fit(train, tmp_path, batch_size=2, micro_batch_size=2, epochs=2)
    assert result.steps == 6
    rows = _rows(tmp_path / "metrics.csv")
    n = sum(len(e.ids) - 1 for e in train.examples)  # the last token of each is a target only
    assert [int(row["tokens"]) for row in rows[2::3]] == [n, 2 * n]


def test_weight_decay_and_clipping_reach_the_optimizer(tmp_path: Path) -> None:
    train = _dataset((12, 5))
    options: dict[str, Any] = dict(batch_size=2, micro_batch_size=2, max_steps=1, lr=1e-1, warmup_steps=0)
    plain, decayed = (_fit(train, tmp_path, weight_decay=w, **options)[0] for w in (0.0, 0.5))
    for (_, a), (_, b) in zip(adapters(plain.model), adapters(decayed.model), strict=True):
        # B is zero and A has no gradient at the first step: decay alone changes A, by lr * weight_decay.
        torch.testing.assert_close(b.A, a.A * (1 - 0.1 * 0.5))
    rows = []
    for clip in (None, 1e-3):
        _fit(train, tmp_path, grad_clip=clip, **options)
        rows += _rows(tmp_path / "metrics.csv")
    assert float(rows[0]["grad_norm"]) == pytest.approx(float(rows[1]["grad_norm"]))  # the norm before clipping
    assert float(rows[0]["grad_norm"]) > 1e-3


@pytest.mark.parametrize("where", ["embed", "norm"])
def test_a_loss_that_is_no_number_stops_the_run(where: str, tmp_path: Path) -> None:
    llm = tiny.load()
    with torch.no_grad():
        getattr(llm.model, where).weight.fill_(math.nan)
    apply_lora(llm.model, MethodSettings())
    before = [w.clone() for w in _weights(llm)]
    with pytest.raises(ValueError, match=r"step 1: the loss is nan \(examples 0, 1, 1, 0, 0, 1, 0, 1"):
        fit(
            llm.model,
            _dataset((5, 6)),
            settings=TrainSettings(max_steps=3),
            seed=0,
            report=Report(None, None, quiet=True),
        )
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(llm), strict=True))


class Broken(NextToken):
    """Whose loss is infinite the n-th time it is asked."""

    def __init__(self, *times: int) -> None:
        self.times, self.calls = times, 0

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        self.calls += 1
        return super().loss_sum(model, batch) * (math.inf if self.calls in self.times else 1)


def _fit_broken(
    tmp: Path, times: tuple[int, ...], *, keep: int = 100, every: int | None = None, **settings: Any
) -> tuple[LLM, Result]:
    llm = tiny.load()
    torch.manual_seed(0)
    apply_lora(llm.model, MethodSettings(r=4))
    checkpoints = Checkpoints(tmp / "run", lambda folder: None, keep=keep, keep_every=every)
    options: dict[str, Any] = dict(
        batch_size=2, micro_batch_size=2, max_steps=6, lr=1e-2, schedule="constant", warmup_steps=0
    )
    with Report(tmp, None, quiet=True) as report:
        result = fit(
            llm.model, _dataset((12, 5, 20, 9, 7, 30, 11)), settings=TrainSettings(**(options | settings)), seed=5,
            report=report, checkpoints=checkpoints, objective=Broken(*times),
        )  # fmt: skip
    return llm, result


def test_a_skipped_step_changes_nothing_and_the_data_go_on(tmp_path: Path) -> None:
    llm, result = _fit_broken(tmp_path / "a", (6,), on_spike="skip")
    short, _ = _fit_broken(tmp_path / "b", (), max_steps=5)
    assert result.steps == 6
    assert not math.isfinite(result.losses[5])
    assert all(torch.equal(a, b) for a, b in zip(_weights(llm), _weights(short), strict=True))


def test_rolling_back_leaves_out_the_data_since(tmp_path: Path) -> None:
    """Steps 1, 2, a checkpoint, 3, and the fourth breaks: on with step 3 on the data of step 5."""
    llm, result = _fit_broken(tmp_path / "a", (4,), on_spike="rollback", save_interval=2, max_steps=4)
    assert result.steps == 4
    rows = _rows(tmp_path / "a" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    whole, _ = _fit_broken(tmp_path / "b", (), max_steps=6)
    # What a run without a spike sees in its steps 1, 2, 5, 6.
    losses = [float(row["loss"]) for row in _rows(tmp_path / "b" / "metrics.csv")]
    assert [float(row["loss"]) for row in rows[:2]] == losses[:2]
    tokens = [int(row["tokens"]) for row in _rows(tmp_path / "b" / "metrics.csv")]
    own = [int(row["tokens"]) for row in rows]
    assert own[2] - own[1] == tokens[4] - tokens[3]
    assert own[3] - own[2] == tokens[5] - tokens[4]


@pytest.mark.parametrize("on_spike", ["skip", "rollback", "stop"])
@pytest.mark.parametrize("times", [(1,), (4,), (5, 6), (9,), (12,)])
def test_a_step_settled_late_changes_nothing(
    times: tuple[int, ...], on_spike: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, the next step is launched before a loss is read; a bad one must leave no trace all the same."""
    found = {}
    for ahead in (False, True):
        monkeypatch.setattr(loop, "runs_ahead", lambda *_, ahead=ahead: ahead)
        folder = tmp_path / str(ahead)
        error = None
        options: dict[str, Any] = dict(on_spike=on_spike, save_interval=3, max_steps=12)
        # A void step has called for a loss as well, so that of a second break in a row comes one call later.
        later = tuple(t + n * ahead for n, t in enumerate(times)) if on_spike == "rollback" else times
        try:
            _fit_broken(folder, later, **options)
        except ValueError as e:
            error = str(e)
        columns = ("step", "loss", "lr", "tokens", "grad_norm")
        rows = [[row[name] for name in columns] for row in _rows(folder / "metrics.csv")]
        saved = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("training/*.safetensors")}
        states = {str(p.relative_to(folder)): json.loads(p.read_text())["state"] for p in folder.rglob("state.json")}
        for state in states.values():
            state.pop("seconds")
        # Of a first step that is left out an optimizer may have made its state: zeros.
        saved.pop("run/step-000000/training/optimizer.safetensors", None)
        found[ahead] = rows, saved, states, error
    assert found[True] == found[False]
    rows, saved, states, error = found[True]
    nowhere_to_go = on_spike == "rollback" and times == (1,)
    assert (error is not None) == (on_spike == "stop" or nowhere_to_go)
    assert set(states) == {str(Path(name).with_name("state.json")) for name in saved}
    assert bool(saved) != nowhere_to_go


def test_a_jump_is_left_out_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Jumps(NextToken):
        calls = 0

        def loss_sum(self, model: Any, batch: Batch) -> Tensor:
            self.calls += 1
            return super().loss_sum(model, batch) * (50 if self.calls in (30, 31) else 1)

    weights = {}
    for ahead in (False, True):
        monkeypatch.setattr(loop, "runs_ahead", lambda *_, ahead=ahead: ahead)
        llm = tiny.load()
        torch.manual_seed(0)
        apply_lora(llm.model, MethodSettings(r=4))
        options: dict[str, Any] = dict(batch_size=2, micro_batch_size=2, max_steps=35, spike_factor=6, on_spike="skip")
        with Report(None, None, quiet=True) as report:
            data = _dataset((12, 5, 20, 9, 7, 30, 11))
            result = fit(llm.model, data, settings=TrainSettings(**options), report=report, objective=Jumps())
        assert [loss > 100 for loss in result.losses] == [n in (29, 30) for n in range(35)]
        weights[ahead] = _weights(llm)
    assert all(torch.equal(a, b) for a, b in zip(weights[False], weights[True], strict=True))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("interval", [None, 3])
def test_leaving_out_every_step_ends(
    ahead: bool, interval: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "runs_ahead", lambda *_: ahead)
    with pytest.raises(ValueError, match="After 10 spikes in a row"):
        _fit_broken(tmp_path, tuple(range(2, 40)), on_spike="skip", save_interval=interval, max_steps=40)


def test_a_step_that_fails_costs_no_row_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(NextToken):
        calls = 0

        def loss_sum(self, model: Any, batch: Batch) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                raise RuntimeError("no more memory")
            return super().loss_sum(model, batch)

    monkeypatch.setattr(loop, "runs_ahead", lambda *_: True)
    llm = tiny.load()
    apply_lora(llm.model, MethodSettings(r=4))
    settings = TrainSettings(batch_size=2, micro_batch_size=2, max_steps=9)
    with pytest.raises(RuntimeError, match="no more memory"), Report(tmp_path, None, quiet=True) as report:
        fit(llm.model, _dataset((12, 5)), settings=settings, report=report, objective=Fails())
    assert [row["step"] for row in _rows(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("ahead", [False, True])
def test_limits_of_spikes_survive_a_stop(ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step is judged by must not depend on whether the step before it was settled already, as at a stop."""
    monkeypatch.setattr(loop, "runs_ahead", lambda *_: ahead)
    limits: dict[str, list[float]] = {"whole": [], "parts": []}

    def run(name: str, steps: int, resume: bool = False) -> None:
        class Noted(SpikeWatch):
            def is_bad(self, loss: Tensor, norm: Tensor | None, limit: float, *, for_good: bool) -> Tensor:
                limits[name].append(limit)
                return super().is_bad(loss, norm, limit, for_good=for_good)

        monkeypatch.setattr(loop, "SpikeWatch", Noted)
        llm = tiny.load()
        torch.manual_seed(0)
        apply_lora(llm.model, MethodSettings(r=4))
        checkpoints = Checkpoints(tmp_path / name, lambda folder: None, keep=9)
        settings = TrainSettings(
            batch_size=2, micro_batch_size=2, max_steps=steps, spike_factor=9, schedule="constant", warmup_steps=0
        )
        fit(
            llm.model, _dataset((12, 5, 20)), settings=settings, report=Report(None, None, quiet=True),
            checkpoints=checkpoints, resume=checkpoints.steps()[26] if resume else None,
        )  # fmt: skip

    run("whole", 30)
    run("parts", 26)
    run("parts", 30, resume=True)
    assert limits["whole"][21] < math.inf
    assert limits["parts"] == limits["whole"]


def test_rolling_back_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint to roll back to"):
        _fit_broken(tmp_path, (1,), on_spike="rollback", save_interval=2)


def test_validation_leaves_the_mode_and_no_gradient(tmp_path: Path) -> None:
    llm = tiny.load()
    apply_lora(llm.model, MethodSettings(dropout=0.5))
    val = _dataset((5, 9, 4, 30, 7))
    llm.model.train()
    losses = [validate(llm.model, val, NextToken(), 5, size)["val_loss"] for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert llm.model.training
    assert all(p.grad is None for p in llm.model.parameters())


def test_early_stopping(tmp_path: Path) -> None:
    """A rate so high that validation only gets worse: the best is the first, and two more are waited for."""
    options: dict[str, Any] = dict(
        batch_size=2, micro_batch_size=2, max_steps=50, lr=0.5, warmup_steps=0, val_interval=3
    )
    _, result, saved = _fit(_dataset((12, 5)), tmp_path, val=_dataset((9, 8), seed=3), early_stop=2, **options)
    losses = [loss for _, loss in result.val_losses]
    assert len(losses) >= 3
    assert result.steps == 3 * len(losses) < 50
    assert min(losses) == losses[-3]
    assert result.best_step == 3 * (len(losses) - 2)
    assert result.stopped == f"no better validation loss since step {result.best_step}"
    assert saved[-1] == result.steps


# --- how long, how fast --------------------------------------------------------------------------------------------


def test_learning_rates_reach_the_log(tmp_path: Path) -> None:
    settings = dict(batch_size=2, micro_batch_size=2, max_steps=8, lr=1e-2, warmup_steps=3, schedule="linear")
    _fit(_dataset((5, 6)), tmp_path, **settings)
    rows = _rows(tmp_path / "metrics.csv")
    assert [float(r["lr"]) for r in rows] == pytest.approx(
        [learning_rate(i, i / 8, TrainSettings(**settings)) for i in range(8)], rel=1e-5
    )  # fmt: skip


def test_save_points(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(batch_size=1, micro_batch_size=1, max_steps=7)
    assert _fit(_dataset((5, 6)), tmp_path, **options)[2] == [7]
    assert _fit(_dataset((5, 6)), tmp_path, save_interval=3, **options)[2] == [3, 6, 7]
    assert _fit(_dataset((5, 6)), tmp_path, save_interval=7, **options)[2] == [7]


class Clock:
    """In the place of `time`: each micro batch takes a minute, and nothing else any time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, loss_sum = 1000.0, NextToken.loss_sum
        monkeypatch.setattr(loop, "time", self)

        def slow(*args: Any) -> Tensor:
            self.now += 60
            return loss_sum(*args)

        monkeypatch.setattr(NextToken, "loss_sum", slow)

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("steps", "settings", "saved"),
    [
        (22, {}, [10, 20, 22]),  # every ten minutes, if nothing else is said
        (9, {"save_time": "90s"}, [2, 4, 6, 8, 9]),
        (12, {"save_time": None}, [12]),
        (11, {"save_time": "9.5m"}, [10, 11]),  # a minute is more than a tenth of that
        (13, {"save_time": "12m"}, [13]),  # the end is too near
        (13, {"save_time": "4m", "save_interval": 6}, [4, 6, 10, 12, 13]),
        (None, {"max_time": "9m", "save_time": "4m"}, [4, 8, 9]),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_checkpoints_by_the_clock(
    steps: int | None, settings: dict[str, Any], saved: list[int], ahead: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Clock(monkeypatch)
    monkeypatch.setattr(loop, "runs_ahead", lambda *_: ahead)
    assert _fit(_dataset((5, 6)), tmp_path, max_steps=steps, batch_size=1, micro_batch_size=1, **settings)[2] == saved


def test_a_checkpoint_that_takes_long_is_followed_by_a_whole_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, save = Clock(monkeypatch), Checkpoints.save

    def slow(*args: Any, **options: Any) -> Path:
        clock.now += 60 * 60
        return save(*args, **options)

    monkeypatch.setattr(Checkpoints, "save", slow)
    options: dict[str, Any] = dict(max_steps=25, batch_size=1, micro_batch_size=1)
    assert _fit(_dataset((5, 6)), tmp_path, **options)[2] == [10, 20, 25]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("keep", [1, 9])
def test_rolling_back_does_not_depend_on_the_clock(
    keep: int, ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches are bad. Back to the last multiple of 5, not to what the clock has asked for since."""
    number, batch = 0, EpochSampler.batch

    def noted(order: EpochSampler, n: int, size: int) -> list[int]:
        nonlocal number
        number = n
        return batch(order, n, size)

    Clock(monkeypatch)
    slow = NextToken.loss_sum
    monkeypatch.setattr(EpochSampler, "batch", noted)
    monkeypatch.setattr(NextToken, "loss_sum", lambda *args: slow(*args) * (math.inf if number in (8, 17) else 1))
    monkeypatch.setattr(loop, "runs_ahead", lambda *_: ahead)
    found = {}
    for save_time in (None, "1m"):
        folder = tmp_path / str(save_time)
        options: dict[str, Any] = dict(on_spike="rollback", save_interval=5, save_time=save_time, max_steps=14)
        llm, result = _fit_broken(folder, (), keep=keep, every=5, **options)
        rows = [[row[name] for name in ("step", "loss", "lr", "tokens")] for row in _rows(folder / "metrics.csv")]
        states = [
            json.loads(p.read_text())["state"] for p in sorted((folder / "run").glob("step-*/training/state.json"))
        ]
        saved, offsets = [state["step"] for state in states], [state["offset"] for state in states]
        assert saved == [10, 14] if keep == 1 else {10, 14} <= set(saved)
        assert offsets == sorted(offsets), "what was given up is gone"
        assert offsets[-1] == 4 + 4
        found[save_time] = rows, [w.tolist() for w in _weights(llm)], result.losses
    assert found[None] == found["1m"]


def test_a_second_ctrl_c_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert "again to stop without saving" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("step", [3, 4])
def test_a_signal_is_never_lost(step: int, ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not in the last step."""
    loss_sum, calls = NextToken.loss_sum, itertools.count(1)

    def signalled(*args: Any) -> Tensor:
        if next(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return loss_sum(*args)

    monkeypatch.setattr(NextToken, "loss_sum", signalled)
    monkeypatch.setattr(loop, "runs_ahead", lambda *_: ahead)
    _, result, saved = _fit(_dataset((5, 6)), tmp_path, batch_size=2, micro_batch_size=2, max_steps=4)
    assert (result.stopped, result.steps, saved) == ("SIGTERM", step, [step])
    assert [int(row["step"]) for row in _rows(tmp_path / "metrics.csv")] == list(range(1, step + 1))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"lr": 0.0}, "lr=0.0"), ({"lr": math.nan}, "lr=nan"), ({"max_time": "3 weeks"}, "max_time='3 weeks'"),
        ({"save_time": "10"}, "save_time='10' must be a number and a unit"), ({"save_time": "0s"}, "save_time='0s'"),
        ({"max_steps": 0}, "max_steps=0"), ({"epochs": 0}, "epochs=0"), ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"grad_clip": 0.0}, "grad_clip=0"), ({"warmup_steps": -1}, "warmup_steps=-1"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainSettings(**bad)
