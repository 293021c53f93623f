"""What is found out by trying, before a run: the largest micro batch that fits, and a good learning rate.

Both leave model, data order and random states as they were.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from litlm.checkpoint.training import random_states, restore_random
from litlm.data.base import Dataset, EpochSampler
from litlm.io.writing import write_text
from litlm.model import GPT
from litlm.settings import PretrainSettings, RunSettings, TrainSettings
from litlm.train.loop import compiles, gradients
from litlm.train.loss import NextToken, Objective
from litlm.train.lr_finder import find_lr, plot, restore, snapshot
from litlm.train.mixed import MasterWeights, hooks_of
from litlm.train.optim import MixedAdamW, clip_gradients, make_optimizer
from litlm.transforms.blocks import training_blocks
from litlm.transforms.fp8 import fp8_training

if TYPE_CHECKING:
    from litlm.train.report import Report


@contextmanager
def trial(model: GPT, settings: TrainSettings) -> Iterator[Optimizer]:
    """An optimizer whose steps leave no trace behind the block: model and random states are then as they were."""
    mixed = settings.precision == "bf16-mixed"
    # bf16 would also have rounded the weights that are not trained.
    weights = [(p, p.data.to("cpu", copy=True)) for p in model.parameters()] if mixed else []
    masters = MasterWeights(model) if mixed else None
    optimizer = make_optimizer(masters or model, settings)
    if masters is not None and not isinstance(optimizer, MixedAdamW):
        optimizer.register_step_post_hook(lambda *_: masters.publish())
    saved, states = snapshot(masters or model, optimizer), random_states()
    model.train()
    try:
        with hooks_of(masters, optimizer):
            yield optimizer
    finally:
        restore(masters or model, optimizer, saved)
        restore_random(*states)
        for p, data in weights:
            p.data = data.to(p.device)
        model.eval()


def largest_micro_batch(model: GPT, train: Dataset, objective: Objective | None, settings: TrainSettings) -> int:
    """The largest power of two (at most batch_size) whose step fits into nine tenths of the GPU's memory.

    The rest stays free, because the micro batches to come may be a little larger than those of the first step. Raises
    torch.OutOfMemoryError where not even 1 fits.
    """
    device = model.embed.weight.device
    check_auto("auto", device)
    objective, best, size = objective or NextToken(), 0, 1
    first = range(min(len(train), settings.batch_size))
    total = torch.cuda.get_device_properties(device).total_memory
    compiled = compiles(settings, device)
    with (
        trial(model, settings) as optimizer,
        fp8_training(model) if settings.fp8 else nullcontext(),
        training_blocks(model, compile=compiled, checkpointing=settings.checkpointing),
    ):
        while size <= settings.batch_size:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            batch = max(train.batches(first, size), key=lambda batch: batch.tokens.numel())
            if isinstance(optimizer, MixedAdamW):  # of several micro batches the gradients are summed up in fp32
                optimizer.masters.keeps_low = size == settings.batch_size
            try:
                objective.loss_sum(model, model, batch.to(device)).backward()
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
    """Raise a ValueError where `largest_micro_batch` would."""
    if micro_batch_size == "auto" and device.type != "cuda":
        raise ValueError("micro_batch_size=auto measures a GPU's memory; on a CPU give a number, such as 4")


def out_of_memory(settings: RunSettings) -> str:
    """What to change that is not so already, in the order of how little it costs.

    micro_batch_size=auto has tried 1. optimizer_in_backward takes whole batches only.
    """
    t, method, advice = settings.train, settings.method.name, []
    if t.micro_batch_size not in (1, "auto") and not t.optimizer_in_backward:
        advice.append("--train.micro_batch_size 1 (the result stays the same)")
    if t.checkpointing != "full":
        advice.append("--train.checkpointing full")
    advice.append("a shorter --data.max_len")
    if method != "qlora" and not isinstance(settings, PretrainSettings):
        advice.append("--method qlora")
    if method == "full" and t.optimizer.lower() in ("adamw", "muon"):
        advice.append("--train.optimizer adamw8bit")
    advice.append("a smaller model")
    return "the GPU's memory is not enough. Try, in this order: " + "; ".join(advice)


def try_rates(
    model: GPT, train: Dataset, objective: Objective | None, settings: TrainSettings, seed: int, report: Report,
    out_dir: Path,
) -> float:  # fmt: skip
    """The learning rate that a range test suggests, by steps like those of the run."""
    objective, device = objective or NextToken(), model.embed.weight.device
    order, numbers = EpochSampler(len(train), seed + 1), itertools.count()
    micro_batch_size = settings.micro_batch_size
    assert isinstance(micro_batch_size, int)
    compiled = compiles(settings, device)
    with (
        trial(model, settings) as optimizer,
        fp8_training(model) if settings.fp8 else nullcontext(),
        training_blocks(model, compile=compiled, checkpointing=settings.checkpointing),
    ):

        def step(lr: float) -> float:
            batches = train.batches(order.batch(next(numbers), settings.batch_size), micro_batch_size)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, _ = gradients(model, model, objective, batches, settings)
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
