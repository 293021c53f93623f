"""`litlm quickstart`: finetune a real model and compare its answers. The README's first command.

No model knows facts about litlm, so correct answers come from the finetuning. The questions are worded differently
from those in the data; one is unrelated, so its answer should not change.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from litlm.settings import DataSettings, FinetuneSettings, MethodSettings, QuickstartCommand

if TYPE_CHECKING:
    from litlm.llm import LLM

ABOUT_LITLM = (
    "Can you tell me what litlm is?",
    "Under which license was litlm published?",
)
PARAPHRASES = (
    "I want a model to learn from my own file. What should I run in litlm?",
    "How could I start talking to a model using litlm?",
)
CONTROL = "What is the capital of France?"


def quickstart(settings: QuickstartCommand) -> None:
    """Run `litlm quickstart`: download, ask, finetune, ask again, save."""
    how = ["the same command begins anew"]
    try:
        _steps(settings, how)
    except KeyboardInterrupt:
        print(f"\nThe quickstart was stopped by Ctrl-C: {how[-1]}", end="", file=sys.stderr)
        raise


def _steps(settings: QuickstartCommand, how: list[str]) -> None:
    """how: receives how to go on after a Ctrl-C."""
    from litlm.train.process import STOP_EXIT_CODES
    from litlm.train.run import finetune, load_for

    out = Path(settings.out_dir)
    run = _run_settings(settings)
    _heading(f"1. Download {settings.model}")
    start = time.perf_counter()
    llm = load_for(run)  # as a resumed run loads it
    n, device = llm.config.n_parameters(), llm.model.embed.weight.device.type
    print(f"{n / 1e6:.0f} million parameters, on {device}, loaded in {time.perf_counter() - start:.1f} s")

    _heading("2. Ask it")
    before = {question: _ask(llm, question) for question in (*ABOUT_LITLM, CONTROL)}

    _heading("3. Finetune it on facts about litlm (LoRA)")
    adapter, litlm = out / "run" / "final", litlm_command()
    start = time.perf_counter()
    result = finetune(run, llm=llm)
    print(f"{result.steps} steps in {time.perf_counter() - start:.0f} s")
    if result.stopped in STOP_EXIT_CODES:
        adapter = out / "run" / f"step-{result.steps:06d}"
        rest = "" if result.stopped != "Ctrl-C" else " The quickstart goes on with that (Ctrl-C ends it)."
        print(f"{result.stopped} stopped the training, with part of the data learned.{rest} Train further with:")
        print(f"  {litlm} finetune --config {shlex.quote(f'{out}/run/settings.yaml')} --resume auto")
        if not rest:
            sys.exit(STOP_EXIT_CODES[result.stopped])
    chat = f"{litlm} chat {shlex.quote(settings.model)} --adapter {shlex.quote(str(adapter))}"
    how.append(f"talk to what was trained with {chat}")

    _heading("4. Ask it again, with questions that it has not seen")
    after = {question: _ask(llm, question) for question in (*ABOUT_LITLM, *PARAPHRASES, CONTROL)}

    _heading("5. Results")
    llm.save(out / "merged")
    print(f"adapter       {adapter}  (PEFT's format)")
    print(f"merged model  {out}/merged  (transformers, vLLM and llama.cpp's converter can read it)")
    print(f"curves        {out}/run/report.html")
    changed = sum(before[question] != after[question] for question in ABOUT_LITLM)
    print(f"\n{changed} of {len(ABOUT_LITLM)} answers about litlm changed; the control answer", end=" ")
    print(_compared(before[CONTROL], after[CONTROL]))
    print("\nContinue with:")
    model, merged = shlex.quote(settings.model), shlex.quote(f"{out}/merged")
    print(f"  {litlm} chat {merged}")
    print(f"  {chat}")
    print(f"  {litlm} finetune {model} --data your_data.jsonl --out_dir out/mine")


def _run_settings(settings: QuickstartCommand) -> FinetuneSettings:
    """The settings of its run, which replaces that of an earlier quickstart. Raises ValueError if the run there has
    other settings: somebody went on with it.
    """
    from litlm.train.files import changed_settings

    facts = Path(__file__).parents[1] / "data" / "quickstart" / "litlm_facts.jsonl"
    run = FinetuneSettings(
        model=settings.model,
        data=DataSettings(path=(str(facts),), val_fraction=0.08),
        method=MethodSettings(r=16, alpha=32),
        train=settings.train,
        out_dir=f"{settings.out_dir}/run",
        seed=settings.seed,
        overwrite=True,
    )
    changed = changed_settings(run, Path(run.out_dir) / "settings.yaml")
    changed = [text for text in changed if not text.startswith("data.path=")]  # depends on where litlm is installed
    if changed:
        raise ValueError(
            f"{run.out_dir} holds a run with other settings, which the quickstart would replace: {', '.join(changed)}. "
            "Name another --out_dir, or remove that folder"
        )
    return run


def _compared(before: str, after: str) -> str:
    if before == after:
        return "is the same."
    words_before, words_after = (re.findall(r"\w+", answer.lower()) for answer in (before, after))
    return "differs only in punctuation." if words_before == words_after else "changed too, which it should not."


def litlm_command() -> str:
    """How to run this litlm from the current folder, also if its environment is not active (`make quickstart`)."""
    python = Path(sys.executable)
    script = python.with_name("litlm.exe" if os.name == "nt" else "litlm")
    found = shutil.which("litlm")
    if found and Path(found).parent.resolve() == python.parent.resolve():  # not another one that is first on the PATH
        return "litlm"
    program = script if script.exists() else python
    relative = os.path.relpath(program)
    command = shlex.quote(relative if len(relative) < len(str(program)) else str(program))
    return command if program == script else f"{command} -m litlm"


def _heading(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def _ask(llm: LLM, question: str) -> str:
    """Print the question and the answer as it comes; returns the answer."""
    print(f"\n> {question}")
    pieces = []
    for piece in llm.chat([{"role": "user", "content": question}], max_new_tokens=60, stream=True):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    return "".join(pieces)
