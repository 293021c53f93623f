"""Directories that hold more, or other, than plain weights of a text model: what is read, and what the user is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import close, tokens
from safetensors.torch import load_file, save_file

from litlm.llm import LLM

CASE = cases.by_name("llama-plain")


def _copy(path: Path, extra: dict[str, torch.Tensor], **config: Any) -> Path:
    source = cases.write(CASE)
    written = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(written | config))
    save_file(load_file(source / "model.safetensors") | extra, path / "model.safetensors", {"format": "pt"})
    return path


@torch.no_grad()
def test_quantized_weights_are_read_with_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(cases.write(CASE), attn_implementation="eager").eval()
    stored = {}
    for name, p in model.named_parameters():
        if "_proj" in name:
            scale = p.abs().max() / 448
            small = (p / scale).to(torch.float8_e4m3fn)
            stored |= {name: small, name + "_scale_inv": scale.view(1, 1)}
            p.copy_(small.float() * scale)
    quantization = dict(quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic")
    llm = LLM.load(_copy(tmp_path, stored, quantization_config=quantization), device="cpu", dtype="float32")
    notice = capsys.readouterr().err
    assert "quantized" in notice
    assert "fp8" in notice
    ids = tokens(CASE, 2, 13)
    close(llm.model(ids), model(ids, use_cache=False).logits)
    # What is saved is an ordinary checkpoint.
    llm.save(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    close(LLM.load(tmp_path / "out", device="cpu").model(ids), llm.model(ids))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("quantization", "message"),
    [(dict(quant_method="mystery"), "mystery"), (dict(quant_method="gptq", bits=4, group_size=128), "q_proj")],
)
def test_quantized_weights_that_cannot_be_read(quantization: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _copy(tmp_path, {"model.layers.0.self_attn.q_proj.qweight": torch.zeros(6, 56, dtype=torch.int32)},
                 quantization_config=quantization)  # fmt: skip
    with pytest.raises(ValueError, match=message) as e:
        LLM.load(path, device="cpu")
    assert str(path) in str(e.value)


def test_integer_weights_without_an_explanation(tmp_path: Path) -> None:
    path = _copy(tmp_path, {"model.layers.0.self_attn.q_proj.weight": torch.zeros(48, 48, dtype=torch.int8)})
    with pytest.raises(ValueError, match="int8"):
        LLM.load(path, device="cpu")


@torch.no_grad()
def test_a_head_of_its_own_beside_a_config_that_ties(tmp_path: Path) -> None:
    """transformers does not tie weights that a file holds twice with different values; a copy is a copy."""
    from transformers import AutoModelForCausalLM

    tied = _copy(tmp_path, {}, tie_word_embeddings=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tied, attn_implementation="eager")
    llm, ids = LLM.load(tied, device="cpu"), tokens(CASE, 2, 9)
    assert not llm.config.tie_embeddings
    close(llm.model(ids), theirs.eval()(ids, use_cache=False).logits)
    copied = tmp_path / "copied"
    copied.mkdir()
    embed = load_file(cases.write(CASE) / "model.safetensors")["model.embed_tokens.weight"]
    llm = LLM.load(_copy(copied, {"lm_head.weight": embed.clone()}, tie_word_embeddings=True), device="cpu")
    assert llm.config.tie_embeddings
    assert llm.model.lm_head is None


def test_a_quantization_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantization_config='fp8' must be an object"):
        LLM.load(_copy(tmp_path, {}, quantization_config="fp8"), device="cpu")


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only tables that everybody recomputes go without a word."""
    from litlm.checkpoint.hf import open_directory

    _copy(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
    assert open_directory(tmp_path)[2] == []
    gemma = next(c for c in cases.CASES if c.family == "gemma3_text")
    tensors = load_file(cases.write(gemma) / "model.safetensors")
    tower = {
        "vision_tower.vision_model.head.weight": torch.zeros(3, 5),
        "multi_modal_projector.mm.weight": torch.ones(7),
    }
    text = json.loads((cases.write(gemma) / "config.json").read_text())
    path = tmp_path / "gemma"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(dict(model_type="gemma3", text_config=text)))
    save_file({f"language_model.{k}": v for k, v in tensors.items()} | tower, path / "model.safetensors")
    notes = open_directory(path)[2]
    assert len(notes) == 1
    assert "vision_tower.vision_model (15 weights)" in notes[0]
    assert "multi_modal_projector.mm (7 weights)" in notes[0]
