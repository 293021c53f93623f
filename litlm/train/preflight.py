"""What is checked before a run loads anything, all problems in one error: settings, data, devices, its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from litlm.checkpoint.run_folder import find_model, is_adapter, model_files, saved_by_run
from litlm.checkpoint.training import Checkpoints
from litlm.data import record_formats, text
from litlm.data.base import Dataset
from litlm.data.preference import parse_pair
from litlm.data.prepare import is_prepared
from litlm.data.records import check_start
from litlm.data.sources import expand_patterns
from litlm.io.lock import locked
from litlm.llm import LLM, pick_device
from litlm.prompts import get_style
from litlm.settings import DPOSettings, PretrainSettings, RunSettings, TextData
from litlm.tokenizer import describe_out_of_vocab
from litlm.train.files import n_steps
from litlm.train.methods import get_method
from litlm.train.optim import check_optimizer
from litlm.train.report import check_loggers
from litlm.train.trials import check_auto
from litlm.transforms.lora import Adapter, LoRA, OriginalWeights


@contextlib.contextmanager
def preflight(settings: RunSettings, llm: LLM | None = None) -> Iterator[None]:
    """For the block, lock the run's folder for this process; random choices follow the seed.

    Raises ValueError, before anything is loaded, for all that would make the run fail later.
    """
    from lightning.fabric import seed_everything

    out_dir, problems = Path(settings.out_dir), find_problems(settings, llm)
    checkpoints = Checkpoints(out_dir, lambda folder: None)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out_dir))
            check_out_dir(settings, checkpoints)
            find_checkpoint(settings, checkpoints)
        except ValueError as e:
            problems.append(str(e))
        if problems:
            raise ValueError(problems[0] if len(problems) == 1 else "\n- ".join(["Run settings not valid:", *problems]))
        checkpoints.remove_partial()
        seed_everything(settings.seed, verbose=False)
        yield


def find_problems(settings: RunSettings, llm: LLM | None) -> list[str]:
    """Settings that contradict each other, missing files and packages, unknown names."""
    t, data = settings.train, settings.data
    problems: list[str] = []

    def attempt(check: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return check(*args, **options)
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
    if llm is None:
        attempt(refuse_adapter, settings.model)
    for sources in (data.path, data.val_path):
        if (found := attempt(expand_patterns, sources)) is None:
            continue
        if isinstance(data, TextData):
            unprepared = [source for source in found if not is_prepared(source)]
            attempt(text.find_sources, unprepared, text_key=data.text_key, split=data.split)
        else:
            for source in found:
                attempt(check_start, source, parse_pair if isinstance(settings, DPOSettings) else record_formats.parse)
    if t.early_stop and not data.val_path and data.val_fraction == 0:
        problems.append(f"early_stop={t.early_stop} needs data to validate on; set val_fraction or val_path")
    if (method := attempt(get_method, settings.method.name)) is not None:
        if isinstance(settings, PretrainSettings) and not method.whole_model:
            problems.append(f"method={method.name} is for finetuning; pretraining takes full (with freeze)")
        if getattr(settings, "new_tokens", ()):
            attempt(method.for_new_tokens, settings.method, ("embed", "lm_head"))
    return problems


def refuse_adapter(model: str) -> None:
    """Raises ValueError if `model` is the directory of an adapter, or of a run that trained one."""
    from litlm.checkpoint.adapter_formats import is_mergeable
    from litlm.io.reading import read_json
    from litlm.zoo import find_model as in_zoo

    folder = find_model(Path(model).expanduser())
    if in_zoo(model) is not None or not is_adapter(folder):
        return
    config = read_json(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path") or "its base"
    if is_mergeable(config):
        advice = f"merge it first (litlm merge {folder} --out_dir MODEL), then train MODEL"
    else:
        advice = f"it can't be merged, so train another adapter on {base}"
    raise ValueError(f"model={model!r} is an adapter for {base}, not a model by itself; {advice}")


def check_out_dir(settings: RunSettings, checkpoints: Checkpoints) -> None:
    """Raises ValueError if the folder holds a model, or an earlier run without a word on what to do with that."""
    out_dir = checkpoints.out_dir
    resumes = settings.resume is not None and checkpoints.steps()
    if not resumes and (held := model_files(out_dir) or [p.name for p in out_dir.glob("*.safetensors")]):
        raise ValueError(
            f"{out_dir} holds a model or adapter ({', '.join(held[:3])}), and the folder would stand for that and not "
            "for what is trained; name another --out_dir"
        )
    if settings.overwrite:
        sources = {"model": settings.model, "tokenizer": getattr(settings, "tokenizer", None)}
        for name, source in sources.items():
            if source is not None and saved_by_run(Path(source).expanduser(), out_dir):
                raise ValueError(
                    f"{name}={source!r} is part of the run in {out_dir}, which --overwrite removes before the "
                    f"result is written; name another --out_dir, or copy the {name} to another folder first"
                )
    if settings.overwrite or settings.resume is not None:
        return
    if checkpoints.steps() or (out_dir / "final").exists():
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
    """The checkpoint that `resume` means; auto is the newest complete one, if there is any.

    Raises ValueError if it is not a checkpoint of this run.
    """
    if settings.resume is None:
        return None
    saved = checkpoints.steps()
    if settings.resume == "auto":
        return saved[max(saved)] if saved else None
    path = Path(settings.resume)
    path = path if path.exists() else checkpoints.out_dir / path  # step-000100 is enough
    if path.resolve() not in {p.resolve() for p in saved.values()}:
        known = ", ".join(p.name for p in saved.values()) or "none"
        raise ValueError(f"resume={settings.resume!r} is no checkpoint of {checkpoints.out_dir}; there: {known}")
    return path


def check_token_ids(llm: LLM, *data: Dataset | None) -> None:
    """Raises ValueError for tokens of the data that the model has no row for; on a GPU they'd be a failed assert."""
    rows, tokenizer = llm.config.n_output, llm._tokenizer
    ids = [token for part in data if part for token in part.out_of_vocab_ids(rows)]
    if unknown := describe_out_of_vocab(ids, rows, tokenizer):
        size = "" if tokenizer is None else f" (the tokenizer has {tokenizer.vocab_size})"
        raise ValueError(
            f"The data holds {unknown}{size}. Use the tokenizer that the model was trained with, also for `litlm "
            "prepare`, or give the model rows for the tokens: litlm finetune --new_tokens TEXT, or for a new model "
            "--model_args.vocab_size N"
        )


def check_trainable(llm: LLM) -> LLM:
    """The model itself. Raises ValueError if it is float16, or has an adapter."""
    if any(isinstance(module, (Adapter, LoRA, OriginalWeights)) for module in llm.model.modules()):
        raise ValueError(
            "the model has an adapter already; merge that first (litlm merge, or llm.save) and load the result"
        )
    if llm.model.embed.weight.dtype == torch.float16:
        raise ValueError("float16 loses small gradients; train with --train.precision bf16-true (or 32-true)")
    return llm
