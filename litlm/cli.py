"""The command line. One table of commands; each is a dataclass of settings (parsed by jsonargparse, from flags and
YAML) and a function. `litlm --help` reads the table alone, and a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Command:
    """settings: class in litlm.settings. run: module:function that takes it. positional: field given without a flag.

    short: for `--group VALUE`, the field of the group that VALUE means.
    """

    settings: str
    run: str
    positional: str | None = None
    short: tuple[tuple[str, str], ...] = ()
    example: str = ""


COMMANDS = {
    "quickstart": Command("QuickstartCommand", "litlm.quickstart:quickstart"),
    "chat": Command("ChatCommand", "litlm.chat:chat", "model", example="litlm chat smollm2-135m-instruct"),
    "generate": Command(
        "GenerateCommand", "litlm.cli:generate", "model",
        example='litlm generate smollm2-135m-instruct --prompt "The sky is" --max_new_tokens 20',
    ),
    "finetune": Command(
        "FinetuneSettings", "litlm.cli:finetune", "model", (("method", "name"), ("data", "path")),
        example="litlm finetune smollm2-135m-instruct --method lora --data data.jsonl --out_dir out/mine",
    ),
    "dpo": Command(
        "DPOSettings", "litlm.cli:dpo", "model", (("method", "name"), ("data", "path"), ("preference", "loss")),
        example="litlm dpo smollm2-135m-instruct --method lora --data pairs.jsonl --out_dir out/dpo",
    ),
    "pretrain": Command(
        "PretrainSettings", "litlm.cli:pretrain", "model", (("method", "name"), ("data", "path")),
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
        "MergeCommand", "litlm.cli:merge", "adapter", example="litlm merge out/mine/final --out_dir out/merged",
    ),
    "models": Command("ModelsCommand", "litlm.describe:models", "match", example="litlm models smollm2"),
    "describe": Command("DescribeCommand", "litlm.describe:describe", "model", example="litlm describe llama-3.1-8b"),
    "download": Command(
        "DownloadCommand", "litlm.cli:download", "model", example="litlm download smollm2-135m-instruct",
    ),
    "new-family": Command(
        "NewFamilyCommand", "litlm.scaffold:new_family", "source", example="litlm new-family path/to/config.json",
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
    "new-family": "draft the file that teaches litlm a new architecture",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `litlm`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if argv[0] in ("-V", "--version"):
        from litlm import __version__

        print(f"litlm {__version__}")
        return
    if argv[0] not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        fail(f"litlm has no command {argv[0]!r}.{hint} `litlm --help` lists all commands.", code=2)
    try:
        settings = parse(argv[0], argv[1:])
        module, _, function = COMMANDS[argv[0]].run.partition(":")
        getattr(import_module(module), function)(settings)
    except ValueError as e:
        if os.environ.get("LITLM_DEBUG"):
            raise
        fail(str(e))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `litlm models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        """Says in one line what is wrong, with the closest option."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            fail(f"{explain(message, flags, place.strip())} `litlm {name} --help` lists the options.", code=2)

    command = COMMANDS[name]
    cls = getattr(import_module("litlm.settings"), command.settings)
    place = f" {command.positional.upper()}" if command.positional else ""
    epilog = f"example: {command.example}" if command.example else None
    parser = Parser(prog=f"litlm {name}", usage=f"litlm {name}{place} [options]", epilog=epilog)
    parser.add_argument(
        "--config", action="config", help="YAML file with these options, or the name of a recipe; flags override it"
    )
    parser.add_class_arguments(cls, fail_untyped=True)
    groups = dict(command.short)
    kinds = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    lists = {name for name, kind in kinds.items() if kind == tuple[str, ...]}
    switches = {name for name, kind in kinds.items() if kind is bool}
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    for action in parser._actions:
        if action.dest in groups:
            action.metavar = groups[action.dest].upper()
            action.help = f"Short for --{action.dest}.{groups[action.dest]}."
        elif action.dest in lists:
            action.metavar = "TEXT"
            action.help = f"{action.help} May be repeated."
    config = parser.parse_args(_rewrite(argv, command, lists, switches))
    config.pop("config", None)
    return cls(**vars(parser.instantiate(config)))


def explain(message: str, flags: list[str], positional: str) -> str:
    """A parser's complaint in words for people: what to type instead, where that can be told."""
    import difflib

    message = message.strip().rstrip(".")
    if message.startswith("unrecognized arguments:"):
        wrong = message.split(":", 1)[1].split()[0].partition("=")[0]
        if not wrong.startswith("-"):
            first = f"{positional} comes first, and everything else" if positional else "Everything"
            return f"{wrong!r} is not expected here. {first} is given with its flag, as in --flag value."
        leaves = [flag for flag in flags if flag.rpartition(".")[2] == wrong.lstrip("-")]
        close = leaves or difflib.get_close_matches(wrong, flags, n=1)
        return f"{wrong} is unknown." + (f" Did you mean {close[0]}?" if close else "")
    wrong = re.search(r'Parser key "([^"]+)":\s*(?:.*Subtypes: \[(.*?)\]\n|Expected an? )(.*)', message, re.S)
    if wrong:
        key, kinds, rest = wrong.groups()
        if kinds is None:
            kinds, _, given = rest.partition(". Got value: ")
        else:
            given = rest.partition("Given value:")[2]
        return f"--{key} must be {_kinds(kinds)}, not {given.strip()!r}."
    if "arguments are required:" in message or "Key" in message and "required" in message:
        return message[0].upper() + message[1:] + "."
    return message + "."


def _kinds(types: str) -> str:
    """Types as the parser writes them, in words."""
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null",
             "dict": "a mapping such as {key: value}", "tuple": "a list"}  # fmt: skip
    found: list[str] = []
    for name, choices in re.findall(r"<class '(\w+)'>|Literal\[(.*?)\]", types):
        found.extend([str(words.get(name, name))] if name else re.findall(r"'([^']*)'", choices))
    *most, last = found or [types]
    return f"{', '.join(most)} or {last}" if most else last


def _rewrite(argv: list[str], command: Command, lists: set[str], switches: set[str]) -> list[str]:
    """Write out what the command line leaves unsaid: the positional argument's flag, `--data FILE`, the path of a
    recipe, `true` behind a switch, and the brackets of a list (`--stop A --stop B`).
    """
    configs: list[str] = []  # first, because what comes later wins
    out: list[str] = []
    texts: dict[str, list[str]] = {}
    groups = dict(command.short)
    rest = list(argv)
    first = 0
    while command.positional and rest[first:] and not rest[first].startswith("-"):
        rest[first] = f"--{command.positional}={rest[first]}"
        first += 1
        if command.positional not in lists:
            break
    while rest:
        flag, eq, value = rest.pop(0).partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")  # --max-new-tokens is as good
        if flag == "--auto":
            flag, eq, value = "--train.micro_batch_size", "=", "auto"
        name = flag.removeprefix("--") if flag.startswith("--") else ""
        if name in groups:
            name = f"{name}.{groups[name]}"
            flag = f"--{name}"
        if name in switches and not eq and (not rest or rest[0].lower() not in ("true", "false")):
            eq, value = "=", "true"
        if name in (*lists, "config") and (eq or rest):
            value = value if eq else rest.pop(0)
            if name in lists:
                texts.setdefault(name, []).extend(_texts(value))
            else:
                configs.append(f"--config={_spelled_out(recipe(value), groups, lists)}")
            continue
        out.append(flag + eq + value)
    return configs + out + [f"--{name}={json.dumps(values, ensure_ascii=False)}" for name, values in texts.items()]


def _spelled_out(path: str, groups: dict[str, str], lists: set[str]) -> str:
    """A YAML file in which a group is one value (`method: lora`), or a list one text, as YAML with the whole form."""
    import copy

    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return path  # the parser says what is wrong
    if not isinstance(content, dict):
        return path
    whole = copy.deepcopy(content)
    for group, leaf in groups.items():
        if group in whole and not isinstance(whole[group], dict):
            whole[group] = {leaf: whole[group]}
    for name in lists:
        *parents, leaf = name.split(".")
        place: Any = whole
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(leaf), str):
            place[leaf] = [place[leaf]]
    return path if whole == content else yaml.safe_dump(whole, sort_keys=False)


def _texts(value: str) -> list[str]:
    """One text, or several as a YAML list: [a, b]."""
    import yaml

    try:
        found = yaml.safe_load(value) if value.startswith("[") else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, list) else [value]


def recipe(name: str) -> str:
    """The path of a recipe: a file, or the name of one in config_hub (which an installed litlm carries inside it)."""
    if Path(name).is_file():
        return name
    known: dict[str, Path] = {}
    package = Path(__file__).parent
    for hub in (package / "config_hub", package.parent / "config_hub"):
        if (found := hub / f"{name}.yaml").is_file():
            return str(found)
        known |= {path.relative_to(hub).with_suffix("").as_posix(): path for path in hub.glob("*/*.yaml")}
    import difflib

    close = sorted(n for n in known if n.startswith(name)) or difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    hint = f" Did you mean {', '.join(close[:5])}?" if close else ""
    raise ValueError(f"config={name!r} is neither a file nor a recipe.{hint}")


# --- commands that are a few lines -----------------------------------------------------------------------------------


def download(settings: Any) -> None:
    from litlm.download import download as fetch

    print(fetch(settings.model, out_dir=settings.out_dir, revision=settings.revision, token=settings.token))


def generate(settings: Any) -> None:
    from litlm.llm import LLM

    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    llm = LLM.load(
        settings.model, adapter=settings.adapter, device=settings.device, dtype=settings.dtype,
        quantize=settings.quantize, compile=settings.compile, ignore_fields=settings.ignore_fields,
    )  # fmt: skip
    sampling = sampling_of(settings)
    if settings.chat:
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
    from litlm.train.run import STOPPED_BY_HAND

    out = settings.out_dir
    print(f"\n{result.steps} steps, {result.tokens_per_s:,.0f} tokens/s. Written to {out}: report.html, metrics.csv,")
    if result.stopped in STOPPED_BY_HAND:
        print("settings.yaml and the last checkpoint. Go on with the same command and --resume auto")
        return
    whole = settings.method.name == "full"
    print(f"settings.yaml and final/ ({'the model' if whole else 'the adapter'}). Go on with:")
    verb = "chat" if type(settings).__name__ != "PretrainSettings" else 'generate --prompt "Once"'
    if whole:
        command, _, rest = verb.partition(" ")
        print(f"  litlm {command} {out}/final {rest}".rstrip())
        return
    quantize = f" --quantize {settings.method.quantize}" if settings.method.name == "qlora" else ""
    ignored = "".join(f" --ignore_fields {name}" for name in settings.ignore_fields)
    print(f"  litlm chat {settings.model} --adapter {out}/final{quantize}{ignored}")
    if settings.method.name in ("lora", "qlora"):
        print(f"  litlm merge {out}/final --out_dir {out}/merged{ignored}")


def merge(settings: Any) -> None:
    from litlm.checkpoint.peft import base_of
    from litlm.files import model_directory
    from litlm.llm import LLM

    base = settings.base or base_of(model_directory(Path(settings.adapter)))
    llm = LLM.load(
        base, adapter=settings.adapter, device="cpu", dtype=settings.dtype, ignore_fields=settings.ignore_fields
    )
    llm.save(settings.out_dir)
    print(f"Merged {settings.adapter} into {base}: {settings.out_dir}. Go on with: litlm chat {settings.out_dir}")


def sampling_of(settings: Any) -> dict[str, Any]:
    """The sampling fields of a command's settings, as `LLM.generate` takes them."""
    import dataclasses

    from litlm.settings import SamplingSettings

    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(SamplingSettings)}


if __name__ == "__main__":
    main()
