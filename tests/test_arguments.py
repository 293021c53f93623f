"""What is typed, well or carelessly: each mistake is named, with what to type instead, and nothing is guessed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from litlm.cli import hints
from litlm.cli.arguments import PATH_OPTIONS, make_parser
from litlm.cli.main import COMMANDS, main, parse
from litlm.config import Config
from litlm.io.yaml import load_yaml, read_yaml
from litlm.train.files import read_settings


def refused(line: str | list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What a command line that can't be used is answered with."""
    with pytest.raises(SystemExit) as e:
        main(shlex.split(line) if isinstance(line, str) else line)
    out, err = capsys.readouterr()
    assert (e.value.code, out) == (code, "")
    assert "Traceback" not in err
    return err


# --- YAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1e-3\nb: -2.5E+3\nc: .5e3\nd: 1_0e2\n", {"a": 1e-3, "b": -2500.0, "c": 500.0, "d": 1000.0}),
        ("a: 2020-01-01\nb: 1e\nc: e3\nd: '1e3'\n", {"a": "2020-01-01", "b": "1e", "c": "e3", "d": "1e3"}),
        ("a: &x {y: 1}\nb: {<<: *x, y: 2}\nc: *x\n", {"a": {"y": 1}, "b": {"y": 2}, "c": {"y": 1}}),
        ("- {a: 1}\n- {a: 2}\n", [{"a": 1}, {"a": 2}]),
    ],
)  # fmt: skip
def test_yaml(text: str, value: Any) -> None:
    assert load_yaml(text, "f.yaml") == value


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: 1\nb: 2\na: 3\n", ["f, line 3: a is given twice, first in line 1"]),
        ("a: 1\n'a': 1\n\"a\": 1\n", ["f, line 2: a is given", "f, line 3: a is given twice, first in line 2"]),
        ("b:\n  c: {d: 1, e: 2, d: 3}\n  f: 1\n  c: 2\n", ["f, line 2: b.c.d is", "f, line 4: b.c is given twice"]),
        ("- a: 1\n  a: 2\n", ["f, line 2: a is given twice"]),
        ("yes: 1\ntrue: 2\n", ["True is given twice"]),
        ("a: [\n", ["f is not valid YAML: expected the node content, but found '<stream end>', line 2"]),
        ("a:\tb: 1", ["not valid YAML: found character '\\t'"]),
        ("a: !!int foo", ["not valid YAML: invalid literal"]),
        ("a: !!python/object:os.system 1", ["not valid YAML: could not determine a constructor"]),
        ("a: \x01", ["not valid YAML: unacceptable character"]),
        ("{[a]: 1}", ["not valid YAML: found unhashable key"]),
        ("a: 1\n---\na: 2\n", ["not valid YAML: but found another document"]),
    ],
)
def test_yaml_that_is_refused(text: str, problems: list[str]) -> None:
    with pytest.raises(ValueError, match="twice|not valid YAML") as e:
        load_yaml(text, "f")
    lines = str(e.value).splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert problem in line


def test_a_key_given_twice_is_refused_wherever_yaml_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("vocab_size: 5\nn_layer: 1\nvocab_size: 6\n")
    twice = f"{path}, line 3: vocab_size is given twice, first in line 1"
    for reader in (read_yaml, read_settings, Config.from_yaml):
        with pytest.raises(ValueError, match="given twice") as e:
            reader(path)
        assert str(e.value).startswith(twice)
    for command in COMMANDS:
        assert twice in refused([command, "--config", str(path)], capsys)
    for argv in (["--model_args", "{n_layer: 1, n_layer: 2}"], ["--train", "{lr: 1, lr: 1}"]):
        assert "is given twice" in refused(["pretrain", "m", "--data", "d", *argv], capsys)
    path.write_text("model: m\ndata: d\ndata.path: e\ntrain.lr: 1\ntrain: {lr: 1}\n")
    err = refused(["finetune", "--config", str(path)], capsys)
    assert "data.path is given twice" in err
    assert "train.lr is given twice" in err


@pytest.mark.parametrize("text", ["", "\n# model: x\n", "train:\nmethod:\n", "﻿"])
def test_yaml_that_says_nothing_changes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    argv = ["m", "--data", "d"]
    assert parse("finetune", [*argv, "--config", str(tmp_path / "f.yaml")]) == parse("finetune", argv)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("- a\n", ["f.yaml must hold options, such as model: ..., not '[\"a\"]'"]),
        ("hello", ["f.yaml must hold options, such as model: ..., not 'hello'"]),
        ("train: 3\n", ["f.yaml: train must be a mapping such as {max_steps: ...}, not 3"]),
        ("train: [1]\nfoo: {bar: 1}\n", ["train must be a mapping", "f.yaml: foo is unknown"]),
        ("train: {learning_rate: 1, optimizer_args: {eps: 1}, xyzzy: 2}\ndata: {sft: {a: 1}}\n",
         ["f.yaml: train.learning_rate is unknown. Did you mean train.lr?", "train.xyzzy is unknown.", "data.sft is"]),
        ("load_in_4bit: true\n", ["load_in_4bit is unknown. Did you mean method.name: qlora?"]),
        ("train: {lr: [1, 2], epochs: 2.5, max_time: 30, samples: {a: 1}}\nseed: true\n",
         ["f.yaml: train.lr must be a number or find, not '[1, 2]'.",
          "train.epochs must be a whole number or null, not '2.5'",
          "train.max_time must be text or null, not '30'; put it in quotes", "train.samples must be text, or a list",
          "seed must be a whole number, not 'true'"]),
        ("method: [lora]\nnew_tokens: [a, 3]\nmodel: {a: 1}\n",
         ["method.name must be full, lora", "new_tokens must be text, or a list of texts, not '3'; put it in quotes",
          "f.yaml: model must be text, not '{\"a\": 1}'"]),
        ("out_dir: ''\n", ["f.yaml: out_dir is empty; name a folder"]),
        ("1: 2\nconfig: x\n", ["1 is unknown", "config is unknown"]),
    ],
)  # fmt: skip
def test_mistakes_in_yaml(text: str, answers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.yaml").write_text(text)
    model = [] if "model:" in text else ["m"]
    err = refused(["finetune", *model, "--data", "d", "--config", str(tmp_path / "f.yaml")], capsys)
    assert [line for line in answers if line not in err] == []
    assert len(err.splitlines()) == (1 if len(answers) == 1 else len(answers) + 2)


def test_configs_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (
        ("a", "train: {lr: 1e-3, epochs: 2}\nout_dir: ~/x\n"),
        ("b", "train: {lr: 2e-3}\nresume: None\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    configs = ["--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]
    settings = parse("finetune", ["--train.epochs", "3", *configs, "m", "--data", "d"])
    assert (settings.train.lr, settings.train.epochs, settings.resume) == (2e-3, 3, None)
    assert settings.out_dir == str(Path.home() / "x")
    note = f"litlm: --config is given twice; {tmp_path / 'b.yaml'} overrides train.lr\n"
    assert capsys.readouterr().err == note
    args = "{optimizer_args: {eps: 1e-8}, batch_size: 1e1, max_tokens: 2.0e+3}"
    train = parse("finetune", ["m", "--data", "d", "--train", args, "--train.batch_size=3"]).train
    assert (train.optimizer_args, train.batch_size, train.max_tokens) == ({"eps": 1e-8}, 3, 2000)
    assert type(train.max_tokens) is int


def test_recipes_by_several_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "finetune/smollm2-135m-instruct-lora"
    named = [parse("finetune", ["--config", n]) for n in (name, f"{name}.yaml", f"config_hub/{name}.yaml")]
    assert named[0] == named[1] == named[2]
    for config, answer in (
        ("dpo/qwen3-0.6b-dpo-lora", "is a recipe of `litlm dpo`"),
        (f"{name[:-1]}", f"Did you mean {name}?"),
        ("", "config is empty"),
        (str(tmp_path), "is a folder; name a YAML file"),
        (str(tmp_path / "none.yaml"), "is neither a file nor a recipe"),
    ):
        assert answer in refused(["finetune", "m", "--data", "d", "--config", config], capsys)


# --- flags ---------------------------------------------------------------------------------------------------------

M = "finetune m --data d"
G = "generate m --prompt p"


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        # other tools' names
        (f"{M} --learning_rate 1", ["--learning_rate is unknown. Did you mean --train.lr?"]),
        (f"{M} --train.learning_rate 1", ["Did you mean --train.lr?"]),
        (f"{M} --lora_r 8 --lora-alpha 16", ["--lora_r is unknown. Did you mean --method.r?", "mean --method.alpha?"]),
        ("finetune --checkpoint_dir m --data d", ["Did you mean --model?"]),
        (f"{M} --epochs 3 --batch_size=4 --max_length 512",
         ["Did you mean --train.epochs?", "Did you mean --train.batch_size?", "Did you mean --data.max_len?"]),
        (f"{M} --num_train_epochs 3 --per_device_train_batch_size 2 --gradient_accumulation_steps 4",
         ["Did you mean --train.epochs?", "--train.micro_batch_size?", "Gradients are accumulated over"]),
        ("finetune --model_name_or_path m --dataset d --output_dir o --bf16 --max_seq_length 9",
         ["--model?", "--data?", "--out_dir?", "--train.precision?", "--data.max_len?"]),
        (f"{M} --resume_from_checkpoint x --load_in_4bit", ["Did you mean --resume?", "Did you mean --method qlora?"]),
        (f"{M} --trust_remote_code", ["litlm never runs code from a checkpoint"]),
        (f"{G} --max_tokens 5 --load_in_4bit", ["Did you mean --max_new_tokens?", "Did you mean --quantize nf4?"]),
        (f"{G} --max_length 5 --do_sample", ["Did you mean --max_new_tokens?", "A --temperature above 0 samples"]),
        ("chat m --system_prompt x", ["Did you mean --system?"]),
        ("merge a --output_dir o --base_model b", ["Did you mean --out_dir?", "Did you mean --base?"]),
        ("dpo m --data d --beta 0.1 --loss_type ipo", ["mean --preference.beta?", "mean --preference?"]),
        ("pretrain m --data d --text_key x --tokenizer_dir t", ["Did you mean --data.text_key?", "mean --tokenizer?"]),
        ("prepare a --dataset b --text_column c", ["Did you mean --data?", "Did you mean --text_key?"]),
        # abbreviations and slips
        (f"{G} --temp 0.5", ["--temp is unknown. Did you mean --temperature?"]),
        (f"{G} --max_new 5", ["Did you mean --max_new_tokens?"]),
        (f"{M} --train.max_st 3", ["--train.max_st is unknown. Did you mean --train.max_steps?"]),
        (f"{M} --train.max 3", ["--train.max_steps or --train.max_tokens or --train.max_time?"]),
        (f"{M} --train_lr 3", ["--train_lr is unknown. Did you mean --train.lr?"]),
        (f"{M} --train.LR 3", ["Did you mean --train.lr?"]),
        (f"{M} --no-packing", ["Did you mean --data.packing=false?"]),
        (f"{M} --train.xyz 3 --qqq", ["--train.xyz is unknown.", "--qqq is unknown."]),
        (f"{M} -o out", ["-o is unknown; options have a name and two dashes"]),
        (f"{M} -- x", ["-- is unknown"]),
        # values that are missing, wrong or too many
        (f"{M} --train.lr", ["--train.lr needs a value: a number or find"]),
        (f"{M} --train.lr --train.epochs 3", ["--train.lr needs a value: a number or find"]),
        (f"{M} --train.lr=", ["--train.lr must be a number or find, not ''"]),
        (f"{M} --config", ["--config needs a value: a YAML file or a recipe"]),
        ("finetune m --data", ["--data needs a value: a file"]),
        ("chat --model", ["--model needs a value: a model"]),
        ("generate m --prompt --chat", ["--prompt needs a value: text"]),
        ("generate m --prompt --weird", ["--prompt needs a value: text, written --prompt=--weird where it starts"]),
        (f"{G} --temperature warm --top_k 1.5 --top_p=x",
         ["--temperature must be a number, not 'warm'.", "--top_k must be a whole number or null, not '1.5'.",
          "--top_p must be a number or null, not 'x'."]),
        (f"{M} --train.lr nan", ["--train.lr must be a number or find, not 'nan'"]),
        (f"{M} --train x", ["--train must be a mapping such as {max_steps: ...}, not 'x'"]),
        (f"{M} --train {{", ["--train is not valid YAML"]),
        (f"{M} --method '{{name: lora, rank: 3}}'", ["--method.rank is unknown. Did you mean --method.r?"]),
        (f"{M} --method None", ["--method.name must be full, lora"]),
        ("pretrain m --data d --model_args n_layer=3", ["--model_args must be a mapping such as {key: value}"]),
        ("describe gpt2 --dtype fp32 --json=2",
         ["must be float32, bfloat16 or float16, not 'fp32'", "--json must be true"]),
        ("completion tcsh", ["--shell must be bash, zsh or fish, not 'tcsh'"]),
        ("chat a b", ["'b' is not expected here. MODEL is one word, and everything else is given with its flag"]),
        ("chat a --model b", ["model is given twice, as 'a' and with --model b; leave one out"]),
        ("chat --model b a", ["model is given twice, as 'a' and with --model b"]),
        ("quickstart x", ["'x' is not expected here. Everything is given with its flag"]),
        ("finetune '' --data '' --out_dir ''", ["--model is empty", "--data.path is empty", "--out_dir is empty"]),
        (f"{M} --out_dir {__file__}", [f"--out_dir={__file__!r}: {__file__} is a file; name a directory"]),
        (f"quickstart --out_dir={__file__}/a/b", [f"{__file__} is a file; name a directory"]),
        ("finetune", ["model, data.path are missing. For example: litlm finetune "]),
        ("merge x", ["out_dir is missing. For example: litlm merge"]),
    ],
)  # fmt: skip
def test_careless_command_lines(line: str, answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(line, capsys)
    assert [answer for answer in answers if answer not in err] == []
    lines = err.splitlines()
    assert lines[-1].endswith(f"`litlm {line.split()[0]} --help` lists the options.")
    assert len(lines) == (1 if len(answers) == 1 else len(answers) + 2)


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("--prompt p m", "m --prompt p"),
        ("--chat m --prompt p", "m --chat --prompt p"),
        ("m --chat yes --ignore_eos=0 --prompt p", "m --chat --prompt p"),
        ("m --model m --prompt p", "m --prompt p"),
        ("m --prompt a --prompt p", "m --prompt p"),
        ("m --prompt p --seed 1e3 --top_k None", "m --prompt p --seed 1000"),
        ("m --prompt p --top_k null --adapter none", "m --prompt p"),
        ("m --prompt p --adapter=~/a", f"m --prompt p --adapter {Path.home()}/a"),
        ("m --prompt=-5", "m --prompt -5"),
        ("m --prompt '--two words'", "m '--prompt=--two words'"),
        ("m --prompt -h", "m --prompt=-h"),
        ("m --prompt p --stop -x --stop '[a'", "m --prompt p --stop=-x '--stop=[a'"),
    ],
)
def test_the_same_said_otherwise(line: str, same: str) -> None:
    assert parse("generate", shlex.split(line)) == parse("generate", shlex.split(same))


def test_a_flag_given_twice_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    settings = parse("finetune", shlex.split(f"{M[9:]} --train.lr 1 --method lora --train.lr=2 --method.name qlora"))
    assert (settings.train.lr, settings.method.name) == (2, "qlora")
    assert capsys.readouterr().err.splitlines() == [
        "litlm: --train.lr is given twice; '2' is used, not '1'",
        "litlm: --method.name is given twice; 'qlora' is used, not 'lora'",
    ]
    parse("finetune", shlex.split(f"{M[9:]} --out_dir a --out_dir b"))
    assert capsys.readouterr().err == "litlm: --out_dir is given twice; 'b' is used, not 'a'\n"
    parse("finetune", shlex.split(f"{M[9:]} --data e --train.lr 1 --train.lr 1 --train.samples a --train.samples b"))
    assert capsys.readouterr().err == ""


def test_print_config_passes_its_flags_on(capsys: pytest.CaptureFixture[str]) -> None:
    for line, text in (("--print_config=skip_default", "train:\n  lr: 0.001\n"), ("--print-config", "  name: lora\n")):
        with pytest.raises(SystemExit) as e:
            parse("finetune", ["--train.lr", "1e-3", line])
        out = capsys.readouterr().out
        assert e.value.code == 0
        assert (out == text) if "skip" in line else (text in out)
    assert 'Invalid option "foo"' in refused(["finetune", "--print_config=foo"], capsys)


def test_lists_of_places() -> None:
    several = ("a.jsonl", "b.jsonl", "c.jsonl")
    for command in ("finetune", "dpo", "pretrain"):
        for line in (
            "m --data a.jsonl --data b.jsonl --data c.jsonl",
            "m --data a.jsonl b.jsonl c.jsonl",
            "m --data a.jsonl --data.path b.jsonl c.jsonl --seed 1",
            "m --data '[a.jsonl, b.jsonl]' --data c.jsonl",
            "--seed 1 m --data.path a.jsonl b.jsonl c.jsonl",
        ):  # fmt: skip
            assert parse(command, shlex.split(line)).data.path == several
        found = parse(command, shlex.split("m --data ~/a --data.val_path v w --data.val_path=x"))
        assert (found.data.path, found.data.val_path) == ((str(Path.home() / "a"),), ("v", "w", "x"))
        assert parse(command, shlex.split("m --data a --data.val_path null")).data.val_path == ()
    assert parse("plot", shlex.split("--out x.png a b")).runs == ("a", "b")
    assert parse("describe", ["gpt2", "opt-125m"]).model == ("gpt2", "opt-125m")


def test_hints_name_options_that_exist() -> None:
    names = {a.dest for name, c in COMMANDS.items() for a in make_parser(name, c)._actions}
    assert {name.partition("=")[0] for name in hints._OPTION_ALIASES} <= names
    assert {needed for needed, _ in hints._NO_COUNTERPART.values()} <= names
    assert set(PATH_OPTIONS) <= {name.rpartition(".")[2] for name in names}
    for name, command in COMMANDS.items():  # what others call something must not be said of what is there
        own = [a.dest for a in make_parser(name, command)._actions]
        assert all(
            hints.suggest_options(option, own)[0][:1] == [option] for option in own if option in names and "." in option
        )
    assert {command.split()[0] for command in hints._COMMAND_ALIASES.values()} <= set(COMMANDS)


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("serve", "litlm has no command 'serve' yet. `litlm --help`"),
        ("evaluate", "litlm has no command 'evaluate' yet. `litlm --help`"),
        ("fintune", "Did you mean 'finetune'?"),
        ("fine-tune", "Did you mean 'finetune'?"),
        ("Chat", "Did you mean 'chat'?"),
        ("train_tokenizer", "Did you mean 'train-tokenizer'?"),
        ("finetune_lora", "Did you mean 'finetune --method lora'?"),
        ("orpo", "Did you mean 'dpo --preference orpo'?"),
        ("gen", "Did you mean 'generate'?"),
        ("large", "litlm has no command 'large'. `litlm --help`"),
        ("", "litlm has no command ''. `litlm --help`"),
        ("--model", "--model comes after a command, as in litlm COMMAND --model."),
        ("help nothing", "litlm has no command 'nothing'. `litlm --help`"),
    ],
)
def test_unknown_commands(typed: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer in refused(typed.split() or [""], capsys)


def test_help_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for line in ("help merge", "merge --help", "merge -h", "merge x --dtype --help"):
        with pytest.raises(SystemExit) as e:
            main(line.split())
        assert e.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith("usage: litlm merge ADAPTER")
    assert len(set(shown)) == 1
