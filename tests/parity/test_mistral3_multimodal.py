"""Multimodal Mistral checkpoints: the text model of either spelling is what transformers computes from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import close, load, randomize, raw_tensors
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import save_weights
from litlm.config import Config

TEXT: dict[str, Any] = dict(
    vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, head_dim=10,
    num_key_value_heads=2, max_position_embeddings=128, sliding_window=None, tie_word_embeddings=False,
)  # fmt: skip
VISION = dict(
    model_type="pixtral", hidden_size=24, intermediate_size=36, num_hidden_layers=1, num_attention_heads=2,
    head_dim=12, image_size=28, patch_size=14,
)  # fmt: skip
GROWING = dict(
    rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=8, beta_fast=4.0, beta_slow=0.5,
    mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3,
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mistral": TEXT | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    "ministral3": TEXT | dict(rope_parameters=GROWING),
}


def build(kind: str, tied: bool) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = KINDS[kind] | dict(model_type=kind, tie_word_embeddings=tied)
    config = Mistral3Config(text_config=text, vision_config=VISION, image_token_index=59, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    model = Mistral3ForConditionalGeneration(config).eval()
    randomize(model, 340)
    return model


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("kind", "tied"), [("mistral", False), ("ministral3", True)])
@torch.no_grad()
def test_text_part(kind: str, tied: bool, in_memory: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = build(kind, tied)
    theirs.save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    written = load_file(file)
    hub = "language_model."  # transformers writes the hub's spelling
    assert sum(name.startswith(hub) for name in written) == 2 + (not tied) + 2 * 9
    assert len(written) > 2 + 2 * 9 + 5
    if in_memory:
        spelled = {
            n.replace("language_model.model.", "model.language_model.").removeprefix(hub): t for n, t in written.items()
        }
        save_file(spelled, file, metadata={"format": "pt"})

    model = load(tmp_path / "in")
    assert (model.config.family, model.config.tie_embeddings) == (kind, tied)
    ids = torch.randint(58, (2, 23), generator=torch.Generator().manual_seed(341))
    expected = theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    close(model(ids), expected)

    save_weights(model.state_dict(), model.config, tmp_path / "out")
    parts = {name.split(".")[0] for name in raw_tensors(tmp_path / "out")}
    assert parts == ({"model"} if tied else {"model", "lm_head"})
    assert Config.from_hf(tmp_path / "out").to_dict() == model.config.to_dict() | {"name": "out"}
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(back).__name__ == {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"}[kind]
    close(back(ids, use_cache=False).logits, expected)


def test_problems_of_the_config() -> None:
    with pytest.raises(ValueError, match="text_config is missing"):
        Config.from_hf({"model_type": "mistral3", "hidden_size": 48})
    with pytest.raises(ValueError, match="text_config.model_type='mamba' is not supported"):
        Config.from_hf({"model_type": "mistral3", "text_config": {"model_type": "mamba"}})
    with pytest.raises(ValueError, match="'mistral'.*\n- attention_bias=True is not understood"):
        Config.from_hf({"model_type": "mistral3", "text_config": TEXT | {"attention_bias": True}})
    with pytest.raises(ValueError, match="'mistral3' .*\n- audio_config=.* is not understood"):
        Config.from_hf({"model_type": "mistral3", "text_config": TEXT, "audio_config": {"hidden_size": 3}})
