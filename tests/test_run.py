"""Whole runs, from settings to files: what they leave, that it is what was trained, and golden losses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from lightning.fabric import seed_everything
from torch import Tensor

from litlm.cli.main import main
from litlm.llm import LLM
from litlm.settings import (
    DataSettings,
    DPOSettings,
    FinetuneSettings,
    MethodSettings,
    PreferenceData,
    PrepareCommand,
    PretrainSettings,
    RunSettings,
    TextData,
    TrainSettings,
)
from litlm.train import apply_method, dpo, finetune, pretrain
from litlm.train.loop import Result, validate

WORDS = ("fox", "dog", "Paris", "France", "quick", "brown", "lazy", "over", "user", "ab", "ba", "café", "12", "The")
RECORDS = [
    {"instruction": f"{word}?", "output": f"{word} is {'very ' * (i % 5)}{WORDS[i - 3]}."}
    for i, word in enumerate(WORDS)
]
PAIRS = [
    {"prompt": f"{word}?", "chosen": f"{word} is {WORDS[i - 3]}.", "rejected": f"no {word} {'ab ' * (i % 4)}"}
    for i, word in enumerate(WORDS)
]


@dataclass(frozen=True)
class Files:
    """What runs learn from."""

    records: Path
    pairs: Path
    text: Path  # prepared


def write_files(folder: Path) -> Files:
    from litlm.data.prepare import load_tokenizer, prepare

    files = Files(folder / "records.jsonl", folder / "pairs.jsonl", folder / "prepared")
    for path, records in ((files.records, RECORDS), (files.pairs, PAIRS)):
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (folder / "text.txt").write_text("\n".join(tiny.TEXT * 30), encoding="utf-8")
    command = PrepareCommand(data=(str(folder / "text.txt"),), tokenizer="", out_dir=str(files.text), workers=1)
    prepare(command, load_tokenizer(tiny.folder()))
    return files


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes a third of the time of so short a run."""
    if request.node.name != "test_what_a_run_leaves":
        monkeypatch.setattr("litlm.train.plot.plot_loss", lambda *args: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


TRAIN: dict[str, Any] = dict(
    max_steps=8, batch_size=4, micro_batch_size=2, lr=5e-3, warmup_steps=2, val_interval=4, save_interval=2
)
LORA: dict[str, Any] = dict(name="lora", r=4)
# Of each: the method's settings, and those of the training.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": (dict(name="full"), {}),
    "full-freeze": (dict(name="full", freeze=("embed", "layers.0.*")), {}),
    "full-mixed": (dict(name="full"), dict(precision="bf16-mixed")),
    "full-bf16": (dict(name="full"), dict(precision="bf16-true", weight_decay=0.1)),
    "full-adamw8bit": (dict(name="full"), dict(optimizer="adamw8bit", optimizer_args={"min_8bit_size": 64})),
    "full-muon": (dict(name="full"), dict(optimizer="muon")),
    "full-in-backward": (dict(name="full"), dict(optimizer_in_backward=True, grad_clip=None, micro_batch_size=4)),
    "lora": (LORA | dict(dropout=0.1), dict(checkpointing="full")),
    "lora-mixed": (LORA | dict(modules_to_save=("norm",)), dict(precision="bf16-mixed")),
    "lora-outside": (LORA | dict(targets=("q_proj", "embed", "lm_head"), dropout=0.1), dict(precision="bf16-mixed")),
    "dora": (LORA | dict(dora=True, rslora=True, dropout=0.1), {}),
    "qlora": (dict(name="qlora", r=4, dropout=0.1, quantize="nf4"), {}),
    "adapter": (dict(name="adapter", start_layer=1), dict(lr=2e-2)),
    "adapter_v2": (dict(name="adapter_v2", start_layer=1), dict(lr=2e-2)),
    "dpo": (LORA | dict(dropout=0.1), dict(lr=1e-3)),
    "dpo-full": (dict(name="full"), dict(lr=1e-3)),
    "pretrain": (dict(name="full"), {}),
}


def settings_of(case: str, files: Files, out: Path, *, run: dict[str, Any] | None = None, **train: Any) -> RunSettings:
    """The settings of a short run. run: fields beside train."""
    method, own = CASES[case]
    common: dict[str, Any] = dict(
        model=str(tiny.folder()), method=MethodSettings(**method), out_dir=str(out), device="cpu",
        train=TrainSettings(**(TRAIN | own | train)),
    )  # fmt: skip
    if case.startswith("dpo"):
        common["data"] = PreferenceData(path=str(files.pairs), val_fraction=0.2)
        return DPOSettings(**(common | (run or {})))
    if case == "pretrain":
        common["data"] = TextData(path=(str(files.text),), val_fraction=0.1, max_len=32)
        return PretrainSettings(**(common | (run or {})))
    common["data"] = DataSettings(path=str(files.records), val_fraction=0.2)
    return FinetuneSettings(**(common | (run or {})))


def run(settings: RunSettings, **options: Any) -> Result:
    command: dict[type, Callable[..., Result]] = {
        FinetuneSettings: finetune, DPOSettings: dpo, PretrainSettings: pretrain,
    }  # fmt: skip
    return command[type(settings)](settings, **({"quiet": True} | options))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_what_a_run_leaves(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of("lora", files, tmp_path / "run", samples=("The quick", "ab"))
    result = run(settings, quiet=False)
    out = tmp_path / "run"
    assert {p.name for p in out.iterdir()} == {
        "settings.yaml", "metrics.csv", "samples.jsonl", "loss.png", "report.html", "final", "step-000006",
        "step-000008",
    }  # fmt: skip
    shown = capsys.readouterr().err
    assert "11 examples to learn from, 3 to validate on; 8 steps of 4" in shown
    assert "step 8 100%" in shown

    rows = rows_of(out / "metrics.csv")
    assert list(rows[0]) == ["step", "loss", "val_loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds"]
    assert [int(r["step"]) for r in rows] == list(range(1, 9))
    assert [float(r["loss"]) for r in rows] == pytest.approx(result.losses, rel=1e-5)
    assert [(int(r["step"]), float(r["val_loss"])) for r in rows if r["val_loss"]] == [
        (step, pytest.approx(loss, rel=1e-5)) for step, loss in result.val_losses
    ]
    assert [step for step, _ in result.val_losses] == [4, 8]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    written = yaml.safe_load((out / "settings.yaml").read_text())
    date.fromisoformat(written["data"].pop("date"))  # of the run's begin
    assert FinetuneSettings(
        **(written | {
            "data": DataSettings(**written["data"]), "method": MethodSettings(**written["method"]),
            "train": TrainSettings(**written["train"]),
        })
    ) == settings  # fmt: skip
    config = json.loads((out / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.folder())


def test_the_page_of_a_resumed_run_shows_all_of_it(files: Files, tmp_path: Path) -> None:
    """It is there after each validation, and names the model and what it computes in."""
    from test_report import Page

    from litlm.train.loop import Trainer
    from litlm.train.report import Report

    def page() -> Page:
        return Page(tmp_path / "report.html")

    seen = []

    def stop(self: Any) -> None:
        seen.append(page())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        draw = Report.draw
        patch.setattr(Report, "draw", lambda self: (draw(self), patch.setattr(Trainer, "save", stop)))
        with pytest.raises(KeyboardInterrupt):
            run(settings_of("lora", files, tmp_path, val_interval=3))
    assert "Running, step 3" in seen[0].text
    run(settings_of("lora", files, tmp_path, val_interval=3, run=dict(resume="auto")))
    assert "Finished" in page().text
    assert "precision 32-true" in page().text
    rows = rows_of(tmp_path / "metrics.csv")
    for column, name in (("loss", "loss"), ("val_loss", "validation")):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        assert [x for x, _ in page().curves["Loss", name]] == pytest.approx([x for x, _ in points], abs=0.01)
        assert [y for _, y in page().curves["Loss", name]] == pytest.approx([y for _, y in points], rel=2e-3)
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [3, 6, 8]


def test_the_page_names_the_model_that_was_trained(files: Files, tmp_path: Path) -> None:
    from test_report import Page

    path = str(tiny.folder())
    run(settings_of("lora", files, tmp_path / "a", max_steps=1))
    assert f"{path} · finetune, lora" in Page(tmp_path / "a" / "report.html").text
    adapter = str(tmp_path / "a" / "final")
    with pytest.raises(ValueError, match="merge it first"):
        run(settings_of("full-mixed", files, tmp_path / "b", max_steps=1, run=dict(model=adapter)))
    run(settings_of("full-mixed", files, tmp_path / "b", max_steps=1))
    text = Page(tmp_path / "b" / "report.html").text
    assert f"{path} · finetune, full" in text
    assert "precision bf16-mixed" in text
    settings = settings_of("qlora", files, tmp_path / "c", max_steps=1, run=dict(model="another/name"))
    llm = tiny.load(quantize="nf4")
    run(settings, llm=llm)
    text = Page(tmp_path / "c" / "report.html").text
    assert f"{llm.source} · finetune, qlora" in text
    assert "precision 32-true, frozen weights in nf4" in text
    config = json.loads((tmp_path / "c" / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == llm.source  # what was trained, not what settings name
    llm = tiny.load()
    llm.source = ""  # made by hand
    run(settings_of("lora", files, tmp_path / "d", max_steps=1, run=dict(model="another/name")), llm=llm)
    assert "another/name · finetune, lora" in Page(tmp_path / "d" / "report.html").text


def test_samples_before_during_and_after(files: Files, tmp_path: Path) -> None:
    """They are what the model says: before, that is the untrained model; after, the one that was saved."""
    settings = settings_of("lora", files, tmp_path / "run", samples=("fox?", "ab"), max_steps=6, lr=2e-2)
    run(settings)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(s["step"], s["prompt"]) for s in samples] == [(step, p) for step in (0, 4, 6) for p in ("fox?", "ab")]
    trained = tiny.load(adapter=tmp_path / "run" / "final")
    for llm, own in ((tiny.shared(), samples[:2]), (trained, samples[4:])):
        for sample in own:
            message = [{"role": "user", "content": sample["prompt"]}]
            assert llm.chat(message, max_new_tokens=64) == sample["text"]


def test_a_warm_up_that_is_cut_is_said(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(name: str, **train: Any) -> tuple[str, list[float]]:
        run(
            settings_of("lora", files, tmp_path / name, max_steps=3, lr=1e-3, schedule="constant", **train), quiet=False
        )
        return capsys.readouterr().err, [float(row["lr"]) for row in rows_of(tmp_path / name / "metrics.csv")]

    text, rates = said("cut", warmup_steps=2)
    assert "warmup_steps=2 is cut to 1: at most half of the run, which has 3" in text
    assert rates == [1e-3] * 3
    text, rates = said("whole", warmup_steps=1)
    assert "warm" not in text
    text, rates = said("tokens", warmup_steps=4, max_tokens=10_000)  # how many steps these are, nobody knows
    assert "warm" not in text
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4])


def test_the_written_settings_run_again(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the same bits, also those of a run that replaced another."""
    first = run(settings_of("lora", files, tmp_path / "run", run=dict(overwrite=True)))
    main(["finetune", "--config", str(tmp_path / "run" / "settings.yaml"), "--out_dir", str(tmp_path / "again")])
    assert "Continue with" in capsys.readouterr().out
    assert content(tmp_path / "run" / "final") == content(tmp_path / "again" / "final")
    rows = rows_of(tmp_path / "again" / "metrics.csv")
    assert [float(r["loss"]) for r in rows] == pytest.approx(first.losses, rel=1e-5)
    settings = [yaml.safe_load((tmp_path / name / "settings.yaml").read_text()) for name in ("run", "again")]
    assert settings[0] | {"out_dir": 0} == settings[1] | {"out_dir": 0}
    assert not settings[0]["overwrite"]


def test_a_separate_validation_file_and_none(files: Files, tmp_path: Path) -> None:
    from litlm.data.sft import load_sft
    from litlm.train.loss import NextToken

    val = tmp_path / "val.json"
    val.write_text(json.dumps(RECORDS[:2]))
    data = DataSettings(path=str(files.records), val_path=str(val))
    result = run(settings_of("lora", files, tmp_path / "run", run=dict(data=data), max_steps=1))
    llm = tiny.load(adapter=tmp_path / "run" / "final")
    expected, _ = load_sft(DataSettings(path=str(val), val_fraction=0.0), llm.tokenizer, llm.style, 256)
    assert len(expected) == 2
    loss = validate(llm.model, expected, NextToken(), 4, 2)["val_loss"]
    assert result.val_losses == [(1, pytest.approx(loss, rel=1e-5))]
    without = DataSettings(path=str(files.records), val_fraction=0.0)
    result = run(settings_of("lora", files, tmp_path / "b", run=dict(data=without), max_steps=1))
    assert result.val_losses == []


def test_neox_learns_on_the_fused_projection(files: Files, tmp_path: Path) -> None:
    model = str(tiny.folder("gpt_neox"))
    result = run(settings_of("lora", files, tmp_path / "run", run=dict(model=model), lr=1e-2))
    assert result.losses[-1] < result.losses[0]
    tiny.load("gpt_neox", adapter=tmp_path / "run" / "final")


@pytest.mark.parametrize("case", ["lora", "full"])
def test_new_tokens_are_saved_with_their_embeddings(case: str, files: Files, tmp_path: Path) -> None:
    """Also more of them than the embeddings have spare rows for."""
    texts = tuple(f"<|new{i}|>" for i in range(5))
    run(settings_of(case, files, tmp_path, run=dict(new_tokens=texts), max_steps=2))
    llm = loaded(case, settings_of(case, files, tmp_path))
    first = tiny.shared().tokenizer.vocab_size
    assert llm.tokenizer.encode("".join(texts)) == list(range(first, first + 5))
    assert llm.config.vocab_size >= first + 5 > tiny.shared().config.vocab_size
    assert llm.model.embed.weight.size(0) == llm.config.vocab_size


@pytest.mark.parametrize("key", ["path", "val_path"])
def test_a_missing_data_file_is_said_before_the_model_loads(key: str, files: Files, tmp_path: Path) -> None:
    paths = {"path": str(files.records), key: str(tmp_path / "none.jsonl")}
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        finetune(FinetuneSettings(model="no-such-model", data=DataSettings(**paths), out_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_pretraining_with_adapters_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method=lora is for finetuning"):
        run(settings_of("pretrain", files, tmp_path / "run", run=dict(method=MethodSettings())))


def test_pretraining_from_weights_goes_on_from_them(files: Files, tmp_path: Path) -> None:
    """The first loss is that of the model as it is; from random weights it is that of guessing."""
    losses = {}
    for from_weights in (True, False):
        settings = settings_of(
            "pretrain", files, tmp_path / str(from_weights), run=dict(from_weights=from_weights), max_steps=1
        )
        losses[from_weights] = run(settings).losses[0]
    assert losses[True] > 10  # tiny models are made of large random numbers
    assert losses[False] == pytest.approx(torch.tensor(float(tiny.shared().config.vocab_size)).log().item(), abs=0.3)


def test_another_tokenizer_than_the_weights_were_made_for_is_noticed(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file, or of prepared text; not a copy of the model's own, nor for random weights."""
    shutil.copytree(tiny.folder(), tmp_path / "same")
    shutil.copytree(tiny.folder(), tmp_path / "other")
    saved = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocab = saved["model"]["vocab"]
    vocab["x"], vocab["y"] = vocab["y"], vocab["x"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(saved))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    main(["prepare", str(text), "--tokenizer", str(tmp_path / "other"), "--out_dir", str(tmp_path / "prepared")])

    def said(n: int, from_weights: bool, **options: Any) -> str:
        capsys.readouterr()
        options |= dict(from_weights=from_weights)
        run(settings_of("pretrain", files, tmp_path / f"run-{n}", run=options, max_steps=1))
        return capsys.readouterr().err

    prepared = TextData(path=(str(tmp_path / "prepared"),), val_fraction=0.1, max_len=32)
    plain = TextData(path=(str(text),), val_fraction=0.1, max_len=32)
    note = (
        f"litlm: the tokenizer is not the one that {tiny.folder()} was made for: 2 of {len(vocab)} tokens differ, and"
    )
    for n, options in enumerate((dict(tokenizer=str(tmp_path / "other"), data=plain), dict(data=prepared))):
        assert note in said(n, True, **options)
        assert note not in said(10 + n, False, **options)
    for n, options in enumerate(({}, dict(tokenizer=str(tmp_path / "same"), data=plain))):
        assert "tokens differ" not in said(20 + n, True, **options)


# --- the result is what was trained --------------------------------------------------------------------------------


def loaded(case: str, settings: RunSettings) -> LLM:
    """The result of a run, loaded as people do."""
    final = Path(settings.out_dir) / "final"
    dtype = "bfloat16" if settings.train.precision in ("bf16-mixed", "bf16-true") else "float32"
    if settings.method.name == "full":  # type: ignore[attr-defined]
        return LLM.load(final, device="cpu", dtype=dtype)
    quantize = "nf4" if case == "qlora" else None
    return LLM.load(settings.model, adapter=final, device="cpu", dtype=dtype, quantize=quantize)


def start_of(case: str, settings: RunSettings) -> LLM:
    """The model that a run starts from."""
    dtype = "bfloat16" if settings.train.precision == "bf16-true" else "float32"
    quantize = "nf4" if case == "qlora" else None
    return LLM.load(settings.model, device="cpu", dtype=dtype, quantize=quantize)


@torch.no_grad()
def logits_of(llm: LLM) -> Tensor:
    tokens = torch.arange(3, 43).view(2, 20)
    llm.model.eval()
    return llm.model(tokens).float()


@pytest.mark.parametrize("case", [case for case in CASES if case != "pretrain"])
def test_what_is_saved_is_what_was_trained(case: str, files: Files, tmp_path: Path) -> None:
    """Same logits as the model in memory; all that is trained has moved, and nothing else has."""
    settings = settings_of(case, files, tmp_path, save_interval=None)
    begin, llm = start_of(case, settings), start_of(case, settings)
    seed_everything(settings.seed, verbose=False)
    apply_method(begin, settings.method)  # type: ignore[attr-defined]
    run(settings, llm=llm)
    after = llm.model.state_dict()
    trained = {name for name, p in begin.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in llm.model.named_parameters() if p.requires_grad}
    assert after.keys() == begin.model.state_dict().keys()
    for name, old in begin.model.state_dict().items():
        same = torch.equal(after[name], old.to(after[name].dtype))
        assert same == (name not in trained), name
    if case == "full-freeze":
        assert trained == {name for name in after if name != "embed.weight" and not name.startswith("layers.0.")}
    torch.testing.assert_close(logits_of(loaded(case, settings)), logits_of(llm), rtol=1e-5, atol=1e-5)


# --- learning ------------------------------------------------------------------------------------------------------

# Of each: the method, the training, and what is left of the loss at most.
BY_HEART: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "full": (dict(name="full"), dict(max_steps=40, lr=1e-2), 1e-3),
    "lora": (dict(name="lora", r=16), dict(max_steps=50, lr=2e-2), 1e-3),
    "dora": (dict(name="lora", r=16, dora=True), dict(max_steps=50, lr=2e-2), 1e-3),
    "qlora": (dict(name="qlora", r=16), dict(max_steps=50, lr=2e-2), 1e-3),
    "adapter": (dict(name="adapter", start_layer=0), dict(max_steps=100, lr=2e-1), 0.1),
    "adapter_v2": (dict(name="adapter_v2", start_layer=0), dict(max_steps=60, lr=5e-2), 0.01),
    "dpo": (dict(name="lora", r=4), dict(max_steps=15, lr=1e-2), 1e-3),
    "pretrain": (dict(name="full"), dict(max_steps=45, lr=2e-2), 0.2),
}


@pytest.mark.parametrize("case", BY_HEART)
def test_a_batch_is_learned_by_heart(case: str, files: Files, tmp_path: Path) -> None:
    method, train, left = BY_HEART[case]
    records = PAIRS if case == "dpo" else RECORDS
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(r) + "\n" for r in records[:4]), encoding="utf-8")
    data: Any = (PreferenceData if case == "dpo" else DataSettings)(path=str(few), val_fraction=0.0)
    if case == "pretrain":
        data = TextData(path=(str(files.text),), val_fraction=0.0, max_len=64)
    settings = settings_of(
        case, files, tmp_path / "run", run=dict(data=data, method=MethodSettings(**method)), micro_batch_size=4,
        save_interval=None, warmup_steps=5, schedule="linear", **train,
    )  # fmt: skip
    losses = run(settings).losses
    assert losses[0] > 0.5
    assert losses[-1] < left
    if case not in ("dpo", "pretrain", "adapter"):
        llm = loaded(case, settings)
        for record in records[:4]:
            message = [{"role": "user", "content": record["instruction"]}]
            assert llm.chat(message, max_new_tokens=60) == record["output"]


# Losses of the first steps, so that a change of what is computed is seen. After one that is meant to change them:
# python tests/test_run.py
GOLDEN = {
    "full": [25.236, 22.6167, 23.2072, 19.958, 17.481, 18.2746, 15.9493, 15.7256, 14.0161, 17.137],
    "lora": [25.236, 23.2653, 25.6021, 24.3471, 22.6595, 23.932, 22.3174, 22.7755, 21.3856, 23.8417],
    "dpo": [0.693147, 0.623706, 0.520064, 0.342341, 0.213736, 0.149219, 0.143036, 0.122763, 0.104879, 0.0978542],
    "pretrain": [5.84019, 5.78988, 5.74212, 5.64118, 5.60842, 5.56389, 5.47481, 5.4821, 5.43636, 5.45859],
}  # fmt: skip


def golden_losses(case: str, files: Files, out: Path) -> list[float]:
    method = dict(name="lora", r=4) if case in ("lora", "dpo") else dict(name="full")
    options: dict[str, Any] = dict(max_steps=10, lr=1e-3, save_interval=None)
    return run(settings_of(case, files, out, run=dict(method=MethodSettings(**method)), **options)).losses


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_losses(case: str, files: Files, tmp_path: Path) -> None:
    assert golden_losses(case, files, tmp_path) == pytest.approx(GOLDEN[case], rel=1e-4)


def print_golden_losses() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        for case in ("full", "lora", "dpo", "pretrain"):
            losses = ", ".join(f"{loss:.6g}" for loss in golden_losses(case, files, Path(folder) / case))
            print(f'    "{case}": [{losses}],')


if __name__ == "__main__":
    print_golden_losses()
