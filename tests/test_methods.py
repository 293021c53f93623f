"""Methods of training: what is trained, what patterns mean, that what can't be saved is refused before training, and
methods of other packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import cases
from parity.cases import close
from test_run import Files, run, settings_of, write_files
from torch import Tensor

from litlm.cli.main import main
from litlm.llm import LLM
from litlm.settings import MethodSettings
from litlm.settings.train import METHODS, method_names
from litlm.train.methods import AppliedMethod, Method, apply_method, get_method, register_method
from litlm.train.methods.full import select
from litlm.train.preflight import refuse_adapter
from litlm.transforms.lora import adapters_disabled
from litlm.transforms.quantize import count_parameters

TOKENS = torch.tensor([[5, 9, 200, 31, 7, 7, 90]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


@torch.no_grad()
def shaken(llm: LLM) -> Tensor:
    """Change everything that is trained; the logits then."""
    gen = torch.Generator().manual_seed(3)
    for p in llm.model.parameters():
        if p.requires_grad:
            p += 0.05 * torch.randn(p.shape, generator=gen)
    return llm.model(TOKENS)


NAMES = ["embed.weight", "layers.0.attn.q_proj.weight", "layers.0.mlp.up_proj.weight", "layers.1.attn.q_proj.weight",
         "layers.10.attn.q_proj.weight", "norm.weight", "layers.0.attn_norm.weight"]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("embed.weight",), {0}),
        (("embed",), {0}),
        (("q_proj.weight",), {1, 3, 4}),
        (("layers.1",), {3}),
        (("layers.1.*",), {3}),
        (("layers.*.q_proj.weight",), {1, 3, 4}),
        (("layers.?.attn.*",), {1, 3}),
        (("layers.0", "norm"), {1, 2, 5, 6}),
        (("norm.weight",), {5}),
        (("*norm.weight",), {5, 6}),
        ((), set()),
    ],
)
def test_what_patterns_mean(patterns: tuple[str, ...], expected: set[int]) -> None:
    assert select(NAMES, patterns, "freeze") == {NAMES[i] for i in expected}


@pytest.mark.parametrize("pattern", ["proj", "layers.2", "Embed", "layers.2.*", ""])
def test_a_pattern_that_means_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(
        ValueError, match=rf"freeze='{pattern.replace('*', '.')}' names nothing in this model; there are "
    ):
        select(NAMES, ("embed", pattern), "freeze")


def test_frozen_weights_stay_and_the_others_move(files: Files, tmp_path: Path) -> None:
    before = tiny.shared().model.state_dict()
    run(settings_of("full-freeze", files, tmp_path / "run"))
    after = tiny.LLM.load(tmp_path / "run" / "final", device="cpu", dtype="float32").model.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == name.startswith(("embed.", "layers.0.")), name


def test_what_is_trained() -> None:
    every = sum(p.numel() for p in tiny.shared().model.parameters())
    llm = tiny.load()
    llm.model.requires_grad_(False)
    assert apply_method(llm, MethodSettings(name="full")).notes == []
    assert count_parameters(llm.model) == (every, every)
    applied = apply_method(llm, MethodSettings(name="full", freeze=("layers.0.attn",)))
    attention = 48 * 14 * (4 + 2 + 2 + 4)
    assert applied.notes == ["4 tensors frozen"]
    assert applied.disabled is None
    assert count_parameters(llm.model) == (every - attention, every)
    with pytest.raises(ValueError, match=r"freeze=.* leaves nothing to train; name fewer parameters"):
        apply_method(llm, MethodSettings(name="full", freeze=("*",)))
    lora = apply_method(llm, MethodSettings(name="lora", r=3, targets=("q_proj",)))
    assert lora.notes == ["2 layers adapted"]
    assert count_parameters(llm.model)[0] == 2 * 3 * (48 + 56)


@pytest.mark.parametrize(
    ("case", "kind"), [("llama-mqa-tied", "nf4"), ("llama-plain", "int8"), ("mixtral-plain", "nf4-dq")]
)
def test_packed_weights_are_counted_as_weights(case: str, kind: str) -> None:
    """As many as the same model has unpacked, and the adapters."""
    path = cases.write(cases.by_name(case))
    counts = []
    for quantize in (None, kind):
        llm = LLM.load(path, device="cpu", dtype="float32", quantize=quantize)
        apply_method(llm, MethodSettings(r=3, targets=("q_proj", "experts") if "mix" in case else ("q_proj",)))
        counts.append(count_parameters(llm.model))
    assert counts[0] == counts[1]
    adapters = sum(p.numel() for name, p in llm.model.named_parameters() if ".lora." in name)
    assert counts[1] == (adapters, cases.ours(cases.by_name(case)).config.n_parameters() + adapters)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_what_full_exports_loads_with_the_same_logits(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llm = tiny.load(family)
    applied = apply_method(llm, MethodSettings(name="full"))
    applied.check()
    logits = shaken(llm)
    applied.export(tmp_path, "anything")
    with torch.no_grad():
        assert torch.equal(LLM.load(tmp_path, device="cpu").model(TOKENS), logits)
        close(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(TOKENS).logits, logits)
    assert (logits - tiny.shared(family).model(TOKENS)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["lora", "adapter", "adapter_v2"])
def test_what_adapters_export_loads_with_the_same_logits(name: str, tmp_path: Path) -> None:
    llm, base = tiny.load(), str(tiny.folder())
    own = dict(r=4) if name == "lora" else dict(start_layer=0)
    applied = apply_method(llm, MethodSettings(name=name, **own))  # type: ignore[arg-type]
    applied.check()
    logits = shaken(llm)
    applied.export(tmp_path, base)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = LLM.load(base, adapter=tmp_path, device="cpu", dtype="float32")
    with torch.no_grad():
        close(loaded.model(TOKENS), logits)
        assert applied.disabled is not None
        with applied.disabled():
            assert torch.equal(llm.model(TOKENS), tiny.shared().model(TOKENS))
        assert (logits - tiny.shared().model(TOKENS)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_a_base_with_other_weights_is_noticed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained further, or merged into already; not one in another dtype, nor where it can't be told."""
    llm, adapter, own = tiny.load(), tmp_path / "adapter", {} if name == "lora" else dict(start_layer=0)
    method = apply_method(llm, MethodSettings(name=name, **own))  # type: ignore[arg-type]
    shaken(llm)
    method.export(adapter, str(tiny.folder()))
    written = (adapter / "base_checksum.txt").read_text()
    if name == "lora":
        llm.save(tmp_path / "merged")
        low = tiny.load(dtype="bfloat16")
        apply_method(low, MethodSettings()).export(tmp_path / "low", "x")
        assert (tmp_path / "low" / "base_checksum.txt").read_text() == written

    def said(base: Path, **options: Any) -> str:
        capsys.readouterr()
        loaded = LLM.load(base, adapter=adapter, device="cpu", **options)
        assert loaded.adapter == str(adapter)
        return capsys.readouterr().err

    for options in (dict(dtype="float32"), dict(dtype="bfloat16"), dict(dtype="float16"), dict(quantize="int8")):
        assert said(tiny.folder(), **options) == ""
    trained = tiny.load()
    for p in trained.model.parameters():
        p.data *= 1.01
    trained.save(tmp_path / "trained")
    note = f"litlm: the adapter {adapter} was trained on other weights than this model has"
    for folder in ("trained", "merged") if name == "lora" else ("trained",):
        for dtype in ("float32", "bfloat16"):
            assert said(tmp_path / folder, dtype=dtype).startswith(note)
        assert said(tmp_path / folder, dtype="float16") == ""
    if name == "lora":
        capsys.readouterr()
        main(["merge", str(adapter), "--base", str(tmp_path / "merged"), "--out_dir", str(tmp_path / "twice")])
        assert capsys.readouterr().err.count(note) == 1
    (adapter / "base_checksum.txt").unlink()  # an older adapter, or PEFT's
    assert said(tmp_path / "trained") == ""


def test_a_base_that_cant_be_recognized_has_no_checksum(tmp_path: Path) -> None:
    """And none of an earlier adapter in the folder stays."""
    apply_method(tiny.load(), MethodSettings()).export(tmp_path, "x")
    assert (tmp_path / "base_checksum.txt").is_file()
    whole = MethodSettings(targets=("q_proj",), modules_to_save=("o_proj",))
    for llm, settings in ((tiny.load(), whole), (tiny.load(quantize="int8"), MethodSettings(name="qlora"))):
        (tmp_path / "base_checksum.txt").write_text("stale")
        apply_method(llm, settings).export(tmp_path, "x")
        assert not (tmp_path / "base_checksum.txt").exists()


def test_what_cant_be_saved_is_refused_before_training(files: Files, tmp_path: Path) -> None:
    """No family of Hugging Face is a Llama with capped logits."""
    llm = tiny.load()
    llm.config = llm.model.config = llm.config.changed(logit_softcap=20.0)
    with pytest.raises(ValueError, match="logit_softcap"):
        apply_method(llm, MethodSettings(name="full")).check()
    settings = settings_of("full", files, tmp_path / "run")
    with pytest.raises(ValueError, match="logit_softcap"):
        run(settings, llm=llm)
    assert not list((tmp_path / "run").glob("step-*"))
    assert not (tmp_path / "run" / "final").exists()


def test_what_cant_be_saved_names_no_temporary_folder() -> None:
    llm = tiny.load()
    applied = apply_method(llm, MethodSettings(r=2))

    def full(*args: object, **options: object) -> None:
        raise ValueError(f"{args[1]}/adapter_model.safetensors could not be written (No space left on device)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm, "save_chat_format", lambda folder: full(None, folder))
        with pytest.raises(ValueError, match=r"can't be saved: adapter_model.safetensors could not be written \(No"):
            applied.check()


# --- the registry --------------------------------------------------------------------------------------------------


def test_each_name_in_the_settings_has_a_method() -> None:
    assert [get_method(name).name for name in METHODS] == list(METHODS)
    with pytest.raises(ValueError, match="method='dare' is unknown; there are full, lora, qlora, adapter, adapter_v2"):
        MethodSettings(name="dare")
    with pytest.raises(ValueError, match="method='dare' is unknown; there are full, lora, qlora, adapter, adapter_v2"):
        get_method("dare")


def test_nobody_else_asks_for_a_method_by_its_name() -> None:
    """What differs between methods is in their classes, so that a new one is one file and one row of settings."""
    names = "|".join(METHODS)
    asks = re.compile(rf"""\b(method|name)\s*(==|!=|(not )?in)\s*[({{\[]?\s*["']({names})["']""")
    assert asks.search('if settings.method.name == "full"')
    assert asks.search('method.name in ("lora", "qlora")')
    root = Path(__file__).parents[1] / "litlm"
    found = [
        f"{path.name}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert found == []


EXTENSION = """
from litlm.train.methods import AppliedMethod, Method


class Norms(Method):
    name, whole_model = "norms", True

    def apply(self, llm, settings):
        for name, p in llm.model.named_parameters():
            p.requires_grad_(name.endswith("norm.weight"))
        return AppliedMethod(lambda folder, base: llm.save(folder), llm.config.to_hf, notes=["norms only"])


METHOD = Norms()
"""
SHIFT = """
import torch

from litlm.checkpoint.adapter import read_adapter_tensors, write_adapter
from litlm.checkpoint.adapter_formats import AdapterFormat
from litlm.train.methods import AppliedMethod, Method
from litlm.transforms.lora import Adapter


class Shift(Adapter):
    def __init__(self, n):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(n))


def attach(model):
    for layer in model.layers:
        layer.mlp.add_module("shift", Shift(model.config.n_embd))
        layer.mlp.register_forward_hook(lambda mlp, x, y: y if mlp.shift.disabled else y + mlp.shift.by)


def save(model, folder, *, base):
    tensors = {name: p for name, p in model.named_parameters() if ".shift." in name}
    write_adapter(folder, dict(peft_type="SHIFT"), tensors, base=base)


def load(model, path):
    attach(model)
    for name, tensor in read_adapter_tensors(path).items():
        model.get_parameter(name).data.copy_(tensor)


class ShiftMethod(Method):
    name = "shift"

    def apply(self, llm, settings):
        llm.model.requires_grad_(False)
        attach(llm.model)
        return AppliedMethod.of_adapters(llm, ["mlp"] * llm.config.n_layer, save)


METHOD, FORMAT = ShiftMethod(), AdapterFormat(load)
"""
PARSE = """
from litlm.cli.main import main, parse

print(parse("finetune", ["m", "--data", "d", "--method", "norms"]).method.name)
main(["finetune", "m", "--data", "d", "--method", "norm"])
"""


def install(packages: Path, name: str, text: str, entry_points: str) -> None:
    """Lay a package of one module into a folder as pip does."""
    info = packages / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / f"{name}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_a_method_from_another_package(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, it is known by name to settings, runs and commands; a run trains and saves what it says."""
    packages = tmp_path / "packages"
    install(packages, "litlm_norms", EXTENSION, "[litlm.methods]\nnorms = litlm_norms:METHOD\n")
    monkeypatch.syspath_prepend(packages)
    assert method_names() == (*METHODS, "norms")
    settings = settings_of("full", files, tmp_path / "run", run=dict(method=MethodSettings(name="norms")))
    result = run(settings)
    assert result.losses[-1] < result.losses[0]
    before = tiny.shared().model.state_dict()
    after = LLM.load(tmp_path / "run" / "final", device="cpu", dtype="float32").model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.endswith("norm.weight")
    }
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "norms only" in report
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-c", PARSE], env=env, capture_output=True, text=True)
    assert done.stdout == "norms\n"
    assert "--method.name must be full, lora, qlora, adapter, adapter_v2 or norms, not 'norm'" in done.stderr


def test_adapters_of_another_packages_format(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What such a method exports loads with the same logits, and is never silently lost."""
    packages, final = tmp_path / "packages", tmp_path / "run" / "final"
    points = "[litlm.methods]\nshift = litlm_shift:METHOD\n[litlm.adapters]\nSHIFT = litlm_shift:FORMAT\n"
    install(packages, "litlm_shift", SHIFT, points)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, "litlm_shift", raising=False)
    llm = tiny.load()
    run(settings_of("full", files, tmp_path / "run", run=dict(method=MethodSettings(name="shift")), lr=0.02), llm=llm)
    with torch.no_grad():
        logits = llm.model(TOKENS)
        assert (logits - tiny.shared().model(TOKENS)).abs().max() > 0.01
        for loaded in (LLM.load(tiny.folder(), adapter=final, device="cpu"), LLM.load(tmp_path / "run", device="cpu")):
            close(loaded.model(TOKENS), logits)
            with adapters_disabled(loaded.model):
                assert torch.equal(loaded.model(TOKENS), tiny.shared().model(TOKENS))
    with pytest.raises(ValueError, match="the model has Shift, an adapter that can't be merged into weights"):
        loaded.save(tmp_path / "saved")
    with pytest.raises(SystemExit):
        main(["merge", str(final), "--out_dir", str(tmp_path / "merged")])
    assert "has peft_type='SHIFT', an adapter that can't be merged into weights" in capsys.readouterr().err
    with pytest.raises(ValueError, match="it can't be merged, so train another adapter on"):
        refuse_adapter(str(final))


def test_adapters_that_nobody_reads_are_refused_before_training(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "packages", "litlm_shift", SHIFT, "[litlm.methods]\nshift = litlm_shift:METHOD\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "litlm_shift", raising=False)
    monkeypatch.setattr("litlm.train.methods._plugin", sys.modules["litlm.train.methods"]._plugin.__wrapped__)
    settings = settings_of("full", files, tmp_path / "run", run=dict(method=MethodSettings(name="shift")))
    with pytest.raises(ValueError, match=r"can't be saved: adapter_config.json: peft_type='SHIFT' is not supported"):
        run(settings)
    assert not (tmp_path / "run" / "final").exists()


def test_a_method_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    class Head(Method):
        name = "head"

        def apply(self, llm: LLM, settings: MethodSettings) -> AppliedMethod:
            llm.model.requires_grad_(False)
            llm.model.embed.requires_grad_(True)
            return AppliedMethod(lambda folder, base: None, lambda: None)

    monkeypatch.setattr("litlm.train.methods._registered", {})
    monkeypatch.setattr("litlm.settings.train.METHODS", dict(METHODS))
    monkeypatch.setattr("litlm.train.methods.METHODS", sys.modules["litlm.settings.train"].METHODS)
    method = register_method(Head())
    assert register_method(method) is method
    llm = tiny.load()
    apply_method(llm, MethodSettings(name="head", r=3))
    assert [name for name, p in llm.model.named_parameters() if p.requires_grad] == ["embed.weight"]
    for taken in (Head(), type("Another", (Head,), {"name": "lora"})()):
        with pytest.raises(ValueError, match=f"method='{taken.name}' is taken; choose another name"):
            register_method(taken)
