"""Command-line arguments and YAML files to a command's settings, with all mistakes reported at once.

jsonargparse converts values to their types and writes the help. Before that, this module rewrites all arguments to
`--name=value`: the positional one, `--data FILE` to `--data.path`, switches, lists from repeated flags, and the content
of YAML files. argparse alone would accept abbreviations and take values that start with a dash for flags.
"""

from __future__ import annotations

import json
import os
import re
import sys
import typing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from litlm.cli import hints
from litlm.io.dataclass import union_members
from litlm.io.yaml import load_yaml, read_yaml


@dataclass(frozen=True)
class Command:
    """One command of the table in `main`.

    settings: class in litlm.settings. run: "module:function" that takes it. summary: for `litlm --help`. positional:
    field that needs no flag. short: (group, field) pairs; `--group VALUE` means `--group.field VALUE`.
    """

    settings: str
    run: str
    summary: str
    positional: str | None = None
    short: tuple[tuple[str, str], ...] = ()
    example: str = ""


# Options that name paths, by the last part of their name, and what they expect. Models and data may also be given by
# their names or hub ids.
PATH_OPTIONS: dict[str, Literal["file", "folder", "model"]] = {
    "model": "model", "base": "model", "tokenizer": "model", "adapter": "folder", "out_dir": "folder", "runs": "folder",
    "resume": "folder", "data": "file", "path": "file", "val_path": "file", "source": "file", "out": "file",
}  # fmt: skip
_BOOLS = {"true": "true", "yes": "true", "on": "true", "1": "true",
          "false": "false", "no": "false", "off": "false", "0": "false"}  # fmt: skip
_FLAG = re.compile(r"(--[A-Za-z][\w.-]*)(?:=(.*))?", re.S)


def parse(name: str, command: Command, argv: list[str]) -> Any:
    """The command's settings from its arguments. Raises ValueError with all mistakes."""
    from jsonargparse import ArgumentError

    parser = make_parser(name, command)
    line = _CommandLine(parser, name, command)
    line.read(argv)
    if line.help:
        print(parser.format_help(), end="")  # parser.print_help ignores errors
        raise SystemExit(0)
    problems = line.problems or line.missing()
    config = None
    while not (line.problems or line.missing()):
        try:
            config = parser.parse_args(line.normalized())
            break
        except ArgumentError as e:
            problems.append(line.type_problem(str(e)))
    if problems:
        sentences = [problem if problem[-1] in ".?" else f"{problem}." for problem in problems]
        help = f"`litlm {name} --help` lists the options."
        if len(sentences) == 1:
            raise ValueError(f"{sentences[0]} {help}")
        raise ValueError("\n".join(["the options can't be used:", *(f"- {text}" for text in sentences), help]))
    for note in line.notes:
        print(f"litlm: {note}", file=sys.stderr)
    assert config is not None
    config.pop("config", None)
    return getattr(import_module("litlm.settings"), command.settings)(**vars(parser.instantiate(config)))


def make_parser(name: str, command: Command) -> Any:
    """The jsonargparse parser of a command, with help texts."""
    from jsonargparse import ArgumentParser

    cls = getattr(import_module("litlm.settings"), command.settings)
    positional = f" {command.positional.upper()}" if command.positional else ""
    epilog = f"example: {command.example}" if command.example else None
    parser = ArgumentParser(
        prog=f"litlm {name}", usage=f"litlm {name}{positional} [options]", epilog=epilog, exit_on_error=False
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
    """The recipes in config_hub by name (finetune/llama-3.2-1b-lora); wheels contain them inside the package."""
    found: dict[str, Path] = {}
    package = Path(__file__).parent.parent
    for hub in (package.parent / "config_hub", package / "config_hub"):
        found |= {path.relative_to(hub).as_posix().removesuffix(".yaml"): path for path in hub.glob("*/*.yaml")}
    return found


def recipe(name: str) -> str:
    """The path of a YAML file, given by its path or by its name in config_hub. Raises ValueError if there is none."""
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
    """The value of an option. file: the YAML file it comes from; None for the command line."""

    value: Any
    file: str | None = None


class _CommandLine:
    """The arguments of a command. `values`: option -> its last value. `problems`: mistakes. `notes`: warnings."""

    def __init__(self, parser: Any, name: str, command: Command) -> None:
        options = [a for a in parser._actions if a.option_strings and a.dest not in ("help", "config", "print_config")]
        names = [action.dest for action in options]
        self.groups = [name for name in names if any(other.startswith(f"{name}.") for other in names)]
        self.types = {
            a.dest: union_members(getattr(a, "_typehint", None)) for a in options if a.dest not in self.groups
        }
        self.required = [action.dest for action in options if action.required]
        self.lists = [name for name, types in self.types.items() if tuple[str, ...] in types]
        self.switches = [name for name, types in self.types.items() if bool in types]
        self.mappings = [name for name, types in self.types.items() if any(typing.get_origin(t) is dict for t in types)]
        self.name, self.command, self.short = name, command, dict(command.short)
        self.values: dict[str, _Value] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.options_of_file: set[str] = set()
        self.of_wrong_type: set[str] = set()
        self.help = False
        self.print_config: str | None = None  # as it was typed

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, argv: list[str]) -> None:
        """Fill `values` and `problems` from the arguments and the YAML files that they name."""
        words: list[str] = []  # without a flag in front
        typed: list[tuple[str, str]] = []
        open_list = None  # the option that further words belong to, as in --data *.jsonl
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            found = _FLAG.fullmatch(word)
            if not found and word != "-h":
                if word.startswith("-"):
                    self.problems.append(f"{word} is unknown; options have a name and two dashes")
                elif open_list:
                    typed.append((open_list, word))
                else:
                    words.append(word)
                continue
            flag, value = found.groups() if found else (word, None)
            name, open_list = flag[2:].replace("-", "_"), None  # --max-new-tokens works too
            if name == "auto" and "train.micro_batch_size" in self.types and value is None:
                name, value = "train.micro_batch_size", "auto"
            if flag in ("-h", "--help"):
                self.help = True
                return
            if name == "print_config":
                self.print_config = flag if value is None else f"{flag}={value}"
                continue
            if name != "config" and not self._known(name):
                self.problems.append(f"--{name} is unknown. {self._hint(name, flags=True)}".rstrip())
                if value is None and rest and not _FLAG.fullmatch(rest[0]):
                    rest.pop(0)
                continue
            if name in self.short and not (value or (rest or [""])[0]).startswith("{"):
                name = f"{name}.{self.short[name]}"
            if value is None and name in self.switches:
                value = rest.pop(0) if rest and rest[0].lower() in ("null", "none", *_BOOLS) else "true"
            if value is None:
                following = _FLAG.fullmatch(rest[0]) if rest else None
                if not rest or following:
                    self.problems.append(f"--{flag[2:]} needs a value: {self._expected(name, flag=True)}")
                    if following and not self._known(following[1][2:].replace("-", "_")):
                        self.problems[-1] += f", written --{name}={rest.pop(0)} where it starts with dashes"
                    continue
                value = rest.pop(0)
            typed.append((name, value))
            open_list = name if name in self.lists and _leaf(name) in PATH_OPTIONS else None
        for name, value in typed:
            if name == "config":
                self._read_file(value)
        positional = self.command.positional
        if positional and positional in self.lists:
            typed = [(positional, word) for word in words] + typed
        elif words:
            self._read_words(words, positional, [value for name, value in typed if name == positional])
            typed = [(positional, words[0]), *typed] if positional else typed
        self._set_typed(typed)

    def _read_words(self, words: list[str], positional: str | None, by_flag: list[str]) -> None:
        if positional and by_flag and by_flag[-1] != words[0]:
            self.problems.append(
                f"{positional} is given twice, as {words[0]!r} and with --{positional} {by_flag[-1]}; leave one out"
            )
        for word in words[1:] if positional else words:
            first = f"{positional.upper()} is one word, and everything else" if positional else "Everything"
            self.problems.append(f"{word!r} is not expected here. {first} is given with its flag, as in --flag value")

    def _set_typed(self, typed: list[tuple[str, str]]) -> None:
        """Set the values of flags: the last one of each, all of a list."""
        texts: dict[str, list[Any]] = {}
        scalars: dict[str, str] = {}
        for name, value in typed:
            if name in self.groups:
                self._read_group(name, value)
            elif name in self.lists:
                texts.setdefault(name, []).extend(self._list_items(name, value))
            elif name != "config":
                if name in self.mappings:
                    try:
                        load_yaml(value, f"--{name}")
                    except ValueError as e:
                        self.problems.append(str(e))
                if scalars.setdefault(name, value) != value:
                    self.notes.append(f"--{name} is given twice; {value!r} is used, not {scalars[name]!r}")
                scalars[name] = value
                self._set(name, value, None)
        for name, values in texts.items():
            self._set(name, values, None)

    def _list_items(self, name: str, value: str) -> list[Any]:
        """One text, or several as a YAML list: [a, b]."""
        if _leaf(name) in PATH_OPTIONS and value.lower() in ("null", "none"):
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
            self.options_of_file, before = set(), dict(self.values)
            self._set_mapping(content, path)
            if changed := [option for option, old in before.items() if self.values[option].value != old.value]:
                self.notes.append(f"--config is given twice; {path} overrides {', '.join(changed)}")

    def _read_group(self, name: str, value: str) -> None:
        """--train '{lr: 1e-3}', or a YAML file with that."""
        try:
            file = Path(value).expanduser()
            content = read_yaml(file) if file.is_file() else load_yaml(value, f"--{name}")
        except (ValueError, OSError) as e:
            self.problems += str(e).splitlines()
            return
        self._set_mapping({name: content}, None)

    def _set_mapping(self, content: dict[Any, Any], file: str | None, prefix: str = "") -> None:
        """Set the values in a mapping: {"train": {"lr": 1}} is train.lr=1, {"data": FILE} is data.path=FILE."""
        where = f"{file}: " if file else "--"
        for key, value in content.items():
            name = f"{prefix}{key}"
            if name in self.types:
                if file and name in self.options_of_file:
                    self.problems.append(f"{where}{name} is given twice; leave one out")
                self.options_of_file.add(name)
                self._set(name, [value] if name in self.lists and isinstance(value, str) else value, file)
            elif name not in self.groups:
                self.problems.append(f"{where}{name} is unknown. {self._hint(name, flags=not file)}".rstrip())
            elif isinstance(value, dict):
                self._set_mapping(value, file, f"{name}.")
            elif value is not None and name in self.short:
                self._set_mapping({f"{name}.{self.short[name]}": value}, file)
            elif value is not None:
                inside = next(option for option in self.types if option.startswith(f"{name}."))
                self.problems.append(f"{where}{name} must be a mapping such as {{{_leaf(inside)}: ...}}, not {value!r}")

    def _set(self, name: str, value: Any, file: str | None) -> None:
        types, where = self.types.get(name, ()), f"{file}: " if file else "--"
        if _leaf(name) in PATH_OPTIONS:
            if value == "" or isinstance(value, list) and "" in value:
                self.problems.append(f"{where}{name} is empty; name a {PATH_OPTIONS[_leaf(name)]}")
            if isinstance(value, str):
                value = os.path.expanduser(value)  # the shell does not in --out_dir=~/x
            elif isinstance(value, list):
                value = [os.path.expanduser(v) if isinstance(v, str) else v for v in value]
        if bool in types and isinstance(value, str):
            value = _BOOLS.get(value.lower(), value)
        if name == "out_dir" and isinstance(value, str):
            path = Path(value)
            existing = next(p for p in (path, *path.parents) if p.exists() or p == p.parent)
            if not existing.is_dir():
                self.problems.append(f"{where}out_dir={value!r}: {existing} is a file; name a directory")
        if type(None) in types and value in ("None", "none"):
            value = None
        if name in self.lists and value is None:
            value = []
        if int in types and float not in types and isinstance(value, (str, float)):
            value = _as_int(value)
        self.values[name] = _Value(value, file)

    # --- normalized arguments ----------------------------------------------------------------------------------------

    def normalized(self) -> list[str]:
        """All values as unambiguous arguments: --name=value, and one YAML text."""
        import yaml

        nested: dict[str, Any] = {}
        flags = []
        for name, option in self.values.items():
            if option.file is None and isinstance(option.value, str):
                flags.append(f"--{name}={option.value}")
            elif name in self.lists and isinstance(option.value, list):
                flags.append(f"--{name}={json.dumps(option.value, ensure_ascii=False)}")
            else:
                *groups, leaf = name.split(".")
                parent = nested
                for group in groups:
                    parent = parent.setdefault(group, {})
                parent[leaf] = option.value
        # Quoted, so that text such as "1e3" and "yes" stays text.
        files = [f"--config={yaml.safe_dump(nested, default_style=chr(34), allow_unicode=True)}"] if nested else []
        return files + flags + ([self.print_config.replace("-config", "_config")] if self.print_config else [])

    # --- mistakes ---------------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """A message about required options that are not given."""
        names = [] if self.print_config else [name for name in self.required if name not in self.values]
        if not names:
            return []
        example = f". For example: {self.command.example}." if self.command.example else "."
        return [f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing{example}"]

    def type_problem(self, message: str) -> str:
        """The parser's message about a value, reworded. The value is removed, so that the next one is checked."""
        key = re.search(r'Parser key "([^"]+)"', message)
        name = next((n for n in self.values if key and (n == key[1] or n.startswith(f"{key[1]}."))), None)
        if name is None or name in self.of_wrong_type:
            raise ValueError(message.strip())
        self.of_wrong_type.add(name)
        option = self.values.pop(name)
        if name in self.required:
            type_ = self.types[name][0]
            text = str(typing.get_args(type_)[0]) if typing.get_origin(type_) is Literal else "-"
            self.values[name] = _Value([text] if name in self.lists else text)
        wrong = option.value
        if name in self.lists and isinstance(wrong, list):
            wrong = next((value for value in wrong if not isinstance(value, str)), wrong)
        text = str in self.types[name] or name in self.lists
        quote = "; put it in quotes" if text and not isinstance(wrong, (list, dict)) else ""
        where = f"{option.file}: " if option.file else "--"
        return f"{where}{name} must be {self._expected(name)}, not {_shown(wrong)}{quote}."

    def _known(self, name: str) -> bool:
        return name in ("config", "help", "print_config", *self.types, *self.groups) or any(
            name.startswith(f"{mapping}.") for mapping in self.mappings
        )

    def _expected(self, name: str, *, flag: bool = False) -> str:
        """The values that an option takes, in words. flag: on the command line, where everything is text."""
        if name == "config":
            return "a YAML file or a recipe"
        if flag and (path := PATH_OPTIONS.get(_leaf(name))):
            return f"a {path}"
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null",
                 tuple[str, ...]: "text, or a list of texts"}  # fmt: skip
        found: list[str] = []
        for type_ in self.types.get(name, ()):
            if typing.get_origin(type_) is Literal:
                found += map(str, typing.get_args(type_))
            else:
                found.append(words.get(type_, "a mapping such as {key: value}"))
        *most, last = found or ["a mapping such as {key: value}"]
        return f"{', '.join(most)} or {last}" if most else last

    def _hint(self, name: str, *, flags: bool) -> str:
        meant, sentence = hints.suggest_options(name, [*self.types], self.switches)
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


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _as_int(value: str | float) -> Any:
    """An int for 1e9 and the like; anything else unchanged."""
    try:
        number = float(value)
        return int(number) if number.is_integer() and not str(value).strip().isdigit() else value
    except (ValueError, OverflowError):
        return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
