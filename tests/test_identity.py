"""A run goes on with the model that it began with, and with no other, however alike."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_resume import stop_at
from test_run import Files, content, run, settings_of, write_files

from litlm.llm import LLM
from litlm.settings import DPOSettings, MethodSettings
from litlm.train.fingerprint import checksums


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litlm.train.plot.plot_loss", lambda *args: None)


@pytest.mark.parametrize(
    "case", ["lora", "qlora", "adapter", "full-freeze", "lora-mixed", "dpo", "dpo-full"]
)  # fmt: skip
def test_another_base_of_the_same_shape_is_refused(case: str, files: Files, tmp_path: Path) -> None:
    with stop_at(3):
        run(settings_of(case, files, tmp_path))
    before = content(tmp_path)
    other = str(tiny.folder(seed=1))
    with pytest.raises(ValueError) as e:
        run(settings_of(case, files, tmp_path, run=dict(model=other, resume="auto")))
    said = str(e.value)
    assert f"step-000003 goes with another model than model={other} is now" in said
    assert "weights that it relies on are others (" in said
    assert f"Resume with --model {tiny.folder()}, or start anew in another --out_dir" in said
    assert content(tmp_path) == before
    with pytest.raises(ValueError, match="goes with another model"):
        run(settings_of(case, files, tmp_path, run=dict(resume="auto")), llm=tiny.load(seed=1))
    assert run(settings_of(case, files, tmp_path, run=dict(resume="auto"))).steps == 8


@pytest.mark.parametrize("case", ["full", "pretrain"])
def test_other_weights_to_start_from_are_refused_where_the_checkpoint_holds_all(
    case: str, files: Files, tmp_path: Path
) -> None:
    """The weights would be right, but settings and report would name a model that the run never saw."""
    with stop_at(3):
        run(settings_of(case, files, tmp_path / "out"))
    other = str(tiny.folder(seed=1))
    settings = settings_of(case, files, tmp_path / "out", run=dict(model=other, resume="auto"))
    if case == "pretrain":  # the model is only what says the architecture
        run(settings)
        return
    with pytest.raises(ValueError, match="training started from other weights"):
        run(settings)


def test_frozen_weights_alone_count(files: Files, tmp_path: Path) -> None:
    """Modules that are trained whole are in the checkpoint; only a reference model needs what they were."""

    def changed() -> LLM:
        llm = tiny.load()
        with torch.no_grad():
            llm.model.norm.weight += 1
        return llm

    for case, preference in (("lora", False), ("dpo", True)):
        method = MethodSettings(r=4, modules_to_save=("norm",))
        with stop_at(3):
            run(settings_of(case, files, tmp_path / case, run=dict(method=method)))
        settings = settings_of(case, files, tmp_path / case, run=dict(method=method, resume="auto"))
        assert isinstance(settings, DPOSettings) == preference
        if preference:
            with pytest.raises(ValueError, match=r" 1 of the \d+ weights .* \(norm.weight\)"):
                run(settings, llm=changed())
        else:
            assert run(settings, llm=changed()).steps == 8


def test_a_field_of_the_config_is_named_and_so_are_files_that_changed(files: Files, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny.folder(), base)
    with stop_at(3):
        run(settings_of("full", files, tmp_path / "out", run=dict(model=str(base))))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    settings = settings_of("full", files, tmp_path / "out", run=dict(model=str(base), resume="auto"))
    with pytest.raises(ValueError, match=r"norm.eps=0.001, it had 1e-06\. Its files have changed since the run began"):
        run(settings)
    (base / "config.json").write_text(json.dumps(config))
    assert run(settings).steps == 8


@pytest.mark.parametrize(("before", "after"), [("32-true", "bf16-true"), ("bf16-true", "32-true")])
def test_another_precision_is_no_other_model(before: str, after: str, files: Files, tmp_path: Path) -> None:
    with stop_at(3):
        run(settings_of("lora", files, tmp_path, precision=before))
    other = dict(model=str(tiny.folder(seed=1)), resume="auto")
    with pytest.raises(ValueError, match="goes with another model"):
        run(settings_of("lora", files, tmp_path, precision=after, run=other))
    assert run(settings_of("lora", files, tmp_path, precision=after, run=dict(resume="auto"))).steps == 8


def test_a_checkpoint_from_before_weights_were_compared_goes_on_and_says_so(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stop_at(3):
        run(settings_of("lora", files, tmp_path))
    path = tmp_path / "step-000003" / "training" / "state.json"
    state = json.loads(path.read_text())
    del state["state"]["kind"]["model"]
    path.write_text(json.dumps(state))
    capsys.readouterr()
    run(settings_of("lora", files, tmp_path, run=dict(resume="auto"), max_steps=4), quiet=False)
    assert "step-000003 does not say which model it goes with" in capsys.readouterr().err
    other = dict(model=str(tiny.folder(seed=1)), resume="auto")
    with pytest.raises(ValueError, match="goes with another model"):  # the next one does
        run(settings_of("lora", files, tmp_path, run=other))


# --- checksums -----------------------------------------------------------------------------------------------------


def expected(data: bytes) -> str:
    """By numpy: sums of 1024 words, each times an odd number that says where it is."""
    words = np.frombuffer(data + b"\0" * (-len(data) % 8192), np.uint64).reshape(-1, 1024)
    with np.errstate(over="ignore"):
        rows = words.sum(1, dtype=np.uint64) * (2 * np.arange(len(words), dtype=np.uint64) + 1)
        return f"{int(rows.sum(dtype=np.uint64)):016x}"


@pytest.mark.parametrize("n", [1, 7, 4096, 100_001, 2**18 * 3 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int8])
def test_a_checksum_is_that_of_all_bytes(n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litlm.train.fingerprint._CHUNK", 2**15)
    module, values = torch.nn.Module(), torch.randn(n, generator=torch.Generator().manual_seed(n)) * 50
    module.register_buffer("w", tensor := values.to(dtype))
    kind, whole, sample = checksums(module)["w"].split(":")
    assert kind == str(dtype).removeprefix("torch.")
    assert whole == expected(tensor.view(torch.uint8).numpy().tobytes())
    few = tensor[:: max(1, n // 2**18)]
    few = few.bfloat16() if few.is_floating_point() else few
    assert sample == expected(few.contiguous().view(torch.uint8).numpy().tobytes())


def test_checksums_tell_models_apart() -> None:
    module = torch.nn.Linear(64, 300, bias=False).requires_grad_(False)
    first = checksums(module)
    with torch.no_grad():
        module.weight[5, 7] = torch.nextafter(module.weight[5, 7], torch.tensor(9.0))  # in the last bit
    assert checksums(module) != first
    with torch.no_grad():
        module.weight[5, 7] = torch.nextafter(module.weight[5, 7], torch.tensor(-9.0))
        assert checksums(module) == first
        module.weight[[3, 290]] = module.weight[[290, 3]]
    assert checksums(module) != first
    assert checksums(module.requires_grad_(True)) == {}
    assert checksums(module, trained=True).keys() == {"weight"}


def test_every_field_of_the_settings_is_json() -> None:
    """What is compared is read back from a file."""
    from litlm.train.fingerprint import run_fingerprint

    llm = tiny.shared()
    for settings in (dataclasses.replace(s) for s in _settings()):
        found = run_fingerprint(settings, llm)
        assert json.loads(json.dumps(found)) == found
        assert found["model"]["config"]["rope.theta"] == 10000.0
        assert "max_seq_len" not in found["model"]["config"]


def _settings() -> list[Any]:
    files = Files(Path("a"), Path("b"), Path("c"))
    return [settings_of(case, files, Path("out")) for case in ("lora", "qlora", "dpo", "pretrain", "full-freeze")]
