"""Embeddings with more rows for new tokens, as transformers' `resize_token_embeddings`. Also untying the head from the
embedding, and tying them again.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from litlm.config import Config
from litlm.model import GPT
from litlm.ops.linear import Linear


@torch.no_grad()
def resize_embeddings(model: GPT, n: int) -> None:
    """Grow everything with one row per token to `n` rows, in place, and the config with it.

    A new row is the mean of the old ones, so that a new token starts with average probability and nothing is random.
    Many checkpoints have more rows than their tokenizer has tokens: `n` counts rows. Raises ValueError if rows would be
    lost, or an embedding has an adapter.
    """
    config = model.config
    if n < config.vocab_size:
        raise ValueError(f"n={n} is less than vocab_size={config.vocab_size}; embeddings can only grow")
    if n == config.vocab_size:
        return
    if config.head_vocab_size:
        raise ValueError(
            f"the output head has rows for the first {config.head_vocab_size} of {config.vocab_size} tokens, and a new "
            "one would be behind them; embeddings of this model can't grow"
        )
    if any(hasattr(layer, "lora") for layer in (model.embed, model.lm_head)):
        raise ValueError("embed or lm_head has a LoRA adapter, which can't grow; merge it, or add the tokens before it")
    model.embed.weight = _with_new_rows(model.embed.weight, n)
    model.embed.num_embeddings = n
    head, inputs = model.lm_head, model.layer_inputs
    if head is not None:
        head.weight, head.out_features = _with_new_rows(head.weight, n), n
        if head.bias is not None:
            head.bias = _with_new_rows(head.bias, n)
    if model.head_bias is not None:
        model.head_bias = _with_new_rows(model.head_bias, n)
    if inputs is not None and inputs.embed.num_embeddings < n:
        inputs.embed.weight, inputs.embed.num_embeddings = _with_new_rows(inputs.embed.weight, n), n
    rows = max(config.layer_input_vocab_size, n) if config.layer_input_vocab_size else 0
    model.config = dataclasses.replace(config, vocab_size=n, layer_input_vocab_size=rows)
    if inputs is not None:
        inputs.config = model.config


def _with_new_rows(weight: Tensor, n: int) -> nn.Parameter:
    """(old, ...) -> (n, ...)"""
    new = weight.float().mean(0, keepdim=True).to(weight.dtype).expand(n - len(weight), *weight.shape[1:])
    return nn.Parameter(torch.cat([weight.detach(), new]), requires_grad=weight.requires_grad)


@torch.no_grad()
def untie(model: GPT, *, shared: bool = False) -> None:
    """Give a model with tied embeddings a separate head, with equal weights so far.

    shared: with the same parameter, for frozen weights that are adapted on one side only.
    """
    config = model.config
    if model.lm_head is not None:
        return
    weight = model.embed.weight
    head = Linear(config.n_embd, config.vocab_size, bias=False, device="meta").train(model.training)
    head.weight = weight if shared else nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    head.register_parameter("bias", model.head_bias)
    model.head_bias = None
    model.lm_head = head
    model.config = dataclasses.replace(config, tie_embeddings=False)


def tied_again(model: GPT, state: dict[str, Tensor], config: Config) -> tuple[dict[str, Tensor], Config]:
    """A checkpoint's state and config, tied again if `untie` shared a weight (V, C) and both sides are still equal."""
    head = model.lm_head
    if head is None or head.weight is not model.embed.weight or head.bias is not None:
        return state, config
    if not torch.equal(state["embed.weight"], state["lm_head.weight"]):
        return state, config
    state = {name: t for name, t in state.items() if name != "lm_head.weight"}
    return state, dataclasses.replace(config, tie_embeddings=True)
