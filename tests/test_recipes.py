"""Every recipe in config_hub says what it says: it parses, repeats no default, and names what exists. Some are run."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from litlm.cli.main import COMMANDS, main, parse
from litlm.config import Config
from litlm.data.named import find_dataset
from litlm.train.files import settings_text
from litlm.zoo import get_model, list_models

HUB = Path(__file__).parent.parent / "config_hub"
RECIPES = sorted(path.relative_to(HUB).with_suffix("").as_posix() for path in HUB.rglob("*.yaml"))
KINDS = {"finetune": "sft", "dpo": "preference", "pretrain": "text"}


def _content(name: str) -> dict[str, Any]:
    return yaml.safe_load((HUB / f"{name}.yaml").read_text(encoding="utf-8"))


def _command(name: str) -> str:
    return name.split("/")[0]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names -> values. What a setting takes as a whole (model_args) is one."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        whole = not isinstance(value, dict) or key in ("model_args", "optimizer_args")
        found |= {prefix + key: value} if whole else _leaves(value, f"{prefix}{key}.")
    return found


@cache
def _defaults(command: str) -> dict[str, Any]:
    return _leaves(dataclasses.asdict(parse(command, ["a-model", "--data", "some-data"])))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_there_are_recipes_for_each_command_that_trains() -> None:
    assert {_command(name) for name in RECIPES} == set(KINDS)
    methods = {parse("finetune", ["--config", name]).method.name for name in RECIPES if name.startswith("finetune/ll")}
    assert methods == {"full", "lora", "qlora", "adapter", "adapter_v2"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, tmp_path: Path) -> None:
    command, stem = _command(name), name.split("/")[1]
    settings = parse(command, ["--config", name])
    got = {key: _plain(value) for key, value in _leaves(dataclasses.asdict(settings)).items()}

    # Each line arrives, and says something that would not be so without it.
    content = _content(name)
    for group, leaf in COMMANDS[command].short:
        if isinstance(content.get(group), str):
            content[group] = {leaf: content[group]}
    for key, value in _leaves(content).items():
        expected = [value] if isinstance(got[key], list) and isinstance(value, str) else value
        assert got[key] == expected, key
        assert got[key] != _plain(_defaults(command)[key]), f"{key}={value} is the default; leave it out"
    other = {key for key in got if got[key] != _plain(_defaults(command)[key])}
    if got.get("method.name") == "qlora" and got["method.quantize"] == "nf4":  # what qlora means where nothing is said
        other.discard("method.quantize")
    assert other == _leaves(content).keys()

    # Names of models, data and files.
    assert settings.model in list_models()
    assert stem.startswith(settings.model + "-")
    assert settings.out_dir == f"out/{stem}"
    paths = (settings.data.path,) if isinstance(settings.data.path, str) else settings.data.path
    for path in paths:
        dataset = find_dataset(path)
        assert dataset is not None
        assert dataset.task == KINDS[command]
        assert not dataset.gated
    if command != "pretrain":
        assert settings.method.name in stem or settings.method.dora or settings.method.rslora
    if command == "dpo":
        assert f"-{settings.preference.loss}-" in stem
    limits = ("max_steps", "max_tokens", "max_time", "epochs")
    assert any(getattr(settings.train, key) is not None for key in limits), "says how long to train"
    size = settings.train.micro_batch_size
    assert settings.train.batch_size % size == 0

    # What a run writes down is the same recipe.
    whole = tmp_path / "settings.yaml"
    whole.write_text(settings_text(settings), encoding="utf-8")
    assert parse(command, ["--config", str(whole)]) == settings


def _packed_weights(config: Config) -> int:
    """Weights in matrices inside the layers: what 4 bits are for. Counted on the model itself."""
    import torch

    from litlm.model import GPT

    with torch.device("meta"):
        model = GPT(config)
    return sum(
        p.numel() for name, p in model.layers.named_parameters()
        if name.endswith("proj.weight") or re.search(r"experts\..*(up|gate|down)", name) and p.ndim == 3
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_comment_says(name: str) -> None:
    comment = [line[2:] for line in (HUB / f"{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    text = " ".join(comment)
    content = _content(name)
    assert f"litlm {_command(name)} --config {name}" in text
    info = get_model(content["model"])
    assert (f"Gated: agree to the license of {info.hub_id} " in text) == info.gated
    said = re.search(r"take ([\d.]+) GB", text)
    if said is None:
        assert _command(name) == "pretrain" or Config.from_name(info.name).n_parameters() < 2e8
        return
    config = Config.from_name(info.name)
    n = config.n_parameters()
    embeddings = config.vocab_size * config.n_embd * (1 if config.tie_embeddings else 2)
    method = content.get("method", {})
    method = method if isinstance(method, str) else method.get("name", "lora")
    if method == "full":
        eight_bits = content["train"].get("optimizer") == "adamw8bit"
        expected = 12 * n + 6 * embeddings if eight_bits else 18 * n
    elif method == "qlora":
        packed = _packed_weights(config)
        expected = 2 * (n - packed) + packed * (4 / 8 + 4 / 64)
    else:
        expected = 2 * n
        assert content["train"]["precision"] == "bf16-true"
    assert float(said[1]) == pytest.approx(expected / 1e9, rel=0.006, abs=0.051)


RUN = {
    "finetune/smollm2-135m-instruct-lora": "adapter_model.safetensors",
    "finetune/llama-3.2-1b-dora": "adapter_model.safetensors",
    "finetune/llama-3.1-8b-qlora": "adapter_model.safetensors",
    "finetune/tinyllama-1.1b-intermediate-step-1431k-3t-full": "model.safetensors",
    "finetune/qwen3-0.6b-adapter": "adapter_model.safetensors",
    "finetune/llama-3.2-1b-adapter_v2": "adapter_model.safetensors",
    "dpo/smollm2-1.7b-instruct-cdpo-lora": "adapter_model.safetensors",
    "dpo/smollm2-360m-orpo-full": "model.safetensors",
    "pretrain/pythia-14m-debug": "model.safetensors",
    "pretrain/gpt2-fineweb-edu-muon": "model.safetensors",
}


@pytest.mark.parametrize("name", RUN)
def test_recipes_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps on a tiny model and a small file."""
    command = _command(name)
    records = [
        {"instruction": f"What is {i}?", "output": "The quick brown fox."} if command == "finetune"
        else {"prompt": f"What is {i}?", "chosen": "Paris is the capital.", "rejected": "abab"} if command == "dpo"
        else {"text": "The quick brown fox jumps over the lazy dog. " * 40}
        for i in range(12)
    ]  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    flags = {
        "model": tiny.folder(), "data": data, "out_dir": tmp_path / "out", "device": "cpu", "train.max_steps": 2,
        "train.batch_size": 4, "train.micro_batch_size": 2, "train.warmup_steps": 1,
    }  # fmt: skip
    if "adapter" in name:
        flags["method.start_layer"] = 1  # the tiny model has two
    if command == "pretrain":
        flags["data.max_len"] = 64
        flags["data.val_fraction"] = 0.2
    main([command, "--config", name, *(f"--{key}={value}" for key, value in flags.items())])
    assert "2 steps" in capsys.readouterr().out
    assert (tmp_path / "out" / "final" / RUN[name]).is_file()
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    again = parse(command, ["--config", str(tmp_path / "out" / "settings.yaml")])
    wanted = parse(command, ["--config", name, *(f"--{key}={value}" for key, value in flags.items())])
    if command != "pretrain":  # a run notes the day on which it began
        assert date.fromisoformat(again.data.date)
        wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, date=again.data.date))
    differs = {f.name for f in dataclasses.fields(wanted) if getattr(again, f.name) != getattr(wanted, f.name)}
    assert differs <= ({"train"} if command == "pretrain" else set())  # a run notes the betas of pretraining
