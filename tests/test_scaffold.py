"""`litlm new-family`: its draft is a working family once the fields it names are understood."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import close, hf_logits, tokens
from safetensors.torch import load_file, save_file

from litlm import families
from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.cli.main import main
from litlm.config import Config


def _copy(name: str, path: Path, model_type: str, **more: Any) -> cases.Case:
    """A tiny checkpoint that claims to be of another family."""
    case = cases.by_name(name)
    config = json.loads((cases.write(case) / "config.json").read_text())
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config | dict(model_type=model_type) | more))
    save_file(load_file(cases.write(case) / "model.safetensors"), path / "model.safetensors", {"format": "pt"})
    return case


@pytest.mark.parametrize("name", ["qwen3-sliding-pattern", "gpt_neox-parallel"])
def test_the_draft_loads_the_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = _copy(name, tmp_path / "model", "brandnew")
    main(["new-family", str(tmp_path / "model"), "--out_dir", str(tmp_path / "out")])
    assert f"nearest to {case.family}" in capsys.readouterr().out
    monkeypatch.setattr(families, "_registered", {})
    families.register_family(runpy.run_path(str(tmp_path / "out" / "brandnew.py"))["FAMILY"])
    path = tmp_path / "model"
    model = load_model(Config.from_hf(path), SafetensorsSource(path), device=torch.device("cpu"), dtype=torch.float32)
    ids = tokens(case, 2, 19)
    with torch.no_grad():
        close(model(ids), hf_logits(case, ids))
    table = runpy.run_path(str(tmp_path / "out" / "table_brandnew.py"))["CASES"]
    assert len(table) == 4
    assert {c.family for c in table} == {"brandnew"}


def test_new_fields_and_tensors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _copy("llama-plain", tmp_path, "brandnew", frobnicate=3, nested={"a": [1.5, None]})
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {f"model.layers.{i}.mlp.experts.{e}.twist.weight": torch.zeros(2) for i in range(2) for e in range(3)}
    save_file(tensors | extra, tmp_path / "model.safetensors", {"format": "pt"})
    main(["new-family", str(tmp_path / "config.json"), "--out_dir", str(tmp_path)])
    draft = (tmp_path / "brandnew.py").read_text()
    assert "FILL IN: frobnicate is 3 here" in draft
    assert 'nested={"a": [1.5, None]}' in draft
    assert draft.count('rename("model.layers.{i}.mlp.experts.{e}.twist.weight", "?")') == 1
    assert "frobnicate, nested" in capsys.readouterr().out
    # Until the fields are handled, nothing is loaded as if they did not matter.
    fields = families.HFFields(json.loads((tmp_path / "config.json").read_text()))
    runpy.run_path(str(tmp_path / "brandnew.py"))["FAMILY"].from_hf(fields)
    with pytest.raises(ValueError, match="frobnicate=3 is not understood"):
        fields.finish()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("{", "not a Hugging Face config.json"),
        ("[1]", "not a Hugging Face config.json"),
        ('{"hidden_size": 3}', "names no model_type"),
        ('{"model_type": "../evil"}', "must be a name"),
        ('{"model_type": "llama"}', "known already"),
    ],
)
def test_bad_input(content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        main(["new-family", str(path), "--out_dir", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _copy("llama-plain", tmp_path, "brandnew")
    (tmp_path / "table_brandnew.py").write_text("mine")
    with pytest.raises(SystemExit):
        main(["new-family", str(tmp_path), "--out_dir", str(tmp_path)])
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "table_brandnew.py").read_text() == "mine"
    assert not (tmp_path / "brandnew.py").exists()
