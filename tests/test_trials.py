"""Trying learning rates and sizes before a run leaves everything as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_run import Files, run, settings_of, write_files
from torch import Tensor

from litlm.data.sft import load_sft
from litlm.settings import DataSettings, MethodSettings, TrainSettings
from litlm.train.methods import apply_method
from litlm.train.report import Report
from litlm.train.trials import largest_micro_batch, oom_advice, trial, try_rates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), str(kind), np.asarray(keys).tolist(), rest, random.getstate()


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: torch.nn.Module, before: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        assert p.dtype == before[name].dtype, name
        assert torch.equal(p, before[name]), name
        assert p.grad is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trial_leaves_no_trace(precision: Any, optimizer: str, dtype: str) -> None:
    """Also where it ends in an error, and for weights that are not trained."""
    llm = tiny.load(dtype=dtype)
    apply_method(llm, MethodSettings(name="full", freeze=("layers.0",)))
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    before, random_before = weights(llm.model), states()
    for fails in (False, True):
        moved = 0.0
        try:
            with trial(llm.model, TrainSettings(precision=precision, optimizer=optimizer, lr=0.1)) as steps:
                for _ in range(2):
                    llm.model(ids).float().logsumexp(-1).sum().backward()
                    torch.rand(3), np.random.rand(), random.random()
                    steps.step()
                    steps.zero_grad(set_to_none=True)
                moved = (llm.model.norm.weight - before["norm.weight"]).abs().max().item()
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert moved > 1e-3
        same(llm.model, before)
        assert states() == random_before
        assert not llm.model.training
        llm.model(ids).float().sum().backward()  # no hook takes these away
        assert llm.model.norm.weight.grad is not None
        llm.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_finding_a_rate_changes_nothing_else(files: Files, tmp_path: Path, precision: Any) -> None:
    """A run with the rate that is found takes the steps that one takes which is given it."""
    same_data: dict[str, Any] = dict(precision=precision, max_steps=3, batch_size=11, micro_batch_size=11)
    found = run(settings_of("full", files, tmp_path / "find", lr="find", **same_data))
    lr = json.loads((tmp_path / "find" / "found.json").read_text())["lr"]
    given = run(settings_of("full", files, tmp_path / "given", lr=lr, **same_data))
    assert found.losses == given.losses
    assert 1e-6 < lr < 1


def test_a_sweep_leaves_model_and_random_states(files: Files, tmp_path: Path) -> None:
    llm = tiny.load()
    apply_method(llm, MethodSettings(r=4, dropout=0.2))
    data = DataSettings(path=str(files.records), val_fraction=0.2)
    train, _ = load_sft(data, llm.tokenizer, llm.style, llm.config.max_seq_len, seed=0)
    settings = TrainSettings(batch_size=4, micro_batch_size=2, lr="find", precision="32-true")
    before, random_before = weights(llm.model), states()
    with Report(None, None, quiet=True) as report:
        lr = try_rates(llm.model, train, None, settings, 7, report, tmp_path)
        same(llm.model, before)
        assert states() == random_before
        assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / "lr_finder.json").read_text())["suggestion"] == lr


def test_micro_batch_size_auto_needs_a_gpu(files: Files, tmp_path: Path) -> None:
    message = "micro_batch_size=auto measures a GPU's memory; on a CPU give a number, such as 4"
    with pytest.raises(ValueError, match=message):
        run(settings_of("full", files, tmp_path / "run", micro_batch_size="auto"))
    with pytest.raises(ValueError, match=message):
        largest_micro_batch(tiny.shared().model, [], None, TrainSettings())  # type: ignore[arg-type]


ADVICE = ["--train.micro_batch_size 1", "--train.checkpointing full", "--data.max_len", "--method qlora",
          "--train.optimizer adamw8bit", "a smaller model"]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "train", "gone"),
    [
        ("full", {}, []), ("full", dict(micro_batch_size=1), [0]), ("full", dict(checkpointing="full"), [1]),
        ("full", dict(optimizer="adamw8bit"), [4]), ("full", dict(optimizer="SGD"), [4]),
        ("full", dict(optimizer="AdamW"), []), ("full", dict(micro_batch_size="auto"), [0]),
        ("full-in-backward", {}, [0]), ("lora", dict(checkpointing="selective"), [4]), ("qlora", {}, [3, 4]),
        ("dpo", dict(checkpointing="none"), [4]), ("dpo-full", {}, []), ("pretrain", {}, [3]),
        ("qlora", dict(micro_batch_size=1, checkpointing="full"), [0, 1, 3, 4]),
    ],
)  # fmt: skip
def test_what_helps_against_too_little_memory_is_in_the_order_of_its_cost(
    case: str, train: dict[str, Any], gone: list[int], tmp_path: Path
) -> None:
    """And nothing that is so already, or that the command refuses."""
    files = Files(tmp_path, tmp_path, tmp_path)
    text = oom_advice(settings_of(case, files, tmp_path, **train))
    said = text.removeprefix("the GPU's memory is not enough. Try, in this order: ").split("; ")
    expected = [advice for i, advice in enumerate(ADVICE) if i not in gone]
    assert len(said) == len(expected)
    assert all(advice in part for advice, part in zip(expected, said, strict=True))


def test_not_even_one_example_fits(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("litlm.train.trials.largest_micro_batch", full)
    monkeypatch.setattr("litlm.train.preflight.check_auto", lambda *_: None)
    with pytest.raises(ValueError, match=r"not enough.*in this order: a shorter --data.max_len; a smaller model$"):
        run(settings_of("qlora", files, tmp_path / "run", micro_batch_size="auto", checkpointing="full"))
