"""An output head with fewer rows than the embedding (Apertus 1.5): tokens that can be read, but not written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity import cases
from safetensors.torch import load_file, save_file

from litlm.config import Config
from litlm.generate.decode import decode
from litlm.settings import SamplingSettings
from litlm.train.loss import loss_sum
from litlm.transforms.resize import resize_embeddings

CASE = cases.by_name("apertus1p5_text-narrow-head")
PROMPT = [[60, 3, 58, 47], [5, 50]]  # the head has rows for 47 of 61 tokens


@torch.no_grad()
def test_tokens_without_a_row_in_the_head_can_be_read() -> None:
    model, ids = cases.ours(CASE), torch.tensor([[60, 3, 58, 47, 46]])
    logits = model(ids)
    assert logits.shape == (1, 5, 47)
    cases.close(logits, cases.hf_logits(CASE, ids))


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_generation(penalty: float) -> None:
    settings = SamplingSettings(max_new_tokens=12, repetition_penalty=penalty, temperature=0)
    theirs = cases.build(CASE)
    steps = list(decode(cases.ours(CASE), PROMPT, settings))
    for prompt, found in zip(PROMPT, zip(*steps, strict=True), strict=True):
        result = [token for token in found if token is not None]
        with torch.no_grad():
            step = theirs(torch.tensor([prompt + result[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        assert len(result) == 12
        if penalty == 1.0:
            assert step.argmax(-1).tolist() == result
        assert max(result) < 47


def test_loss_and_sizes() -> None:
    model = cases.ours(CASE)
    config = model.config
    assert (config.vocab_size, config.head_vocab_size, config.n_output) == (61, 47, 47)
    assert config.n_parameters() == sum(p.numel() for p in model.parameters())
    hidden, targets = torch.randn(1, 3, config.n_embd), torch.tensor([[46, -100, 0]])
    expected = torch.nn.functional.cross_entropy(hidden[0] @ model.head_weight.T, targets[0], reduction="sum")
    torch.testing.assert_close(loss_sum(model, hidden, targets), expected)


def test_what_is_refused() -> None:
    model = cases.load(cases.write(CASE))
    with pytest.raises(ValueError, match="rows for the first 47 of 61 tokens"):
        resize_embeddings(model, 62)
    fields = dict(vocab_size=9, n_layer=1, n_embd=8, n_head=2)
    with pytest.raises(ValueError, match="head_vocab_size=9 must be less than vocab_size=9"):
        Config(**fields, head_vocab_size=9)
    with pytest.raises(ValueError, match="tie_embeddings must be false"):
        Config(**fields, head_vocab_size=7, tie_embeddings=True)


def test_the_text_part_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    source = cases.write(CASE)
    tensors = load_file(source / "model.safetensors")
    nested = {n.replace("model.", "model.language_model.", 1): t for n, t in tensors.items()}
    nested |= {"model.vision_tokenizer.encoder.conv_in.weight": torch.ones(2, 3)}
    save_file(nested, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((source / "config.json").read_text())
    config = dict(model_type="apertus1p5", text_config=text, vision_config={}, audio_config={}, image_token_id=5)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = cases.load(tmp_path)
    assert model.config.family == "apertus1p5_text"
    ids = cases.tokens(CASE, 2, 9)
    with torch.no_grad():
        assert torch.equal(model(ids), cases.ours(CASE)(ids))
