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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from litlm.settings import DPOSettings, FinetuneSettings, PretrainSettings, RunSettings, TextData, TrainSettings

if TYPE_CHECKING:
    import torch

    from litlm.checkpoint.training import Checkpoints
    from litlm.data.base import Dataset
    from litlm.llm import LLM
    from litlm.tokenizer import Tokenizer
    from litlm.train.loop import Result
    from litlm.train.loss import Objective
    from litlm.train.methods import Applied


P = ParamSpec("P")


def whole_run(work: Callable[P, Result]) -> Callable[P, Result]:
    """What goes around every run: `begin`, and what to change where the GPU's memory is not enough (to load, say)."""

    @functools.wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Result:
        import torch

        settings: Any = args[0] if args else kwargs["settings"]
        llm: Any = kwargs.get("llm")
        with begin(settings, llm):
            try:
                return work(*args, **kwargs)
            except torch.OutOfMemoryError:
                from litlm.train.trials import out_of_memory

                raise ValueError(out_of_memory(settings)) from None

    return wrapped


@whole_run
def finetune(settings: FinetuneSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Teach a model conversations. `llm` is used (and changed) instead of loading `settings.model`."""
    from litlm.data.sft import load_sft
    from litlm.train.methods import apply_method

    llm = load_for(settings) if llm is None else usable(llm)
    settings = dated(add_tokens(llm, settings))
    train, val = load_sft(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, seed=settings.seed)
    ask_as_trained(llm, settings.data.style)
    method = apply_method(llm, settings.method)
    return run(settings, llm, method, train, val, None, quiet=quiet)


@whole_run
def dpo(settings: DPOSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Teach a model which of two answers is the better one."""
    from litlm.data.preference import load_preference
    from litlm.train.methods import apply_method
    from litlm.train.mixed import rounded
    from litlm.train.preference import Preference, precompute_reference

    llm = load_for(settings) if llm is None else usable(llm)
    settings = dated(settings)
    train, val = load_preference(settings.data, llm.tokenizer, llm.style, llm.config.max_seq_len, seed=settings.seed)
    ask_as_trained(llm, settings.data.style)
    check_ids(llm, train, val)  # already now, because the reference model reads them
    if settings.method.name == "full" and settings.preference.loss != "orpo":
        size, device = settings.train.micro_batch_size, llm.model.embed.weight.device
        size = 1 if size == "auto" else size
        mixed = precision_of(settings, device) == "bf16-mixed"
        with rounded(llm.model) if mixed else contextlib.nullcontext():  # the precision that the trained model has
            train = precompute_reference(llm.model, llm.model, train, size, device)
            val = val and precompute_reference(llm.model, llm.model, val, size, device)
    method = apply_method(llm, settings.method)
    return run(settings, llm, method, train, val, Preference(settings.preference, method.off), quiet=quiet)


@whole_run
def pretrain(settings: PretrainSettings, *, llm: LLM | None = None, quiet: bool = False) -> Result:
    """Train a model on plain text, from random weights or (from_weights) from those it has."""
    from litlm.data.prepare import load_tokenizer
    from litlm.data.shards import load_text, prepared_tokenizer
    from litlm.train.methods import apply_method

    if settings.train.optimizer.lower() in ("adamw", "adamw8bit", "muon"):
        # With the usual 0.999 the second moments forget too slowly for how fast a new model changes.
        t = dataclasses.replace(settings.train, optimizer_args={"betas": (0.9, 0.95)} | settings.train.optimizer_args)
        settings = dataclasses.replace(settings, train=t)
    if llm is None and settings.from_weights:
        llm = load_for(settings)
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
    else:
        tokenizer = prepared_tokenizer(settings.data) or (own_tokenizer(settings) if llm is None else llm.tokenizer)
    if llm is None:
        llm = fresh(settings, tokenizer.vocab_size, tokenizer.eos_id)
    usable(llm).tokenizer = tokenizer
    max_len = settings.data.max_len or min(llm.config.max_seq_len, 2048)
    if max_len > llm.config.max_seq_len:
        raise ValueError(
            f"data.max_len={max_len} is more than the model's context of {llm.config.max_seq_len}; lower it, or "
            f"give a new model a longer one: --model_args.max_seq_len {max_len}"
        )
    train, val = load_text(settings.data, tokenizer, max_len, Path(settings.out_dir) / "data", seed=settings.seed)
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
    from litlm.train.files import changed_training, clear_run, put_aside
    from litlm.train.identity import identity
    from litlm.train.limits import Limits
    from litlm.train.loop import compiles, fit, make_fabric
    from litlm.train.methods import trained
    from litlm.train.report import Report, write_settings
    from litlm.train.schedule import warmup_of
    from litlm.train.trials import out_of_memory

    out_dir, t = Path(settings.out_dir), settings.train
    # A zoo name means nothing to PEFT; its hub id does, to both.
    base = base_name(llm.source or settings.model)

    def export(folder: Path) -> None:
        method.export(folder, base)

    def begun() -> None:
        # Not before: a run that is refused must leave the settings and checkpoints of the one that it meant.
        if resume is not None:
            checkpoints.set_aside(after=resume)
        again = dataclasses.replace(settings, resume=None, overwrite=False)
        if settings.overwrite:
            checkpoints.clear()
            clear_run(out_dir)
        elif resume is None and (earlier := put_aside(again, out_dir)):
            report.say(
                f"There is no checkpoint in {out_dir} to go on from, so the run begins anew; what was written there "
                f"before is in {earlier.name}/"
            )
        write_settings(again, out_dir, device)

    every = t.save_interval if t.on_spike == "rollback" else None
    checkpoints = Checkpoints(out_dir, export, keep=t.keep, every=every)
    resume = find_checkpoint(settings, checkpoints)
    device = llm.model.embed.weight.device
    for data in filter(None, (train, val)):
        data.static_shapes = device.type == "cuda" or compiles(t, device)
    t = dataclasses.replace(t, precision=precision_of(settings, device))
    method.check()
    check_ids(llm, train, val)
    with Report(out_dir, settings, loggers=t.logger, quiet=quiet) as report:
        for note in (*method.notes, *train.notes, *(val.notes if val else ()), llm.chat_note()):
            if note:
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
            model=name_of(llm) or settings.model, parameters=every, trainable=some, examples=len(train), device=device,
            precision=computes_in(llm, t.precision),
            notes=[*method.notes, *train.notes],
        )  # fmt: skip
        try:
            t = settle(llm, train, objective, t, settings.seed, report, out_dir, resume)
            result = fit(
                llm.model, train, val, settings=t, objective=objective, seed=settings.seed,
                fabric=make_fabric(llm.model), report=report, checkpoints=checkpoints, resume=resume,
                sample=sampler(llm, t.samples, getattr(settings.data, "date", None)), begun=begun,
                kind=identity(settings, llm),
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


STOPPED_BY_HAND = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}  # and the exit codes that shells expect for them


def own_tokenizer(settings: PretrainSettings) -> Tokenizer:
    """That of the model that a new one is like, of which nothing else is needed."""
    from litlm.data.prepare import load_tokenizer

    try:
        return load_tokenizer(settings.model)
    except ValueError as e:
        raise ValueError(
            f"{e}\nOnly its tokenizer is needed here; another will do: --tokenizer MODEL_OR_FILE (or train one, with "
            "litlm train-tokenizer)"
        ) from None


def check_ids(llm: LLM, *data: Dataset | None) -> None:
    """Raise a ValueError for tokens of the data that the model has no row for; on a GPU they'd be a failed assert."""
    from litlm.tokenizer import describe_out_of_vocab

    rows = llm.config.vocab_size
    tokenizer, ids = llm._tokenizer, [token for part in data if part for token in part.out_of_vocab_ids(rows)]
    if wrong := describe_out_of_vocab(ids, rows, tokenizer):
        size = "" if tokenizer is None else f" (the tokenizer has {tokenizer.vocab_size})"
        raise ValueError(
            f"The data holds {wrong}{size}. Use the tokenizer that the model was made with, also for `litlm prepare`, "
            "or give the model rows for the tokens: litlm finetune --new_tokens TEXT, or for a new model "
            "--model_args.vocab_size N"
        )


@contextlib.contextmanager
def begin(settings: RunSettings, llm: LLM | None = None) -> Iterator[None]:
    """Have the run's folder for this process alone. What would fail later is said now, before anything is loaded, and
    all of it at once; and random choices follow the seed.
    """
    from lightning.fabric import seed_everything

    from litlm.checkpoint.training import Checkpoints
    from litlm.io.writing import locked

    out_dir, problems = Path(settings.out_dir), problems_of(settings, llm)
    known = Checkpoints(out_dir, lambda folder: None)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out_dir))
            refuse_used(settings, known)
            find_checkpoint(settings, known)
        except ValueError as e:
            problems.append(str(e))
        if problems:
            raise ValueError(problems[0] if len(problems) == 1 else "\n- ".join(["Run settings not valid:", *problems]))
        known.clean()
        seed_everything(settings.seed, verbose=False)
        yield


def problems_of(settings: RunSettings, llm: LLM | None) -> list[str]:
    """What does not go together, is missing or is not there."""
    from litlm.data import text
    from litlm.data.prepare import is_prepared
    from litlm.data.records import resolve_source
    from litlm.data.sources import expand_patterns
    from litlm.llm import pick_device
    from litlm.prompts import get_style
    from litlm.train.optim import check_optimizer
    from litlm.train.report import check_loggers
    from litlm.train.trials import check_auto

    t, data, method = settings.train, settings.data, settings.method.name
    problems: list[str] = []

    def attempt(check: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            check(*args, **options)
        except ValueError as e:
            problems.append(str(e))

    attempt(check_loggers, t.logger)
    attempt(check_optimizer, t)
    if llm is not None:
        attempt(check_auto, t.micro_batch_size, llm.model.embed.weight.device)
    else:
        attempt(lambda: check_auto(t.micro_batch_size, pick_device(settings.device)))
    if (style := getattr(data, "style", None)) is not None:
        attempt(get_style, style)
    for sources in (data.path, data.val_path):
        try:
            found = expand_patterns(sources)
        except ValueError as e:
            problems.append(str(e))
            continue
        if isinstance(data, TextData):
            unprepared = [source for source in found if not is_prepared(source)]
            attempt(text.find_sources, unprepared, text_key=data.text_key, split=data.split)
        else:
            for source in found:
                attempt(resolve_source, source)
    if t.early_stop and not data.val_path and data.val_fraction == 0:
        problems.append(f"early_stop={t.early_stop} needs data to validate on; set val_fraction or val_path")
    if isinstance(settings, PretrainSettings) and method != "full":
        problems.append(f"method={method} is for finetuning; pretraining takes full (with freeze)")
    if getattr(settings, "new_tokens", ()) and method not in ("full", "lora", "qlora"):
        problems.append(f"new_tokens need embeddings that are trained; method {method} has none, use lora or full")
    both = [name for name in ("embed", "lm_head") if name in settings.method.targets]
    if getattr(settings, "new_tokens", ()) and method in ("lora", "qlora") and both:
        problems.append(f"new_tokens trains the embeddings whole; leave {' and '.join(both)} out of targets")
    return problems


def refuse_used(settings: RunSettings, known: Checkpoints) -> None:
    """Raise a ValueError for a folder with an earlier run in it, where the settings don't say what becomes of it."""
    from litlm.train.files import n_steps

    out_dir, steps = known.out_dir, known.steps()
    if settings.overwrite or settings.resume is not None:
        return
    if steps or (out_dir / "final").exists():
        raise ValueError(
            f"{out_dir} already holds a run; go on with it (--resume auto), replace it (--overwrite), or name another "
            "--out_dir"
        )
    if n_steps(out_dir):
        raise ValueError(
            f"{out_dir} already holds a run, of {n_steps(out_dir)} steps and without a checkpoint; begin it anew and "
            "keep what it wrote (--resume auto), replace it (--overwrite), or name another --out_dir"
        )


def find_checkpoint(settings: RunSettings, checkpoints: Checkpoints) -> Path | None:
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


def precision_of(settings: RunSettings, device: torch.device) -> Any:
    """auto, decided: whole weights need fp32 copies for small steps not to be lost; adapters are fp32 anyway."""
    if settings.train.precision != "auto":
        return settings.train.precision
    method, new_tokens = settings.method, getattr(settings, "new_tokens", ())
    whole = method.name == "full" or bool(method.modules_to_save) or bool(new_tokens)
    if device.type == "cuda":
        return "bf16-mixed" if whole else "bf16-true"
    return "32-true" if whole else "auto"


def computes_in(llm: LLM, precision: str) -> str:
    """The precision that a run has, for people: auto is what the weights have. Packed weights are named as well."""
    import torch

    from litlm.transforms.quantize import kinds

    if precision == "auto":
        precision = "bf16-true" if llm.model.embed.weight.dtype == torch.bfloat16 else "32-true"
    packed = kinds(llm.model)
    return f"{precision}, frozen weights in {', '.join(packed)}" if packed else precision


def name_of(llm: LLM) -> str:
    """What the model was loaded from, with its adapter if it has one."""
    return " + ".join(filter(None, (llm.source, llm.adapter)))


def load_for(settings: RunSettings) -> LLM:
    """The model in the dtype that the precision asks for, quantized for qlora."""
    from litlm.llm import LLM, pick_device

    precision = precision_of(settings, pick_device(settings.device))
    dtype = {"auto": "auto", "bf16-true": "bfloat16"}.get(precision, "float32")
    quantize = settings.method.quantize if settings.method.name == "qlora" else None
    options: dict[str, Any] = dict(device=settings.device, dtype=dtype, quantize=quantize)
    return usable(LLM.load(settings.model, ignore_fields=settings.ignore_fields, **options))


def usable(llm: LLM) -> LLM:
    import torch

    if llm.model.embed.weight.dtype == torch.float16:
        raise ValueError("float16 loses small gradients; train with --train.precision bf16-true (or 32-true)")
    return llm


def fresh(settings: PretrainSettings, vocab_size: int, eos: int | None) -> LLM:
    """A model of random weights, with a vocabulary as large as the tokenizer's (in whole blocks of 64)."""
    import torch

    from litlm.cli.describe import config_named
    from litlm.llm import LLM, pick_device
    from litlm.model import GPT

    config = config_named(settings.model, settings.ignore_fields)
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
    ids = llm.tokenizer.add_tokens(settings.new_tokens)
    if max(ids) >= llm.config.vocab_size:
        resize_embeddings(llm.model, max(ids) + 1)
        llm.config = llm.model.config
    if method.name == "full":
        return settings
    needed = ("embed",) if llm.model.lm_head is None else ("embed", "lm_head")
    whole = tuple(dict.fromkeys((*method.modules_to_save, *needed)))
    return dataclasses.replace(settings, method=dataclasses.replace(method, modules_to_save=whole))


Conversational = TypeVar("Conversational", FinetuneSettings, DPOSettings)


def dated(settings: Conversational) -> Conversational:
    """Settings with the day that prompts give as today's: a run that goes on later keeps the one that it began on."""
    from litlm.prompts.turns import today
    from litlm.train.files import read_settings

    day, before = settings.data.date, {}
    if day is None and settings.resume is not None:
        with contextlib.suppress(ValueError):  # the fingerprint of the data says what is wrong, if anything is
            before = read_settings(Path(settings.out_dir) / "settings.yaml")
        data = before.get("data")
        day = data.get("date") if isinstance(data, dict) else None
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, date=day or today("%Y-%m-%d")))


def ask_as_trained(llm: LLM, style: str | None) -> None:
    """The style that the data was written in is the one to ask in from now on, and to save."""
    from litlm.prompts import get_style

    if style is not None:
        llm.style = get_style(style)


def sampler(llm: LLM, prompts: tuple[str, ...], day: str | None) -> Callable[[], list[tuple[str, str]]] | None:
    """What the model makes of some prompts, as an assistant where it has a way to be asked. day: today, in prompts."""
    if not prompts:
        return None
    from litlm.generate.decode import check_prompts

    style = None if llm.style.name == "plain" else llm.style.with_date(day)
    message = lambda p: [{"role": "user", "content": p}]  # noqa: E731
    ids = [style.encode(message(p), llm.tokenizer) if style else llm.tokenizer.encode(p) for p in prompts]
    check_prompts(ids, llm.config.vocab_size, llm.config.max_seq_len, llm.tokenizer)  # not in the middle of a run

    def sample() -> list[tuple[str, str]]:
        ask = lambda p: llm.chat(message(p), style=style, max_new_tokens=64)  # noqa: E731
        return [(p, ask(p) if style else llm.generate(p, max_new_tokens=64)) for p in prompts]

    return sample


def settle(
    llm: LLM, train: Dataset, objective: Objective | None, t: TrainSettings, seed: int, report: Any, out_dir: Path,
    resume: Path | None,
) -> TrainSettings:  # fmt: skip
    """Replace what is to be found out (lr=find, micro_batch_size=auto) by what is found, or was when the run began."""
    from litlm.io.writing import write_text
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
    from safetensors import SafetensorError

    from litlm.io.writing import reason

    part, final = out_dir / ".final.part", out_dir / "final"
    try:
        shutil.rmtree(part, ignore_errors=True)
        if best is None:
            export(part)
        else:
            shutil.copytree(best, part, ignore=shutil.ignore_patterns("training"))
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
    except (OSError, SafetensorError, ValueError) as e:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(e, ValueError) and e.__cause__ is None:
            raise  # not about the disk
        raise ValueError(
            f"{final} could not be written ({reason(e)}); the last checkpoint has all of it: --resume auto writes it"
        ) from e
