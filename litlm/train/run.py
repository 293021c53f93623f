"""Whole runs, from settings to files: `finetune`, `pretrain` and `dpo`. They differ in data and objective.

Each leaves in `out_dir`: settings.yaml (runs again), metrics.csv, report.html, checkpoints `step-000100/`, `final/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from litlm.checkpoint.config import load_config
from litlm.checkpoint.training import Checkpoints
from litlm.data.base import Dataset
from litlm.data.preference import load_preference
from litlm.data.prepare import load_tokenizer
from litlm.data.sft import load_sft
from litlm.data.shards import load_text, prepared_tokenizer
from litlm.generate.decode import check_prompts
from litlm.io.errors import error_reason
from litlm.llm import LLM, pick_device
from litlm.model import GPT
from litlm.prompts import get_style
from litlm.prompts.jinja import today
from litlm.settings import DPOSettings, FinetuneSettings, PretrainSettings, RunSettings
from litlm.tokenizer import Tokenizer
from litlm.train.files import changed_settings, clear_run, put_aside, read_settings, write_settings
from litlm.train.fingerprint import run_fingerprint
from litlm.train.limits import Limits
from litlm.train.loop import Result, Trainer, compiles
from litlm.train.loss import Objective
from litlm.train.methods import AppliedMethod, apply_method, get_method
from litlm.train.precision import computing_in, describe_precision, load_dtype, resolve_precision
from litlm.train.preference import Preference, precompute_reference
from litlm.train.preflight import check_token_ids, check_trainable, find_checkpoint, preflight
from litlm.train.process import STOP_EXIT_CODES
from litlm.train.report import Report
from litlm.train.schedule import warmup_steps
from litlm.train.trials import explain_oom, resolve_auto_settings
from litlm.transforms.quantize import count_parameters
from litlm.transforms.resize import resize_embeddings
from litlm.zoo import find_model


def finetune(settings: FinetuneSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Finetune a model on conversations. `llm` is used (and changed) instead of loading `settings.model`.

    Raises ValueError for settings, data or a model that can't be used.
    """
    with preflight(settings, llm), explain_oom(settings):
        llm = load_for(settings) if llm is None else check_trainable(llm)
        settings = with_date(add_tokens(llm, settings))
        options = {"seed": settings.seed, "static_shapes": needs_static_shapes(settings, llm)}
        train, val = load_sft(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, **options)
        use_style(llm, settings.data.style)
        method = apply_method(llm, settings.method)
        return run(settings, llm, method, train, val, quiet=quiet)


def dpo(settings: DPOSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Teach a model which of two answers is better; otherwise as `finetune`."""
    with preflight(settings, llm), explain_oom(settings):
        llm = load_for(settings) if llm is None else check_trainable(llm)
        settings = with_date(settings)
        options = {"seed": settings.seed, "static_shapes": needs_static_shapes(settings, llm)}
        train, val = load_preference(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, **options)
        use_style(llm, settings.data.style)
        check_token_ids(llm, train, val)  # already now, because the reference model reads them
        method = apply_method(llm, settings.method)
        if method.disabled is None and settings.preference.loss != "orpo":
            size, device = settings.train.micro_batch_size, llm.model.embed.weight.device
            size = 1 if size == "auto" else size
            with computing_in(llm.model, resolve_precision(settings, device)):
                train = precompute_reference(llm.model, train, size, device)
                val = val and precompute_reference(llm.model, val, size, device)
        return run(settings, llm, method, train, val, Preference(settings.preference, method.disabled), quiet=quiet)


def pretrain(settings: PretrainSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Train a model on plain text, from random weights or (from_weights) from its own; otherwise as `finetune`.

    Raises ValueError also for rows that are longer than the model's context.
    """
    with preflight(settings, llm), explain_oom(settings):
        if settings.train.optimizer.lower() in ("adamw", "adamw8bit", "muon"):
            # The usual 0.999 averages the second moments over too many steps for a model that changes fast.
            args = {"betas": (0.9, 0.95)} | settings.train.optimizer_args
            settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, optimizer_args=args))
        if llm is None and settings.from_weights:
            llm = load_for(settings)
        if settings.tokenizer is not None:
            tokenizer = load_tokenizer(settings.tokenizer)
        else:
            tokenizer = prepared_tokenizer(settings.data) or (
                model_tokenizer(settings) if llm is None else llm.tokenizer
            )
        if llm is None:
            llm = init_model(settings, tokenizer.vocab_size, tokenizer.eos_id)
        elif note := other_tokens(llm, tokenizer):
            print(f"litlm: {note}", file=sys.stderr)
        check_trainable(llm).tokenizer = tokenizer
        max_len = settings.data.max_len or min(llm.config.max_seq_len, 2048)
        if max_len > llm.config.max_seq_len:
            raise ValueError(
                f"data.max_len={max_len} is more than the model's context of {llm.config.max_seq_len}; lower it, or "
                f"give a new model a longer one: --model_args.max_seq_len {max_len}"
            )
        train, val = load_text(settings.data, tokenizer, max_len, Path(settings.out_dir) / "data", seed=settings.seed)
        method = apply_method(llm, settings.method)
        return run(settings, llm, method, train, val, quiet=quiet)


def run(
    settings: RunSettings,
    llm: LLM,
    method: AppliedMethod,
    train: Dataset,
    val: Dataset | None,
    objective: Objective | None = None,
    *,
    quiet: bool = False,
) -> Result:
    """What all runs share: resume, report, train, save. Raises ValueError if the result could not be saved."""
    out_dir, t, device = Path(settings.out_dir), settings.train, llm.model.embed.weight.device
    base = hub_id(llm.source or settings.model)

    def export(folder: Path) -> None:
        method.export(folder, base)

    every = t.save_interval if t.on_spike == "rollback" else None
    checkpoints = Checkpoints(out_dir, export, keep=t.keep, keep_every=every)
    resume = find_checkpoint(settings, checkpoints)
    t = dataclasses.replace(t, precision=resolve_precision(settings, device))
    method.check()
    check_token_ids(llm, train, val)
    sample = make_sampler(llm, t.samples, getattr(settings.data, "date", None))
    with Report(out_dir, settings, loggers=t.logger, quiet=quiet) as report:
        introduce(report, settings, llm, method, train, val)
        report.describe(precision=describe_precision(llm.model, t.precision))
        with explain_oom(settings):
            t = resolve_auto_settings(llm.model, train, objective, t, settings.seed, report, out_dir, resume)
        with explain_oom(dataclasses.replace(settings, train=t)):
            trainer = Trainer(
                llm.model, train, val, settings=t, objective=objective, seed=settings.seed, report=report,
                checkpoints=checkpoints, fingerprint=run_fingerprint(settings, llm),
            )  # fmt: skip
            if resume is not None:
                trainer.load(resume)
            if resume is not None and trainer.is_over and is_finished(out_dir, resume):
                return trainer.already_finished()
            if not trainer.is_over:
                prepare_out_dir(settings, checkpoints, report, resume, device)
            result = trainer.train(sample)
        write_result(result, checkpoints, report)
    return result


def introduce(
    report: Report, settings: RunSettings, llm: LLM, method: AppliedMethod, train: Dataset, val: Dataset | None
) -> None:
    """Report what is trained on what, before the first step."""
    t = settings.train
    for note in (*method.notes, *train.notes, *(val.notes if val else ()), llm.style_note(), llm.chat_note()):
        if note:
            report.say(note)
    trainable, total = count_parameters(llm.model)
    steps = Limits(t, len(train)).steps()
    report.say(
        f"{len(train):,} examples to learn from, {len(val) if val else 0:,} to validate on"
        + (f"; {steps:,} steps of {t.batch_size}" if steps else "")
        + f"; training {trainable:,} of {total:,} parameters"
    )
    if (warmup := warmup_steps(t, steps)) < t.warmup_steps:
        report.say(f"warmup_steps={t.warmup_steps} is cut to {warmup}: at most half of the run, which has {steps}")
    report.describe(
        model=" + ".join(filter(None, (llm.source, llm.adapter))) or settings.model, parameters=total,
        trainable=trainable, examples=len(train), device=llm.model.embed.weight.device,
        notes=[*method.notes, *train.notes],
    )  # fmt: skip


def prepare_out_dir(
    settings: RunSettings, checkpoints: Checkpoints, report: Report, resume: Path | None, device: Any
) -> None:
    """Make room for what the run writes, and write its settings. Only now, when nothing can be refused any more: a run
    that is refused must not change the settings and checkpoints of another one.
    """
    out_dir, again = checkpoints.out_dir, dataclasses.replace(settings, resume=None, overwrite=False)
    if resume is not None:
        changed = ", ".join(changed_settings(settings, out_dir / "settings.yaml"))
        report.say(f"Going on from {resume.name}" + (f" with other settings than before: {changed}" if changed else ""))
        checkpoints.archive_later_than(resume)
    if settings.overwrite:
        checkpoints.remove_all()
        clear_run(out_dir)
    elif resume is None and (earlier := put_aside(again, out_dir)):
        report.say(
            f"There is no checkpoint in {out_dir} to go on from, so the run begins anew; what was written there "
            f"before is in {earlier.name}/"
        )
    write_settings(again, out_dir, device, resumed=resume is not None)


def write_result(result: Result, checkpoints: Checkpoints, report: Report) -> None:
    """Write `final/`, unless the run was stopped by a signal: it can then go on."""
    if result.stopped in STOP_EXIT_CODES:
        newest = f"step-{result.steps:06d}"
        report.say(f"Stopped by {result.stopped} after step {result.steps}; go on from {newest} with --resume auto")
        return
    best = checkpoints.steps().get(result.best_step or -1) if result.stopped else None
    if best is not None:
        report.say(f"Stopped after step {result.steps}: {result.stopped}; final/ is the model of {best.name}")
    write_final(checkpoints.out_dir, checkpoints.export, best)


def is_finished(out_dir: Path, checkpoint: Path) -> bool:
    """Whether `final/` was written after the checkpoint, and not by the run before it went on."""
    from litlm.checkpoint.training import STATE

    final, state = out_dir / "final", checkpoint / "training" / STATE
    return final.is_dir() and final.stat().st_mtime_ns >= state.stat().st_mtime_ns


def write_final(out_dir: Path, export: Callable[[Path], None], best: Path | None = None) -> None:
    """`final/`, whole or not at all: the model as it is now, or as it was at the checkpoint `best`.

    Raises ValueError if it could not be written.
    """
    part, final = out_dir / ".final.part", out_dir / "final"
    try:
        shutil.rmtree(part, ignore_errors=True)
        if best is None:
            export(part)
        else:
            shutil.copytree(best, part, ignore=shutil.ignore_patterns("training"))
        if final.exists():
            shutil.rmtree(final)
        os.utime(part)  # a copied folder has the time of its checkpoint, and `is_finished` compares times
        os.replace(part, final)
    except (OSError, SafetensorError, ValueError) as e:
        if isinstance(e, ValueError) and e.__cause__ is None:
            raise  # not about the disk
        raise ValueError(
            f"{final} could not be written ({error_reason(e)}); the last checkpoint is complete: use --resume auto"
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- models and tokenizers -----------------------------------------------------------------------------------------


def load_for(settings: RunSettings) -> LLM:
    """The model, in the dtype that the precision asks for; quantized if the method's settings say so."""
    dtype = load_dtype(resolve_precision(settings, pick_device(settings.device)))
    options: dict[str, Any] = dict(device=settings.device, dtype=dtype, quantize=settings.method.quantize)
    return check_trainable(LLM.load(settings.model, ignore_fields=settings.ignore_fields, **options))


def model_tokenizer(settings: PretrainSettings) -> Tokenizer:
    """The tokenizer of the model that a new one is to resemble. Raises ValueError if it can't be loaded."""
    try:
        return load_tokenizer(settings.model)
    except ValueError as e:
        raise ValueError(
            f"{e}\nOnly its tokenizer is needed here; another will do: --tokenizer MODEL_OR_FILE (or train one, with "
            "litlm train-tokenizer)"
        ) from None


def other_tokens(llm: LLM, tokenizer: Tokenizer) -> str | None:
    """A warning if tokens are not those that the model was made for: its embeddings then belong to others."""
    own, n = llm._tokenizer, tokenizer.vocab_size
    others = sum(own.id_to_token(i) != tokenizer.id_to_token(i) for i in range(n)) if own is not None else 0
    if not others:
        return None
    return (
        f"the tokenizer is not the one that {llm.source or 'the model'} was made for: {others:,} of {n:,} tokens "
        "differ, and their embeddings are those of others"
    )


def init_model(settings: PretrainSettings, vocab_size: int, eos: int | None) -> LLM:
    """A model with random weights, and a vocabulary of the tokenizer's size rounded up to a multiple of 64.

    Raises ValueError if `model_args` don't fit the config.
    """
    config = load_config(settings.model, settings.ignore_fields)
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


def hub_id(model: str) -> str:
    """What PEFT calls a model: of a zoo name its hub id."""
    info = find_model(model)
    return info.hub_id if info else model


def add_tokens(llm: LLM, settings: FinetuneSettings) -> FinetuneSettings:
    """Add `new_tokens` to the tokenizer and the embeddings; returns settings that also train the new rows."""
    if not settings.new_tokens:
        return settings
    ids = llm.tokenizer.add_tokens(settings.new_tokens)
    if max(ids) >= llm.config.vocab_size:
        resize_embeddings(llm.model, max(ids) + 1)
        llm.config = llm.model.config
    modules = ("embed",) if llm.model.lm_head is None else ("embed", "lm_head")
    method = get_method(settings.method.name).for_new_tokens(settings.method, modules)
    return dataclasses.replace(settings, method=method)


# --- prompts -------------------------------------------------------------------------------------------------------

ChatSettings = TypeVar("ChatSettings", FinetuneSettings, DPOSettings)


def with_date(settings: ChatSettings) -> ChatSettings:
    """Settings with the date that prompts give as today's; a resumed run keeps the one that it started with."""
    date, before = settings.data.date, {}
    if date is None and settings.resume is not None:
        with contextlib.suppress(ValueError):  # if the date has changed the data, their fingerprint will tell
            before = read_settings(Path(settings.out_dir) / "settings.yaml")
        data = before.get("data")
        date = data.get("date") if isinstance(data, dict) else None
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, date=date or today("%Y-%m-%d")))


def needs_static_shapes(settings: RunSettings, llm: LLM) -> bool:
    """Whether compiled layers, or cuDNN's attention, specialize on the shapes of batches."""
    device = llm.model.embed.weight.device
    return device.type == "cuda" or compiles(settings.train, device)


def use_style(llm: LLM, style: str | None) -> None:
    """Ask the model in the prompt style of its training data from now on, and save that style with it."""
    if style is not None:
        llm.style = get_style(style)


def make_sampler(llm: LLM, prompts: tuple[str, ...], date: str | None) -> Callable[[], list[tuple[str, str]]] | None:
    """A function that continues the prompts, as an assistant if the model has a prompt style. date: today, in prompts.

    Raises ValueError for prompts that are too long, rather than in the middle of a run.
    """
    if not prompts:
        return None
    style = None if llm.style.name == "plain" else llm.style.with_date(date)
    message = lambda p: [{"role": "user", "content": p}]  # noqa: E731
    ids = [style.encode(message(p), llm.tokenizer) if style else llm.tokenizer.encode(p) for p in prompts]
    check_prompts(ids, llm.config.vocab_size, llm.config.max_seq_len, llm.tokenizer)

    def sample() -> list[tuple[str, str]]:
        chat = lambda p: llm.chat(message(p), style=style, max_new_tokens=64)  # noqa: E731
        return [(p, chat(p) if style else llm.generate(p, max_new_tokens=64)) for p in prompts]

    return sample
