"""Settings found by trying before a run: the largest micro batch that fits, and a good learning rate. Also what to
change if memory is not enough.

Trials leave model, data order and random states as they were.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from litlm.checkpoint.training import get_random_states, set_random_states
from litlm.data.base import Dataset, EpochSampler
from litlm.io.writing import write_text
from litlm.model import GPT
from litlm.settings import PretrainSettings, RunSettings, TrainSettings
from litlm.train.loop import compiles, gradients
from litlm.train.loss import NextToken, Objective
from litlm.train.lr_finder import find_lr, plot, restore, snapshot
from litlm.train.methods import get_method
from litlm.train.optim import MixedAdamW, clip_gradients, hooks_removed, make_optimizer
from litlm.train.precision import casts_undone, optimized_weights
from litlm.transforms.blocks import training_blocks
from litlm.transforms.fp8 import fp8_training

if TYPE_CHECKING:
    from litlm.train.report import Report


def resolve_auto_settings(
    model: GPT, train: Dataset, objective: Objective | None, settings: TrainSettings, seed: int, report: Report,
    out_dir: Path, resume: Path | None,
) -> TrainSettings:  # fmt: skip
    """Settings with micro_batch_size=auto and lr=find replaced by what trials find, or found when the run started."""
    file = out_dir / "found.json"
    known = json.loads(file.read_text(encoding="utf-8")) if resume is not None and file.is_file() else {}
    found: dict[str, Any] = dict(known)
    if settings.micro_batch_size == "auto":
        if "micro_batch_size" not in found:
            found["micro_batch_size"] = largest_micro_batch(model, train, objective, settings)
        report.say(f"micro_batch_size={found['micro_batch_size']} is the largest that fits")
        settings = dataclasses.replace(settings, micro_batch_size=found["micro_batch_size"])
    if settings.lr == "find":
        if "lr" not in found:
            found["lr"] = try_rates(model, train, objective, settings, seed, report, out_dir)
        settings = dataclasses.replace(settings, lr=found["lr"])
    if found != known:
        write_text(file, json.dumps(found) + "\n")
    return settings


@contextmanager
def trial(model: GPT, settings: TrainSettings) -> Iterator[Optimizer]:
    """Yields an optimizer for steps as in the run; after the block, model and random states are as they were."""
    with casts_undone(model, settings.precision):
        weights = optimized_weights(model, settings.precision)
        optimizer = make_optimizer(weights, settings)
        saved, states = snapshot(weights, optimizer), get_random_states()
        model.train()
        try:
            with (
                hooks_removed(weights, optimizer),
                fp8_training(model) if settings.fp8 else nullcontext(),
                training_blocks(
                    model,
                    compile=compiles(settings, model.embed.weight.device),
                    checkpointing=settings.checkpointing,
                ),
            ):
                yield optimizer
        finally:
            restore(weights, optimizer, saved)
            set_random_states(*states)
            model.eval()


def largest_micro_batch(model: GPT, train: Dataset, objective: Objective | None, settings: TrainSettings) -> int:
    """The largest power of two (at most batch_size) whose step fits into nine tenths of the GPU's memory.

    The rest stays free because later micro batches may be a little larger than those of the first step. Raises
    torch.OutOfMemoryError if not even 1 fits, ValueError on a CPU.
    """
    device = model.embed.weight.device
    check_auto("auto", device)
    objective, best, size = objective or NextToken(), 0, 1
    first = range(min(len(train), settings.batch_size))
    total = torch.cuda.get_device_properties(device).total_memory
    with trial(model, settings) as optimizer:
        while size <= settings.batch_size:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            batch = max(train.batches(first, size), key=lambda batch: batch.tokens.numel())
            if isinstance(optimizer, MixedAdamW):  # gradients of several micro batches are summed in fp32
                optimizer.masters.keep_bf16_grads = size == settings.batch_size
            try:
                objective.loss_sum(model, batch.to(device)).backward()
                optimizer.step()
            except torch.OutOfMemoryError:
                break
            finally:
                optimizer.zero_grad(set_to_none=True)
            if torch.cuda.max_memory_allocated() > 0.9 * total:
                break
            best, size = size, size * 2
    objective.metrics()
    torch.cuda.empty_cache()
    if best == 0:
        raise torch.OutOfMemoryError("a micro batch of one example does not fit into the GPU's memory")
    return best


def check_auto(micro_batch_size: int | str, device: torch.device) -> None:
    """Raises ValueError for micro_batch_size=auto on a CPU."""
    if micro_batch_size == "auto" and device.type != "cuda":
        raise ValueError("micro_batch_size=auto measures a GPU's memory; on a CPU give a number, such as 4")


def try_rates(
    model: GPT, train: Dataset, objective: Objective | None, settings: TrainSettings, seed: int, report: Report,
    out_dir: Path,
) -> float:  # fmt: skip
    """The learning rate that a range test over steps like the run's suggests."""
    objective = objective or NextToken()
    order, numbers = EpochSampler(len(train), seed + 1), itertools.count()
    micro_batch_size = settings.micro_batch_size
    assert isinstance(micro_batch_size, int)
    with trial(model, settings) as optimizer:

        def step(lr: float) -> float:
            batches = train.batches(order.batch(next(numbers), settings.batch_size), micro_batch_size)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, _ = gradients(model, objective, batches, settings)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            clip_gradients(optimizer, params, settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        report.say("Trying learning rates (100 steps) ...")
        sweep = find_lr(step)
    objective.metrics()
    out_dir.mkdir(parents=True, exist_ok=True)
    plot(sweep, out_dir / "lr_finder.png")
    write_text(out_dir / "lr_finder.json", json.dumps(dataclasses.asdict(sweep)))
    report.say(f"lr={sweep.suggestion:.2e} (the curve is in {out_dir / 'lr_finder.png'})")
    return sweep.suggestion


# --- out of memory -------------------------------------------------------------------------------------------------


@contextmanager
def explain_oom(settings: RunSettings) -> Iterator[None]:
    """Turns torch.OutOfMemoryError in the block into a ValueError that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(oom_advice(settings)) from None


def oom_advice(settings: RunSettings) -> str:
    """What to change, except for what is so already, in the order of how little it costs.

    micro_batch_size=auto has tried 1 already; optimizer_in_backward takes whole batches only.
    """
    t, advice = settings.train, []
    if t.micro_batch_size not in (1, "auto") and not t.optimizer_in_backward:
        advice.append("--train.micro_batch_size 1 (the result stays the same)")
    if t.checkpointing != "full":
        advice.append("--train.checkpointing full")
    advice.append("a shorter --data.max_len")
    if settings.method.quantize is None and not isinstance(settings, PretrainSettings):
        advice.append("--method qlora")
    if get_method(settings.method.name).whole_model and t.optimizer.lower() in ("adamw", "muon"):
        advice.append("--train.optimizer adamw8bit")
    advice.append("a smaller model")
    return "the GPU's memory is not enough. Try, in this order: " + "; ".join(advice)
