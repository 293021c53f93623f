"""Text models of multimodal checkpoints (Gemma 4 12B, Kimi K2.5, Phi-4, Qwen3.5): what transformers makes of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import EAGER, close, load, raw_tensors
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import open_directory, save_weights
from litlm.checkpoint.peft import load_adapter
from litlm.config import Config


def _check(theirs: Any, path: Path, family: str, saved_as: str) -> Config:
    """The text model of a checkpoint, and what is saved of it, compute what `theirs` does."""
    from transformers import AutoModelForCausalLM

    model = load(path / "in")
    ids = torch.randint(50, (2, 23), generator=torch.Generator().manual_seed(3))
    expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    close(model(ids), expected)
    assert model.config.family == family
    save_weights(model.state_dict(), model.config, path / "out")
    assert {name.split(".")[0] for name in raw_tensors(path / "out")} <= {"model", "lm_head"}
    assert Config.from_hf(path / "out").to_dict() == model.config.to_dict() | {"name": "out"}
    back = AutoModelForCausalLM.from_pretrained(path / "out", **EAGER).eval()
    assert type(back).__name__ == saved_as
    close(back(ids, use_cache=False).logits, expected)
    return model.config


@torch.no_grad()
def test_gemma4_unified(tmp_path: Path) -> None:
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    text = cases.by_name("gemma4_unified_text-pattern").hf | dict(pad_token_id=0)
    vision = dict(mm_embed_dim=24, mm_posemb_size=8, output_proj_dims=24, patch_size=2)
    config = Gemma4UnifiedConfig(
        text_config=text, vision_config=vision, audio_config=dict(audio_embed_dim=16), eos_token_id=[1, 60],
        image_token_id=59, audio_token_id=58, video_token_id=57,
    )  # fmt: skip
    theirs = Gemma4UnifiedForConditionalGeneration._from_config(config, dtype=torch.float32, **EAGER).eval()
    cases.randomize(theirs, 7)
    theirs.save_pretrained(tmp_path / "in")
    found = _check(theirs, tmp_path, "gemma4_unified_text", "Gemma4UnifiedForCausalLM")
    assert (found.eos_token_id, found.tie_embeddings) == ((1, 60), True)
    (note,) = open_directory(tmp_path / "in")[2]
    assert "left out" in note
    assert "model.language_model" not in note


@pytest.mark.parametrize("published", [False, True], ids=["as-transformers", "as-published"])
@torch.no_grad()
def test_kimi_k25(published: bool, tmp_path: Path) -> None:
    from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

    text = cases.by_name("deepseek_v3-yarn").hf | dict(model_type="deepseek_v3")
    vision = dict(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=20, pos_emb_height=2,
        pos_emb_width=2, pos_emb_time=2,
    )  # fmt: skip
    config = Kimi_K25Config(
        text_config=text, vision_config=vision, projection_hidden_size=16, tie_word_embeddings=False,
        image_token_id=59, video_token_id=58, vision_start_token_id=57, vision_end_token_id=56,
    )  # fmt: skip
    theirs = Kimi_K25ForConditionalGeneration._from_config(config, dtype=torch.float32, **EAGER).eval()
    cases.randomize(theirs, 8)
    theirs.save_pretrained(tmp_path / "in")
    # transformers 5.24 writes the text model's `layers` as `blocks`, as if they were the vision tower's.
    file = tmp_path / "in" / "model.safetensors"
    blocks, layers = "language_model.model.blocks.", "language_model.model.layers."
    save_file({n.replace(blocks, layers): t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    if published:
        file = tmp_path / "in" / "config.json"
        file.write_text(file.read_text().replace('"model_type": "deepseek_v3"', '"model_type": "kimi_k2"'))
    _check(theirs, tmp_path, "deepseek_v3", "DeepseekV3ForCausalLM")


@pytest.mark.parametrize("published", [False, True], ids=["as-transformers", "as-published"])
@torch.no_grad()
def test_phi4_multimodal(published: bool, tmp_path: Path) -> None:
    """The published files have every layer inside the adapters for images and speech."""
    from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

    text = cases.by_name("phi3-mini4").hf | dict(bos_token_id=1, eos_token_id=2, pad_token_id=None)
    vision = dict(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        crop_size=28,
    )  # fmt: skip
    audio = dict(
        hidden_size=16, intermediate_size=20, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
        depthwise_separable_out_channel=16, nemo_conv_channels=16, input_size=16, nemo_final_size=16,
    )  # fmt: skip
    config = Phi4MultimodalConfig(**text | dict(vision_config=vision, audio_config=audio))
    theirs = Phi4MultimodalForCausalLM._from_config(config, dtype=torch.float32, **EAGER).eval()
    cases.randomize(theirs, 9)
    theirs.save_pretrained(tmp_path / "in")
    if published:
        file = tmp_path / "in" / "model.safetensors"
        tensors = load_file(file)
        layers = [n for n in tensors if n.startswith("model.layers.") and "_proj." in n]
        for name in layers:
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.base_layer.weight"] = tensors.pop(name)
            tensors |= {
                f"{stem}.lora_{x}.{part}.weight": torch.ones(2, 3) for x in "AB" for part in ("speech", "vision")
            }
        save_file(tensors, file, metadata={"format": "pt"})
    _check(theirs, tmp_path, "phi3", "Phi3ForCausalLM")


_QWEN_VISION = dict(
    depth=1, hidden_size=16, intermediate_size=20, num_heads=2, patch_size=2, out_hidden_size=48,
    num_position_embeddings=16,
)  # fmt: skip
# What published files say beside transformers' fields; the vision part's model_type is the whole model's.
_QWEN_TEXT = dict(
    attn_output_gate=True, output_gate_type="swish", mamba_ssm_dtype="float32", mtp_num_hidden_layers=1,
    mtp_use_dedicated_embeddings=False, full_attention_interval=4, partial_rotary_factor=0.25,
    mlp_only_layers=[],
)  # fmt: skip


def _qwen3_5(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = cases.by_name(f"{family}_text-plain").hf | dict(model_type=f"{family}_text")
    text |= dict(rope_parameters=dict(
        rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25, mrope_section=[1, 1, 0], mrope_interleaved=True
    ))  # fmt: skip
    config = AutoConfig.for_model(
        family, text_config=text, vision_config=_QWEN_VISION, image_token_id=59, video_token_id=58,
        vision_start_token_id=57, vision_end_token_id=56,
    )  # fmt: skip
    theirs = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, **EAGER).eval()
    cases.randomize(theirs, 10)
    return theirs


@pytest.mark.parametrize("published", [False, True], ids=["as-transformers", "as-published"])
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_qwen3_5(family: str, published: bool, tmp_path: Path) -> None:
    """The published files have a layer that predicts a second token, and the experts of a layer in two tensors."""
    theirs = _qwen3_5(family)
    theirs.save_pretrained(tmp_path / "in")
    if published:
        experts = {n: t for n, t in theirs.state_dict().items() if ".mlp.experts." in n}
        assert all(t.dim() == 3 for t in experts.values())
        file = tmp_path / "in" / "model.safetensors"
        tensors = {n: t for n, t in load_file(file).items() if ".mlp.experts." not in n} | experts
        tensors |= {"mtp.layers.0.input_layernorm.weight": torch.ones(48), "mtp.fc.weight": torch.ones(48, 96)}
        save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
        file = tmp_path / "in" / "config.json"
        hf = json.loads(file.read_text())
        hf["text_config"] = hf["text_config"] | _QWEN_TEXT
        hf["vision_config"]["model_type"] = family
        file.write_text(json.dumps(hf))
    assert any(name.startswith("model.language_model.layers.0.") for name in raw_tensors(tmp_path / "in"))
    saved_as = type(theirs).__name__.replace("ConditionalGeneration", "CausalLM")
    _check(theirs, tmp_path, f"{family}_text", saved_as)
    (note,) = open_directory(tmp_path / "in")[2]
    assert note.startswith("left out")
    assert "model.visual" in note
    assert ("mtp" in note) == published
    assert "model.language_model" not in note


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_adapters_of_the_whole_qwen3_5(family: str, tmp_path: Path) -> None:
    """PEFT names the layers as they are inside the multimodal model."""
    from peft import LoraConfig, get_peft_model

    theirs = _qwen3_5(family)
    theirs.save_pretrained(tmp_path / "in")
    experts: Any = dict(target_parameters=["experts.gate_up_proj", "experts.down_proj"]) if "moe" in family else {}
    layers = r".*language_model.*\.(q_proj|in_proj_qkv|out_proj|gate_proj)"
    adapted = get_peft_model(theirs, LoraConfig(r=3, target_modules=layers, **experts))
    gen = torch.Generator().manual_seed(0)
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            p.copy_(0.2 * torch.randn(p.shape, generator=gen))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    model, ids = load(tmp_path / "in"), torch.randint(50, (2, 13), generator=gen)
    load_adapter(model, tmp_path / "adapter")
    close(model(ids), adapted(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
