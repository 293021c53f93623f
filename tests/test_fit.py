"""The training loop: steps that don't depend on micro batches, transformers' losses, files that run again."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from litlm.checkpoint.peft import load_adapter
from litlm.cli import main
from litlm.data.sft import Dataset, Example, load_sft
from litlm.llm import LLM
from litlm.settings import DataSettings, FinetuneSettings, LoraMethod, TrainSettings
from litlm.train import finetune, fit
from litlm.train.fit import total_steps, validate
from litlm.train.report import Log, duration
from litlm.train.schedule import learning_rate
from litlm.transforms.lora import adapters, apply_lora

WORDS = ("fox", "dog", "Paris", "France", "quick", "brown", "lazy")
RECORDS = [
    {"instruction": f"{word}?", "output": f"{word} is {'very ' * i}{other}."}
    for i, (word, other) in enumerate(zip(WORDS, "abcdefg", strict=True))
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return path


def _dataset(lengths: tuple[int, ...], seed: int = 0) -> Dataset:
    gen = torch.Generator().manual_seed(seed)
    examples = []
    for n in lengths:
        learn = [False, True, *(torch.rand(n - 2, generator=gen) < 0.6).tolist()]
        examples.append(Example(torch.randint(1, 340, (n,), generator=gen).tolist(), learn))
    return Dataset(examples)


def _fit(train: Dataset, tmp: Path, *, family: str = "llama", val: Dataset | None = None, seed: int = 1, r: int = 4,
         **settings: Any) -> tuple[LLM, Any, list[int]]:  # fmt: skip
    from lightning.fabric import Fabric

    llm = tiny.load(family)
    torch.manual_seed(seed)
    leave = [n for n, _ in llm.model.named_modules() if n.endswith(("q_proj", "k_proj"))]
    apply_lora(llm.model, LoraMethod(r=r), leave=leave)
    saved: list[int] = []
    log = Log(tmp / "metrics.csv")
    result = fit(
        Fabric(accelerator="cpu", devices=1), llm.model, train, val, TrainSettings(**settings), seed=seed, log=log,
        save=saved.append,
    )  # fmt: skip
    log.close()
    return llm, result, saved


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def _weights(llm: LLM) -> list[Tensor]:
    return [p.detach() for _, lora in adapters(llm.model) for p in (lora.A, lora.B)]


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_steps_do_not_depend_on_the_micro_batch(family: str, tmp_path: Path) -> None:
    train = _dataset((3, 60, 8, 25, 4, 90, 12, 5))
    runs = {}
    for size in (1, 2, 4):
        runs[size] = _fit(train, tmp_path, family=family, batch_size=4, micro_batch_size=size, max_steps=6, lr=3e-3)
    whole = torch.cat([w.flatten() for w in _weights(runs[4][0])])
    for size in (1, 2):
        assert runs[size][1].losses == pytest.approx(runs[4][1].losses, rel=1e-5)
        other = torch.cat([w.flatten() for w in _weights(runs[size][0])])
        # Adam divides by the gradient's size: where that is next to nothing, rounding decides.
        assert ((whole - other).abs() > 1e-5).float().mean() < 1e-3
        assert torch.dist(whole, other) < 1e-3 * whole.norm()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_the_loss_is_the_one_that_transformers_computes(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    train, val = _dataset((9, 30, 4, 17)), _dataset((40, 6, 3), seed=5)
    llm, result, _ = _fit(
        train, tmp_path, family=family, val=val, batch_size=4, micro_batch_size=2, max_steps=3, lr=1e-2
    )
    model = AutoModelForCausalLM.from_pretrained(tiny.folder(family), dtype=torch.float32).eval()

    def reference(data: Dataset) -> float:
        """One example at a time, in float64: all its tokens, then the whole mean."""
        total, count = 0.0, 0
        for e in data.examples:
            with torch.no_grad():
                logits = model(torch.tensor([e.ids])).logits[0].double()
            wanted = torch.tensor([i for i in range(1, len(e.ids)) if e.learn[i]])
            picked = logits.log_softmax(-1)[wanted - 1].gather(1, torch.tensor(e.ids)[wanted, None])
            total, count = total - picked.sum().item(), count + len(wanted)
        return total / count

    assert result.losses[0] == pytest.approx(reference(train), rel=1e-5)
    assert [step for step, _ in result.val_losses] == [3]
    from litlm.transforms.lora import merged_state

    (tmp_path / "m").mkdir()
    llm.save(tmp_path / "m")
    assert merged_state(llm.model).keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert result.val_losses[0][1] == pytest.approx(reference(val), rel=1e-4)
    assert result.losses[-1] < result.losses[0]


def test_a_small_batch_is_learned_by_heart(tmp_path: Path) -> None:
    train = _dataset((12, 5, 20, 9))
    _, result, _ = _fit(train, tmp_path, r=16, batch_size=4, micro_batch_size=4, max_steps=120, lr=2e-2, warmup_steps=5)
    assert result.losses[0] > 3
    assert result.losses[-1] < 0.02


def test_equal_runs_are_equal_to_the_bit_and_seeds_differ(tmp_path: Path) -> None:
    train = _dataset((12, 5, 20, 9, 7))
    runs = [_fit(train, tmp_path, seed=s, batch_size=2, micro_batch_size=1, max_steps=7) for s in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(_weights(runs[0][0]), _weights(runs[1][0]), strict=True))
    assert runs[0][1].losses == runs[1][1].losses
    assert runs[0][1].losses != runs[2][1].losses


def test_only_the_order_of_the_first_seed_decides_which_examples_come(tmp_path: Path) -> None:
    """Every example once an epoch, also across step borders: the tokens seen after an epoch are all of them."""
    train = _dataset((12, 5, 20, 9, 7, 3))
    _, result, _ = _fit(train, tmp_path, batch_size=2, micro_batch_size=2, epochs=2)
    assert result.steps == 6
    rows = _rows(tmp_path / "metrics.csv")
    assert int(rows[2]["tokens"]) == sum(len(e.ids) for e in train.examples)
    assert int(rows[5]["tokens"]) == 2 * sum(len(e.ids) for e in train.examples)


def test_weight_decay_and_clipping_reach_the_optimizer(tmp_path: Path) -> None:
    train = _dataset((12, 5))
    options: dict[str, Any] = dict(batch_size=2, micro_batch_size=2, max_steps=1, lr=1e-1, warmup_steps=0)
    plain, decayed = (_fit(train, tmp_path, weight_decay=w, **options)[0] for w in (0.0, 0.5))
    for (_, a), (_, b) in zip(adapters(plain.model), adapters(decayed.model), strict=True):
        # B is zero and A has no gradient at the first step: decay alone changes A, by lr * weight_decay.
        torch.testing.assert_close(b.A, a.A * (1 - 0.1 * 0.5))
    rows = []
    for clip in (None, 1e-3):
        _fit(train, tmp_path, grad_clip=clip, **options)
        rows += _rows(tmp_path / "metrics.csv")
    assert float(rows[0]["grad_norm"]) == pytest.approx(float(rows[1]["grad_norm"]))  # the norm before clipping
    assert float(rows[0]["grad_norm"]) > 1e-3


@pytest.mark.parametrize("where", ["embed", "norm"])
def test_a_loss_that_is_no_number_stops_the_run(where: str, tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    llm = tiny.load()
    with torch.no_grad():
        getattr(llm.model, where).weight.fill_(math.nan)
    apply_lora(llm.model, LoraMethod())
    before = [w.clone() for w in _weights(llm)]
    log = Log(tmp_path / "metrics.csv")
    with pytest.raises(ValueError, match="the loss of step 1 is nan"):
        fit(
            Fabric(accelerator="cpu", devices=1), llm.model, _dataset((5, 6)), None, TrainSettings(max_steps=3), seed=0,
            log=log, save=lambda step: None,
        )  # fmt: skip
    log.close()
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(llm), strict=True))


def test_validation_leaves_the_mode_and_no_gradient(tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    llm = tiny.load()
    apply_lora(llm.model, LoraMethod(dropout=0.5))
    fabric, val = Fabric(accelerator="cpu", devices=1), _dataset((5, 9, 4, 30, 7))
    llm.model.train()
    losses = [validate(fabric, llm.model, val, size) for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert llm.model.training
    assert all(p.grad is None for p in llm.model.parameters())


# --- how long, how fast --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "examples", "steps"),
    [
        ({}, 8, 1), ({}, 9, 2), ({}, 3, 1), ({"max_steps": 5}, 3, 5), ({"max_steps": 5}, 1000, 5),
        ({"epochs": 3}, 16, 6), ({"epochs": 3}, 10, 4), ({"epochs": 6}, 3, 3), ({"epochs": 3, "max_steps": 4}, 16, 4),
        ({"epochs": 3, "max_steps": 400}, 16, 6),
    ],
)  # fmt: skip
def test_total_steps(limits: dict[str, int], examples: int, steps: int) -> None:
    """Epochs are passes over the examples, steps of 8 each, whole at the end."""
    assert total_steps(TrainSettings(batch_size=8, **limits), examples) == steps


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (10, 0), (7, 10), (1, 10), (2, 1)])
def test_learning_rates_by_formula(schedule: Any, steps: int, warmup: int) -> None:
    settings = TrainSettings(lr=0.3, schedule=schedule, warmup_steps=warmup)
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    warm = min(warmup, steps // 2)
    for step, rate in enumerate(rates):
        done = (step - warm) / (steps - warm)
        shape = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
        assert rate == pytest.approx(0.3 * ((step + 1) / warm if step < warm else shape))
    assert rates[warm] == pytest.approx(0.3)
    assert all(0 < rate <= 0.3 + 1e-12 for rate in rates)


def test_learning_rates_reach_the_log(tmp_path: Path) -> None:
    settings = dict(batch_size=2, micro_batch_size=2, max_steps=8, lr=1e-2, warmup_steps=3, schedule="linear")
    _fit(_dataset((5, 6)), tmp_path, **settings)
    rows = _rows(tmp_path / "metrics.csv")
    assert [float(r["lr"]) for r in rows] == pytest.approx(
        [learning_rate(i, 8, TrainSettings(**settings)) for i in range(8)], rel=1e-5
    )  # fmt: skip


def test_save_points(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(batch_size=1, micro_batch_size=1, max_steps=7)
    assert _fit(_dataset((5, 6)), tmp_path, **options)[2] == [7]
    assert _fit(_dataset((5, 6)), tmp_path, save_interval=3, **options)[2] == [3, 6, 7]
    assert _fit(_dataset((5, 6)), tmp_path, save_interval=7, **options)[2] == [7]


# --- a whole run ---------------------------------------------------------------------------------------------------


def _settings(data: Path, out: Path, **train: Any) -> FinetuneSettings:
    train = dict(max_steps=6, batch_size=4, micro_batch_size=2, lr=5e-3, warmup_steps=2, val_interval=4) | train
    return FinetuneSettings(
        model=str(tiny.folder()), data=DataSettings(path=str(data), val_fraction=0.3), train=TrainSettings(**train),
        method=LoraMethod(r=4, dropout=0.1), out_dir=str(out), device="cpu", dtype="float32",
    )  # fmt: skip


def test_what_a_run_leaves(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _settings(data, tmp_path / "run", save_interval=2)
    result = finetune(settings)
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "settings.yaml", "metrics.csv", "loss.png", "final", "step-000002", "step-000004",
    }  # fmt: skip
    shown = capsys.readouterr().err
    assert "5 to learn from, 2 to validate on" in shown
    assert "step 6/6" in shown

    rows = _rows(run / "metrics.csv")
    assert list(rows[0]) == ["step", "loss", "val_loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds"]
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(r["loss"]) for r in rows] == pytest.approx(result.losses, rel=1e-5)
    assert [(int(r["step"]), float(r["val_loss"])) for r in rows if r["val_loss"]] == [
        (step, pytest.approx(loss, rel=1e-5)) for step, loss in result.val_losses
    ]
    assert [step for step, _ in result.val_losses] == [4, 6]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (run / "loss.png").stat().st_size > 5000

    written = yaml.safe_load((run / "settings.yaml").read_text())
    assert written["train"]["max_steps"] == 6
    assert written["data"]["path"] == str(data)
    assert written.keys() == {"model", "data", "method", "train", "out_dir", "seed", "device", "dtype"}
    fresh = tiny.load()
    load_adapter(fresh.model, run / "final")
    assert json.loads((run / "final" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny.folder()
    )


def test_the_written_settings_run_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = finetune(_settings(data, tmp_path / "run"), quiet=True)
    capsys.readouterr()
    main(["finetune", "--config", str(tmp_path / "run" / "settings.yaml"), "--out_dir", str(tmp_path / "again")])
    assert "Go on with" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("run", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = _rows(tmp_path / "again" / "metrics.csv")
    assert [float(r["loss"]) for r in rows] == pytest.approx(first.losses, rel=1e-5)
    settings = [yaml.safe_load((tmp_path / name / "settings.yaml").read_text()) for name in ("run", "again")]
    assert settings[0] | {"out_dir": 0} == settings[1] | {"out_dir": 0}


def test_a_separate_validation_file_and_none(data: Path, tmp_path: Path) -> None:
    val = tmp_path / "val.json"
    val.write_text(json.dumps(RECORDS[:2]))
    settings = _settings(data, tmp_path / "run", max_steps=1)
    with_file = dataclasses.replace(settings, data=DataSettings(path=str(data), val_path=str(val)))
    result = finetune(with_file, quiet=True)
    llm = tiny.load(adapter=tmp_path / "run" / "final")
    from lightning.fabric import Fabric

    expected = load_sft(val, llm.tokenizer, llm.style, 256)
    assert len(expected) == 2
    loss = validate(Fabric(accelerator="cpu", devices=1), llm.model, expected, 2)
    assert result.val_losses == [(1, pytest.approx(loss, rel=1e-4))]
    without = dataclasses.replace(settings, data=DataSettings(path=str(data), val_fraction=0.0))
    assert finetune(without, quiet=True).val_losses == []


def test_a_run_changes_what_the_model_says(data: Path, tmp_path: Path) -> None:
    settings = _settings(data, tmp_path / "run", max_steps=150, lr=2e-2, batch_size=7, micro_batch_size=7)
    data_settings = DataSettings(path=str(data), val_fraction=0.0)
    settings = dataclasses.replace(settings, method=LoraMethod(r=16), data=data_settings)
    finetune(settings, quiet=True)
    llm = tiny.load(adapter=tmp_path / "run" / "final")
    for record in RECORDS:
        assert llm.chat([{"role": "user", "content": record["instruction"]}], max_new_tokens=60) == record["output"]


def test_neox_says_what_it_leaves_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _settings(data, tmp_path / "run", max_steps=1)
    finetune(dataclasses.replace(settings, model=str(tiny.folder("gpt_neox"))))
    assert "No adapters on q_proj, k_proj, v_proj" in capsys.readouterr().err
    load_adapter(tiny.load("gpt_neox").model, tmp_path / "run" / "final")


@pytest.mark.parametrize("key", ["path", "val_path"])
def test_a_missing_data_file_is_said_before_the_model_loads(key: str, data: Path, tmp_path: Path) -> None:
    files = {"path": str(data), key: str(tmp_path / "none.jsonl")}
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        finetune(FinetuneSettings(model="no-such-model", data=DataSettings(**files)))


def test_ctrl_c_saves_what_there_is(data: Path, tmp_path: Path) -> None:
    settings = _settings(data, tmp_path / "run", max_steps=10**6)
    config = tmp_path / "config.yaml"
    from litlm.train.report import write_settings

    write_settings(settings, tmp_path)
    (tmp_path / "settings.yaml").rename(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "litlm.cli", "finetune", "--config", str(config)], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        metrics = tmp_path / "run" / "metrics.csv"
        until = time.monotonic() + 90
        while time.monotonic() < until and not (metrics.is_file() and metrics.read_text().count("\n") > 4):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert process.returncode == 0, err
    assert "Stopped by Ctrl-C" in err
    assert "litlm chat" in out
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"settings.yaml", "metrics.csv", "loss.png", "final"}
    llm = tiny.load()
    load_adapter(llm.model, tmp_path / "run" / "final")
    assert any(lora.B.abs().max() > 0 for _, lora in adapters(llm.model))


def test_a_second_ctrl_c_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from litlm.train.fit import _stop_on_ctrl_c

    before = signal.getsignal(signal.SIGINT)
    with _stop_on_ctrl_c() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert "again to stop without saving" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3600, 7384)] == [
        "0:00 min",
        "1:00 min",
        "1:01 min",
        "1 h 00 min",
        "2 h 03 min",
    ]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"lr": 0.0}, "lr=0.0"), ({"lr": math.nan}, "lr=nan"), ({"batch_size": 5, "micro_batch_size": 2}, "multiple"),
        ({"max_steps": 0}, "max_steps=0"), ({"epochs": 0}, "epochs=0"), ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"grad_clip": 0.0}, "grad_clip=0"), ({"warmup_steps": -1}, "warmup_steps=-1"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainSettings(**bad)
