"""A file that the system does not give is never called damaged, and a run's directory stands for its model."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tiny
import torch

from litlm.checkpoint.config import load_config
from litlm.checkpoint.download import resolve
from litlm.checkpoint.hf import INDEX, SafetensorsSource
from litlm.checkpoint.litgpt import LitGPTSource, _unpickle
from litlm.checkpoint.peft import load_adapter, save_adapter
from litlm.checkpoint.training import load_checkpoint
from litlm.data.prepare import load_tokenizer, read_index
from litlm.io import reading as files
from litlm.llm import LLM
from litlm.settings import MethodSettings
from litlm.tokenizer import Tokenizer
from litlm.transforms.lora import adapters, apply_lora

DAMAGE = re.compile("download|delete|remove|corrupt|damaged|truncated|not valid|again", re.IGNORECASE)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """Not tmp_path, whose parents are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def model(place: Path) -> Path:
    folder = place / "model"
    shutil.copytree(tiny.folder(), folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def _load_adapter(folder: Path) -> object:
    return load_adapter(tiny.shared().model, folder)  # fails before it changes anything


def _tokenizer(folder: Path) -> object:
    return Tokenizer.from_dir(folder)


READERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    # what reads a directory -> its files, of which one after the other can't be read
    "model": (LLM.load, ("config.json", "model.safetensors", "generation_config.json")),
    "index": (LLM.load, (INDEX,)),
    "tokenizer": (_tokenizer, ("tokenizer.json", "tokenizer_config.json")),
    "sentencepiece": (_tokenizer, ("tokenizer.model",)),
    "litgpt": (LitGPTSource, ("model_config.yaml",)),
    "litgpt weights": (lambda folder: _unpickle(folder / "lit_model.pth"), ("lit_model.pth",)),
    "adapter": (_load_adapter, ("adapter_config.json", "adapter_model.safetensors")),
    "gguf": (lambda folder: LLM.load(folder / "m.gguf"), ("m.gguf",)),
    "yaml": (lambda folder: load_config(str(folder / "config.yaml")), ("config.yaml",)),
    "checkpoint": (load_checkpoint, ("training/state.json", "training/weights.safetensors")),
    "prepared": (read_index, ("index.json",)),
}


def write(kind: str, place: Path) -> Path:
    """Files whose content is never reached; those of the model are whole."""
    if kind in ("model", "tokenizer"):
        return model(place)
    folder = place / kind
    for name in READERS[kind][1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    if kind == "index":
        shutil.copy(tiny.folder() / "config.json", folder)
    if kind == "litgpt":
        (folder / "lit_model.pth").touch()
    if kind == "adapter":
        config = dict(peft_type="LORA", r=4, lora_alpha=8, target_modules=["q_proj"])
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in READERS.items() for name in names])
def test_a_file_that_may_not_be_read_is_not_called_damaged(kind: str, name: str, place: Path) -> None:
    folder = write(kind, place)
    with suppress(Exception):  # so that all is imported that root alone may read
        READERS[kind][0](folder)
    (folder / name).chmod(0)
    with as_nobody(), pytest.raises(ValueError, match=re.escape(str(folder / name))) as caught:
        READERS[kind][0](folder)
    assert "permission denied" in str(caught.value)
    assert not DAMAGE.search(str(caught.value).replace(str(folder), ""))


def test_a_directory_that_may_not_be_read(place: Path) -> None:
    folder = model(place)
    assert resolve(folder) == folder
    assert (folder / "generation_config.json").is_file()
    for path, mode in ((folder, 0), (folder, 0o444), (place, 0)):
        path.chmod(mode)
        for source in (folder, str(folder), str(folder / "m.gguf")) if path == place else (folder, str(folder)):
            with as_nobody(), pytest.raises(ValueError, match="can't be read: permission denied") as caught:
                resolve(source)
            assert not DAMAGE.search(str(caught.value).replace(str(folder), ""))
        path.chmod(0o755)
    assert resolve(folder) == folder


def test_links_to_nothing_directories_and_failing_disks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "link").symlink_to(place / "gone")
    with pytest.raises(ValueError, match="link can't be read: it is a link to .*gone, which does not exist"):
        files.check_readable(place / "link")
    with pytest.raises(ValueError, match="can't be read: it is a directory"):
        files.check_readable(place)
    with pytest.raises(ValueError, match="nothing can't be read: it does not exist"):
        files.read_json(place / "nothing")

    def fails(*args: object, **kwargs: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = model(place)
    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(ValueError, match=r"model.safetensors can't be read: Input/output error") as caught:
        SafetensorsSource(folder)
    assert not DAMAGE.search(str(caught.value).replace(str(folder), ""))


def test_a_run_stands_for_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """final/, or else the newest checkpoint; for LLM.load, adapters, tokenizers and descriptions."""
    run = tmp_path / "run"
    for i, name in enumerate(("step-000900", "step-001000", "step-999.part", "final")):
        shutil.copytree(tiny.folder(seed=i), run / name)
    (run / "settings.yaml").write_text("seed: 1\n")
    assert resolve(run) == resolve(str(run)) == run / "final"
    assert f"Taking {run}/final\n" in capsys.readouterr().err
    said = LLM.load(run, device="cpu").generate("The quick", max_new_tokens=8)
    assert said == tiny.shared(seed=3).generate("The quick", max_new_tokens=8)
    shutil.rmtree(run / "final")
    assert resolve(run) == run / "step-001000"
    assert "step-001000, the newest checkpoint of a run that has no final/ yet" in capsys.readouterr().err
    assert load_config(str(run)).n_layer == 2
    assert load_tokenizer(run).vocab_size == tiny.shared().tokenizer.vocab_size
    assert resolve(run / "step-000900") == run / "step-000900"
    shutil.copy(run / "step-000900" / "config.json", run)  # a model itself, whatever else is in there
    assert resolve(run) == run
    (tmp_path / "begun").mkdir()
    for name in ("metrics.csv", "settings.yaml"):
        (tmp_path / "begun" / name).touch()
    with pytest.raises(ValueError, match=r"has saved no model yet.* --resume auto"):
        resolve(tmp_path / "begun")
    (tmp_path / "empty" / "final").mkdir(parents=True)
    assert resolve(tmp_path / "empty") == tmp_path / "empty"


def test_the_adapter_of_a_run(tmp_path: Path) -> None:
    llm = tiny.load()
    apply_lora(llm.model, MethodSettings(r=4, alpha=8))
    with torch.no_grad():
        for _, adapter in adapters(llm.model):
            adapter.B.normal_(std=0.5)
    save_adapter(llm.model, tmp_path / "run" / "step-000004", base=str(tiny.folder()))
    expected = llm.generate("The quick", max_new_tokens=8)
    assert expected != tiny.shared().generate("The quick", max_new_tokens=8)
    for given in (dict(source=tmp_path / "run"), dict(source=tiny.folder(), adapter=tmp_path / "run")):
        assert LLM.load(**given, device="cpu", dtype="float32").generate("The quick", max_new_tokens=8) == expected
