"""A device whose memory is not enough: said in words, with what helps, and the run's directory stays usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from litlm.data.base import Batch, Example, TokenizedDataset
from litlm.settings import DataSettings, FinetuneSettings, MethodSettings, TrainSettings
from litlm.train import Result, finetune
from litlm.train.loss import NextToken
from litlm.train.methods import apply_method
from litlm.train.run import run


class Full(NextToken):
    """Runs out of memory at its n-th micro batch."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB.")
        return super().loss_sum(model, batch)


def _run(out_dir: Path, at: int, **options: Any) -> Result:
    llm = tiny.load()
    method = MethodSettings(r=4)
    train = TokenizedDataset.from_examples(
        [Example([1, 5, 9, i], [False, True, True, True]) for i in range(8)], max_len=8
    )
    fields: dict[str, Any] = dict(batch_size=4, micro_batch_size=1, max_steps=2, save_interval=1)
    t = TrainSettings(**(fields | options))
    settings = FinetuneSettings(
        model="somewhere", data=DataSettings(path="none.jsonl"), method=method, train=t, out_dir=str(out_dir)
    )  # fmt: skip
    return run(settings, llm, apply_method(llm, method), train, None, Full(at), quiet=True)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (dict(micro_batch_size=2), "--train.micro_batch_size 1 "),
        (dict(micro_batch_size=1), "--train.checkpointing full"),
        (dict(micro_batch_size=1, checkpointing="full"), "a shorter --data.max_len"),
        (dict(micro_batch_size=1, lr="find"), "--train.checkpointing full"),
    ],
)
def test_what_helps_comes_first(options: dict[str, Any], first: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        _run(tmp_path / "run", 1, **options)
    assert str(caught.value).startswith(f"the GPU's memory is not enough. Try, in this order: {first}")
    assert caught.value.__suppress_context__
    assert not (tmp_path / "run" / "final").exists()


def test_what_was_saved_before_is_left(tmp_path: Path) -> None:
    """Out of memory in the second step; the first one's checkpoint is whole, and the report tells why it ended."""
    with pytest.raises(ValueError, match="memory is not enough"):
        _run(tmp_path / "run", 4, micro_batch_size=1)
    assert (tmp_path / "run" / "step-000001" / "training" / "state.json").is_file()
    assert not (tmp_path / "run" / "step-000002").exists()
    assert "memory is not enough" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").replace(
        "&#x27;", "'"
    )


@pytest.mark.parametrize("by_name", [False, True])
def test_it_is_said_of_loading_too(by_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("litlm.train.run.load_for", full)
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    settings = FinetuneSettings(
        model="somewhere", data=DataSettings(path=str(tmp_path / "d.jsonl")), out_dir=str(tmp_path / "run")
    )
    with pytest.raises(ValueError, match="memory is not enough"):
        finetune(settings=settings) if by_name else finetune(settings)


def test_another_error_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(Full, "loss_sum", fail)
    with pytest.raises(RuntimeError, match="something else"):
        _run(tmp_path / "run", 1)
