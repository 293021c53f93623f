"""The training loop, top to bottom: one for every method, every objective and every kind of data.

A step's loss is the sum over all that its examples give to learn, divided by how much that is, however they fall into
micro batches and rows. So micro batches and packing change speed and memory, never a step. Where a run stands is
a few numbers (`State`): the data a step sees follow from its number and the seed.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.checkpoint.training import Checkpoints, load_checkpoint, put_weights
from litlm.data.base import Batch, Dataset, Order
from litlm.model import GPT
from litlm.moe import RouterWatch, watch_routers
from litlm.settings import TrainSettings
from litlm.train.flops import peak_flops, train_flops_per_token
from litlm.train.limits import Limits
from litlm.train.loss import NextToken, Objective, Runner
from litlm.train.mixed import MasterWeights, hooks_of
from litlm.train.optim import load_optimizer_state, make_optimizer, optimizer_state
from litlm.train.report import Report
from litlm.train.schedule import learning_rate
from litlm.train.spikes import SpikeWatch
from litlm.transforms.blocks import training_blocks
from litlm.transforms.fp8 import fp8_training

if TYPE_CHECKING:
    from lightning.fabric import Fabric


MOST_SETBACKS = 10  # spikes in a row, or returns to one checkpoint: broken weights would be gone back to forever


@dataclass
class State:
    """Where a run stands.

    step: optimizer steps so far. offset: batches of data left out by rollbacks; step + offset is the next batch. best:
    the lowest validation loss, at best_step. waited: validations since. spikes: of `SpikeWatch`. kind: what decides
    what a step does, which a resumed run must share.
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
    settings, objective = settings or TrainSettings(), objective or NextToken()
    fabric, report = fabric or make_fabric(model), report or Report(None, None)
    micro_batch_size = settings.micro_batch_size
    if micro_batch_size == "auto" or settings.lr == "find":
        raise ValueError("fit takes numbers for micro_batch_size and lr; litlm.train.trials finds them")
    if settings.early_stop and val is None:
        raise ValueError(f"early_stop={settings.early_stop} needs data to validate on; set val_fraction or val_path")
    dtype = {"32-true": torch.float32, "bf16-true": torch.bfloat16}.get(settings.precision)
    if dtype is not None and model.embed.weight.dtype != dtype:
        name = str(model.embed.weight.dtype).removeprefix("torch.")
        raise ValueError(f"precision={settings.precision}, but the model is {name}; load it in the dtype to train in")
    masters = MasterWeights(model) if settings.precision == "bf16-mixed" else None
    params = {name: p for name, p in (masters or model).named_parameters() if p.requires_grad}
    optimizer = make_optimizer(masters or model, settings)
    runner, wrapped = fabric.setup(model, optimizer)
    limits, order = Limits(settings, len(train)), Order(len(train), seed)
    own = {"seed": seed, "batch_size": settings.batch_size, "examples": len(train), "tokens": train.digest()}
    kind = own | (kind or {})
    state, result, spikes = State(kind=kind), Result(), SpikeWatch(settings.spike_factor)

    def save() -> None:
        if checkpoints is not None:
            state.spikes = spikes.state_dict()
            now = optimizer_state(optimizer)
            checkpoints.save(state.step, asdict(state), params, now, best=state.best_step)

    def load(path: Path) -> State:
        found, weights, stored = load_checkpoint(path)
        check_kind(path, kind, found["kind"])
        put_weights(path, params, weights)
        if masters is not None:
            masters.publish()
        load_optimizer_state(optimizer, *stored)
        spikes.load_state_dict(found["spikes"])
        return State(**found)

    if resume is not None:
        state = load(resume)
    done = limits.reached(state.step, state.tokens, state.seconds)
    if done:
        why = limits.why(state.step, state.tokens, state.seconds)
        report.say(f"Already at step {state.step}, where a run with {why} ends")
    elif begun is not None:
        begun()
    if resume is not None and checkpoints is not None:
        checkpoints.prune(state.best_step)
    report.start(step=state.step)
    if settings.early_stop and state.waited >= settings.early_stop:  # a run that was over already
        result.stopped = f"no better validation loss since step {state.best_step}"
    if sample is not None and state.step == 0:
        report.samples(0, sample())
    flops, peak = train_flops(model, train), peak_flops(fabric.device, settings.fp8)
    compiled, busy, seen, first, setbacks = compiles(settings, fabric.device), 0.0, 0, state.step, 0
    clock = time.perf_counter() - state.seconds
    model.train()
    with (
        stop_on_signals() as stop,
        fp8_training(model) if settings.fp8 else nullcontext(),
        training_blocks(model, compile=compiled, checkpointing=settings.checkpointing),
        hooks_of(masters, optimizer),
    ):
        while not (done or result.stopped):
            # The data of this step, and its learning rate.
            began = time.perf_counter()
            progress = limits.progress(state.step, state.tokens, state.seconds)
            lr = learning_rate(state.step, progress, settings, steps=limits.steps())
            for group in optimizer.param_groups:
                group["lr"] = lr
            numbers = order.batch(state.step + state.offset, settings.batch_size)
            batches = train.batches(numbers, micro_batch_size)
            n_tokens = sum(batch.n_tokens for batch in batches)

            # Its gradients, and the step, unless something is wrong.
            mean, routers = gradients(model, runner, objective, batches, settings, fabric.backward)
            grad_norm = clip_gradients(params.values(), settings.grad_clip)
            loss = mean.item()
            problem = spikes.check(loss, grad_norm)
            if problem is None:
                wrapped.step()
                if masters is not None:
                    masters.publish()
                setbacks = setbacks if settings.on_spike == "rollback" else 0
            wrapped.zero_grad(set_to_none=True)
            if problem is not None:
                problem = f"step {state.step + 1}: {problem} (examples {_some(numbers)})"
                setbacks += 1
                if settings.on_spike == "stop" or settings.optimizer_in_backward or setbacks > MOST_SETBACKS:
                    saved = (
                        checkpoints is not None and settings.on_spike == "stop" and not settings.optimizer_in_backward
                    )
                    if saved:
                        save()
                    raise ValueError(given_up(problem, settings, saved=saved))
                report.say(f"{problem}: {'left out' if settings.on_spike == 'skip' else 'back to the last checkpoint'}")
                if settings.on_spike == "rollback":
                    objective.metrics()
                    state = roll_back(state, checkpoints, load)
                    state.seconds = time.perf_counter() - clock
                    result.val_losses = [(step, loss) for step, loss in result.val_losses if step <= state.step]
                    del result.losses[max(0, state.step - first) :]
                    continue
            took = time.perf_counter() - began
            state.step, state.tokens, state.seconds = (
                state.step + 1,
                state.tokens + n_tokens,
                time.perf_counter() - clock,
            )
            busy, seen = busy + took, seen + n_tokens

            # What people see, and what is kept.
            done = bool(stop) or limits.reached(state.step, state.tokens, state.seconds)
            result.losses.append(loss)
            row: dict[str, float | None] = dict(
                step=state.step, loss=loss, val_loss=None, lr=lr, grad_norm=grad_norm, tokens=state.tokens,
                tokens_per_s=n_tokens / took, seconds=state.seconds, **objective.metrics(), **routers,
            )  # fmt: skip
            if peak is not None:
                row["mfu"] = flops * n_tokens / took / peak
            if fabric.device.type == "cuda":
                row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            # Ctrl-C saves at once: validating first could take minutes.
            if val is not None and not stop and (done or state.step % settings.val_interval == 0):
                found = validate(fabric, model, val, objective, settings.batch_size, micro_batch_size)
                row.update(found)
                result.val_losses.append((state.step, found["val_loss"]))
                if math.isfinite(found["val_loss"]) and (state.best is None or found["val_loss"] < state.best):
                    state.best, state.best_step, state.waited = found["val_loss"], state.step, 0
                else:
                    state.waited += 1
                    if settings.early_stop and state.waited >= settings.early_stop:
                        result.stopped = f"no better validation loss since step {state.best_step}"
            report.step(row, limits.progress(state.step, state.tokens, state.seconds))
            if stop:
                result.stopped = stop[0]
            if sample is not None and not stop and (done or state.step % settings.val_interval == 0):
                report.samples(state.step, sampled(model, sample))
            state.seconds = time.perf_counter() - clock
            due = settings.save_interval is not None and state.step % settings.save_interval == 0
            best = state.step == state.best_step and bool(settings.save_interval or settings.early_stop)
            if done or due or best or result.stopped:
                save()
                setbacks = 0
    model.eval()
    result.steps, result.best_step = state.step, state.best_step
    result.tokens_per_s = seen / busy if busy else 0.0
    report.finish(stopped=result.stopped)
    return result


def gradients(
    model: GPT,
    runner: Runner,
    objective: Objective,
    batches: Sequence[Batch],
    settings: TrainSettings,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> tuple[Tensor, dict[str, float]]:
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


def clip_gradients(params: Iterable[Tensor], most: float | None) -> float | None:
    """Scale the whole gradient down to a norm of `most`; the norm it had, None if the gradients are gone already."""
    params = [p for p in params if p.grad is not None]
    if not params:
        return None
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(params, most, norm)
    return norm.item()


def check_kind(path: Path, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Raise a ValueError if a checkpoint is of a run whose steps do something else."""
    other = [
        f"{key}={now[key]}, it had {then.get(key)}" for key in now if now[key] != then.get(key) and key != "tokens"
    ]
    if now["tokens"] != then.get("tokens"):
        other.append("the examples' tokens are others (another data file, style, loss_on, max_len or tokenizer)")
    if other:
        raise ValueError(
            f"checkpoint {path} is of another method, of other data or of another order: {'; '.join(other)}. Resume "
            "with the settings of its run (settings.yaml), or start anew in another --out_dir"
        )


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
    if not routers.seen or not (settings.router_balance or settings.router_z):
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
    return {"val_loss": total / count} | {f"val_{key}": value for key, value in objective.metrics().items()}


def sampled(model: GPT, sample: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    model.eval()
    try:
        return sample()
    finally:
        model.train()


def roll_back(state: State, checkpoints: Checkpoints | None, load: Callable[[Path], State]) -> State:
    """The state of the last checkpoint, with the data since left out."""
    every = checkpoints.steps() if checkpoints is not None else {}
    steps = [step for step in every if step <= state.step]
    if not steps:
        raise ValueError(f"step {state.step + 1}: there is no checkpoint to roll back to yet; set save_interval lower")
    before = load(every[steps[-1]])
    before.offset = state.offset + state.step + 1 - before.step
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
    """A list that gets a reason on Ctrl-C or SIGTERM: the step under way ends, the run saves. Twice ends at once."""
    stop: list[str] = []

    def handle(signum: int, frame: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append("Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name)
        print("\nStopping after this step; press Ctrl-C again to stop without saving.", file=sys.stderr)

    before: dict[int, Any] = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, handle)
    except ValueError:  # not the main thread: a notebook's worker, say
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
