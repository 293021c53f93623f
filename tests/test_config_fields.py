"""Which fields of a config.json may be passed over, against what transformers writes, and `ignore_fields`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import cases
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from litlm import LLM
from litlm.checkpoint.peft import save_adapter
from litlm.cli.main import main
from litlm.config import Config
from litlm.settings import MethodSettings
from litlm.transforms.lora import apply_lora

FAMILIES = {case.family: case for case in reversed(cases.CASES)}
LLAMA = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
LLAMA |= dict(num_attention_heads=4)


def bookkeeping() -> dict[str, Any]:
    """A value for each field of transformers' base class, and for each sampling field that it has known."""
    fields: dict[str, Any] = {field.name: "x" for field in dataclasses.fields(PreTrainedConfig)}
    fields |= dict.fromkeys(PreTrainedConfig().to_dict(), "x")
    fields |= dict.fromkeys(GenerationConfig._get_default_generation_params(), 1.5)
    fields |= {key: 7 for key in GenerationConfig().to_dict() if key.endswith("_token_id")}
    for key in ("dtype", "model_type", "bos_token_id", "eos_token_id", "pad_token_id"):  # these mean something
        fields.pop(key, None)
    return fields


@pytest.mark.parametrize("family", FAMILIES)
def test_bookkeeping_refuses_no_checkpoint(family: str) -> None:
    plain = cases.hf_config(FAMILIES[family]).to_dict() | dict(model_type=family)
    notes = dict(_model_name_or_path="Some Model", _attn_implementation_autoset=True, _commit_hash="c0ffee")
    ids = dict(unk_token_id=0, sep_token_id=1, cls_token_id=2, mask_token_id=3, decoder_start_token_id=4)
    more = {key: value for key, value in (bookkeeping() | notes | ids).items() if key not in plain}
    assert len(more) > 20
    assert Config.from_hf(plain | more) == Config.from_hf(plain)
    for name, value in dict(
        mystery_scale=2.0, pruned_heads={"0": [1]}, add_cross_attention=True, is_causal=False
    ).items():
        with pytest.raises(ValueError, match=rf"{name}=.*is not (understood|supported)"):
            Config.from_hf(plain | more | {name: value})


@pytest.mark.parametrize("name", ["_sliding_window_pattern", "_remove_final_layer_norm"])
def test_an_underscore_does_not_excuse_what_changes_the_math(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=2 is not understood"):
        Config.from_hf(LLAMA | {name: 2})


def test_what_transformers_exports_of_a_gguf(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("Some Model")
    writer.add_uint32("llama.vocab_size", 3)
    for name, value in dict(block_count=2, context_length=64, embedding_length=32, feed_forward_length=48).items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("output.weight", torch.zeros(3, 32).numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    AutoConfig.from_pretrained(str(tmp_path), gguf_file="m.gguf").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {"_model_name_or_path", "unk_token_id"} <= written.keys()
    config = Config.from_hf(tmp_path)
    assert (config.n_layer, config.n_embd, config.n_head, config.n_kv_head, config.eos_token_id) == (2, 32, 4, 2, 2)


def with_fields(folder: Path, **fields: Any) -> Path:
    """The tiny checkpoint, with more in its config.json."""
    shutil.copytree(tiny.folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_weights_out_of_a_gguf_are_plain(tmp_path: Path) -> None:
    note = dict(quant_method="gguf", gguf_file="m.gguf", dequantize=False)
    llm, tokens = LLM.load(with_fields(tmp_path / "m", quantization_config=note), device="cpu"), torch.arange(9)[None]
    assert torch.equal(llm.model(tokens), tiny.load().model(tokens))


# --- ignore_fields ----------------------------------------------------------------------------------------------------
def test_ignored_fields() -> None:
    rope = dict(rope_type="linear", factor=2.0)
    plain, strange = LLAMA | dict(rope_scaling=rope), dict(mystery=1.5, other=[1], quiet=None)
    odd = plain | strange | dict(rope_scaling=rope | dict(extra=3))
    names = ["rope_parameters.extra", "mystery", "other"]
    with pytest.raises(ValueError) as e:
        Config.from_hf(odd)
    assert "--ignore_fields rope_parameters.extra --ignore_fields mystery --ignore_fields other" in str(e.value)
    assert f"ignore_fields={names} in Python" in str(e.value)
    assert Config.from_hf(odd, ignore_fields=[*names, "quiet"]) == Config.from_hf(plain)
    with pytest.raises(ValueError, match="other=.*is not understood"):
        Config.from_hf(odd, ignore_fields=names[:2])
    for wrong in ("mistery", "hidden_size", "rope_scaling", "rope_parameters.factor"):
        with pytest.raises(ValueError, match=rf"ignore_fields names {wrong}: .*no such field, or litlm understands it"):
            Config.from_hf(odd, ignore_fields=[*names, wrong])


def test_ignored_fields_of_a_part() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "model_type"} | dict(
        model_type="mistral", num_key_value_heads=2
    )
    data = dict(model_type="mistral3", text_config=text, vision_config={})
    odd = data | dict(text_config=text | dict(inner=1.5), outer=2.5)
    with pytest.raises(ValueError, match="--ignore_fields inner"):
        Config.from_hf(odd)
    assert Config.from_hf(odd, ignore_fields=["inner", "outer"]) == Config.from_hf(data)


def test_ignored_fields_of_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each passes them on to whatever reads the config."""
    folder = with_fields(tmp_path / "m", mystery=1.5)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}\n')
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    seen: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        seen.append(tuple(options["ignore_fields"]))
        raise ValueError("seen")

    monkeypatch.setattr(LLM, "load", load)
    out = ["--out_dir", str(tmp_path / "out")]
    commands = [
        ["generate", str(folder), "--prompt", "x"], ["chat", str(folder)],
        ["merge", str(adapter), "--base", str(folder), *out],
        *([name, str(folder), "--data", str(data), *out] for name in ("finetune", "dpo")),
        ["pretrain", str(folder), "--data", str(data), "--from_weights", *out],
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(SystemExit):
            main([*command, "--ignore_fields", "mystery", "--ignore-fields=other"])
        assert "seen" in capsys.readouterr().err
    assert seen == [("mystery", "other")] * len(commands)
    with pytest.raises(SystemExit):
        main(["describe", str(folder)])
    assert "--ignore_fields mystery" in capsys.readouterr().err
    main(["describe", str(folder), "--ignore_fields", "mystery"])
    from litlm.settings import PretrainSettings
    from litlm.settings.data import TextData
    from litlm.train.run import init_model

    settings = PretrainSettings(model=str(folder), data=TextData(path=(str(data),)), ignore_fields=("mystery",))
    assert init_model(settings, 64, None).config.n_layer == 2


def test_ignored_fields_reach_an_adapters_base(tmp_path: Path) -> None:
    folder = with_fields(tmp_path / "m", mystery=1.5)
    llm = tiny.load()
    apply_lora(llm.model, MethodSettings(name="lora"))
    save_adapter(llm.model, tmp_path / "adapter", base=str(folder))
    with pytest.raises(ValueError, match="--ignore_fields mystery"):
        LLM.load(tmp_path / "adapter")
    ids = LLM.load(tmp_path / "adapter", device="cpu", ignore_fields=["mystery"]).generate([5, 6], return_ids=True)
    assert ids == tiny.load().generate([5, 6], return_ids=True)


def test_ignored_fields_need_a_config(smollm2_gguf: Path) -> None:
    with pytest.raises(ValueError, match=r"ignore_fields=\['x'\] is for a config.json, which .*gguf does not have"):
        LLM.load(smollm2_gguf, ignore_fields=["x"])
