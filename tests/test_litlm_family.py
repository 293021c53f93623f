"""model_type litlm: models that no family of Hugging Face can express, trained, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import cases
from safetensors import safe_open
from test_run import Files, run, settings_of, write_files

from litlm.config import Config
from litlm.families import GGUFFields, family_of_gguf, list_families
from litlm.llm import LLM
from litlm.model import GPT
from litlm.settings import PretrainSettings

# None of these is a Llama: norms around both sides of a block, capped logits, sliding layers beside full ones.
FIELDS: dict[str, dict[str, Any]] = {
    "sandwich": dict(block="sandwich", logit_softcap=30.0),
    "post": dict(block="post", layer_types=["sliding", "full"], sliding_window=7),
    "scales": dict(residual_scale=0.5, logit_scale=0.25, embed_scale=3.0),
}
TOKENS = torch.tensor([[5, 9, 200, 31, 7, 7, 90, 12, 11]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


def own(name: str) -> Config:
    return tiny.shared().config.changed(**FIELDS[name]).changed(family="litlm")


@torch.no_grad()
@pytest.mark.parametrize("name", FIELDS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    config = own(name)
    with pytest.raises(ValueError):
        config.changed(family="llama").to_hf()
    model = GPT(config)
    gen = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p += 0.3 * torch.randn(p.shape, generator=gen)
    llm = LLM(model, config)
    llm.tokenizer = tiny.shared().tokenizer
    llm.save(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    assert hf["model_type"] == "litlm"
    assert hf["architectures"] == ["GPT"]
    with safe_open(tmp_path / "model.safetensors", "pt") as f:  # type: ignore[no-untyped-call]
        stored = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    assert stored.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(stored[key], p) for key, p in model.named_parameters())
    again = LLM.load(tmp_path, device="cpu", dtype="float32")
    assert dataclasses.replace(again.config, name=config.name) == config
    assert torch.equal(again.model(TOKENS), model(TOKENS))
    plain = GPT(tiny.shared().config)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert (plain(TOKENS) - model(TOKENS)).abs().max() > 1e-3  # the fields do matter
    assert again.generate("The quick", max_new_tokens=3, ignore_eos=True, return_ids=True) == llm.generate(
        "The quick", max_new_tokens=3, ignore_eos=True, return_ids=True
    )


NAMES = ["llama-plain", "gemma2-plain", "deepseek_v3-yarn", "gpt_oss-default-yarn", "gemma4_text-shared-kv",
         "qwen3_moe-plain", "bloom-five-heads", "llama4_text-small-chunks", "phi3-longrope-short"]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_a_form_of_litlms_own(name: str, tmp_path: Path) -> None:
    """And its tensors, stacked experts and buffers among them: transformers' logits after a way through it."""
    case = cases.by_name(name)
    config = cases.ours(case).config
    hf = json.loads(json.dumps(config.changed(family="litlm").to_hf()))
    again = Config.from_hf(hf)
    assert again.family == "litlm"
    assert dataclasses.replace(again, family=config.family, name=config.name) == config
    assert Config.from_hf(json.loads(json.dumps(again.to_hf()))).to_dict() == again.to_dict()
    model = cases.load(cases.write(case))
    model.config = config.changed(family="litlm")
    LLM(model, model.config).save(tmp_path)
    ids = cases.tokens(case, 2, 17)
    cases.close(LLM.load(tmp_path, device="cpu").model(ids), cases.hf_logits(case, ids), 1e-4)


def test_problems_of_such_a_config_are_named(tmp_path: Path) -> None:
    hf = json.loads(json.dumps(own("sandwich").to_hf()))
    with pytest.raises(ValueError, match="n_head"):
        Config.from_hf(hf | {"config": hf["config"] | {"n_head": 0}})
    with pytest.raises(ValueError, match="blok"):
        Config.from_hf(hf | {"config": hf["config"] | {"blok": "post"}})
    with pytest.raises(ValueError, match="config"):
        Config.from_hf({k: v for k, v in hf.items() if k != "config"})


def test_the_other_families_are_not_disturbed() -> None:
    assert "litlm" in list_families()
    for arch in ("llama", "gemma2", "qwen3moe"):
        assert family_of_gguf(GGUFFields({"general.architecture": arch}, {})).model_type != "litlm"
    with pytest.raises(ValueError):
        family_of_gguf(GGUFFields({"general.architecture": "litlm"}, {}))
    with pytest.raises(ValueError, match="logit_softcap"):  # unless it is asked for, nothing is saved in this form
        tiny.shared().config.changed(logit_softcap=30.0).to_hf()


def test_pretraining_one(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of("pretrain", files, tmp_path / "run", max_steps=4)
    assert isinstance(settings, PretrainSettings)
    run(dataclasses.replace(settings, model_args=dict(block="sandwich", logit_softcap=20.0)))
    said = capsys.readouterr().err
    assert "logit_softcap" in said
    assert "So it is saved in litlm's own form (model_type litlm)." in said
    final = LLM.load(tmp_path / "run" / "final", device="cpu")
    step = LLM.load(tmp_path / "run" / "step-000004", device="cpu")
    assert final.config.family == "litlm"
    assert (final.config.block, final.config.logit_softcap) == ("sandwich", 20.0)
    with torch.no_grad():
        assert torch.equal(final.model(TOKENS), step.model(TOKENS))
    assert final.tokenizer.encode("fox") == tiny.shared().tokenizer.encode("fox")
    # A run goes on from such a model, also with other data and as a finetuning.
    more = run(dataclasses.replace(settings, model=str(tmp_path / "run" / "final"), from_weights=True,
                                   out_dir=str(tmp_path / "more")))  # fmt: skip
    assert more.steps == 4
    capsys.readouterr()
    run(dataclasses.replace(settings, out_dir=str(tmp_path / "plain")))
    assert "own form" not in capsys.readouterr().err
    assert LLM.load(tmp_path / "plain" / "final", device="cpu").config.family == "llama"
