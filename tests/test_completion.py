"""Completion scripts, as bash runs them (zsh and fish where they are installed)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from litlm.cli.arguments import make_parser, recipes
from litlm.cli.completion import script
from litlm.cli.main import COMMANDS
from litlm.zoo import list_models

_ASK = """
source "$1"; cd "$2"
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ "$line" == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _shtab_litlm 2>/dev/null
  echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(script(shell), encoding="utf-8")
    files = folder / "files"
    (files / "folder").mkdir(parents=True)
    (files / "facts.jsonl").touch()
    return folder


def ask(scripts: Path, lines: list[str]) -> list[list[str]]:
    done = subprocess.run(
        ["bash", "--norc", "-c", _ASK, "bash", scripts / "bash", scripts / "files"],
        input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash(scripts: Path) -> None:
    both = ["facts.jsonl", "folder"]
    wanted = {
        "litlm ": list(COMMANDS),
        "litlm fi": ["finetune"],
        "litlm finetune --train.sch": ["--train.schedule"],
        "litlm finetune --train.schedule ": ["cosine", "linear", "constant", "wsd"],
        "litlm finetune --config finetune/smollm2-135m-instruct-l": ["finetune/smollm2-135m-instruct-lora"],
        "litlm finetune --config dpo/": [],
        "litlm finetune --config fa": ["facts.jsonl"],
        "litlm chat --config fa": ["facts.jsonl"],
        "litlm finetune smollm2-135m": ["smollm2-135m", "smollm2-135m-instruct"],
        "litlm finetune m --data f": both,
        "litlm finetune m --data.val_path f": both,
        "litlm finetune m --out_dir f": ["folder"],
        "litlm finetune m --overwrite --train.spi": ["--train.spike_factor"],
        "litlm finetune fo": ["folder"],
        "litlm dpo m --preference ": ["dpo", "ipo", "cdpo", "orpo"],
        "litlm dpo m --method q": ["qlora"],
        "litlm generate m --quantize int": ["int8"],
        "litlm generate m --prompt ": [],
        "litlm train-tokenizer f --voc": ["--vocab_size"],
        "litlm prepare facts.jsonl f": both,
        "litlm describe gpt2 smollm2-135m-i": ["smollm2-135m-instruct"],
        "litlm merge folder --base smollm2-135m-i": ["smollm2-135m-instruct"],
        "litlm completion ": ["bash", "zsh", "fish"],
    }
    found = [sorted(words) for words in ask(scripts, [*wanted])]
    assert dict(zip(wanted, found, strict=True)) == {line: sorted(words) for line, words in wanted.items()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_knows_every_option_of_every_command(scripts: Path) -> None:
    found = ask(scripts, [f"litlm {name} --" for name in COMMANDS])
    for words, (name, command) in zip(found, COMMANDS.items(), strict=True):
        actions = make_parser(name, command)._actions
        assert sorted(words) == sorted(f for a in actions for f in a.option_strings if f.startswith("--"))
    models, own = ask(scripts, ["litlm chat ", "litlm pretrain --config pre"])
    assert set(models) >= set(list_models())
    assert own == sorted(name for name in recipes() if name.startswith("pretrain/"))


def test_all_scripts_know_commands_models_and_recipes(scripts: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = (scripts / shell).read_text(encoding="utf-8")
        for word in (*COMMANDS, *list_models(), *recipes(), "train.lr", "cosine"):
            assert word in text
        assert str(Path.home()) not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_syntax(shell: str, scripts: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", scripts / shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(scripts: Path) -> None:
    wanted = {
        "litlm fi": ["finetune"],
        "litlm finetune --train.schedule ": ["constant", "cosine", "linear", "wsd"],
        "litlm finetune m --data f": ["facts.jsonl", "folder/"],
        "litlm describe gpt2 smollm2-135m-i": ["smollm2-135m-instruct"],
        "litlm finetune --config finetune/smollm2-135m-instruct-l": ["finetune/smollm2-135m-instruct-lora"],
    }
    lines = "; ".join(f"complete -C '{line}'; echo" for line in wanted)
    done = subprocess.run(
        ["fish", "-N", "-c", f"source {scripts / 'fish'}; {lines}"],
        cwd=scripts / "files", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    blocks = done.stdout.split("\n\n")
    found = [sorted(line.split("\t")[0] for line in block.splitlines()) for block in blocks[: len(wanted)]]
    assert dict(zip(wanted, found, strict=True)) == wanted, done.stderr
