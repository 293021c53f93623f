"""The command line: a table of commands, each a settings dataclass (parsed from flags and YAML) and a function.

`litlm --help` needs only this table; a command's imports happen when it runs.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from litlm.cli import arguments, hints
from litlm.cli.arguments import Command, recipe

if TYPE_CHECKING:
    from litlm.settings import DownloadCommand, MergeCommand, RunSettings

__all__ = ["COMMANDS", "Command", "main", "parse", "recipe"]


COMMANDS = {
    "quickstart": Command(
        "QuickstartCommand", "litlm.cli.quickstart:quickstart",
        "fetch a small real model, finetune it, see it change (minutes, no GPU)",
    ),
    "chat": Command(
        "ChatCommand", "litlm.cli.chat:chat", "talk to a model", "model", example="litlm chat smollm2-135m-instruct",
    ),
    "generate": Command(
        "GenerateCommand", "litlm.cli.generate:generate", "continue a text", "model",
        example='litlm generate smollm2-135m-instruct --prompt "The sky is" --max_new_tokens 20',
    ),
    "finetune": Command(
        "FinetuneSettings", "litlm.cli.main:train", "teach a model your data (LoRA, QLoRA, adapters, or all weights)",
        "model", (("method", "name"), ("data", "path")),
        example="litlm finetune smollm2-135m-instruct --method lora --data data.jsonl --out_dir out/mine",
    ),
    "dpo": Command(
        "DPOSettings", "litlm.cli.main:train", "teach a model which of two answers is better (DPO, IPO, cDPO, ORPO)",
        "model", (("method", "name"), ("data", "path"), ("preference", "loss")),
        example="litlm dpo smollm2-135m-instruct --method lora --data pairs.jsonl --out_dir out/dpo",
    ),
    "pretrain": Command(
        "PretrainSettings", "litlm.cli.main:train", "train a model on text, from random weights or a checkpoint",
        "model", (("method", "name"), ("data", "path")),
        example="litlm pretrain smollm2-135m --data texts/ --tokenizer out/tokenizer --train.max_tokens 10000000",
    ),
    "prepare": Command(
        "PrepareCommand", "litlm.data.prepare:prepare_command", "tokenize text for pretraining", "data",
        example="litlm prepare texts/ --tokenizer smollm2-135m-instruct --out_dir data/texts",
    ),
    "train-tokenizer": Command(
        "TrainTokenizerCommand", "litlm.data.train_tokenizer:train_tokenizer_command",
        "train a tokenizer on your text", "data",
        example="litlm train-tokenizer texts/ --vocab_size 8192 --out_dir out/tokenizer",
    ),
    "plot": Command(
        "PlotCommand", "litlm.train.plot:plot_command", "compare training runs in one picture", "runs",
        example="litlm plot out/a out/b",
    ),
    "merge": Command(
        "MergeCommand", "litlm.cli.main:merge", "add an adapter to its model and write a plain checkpoint", "adapter",
        example="litlm merge out/mine/final --out_dir out/merged",
    ),
    "models": Command(
        "ModelsCommand", "litlm.cli.models:models", "list the models known by name", "match",
        example="litlm models smollm2",
    ),
    "describe": Command(
        "DescribeCommand", "litlm.cli.describe:describe", "a model's architecture, parameters and memory", "model",
        example="litlm describe llama-3.1-8b",
    ),
    "download": Command(
        "DownloadCommand", "litlm.cli.main:download", "fetch a model", "model",
        example="litlm download smollm2-135m-instruct",
    ),
    "completion": Command(
        "CompletionCommand", "litlm.cli.completion:completion", "complete commands and options in your shell", "shell",
        example="litlm completion bash > ~/.local/share/bash-completion/completions/litlm",
    ),
    "new-family": Command(
        "NewFamilyCommand", "litlm.cli.new_family:new_family", "draft the file that teaches litlm a new architecture",
        "source", example="litlm new-family path/to/config.json",
    ),
}  # fmt: skip

# How long PyTorch's threads spin before they sleep (GNU OpenMP's default is 300,000). With more processes than cores,
# spinning threads keep the threads they wait for from running. Set before PyTorch is loaded.
SPIN_COUNT = "4000"
STDOUT = "standard output"  # the filename of errors in writing there
_PRINTING = ("chat", "generate", "models", "describe", "completion")  # commands whose output is all that they produce


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `litlm`. Errors are one message on stderr; with LITLM_DEBUG set, a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        try:
            with _exit_on_signals():
                _main(argv)
        finally:
            _flush_output()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `litlm models | head`
        _discard(sys.stdout)
    except OSError as e:  # standard output, or not foreseen anywhere
        if e.filename == STDOUT:
            _discard(sys.stdout)
        if os.environ.get("LITLM_DEBUG"):
            raise
        from litlm.io.errors import error_reason

        fail(f"{f'{e.filename}: ' if e.filename else ''}{error_reason(e)} (LITLM_DEBUG=1 shows a traceback)")


def _flush_output() -> None:
    """Write what is buffered now: failures at exit (a full disk) are reported by Python, and not by the exit code."""
    try:
        sys.stdout.flush()
    except OSError as e:
        raise OSError(e.errno, e.strerror, STDOUT) from e


def _discard(stream: Any) -> None:
    """Send further output of stdout or stderr, and what is still buffered, to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that what a command has half written is removed. Training has its own
    handlers; an ignored SIGHUP (nohup) stays ignored.
    """
    before = {}
    for signum in filter(None, (signal.SIGTERM, getattr(signal, "SIGHUP", None))):  # Windows has no SIGHUP
        if signal.getsignal(signum) == signal.SIG_DFL:
            with suppress(ValueError):  # not in the main thread
                before[signum] = signal.signal(signum, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
        fail(f"{hints.unknown_command(argv[0], COMMANDS)} `litlm --help` lists all commands.", code=2)
    code = 2  # what argparse and shells return for arguments that can't be used
    try:
        settings = parse(argv[0], argv[1:])
        code = 1
        if out_dir := getattr(settings, "out_dir", None):
            from litlm.io.writing import check_writable

            check_writable(Path(out_dir))  # now, not when the model is loaded
        module, _, function = COMMANDS[argv[0]].run.partition(":")
        with nullcontext() if argv[0] in _PRINTING else _output_may_close():
            getattr(import_module(module), function)(settings)
    except ValueError as e:
        if os.environ.get("LITLM_DEBUG"):
            raise
        fail(str(e), code)


class _ClosableStream:
    """Wraps stdout or stderr; once writing fails (closed pipe or terminal, full disk), output goes to /dev/null."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)


@contextmanager
def _output_may_close() -> Iterator[None]:
    """For commands that write files: failing to print progress must not end them."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_ClosableStream, streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def fail(message: str, code: int = 1) -> NoReturn:
    """Print the message to stderr and exit."""
    print(f"litlm: {message}", file=sys.stderr)
    sys.exit(code)


def overview() -> str:
    """What `litlm --help` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: litlm COMMAND [options]",
            "",
            "A hackable, from-scratch LLM library: real models, finetuning and chat in readable PyTorch.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "`litlm COMMAND --help` explains a command. Every command takes --config FILE.yaml with the same options.",
            "Start with `litlm quickstart`, or talk to a model right away: litlm chat smollm2-135m-instruct",
        ]
    )


def parse(name: str, argv: list[str]) -> Any:
    """The command's settings from its arguments."""
    return arguments.parse(name, COMMANDS[name], argv)


# --- commands of a few lines -----------------------------------------------------------------------------------------


def download(settings: DownloadCommand) -> None:
    """Run `litlm download`."""
    from litlm.checkpoint.download import download

    print(download(settings.model, out_dir=settings.out_dir, revision=settings.revision, token=settings.token))


def train(settings: RunSettings) -> None:
    """Run `litlm finetune`, `dpo` or `pretrain`."""
    from litlm.train import run

    commands = {"FinetuneSettings": run.finetune, "DPOSettings": run.dpo, "PretrainSettings": run.pretrain}
    _print_result(settings, commands[type(settings).__name__](settings))


def _print_result(settings: RunSettings, result: Any) -> None:
    """What a run has written, and commands to continue with."""
    from litlm.train.methods import get_method
    from litlm.train.process import STOP_EXIT_CODES

    out, method = settings.out_dir, get_method(settings.method.name)
    steps = "1 step" if result.steps == 1 else f"{result.steps} steps"
    was_stopped = result.stopped in STOP_EXIT_CODES
    trained = result.losses or was_stopped
    done = f"{result.tokens_per_s:,.0f} tokens/s. Written to" if trained else "nothing left to train. In"
    print(f"\n{steps}, {done} {out}: report.html, metrics.csv,")
    if was_stopped:
        print("settings.yaml and the last checkpoint. Continue with the same command and --resume auto")
        sys.exit(STOP_EXIT_CODES[result.stopped])
    print(f"settings.yaml and final/ ({'the model' if method.whole_model else 'the adapter'}). Continue with:")
    final = shlex.quote(f"{out}/final")
    if method.whole_model:
        pretrained = type(settings).__name__ == "PretrainSettings"
        print(f'  litlm generate {final} --prompt "Once"' if pretrained else f"  litlm chat {final}")
        return
    quantize = f" --quantize {settings.method.quantize}" if settings.method.quantize else ""
    ignored = "".join(f" --ignore_fields {name}" for name in settings.ignore_fields)
    print(f"  litlm chat {shlex.quote(settings.model)} --adapter {final}{quantize}{ignored}")
    if method.mergeable:
        free = next(p for p in (f"{out}/merged{n}" for n in ("", *range(2, 100))) if not Path(p).exists())
        print(f"  litlm merge {final} --out_dir {shlex.quote(free)}{ignored}")


def merge(settings: MergeCommand) -> None:
    """Run `litlm merge`. Raises ValueError for adapters that can't be merged."""
    from litlm.checkpoint.adapter_formats import check_mergeable
    from litlm.checkpoint.hf import check_merge_dir
    from litlm.checkpoint.peft import base_of, read_adapter_config
    from litlm.checkpoint.run_folder import model_directory
    from litlm.io.lock import locked
    from litlm.llm import LLM

    adapter = model_directory(Path(settings.adapter))
    check_mergeable(adapter, read_adapter_config(adapter))
    base, out_dir = settings.base or base_of(adapter), Path(settings.out_dir)
    check_merge_dir(out_dir, base, adapter, overwrite=settings.overwrite)
    with locked(out_dir):
        check_merge_dir(out_dir, base, adapter, overwrite=settings.overwrite)  # another process may have been faster
        llm = LLM.load(base, adapter=adapter, device="cpu", dtype=settings.dtype, ignore_fields=settings.ignore_fields)
        llm.save_locked(out_dir)
    if note := llm.chat_note():
        print(f"litlm: {note}", file=sys.stderr)
    command = shlex.join(["litlm", "chat", settings.out_dir])
    print(f"Merged {settings.adapter} into {base}: {settings.out_dir}. Continue with: {command}")
