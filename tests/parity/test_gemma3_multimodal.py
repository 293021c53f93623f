"""Gemma 3's multimodal checkpoints: the text model of either spelling is what transformers computes from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import close, load, raw_tensors
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import save_weights
from litlm.config import Config

TEXT: dict[str, Any] = dict(
    vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=7, num_attention_heads=4, head_dim=10,
    num_key_value_heads=2, max_position_embeddings=128, query_pre_attn_scalar=14, sliding_window=5, pad_token_id=None,
    rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
    },
)  # fmt: skip
VISION = dict(
    hidden_size=24, intermediate_size=36, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
SETTINGS: dict[str, Any] = dict(
    text_config=TEXT, vision_config=VISION, mm_tokens_per_image=1, eos_token_id=[1, 60], image_token_index=59
)


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(**SETTINGS)
    config._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(config).eval()
    gen = torch.Generator().manual_seed(290)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.4 if p.dim() == 1 else 1.0 if "embed" in name else 1.7 * p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=gen) * scale)
    return model


@pytest.mark.parametrize(("text", "other"), [("language_model.model.", ""), ("model.language_model.", "model.")])
@torch.no_grad()
def test_text_part(theirs: Any, text: str, other: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs.save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "model.safetensors"
    written = load_file(file)
    hub = "language_model.model."  # transformers writes the hub's spelling
    assert sum(name.startswith(hub) for name in written) == 2 + 7 * 13
    spelled = {text + n.removeprefix(hub) if n.startswith(hub) else other + n: t for n, t in written.items()}
    save_file(spelled, file, metadata={"format": "pt"})

    model = load(tmp_path / "in")
    config = model.config
    assert (config.family, config.eos_token_id, config.tie_embeddings) == ("gemma3_text", (1, 60), True)
    ids = torch.randint(58, (2, 23), generator=torch.Generator().manual_seed(291))
    expected = theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    close(model(ids), expected)

    save_weights(model.state_dict(), config, tmp_path / "out")
    assert {name.split(".")[0] for name in raw_tensors(tmp_path / "out")} == {"model"}
    assert Config.from_hf(tmp_path / "out").to_dict() == config.to_dict() | {"name": "out"}
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(back).__name__ == "Gemma3ForCausalLM"
    close(back(ids, use_cache=False).logits, expected)


def test_problems_of_the_config() -> None:
    with pytest.raises(ValueError, match="text_config is missing"):
        Config.from_hf({"model_type": "gemma3", "hidden_size": 48})
    with pytest.raises(ValueError, match="'gemma3_text'.*\n- use_bidirectional_attention=True is not supported"):
        Config.from_hf({"model_type": "gemma3", "text_config": TEXT | {"use_bidirectional_attention": True}})
    with pytest.raises(ValueError, match="'gemma3' .*\n- audio_config=.* is not understood"):
        Config.from_hf({"model_type": "gemma3", "text_config": TEXT, "audio_config": {"hidden_size": 3}})
