"""Larger embeddings, against what transformers does; a head of its own for a tied model."""

from __future__ import annotations

import copy

import pytest
import torch
from parity import cases

from litlm.config import Config
from litlm.transforms.resize import resize_embeddings, untie

NAMES = ["llama-mha-biases", "llama-mqa-tied", "gpt2-plain", "phi-plain", "gptj-plain"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [1, 7])
def test_new_rows_are_the_mean_as_in_transformers(name: str, more: int) -> None:
    """transformers draws new rows around the mean, with a billionth of the old ones' covariance."""
    case = cases.by_name(name)
    model, theirs = cases.load(cases.write(case)), copy.deepcopy(cases.build(case))
    size = case.hf["vocab_size"]
    theirs.resize_token_embeddings(size + more, mean_resizing=True)
    before = cases.ours(case)
    resize_embeddings(model, size + more)
    assert model.config.vocab_size == size + more == model.embed.num_embeddings
    assert model.config.tie_embeddings == before.config.tie_embeddings
    Config.from_dict(model.config.to_dict())
    for ours, old, his in (
        (model.embed.weight, before.embed.weight, theirs.get_input_embeddings().weight),
        (model.head_weight, before.head_weight, theirs.get_output_embeddings().weight),
    ):
        assert torch.equal(ours[:size], old)
        torch.testing.assert_close(ours[size:].double(), old.double().mean(0).expand(more, -1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours, his, rtol=0, atol=1e-3)
        assert ours.requires_grad == old.requires_grad
    tokens = torch.randint(size + more, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = theirs(tokens).logits, model(tokens)
        assert (actual - expected).abs().max() <= 1e-2 * expected.abs().max()
        old_tokens = tokens.clamp(max=size - 1)
        cases.close(model(old_tokens)[..., :size], before(old_tokens))


def test_a_model_with_inputs_of_each_layer_grows_them_too() -> None:
    case = next(c for c in cases.CASES if c.family == "gemma4_text" and c.hf.get("hidden_size_per_layer_input"))
    model = cases.load(cases.write(case))
    rows, size = model.layer_inputs.embed.num_embeddings, case.hf["vocab_size"]  # type: ignore[union-attr]
    resize_embeddings(model, rows + 3)
    tokens = torch.tensor([[0, size, rows + 2]])
    assert model(tokens).shape == (1, 3, rows + 3)
    assert model.layer_inputs.embed.weight.shape[0] == rows + 3  # type: ignore[union-attr]


def test_shrinking_is_an_error_and_the_same_size_nothing() -> None:
    case = cases.by_name(NAMES[0])
    model = cases.load(cases.write(case))
    config, weight = model.config, model.embed.weight
    resize_embeddings(model, config.vocab_size)
    assert model.config is config
    assert model.embed.weight is weight
    with pytest.raises(ValueError, match=r"n=5 is less than vocab_size=61; embeddings can only grow"):
        resize_embeddings(model, 5)


def test_an_untied_head_starts_the_same() -> None:
    for name in ("llama-mqa-tied", "gpt2-plain"):
        case = cases.by_name(name)
        model, tokens = cases.load(cases.write(case)), cases.tokens(case, 2, 9)
        untie(model)
        assert not model.config.tie_embeddings
        cases.close(model(tokens), cases.ours(case)(tokens))
        with torch.no_grad():
            model.embed.weight.mul_(2)
        assert model.lm_head is not None
        assert torch.equal(model.lm_head.weight, cases.ours(case).embed.weight)
