"""Inputs of each layer's own (Gemma 4): beside the usual embedding, a token has a small one for every layer.

All layers' embeddings are one table. What a layer gets is the mean (over the square root of two) of its embedding and a
projection of the usual one; it adds them at its end, behind a gate.

Shapes: L layers, P = layer_input_dim, C embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from litlm.config import Config, LayerConfig
from litlm.model.mlp import Activation
from litlm.model.norm import make_norm
from litlm.ops.linear import Embedding, Linear


class LayerInputs(nn.Module):
    """tokens (B, T) and their embeddings (B, T, C) -> (L, B, T, P)"""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.n_layer * config.layer_input_dim
        self.embed = Embedding(config.layer_input_vocab_size or config.vocab_size, width)
        self.proj = Linear(config.n_embd, width, bias=False)
        self.norm = make_norm(config.norm, config.layer_input_dim)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        c = self.config
        scale = torch.tensor(c.layer_input_dim**0.5, dtype=x.dtype)  # rounded to x's dtype first, as Gemma does
        own = (self.embed(tokens) * scale).unflatten(-1, (c.n_layer, -1))  # (B, T, L, P)
        projected = self.norm((self.proj(x) * c.n_embd**-0.5).unflatten(-1, (c.n_layer, -1)))
        return ((projected + own) * 2**-0.5).movedim(2, 0)


class LayerInput(nn.Module):
    """x + norm(proj(act(gate(x)) * given)), at the end of a layer. given: (B, T, P)"""

    def __init__(self, layer: LayerConfig, size: int) -> None:
        super().__init__()
        self.gate = Linear(layer.n_embd, size, bias=False)
        self.act = Activation(layer.mlp)
        self.proj = Linear(size, layer.n_embd, bias=False)
        self.norm = make_norm(layer.norm, layer.n_embd)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return x + self.norm(self.proj(self.act(self.gate(x), given)))
