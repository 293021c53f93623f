"""Whole runs, from settings to files: `finetune`, `pretrain` and `dpo`. What differs is the data and the objective.

Each leaves in `out_dir`: settings.yaml (runs again), metrics.csv, report.html, checkpoints `step-000100/`, `final/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from litlm.settings import DPOSettings, FinetuneSettings, PretrainSettings, RunSettings, TextData, TrainSettings

if TYPE_CHECKING:
    import torch

    from litlm.data.base import Dataset
    from litlm.llm import LLM
    from litlm.train.fit import Result
    from litlm.train.loss import Objective
    from litlm.train.methods import Applied


P = ParamSpec("P")


def advised(work: Callable[P, Result]) -> Callable[P, Result]:
    """A whole run that says what to change where the GPU's memory is not enough: in loading already, say."""

    @functools.wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Result:
        import torch

        try:
            return work(*args, **kwargs)
        except torch.OutOfMemoryError:
            from litlm.train.trials import out_of_memory

            settings: Any = args[0] if args else kwargs["settings"]
            raise ValueError(out_of_memory(settings)) from None

    return wrapped


@advised
def finetune(settings: FinetuneSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Teach a model conversations. `llm` is used (and changed) instead of loading `settings.model`."""
    from litlm.data.sft import load_sft
    from litlm.train.methods import apply_method

    begin(settings)
    llm = load_for(settings) if llm is None else usable(llm)
    settings = add_tokens(llm, settings)
    train, val = load_sft(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, seed=settings.seed)
    method = apply_method(llm, settings.method, grown=bool(settings.new_tokens))
    return run(settings, llm, method, train, val, None, quiet=quiet)


@advised
def dpo(settings: DPOSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Teach a model which of two answers is the better one."""
    from litlm.data.preference import load_preference
    from litlm.train.methods import apply_method
    from litlm.train.mixed import rounded
    from litlm.train.preference import Preference, precompute_reference

    begin(settings)
    llm = load_for(settings) if llm is None else usable(llm)
    train, val = load_preference(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, seed=settings.seed)
    if settings.method.name == "full" and settings.preference.loss != "orpo":
        size, device = settings.train.micro_batch_size, llm.model.embed.weight.device
        size = 1 if size == "auto" else size
        mixed = precision_of(settings, device) == "bf16-mixed"
        with rounded(llm.model) if mixed else contextlib.nullcontext():  # the precision that the trained model has
            train = precompute_reference(llm.model, llm.model, train, size, device)
            val = val and precompute_reference(llm.model, llm.model, val, size, device)
    method = apply_method(llm, settings.method)
    return run(settings, llm, method, train, val, Preference(settings.preference, method.off), quiet=quiet)


@advised
def pretrain(settings: PretrainSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Train a model on plain text, from random weights or (from_weights) from those it has."""
    from litlm.data.prepare import load_tokenizer
    from litlm.data.shards import open_text, text_tokenizer
    from litlm.train.methods import apply_method

    if settings.method.name != "full":
        raise ValueError(f"method={settings.method.name} is for finetuning; pretraining takes full (with freeze)")
    if settings.train.optimizer.lower() in ("adamw", "adamw8bit", "muon"):
        # With the usual 0.999 the second moments forget too slowly for how fast a new model changes.
        t = dataclasses.replace(settings.train, optimizer_args={"betas": (0.9, 0.95)} | settings.train.optimizer_args)
        settings = dataclasses.replace(settings, train=t)
    begin(settings)
    if llm is None and settings.from_weights:
        llm = load_for(settings)
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
    else:
        tokenizer = text_tokenizer(settings.data) or (load_tokenizer(settings.model) if llm is None else llm.tokenizer)
    if llm is None:
        llm = fresh(settings, tokenizer.vocab_size, tokenizer.eos_id)
    usable(llm).tokenizer = tokenizer
    max_len = settings.data.max_len or min(llm.config.max_seq_len, 2048)
    if max_len > llm.config.max_seq_len:
        raise ValueError(
            f"data.max_len={max_len} is more than the model's context of {llm.config.max_seq_len}; lower it, or "
            f"give a new model a longer one: --model_args.max_seq_len {max_len}"
        )
    train, val = open_text(settings.data, tokenizer, max_len, Path(settings.out_dir) / "data", seed=settings.seed)
    method = apply_method(llm, settings.method)
    return run(settings, llm, method, train, val, None, quiet=quiet)


def run(
    settings: RunSettings,
    llm: LLM,
    method: Applied,
    train: Dataset,
    val: Dataset | None,
    objective: Objective | None,
    *,
    quiet: bool,
) -> Result:
    """What all runs share: resume, say what is trained on what, train, save."""
    import torch

    from litlm.checkpoint.training import Checkpoints
    from litlm.train.files import changed_training
    from litlm.train.fit import compiles, fit, make_fabric
    from litlm.train.limits import Limits
    from litlm.train.methods import trained
    from litlm.train.report import Report, write_settings
    from litlm.train.schedule import warmup_of
    from litlm.train.trials import out_of_memory

    out_dir, t = Path(settings.out_dir), settings.train
    # A zoo name means nothing to PEFT; its hub id does, to both.
    base = base_name(settings.model)

    def export(folder: Path) -> None:
        method.export(folder, base)

    def begun() -> None:
        # Not before: a run that is refused must leave the settings and checkpoints of the one that it meant.
        if resume is not None:
            checkpoints.set_aside(after=resume)
        if settings.overwrite:
            for path in checkpoints.steps().values():
                checkpoints.remove(path)
            for old in [out_dir / "final", out_dir / "tensorboard", *out_dir.glob("left-step-*")]:
                shutil.rmtree(old, ignore_errors=True)
        again = dataclasses.replace(settings, resume=None, overwrite=False)
        write_settings(again, out_dir, device)

    checkpoints = Checkpoints(out_dir, export, keep=t.keep)
    resume = find_checkpoint(settings, checkpoints)
    device = llm.model.embed.weight.device
    for data in filter(None, (train, val)):
        data.whole_rows = device.type == "cuda" or compiles(t, device)
    t = dataclasses.replace(t, precision=precision_of(settings, device))
    method.check()
    with Report(out_dir, settings, loggers=t.logger, quiet=quiet) as report:
        for note in (*method.notes, *train.notes, *(val.notes if val else ())):
            report.say(note)
        some, every = trained(llm.model)
        steps = Limits(t, len(train)).steps()
        report.say(
            f"{len(train):,} examples to learn from, {len(val) if val else 0:,} to validate on"
            + (f"; {steps:,} steps of {t.batch_size}" if steps else "")
            + f"; training {some:,} of {every:,} parameters"
            + (f"; going on from {resume.name}" if resume else "")
        )
        if (warmup := warmup_of(t, steps)) < t.warmup_steps:
            report.say(f"warmup_steps={t.warmup_steps} is cut to {warmup}: at most half of the run, which has {steps}")
        if resume and (changed := changed_training(settings, out_dir / "settings.yaml")):
            report.say(f"Going on with other settings than before: {', '.join(changed)}")
        report.describe(
            model=settings.model, parameters=every, trainable=some, examples=len(train), device=device,
            precision=f"{t.precision}, weights {str(llm.model.embed.weight.dtype).removeprefix('torch.')}",
            notes=[*method.notes, *train.notes],
        )  # fmt: skip
        try:
            t = settle(llm, train, objective, t, settings.seed, report, out_dir, resume)
            result = fit(
                llm.model, train, val, settings=t, objective=objective, seed=settings.seed,
                fabric=make_fabric(llm.model), report=report, checkpoints=checkpoints, resume=resume,
                sample=sampler(llm, t.samples), begun=begun,
                kind=kind_of(settings),
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise ValueError(out_of_memory(dataclasses.replace(settings, train=t))) from None
        if result.stopped in STOPPED_BY_HAND:
            newest = f"step-{result.steps:06d}"
            report.say(f"Stopped by {result.stopped} after step {result.steps}; go on from {newest} with --resume auto")
        else:
            best = checkpoints.steps().get(result.best_step or -1) if result.stopped else None
            if best is not None:
                report.say(f"Stopped after step {result.steps}: {result.stopped}; final/ is the model of {best.name}")
            write_final(out_dir, export, best)
    return result


STOPPED_BY_HAND = ("Ctrl-C", "SIGTERM")


def begin(settings: RunSettings) -> None:
    """Before anything is loaded: what would fail later is said now, and random choices follow the seed."""
    from lightning.fabric import seed_everything

    from litlm.checkpoint.training import Checkpoints
    from litlm.data import text
    from litlm.data.prepare import is_prepared
    from litlm.data.records import locate
    from litlm.data.sources import expand
    from litlm.train.optim import check_optimizer
    from litlm.train.report import check_loggers

    check_loggers(settings.train.logger)
    check_optimizer(settings.train)
    for sources in (settings.data.path, settings.data.val_path):
        found = expand(sources)
        if isinstance(settings.data, TextData):
            unprepared = [source for source in found if not is_prepared(source)]
            text.units(unprepared, text_key=settings.data.text_key, split=settings.data.split)
        else:
            for source in found:
                locate(source)
    out_dir = Path(settings.out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir={settings.out_dir!r} is a file; name a directory")
    known = Checkpoints(out_dir, lambda folder: None)
    if not settings.overwrite and settings.resume is None and (known.steps() or (out_dir / "final").exists()):
        raise ValueError(
            f"{out_dir} already holds a run; go on with it (--resume auto), replace it (--overwrite), or name another "
            "--out_dir"
        )
    known.clean()
    seed_everything(settings.seed, verbose=False)


def find_checkpoint(settings: RunSettings, checkpoints: Any) -> Path | None:
    """What `resume` means: the newest complete checkpoint in out_dir for auto, if there is one."""
    if settings.resume is None:
        return None
    every = checkpoints.steps()
    if settings.resume == "auto":
        return every[max(every)] if every else None
    path = Path(settings.resume)
    path = path if path.exists() else checkpoints.out_dir / path  # step-000100 is enough
    if path.resolve() not in {p.resolve() for p in every.values()}:
        known = ", ".join(p.name for p in every.values()) or "none"
        raise ValueError(f"resume={settings.resume!r} is no checkpoint of {checkpoints.out_dir}; there: {known}")
    return path


def kind_of(settings: RunSettings) -> dict[str, Any]:
    """What decides what a step does, beside the data: a resumed run must have the same."""
    parts = {"method": settings.method, "preference": getattr(settings, "preference", None)}
    flat = {f"{part}.{k}": v for part, value in parts.items() if value for k, v in dataclasses.asdict(value).items()}
    return json.loads(json.dumps(flat | {"optimizer": settings.train.optimizer}))


def precision_of(settings: RunSettings, device: torch.device) -> Any:
    """auto, decided: whole weights need fp32 copies for small steps not to be lost; adapters are fp32 anyway."""
    if settings.train.precision != "auto":
        return settings.train.precision
    method, new_tokens = settings.method, getattr(settings, "new_tokens", ())
    whole = method.name == "full" or bool(method.modules_to_save) or bool(new_tokens)
    if device.type == "cuda":
        return "bf16-mixed" if whole else "bf16-true"
    return "32-true" if whole else "auto"


def load_for(settings: RunSettings) -> LLM:
    """The model in the dtype that the precision asks for, quantized for qlora."""
    from litlm.llm import LLM, pick_device

    precision = precision_of(settings, pick_device(settings.device))
    dtype = {"auto": "auto", "bf16-true": "bfloat16"}.get(precision, "float32")
    quantize = settings.method.quantize if settings.method.name == "qlora" else None
    return usable(LLM.load(settings.model, device=settings.device, dtype=dtype, quantize=quantize))


def usable(llm: LLM) -> LLM:
    import torch

    if llm.model.embed.weight.dtype == torch.float16:
        raise ValueError("float16 loses small gradients; train with --train.precision bf16-true (or 32-true)")
    return llm


def fresh(settings: PretrainSettings, vocab_size: int, eos: int | None) -> LLM:
    """A model of random weights, with a vocabulary as large as the tokenizer's (in whole blocks of 64)."""
    import torch

    from litlm.describe import config_named
    from litlm.llm import LLM, pick_device
    from litlm.model import GPT

    config = config_named(settings.model)
    fields = dict(settings.model_args)
    if vocab_size > config.vocab_size or vocab_size <= config.vocab_size - 64:
        fields.setdefault("vocab_size", -(-vocab_size // 64) * 64)
    if eos is not None:
        fields.setdefault("eos_token_id", eos)
    for key in ("bos_token_id", "pad_token_id"):
        if (getattr(config, key, None) or 0) >= fields.get("vocab_size", config.vocab_size):
            fields.setdefault(key, None)
    try:
        config = config.changed(**fields)
    except ValueError as e:
        raise ValueError(f"model={settings.model} with model_args={settings.model_args}: {e}") from None
    try:
        config.to_hf()
    except ValueError as e:
        print(f"litlm: {e}\nSo it is saved in litlm's own form (model_type litlm).", file=sys.stderr)
        config = config.changed(family="litlm")
    with torch.device(pick_device(settings.device)):
        model = GPT(config)
        model.init_weights(scale_residual=settings.scale_residual)
    return LLM(model.bfloat16() if settings.train.precision == "bf16-true" else model, config, source=settings.model)


def base_name(model: str) -> str:
    from litlm.zoo import find_model

    info = find_model(model)
    return info.hub_id if info else model


def add_tokens(llm: LLM, settings: FinetuneSettings) -> FinetuneSettings:
    """Give the tokenizer and the embeddings the new tokens; settings that also train what is new."""
    from litlm.transforms.resize import resize_embeddings

    method = settings.method
    if not settings.new_tokens:
        return settings
    if method.name not in ("full", "lora", "qlora"):
        raise ValueError(
            f"new_tokens need embeddings that are trained; method {method.name} has none, use lora or full"
        )
    ids = llm.tokenizer.add_tokens(settings.new_tokens)
    if max(ids) >= llm.config.vocab_size:
        resize_embeddings(llm.model, max(ids) + 1)
        llm.config = llm.model.config
    if method.name == "full":
        return settings
    needed = ("embed",) if llm.model.lm_head is None else ("embed", "lm_head")
    whole = tuple(dict.fromkeys((*method.modules_to_save, *needed)))
    return dataclasses.replace(settings, method=dataclasses.replace(method, modules_to_save=whole))


def sampler(llm: LLM, prompts: tuple[str, ...]) -> Callable[[], list[tuple[str, str]]] | None:
    """What the model makes of some prompts, as an assistant where it has a chat template."""
    if not prompts:
        return None

    def sample() -> list[tuple[str, str]]:
        chat = llm.tokenizer.chat_template is not None
        ask = lambda p: llm.chat([{"role": "user", "content": p}], max_new_tokens=64)  # noqa: E731
        return [(p, ask(p) if chat else llm.generate(p, max_new_tokens=64)) for p in prompts]

    return sample


def settle(
    llm: LLM, train: Dataset, objective: Objective | None, t: TrainSettings, seed: int, report: Any, out_dir: Path,
    resume: Path | None,
) -> TrainSettings:  # fmt: skip
    """Replace what is to be found out (lr=find, micro_batch_size=auto) by what is found, or was when the run began."""
    from litlm.checkpoint.base import write_text
    from litlm.train.trials import largest_micro_batch, try_rates

    file = out_dir / "found.json"
    known = json.loads(file.read_text(encoding="utf-8")) if resume is not None and file.is_file() else {}
    found = dict(known)
    if t.micro_batch_size == "auto":
        if "micro_batch_size" not in found:
            found["micro_batch_size"] = largest_micro_batch(llm.model, train, objective, t)
        report.say(f"micro_batch_size={found['micro_batch_size']} is the largest that fits")
        t = dataclasses.replace(t, micro_batch_size=found["micro_batch_size"])
    if t.lr == "find":
        if "lr" not in found:
            found["lr"] = try_rates(llm.model, train, objective, t, seed, report, out_dir)
        t = dataclasses.replace(t, lr=found["lr"])
    if found != known:
        write_text(file, json.dumps(found) + "\n")
    return t


def write_final(out_dir: Path, export: Callable[[Path], None], best: Path | None = None) -> None:
    """`final/`, whole or not at all: what the model is now, or what it was at the checkpoint `best`."""
    part, final = out_dir / ".final.part", out_dir / "final"
    shutil.rmtree(part, ignore_errors=True)
    if best is None:
        export(part)
    else:
        shutil.copytree(best, part, ignore=shutil.ignore_patterns("training"))
    if final.exists():
        shutil.rmtree(final)
    os.replace(part, final)
