"""Adapters both ways: PEFT reads what litlm writes, litlm what PEFT writes, and what can't be read is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import cases
from parity.cases import Case
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from litlm.checkpoint.adapter import CHECKSUM
from litlm.checkpoint.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from litlm.cli.main import main
from litlm.config import Config
from litlm.llm import LLM
from litlm.model import GPT
from litlm.settings import MethodSettings
from litlm.transforms.lora import adapters, apply_lora

# PEFT reads a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LLAMA, TIED, QWEN, NEOX, EXAONE = (
    cases.by_name(name)
    for name in ("llama-mha-biases", "llama-mqa-tied", "qwen3-plain", "gpt_neox-odd-share", "exaone-plain")
)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _fresh(case: Case) -> GPT:
    return cases.load(cases.write(case))


@torch.no_grad()
def _fill(model: torch.nn.Module, seed: int = 0) -> None:
    gen = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora" in name:
            p.copy_(torch.randn(p.shape, generator=gen) * 0.3)


def _written_by_peft(case: Case, path: Path, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(cases.build(case)), LoraConfig(**({"task_type": "CAUSAL_LM"} | options)))
    _fill(model)
    model.save_pretrained(path, save_embedding_layers=False)
    return model.eval()


# --- from litlm to PEFT --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        (LLAMA, ("all-linear",)), (TIED, ("all-linear",)), (TIED, ("q_proj", "v_proj")),
        (LLAMA, ("layers.1.mlp.up_proj",)),
        (QWEN, ("all-linear",)), (QWEN, ("1.attn.o_proj", "down_proj")), (NEOX, ("all-linear",)), (NEOX, ("o_proj",)),
        (EXAONE, ("all-linear",)),
        (NEOX, ("layers.0.mlp.up_proj",)),
    ],
    ids=str,
)  # fmt: skip
def test_peft_reads_what_litlm_writes(case: Case, targets: tuple[str, ...], tmp_path: Path) -> None:
    from peft import PeftModel

    model = _fresh(case)
    names = apply_lora(model, MethodSettings(r=3, alpha=7, targets=targets))
    _fill(model)
    save_adapter(model, tmp_path, base="org/base")
    tokens = cases.tokens(case, 2, 15)
    theirs = PeftModel.from_pretrained(copy.deepcopy(cases.build(case)), str(tmp_path)).eval()
    fused = 6 if case is NEOX and targets == ("all-linear",) else 0  # q, k and v of three layers are one there
    assert sum(name.endswith("lora_A.default.weight") for name, _ in theirs.named_parameters()) == len(names) - fused
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (expected - cases.hf_logits(case, tokens)).abs().max() > 0.1
        cases.close(model(tokens), expected)
    again = _fresh(case)
    load_adapter(again, tmp_path)
    assert torch.equal(again(tokens), model(tokens))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert all("." not in name for name in config["target_modules"]) == (not any("." in t for t in targets))
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG, WEIGHTS, CHECKSUM}


def test_different_ranks_and_scales_are_written_as_patterns(tmp_path: Path) -> None:
    from peft import PeftModel

    from litlm.transforms.lora import attach

    model = _fresh(LLAMA)
    for i, (r, scale) in enumerate([(2, 1.0), (5, 1.5), (2, 3.0)]):
        attach(model.layers[i].attn.q_proj, r, scale)  # type: ignore[union-attr,arg-type]
    _fill(model)
    save_adapter(model, tmp_path, base="x")
    theirs = PeftModel.from_pretrained(copy.deepcopy(cases.build(LLAMA)), str(tmp_path)).eval()
    tokens = cases.tokens(LLAMA, 2, 9)
    with torch.no_grad():
        cases.close(model(tokens), theirs(tokens).logits)
        again = _fresh(LLAMA)
        load_adapter(again, tmp_path)
        cases.close(again(tokens), theirs(tokens).logits)


def test_more_layers_than_ten_are_not_confused(tmp_path: Path) -> None:
    """`layers.1` must not select `layers.11` as well."""
    from peft import PeftModel

    case = Case("llama-deep", "llama", TIED.hf | {"num_hidden_layers": 12, "vocab_size": 31}, 77)
    model = _fresh(case)
    apply_lora(model, MethodSettings(r=2, targets=("layers.1.attn.q_proj", "layers.10.mlp.up_proj")))
    _fill(model)
    save_adapter(model, tmp_path, base="x")
    theirs = PeftModel.from_pretrained(copy.deepcopy(cases.build(case)), str(tmp_path)).eval()
    assert sum(name.endswith("lora_A.default.weight") for name, _ in theirs.named_parameters()) == 2
    tokens = cases.tokens(case, 1, 9)
    with torch.no_grad():
        cases.close(model(tokens), theirs(tokens).logits)


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no LoRA adapters to save"):
        save_adapter(_fresh(LLAMA), tmp_path, base="x")


# --- from PEFT to litlm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (LLAMA, dict(r=4, lora_alpha=9, target_modules=ALL)),
        (LLAMA, dict(r=4, target_modules=["q_proj"], lora_alpha=3, lora_dropout=0.3)),
        (LLAMA, dict(r=4, target_modules="all-linear", use_rslora=True)),
        (LLAMA, dict(r=2, target_modules=["lm_head", "v_proj"])),
        (LLAMA, dict(r=2, target_modules=["up_proj"], layers_to_transform=[1], layers_pattern="layers")),
        (LLAMA, dict(r=2, target_modules=r".*layers\.[02]\.mlp\.(up|down)_proj")),
        (TIED, dict(r=6, lora_alpha=5, target_modules=ALL, init_lora_weights="gaussian")),
        (TIED, dict(r=4, lora_alpha=12, target_modules=["q_proj", "k_proj", "up_proj"], use_rslora=True,
                    rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.k_proj": 7},
                    alpha_pattern={"k_proj": 3, "layers.0.mlp.up_proj": 40})),
        (QWEN, dict(r=3, lora_alpha=11, target_modules=ALL, alpha_pattern={"q_proj": 0})),
        (QWEN, dict(r=3, lora_alpha=11, target_modules=ALL, alpha_pattern={r"model.layers.[12].mlp.*": 5})),
        (NEOX, dict(r=3, target_modules=["dense", "dense_h_to_4h", "dense_4h_to_h"])),
        (EXAONE, dict(r=3, target_modules=ALL)),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "-".join(value)[:60],
)  # fmt: skip
def test_litlm_reads_what_peft_writes(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = _written_by_peft(case, tmp_path, **options)
    model = _fresh(case)
    load_adapter(model, tmp_path)
    save_adapter(model, tmp_path / "again", base="x")  # also where an adapter's scale is 0
    assert not any(m.training for m in model.modules())
    tokens = cases.tokens(case, 2, 15)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (expected - cases.hf_logits(case, tokens)).abs().max() > 0.05
        cases.close(model(tokens), expected)
    save_adapter(model, tmp_path / "again", base="x")  # and back once more
    again = _fresh(case)
    load_adapter(again, tmp_path / "again")
    with torch.no_grad():
        cases.close(again(tokens), expected)


def test_half_precision_adapters_are_read_into_fp32(tmp_path: Path) -> None:
    _written_by_peft(LLAMA, tmp_path, r=4, target_modules=["q_proj"])
    tensors = {name: t.bfloat16() for name, t in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model = cases.load(cases.write(LLAMA), torch.bfloat16)
    load_adapter(model, tmp_path)
    for name, lora in adapters(model):
        assert lora.A.dtype == torch.float32
        key = f"base_model.model.model.{name.replace('attn', 'self_attn')}.lora_A.weight"
        assert torch.equal(lora.A, tensors[key].float())


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = _fresh(LLAMA)
    apply_lora(model, MethodSettings(r=2, targets=("q_proj", "up_proj")))
    save_adapter(model, tmp_path / "a", base="x")
    return tmp_path / "a"


def _refused(path: Path, *texts: str, case: Case = LLAMA) -> str:
    model = _fresh(case)
    with pytest.raises(ValueError, match=".") as e:
        load_adapter(model, path)
    for text in (str(path), *texts):
        assert text in str(e.value)
    assert not list(adapters(model))
    return str(e.value)


@pytest.mark.parametrize(
    "options",
    [
        dict(bias="lora_only"),
        dict(init_lora_weights="pissa"), dict(init_lora_weights="olora"),
        dict(lora_bias=True), dict(layer_replication=[[0, 2], [1, 3]]), dict(alora_invocation_tokens=[1]),
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_kinds_of_adapters_that_are_more_than_lora(options: dict[str, Any], tmp_path: Path) -> None:
    if next(iter(options)) in ("init_lora_weights", "lora_bias"):  # PEFT warns, or changes the base; the words will do
        _written_by_peft(LLAMA, tmp_path, r=2, target_modules=["q_proj"])
        config = json.loads((tmp_path / CONFIG).read_text()) | options
        (tmp_path / CONFIG).write_text(json.dumps(config))
    else:
        _written_by_peft(LLAMA, tmp_path, **(dict(r=2, target_modules=["q_proj"]) | options))
    _refused(tmp_path, next(iter(options)), "not supported")


def test_everything_unsupported_is_named_at_once(adapter: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text()) | {"peft_type": "IA3", "lora_bias": True, "bias": "all"}
    (adapter / CONFIG).write_text(json.dumps(config))
    _refused(adapter, "peft_type='IA3'", "lora_bias=True", "bias='all'")


def test_another_models_adapter(adapter: Path) -> None:
    message = _refused(adapter, "q_proj: lora_A [2, 48]", "don't fit a layer of 40 to 48", case=QWEN)
    assert len(message.splitlines()) == 7  # three layers, two kinds, one headline
    _refused(adapter, "is not a LoRA tensor of a gpt_neox model", case=NEOX)


def test_a_deeper_models_adapter(tmp_path: Path) -> None:
    deep = Case("llama-deeper", "llama", LLAMA.hf | {"num_hidden_layers": 4}, 5)
    _written_by_peft(deep, tmp_path, r=2, target_modules=["q_proj"])
    _refused(tmp_path, "layers.3.self_attn.q_proj.lora_A.weight: this model has no linear layer there")


def _cut(path: Path) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[: len(data) // 2])


def _drop_half(path: Path) -> None:
    tensors = {
        name: t for name, t in load_file(path / WEIGHTS).items() if "lora_B" not in name or "up_proj" not in name
    }
    save_file(tensors, path / WEIGHTS)


def _as_pickle(path: Path) -> None:
    (path / WEIGHTS).rename(path / "adapter_model.bin")


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (_cut, "truncated or corrupt"),
        (_drop_half, "up_proj has lora_A only"),
        (_as_pickle, "pickled adapter_model.bin is not read"),
        (lambda path: (path / CONFIG).unlink(), f"has no {CONFIG}"),
        (lambda path: (path / CONFIG).write_text("{"), "not valid JSON"),
        (lambda path: (path / CONFIG).write_text("[1]"), "JSON object"),
        (lambda path: save_file({}, path / WEIGHTS), "holds no tensors"),
    ],
    ids=["cut", "half", "pickle", "no-config", "bad-json", "list", "empty"],
)
def test_damaged_adapters(harm: Callable[[Path], object], text: str, adapter: Path) -> None:
    harm(adapter)
    _refused(adapter, text)


def test_a_second_adapter(adapter: Path) -> None:
    model = _fresh(LLAMA)
    load_adapter(model, adapter)
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        load_adapter(model, adapter)


# --- litlm merge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_merge_writes_a_plain_checkpoint(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    llm = tiny.load(family)
    apply_lora(llm.model, MethodSettings(r=3))
    _fill(llm.model)
    save_adapter(llm.model, tmp_path / "a", base=str(tiny.folder(family)))
    main(["merge", str(tmp_path / "a"), "--out_dir", str(tmp_path / "merged")])
    assert str(tmp_path / "merged") in capsys.readouterr().out
    base = AutoModelForCausalLM.from_pretrained(tiny.folder(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "a")).merge_and_unload().eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for (name, a), (_, b) in zip(merged.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    again, adapted = LLM.load(tmp_path / "merged", device="cpu"), tiny.load(family, adapter=tmp_path / "a")
    assert not list(adapters(again.model))
    prompt = "The quick brown"
    assert again.generate(prompt, max_new_tokens=12) == adapted.generate(prompt, max_new_tokens=12)
    adapted.save(tmp_path / "saved")  # saving merges into the copy
    assert list(adapters(adapted.model))
    for name, tensor in load_file(tmp_path / "saved" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "merged" / "model.safetensors")[name])


def test_an_adapter_given_as_the_model_is_put_on_its_base(adapter: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    config["base_model_name_or_path"] = str(cases.write(LLAMA))
    (adapter / CONFIG).write_text(json.dumps(config))
    loaded = LLM.load(adapter)
    with safe_open(adapter / WEIGHTS, framework="pt") as f:
        assert 2 * len(list(adapters(loaded.model))) == len(f.keys()) > 0
    assert loaded.config.n_layer == Config.from_hf(cases.write(LLAMA)).n_layer


def test_merge_asks_for_a_base(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": None}
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        main(["merge", str(adapter), "--out_dir", str(tmp_path / "m")])
    assert "--base MODEL" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    main(["merge", str(adapter), "--base", str(cases.write(LLAMA)), "--out_dir", str(tmp_path / "m")])
    assert (tmp_path / "m" / "model.safetensors").is_file()
