"""From what is typed to the settings of a command: flags, YAML files and recipes, with all mistakes named at once.

jsonargparse turns values into their types and writes the help. Before it everything is made `--name=value` here: the
positional argument, `--data FILE` for `--data.path`, `true` behind a switch, lists from repeated flags, the content of
YAML files. So nothing is guessed; argparse takes abbreviations, and a value that starts with a dash for a flag.
"""

from __future__ import annotations

import json
import os
import re
import types
import typing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from litlm.cli import hints
from litlm.io.yaml import load_yaml, read_yaml


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


# Options whose text is a place on the disk, by the end of their name, and what is there; a model or data may also be a
# name or a hub id.
PLACES: dict[str, Literal["file", "folder", "model"]] = {
    "model": "model", "base": "model", "tokenizer": "model", "adapter": "folder", "out_dir": "folder", "runs": "folder",
    "resume": "folder", "data": "file", "path": "file", "val_path": "file", "source": "file", "out": "file",
}  # fmt: skip
_SWITCHED = {"true": "true", "yes": "true", "on": "true", "1": "true",
             "false": "false", "no": "false", "off": "false", "0": "false"}  # fmt: skip
_FLAG = re.compile(r"(--[A-Za-z][\w.-]*)(?:=(.*))?", re.S)


def parse(name: str, command: Command, argv: list[str]) -> Any:
    """The command's settings from its arguments. ValueError names all that is wrong with them."""
    from jsonargparse import ArgumentError

    parser = make_parser(name, command)
    line = _Line(parser, name, command)
    line.read(argv)
    if line.help:
        parser.print_help()
        raise SystemExit(0)
    problems = line.problems or line.missing()
    config = None
    while not (line.problems or line.missing()):
        try:
            config = parser.parse_args(line.written_out())
            break
        except ArgumentError as e:
            problems.append(line.mistyped(str(e)))
    if problems:
        sentences = [problem if problem[-1] in ".?" else f"{problem}." for problem in problems]
        help = f"`litlm {name} --help` lists the options."
        if len(sentences) == 1:
            raise ValueError(f"{sentences[0]} {help}")
        raise ValueError("\n".join(["the options can't be used:", *(f"- {text}" for text in sentences), help]))
    assert config is not None
    config.pop("config", None)
    return getattr(import_module("litlm.settings"), command.settings)(**vars(parser.instantiate(config)))


def make_parser(name: str, command: Command) -> Any:
    """jsonargparse's parser of a command, with help texts."""
    from jsonargparse import ArgumentParser

    cls = getattr(import_module("litlm.settings"), command.settings)
    place = f" {command.positional.upper()}" if command.positional else ""
    epilog = f"example: {command.example}" if command.example else None
    parser = ArgumentParser(
        prog=f"litlm {name}", usage=f"litlm {name}{place} [options]", epilog=epilog, exit_on_error=False
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with these options, or the name of a recipe; flags override it"
    )
    parser.add_class_arguments(cls, fail_untyped=True)
    groups = dict(command.short)
    for action in parser._actions:
        if action.dest in groups:
            action.metavar = groups[action.dest].upper()
            action.help = f"Short for --{action.dest}.{groups[action.dest]}."
        elif getattr(action, "_typehint", None) == tuple[str, ...]:
            action.metavar = "TEXT"
            action.help = f"{action.help} May be repeated."
    return parser


def recipes() -> dict[str, Path]:
    """The recipes in config_hub, by name (finetune/llama-3.2-1b-lora); an installed litlm carries them inside it."""
    found: dict[str, Path] = {}
    package = Path(__file__).parent.parent
    for hub in (package.parent / "config_hub", package / "config_hub"):
        found |= {path.relative_to(hub).as_posix().removesuffix(".yaml"): path for path in hub.glob("*/*.yaml")}
    return found


def recipe(name: str) -> str:
    """The path of a recipe: a YAML file, or the name of one in config_hub."""
    path = Path(name).expanduser()
    if path.is_file():
        return str(path)
    if not name:
        raise ValueError("config is empty; name a YAML file or a recipe")
    known = recipes()
    short = path.as_posix().removeprefix("config_hub/").removesuffix(".yaml")
    if short in known:
        return str(known[short])
    if path.is_dir():
        inside = sorted(path.glob("*.y*ml"))
        hint = f" Did you mean {', '.join(map(str, inside[:5]))}?" if inside else ""
        raise ValueError(f"config={name!r} is a folder; name a YAML file.{hint}")
    import difflib

    close = sorted(n for n in known if short and n.startswith(short))
    close = close or difflib.get_close_matches(short, known, n=3, cutoff=0.7)
    hint = f" Did you mean {', '.join(close[:5])}?" if close else ""
    raise ValueError(f"config={name!r} is neither a file nor a recipe.{hint}")


@dataclass
class _Value:
    """What an option was given. file: the YAML file that gives it; None for the command line."""

    value: Any
    file: str | None = None


class _Line:
    """A command line, read. values: option -> its value, the last one that was given. problems: what can't be used."""

    def __init__(self, parser: Any, name: str, command: Command) -> None:
        options = [a for a in parser._actions if a.option_strings and a.dest not in ("help", "config", "print_config")]
        names = [action.dest for action in options]
        self.groups = [name for name in names if any(other.startswith(f"{name}.") for other in names)]
        self.types = {a.dest: options_of(getattr(a, "_typehint", None)) for a in options if a.dest not in self.groups}
        self.required = [action.dest for action in options if action.required]
        self.lists = [name for name, kinds in self.types.items() if tuple[str, ...] in kinds]
        self.switches = [name for name, kinds in self.types.items() if bool in kinds]
        self.mappings = [name for name, kinds in self.types.items() if any(typing.get_origin(k) is dict for k in kinds)]
        self.name, self.command, self.short = name, command, dict(command.short)
        self.values: dict[str, _Value] = {}
        self.problems: list[str] = []
        self.given_by_file: set[str] = set()
        self.mistypes: set[str] = set()
        self.help = self.print_config = False

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, argv: list[str]) -> None:
        words: list[str] = []  # without a flag in front
        typed: list[tuple[str, str]] = []
        more = None  # the list of places that a further word belongs to, as in --data *.jsonl
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            found = _FLAG.fullmatch(word)
            if not found and word != "-h":
                if word.startswith("-"):
                    self.problems.append(f"{word} is unknown; options have a name and two dashes")
                elif more:
                    typed.append((more, word))
                else:
                    words.append(word)
                continue
            flag, value = found.groups() if found else (word, None)
            name, more = flag[2:].replace("-", "_"), None  # --max-new-tokens is as good
            if name == "auto" and "train.micro_batch_size" in self.types and value is None:
                name, value = "train.micro_batch_size", "auto"
            if flag in ("-h", "--help"):
                self.help = True
                return
            if name == "print_config":
                self.print_config = True
                continue
            if name != "config" and not self._known(name):
                self.problems.append(f"--{name} is unknown. {self._hint(name, flags=True)}".rstrip())
                if value is None and rest and not _FLAG.fullmatch(rest[0]):
                    rest.pop(0)
                continue
            if name in self.short and not (value or (rest or [""])[0]).startswith("{"):
                name = f"{name}.{self.short[name]}"
            if value is None and name in self.switches:
                value = rest.pop(0) if rest and rest[0].lower() in ("null", "none", *_SWITCHED) else "true"
            if value is None:
                following = _FLAG.fullmatch(rest[0]) if rest else None
                if not rest or following:
                    self.problems.append(f"--{flag[2:]} needs a value: {self._expected(name, flag=True)}")
                    if following and not self._known(following[1][2:].replace("-", "_")):
                        self.problems[-1] += f", written --{name}={rest.pop(0)} where it starts with dashes"
                    continue
                value = rest.pop(0)
            typed.append((name, value))
            more = name if name in self.lists and _leaf(name) in PLACES else None
        for name, value in typed:
            if name == "config":
                self._read_file(value)
        positional = self.command.positional
        if positional and positional in self.lists:
            typed = [(positional, word) for word in words] + typed
        elif words:
            self._read_words(words, positional, [value for name, value in typed if name == positional])
            typed = [(positional, words[0]), *typed] if positional else typed
        self._take(typed)

    def _read_words(self, words: list[str], positional: str | None, by_flag: list[str]) -> None:
        if positional and by_flag and by_flag[-1] != words[0]:
            self.problems.append(
                f"{positional} is given twice, as {words[0]!r} and with --{positional} {by_flag[-1]}; leave one out"
            )
        for word in words[1:] if positional else words:
            first = f"{positional.upper()} is one word, and everything else" if positional else "Everything"
            self.problems.append(f"{word!r} is not expected here. {first} is given with its flag, as in --flag value")

    def _take(self, typed: list[tuple[str, str]]) -> None:
        """The values of flags, the last one of each; those of a list together."""
        texts: dict[str, list[Any]] = {}
        for name, value in typed:
            if name in self.groups:
                self._read_group(name, value)
            elif name in self.lists:
                texts.setdefault(name, []).extend(self._texts(name, value))
            elif name != "config":
                if name in self.mappings:
                    try:
                        load_yaml(value, f"--{name}")
                    except ValueError as e:
                        self.problems.append(str(e))
                self._set(name, value, None)
        for name, values in texts.items():
            self._set(name, values, None)

    def _texts(self, name: str, value: str) -> list[Any]:
        """One text, or several as a YAML list: [a, b]."""
        if _leaf(name) in PLACES and value.lower() in ("null", "none"):
            return []
        try:
            found = load_yaml(value, "") if value.startswith("[") else None
        except ValueError:
            found = None
        return found if isinstance(found, list) else [value]

    def _read_file(self, name: str) -> None:
        try:
            path = recipe(name)
            content = read_yaml(path)
        except ValueError as e:
            self.problems += str(e).splitlines()
            return
        command = Path(path).parent.name  # of a recipe
        if command != self.name and not Path(name).expanduser().is_file():
            self.problems.append(f"config={name!r} is a recipe of `litlm {command}`")
            return
        if content is not None and not isinstance(content, dict):
            self.problems.append(f"{path} must hold options, such as {self.required[0]}: ..., not {_shown(content)}")
        elif content:
            self.given_by_file = set()
            self._spread(content, path)

    def _read_group(self, name: str, value: str) -> None:
        """--train '{lr: 1e-3}', or a YAML file with that."""
        try:
            file = Path(value).expanduser()
            content = read_yaml(file) if file.is_file() else load_yaml(value, f"--{name}")
        except (ValueError, OSError) as e:
            self.problems += str(e).splitlines()
            return
        self._spread({name: content}, None)

    def _spread(self, content: dict[Any, Any], file: str | None, prefix: str = "") -> None:
        """What a YAML file gives: {"train": {"lr": 1}} is train.lr=1, {"data": FILE} is data.path=FILE."""
        place = f"{file}: " if file else "--"
        for key, value in content.items():
            name = f"{prefix}{key}"
            if name in self.types:
                if file and name in self.given_by_file:
                    self.problems.append(f"{place}{name} is given twice; leave one out")
                self.given_by_file.add(name)
                self._set(name, [value] if name in self.lists and isinstance(value, str) else value, file)
            elif name not in self.groups:
                self.problems.append(f"{place}{name} is unknown. {self._hint(name, flags=not file)}".rstrip())
            elif isinstance(value, dict):
                self._spread(value, file, f"{name}.")
            elif value is not None and name in self.short:
                self._spread({f"{name}.{self.short[name]}": value}, file)
            elif value is not None:
                inside = next(option for option in self.types if option.startswith(f"{name}."))
                self.problems.append(f"{place}{name} must be a mapping such as {{{_leaf(inside)}: ...}}, not {value!r}")

    def _set(self, name: str, value: Any, file: str | None) -> None:
        kinds, place = self.types.get(name, ()), f"{file}: " if file else "--"
        if _leaf(name) in PLACES:
            if value == "" or isinstance(value, list) and "" in value:
                self.problems.append(f"{place}{name} is empty; name a {PLACES[_leaf(name)]}")
            if isinstance(value, str):
                value = os.path.expanduser(value)  # as the shell does, but for --out_dir=~/x
            elif isinstance(value, list):
                value = [os.path.expanduser(v) if isinstance(v, str) else v for v in value]
        if bool in kinds and isinstance(value, str):
            value = _SWITCHED.get(value.lower(), value)
        if name == "out_dir" and isinstance(value, str):
            path = Path(value)
            there = next(p for p in (path, *path.parents) if p.exists() or p == p.parent)
            if not there.is_dir():
                self.problems.append(f"{place}out_dir={value!r}: {there} is a file; name a directory")
        if type(None) in kinds and value in ("None", "none"):
            value = None
        if name in self.lists and value is None:
            value = []
        if int in kinds and float not in kinds and isinstance(value, (str, float)):
            value = _whole(value)
        self.values[name] = _Value(value, file)

    # --- writing ---------------------------------------------------------------------------------------------------

    def written_out(self) -> list[str]:
        """All of it as arguments that can be read in one way only."""
        import yaml

        nested: dict[str, Any] = {}
        flags = []
        for name, given in self.values.items():
            if given.file is None and isinstance(given.value, str):
                flags.append(f"--{name}={given.value}")
            elif name in self.lists and isinstance(given.value, list):
                flags.append(f"--{name}={json.dumps(given.value, ensure_ascii=False)}")
            else:
                *groups, leaf = name.split(".")
                place = nested
                for group in groups:
                    place = place.setdefault(group, {})
                place[leaf] = given.value
        # In quotes, so that text stays text: "1e3", "yes".
        files = [f"--config={yaml.safe_dump(nested, default_style=chr(34), allow_unicode=True)}"] if nested else []
        return files + flags + (["--print_config"] if self.print_config else [])

    # --- what is wrong ---------------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        names = [] if self.print_config else [name for name in self.required if name not in self.values]
        if not names:
            return []
        example = f". For example: {self.command.example}." if self.command.example else "."
        return [f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing{example}"]

    def mistyped(self, message: str) -> str:
        """What the parser says about a value, in words for people. The value is taken out, so that others are seen."""
        key = re.search(r'Parser key "([^"]+)"', message)
        name = next((n for n in self.values if key and (n == key[1] or n.startswith(f"{key[1]}."))), None)
        if name is None or name in self.mistypes:
            raise ValueError(message.strip())
        self.mistypes.add(name)
        given = self.values.pop(name)
        if name in self.required:
            kind = self.types[name][0]
            text = str(typing.get_args(kind)[0]) if typing.get_origin(kind) is Literal else "-"
            self.values[name] = _Value([text] if name in self.lists else text)
        wrong = given.value
        if name in self.lists and isinstance(wrong, list):
            wrong = next((value for value in wrong if not isinstance(value, str)), wrong)
        text = str in self.types[name] or name in self.lists
        quote = "; put it in quotes" if text and not isinstance(wrong, (list, dict)) else ""
        place = f"{given.file}: " if given.file else "--"
        return f"{place}{name} must be {self._expected(name)}, not {_shown(wrong)}{quote}."

    def _known(self, name: str) -> bool:
        return name in ("config", "help", "print_config", *self.types, *self.groups) or any(
            name.startswith(f"{mapping}.") for mapping in self.mappings
        )

    def _expected(self, name: str, *, flag: bool = False) -> str:
        """What the value of an option may be, in words. flag: behind --name, where anything is text."""
        if name == "config":
            return "a YAML file or a recipe"
        if flag and (place := PLACES.get(_leaf(name))):
            return f"a {place}"
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null",
                 tuple[str, ...]: "text, or a list of texts"}  # fmt: skip
        found: list[str] = []
        for kind in self.types.get(name, ()):
            if typing.get_origin(kind) is Literal:
                found += map(str, typing.get_args(kind))
            else:
                found.append(words.get(kind, "a mapping such as {key: value}"))
        *most, last = found or ["a mapping such as {key: value}"]
        return f"{', '.join(most)} or {last}" if most else last

    def _hint(self, name: str, *, flags: bool) -> str:
        meant, sentence = hints.option(name, [*self.types], self.switches)
        if not meant:
            return sentence
        shorter = {f"{group}.{leaf}": group for group, leaf in self.short.items()}
        shown = []
        for option in meant:
            option, _, value = option.partition("=")
            if not flags:
                shown.append(f"{option}: {value}" if value else option)
            else:
                option = f"--{shorter.get(option, option)}"
                shown.append((f"{option}={value}" if value == "false" else f"{option} {value}") if value else option)
        return f"Did you mean {' or '.join(shown)}?"


def options_of(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _whole(value: str | float) -> Any:
    """1e9 is a whole number, where one is needed."""
    try:
        number = float(value)
        return int(number) if number.is_integer() and not str(value).strip().isdigit() else value
    except (ValueError, OverflowError):
        return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
