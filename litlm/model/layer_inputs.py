"""Per-layer inputs (Gemma 4, transformers `modeling_gemma4.py`): a token also has a small embedding for each layer.

All layers' embeddings are one table. A layer gets the sum, divided by sqrt(2), of its embedding and a projection of the
usual one, and adds a gated function of it to its output.

Shapes: L layers, P = layer_input_dim, C embedding.
"""

from __future__ import annotations

from torch import Tensor, nn

from litlm.config import Config, LayerConfig
from litlm.model.mlp import Activation
from litlm.model.norm import make_norm
from litlm.ops.linear import Embedding, Linear, rounded


class LayerInputs(nn.Module):
    """Every layer's own input, from tokens and their embeddings."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.n_layer * config.layer_input_dim
        self.embed = Embedding(config.layer_input_vocab_size or config.vocab_size, width)
        self.proj = Linear(config.n_embd, width, bias=False)
        self.norm = make_norm(config.norm, config.layer_input_dim)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens: (B, T); x: (B, T, C), their embeddings -> (L, B, T, P)"""
        c = self.config
        scale = rounded(c.layer_input_dim**0.5, x.dtype)  # as Gemma does (transformers modeling_gemma4.py)
        embedded = (self.embed(tokens) * scale).unflatten(-1, (c.n_layer, -1))  # (B, T, L, P)
        projected = self.norm((self.proj(x) * c.n_embd**-0.5).unflatten(-1, (c.n_layer, -1)))
        return ((projected + embedded) * 2**-0.5).movedim(2, 0)


class LayerInput(nn.Module):
    """x + norm(proj(act(gate(x)) * layer_input)), at the end of a layer."""

    def __init__(self, layer: LayerConfig, size: int) -> None:
        super().__init__()
        self.gate = Linear(layer.n_embd, size, bias=False)
        self.act = Activation(layer.mlp)
        self.proj = Linear(size, layer.n_embd, bias=False)
        self.norm = make_norm(layer.norm, layer.n_embd)

    def forward(self, x: Tensor, layer_input: Tensor) -> Tensor:
        """x: (B, T, C); layer_input: (B, T, P) -> (B, T, C)"""
        return x + self.norm(self.proj(self.act(self.gate(x), layer_input)))
