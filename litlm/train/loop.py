"""The training loop: one for every method, every objective and every kind of data.

A step's loss is the sum over all that its examples give to learn, divided by how much that is, however they fall into
micro batches and rows. So micro batches and packing change speed and memory, never a step. Where a run stands is
a few numbers (`State`): the data a step sees follow from its number and the seed.

A step is launched, and later settled. Launching hands its work to the device, the update of the weights included;
settling reads what came of it (loss, gradient norm), writes the log, validates and saves. On a CPU one follows the
other. On CUDA, with an optimizer that can leave a step out there (AdamW, Adam), a step is settled while the next one
runs, so that the device never waits for Python; whether the weights may change is decided by `SpikeWatch.forbids`.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.checkpoint.training import Checkpoints, load_checkpoint, put_weights
from litlm.data.base import Batch, Dataset, Order
from litlm.model import GPT
from litlm.model.moe import RouterWatch, watch_routers
from litlm.settings import TrainSettings
from litlm.train.flops import peak_flops, train_flops_per_token
from litlm.train.identity import check_same
from litlm.train.limits import Limits
from litlm.train.loss import NextToken, Objective, Runner
from litlm.train.mixed import MasterWeights, hooks_of
from litlm.train.optim import (
    MixedAdamW,
    can_leave_out,
    clip_gradients,
    leave_out,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)
from litlm.train.report import Report
from litlm.train.schedule import learning_rate
from litlm.train.spikes import SpikeWatch
from litlm.transforms.blocks import training_blocks
from litlm.transforms.fp8 import fp8_training

if TYPE_CHECKING:
    from lightning.fabric import Fabric


STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
MOST_SETBACKS = 10  # spikes in a row, or returns to one checkpoint: broken weights would be gone back to forever


@dataclass
class State:
    """Where a run stands.

    step: optimizer steps so far. offset: batches of data left out by rollbacks; step + offset is the next batch. best:
    the lowest validation loss, at best_step. waited: validations since. spikes: of `SpikeWatch`. kind: what a resumed
    run must share, such as data and method; other training settings may change, which is said.
    """

    step: int = 0
    offset: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    spikes: dict[str, Any] = field(default_factory=dict)
    kind: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What a run did. losses: of each of its steps; val_losses: (step, loss); stopped: why, where before its end."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_s: float = 0.0
    best_step: int | None = None
    stopped: str | None = None


class Moment:
    """When the device is done with all that was launched so far."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: Moment) -> float:
        """Seconds, of two moments that have come."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1000


class Numbers:
    """Scalars on their way from the device: `read` waits for them, and for nothing that was launched after them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._names = list(values)
        on_device = torch.stack([value.detach().float() for value in values.values()])
        self._values = on_device.to("cpu", non_blocking=on_device.is_cuda)
        self._arrived = Moment(on_device.device)

    def read(self) -> dict[str, float]:
        self._arrived.wait()
        return dict(zip(self._names, self._values.tolist(), strict=True))


@dataclass
class Step:
    """A step that was launched.

    before: where the run stood. numbers: loss, grad_norm, bad (1 where the weights were left as they were), and what
    objective and routers have to say. limit: the loss above which it is a spike. done: when the weights are updated.
    last: the run ends with it. shows: it is time to validate and to sample. saves: it is time for a checkpoint.
    """

    number: int
    before: State
    examples: list[int]
    n_tokens: int
    lr: float
    numbers: Numbers
    limit: float
    done: Moment
    last: bool = False
    shows: bool = False
    saves: bool = False


def fit(
    model: GPT,
    train: Dataset,
    val: Dataset | None = None,
    *,
    settings: TrainSettings | None = None,
    objective: Objective | None = None,
    seed: int = 1337,
    fabric: Fabric | None = None,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    resume: Path | None = None,
    sample: Callable[[], list[tuple[str, str]]] | None = None,
    begun: Callable[[], None] | None = None,
    kind: dict[str, Any] | None = None,
) -> Result:
    """Train the parameters of `model` that require gradients.

    resume: a checkpoint to go on from. sample: prompts and their continuations, asked for before, at validations and
    after. begun: called once it is sure that the settings fit model and checkpoint. kind: what else a run must
    share with the checkpoint that it goes on from, such as the method's settings. Without `report` nothing is written
    but a line on the console, without `checkpoints` nothing is saved.
    """
    settings, report = settings or TrainSettings(), report or Report(None, None)
    run = Run(
        model, train, val, settings, objective or NextToken(), seed, fabric or make_fabric(model), report, checkpoints,
        sample, kind or {},
    )  # fmt: skip
    if resume is not None:
        run.state = run.load(resume)
    over = run.is_over()
    if over:
        report.say(f"Already at step {run.state.step}, where a run with {run.limits.why(*run.used())} ends")
    elif begun is not None:
        begun()
    if resume is not None and checkpoints is not None:
        checkpoints.prune(run.state.best_step)
    run.start()
    compiled = compiles(settings, run.device)
    with (
        stop_on_signals() as stop,
        fp8_training(model) if settings.fp8 else nullcontext(),
        training_blocks(model, compile=compiled, checkpointing=settings.checkpointing),
        hooks_of(run.masters, run.optimizer),
        frozen_objects() as freeze,
    ):
        while not (over or stop or run.result.stopped):
            try:
                step = run.launch()
            except Exception:
                run.settle_all()  # the step before it is no part of the failure
                raise
            if compiled and step.number == run.first + 1:
                freeze()
            run.plan(step, hurry=bool(stop))
            # What is validated or saved are the weights after this very step.
            late = run.ahead and not (step.shows or step.saves)
            went_back = not run.settle_all(but=1 if late else 0)
            over = step.last and not went_back
        run.settle_all()
        if stop and not over:
            run.result.stopped = stop[0]
            if run.saved != run.state.step:
                run.save()
    return run.finish()


@contextmanager
def frozen_objects() -> Iterator[Callable[[], None]]:
    """Gives a function after which full garbage collections pass over what is there, until the block ends.

    Compiling leaves so many objects that a collection takes a third of a second, in the middle of some later step.
    """
    taken = gc.get_freeze_count() > 0  # somebody else's, whose objects stay frozen

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield freeze
    finally:
        if not taken:
            gc.unfreeze()


class Run:
    """A run under way: what `fit` works with."""

    def __init__(
        self,
        model: GPT,
        train: Dataset,
        val: Dataset | None,
        settings: TrainSettings,
        objective: Objective,
        seed: int,
        fabric: Fabric,
        report: Report,
        checkpoints: Checkpoints | None,
        sample: Callable[[], list[tuple[str, str]]] | None,
        kind: dict[str, Any],
    ) -> None:
        check_fit(model, settings, val)
        assert isinstance(settings.micro_batch_size, int)
        self.model, self.train, self.val, self.settings, self.objective = model, train, val, settings, objective
        self.fabric, self.report, self.checkpoints, self.sample = fabric, report, checkpoints, sample
        self.device, self.micro_batch_size = fabric.device, settings.micro_batch_size
        self.masters = MasterWeights(model) if settings.precision == "bf16-mixed" else None
        self.params = {name: p for name, p in (self.masters or model).named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(self.masters or model, settings)
        self.runner, self.wrapped = fabric.setup(model, self.optimizer)
        self.ahead = runs_ahead(self.device, self.optimizer)
        self.limits, self.order = Limits(settings, len(train)), Order(len(train), seed)
        self.kind = {"seed": seed, "batch_size": settings.batch_size, "examples": len(train), "tokens": train.digest()}
        self.kind |= kind
        self.state, self.result, self.spikes = State(kind=self.kind), Result(), SpikeWatch(settings.spike_factor)
        self.unsettled: list[Step] = []
        self.setbacks, self.saved = 0, -1
        self.flops, self.peak = train_flops(model, train), peak_flops(self.device, settings.fp8)

    def start(self) -> None:
        self.report.start(step=self.state.step)
        if self.settings.early_stop and self.state.waited >= self.settings.early_stop:  # a run that was over already
            self.result.stopped = f"no better validation loss since step {self.state.best_step}"
        if self.sample is not None and self.state.step == 0:
            self.report.samples(0, self.sample())
        self.first, self.seen, self.busy = self.state.step, 0, 0.0
        self.clock = Moment(self.device)  # from when on the next step to be settled counts
        self.saved_at = time.perf_counter()
        self.zero = time.perf_counter() - self.state.seconds  # when the run would have begun without a stop
        self.model.train()

    def used(self) -> tuple[int, int, float]:
        return self.state.step, self.state.tokens, self.state.seconds

    def is_over(self) -> bool:
        return self.limits.reached(*self.used())

    # --- a step ----------------------------------------------------------------------------------------------------

    def launch(self) -> Step:
        """A step's data, gradients and update. Where `ahead`, nothing here waits for the device."""
        state, settings, before = self.state, self.settings, replace(self.state)
        lr = learning_rate(state.step, self.limits.progress(*self.used()), settings, steps=self.limits.steps())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        examples = self.order.batch(state.step + state.offset, settings.batch_size)
        batches = self.train.batches(examples, self.micro_batch_size)

        loss, routers = gradients(self.model, self.runner, self.objective, batches, settings, self.fabric.backward)
        norm = clip_gradients(self.optimizer, self.params.values(), settings.grad_clip)
        # By the losses up to two steps before this one: one step ahead, the last is not known yet, and what a step is
        # judged by must not depend on that, or resuming would not be exact.
        limit = self.spikes.limit() if self.unsettled else self.spikes.limit_before
        bad = self.spikes.forbids(loss, norm, limit, for_good=settings.on_spike != "skip")
        norms = {} if norm is None else {"grad_norm": norm}
        numbers = Numbers({"loss": loss, "bad": bad} | norms | self.objective.metrics() | routers)
        if self.ahead:
            leave_out(self.optimizer, bad)
            self._update()
        elif not numbers.read()["bad"]:
            self._update()
        self.wrapped.zero_grad(set_to_none=True)

        n_tokens = sum(batch.n_tokens for batch in batches)
        state.step, state.tokens = state.step + 1, state.tokens + n_tokens
        state.seconds = time.perf_counter() - self.zero
        step = Step(state.step, before, examples, n_tokens, lr, numbers, limit, Moment(self.device))
        self.unsettled.append(step)
        return step

    def _update(self) -> None:
        self.wrapped.step()
        if self.masters is not None and not isinstance(self.optimizer, MixedAdamW):
            self.masters.publish()

    def plan(self, step: Step, *, hurry: bool) -> None:
        """What there is to do once the step is settled. hurry: save at once, for validating could take minutes."""
        step.last = self.is_over()
        step.shows = not hurry and (step.last or step.number % self.settings.val_interval == 0)
        step.saves = step.last or planned(step.number, self.settings) or self._due()

    def _due(self) -> bool:
        """Whether the last checkpoint is too old, by save_time. Not where the run is about to end anyway."""
        pause, (*_, seconds) = self.settings.save_seconds, self.used()
        if pause is None or self.checkpoints is None or time.perf_counter() - self.saved_at < pause:
            return False
        share = self.limits.progress(*self.used())
        return seconds * (1 - share) / share > pause / 10  # what is left, if it goes on as fast as so far

    def settle_all(self, but: int = 0) -> bool:
        """Settle what was launched, but for the latest few. False if the run went back to a checkpoint."""
        while len(self.unsettled) > but:
            if not self.settle(self.unsettled.pop(0)):
                self.unsettled.clear()  # was launched on weights that are no more
                return False
        return True

    def settle(self, step: Step) -> bool:
        """Read what came of a step: the log, validation, checkpoints. False if the run went back to a checkpoint."""
        found, settings, state = step.numbers.read(), self.settings, self.state
        assert step.number == state.step or not (step.shows or step.saves)
        step.done.wait()
        took, self.clock = step.done.since(self.clock), step.done
        loss, bad = found.pop("loss"), found.pop("bad")
        problem = self.spikes.check(loss, found.get("grad_norm"), step.limit)
        if problem is not None and not self._go_on(problem, step):
            self.clock = Moment(self.device)
            return False
        if not bad and settings.on_spike != "rollback":
            self.setbacks = 0
        self.busy, self.seen = self.busy + took, self.seen + step.n_tokens
        self.result.losses.append(loss)
        tokens, seconds = step.before.tokens + step.n_tokens, time.perf_counter() - self.zero
        row: dict[str, float | None] = dict(
            step=step.number, loss=loss, val_loss=None, lr=step.lr, grad_norm=None, tokens=tokens,
            tokens_per_s=step.n_tokens / took, seconds=seconds,
        ) | found  # fmt: skip
        if self.peak is not None:
            row["mfu"] = self.flops * step.n_tokens / took / self.peak
        if self.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if step.shows and self.val is not None:
            row |= self._validate(self.val)
        self.report.step(row, self.limits.progress(step.number, tokens, seconds))
        if step.shows and self.sample is not None:
            self.report.samples(step.number, sampled(self.model, self.sample))
        if step.shows and not step.last:
            self.report.draw()
        best = step.number == state.best_step and bool(settings.save_interval or settings.early_stop)
        if step.saves or best or self.result.stopped:
            self.save()
            # Not at other checkpoints: those are not gone back to, so returns before them lead to the same one.
            if not bad and planned(step.number, settings):
                self.setbacks = 0
        if not self.unsettled:  # validating and saving are no part of the next step's time
            self.clock = Moment(self.device)
        return True

    def _go_on(self, problem: str, step: Step) -> bool:
        """After a step that was left out: True to go on, False where the run went back; or give up."""
        settings = self.settings
        problem = f"step {step.number}: {problem} (examples {_some(step.examples)})"
        self.setbacks += 1
        if settings.on_spike == "stop" or settings.optimizer_in_backward or self.setbacks > MOST_SETBACKS:
            self.state = step.before
            saves = settings.on_spike == "stop" and not settings.optimizer_in_backward
            if saved := saves and self.checkpoints is not None:
                self.save()
            raise ValueError(given_up(problem, settings, saved=saved))
        self.report.say(f"{problem}: {'left out' if settings.on_spike == 'skip' else 'back to the last checkpoint'}")
        if settings.on_spike == "skip":
            return True
        self.objective.metrics()  # forget what the steps that are gone have noted
        self.spikes.forgive()
        self.state = roll_back(step.before, self.checkpoints, self.load, settings)
        self.state.seconds = time.perf_counter() - self.zero
        self.result.val_losses = [(at, loss) for at, loss in self.result.val_losses if at <= self.state.step]
        del self.result.losses[max(0, self.state.step - self.first) :]
        return False

    def _validate(self, val: Dataset) -> dict[str, float]:
        settings, state = self.settings, self.state
        found = validate(self.fabric, self.model, val, self.objective, settings.batch_size, self.micro_batch_size)
        loss = found["val_loss"]
        self.result.val_losses.append((state.step, loss))
        if math.isfinite(loss) and (state.best is None or loss < state.best):
            state.best, state.best_step, state.waited = loss, state.step, 0
        else:
            state.waited += 1
            if settings.early_stop and state.waited >= settings.early_stop:
                self.result.stopped = f"no better validation loss since step {state.best_step}"
        return found

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        if self.checkpoints is not None:
            state = self.state
            state.seconds, state.spikes = time.perf_counter() - self.zero, self.spikes.state_dict()
            now = optimizer_state(self.optimizer)
            self.checkpoints.save(state.step, asdict(state), self.params, now, best=state.best_step)
            self.saved, self.saved_at = state.step, time.perf_counter()

    def load(self, path: Path) -> State:
        found, weights, stored = load_checkpoint(path)
        for line in check_same(path, self.kind, found["kind"]):
            self.report.say(line)
        put_weights(path, self.params, weights)
        if self.masters is not None:
            self.masters.publish()
        load_optimizer_state(self.optimizer, *stored)
        self.spikes.load_state_dict(found["spikes"])
        return replace(State(**found), kind=self.kind)

    def finish(self) -> Result:
        self.model.eval()
        result = self.result
        result.steps, result.best_step = self.state.step, self.state.best_step
        result.tokens_per_s = self.seen / self.busy if self.busy else 0.0
        self.report.finish(stopped=result.stopped)
        return result


def runs_ahead(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether steps are settled one step late: on a device that works by itself and can leave out a bad step there."""
    return device.type == "cuda" and can_leave_out(optimizer)


def check_fit(model: GPT, settings: TrainSettings, val: Dataset | None) -> None:
    """Raise a ValueError for settings that don't go with the model or the data."""
    if settings.micro_batch_size == "auto" or settings.lr == "find":
        raise ValueError("fit takes numbers for micro_batch_size and lr; litlm.train.trials finds them")
    if settings.early_stop and val is None:
        raise ValueError(f"early_stop={settings.early_stop} needs data to validate on; set val_fraction or val_path")
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}.get(settings.precision)
    if dtype is not None and model.embed.weight.dtype != dtype:
        name = str(model.embed.weight.dtype).removeprefix("torch.")
        raise ValueError(f"precision={settings.precision}, but the model is {name}; load it in the dtype to train in")


def gradients(
    model: GPT,
    runner: Runner,
    objective: Objective,
    batches: Sequence[Batch],
    settings: TrainSettings,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up a step's gradients, micro batch by micro batch; its loss, and what the routers of a mixture did."""
    if settings.optimizer_in_backward and len(batches) > 1:
        raise ValueError(
            f"optimizer_in_backward takes one micro batch a step, and this step has {len(batches)}; raise "
            "micro_batch_size (with packing, batch_size is always enough), or lower batch_size"
        )
    device, count = model.embed.weight.device, max(1, sum(map(objective.count, batches)))
    tokens = sum(batch.n_tokens for batch in batches)
    total = torch.zeros((), device=device)
    with watch_routers(model) as routers:
        for batch in batches:
            routers.clear()
            part = objective.loss_sum(model, runner, batch.to(device))
            total += part.detach()
            backward(part / count + router_loss(routers, settings, batch) * (batch.n_tokens / tokens))
        return total / count, routers.statistics()


def given_up(problem: str, settings: TrainSettings, *, saved: bool) -> str:
    """What a run says that ends for a spike."""
    if settings.optimizer_in_backward:
        return f"{problem}. The weights have moved already; go on from an earlier checkpoint"
    if settings.on_spike != "stop":
        what = "spikes in a row" if settings.on_spike == "skip" else "returns to the last checkpoint"
        return f"{problem}. After {MOST_SETBACKS} {what} it is not the data; lower lr"
    kept = ", and the run as it was is saved" if saved else ""
    return (
        f"{problem}. The step was not taken{kept}. Lower lr, look at these examples, or go on past such steps with "
        "on_spike=skip (or rollback)"
    )


def router_loss(routers: RouterWatch, settings: TrainSettings, batch: Batch) -> Tensor | float:
    """What keeps the experts of a mixture evenly used over a micro batch, as far as the settings ask for it."""
    if not routers.routings or not (settings.router_balance or settings.router_z):
        return 0.0
    mask = batch.mask()
    return settings.router_balance * routers.balance_loss(mask) + settings.router_z * routers.z_loss(mask)


@torch.no_grad()
def validate(
    fabric: Fabric, model: GPT, data: Dataset, objective: Objective, batch_size: int, micro_batch_size: int
) -> dict[str, float]:
    """The mean loss over the data as val_loss, and what else the objective has to say."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(data), batch_size):
        for batch in data.batches(range(start, min(start + batch_size, len(data))), micro_batch_size):
            total += objective.loss_sum(model, model, batch.to(fabric.device)).item()
            count += objective.count(batch)
    model.train()
    return {"val_loss": total / count} | {f"val_{key}": value.item() for key, value in objective.metrics().items()}


def sampled(model: GPT, sample: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    model.eval()
    try:
        return sample()
    finally:
        model.train()


def planned(step: int, settings: TrainSettings) -> bool:
    """Whether save_interval asks for a checkpoint of this step."""
    return settings.save_interval is not None and step % settings.save_interval == 0


def roll_back(
    state: State, checkpoints: Checkpoints | None, load: Callable[[Path], State], settings: TrainSettings
) -> State:
    """The state of the last checkpoint that save_interval asked for, with the data since left out.

    When others are written depends on the clock, on signals and on the machine, and what a run learns must not. They
    belong to the way that was given up, so later ones are removed.
    """
    every = checkpoints.steps() if checkpoints is not None else {}
    targets = [step for step in every if step <= state.step and planned(step, settings)]
    if checkpoints is None or not targets:
        raise ValueError(f"step {state.step + 1}: there is no checkpoint to roll back to yet; set save_interval lower")
    before = load(every[targets[-1]])
    before.offset = state.offset + state.step + 1 - before.step
    for step in every:
        if step > before.step:
            checkpoints.remove(every[step])
    return before


def make_fabric(model: GPT) -> Fabric:
    """Fabric for the device that the model is on."""
    from lightning.fabric import Fabric

    device = model.embed.weight.device
    # What precision asks for is in the weights: the model computes in their dtype.
    return Fabric(accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1)


def compiles(settings: TrainSettings, device: torch.device) -> bool:
    return device.type == "cuda" if settings.compile is None else settings.compile


def train_flops(model: GPT, train: Dataset) -> float:
    """Operations for each token of training, as MFU counts them."""
    frozen = not any(p.requires_grad for name, p in model.layers.named_parameters() if name.endswith("proj.weight"))
    batch = train.batches([0], 1)[0]
    return train_flops_per_token(model.config, batch.tokens.size(1), frozen=frozen)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


@contextmanager
def stop_on_signals() -> Iterator[list[str]]:
    """A list that gets a reason on Ctrl-C, SIGTERM or SIGHUP (the terminal is closed): the step under way ends, the run
    saves. Twice ends at once. A SIGHUP that is ignored already (nohup) stays so.
    """
    stop: list[str] = []

    def handle(signum: int, frame: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append("Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name)
        with suppress(OSError):  # the terminal may be gone
            print("\nStopping after this step; press Ctrl-C again to stop without saving.", file=sys.stderr)

    before: dict[int, Any] = {}
    try:
        for name in STOP_SIGNALS:
            signum = getattr(signal, name, None)  # Windows has no SIGHUP
            if signum is not None and not (name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN):
                before[signum] = signal.signal(signum, handle)
    except ValueError:  # not the main thread: a notebook's worker, say
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
