"""Models with an indexer (DeepSeek-V3.2, GLM-5): exact where it chooses all tokens, refused where it would not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from parity import cases

from litlm.checkpoint.hf import open_directory
from litlm.config import Config
from litlm.context import KVCache, Packed
from litlm.generate.decode import decode
from litlm.model import GPT
from litlm.settings import SamplingSettings

CASE = cases.by_name("deepseek_v32-groups-biases-yarn")  # it chooses 100 tokens, of a context of 300
SHARED = cases.by_name("glm_moe_dsa-shared-indexers")


@torch.no_grad()
def test_exact_up_to_the_number_that_is_chosen() -> None:
    model, ids = cases.ours(CASE), cases.tokens(CASE, 1, 130)
    cases.close(model(ids[:, :100]), cases.hf_logits(CASE, ids[:, :100]))
    # And not beyond: from there on transformers' indexer leaves tokens out.
    attention = model.config.attention
    assert attention.latent is not None
    assert attention.latent.index is not None
    latent = dataclasses.replace(attention.latent, index=dataclasses.replace(attention.latent.index, top_k=130))
    config = dataclasses.replace(model.config, attention=dataclasses.replace(attention, latent=latent))
    other = GPT(config)
    other.load_state_dict(model.state_dict())
    off = (other(ids) - cases.hf_logits(CASE, ids)).abs().amax(-1)[0]
    assert off[:100].max() < 1e-4 < off[105:].max()


@torch.no_grad()
def test_longer_rows_are_refused() -> None:
    model = cases.ours(CASE)
    message = r"a row has 101 tokens, and can have at most attention.latent.index.top_k=100: .* no indexer"
    with pytest.raises(ValueError, match=message):
        model(cases.tokens(CASE, 1, 101))
    cache = KVCache(model.config, 1, 110, dtype=torch.float32)
    model(cases.tokens(CASE, 1, 100), context=cache)
    with pytest.raises(ValueError, match=message):
        model(cases.tokens(CASE, 1, 1), context=cache)
    assert cache.lengths == [100]
    model(cases.tokens(CASE, 1, 120), context=Packed([[60, 60]]))
    with pytest.raises(ValueError, match=message):
        model(cases.tokens(CASE, 1, 120), context=Packed([[101, 19]]))
    with pytest.raises(ValueError, match=message):
        model(cases.tokens(CASE, 1, 120), lengths=[101])
    model(cases.tokens(CASE, 1, 120), lengths=[100])


def test_generation_ends_at_the_limit() -> None:
    model, prompt = cases.ours(CASE), cases.tokens(CASE, 1, 97).tolist()
    settings = SamplingSettings(max_new_tokens=9, temperature=0)
    assert len(list(decode(model, prompt, settings))) == 3
    with pytest.raises(ValueError, match="the model's context is 100"):
        decode(model, [prompt[0] + prompt[0]], settings)


def test_config() -> None:
    config = cases.ours(CASE).config
    assert (config.max_seq_len, config.to_hf()["max_position_embeddings"]) == (100, 300)
    with pytest.raises(ValueError, match=r"max_seq_len=101 must be at most attention.latent.index.top_k=100"):
        config.changed(max_seq_len=101)
    assert config.attention.latent is not None
    latent = dataclasses.replace(config.attention.latent, q_rank=None)
    with pytest.raises(ValueError, match="index needs attention.latent.q_rank"):
        dataclasses.replace(config, attention=dataclasses.replace(config.attention, latent=latent))
    with pytest.raises(ValueError, match="index_layers names layers with an indexer"):
        Config(vocab_size=9, n_layer=2, n_embd=8, n_head=2, index_layers=(True, False))
    (note,) = open_directory(cases.write(CASE))[2]
    assert "the context is 100 tokens, not 300" in note


def test_weights_of_the_indexer_are_kept_and_not_trained() -> None:
    model = cases.ours(SHARED)
    assert model.config.index_layers == (True, False, False, True)
    held = {name.split(".")[1] for name, _ in model.named_buffers() if ".indexer." in name}
    assert held == {"0", "3"}
    assert not any("indexer" in name for name, _ in model.named_parameters())
    sizes = sum(t.numel() for name, t in model.state_dict().items())
    assert model.config.n_parameters() == sizes
