"""What is checked before a run loads anything, all problems in one error: settings, data, devices, its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litlm.settings import PretrainSettings, RunSettings, TextData

if TYPE_CHECKING:
    from litlm.checkpoint.training import Checkpoints
    from litlm.data.base import Dataset
    from litlm.llm import LLM


@contextlib.contextmanager
def preflight(settings: RunSettings, llm: LLM | None = None) -> Iterator[None]:
    """For the block, lock the run's folder for this process; random choices follow the seed.

    Raises ValueError, before anything is loaded, for all that would make the run fail later.
    """
    from lightning.fabric import seed_everything

    from litlm.checkpoint.training import Checkpoints
    from litlm.io.lock import locked

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
    from litlm.data import text
    from litlm.data.prepare import is_prepared
    from litlm.data.records import resolve_source
    from litlm.data.sources import expand_patterns
    from litlm.llm import pick_device
    from litlm.prompts import get_style
    from litlm.train.methods import get_method
    from litlm.train.optim import check_optimizer
    from litlm.train.report import check_loggers
    from litlm.train.trials import check_auto

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
    for sources in (data.path, data.val_path):
        if (found := attempt(expand_patterns, sources)) is None:
            continue
        if isinstance(data, TextData):
            unprepared = [source for source in found if not is_prepared(source)]
            attempt(text.find_sources, unprepared, text_key=data.text_key, split=data.split)
        else:
            for source in found:
                attempt(resolve_source, source)
    if t.early_stop and not data.val_path and data.val_fraction == 0:
        problems.append(f"early_stop={t.early_stop} needs data to validate on; set val_fraction or val_path")
    if (method := attempt(get_method, settings.method.name)) is not None:
        if isinstance(settings, PretrainSettings) and not method.whole_model:
            problems.append(f"method={method.name} is for finetuning; pretraining takes full (with freeze)")
        if getattr(settings, "new_tokens", ()):
            attempt(method.for_new_tokens, settings.method, ("embed", "lm_head"))
    return problems


def check_out_dir(settings: RunSettings, checkpoints: Checkpoints) -> None:
    """Raises ValueError if the folder holds an earlier run and the settings don't say what to do with it."""
    from litlm.train.files import n_steps

    out_dir = checkpoints.out_dir
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
    from litlm.tokenizer import describe_out_of_vocab

    rows, tokenizer = llm.config.vocab_size, llm._tokenizer
    ids = [token for part in data if part for token in part.out_of_vocab_ids(rows)]
    if unknown := describe_out_of_vocab(ids, rows, tokenizer):
        size = "" if tokenizer is None else f" (the tokenizer has {tokenizer.vocab_size})"
        raise ValueError(
            f"The data holds {unknown}{size}. Use the tokenizer that the model was trained with, also for `litlm "
            "prepare`, or give the model rows for the tokens: litlm finetune --new_tokens TEXT, or for a new model "
            "--model_args.vocab_size N"
        )


def check_trainable(llm: LLM) -> LLM:
    """The model itself. Raises ValueError if it is float16."""
    import torch

    if llm.model.embed.weight.dtype == torch.float16:
        raise ValueError("float16 loses small gradients; train with --train.precision bf16-true (or 32-true)")
    return llm
