"""The training loop: one for all methods, objectives and data.

A step's loss is the sum over everything its examples give to learn, divided by how much that is, whatever micro batches
and rows they are laid out in. So micro batches and packing change speed and memory, never a step. Where a run stands is
a few numbers (`State`): a step's data follow from its number and the seed.

A step is launched and later finalized. Launching queues its work on the device, including the update of the weights;
finalizing reads the results (loss, gradient norm), logs, validates and saves. On a CPU the two alternate. On CUDA, with
an optimizer that can skip a step there (AdamW, Adam), a step is finalized while the next one runs, so the device never
waits for Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.checkpoint.training import Checkpoints, load_checkpoint, restore_weights
from litlm.data.base import Batch, Dataset, EpochSampler
from litlm.model import GPT
from litlm.model.moe import RouterWatch, watch_routers
from litlm.settings import TrainSettings
from litlm.train.fingerprint import check_same
from litlm.train.flops import peak_flops, train_flops
from litlm.train.limits import Limits
from litlm.train.loss import NextToken, Objective
from litlm.train.optim import (
    can_skip_on_device,
    clip_gradients,
    hooks_removed,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    skip_step_if,
)
from litlm.train.pending import DeviceEvent, PendingMetrics, State, Step
from litlm.train.precision import check_dtype, optimized_weights
from litlm.train.process import freezable_garbage, stop_on_signals
from litlm.train.report import Report
from litlm.train.schedule import learning_rate
from litlm.train.spikes import SpikeWatch
from litlm.transforms.blocks import training_blocks
from litlm.transforms.fp8 import fp8_training

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SampleFn = Callable[[], list[tuple[str, str]]]  # prompts and the model's continuations
MAX_SETBACKS = 10  # spikes in a row, or returns to one checkpoint: with broken weights this would go on forever


@dataclass
class Result:
    """What a run did. losses: of its steps; val_losses: (step, loss); stopped: why it ended early, if it did."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_s: float = 0.0
    best_step: int | None = None
    stopped: str | None = None


def fit(
    model: GPT,
    train: Dataset,
    val: Dataset | None = None,
    *,
    settings: TrainSettings | None = None,
    objective: Objective | None = None,
    seed: int = 1337,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    resume: Path | None = None,
    sample: SampleFn | None = None,
) -> Result:
    """Train the parameters of `model` that require gradients.

    resume: the checkpoint to continue from. sample: asked before training, at validations and after. Without `report`
    only the console is written to, without `checkpoints` nothing is saved. Raises ValueError if the settings don't fit
    model, data or checkpoint, and when a loss is not finite (see `on_spike`).
    """
    options: dict[str, Any] = dict(settings=settings, objective=objective, seed=seed, report=report)
    trainer = Trainer(model, train, val, checkpoints=checkpoints, **options)
    if resume is not None:
        trainer.load(resume)
    return trainer.train(sample)


class Trainer:
    """A training run: what `fit` does, in parts.

    fingerprint: what a run that continues from one of its checkpoints must share, beside seed and data.
    """

    def __init__(
        self,
        model: GPT,
        train: Dataset,
        val: Dataset | None = None,
        *,
        settings: TrainSettings | None = None,
        objective: Objective | None = None,
        seed: int = 1337,
        report: Report | None = None,
        checkpoints: Checkpoints | None = None,
        fingerprint: dict[str, Any] | None = None,
    ) -> None:
        settings = settings or TrainSettings()
        check_settings(model, settings, val)
        assert isinstance(settings.micro_batch_size, int)
        self.settings, self.objective = settings, objective or NextToken()
        self.train_data, self.val_data, self.order = train, val, EpochSampler(len(train), seed)
        self.report, self.checkpoints = report or Report(None, None), checkpoints
        self.micro_batch_size, self.limits = settings.micro_batch_size, Limits(settings, len(train))
        self.fabric = make_fabric(model)
        self.device = self.fabric.device
        self.weights = optimized_weights(model, settings.precision)
        optimizer = make_optimizer(self.weights, settings)
        self.module = model
        self.model, self.optimizer = self.fabric.setup(model, optimizer)  # wrapped; they forward all attributes
        self.runs_ahead = runs_ahead(self.device, optimizer)
        self.fingerprint: dict[str, Any] = dict(
            seed=seed, batch_size=settings.batch_size, examples=len(train), tokens=train.fingerprint(),
            val=None if val is None else val.fingerprint(),
        ) | (fingerprint or {})  # fmt: skip
        self.state, self.result, self.spikes = State(), Result(), SpikeWatch(settings.spike_factor)
        self.pending: list[Step] = []  # launched, but not finalized
        self.setbacks, self.saved_step = 0, -1
        self.flops_per_token, self.peak_flops = train_flops(model, train), peak_flops(self.device, settings.fp8)

    @property
    def is_over(self) -> bool:
        """Whether a limit is reached, or validation has not improved for too long."""
        return self.limits.reached(*self._used()) or self._stops_early

    @property
    def _stops_early(self) -> bool:
        patience = self.settings.early_stop
        return patience is not None and self.state.waited >= patience

    def train(self, sample: SampleFn | None = None) -> Result:
        """Run until a limit is reached, a signal arrives, or validation no longer gets better."""
        over, compiled = self.is_over, compiles(self.settings, self.device)
        self._start(sample)
        with (
            stop_on_signals() as stop,
            fp8_training(self.module) if self.settings.fp8 else nullcontext(),
            training_blocks(self.module, compile=compiled, checkpointing=self.settings.checkpointing),
            hooks_removed(self.weights, self.optimizer),
            freezable_garbage() as freeze,
        ):
            while not (over or stop or self.result.stopped):
                try:
                    step = self._launch()
                except Exception:
                    self._finalize_pending()  # the step before has not failed
                    raise
                if compiled and step.number == self.start_step + 1:
                    freeze()
                self._schedule(step, stopping=bool(stop))
                # Validation and checkpoints need the weights as they are after this very step.
                late = self.runs_ahead and not (step.validates or step.saves)
                rolled_back = not self._finalize_pending(keep=1 if late else 0)
                over = step.is_last and not rolled_back
            self._finalize_pending()
            if stop:
                self.result.stopped = stop[0]
                if self.saved_step != self.state.step:
                    self.save()
        return self._finish()

    def _start(self, sample: SampleFn | None) -> None:
        self._check_early_stop()  # of a run that had ended already
        if self.is_over:
            self.report.say(f"Already at step {self.state.step}, where the run ends: {self._why_over()}")
        if self.checkpoints is not None and self.state.step:
            self.checkpoints.prune(self.state.best_step)
        self.report.start(step=self.state.step)
        self.sample = sample
        if sample is not None and self.state.step == 0:
            self.report.samples(0, sample())
        self.start_step, self.trained_tokens, self.trained_seconds = self.state.step, 0, 0.0
        self.last_done = DeviceEvent(self.device)  # from here the next step to be finalized is timed
        self.saved_at = time.perf_counter()
        self.started_at = time.perf_counter() - self.state.seconds  # as if the run had never been interrupted
        self.model.train()

    def _used(self) -> tuple[int, int, float]:
        """What counts against the limits."""
        return self.state.step, self.state.tokens, self.state.seconds

    def _why_over(self) -> str:
        return self.result.stopped or self.limits.why(*self._used())

    def already_finished(self) -> Result:
        """The result of a run with nothing left to train, which is left as it is."""
        self._check_early_stop()
        self.report.say(
            f"Already finished at step {self.state.step} ({self._why_over()}): nothing is trained or written. To train "
            "further, raise that limit"
        )
        return self._take_result()

    def _take_result(self) -> Result:
        self.model.eval()
        self.result.steps, self.result.best_step = self.state.step, self.state.best_step
        return self.result

    def _finish(self) -> Result:
        result = self._take_result()
        result.tokens_per_s = self.trained_tokens / self.trained_seconds if self.trained_seconds else 0.0
        self.report.finish(stopped=result.stopped)
        return result

    # --- a step ----------------------------------------------------------------------------------------------------

    def _launch(self) -> Step:
        """Queue a step on the device: data, gradients, update. If `runs_ahead`, nothing here waits for the device."""
        state, settings, before = self.state, self.settings, replace(self.state)
        lr = learning_rate(state.step, self.limits.progress(*self._used()), settings, steps=self.limits.steps())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        examples = self.order.batch(state.step + state.offset, settings.batch_size)
        batches = self.train_data.batches(examples, self.micro_batch_size)

        loss, router_metrics = gradients(self.model, self.objective, batches, settings, self.fabric.backward)
        params = (p for _, p in self.weights.named_parameters())
        norm = clip_gradients(self.optimizer, params, settings.grad_clip)
        # By the losses up to two steps ago: when running ahead, the last one is not known yet, and a step must not be
        # judged differently after resuming.
        limit = self.spikes.limit() if self.pending else self.spikes.limit_before
        bad = self.spikes.is_bad(loss, norm, limit, for_good=settings.on_spike != "skip")
        metrics = {"loss": loss, "bad": bad} | ({} if norm is None else {"grad_norm": norm})
        pending = PendingMetrics(metrics | self.objective.metrics() | router_metrics)
        if self.runs_ahead:  # the device decides whether the step changes anything
            skip_step_if(self.optimizer, bad)
            self.optimizer.step()
        elif not pending.read()["bad"]:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        n_tokens = sum(batch.n_tokens for batch in batches)
        state.step, state.tokens = state.step + 1, state.tokens + n_tokens
        state.seconds = time.perf_counter() - self.started_at
        step = Step(state.step, before, examples, n_tokens, lr, pending, limit, DeviceEvent(self.device))
        self.pending.append(step)
        return step

    def _schedule(self, step: Step, *, stopping: bool) -> None:
        """Decide what to do once the step is finalized. stopping: don't validate before saving, it may take minutes."""
        step.is_last = self.is_over
        step.validates = not stopping and (step.is_last or step.number % self.settings.val_interval == 0)
        step.saves = step.is_last or self._is_save_step(step.number) or self._checkpoint_is_due()

    def _is_save_step(self, step: int) -> bool:
        """Whether save_interval asks for a checkpoint of this step."""
        interval = self.settings.save_interval
        return interval is not None and step % interval == 0

    def _checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint is older than save_time, unless the run is about to end anyway."""
        interval, seconds = self.settings.save_seconds, self.state.seconds
        if interval is None or self.checkpoints is None or time.perf_counter() - self.saved_at < interval:
            return False
        share = self.limits.progress(*self._used())
        return seconds * (1 - share) / share > interval / 10  # the time left, at the speed so far

    def _finalize_pending(self, keep: int = 0) -> bool:
        """Finalize all launched steps but the latest `keep`. False if the run went back to a checkpoint."""
        while len(self.pending) > keep:
            if not self._finalize_step(self.pending.pop(0)):
                self.pending.clear()  # launched on weights that are no more
                return False
        return True

    def _finalize_step(self, step: Step) -> bool:
        """Read a step's results, log, validate and save. False if the run went back to a checkpoint."""
        metrics, settings = step.metrics.read(), self.settings
        assert step.number == self.state.step or not (step.validates or step.saves)
        step.done.wait()
        seconds, self.last_done = step.done.seconds_since(self.last_done), step.done
        loss, bad = metrics.pop("loss"), metrics.pop("bad")
        problem = self.spikes.check(loss, metrics.get("grad_norm"), step.spike_limit)
        if problem is not None and not self._handle_spike(problem, step):
            self.last_done = DeviceEvent(self.device)
            return False
        if not bad and settings.on_spike != "rollback":
            self.setbacks = 0
        self.result.losses.append(loss)
        self._log(step, loss, seconds, metrics)
        if step.validates and not step.is_last:
            self.report.draw()
        is_best = step.number == self.state.best_step and bool(settings.save_interval or settings.early_stop)
        if step.saves or is_best or self.result.stopped:
            self.save()
            # Not at other checkpoints: a rollback never returns to those, so it would return to the same one again.
            if not bad and self._is_save_step(step.number):
                self.setbacks = 0
        if not self.pending:  # validating and saving don't count as the next step's time
            self.last_done = DeviceEvent(self.device)
        return True

    def _log(self, step: Step, loss: float, seconds: float, metrics: dict[str, float]) -> None:
        """Report the step, with a validation if it is time for one. seconds: what the step took."""
        self.trained_seconds, self.trained_tokens = self.trained_seconds + seconds, self.trained_tokens + step.n_tokens
        tokens, elapsed = step.before.tokens + step.n_tokens, time.perf_counter() - self.started_at
        row: dict[str, float | None] = dict(
            step=step.number, loss=loss, val_loss=None, lr=step.lr, grad_norm=None, tokens=tokens,
            tokens_per_s=step.n_tokens / seconds, seconds=elapsed,
        ) | metrics  # fmt: skip
        if self.peak_flops is not None:
            row["mfu"] = self.flops_per_token * step.n_tokens / seconds / self.peak_flops
        if self.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if step.validates and self.val_data is not None:
            row |= self._validate(self.val_data)
        self.report.step(row, self.limits.progress(step.number, tokens, elapsed))
        if step.validates and self.sample is not None:
            self.model.eval()
            try:
                self.report.samples(step.number, self.sample())
            finally:
                self.model.train()

    def _validate(self, val: Dataset) -> dict[str, float]:
        state = self.state
        metrics = validate(self.model, val, self.objective, self.settings.batch_size, self.micro_batch_size)
        loss = metrics["val_loss"]
        self.result.val_losses.append((state.step, loss))
        if math.isfinite(loss) and (state.best is None or loss < state.best):
            state.best, state.best_step, state.waited = loss, state.step, 0
        else:
            state.waited += 1
            self._check_early_stop()
        return metrics

    def _check_early_stop(self) -> None:
        if self._stops_early:
            self.result.stopped = f"no better validation loss since step {self.state.best_step}"

    # --- spikes ----------------------------------------------------------------------------------------------------

    def _handle_spike(self, problem: str, step: Step) -> bool:
        """After a skipped step: True to continue, False if the run went back to a checkpoint. Raises ValueError if the
        run is to stop.
        """
        settings = self.settings
        problem = f"step {step.number}: {problem} (examples {_shortened(step.examples)})"
        self.setbacks += 1
        if settings.on_spike == "stop" or settings.optimizer_in_backward or self.setbacks > MAX_SETBACKS:
            self.state = step.before
            saves = settings.on_spike == "stop" and not settings.optimizer_in_backward
            if saved := saves and self.checkpoints is not None:
                self.save()
            raise ValueError(spike_error(problem, settings, saved=saved))
        skips = settings.on_spike == "skip"
        self.report.say(f"{problem}: {'skipped' if skips else 'back to the last checkpoint'}")
        if skips:
            return True
        self.objective.metrics()  # forget those of the steps that are undone
        self.spikes.reset_bad()
        self._roll_back(step.before)
        self.result.val_losses = [(at, loss) for at, loss in self.result.val_losses if at <= self.state.step]
        del self.result.losses[max(0, self.state.step - self.start_step) :]
        return False

    def _roll_back(self, before: State) -> None:
        """Load the last checkpoint that save_interval asked for, and skip the data up to the bad step.

        Other checkpoints depend on the clock, on signals and on the machine, and what a run learns must not. Later ones
        are removed: they belong to the path that is given up.
        """
        saved = self.checkpoints.steps() if self.checkpoints is not None else {}
        targets = [step for step in saved if step <= before.step and self._is_save_step(step)]
        if self.checkpoints is None or not targets:
            raise ValueError(
                f"step {before.step + 1}: there is no checkpoint to roll back to yet; set save_interval lower"
            )
        self.load(saved[targets[-1]])
        self.state.offset = before.offset + before.step + 1 - self.state.step
        self.state.seconds = time.perf_counter() - self.started_at
        for step in saved:
            if step > self.state.step:
                self.checkpoints.remove(saved[step])

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        if self.checkpoints is not None:
            state = self.state
            state.seconds, state.spikes = time.perf_counter() - self.started_at, self.spikes.state_dict()
            stored = asdict(state) | {"kind": self.fingerprint}
            weights, optimizer = dict(self.weights.named_parameters()), optimizer_state(self.optimizer)
            self.checkpoints.save(state.step, stored, weights, optimizer, best=state.best_step)
            self.saved_step, self.saved_at = state.step, time.perf_counter()

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises ValueError if it is damaged, or belongs to another run or model."""
        stored, weights, optimizer = load_checkpoint(path)
        fingerprint = stored.pop("kind")
        for line in check_same(path, self.fingerprint, fingerprint):
            self.report.say(line)
        restore_weights(path, dict(self.weights.named_parameters()), weights)
        self.weights.copy_to_model()
        load_optimizer_state(self.optimizer, *optimizer)
        self.state = State(**stored)
        val = self.fingerprint["val"]
        if val not in (None, fingerprint.get("val", val)):  # losses on different data can't be compared
            self.state.best, self.state.best_step, self.state.waited = None, None, 0
            self.report.say("The validation data have changed: the best validation loss so far is forgotten")
        self.spikes.load_state_dict(self.state.spikes)


def runs_ahead(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether steps are finalized one step late: on an asynchronous device that can itself skip a bad step."""
    return device.type == "cuda" and can_skip_on_device(optimizer)


def compiles(settings: TrainSettings, device: torch.device) -> bool:
    """Whether the layers are compiled."""
    return device.type == "cuda" if settings.compile is None else settings.compile


def check_settings(model: GPT, settings: TrainSettings, val: Dataset | None) -> None:
    """Raises ValueError for settings that don't fit the model or the data."""
    if settings.micro_batch_size == "auto" or settings.lr == "find":
        raise ValueError("fit takes numbers for micro_batch_size and lr; litlm.train.trials finds them")
    if settings.early_stop and val is None:
        raise ValueError(f"early_stop={settings.early_stop} needs data to validate on; set val_fraction or val_path")
    check_dtype(model, settings.precision)


def make_fabric(model: GPT) -> Fabric:
    """Fabric for the device that the model is on, with full precision: `train.precision` casts the weights itself."""
    from lightning.fabric import Fabric

    device = model.embed.weight.device
    return Fabric(accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1)


def gradients(
    model: GPT,
    objective: Objective,
    batches: Sequence[Batch],
    settings: TrainSettings,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum up a step's gradients over its micro batches; its loss, and metrics of a mixture's routers (0-dim).

    Raises ValueError if the optimizer steps in the backward pass and there are several micro batches.
    """
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
            part = objective.loss_sum(model, batch.to(device))
            total += part.detach()
            backward(part / count + router_loss(routers, settings, batch) * (batch.n_tokens / tokens))
        return total / count, routers.statistics()


def router_loss(routers: RouterWatch, settings: TrainSettings, batch: Batch) -> Tensor | float:
    """The auxiliary losses of a mixture's routers over a micro batch that the settings ask for, 0-dim."""
    if not routers.routings or not (settings.router_balance or settings.router_z):
        return 0.0
    mask = batch.mask()
    return settings.router_balance * routers.balance_loss(mask) + settings.router_z * routers.z_loss(mask)


@torch.no_grad()
def validate(
    model: GPT, data: Dataset, objective: Objective, batch_size: int, micro_batch_size: int
) -> dict[str, float]:
    """The mean loss over the data as val_loss, and the objective's other metrics."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(data), batch_size):
        for batch in data.batches(range(start, min(start + batch_size, len(data))), micro_batch_size):
            total += objective.loss_sum(model, batch.to(model.embed.weight.device)).item()
            count += objective.count(batch)
    model.train()
    return {"val_loss": total / count} | {f"val_{key}": value.item() for key, value in objective.metrics().items()}


def spike_error(problem: str, settings: TrainSettings, *, saved: bool) -> str:
    """The message of a run that ends because of a spike."""
    if settings.optimizer_in_backward:
        return f"{problem}. The weights have changed already; go on from an earlier checkpoint"
    if settings.on_spike != "stop":
        what = "spikes in a row" if settings.on_spike == "skip" else "returns to the last checkpoint"
        return f"{problem}. After {MAX_SETBACKS} {what} it is not the data; lower lr"
    note = ", and the run is saved as it was before" if saved else ""
    return (
        f"{problem}. The step was not taken{note}. Lower lr, look at these examples, or go on past such steps with "
        "on_spike=skip (or rollback)"
    )


def _shortened(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
