"""The training loop, top to bottom: `fit` for the loop itself, `finetune` for a whole run from settings to files.

A step's loss is the sum over all its target tokens divided by their number, however they fall into micro batches: equal
batches give equal steps whatever micro_batch_size is.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from litlm.data.sft import IGNORE, Dataset, Example, collate, load_sft, split, stream
from litlm.model import GPT
from litlm.moe import RouterWatch, watch_routers
from litlm.settings import FinetuneSettings, TrainSettings
from litlm.train.loss import loss_sum
from litlm.train.report import Log, Progress, plot_loss, write_settings
from litlm.train.schedule import learning_rate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litlm.llm import LLM


@dataclass
class Result:
    """What a run did. losses: of each step; val_losses: (step, loss); stopped: by Ctrl-C before its end."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_s: float = 0.0
    stopped: bool = False


def total_steps(settings: TrainSettings, n_examples: int) -> int:
    """Optimizer steps until the first limit; one epoch where none is set. A step may reach into the next epoch."""
    epochs = 1 if settings.epochs is None and settings.max_steps is None else settings.epochs
    by_epochs = None if epochs is None else math.ceil(epochs * n_examples / settings.batch_size)
    return min(n for n in (settings.max_steps, by_epochs) if n is not None)


def fit(
    fabric: Fabric,
    model: GPT,
    train: Dataset,
    val: Dataset | None,
    settings: TrainSettings,
    *,
    seed: int,
    log: Log,
    save: Callable[[int], None],
) -> Result:
    """Train the parameters that require gradients. `save(step)` is called at the save interval and at the end."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    runner, optimizer = fabric.setup(model, optimizer)
    steps = total_steps(settings, len(train))
    order = stream(len(train), seed)
    result, seconds, seen = Result(), 0.0, 0
    model.train()
    try:
        with _stop_on_ctrl_c() as stop, Progress(steps) as progress:
            for step in range(steps):
                started = time.perf_counter()
                examples = [train.examples[next(order)] for _ in range(settings.batch_size)]
                micro_batches = [collate(part) for part in _chunks(examples, settings.micro_batch_size)]
                n_targets = sum(int((targets != IGNORE).sum()) for _, targets in micro_batches)
                loss = 0.0
                with watch_routers(model) as routers:
                    for tokens, targets in micro_batches:
                        routers.clear()
                        tokens, targets = fabric.to_device((tokens, targets))
                        hidden = runner(tokens, output="hidden")
                        part = loss_sum(model, hidden, targets) / n_targets
                        loss += part.item()
                        fabric.backward(part + router_loss(routers, settings) / len(micro_batches))
                norm = torch.nn.utils.clip_grad_norm_(params, settings.grad_clip or math.inf)
                if not math.isfinite(loss) or not bool(norm.isfinite()):
                    save(step)
                    raise ValueError(
                        f"the loss of step {step + 1} is {loss} (gradient norm {float(norm)}); the step was "
                        "not taken, and the adapters as they were are saved. Lower --train.lr, or look for broken data"
                    )
                lr = learning_rate(step, steps, settings)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                n_tokens = sum(len(e.ids) for e in examples)
                took = time.perf_counter() - started
                seconds, seen = seconds + took, seen + n_tokens
                result.steps, result.tokens_per_s = step + 1, seen / seconds
                result.losses.append(loss)
                val_loss, last = None, step + 1 == steps or bool(stop)
                # Ctrl-C saves at once: validating first could take minutes.
                if val is not None and not stop and ((step + 1) % settings.val_interval == 0 or last):
                    val_loss = validate(fabric, model, val, settings.micro_batch_size)
                    result.val_losses.append((step + 1, val_loss))
                log.write(
                    step=step + 1, loss=loss, val_loss=val_loss, lr=lr, grad_norm=float(norm), tokens=seen,
                    tokens_per_s=n_tokens / took, seconds=seconds, **routers.statistics(),
                )  # fmt: skip
                progress.show(step + 1, loss, val_loss, result.tokens_per_s)
                if step + 1 == steps or (settings.save_interval and (step + 1) % settings.save_interval == 0):
                    save(step + 1)
                if stop:
                    result.stopped = True
                    break
    finally:
        model.eval()
    return result


def router_loss(routers: RouterWatch, settings: TrainSettings) -> torch.Tensor | float:
    """What keeps the experts of a mixture evenly used, as far as the settings ask for it."""
    if not routers.seen or not (settings.router_balance or settings.router_z):
        return 0.0
    return settings.router_balance * routers.balance_loss() + settings.router_z * routers.z_loss()


@torch.no_grad()
def validate(fabric: Fabric, model: GPT, data: Dataset, micro_batch_size: int) -> float:
    """Mean loss per target token."""
    model.eval()
    total, count = 0.0, 0
    for part in _chunks(data.examples, micro_batch_size):
        tokens, targets = fabric.to_device(collate(part))
        total += loss_sum(model, model(tokens, output="hidden"), targets).item()
        count += int((targets != IGNORE).sum())
    model.train()
    return total / count


def finetune(settings: FinetuneSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """One run: load, adapt, train, and write `out_dir` (settings.yaml, metrics.csv, loss.png, final/).

    `llm` is used (and changed) instead of loading `settings.model`.
    """
    from lightning.fabric import Fabric, seed_everything

    from litlm.checkpoint.peft import save_adapter, without_place
    from litlm.llm import LLM
    from litlm.transforms.lora import apply_lora
    from litlm.zoo import find_model

    seed_everything(settings.seed, verbose=False)
    for file in filter(None, (settings.data.path, settings.data.val_path)):
        if not Path(file).is_file():  # said before the model loads
            raise ValueError(f"data file {file} does not exist")
    llm = LLM.load(settings.model, device=settings.device, dtype=settings.dtype) if llm is None else llm
    model, out_dir = llm.model, Path(settings.out_dir)
    if model.embed.weight.dtype == torch.float16:
        raise ValueError("dtype=float16 loses small gradients; train with --dtype bfloat16 (or float32)")
    max_len = min(settings.data.max_len or model.config.max_seq_len, model.config.max_seq_len)
    data = load_sft(settings.data.path, llm.tokenizer, llm.style, max_len)
    if settings.data.val_path is not None:
        train, val = data, load_sft(settings.data.val_path, llm.tokenizer, llm.style, max_len)
    else:
        train, val = split(data, settings.data.val_fraction, settings.seed)
    skipped = without_place(model)
    adapted = apply_lora(model, settings.method, leave=skipped)
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
    if skipped:
        kinds = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in skipped))
        say(f"No adapters on {kinds}: Hugging Face fuses these in {model.config.family}, and PEFT's format follows it.")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    say(
        f"{_steps(total_steps(settings.train, len(train)))} of {settings.train.batch_size} examples"
        f": {len(train)} to learn from, {len(val) if val else 0} to validate on"
        + (f", {data.cut} cut to {max_len} tokens" if data.cut else "")
        + (f", {data.empty} left out because nothing to learn was left" if data.empty else "")
        + f"; training {trainable:,} of {every:,} parameters in {len(adapted)} adapters"
    )
    device = model.embed.weight.device
    fabric = Fabric(accelerator=device.type, devices=[device.index or 0] if device.type == "cuda" else 1)
    write_settings(settings, out_dir)

    # A zoo name means nothing to PEFT; its hub id does, to both.
    base = info.hub_id if (info := find_model(settings.model)) else settings.model

    def save(step: int) -> None:
        last = step == total_steps(settings.train, len(train))
        folder = out_dir / "final" if last else out_dir / f"step-{step:06d}"
        save_adapter(model, folder, base=base)

    with closing(Log(out_dir / "metrics.csv")) as log:
        result = fit(fabric, model, train, val, settings.train, seed=settings.seed, log=log, save=save)
    if result.stopped:
        save_adapter(model, out_dir / "final", base=base)
        say(f"Stopped by Ctrl-C after step {result.steps}; the adapter as it was then is in {out_dir / 'final'}")
    plot_loss(result.losses, result.val_losses, out_dir / "loss.png")
    return result


def _steps(n: int) -> str:
    return "1 step" if n == 1 else f"{n} steps"


def _chunks(examples: list[Example], size: int) -> list[list[Example]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


@contextmanager
def _stop_on_ctrl_c() -> Iterator[list[bool]]:
    """A list that becomes true on Ctrl-C: the step under way ends, the run saves. A second Ctrl-C ends at once."""
    stop: list[bool] = []

    def handle(signum: int, frame: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(True)
        print("\nStopping after this step; press Ctrl-C again to stop without saving.", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: a notebook's worker, say
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
