"""The commands as people type them: what they print, what they refuse, and what they leave unimported."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from litlm.cli.main import COMMANDS, SPIN_COUNT, main, parse
from litlm.config import Config
from litlm.settings import FinetuneSettings, GenerateCommand, MethodSettings, SamplingSettings
from litlm.zoo import get_model, list_models

Run = Callable[..., tuple[int, str, str]]
NOWHERE = "OUT_DIR"  # stands for a folder of the test's own that is never made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: exit code, standard output and error."""

    def call(*argv: str | Path, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = 0
        try:
            main([str(arg) for arg in argv])
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _shell(*argv: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


# --- help and imports ----------------------------------------------------------------------------------------------


def test_overview(run: Run) -> None:
    for argv in ((), ("--help",), ("-h",), ("help",)):
        code, out, _ = run(*argv)
        assert code == 0
        for name, command in COMMANDS.items():
            assert f"  {name} " in out
            assert command.summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_explains_every_option(name: str, run: Run) -> None:
    import dataclasses

    import litlm.settings

    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: litlm {name}")
    for field in dataclasses.fields(getattr(litlm.settings, COMMANDS[name].settings)):
        assert f"--{field.name}" in out
    undescribed = [
        line for line, after in zip(out.splitlines(), [*out.splitlines()[1:], ""], strict=True)
        if line.startswith("  --") and len(line.split(None, 2)) < 3 and not after.startswith(" " * 20)
    ]  # fmt: skip
    assert not undescribed
    assert "<class" not in out
    assert ("example: litlm " + name in out) == bool(COMMANDS[name].example)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("finetune", {"model": None, "data.path": None, "data.packing": True, "data.max_len": "null",
                      "method.name": "lora", "method.r": 8, "method.targets": "(all-linear,)", "train.lr": 0.0002,
                      "train.micro_batch_size": 4, "train.optimizer_args": {}, "train.samples": (),
                      "resume": "null", "out_dir": "out/finetune"}),
        ("dpo", {"model": None, "data.path": None, "preference.loss": "dpo", "preference.beta": 0.1, "train.lr": 5e-05,
                 "train.micro_batch_size": 1, "out_dir": "out/dpo"}),
        ("pretrain", {"model": None, "data.path": None, "data.val_fraction": 0.005, "method.name": "full",
                      "train.lr": 0.0006, "train.batch_size": 32, "scale_residual": True, "tokenizer": "null"}),
        ("prepare", {"data": None, "tokenizer": None, "out_dir": None, "shard_tokens": 2**26, "text_key": "text"}),
        ("train-tokenizer", {"data": None, "out_dir": None, "vocab_size": 32768, "max_bytes": "null"}),
        ("plot", {"runs": None, "out": "runs.png", "metrics": "(loss, val_loss)", "smooth": 1, "x": "step"}),
        ("generate", {"model": None, "prompt": None, "max_new_tokens": 256, "temperature": 0.0, "quantize": "null"}),
    ],
)  # fmt: skip
def test_help_shows_defaults(name: str, defaults: dict[str, Any], run: Run) -> None:
    """None: the option is required. Every other option that takes a value shows what it is without it."""
    out = " ".join(run(name, "--help")[1].split())
    shown: dict[str, str] = {}
    for text in out.split(" --")[1:]:
        option = text.split()[0]
        found = re.search(r"\((required, )?type: .*?(?:default: (.*))?\)(?: |$)", text)
        if found:
            shown[option] = "required" if found[1] else found[2]
    assert None not in shown.values()
    assert {key: shown[key].replace("'", "") for key in defaults} == {
        key: "required" if value is None else str(value) for key, value in defaults.items()
    }
    assert {key for key, value in shown.items() if value == "required"} == {k for k, v in defaults.items() if v is None}


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import litlm", ()),
        ("import litlm; dir(litlm)", ()),
        ("from litlm.cli.main import main; main(['--help'])", ()),
        ("from litlm.cli.main import main; main(['--version'])", ()),
        ("from litlm.cli.main import parse; parse('finetune', ['m', '--data', 'd'])", ("jsonargparse",)),
        ("import litlm.cli.models as m, litlm.settings as s; m.models(s.ModelsCommand())", ()),
        ("import litlm.config, litlm.settings, litlm.families, litlm.zoo; litlm.families.list_families()", ()),
    ],
)
def test_what_is_not_imported(code: str, allowed: tuple[str, ...]) -> None:
    heavy = {"torch", "jsonargparse", "lightning", "transformers", "tokenizers", "safetensors", "matplotlib"} - {
        *allowed
    }
    done = _shell("-c", f"{code}\nimport sys\nprint('FOUND', sorted({heavy} & sys.modules.keys()))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "FOUND []"


def test_the_installed_command() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "litlm", "--version"], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.startswith("litlm 0.")


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "meant"), [("fintune", "finetune"), ("generat", "generate"), ("chats", "chat")])
def test_an_unknown_command_is_answered_with_the_closest(typed: str, meant: str, run: Run) -> None:
    code, out, err = run(typed, "--x")
    assert (code, out) == (2, "")
    assert f"no command {typed!r}. Did you mean {meant!r}?" in err
    assert "litlm --help" in run("qqqqqq")[2]


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (("finetune", "m", "--data", "d", "--train.lr", "x"), ("--train.lr must be a number or find, not 'x'",)),
        (("finetune", "m", "--data", "d", "--train.lr", "0"), ("lr=0.0 must be positive",)),
        (("finetune", "m", "--data", "d", "--train.epochs=2.5"), ("--train.epochs must be a whole number or null",)),
        (("finetune", "m", "--data", "d", "--train.schedule", "cosin"), ("must be cosine, linear, constant or wsd",)),
        (("finetune", "m", "--data", "d", "--train.optimizer_args", "3"), ("must be a mapping",)),
        (("finetune", "m", "--data", "d", "--overwrite=maybe"), ("--overwrite must be true or false, not 'maybe'",)),
        (
            ("finetune", "m", "--data", "d", "--method", "loar"),
            ("--method.name", "qlora, adapter or adapter_v2", "'loar'"),
        ),
        (
            ("finetune", "m", "--data", "d", "--method", "full", "--method.r", "4"),
            ("r=4 means nothing to method full",),
        ),
        (("finetune", "m", "--data", "d", "--method.quantize", "int8"), ("quantize='int8'", "it belongs to qlora")),
        (("finetune", "m", "--data", "d", "--method.freeze", "embed"), ("freeze=('embed',)", "it belongs to full")),
        (("finetune", "m", "--data", "d", "--resume", "auto", "--overwrite"), ("resume", "overwrite", "one of them")),
        (("finetune", "m", "--data", "d", "--train.on_spike", "rollback"), ("set save_interval",)),
        (("finetune", "m", "--data", "d", "--train.optimizer_in_backward"), ("set grad_clip to null",)),
        (("finetune", "m", "--data", "d", "--train.logger", "wandbb"), ("logger='wandbb'", "tensorboard")),
        (("finetune", "m", "--data", "d", "--train.max_time", "3 weeks"), ("90s, 30m, 2h or 1d",)),
        (("finetune", "m", "--data", "d", "--lr", "1"), ("--lr is unknown. Did you mean --train.lr?",)),
        (("finetune", "m", "--data", "d", "--train.batchsize=1"), ("Did you mean --train.batch_size?",)),
        (("finetune", "m", "n", "--data", "d"), ("'n' is not expected here",)),
        (("finetune", "m", "--config", "finetune/llama-3.2-1b-lor"), ("finetune/llama-3.2-1b-lora",)),
        (("finetune", tiny.folder, "--data", "alpacca", "--out_dir", NOWHERE), ("alpacca", "Did you mean alpaca")),
        (("dpo", "m", "--data", "d", "--preference", "kto"), ("--preference.loss must be dpo, ipo, cdpo or orpo",)),
        (("dpo", "m", "--data", "d", "--preference", "cdpo"), ("label_smoothing above 0",)),
        (("dpo", "m", "--data", "d", "--preference.label_smoothing", "0.1"), ("label_smoothing=0.1", "use cdpo")),
        (("dpo", "m"), ("data.path",)),
        (("pretrain", "m"), ("data.path",)),
        (("pretrain", "m", "--data", "d", "--method", "lora"), ("method=lora is for finetuning",)),
        (
            ("pretrain", "m", "--data", "d", "--from_weights", "--model_args", "{n_layer: 3}"),
            ("model_args", "from_weights"),
        ),
        (("pretrain", tiny.folder, "--data", "/no/such/folder", "--out_dir", NOWHERE), ("/no/such/folder",)),
        (("prepare", "d"), ("tokenizer, out_dir",)),
        (("prepare", "d", "--tokenizer", "t", "--out_dir", "o", "--workers", "0"), ("workers=0",)),
        (("train-tokenizer", "d", "--out_dir", "o", "--vocab_size", "10"), ("vocab_size=10", "at least 259")),
        (("plot",), ("runs",)),
        (("plot", "/no/run"), ("/no/run does not exist",)),
        (("plot", "a", "--x", "time"), ("--x must be step, tokens or seconds",)),
        (("plot", "a", "--out", "a.pdf"), ("out=a.pdf", ".png")),
        (("finetune", "m", "--data", "d", "--wrong", "1"), ("--wrong",)),
        (("finetune", "m", "--data", "d", "--config", "none.yaml"), ("'none.yaml' is neither a file nor a recipe",)),
        (("finetune", "m"), ("data.path",)),
        (("finetune", "--data", "d"), ("model",)),
        (("finetune", tiny.folder, "--data", "/no/such/a.jsonl", "--out_dir", NOWHERE), ("/no/such/a.jsonl does not",)),
        (("finetune", "m", "--data", "d", "--out_dir", NOWHERE), ("'d' is neither a file nor a known dataset",)),
        (("finetune", "m", "--data", "alpaca", "--out_dir", NOWHERE), ("'m' does not exist",)),
        (("generate", "m"), ("prompt",)),
        (("generate", "smolm2-135m-instruct", "--prompt", "a"), ("smollm2-135m-instruct",)),
        (("generate", "m", "--prompt", "a", "--temperature", "-1", "--top_k", "0"), ("temperature=-1.0", "top_k=0")),
        (("generate", "m", "--prompt", "a", "--stop", ""), ("empty text",)),
        (("generate", tiny.folder, "--prompt", "a", "--device", "gpu"), ("device='gpu'",)),
        (("generate", tiny.folder, "--prompt", "a", "--dtype", "int3"), ("dtype='int3'",)),
        (("generate", "none", "--prompt", "a", "--dtype", "int3"), ("dtype='int3'",)),
        (("generate", "none", "--prompt", "a", "--style", "chatm"), ("Unknown prompt style 'chatm'",)),
        (("generate", "none", "--prompt", "a", "--adapter", "/no/adapter"), ("/no/adapter does not exist",)),
        (("chat", "none", "--style", "chatm"), ("Unknown prompt style 'chatm'",)),
        (("generate", tiny.folder, "--prompt", ""), ("the prompt is empty",)),
        (("generate", tiny.folder, "--prompt", "a " * 300), ("the model's context is 256",)),
        (("generate", tiny.folder, "--prompt", "a", "--adapter", "/no/adapter"), ("/no/adapter does not exist",)),
        (("chat", "smollm3-instruct"), ("smollm3-instruct",)),
        (("merge", "/no/adapter", "--out_dir", "x"), ("/no/adapter does not exist",)),
        (("merge", "/no/adapter", "--base", "none", "--out_dir", "x"), ("/no/adapter does not exist",)),
        (("merge", tiny.folder, "--base", "none", "--out_dir", "/proc/x"), ("out_dir='/proc/x' can't be written to",)),
        (("quickstart", "--model", "none", "--out_dir", "/proc/x"), ("out_dir='/proc/x' can't be written to",)),
        (("download", "none", "--out_dir", "/proc/x"), ("out_dir='/proc/x' can't be written to",)),
        (("describe", "lama-3.1-8b"), ("llama-3.1-8b",)),
        (("describe", "/"), ("config.json",)),
        (("models", "nothing-like-it"), ("nothing-like-it",)),
        (("models", "--family", "bert"), ("bert",)),
        (("download", "smolm2-135m"), ("smollm2-135m",)),
    ],
    ids=lambda value: None if isinstance(value[0], str) and " " in value[0] else "-".join(map(str, value))[:50],
)
def test_mistakes_are_answered_in_a_few_lines(
    argv: tuple[Any, ...], texts: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    out_dir = tmp_path / "run"
    code, out, err = run(*(arg() if callable(arg) else out_dir if arg == NOWHERE else arg for arg in argv))
    assert code in (1, 2)
    assert out == ""
    for text in texts:
        assert text in err
    assert "Traceback" not in err
    assert [word for word in ("<class", "typing.", "Parser key") if word in err] == []
    assert len(err.splitlines()) <= 6
    assert not out_dir.exists()


def test_a_traceback_on_request() -> None:
    argv = ("-m", "litlm", "describe", "no-such-model")
    plain, debug = _shell(*argv), _shell(*argv, LITLM_DEBUG="1")
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("command", ["models", "describe smollm2-135m", "chat --help"])
def test_a_closed_pipe_is_no_error(command: str) -> None:
    litlm = f"{sys.executable} -m litlm"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {litlm} {command} | true"], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["models", "completion bash", "chat --help", "--help", "--version"])
def test_a_full_disk_under_standard_output_is_one_line(command: str, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "litlm", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, timeout=600,
        )  # fmt: skip
    assert done.returncode == 1
    where = "" if unbuffered else "standard output: "
    assert done.stderr in (
        f"litlm: {where}No space left on device (LITLM_DEBUG=1 shows a traceback)\n",
        "litlm: No space left on device (LITLM_DEBUG=1 shows a traceback)\n",
    )


# --- options -------------------------------------------------------------------------------------------------------


def test_the_model_first_or_by_its_flag() -> None:
    for argv in (["m", "--prompt", "p"], ["--model", "m", "--prompt", "p"], ["--prompt=p", "--model=m"]):
        assert parse("generate", argv) == GenerateCommand(model="m", prompt="p")


@pytest.mark.parametrize(
    "text", ["1", "1e3", "[1, 2]", "a: b", "null", "true", "{}", "# x", "-", "", "- a", "*", "é\n🙂", "a=b"]
)
def test_prompts_are_taken_as_typed(text: str) -> None:
    assert parse("generate", ["m", "--prompt", text]).prompt == text
    assert parse("generate", ["m", f"--prompt={text}"]).prompt == text


@pytest.mark.parametrize(
    "text", ["User:", "###", "1", "null", "a,b", "\n\n", " ", "é 🙂 \"q\" 'p' \\", "\u2028", "{a}", "[", "- x"]
)
def test_stop_texts_are_taken_as_typed(text: str) -> None:
    assert parse("generate", ["m", "--prompt", "p", "--stop", text]).stop == (text,)
    assert parse("generate", ["m", "--prompt", "p", f"--stop={text}", "--stop", "b"]).stop == (text, "b")


def test_lists_switches_and_groups() -> None:
    assert parse("generate", ["m", "--prompt", "p", "--stop", "[a, b]"]).stop == ("a", "b")
    switched = parse("generate", ["m", "--chat", "--prompt", "p", "--ignore_eos"])
    assert (switched.chat, switched.ignore_eos) == (True, True)
    switched = parse("generate", ["m", "--chat", "false", "--prompt", "p", "--ignore_eos=true"])
    assert (switched.chat, switched.ignore_eos) == (False, True)
    short = parse(
        "finetune", ["m", "--data", "d", "--method=lora", "--method.targets", "q_proj", "--method.targets=v_proj"]
    )
    assert short.data.path == ("d",)
    assert short.method.targets == ("q_proj", "v_proj")
    assert parse("finetune", ["m", "--data.path=d"]) == parse("finetune", ["m", "--data=d"])
    assert parse("finetune", ["m", "--data", "d", "--train.grad_clip", "null"]).train.grad_clip is None


def test_the_options_of_training() -> None:
    assert parse("finetune", ["m", "--data", "d", "--method", "qlora"]).method == MethodSettings(name="qlora")
    assert parse("finetune", ["m", "--data", "d", "--auto"]).train.micro_batch_size == "auto"
    assert parse("finetune", ["m", "--data", "d", "--resume", "auto"]).resume == "auto"
    assert parse("finetune", ["m", "--data", "d", "--overwrite"]).overwrite is True
    assert parse("finetune", ["m", "--data", "a", "--data", "b"]).data.path == ("a", "b")
    train = parse(
        "finetune", ["m", "--data=d", "--train.lr=find", "--train.samples", "Once", "--train.samples=1, 2"]
    ).train
    assert (train.lr, train.samples) == ("find", ("Once", "1, 2"))
    betas = parse("finetune", ["m", "--data=d", "--train.optimizer_args", "{betas: [0.8, 0.9]}"]).train.optimizer_args
    assert betas == {"betas": [0.8, 0.9]}
    dashes = ["m", "--data", "d", "--out-dir", "o", "--train.max-steps", "3"]
    assert parse("finetune", dashes) == parse(
        "finetune", [arg.replace("-dir", "_dir").replace("max-", "max_") for arg in dashes]
    )
    assert parse("dpo", ["m", "--data", "d", "--preference", "ipo", "--method=full"]).preference.loss == "ipo"


def test_several_sources_and_runs() -> None:
    assert parse("pretrain", ["m", "--data", "a"]).data.path == ("a",)
    assert parse("pretrain", ["m", "--data", "a", "--data=b c"]).data.path == ("a", "b c")
    assert parse("pretrain", ["m", "--data", "[a, b]", "--data.val_path", "v"]).data.val_path == ("v",)
    assert parse("pretrain", ["m", "--data", "a", "--model_args", "{n_layer: 2, n_embd: 64}"]).model_args == {
        "n_layer": 2,
        "n_embd": 64,
    }
    assert parse("prepare", ["a", "b", "--tokenizer", "t", "--out_dir", "o"]).data == ("a", "b")
    assert parse("prepare", ["a", "--tokenizer", "t", "--out_dir", "o", "--data", "b"]).data == ("a", "b")
    assert parse("train-tokenizer", ["a", "b", "c", "--out_dir", "o"]).data == ("a", "b", "c")
    plot = parse("plot", ["out/a", "out/b", "--metrics", "loss", "--metrics", "lr", "--smooth", "5"])
    assert (plot.runs, plot.metrics, plot.smooth) == (("out/a", "out/b"), ("loss", "lr"), 5)


@pytest.mark.parametrize(
    ("command", "short", "whole"),
    [
        ("finetune", "model: m\ndata: d.jsonl\nmethod: qlora\n",
         "model: m\ndata: {path: d.jsonl}\nmethod: {name: qlora}\n"),
        ("finetune", "model: m\ndata: d\nmethod: {targets: q_proj}\ntrain: {samples: Once}\nnew_tokens: <a>\n",
         "model: m\ndata: {path: d}\nmethod: {targets: [q_proj]}\ntrain: {samples: [Once]}\nnew_tokens: [<a>]\n"),
        ("pretrain", "model: m\ndata: texts\n", "model: m\ndata: {path: [texts]}\n"),
        ("pretrain", "model: m\ndata: {path: texts, max_len: 9}\n", "model: m\ndata: {path: [texts], max_len: 9}\n"),
        ("pretrain", "model: m\ndata: [a, b]\n", "model: m\ndata: {path: [a, b]}\n"),
        ("dpo", "model: m\ndata: d\npreference: orpo\n", "model: m\ndata: {path: d}\npreference: {loss: orpo}\n"),
        ("plot", "runs: out/a\nmetrics: lr\n", "runs: [out/a]\nmetrics: [lr]\n"),
        ("prepare", "data: a\ntokenizer: t\nout_dir: o\n", "data: [a]\ntokenizer: t\nout_dir: o\n"),
    ],
)  # fmt: skip
def test_short_forms_in_yaml(command: str, short: str, whole: str, tmp_path: Path) -> None:
    paths = [tmp_path / "short.yaml", tmp_path / "whole.yaml"]
    for path, text in zip(paths, (short, whole), strict=True):
        path.write_text(text)
    one, other = (parse(command, ["--config", str(path)]) for path in paths)
    assert one == other


def test_flags_override_the_short_forms_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ndata: d.jsonl\nmethod: qlora\ntrain: {samples: [a, b]}\n")
    argv = ["--config", str(path), "--data", "e", "--method=lora", "--train.samples", "c"]
    settings = parse("finetune", argv)
    assert (settings.data.path, settings.method.name, settings.train.samples) == (("e",), "lora", ("c",))
    assert parse("finetune", [*argv[:2], "--method.r", "4"]).method == MethodSettings(name="qlora", r=4)


def test_yaml_and_flags_that_override_it(tmp_path: Path) -> None:
    import yaml

    content = {
        "model": "m", "data": {"path": "d", "max_len": 77}, "train": {"lr": 0.5, "epochs": 3}, "seed": 9,
        "method": {"r": 3, "targets": ["q_proj", "up_proj"]},
    }  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    settings = parse("finetune", ["--config", str(path)])
    assert isinstance(settings, FinetuneSettings)
    assert (settings.model, settings.data.max_len, settings.train.lr, settings.train.epochs) == ("m", 77, 0.5, 3)
    assert settings.method.targets == ("q_proj", "up_proj")
    for argv in ([f"--config={path}"], ["--config", str(path)]):
        flags = ["other", "--train.lr", "0.1", "--data", "e", "--method.r=5"]
        assert parse("finetune", [*flags, *argv]) == parse("finetune", ["other", *argv, *flags[1:]])
    changed = parse("finetune", [*flags, *argv])
    assert (changed.model, changed.data.path, changed.data.max_len, changed.seed) == ("other", ("e",), 77, 9)
    assert (changed.train.lr, changed.train.epochs, changed.method.r) == (0.1, 3, 5)


def test_mistakes_in_yaml_are_named(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "c.yaml"
    for text, named in (("model: m\nlearning: 3\n", "learning"), ("train: {lr: x}\n", "lr"), ("model: [\n", "line 2")):
        path.write_text(text)
        code, _, err = run("finetune", "--config", path, "--data", "d", "--model", "m")
        assert code == 2
        assert named in err
        assert "Traceback" not in err


# --- commands ------------------------------------------------------------------------------------------------------


def test_generate(run: Run) -> None:
    llm = tiny.shared()
    code, out, err = run(
        "generate", tiny.folder(), "--prompt", "The quick", "--max_new_tokens", "12", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert out == "The quick" + llm.generate("The quick", max_new_tokens=12) + "\n"
    sampled = ["--temperature", "1.2", "--seed", "4", "--top_k", "20", "--stop", "a"]
    _, out, _ = run("generate", tiny.folder(), "--prompt=The quick", "--max_new_tokens=12", "--device=cpu", *sampled)
    assert out == "The quick" + llm.generate(
        "The quick", max_new_tokens=12, temperature=1.2, seed=4, top_k=20, stop="a"
    ) + "\n"  # fmt: skip


def test_generate_from_standard_input_and_chat(run: Run) -> None:
    llm = tiny.shared()
    _, out, _ = run(
        "generate", tiny.folder(), "--prompt", "-", "--max_new_tokens=9", "--device=cpu", stdin="lazy dog\n"
    )
    assert out == "lazy dog\n" + llm.generate("lazy dog\n", max_new_tokens=9) + "\n"
    _, out, _ = run("generate", tiny.folder(), "--prompt=-", "--chat", "--max_new_tokens=9", "--device=cpu", stdin="hi")
    assert out == llm.chat([{"role": "user", "content": "hi"}], max_new_tokens=9) + "\n"


def test_generate_says_that_an_answer_was_cut(run: Run) -> None:
    argv = ["generate", tiny.folder(), "--prompt=hi", "--device=cpu", "--ignore_eos"]
    assert run(*argv, "--chat", "--max_new_tokens=5")[2] == (
        "litlm: the answer was cut after 5 tokens; raise --max_new_tokens\n"
    )
    assert "the context of 256 tokens is full" in run(*argv, "--chat", "--max_new_tokens=500")[2]
    assert run(*argv, "--max_new_tokens=5")[2] == "", "a continuation has no end"


def test_a_style_whose_tokens_the_tokenizer_lacks_is_pointed_out(run: Run, tmp_path: Path) -> None:
    note = "prompt style 'llama3' writes <|begin_of_text|>, <|start_header_id|>, <|end_header_id|>, <|eot_id|>, which"
    argv = ["generate", tiny.folder(), "--prompt=hi", "--device=cpu", "--max_new_tokens=1"]
    assert run(*argv, "--style=llama3")[2].count(note) == 1
    assert "prompt style" not in run(*argv, "--style=chatml")[2]
    assert run("chat", *argv[1:2], *argv[3:], "--style=llama3")[2].count(note) == 1
    data = _lines(tmp_path / "d.jsonl", [{"instruction": f"{i}?", "output": "yes"} for i in range(6)])
    argv = ["finetune", tiny.folder(), "--data", data, "--device=cpu", "--train.max_steps=1", "--data.style=llama3"]
    assert "".join(run(*argv, "--out_dir", tmp_path / "a")[1:]).count(note) == 1
    added = [f"--new_tokens=<|{name}|>" for name in ("begin_of_text", "start_header_id", "end_header_id", "eot_id")]
    assert "prompt style" not in "".join(run(*argv, *added, "--out_dir", tmp_path / "b")[1:])


def test_data_are_looked_at_before_the_model_loads(run: Run, tmp_path: Path) -> None:
    broken, answered = tmp_path / "broken.jsonl", {"prompt": "a", "completion": "b"}
    broken.write_text("{\n" + json.dumps(answered) + "\n")
    asked = _lines(tmp_path / "asked.jsonl", [{"prompt": "a"}])
    plain = _lines(tmp_path / "plain.jsonl", [answered])
    for command, data, text in (
        ("finetune", broken, "broken.jsonl, line 1: not valid JSON"),
        ("finetune", asked, "asked.jsonl, line 1: "),
        ("dpo", broken, "broken.jsonl, line 1: not valid JSON"),
        ("dpo", plain, "plain.jsonl, line 1: has the keys completion, prompt"),
    ):
        code, _, err = run(command, "none", "--data", data, "--out_dir", tmp_path / "o", "--device=cpu")
        assert code == 1
        assert text in err


def test_a_stray_error_of_the_system_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import litlm.cli.models

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file")

    monkeypatch.setattr(litlm.cli.models, "models", fail)
    assert run("models") == (1, "", "litlm: /some/file: permission denied (LITLM_DEBUG=1 shows a traceback)\n")
    monkeypatch.setenv("LITLM_DEBUG", "1")
    with pytest.raises(PermissionError):
        run("models")


def _asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """What `LLM.chat` is asked; its answers are numbered."""
    from litlm.llm import LLM

    asked: list[list[dict[str, str]]] = []

    class Answer:
        token_ids, finish_reason = (7,), "stop"

        def __iter__(self) -> Iterator[str]:
            return iter(["answer ", str(len(asked))])

    def chat(self: LLM, messages: list[dict[str, str]], settings: SamplingSettings, **options: Any) -> Answer:
        assert options["stream"]
        asked.append(list(messages))
        return Answer()

    monkeypatch.setattr(LLM, "chat", chat)
    return asked


def _roles(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(m["role"][0], m["content"]) for m in messages]


def test_chat_remembers_until_reset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked(monkeypatch)
    stdin = (
        "one\n\ntwo\n/reset\nthree\\\nmore\n/nonsense\n/help\n/system\n/system You rhyme.\nfour\n/system\n/exit\nfive\n"
    )
    code, out, err = run("chat", tiny.folder(), "--device", "cpu", stdin=stdin)
    assert code == 1, "one line was wrong"
    assert [_roles(m) for m in asked] == [
        [("u", "one")],
        [("u", "one"), ("a", "answer 1"), ("u", "two")],
        [("u", "three\nmore")],
        [("s", "You rhyme."), ("u", "four")],
    ]
    for text in ("answer 1\n", "answer 4\n", "is forgotten.", "/reset", "a new conversation", "You rhyme.",
                 "that of the chat template"):  # fmt: skip
        assert text in out
    assert "no command /nonsense" in err
    assert "Loading" in err
    assert "context 256 tokens" in err


def test_chat_with_a_system_prompt_from_the_start_and_the_end_of_input(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _asked(monkeypatch)
    code, _, _ = run("chat", tiny.folder(), "--system", "Be.", "--device", "cpu", stdin="a\n/reset\nb")
    assert code == 0
    assert [_roles(m) for m in asked] == [[("s", "Be."), ("u", "a")], [("s", "Be."), ("u", "b")]]


def test_chat_forgets_the_oldest_when_the_context_is_full(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _asked(monkeypatch)
    lines = [f"{i} " + "quick brown fox " * 4 for i in range(12)]
    code, _, err = run("chat", tiny.folder(), "--device", "cpu", "--max_new_tokens", "40", stdin="\n".join(lines))
    assert code == 0
    llm = tiny.shared()
    for i, messages in enumerate(asked):
        assert llm.style.count_tokens(messages, llm.tokenizer) <= 256 - 40
        assert messages[-1]["content"] == lines[i].strip()
        assert messages[0]["role"] == "user"
    assert len(asked[-1]) < 2 * len(lines) - 1
    assert "litlm:" not in err


def test_chat_survives_a_message_that_is_too_long(run: Run) -> None:
    code, out, err = run(
        "chat", tiny.folder(), "--device", "cpu", "--max_new_tokens", "5", stdin="a " * 400 + "\nhello\n"
    )
    assert code == 1
    assert "the model's context is 256" in err
    expected = tiny.shared().chat([{"role": "user", "content": "hello"}], max_new_tokens=5)
    assert expected in out


def test_chat_through_a_real_pipe() -> None:
    argv = ("-m", "litlm", "chat", tiny.folder(), "--device", "cpu", "--max_new_tokens", "6")
    done = _shell(*argv, stdin="hello\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert tiny.shared().chat([{"role": "user", "content": "hello"}], max_new_tokens=6) in done.stdout
    assert "Traceback" not in done.stderr


def test_models(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    for name in list_models():
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{name} "))
        assert get_model(name).hub_id in line
        assert f"{Config.from_name(name).max_seq_len:,}" in line
    _, out, _ = run("models", "SmolLM2")
    assert {line.split()[0] for line in out.splitlines() if "HuggingFaceTB" in line} == {
        name for name in list_models() if "smollm2" in name
    }  # fmt: skip
    assert "134.5" not in out
    assert "135M" in out
    _, out, _ = run("models", "--family", "qwen3")
    assert all("Qwen/" in line for line in out.splitlines() if "apache" in line)


def test_describe(run: Run, smollm2_gguf: Path) -> None:
    code, out, _ = run("describe", "smollm2-135m-instruct")
    assert code == 0
    for text in (
        "134,515,008",
        "30 of width 576",
        "9 heads of 64, 3",
        "49,152",
        "tied",
        "8,192",
        "theta 100,000",
        "nothing",
    ):
        assert text in out
    _, gguf, _ = run("describe", smollm2_gguf)
    assert gguf.splitlines()[0].strip() == str(smollm2_gguf)
    assert [line.split() for line in gguf.splitlines()[1:]] == [line.split() for line in out.splitlines()[1:]]
    _, out, _ = run("describe", tiny.folder("gpt_neox"))
    for text in ("gpt_neox", "parallel", "norm.kind=layer", "mlp.kind=plain", "on 0.25 of each head"):
        assert text in out
    _, out, _ = run("describe", "llama-3.1-8b")
    assert "llama3 scaling by 8" in out
    assert "8,030,261,248" in out


def test_download_of_a_local_path(run: Run, tmp_path: Path) -> None:
    code, out, err = run("download", tiny.folder())
    assert code == 0
    assert out.strip() == str(tiny.folder())
    assert "already complete" in err
    code, out, _ = run("download", tiny.folder(), "--out_dir", tmp_path / "copy")
    assert out.strip() == str(tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {p.name for p in tiny.folder().iterdir()}


def test_sampling_that_has_no_effect_is_pointed_out(run: Run) -> None:
    flags = ("generate", tiny.folder(), "--prompt", "a", "--max_new_tokens", "2", "--device", "cpu", "--top_p", "0.9")
    code, _, err = run(*flags, "--seed", "3")
    assert code == 0
    assert "litlm: top_p=0.9, seed=3 without effect: temperature=0 is greedy" in err
    assert "without effect" not in run(*flags, "--temperature", "0.7")[2]


def test_finetune_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"{i}?", "output": "yes"}) + "\n" for i in range(4)))
    code, out, err = run(
        "finetune", tiny.folder(), "--data", data, "--out_dir", tmp_path / "o", "--train.max_steps", "2",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert f"litlm chat {tiny.folder()} --adapter {tmp_path}/o/final" in out
    assert f"litlm merge {tmp_path}/o/final" in out
    assert "step 2 100%" in err
    code, out, _ = run("merge", tmp_path / "o" / "final", "--out_dir", tmp_path / "o" / "merged")
    assert code == 0
    code, out, _ = run(
        "finetune", tiny.folder(), "--data", data, "--out_dir", tmp_path / "o", "--train.max_steps", "1",
        "--device", "cpu", "--overwrite",
    )  # fmt: skip
    assert f"litlm merge {tmp_path}/o/final --out_dir {tmp_path}/o/merged2\n" in out  # merged/ is taken
    code, out, _ = run("merge", tmp_path / "o" / "final", "--out_dir", tmp_path / "m")
    assert code == 0
    code, again, _ = run(
        "generate", tmp_path / "m", "--prompt", "0?", "--chat", "--max_new_tokens", "4", "--device", "cpu"
    )
    assert code == 0
    code, adapted, _ = run(
        "generate", tiny.folder(), "--adapter", tmp_path / "o" / "final", "--prompt", "0?", "--chat",
        "--max_new_tokens", "4", "--device", "cpu",
    )  # fmt: skip
    assert again == adapted


def _lines(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_run_is_resumed_and_never_overwritten_unasked(run: Run, tmp_path: Path) -> None:
    data = _lines(tmp_path / "d.jsonl", [{"instruction": f"{i}?", "output": "yes"} for i in range(6)])
    argv = ["finetune", tiny.folder(), "--data", data, "--out_dir", tmp_path / "o", "--device", "cpu"]
    argv += ["--train.batch_size", "2", "--train.save_interval", "2", "--data.val_fraction", "0"]
    assert run(*argv, "--train.max_steps", "2", "--resume", "auto")[0] == 0  # there is nothing yet: it starts
    code, out, err = run(*argv, "--train.max_steps", "4")
    assert (code, out) == (1, "")
    for text in ("already holds a run", "--resume auto", "--overwrite"):
        assert text in err
    code, _, err = run(*argv, "--train.max_steps", "4", "--resume", "auto")
    assert code == 0
    assert "Going on from step-000002" in err
    assert [row.split(",")[0] for row in (tmp_path / "o" / "metrics.csv").read_text().split()[1:]] == list("1234")
    code, _, err = run(*argv, "--train.max_steps", "4", "--resume", tmp_path / "o" / "step-000009")
    assert code == 1
    assert "there: step-000002, step-000004" in err
    assert run(*argv, "--train.max_steps", "1", "--overwrite")[0] == 0
    assert sorted(path.name for path in (tmp_path / "o").glob("step-*")) == ["step-000001"]


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (("--auto",), ("micro_batch_size=auto", "on a CPU give a number")),
        (("--train.optimizer", "adamv"), ("optimizer='adamv' is unknown", "did you mean adam")),
        (("--train.optimizer_args", "{beta: 3}"), ("beta", "betas, eps")),
        (("--method.targets", "querry"), ("'querry'", "q_proj, k_proj")),
        (("--method", "full", "--method.freeze", "wte"), ("freeze='wte'", "embed.weight")),
        (("--data.style", "alpacca"), ("alpacca", "'alpaca'")),
        (("--train.micro_batch_size=1", "--train.optimizer_in_backward", "--train.grad_clip=null",
          "--data.packing=false"), ("one micro batch a step",)),
    ],
)  # fmt: skip
def test_mistakes_that_show_when_the_model_is_there(
    flags: tuple[str, ...], texts: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    data = _lines(tmp_path / "d.jsonl", [{"instruction": f"{i}?", "output": "yes"} for i in range(6)])
    argv = ["finetune", tiny.folder(), "--data", data, "--out_dir", tmp_path / "o", "--device", "cpu"]
    code, out, err = run(*argv, *flags)
    assert (code, out) == (1, "")
    for text in texts:
        assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "o" / "final").exists()


def test_from_text_to_a_model_that_writes(run: Run, tmp_path: Path) -> None:
    """train-tokenizer, prepare, pretrain, plot, generate, each with what the one before left."""
    texts = [
        _lines(tmp_path / f"{n}.jsonl", [{"text": f"The quick brown fox number {i}. " * 9} for i in range(20)])
        for n in "ab"
    ]
    code, out, err = run("train-tokenizer", *texts, "--vocab_size", "280", "--out_dir", tmp_path / "tokenizer")
    assert code == 0, err
    assert "280 tokens" in out
    prepare = [
        "prepare",
        *texts,
        "--tokenizer",
        tmp_path / "tokenizer",
        "--out_dir",
        tmp_path / "tokens",
        "--workers",
        "1",
    ]
    code, out, err = run(*prepare)
    assert code == 0, err
    assert "40 documents" in out
    assert f"litlm pretrain MODEL --data.path {tmp_path}/tokens" in out
    for lr in ("1e-3", "1e-2"):
        code, out, err = run(
            "pretrain", tiny.folder(), "--data", tmp_path / "tokens", "--model_args", "{n_layer: 1}",
            "--data.max_len=32", "--out_dir", tmp_path / lr, "--train.max_steps=3", "--train.batch_size=4",
            "--train.lr", lr, "--device=cpu",
        )  # fmt: skip
        assert code == 0, err
        assert f"litlm generate {tmp_path}/{lr}/final" in out
    code, out, err = run("plot", tmp_path / "1e-3", tmp_path / "1e-2", "--out", tmp_path / "runs.svg")
    assert code == 0, err
    assert "lr" in out
    assert (tmp_path / "runs.svg").stat().st_size > 1000
    code, out, _ = run("generate", tmp_path / "1e-3" / "final", "--prompt", "The", "--max_new_tokens=3", "--device=cpu")
    assert code == 0
    assert out.startswith("The")
    code, out, _ = run("describe", tmp_path / "1e-3" / "final")
    assert "1 of width 48" in out


def test_dpo_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    data = _lines(tmp_path / "d.jsonl", [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(4)])
    code, out, err = run(
        "dpo", tiny.folder(), "--data", data, "--out_dir", tmp_path / "o", "--train.max_steps=2", "--device=cpu"
    )
    assert code == 0, err
    assert f"litlm chat {tiny.folder()} --adapter {tmp_path}/o/final" in out
    header = (tmp_path / "o" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"rewards_chosen", "rewards_rejected", "margin", "accuracy"} <= set(header)
    wrong = _lines(tmp_path / "w.jsonl", [{"instruction": "a", "output": "b"}])
    code, _, err = run("dpo", tiny.folder(), "--data", wrong, "--out_dir", tmp_path / "p", "--device=cpu")
    assert code == 1
    assert "needed are chosen and rejected" in err


def test_quickstart_end_to_end_on_a_tiny_model(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "quickstart", "--model", tiny.folder(), "--out_dir", tmp_path / "q", "--train.max_steps", "2",
        "--train.epochs", "null",
    )  # fmt: skip
    assert code == 0, err
    assert "2 steps in" in out
    assert (tmp_path / "q" / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "q" / "run" / "final" / "adapter_model.safetensors").is_file()


def test_a_command_goes_on_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """A reader that has left (`| head`) ends commands whose output is all, and none that writes to disk."""
    code = """
import sys, types
from litlm.cli import main as cli
def work(settings):
    for i in range(20_000):
        print("said", i)
        print("said", i, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
sys.modules["work"] = types.SimpleNamespace(work=work)
cli.COMMANDS = {name: cli.Command(c.settings, "work:work", "") for name, c in cli.COMMANDS.items()}
cli.parse = lambda name, argv: None
cli.main([sys.argv[2]])
"""
    for name, goes_on in (("finetune", True), ("merge", True), ("models", False)):
        file = tmp_path / name
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(file), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0 or not goes_on
        assert file.exists() == goes_on
    process = subprocess.Popen([sys.executable, "-m", "litlm", "help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_asleep_unless_the_user_says_otherwise(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--version"])
    found = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    assert found == (given or {"GOMP_SPINCOUNT": SPIN_COUNT})
