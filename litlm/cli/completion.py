"""`litlm completion SHELL`: a script with which a shell completes commands, options and their values.

The script is self-contained, so pressing TAB never starts Python. shtab writes it from an argparse parser that is built
here from the parsers of all commands.
"""

from __future__ import annotations

import argparse
import shlex
import typing
from typing import Any, Literal

from litlm.cli.arguments import PATH_OPTIONS, make_parser, recipes
from litlm.io.dataclass import union_members
from litlm.settings import CompletionCommand


def completion(settings: CompletionCommand) -> None:
    """Run `litlm completion`."""
    print(script(settings.shell))


def script(shell: str) -> str:
    """The script that `shell` (bash, zsh, fish) has to source. Raises ValueError if shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise ValueError("completion needs a small library: pip install shtab") from None
    from litlm.cli.main import COMMANDS
    from litlm.zoo import list_models

    models = list_models()
    names = sorted(recipes())
    root = argparse.ArgumentParser(prog="litlm")
    root.add_argument("--version", action="version", help="show the version")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, help=command.summary, description=command.summary)
        own_recipes = [recipe for recipe in names if recipe.startswith(f"{name}/")]
        options = {option.dest: option for option in make_parser(name, command)._actions}
        short = {group: f"{group}.{leaf}" for group, leaf in command.short}  # --data completes like --data.path
        for dest, option in options.items():
            if dest == "help" or option.help == argparse.SUPPRESS:
                continue
            full_name: Any = short.get(dest, dest)
            text = " ".join((option.help or "").split()).split(". ")[0].replace("%", "%%")
            types = union_members(getattr(options[full_name], "_typehint", None))
            if bool in types or dest == "print_config":
                parser.add_argument(*option.option_strings, action="store_true", help=text)
                continue
            flags = [parser.add_argument(*option.option_strings, help=text)]
            if dest == command.positional:
                many = tuple[str, ...] in types
                flags.append(parser.add_argument("positional", nargs="*" if many else "?", help=text))
            path = PATH_OPTIONS.get(full_name.rpartition(".")[2])
            choices = [str(c) for t in types if typing.get_origin(t) is Literal for c in typing.get_args(t)]
            complete: Any = None
            if dest == "config" and own_recipes:
                complete = _words_or_files(f"{name} recipes", own_recipes, shell)
            elif path == "model":
                complete = _words_or_files("models", models, shell)
            elif path or dest == "config":
                complete = shtab.DIRECTORY if path == "folder" else shtab.FILE
            for flag in flags:
                if complete:
                    flag.complete = complete  # type: ignore[attr-defined]
                else:
                    flag.choices = choices or None
    # shtab writes a repeatable positional argument for zsh as an optional one.
    return shtab.complete(root, shell).replace('"(*)::', '"*:')


def _words_or_files(what: str, words: list[str], shell: str) -> dict[str, Any]:
    """shtab's description of a value that is one of these words or a file."""
    name = f"_litlm_{what.replace(' ', '_').replace('-', '_')}_or_file"
    listed = shlex.join(words)
    bodies = {
        "bash": f'{name}() {{\n  compgen -W {shlex.quote(listed)} -- "$1"\n  compgen -f -- "$1"\n}}',
        "zsh": f"{name}() {{\n  local -a known=({listed})\n"
        f"  _alternative 'known:{what}:compadd -a known' 'files:file:_files'\n}}",
        "fish": f"function {name}\n  printf '%s\\n' {listed}\n  __fish_complete_path (commandline -ct)\nend",
    }
    return {"bash": name, "zsh": name, "fish": f"({name})", "preamble": {shell: bodies[shell]}}
