"""What the table of cases can't show: the text part of Llama 4's multimodal checkpoints, patterns of layers that
configs leave out, and tensors of layers that predict further tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import close, raw_tensors
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import save_weights
from litlm.config import Config
from litlm.context import KVCache
from litlm.model import GPT
from litlm.transforms.lora import attach

_TEXT: dict[str, Any] = dict(
    vocab_size=61, hidden_size=40, intermediate_size=24, intermediate_size_mlp=52, num_hidden_layers=4, head_dim=12,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=3, interleave_moe_layer_step=2, floor_scale=4,
    attention_chunk_size=5, max_position_embeddings=128, pad_token_id=None,
)  # fmt: skip
_VISION = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=14,
    vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
)  # fmt: skip


@torch.no_grad()
def test_multimodal_checkpoint(tmp_path: Path) -> None:
    """Vision tensors are ignored; what is saved is a text model that transformers reads."""
    from transformers import AutoModelForCausalLM, Llama4Config, Llama4ForConditionalGeneration

    config = Llama4Config(text_config=_TEXT, vision_config=_VISION)
    theirs = Llama4ForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="eager")
    cases.randomize(theirs, 5)
    theirs = theirs.eval()
    theirs.save_pretrained(tmp_path / "in")
    names = raw_tensors(tmp_path / "in")
    assert {name.split(".")[0] for name in names} == {"language_model", "vision_model", "multi_modal_projector"}

    model = cases.load(tmp_path / "in")
    ids = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(3))
    # The text part alone: the whole model of transformers 5.24 looks for image outputs in the text part's.
    expected = theirs.language_model(input_ids=ids, use_cache=False).logits
    close(model(ids), expected)
    assert model.config.family == "llama4_text"
    assert model.config.moe_layers == (False, True, False, True)

    save_weights(model.state_dict(), model.config, tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **cases.EAGER)
    assert type(back).__name__ == "Llama4ForCausalLM"
    close(back.eval()(ids, use_cache=False).logits, expected, 1e-5)
    inner = {name.removeprefix("language_model."): t for name, t in names.items() if name.startswith("language")}
    assert raw_tensors(tmp_path / "out") == inner


@torch.no_grad()
def test_mistral_small_4(tmp_path: Path) -> None:
    """mistral4 is published as the text part of a multimodal model."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = cases.by_name("mistral4-halves").hf | dict(model_type="mistral4")
    vision = dict(
        model_type="pixtral", hidden_size=24, intermediate_size=36, num_hidden_layers=1, num_attention_heads=2,
        head_dim=12, image_size=28, patch_size=14,
    )  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=59, tie_word_embeddings=False)
    theirs = Mistral3ForConditionalGeneration._from_config(config, dtype=torch.float32, **cases.EAGER).eval()
    cases.randomize(theirs, 6)
    theirs.save_pretrained(tmp_path)
    assert {"language_model", "vision_tower"} <= {name.split(".")[0] for name in raw_tensors(tmp_path)}
    model = cases.load(tmp_path)
    assert model.config.family == "mistral4"
    ids = torch.randint(58, (2, 19), generator=torch.Generator().manual_seed(7))
    close(model(ids), theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)


@pytest.mark.parametrize(
    "hf", [{}, {"no_rope_layer_interval": 3, "no_rope_layers": []}, {"moe_layers": [0, 6]}], ids=str
)
def test_default_patterns(hf: dict[str, Any]) -> None:
    """Files may leave the lists out; transformers' config class fills them in."""
    from transformers import Llama4TextConfig

    data = dict(_TEXT, num_hidden_layers=7, **hf)
    theirs, config = Llama4TextConfig(**data), Config.from_hf({"model_type": "llama4_text"} | data)
    assert theirs.no_rope_layers is not None
    assert theirs.layer_types is not None
    assert config.rope_layers == tuple(bool(n) for n in theirs.no_rope_layers)
    assert config.layer_types == tuple(t.removesuffix("_attention") for t in theirs.layer_types)
    assert [i for i, moe in enumerate(config.moe_layers) if moe] == theirs.moe_layers


@pytest.mark.parametrize(
    ("name", "extra"), [("deepseek_v3-groups", 61), ("glm4_moe-plain", 46), ("glm4_moe-plain", 92)]
)
def test_prediction_layers_are_ignored(name: str, extra: int, tmp_path: Path) -> None:
    """As the published files have them: a whole layer more, with some tensors of its own."""
    case = cases.by_name(name)
    path = shutil.copytree(cases.write(case), tmp_path / "in")
    tensors = load_file(path / "model.safetensors")
    last = [n for n in tensors if n.startswith("model.layers.2.")]
    tensors |= {n.replace(".layers.2.", f".layers.{extra}."): tensors[n].clone() for n in last}
    tensors |= {f"model.layers.{extra}.eh_proj.weight": torch.ones(3, 4)}
    save_file(tensors, path / "model.safetensors")
    ids = cases.tokens(case, 2, 5)
    with torch.no_grad():
        assert torch.equal(cases.load(path)(ids), cases.ours(case)(ids))

    wrong = {n.replace(f".layers.{extra}.", ".layers.7."): t for n, t in tensors.items()}
    save_file(wrong, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.7\.eh_proj"):
        cases.load(path)


def test_a_deep_model_keeps_its_layers(tmp_path: Path) -> None:
    """Layer 46 is one prediction layer too many in GLM-4.5-Air, and a layer like others in GLM-4.5."""
    case = cases.by_name("glm4_moe-plain")
    deep = dataclasses.replace(cases.ours(case).config, n_layer=48, layer_types=(), moe_layers=(), rope_layers=())
    deep = dataclasses.replace(deep, moe_layers=(False,) + (True,) * 47)
    model = GPT(deep)
    cases.randomize(model, 1)
    save_weights(model.state_dict(), deep, tmp_path)
    back = cases.load(tmp_path).state_dict()
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(t, back[name]) for name, t in model.state_dict().items())


@torch.no_grad()
def test_an_adapted_expansion_of_latents() -> None:
    """LoRA on kv_b_proj, which a cache absorbs into queries and outputs: as transformers with the weights' sum."""
    case = cases.by_name("deepseek_v3-groups")
    theirs, model = copy.deepcopy(cases.build(case)), cases.load(cases.write(case))
    gen = torch.Generator().manual_seed(2)
    for i, own in enumerate(theirs.model.layers):
        expansion = model.get_submodule(f"layers.{i}.attn.kv_b_proj")
        assert isinstance(expansion, torch.nn.Linear)
        lora = attach(expansion, 3, 0.7)
        for p in lora.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=gen))
        own.self_attn.kv_b_proj.weight += 0.7 * lora.B @ lora.A
    ids = cases.tokens(case, 2, 20)
    expected = theirs(ids, use_cache=False).logits
    close(model(ids), expected)
    cache = KVCache(model.config, 2, 20, dtype=torch.float32)
    close(torch.cat([model(part, context=cache) for part in ids.split([7, 1, 1, 5, 6], 1)], 1), expected)


@torch.no_grad()
def test_axk1_as_published(tmp_path: Path) -> None:
    """Its files have no selection bias, and an unused norm in dense layers."""
    case = cases.by_name("axk1-plain")
    path = shutil.copytree(cases.write(case), tmp_path / "in")
    tensors = load_file(path / "model.safetensors")
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    zeros = tensors | {name: torch.zeros_like(tensors[name]) for name in biases}
    save_file(zeros, path / "model.safetensors")
    ids = cases.tokens(case, 2, 9)
    expected = cases.load(path)(ids)
    norm = {"model.layers.0.post_mlp_layernorm.weight": torch.ones(40)}
    save_file({n: t for n, t in tensors.items() if n not in biases} | norm, path / "model.safetensors")
    assert torch.equal(cases.load(path)(ids), expected)
    assert not torch.equal(cases.ours(case)(ids), expected)
