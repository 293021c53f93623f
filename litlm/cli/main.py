"""The command line. One table of commands; each is a dataclass of settings (parsed by jsonargparse, from flags and
YAML) and a function. `litlm --help` reads the table alone, and a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from litlm.cli import arguments, hints
from litlm.cli.arguments import Command, recipe

__all__ = ["COMMANDS", "SUMMARIES", "Command", "main", "parse", "recipe"]


COMMANDS = {
    "quickstart": Command("QuickstartCommand", "litlm.cli.quickstart:quickstart"),
    "chat": Command("ChatCommand", "litlm.cli.chat:chat", "model", example="litlm chat smollm2-135m-instruct"),
    "generate": Command(
        "GenerateCommand", "litlm.cli.main:generate", "model",
        example='litlm generate smollm2-135m-instruct --prompt "The sky is" --max_new_tokens 20',
    ),
    "finetune": Command(
        "FinetuneSettings", "litlm.cli.main:finetune", "model", (("method", "name"), ("data", "path")),
        example="litlm finetune smollm2-135m-instruct --method lora --data data.jsonl --out_dir out/mine",
    ),
    "dpo": Command(
        "DPOSettings", "litlm.cli.main:dpo", "model", (("method", "name"), ("data", "path"), ("preference", "loss")),
        example="litlm dpo smollm2-135m-instruct --method lora --data pairs.jsonl --out_dir out/dpo",
    ),
    "pretrain": Command(
        "PretrainSettings", "litlm.cli.main:pretrain", "model", (("method", "name"), ("data", "path")),
        example="litlm pretrain smollm2-135m --data texts/ --tokenizer out/tokenizer --train.max_tokens 10000000",
    ),
    "prepare": Command(
        "PrepareCommand", "litlm.data.prepare:prepare_command", "data",
        example="litlm prepare texts/ --tokenizer smollm2-135m-instruct --out_dir data/texts",
    ),
    "train-tokenizer": Command(
        "TrainTokenizerCommand", "litlm.data.train_tokenizer:train_tokenizer_command", "data",
        example="litlm train-tokenizer texts/ --vocab_size 8192 --out_dir out/tokenizer",
    ),
    "plot": Command("PlotCommand", "litlm.train.plot:plot_command", "runs", example="litlm plot out/a out/b"),
    "merge": Command(
        "MergeCommand", "litlm.cli.main:merge", "adapter", example="litlm merge out/mine/final --out_dir out/merged",
    ),
    "models": Command("ModelsCommand", "litlm.cli.describe:models", "match", example="litlm models smollm2"),
    "describe": Command(
        "DescribeCommand", "litlm.cli.describe:describe", "model", example="litlm describe llama-3.1-8b"
    ),
    "download": Command(
        "DownloadCommand", "litlm.cli.main:download", "model", example="litlm download smollm2-135m-instruct",
    ),
    "completion": Command(
        "CompletionCommand", "litlm.cli.completion:completion", "shell",
        example='litlm completion bash > ~/.local/share/bash-completion/completions/litlm',
    ),
    "new-family": Command(
        "NewFamilyCommand", "litlm.cli.new_family:new_family", "source", example="litlm new-family path/to/config.json",
    ),
}  # fmt: skip

SUMMARIES = {
    "quickstart": "fetch a small real model, finetune it, see it change (minutes, no GPU)",
    "chat": "talk to a model",
    "generate": "continue a text",
    "finetune": "teach a model your data (LoRA, QLoRA, adapters, or all weights)",
    "dpo": "teach a model which of two answers is better (DPO, IPO, cDPO, ORPO)",
    "pretrain": "train a model on text, from random weights or a checkpoint",
    "prepare": "tokenize text for pretraining",
    "train-tokenizer": "train a tokenizer on your text",
    "plot": "compare training runs in one picture",
    "merge": "add an adapter to its model and write a plain checkpoint",
    "models": "list the models known by name",
    "describe": "a model's architecture, parameters and memory",
    "download": "fetch a model",
    "completion": "complete commands and options in your shell",
    "new-family": "draft the file that teaches litlm a new architecture",
}


# How often PyTorch's threads look for work before they sleep (GNU OpenMP's default is 300,000), set before PyTorch
# loads. With more processes than cores, threads that wait awake keep those from running that they wait for.
SPIN_COUNT = "4000"
_SPEAKING = ("chat", "generate", "models", "describe", "completion")  # whose output is all that they do


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `litlm`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        _main(argv)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `litlm models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(argv: list[str]) -> None:
    if argv[:1] == ["help"]:  # litlm help chat
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview(), flush=True)
        return
    if argv[0] in ("-V", "--version"):
        from litlm import __version__

        print(f"litlm {__version__}")
        return
    if argv[0] not in COMMANDS:
        fail(f"{hints.command(argv[0], COMMANDS)} `litlm --help` lists all commands.", code=2)
    code = 2  # as argparse and shells have it for arguments that can't be used
    try:
        settings = parse(argv[0], argv[1:])
        code = 1
        module, _, function = COMMANDS[argv[0]].run.partition(":")
        with nullcontext() if argv[0] in _SPEAKING else _unheard():
            getattr(import_module(module), function)(settings)
    except ValueError as e:
        if os.environ.get("LITLM_DEBUG"):
            raise
        fail(str(e), code)


class _Unheard:
    """A stream that goes on where nobody reads it any more (a closed pipe, a terminal that is gone, a full disk)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def _unheard() -> Iterator[None]:
    """What a command is for is what it writes to disk; that it can't say how it goes doesn't end it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unheard(sys.stdout), _Unheard(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def fail(message: str, code: int = 1) -> NoReturn:
    print(f"litlm: {message}", file=sys.stderr)
    sys.exit(code)


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {SUMMARIES[name]}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: litlm COMMAND [options]",
            "",
            "A hackable, from-scratch LLM library: real models, finetuning and chat in readable PyTorch.",
            "",
            "commands:",
            *lines,
            "",
            "`litlm COMMAND --help` explains a command. Every command takes --config FILE.yaml with the same options.",
            "Start with `litlm quickstart`, or talk to a model at once: litlm chat smollm2-135m-instruct",
        ]
    )


def parse(name: str, argv: list[str]) -> Any:
    """The command's settings from its arguments."""
    return arguments.parse(name, COMMANDS[name], argv)


# --- commands that are a few lines -----------------------------------------------------------------------------------


def download(settings: Any) -> None:
    from litlm.checkpoint.download import download as fetch

    print(fetch(settings.model, out_dir=settings.out_dir, revision=settings.revision, token=settings.token))


def generate(settings: Any) -> None:
    from litlm.llm import LLM

    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    llm = LLM.load(
        settings.model, adapter=settings.adapter, device=settings.device, dtype=settings.dtype,
        quantize=settings.quantize, compile=settings.compile, ignore_fields=settings.ignore_fields,
    )  # fmt: skip
    sampling = sampling_of(settings)
    if settings.style is not None:
        from litlm.prompts import get_style

        llm.style = get_style(settings.style)
    if settings.chat or settings.style is not None:
        pieces = llm.chat([{"role": "user", "content": prompt}], stream=True, **sampling)
    else:
        pieces = llm.generate(prompt, stream=True, **sampling)
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def finetune(settings: Any) -> None:
    from litlm.train.run import finetune as run

    _trained(settings, run(settings))


def dpo(settings: Any) -> None:
    from litlm.train.run import dpo as run

    _trained(settings, run(settings))


def pretrain(settings: Any) -> None:
    from litlm.train.run import pretrain as run

    _trained(settings, run(settings))


def _trained(settings: Any, result: Any) -> None:
    from litlm.train.methods import get_method
    from litlm.train.process import STOP_EXIT_CODES

    out = settings.out_dir
    n = "1 step" if result.steps == 1 else f"{result.steps} steps"
    print(f"\n{n}, {result.tokens_per_s:,.0f} tokens/s. Written to {out}: report.html, metrics.csv,")
    if result.stopped in STOP_EXIT_CODES:
        print("settings.yaml and the last checkpoint. Go on with the same command and --resume auto")
        sys.exit(STOP_EXIT_CODES[result.stopped])
    method = get_method(settings.method.name)
    print(f"settings.yaml and final/ ({'the model' if method.whole_model else 'the adapter'}). Go on with:")
    verb = "chat" if type(settings).__name__ != "PretrainSettings" else 'generate --prompt "Once"'
    final = shlex.quote(f"{out}/final")
    if method.whole_model:
        command, _, rest = verb.partition(" ")
        print(f"  litlm {command} {final} {rest}".rstrip())
        return
    quantize = f" --quantize {settings.method.quantize}" if settings.method.quantize else ""
    ignored = "".join(f" --ignore_fields {name}" for name in settings.ignore_fields)
    print(f"  litlm chat {shlex.quote(settings.model)} --adapter {final}{quantize}{ignored}")
    if method.mergeable:
        print(f"  litlm merge {final} --out_dir {shlex.quote(f'{out}/merged')}{ignored}")


def merge(settings: Any) -> None:
    from litlm.checkpoint.hf import check_target
    from litlm.checkpoint.peft import base_of
    from litlm.io.reading import model_directory
    from litlm.llm import LLM

    adapter = model_directory(Path(settings.adapter))
    base = settings.base or base_of(adapter)
    check_target(Path(settings.out_dir), base, adapter, overwrite=settings.overwrite)
    llm = LLM.load(
        base, adapter=settings.adapter, device="cpu", dtype=settings.dtype, ignore_fields=settings.ignore_fields
    )
    llm.save(settings.out_dir)
    if note := llm.chat_note():
        print(f"litlm: {note}", file=sys.stderr)
    go_on = shlex.join(["litlm", "chat", settings.out_dir])
    print(f"Merged {settings.adapter} into {base}: {settings.out_dir}. Go on with: {go_on}")


def sampling_of(settings: Any) -> dict[str, Any]:
    """The sampling fields of a command's settings, as `LLM.generate` takes them."""
    import dataclasses

    from litlm.settings import SamplingSettings

    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(SamplingSettings)}


if __name__ == "__main__":
    main()
