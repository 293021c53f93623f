"""Per-layer embeddings (Gemma 3n and 4, transformers `modeling_gemma4.py`): each layer has a small one for every token.

One table holds those of all layers side by side. A layer's per-layer input is the sum of its embedding and a projection
of the usual one, divided by sqrt(2); at its end the layer adds a gated projection of this input.

Shapes: L layers, P = layer_input_dim, C embedding.
"""

from __future__ import annotations

from torch import Tensor, nn

from litlm.config import Config, LayerConfig
from litlm.model.mlp import Activation
from litlm.model.norm import make_norm
from litlm.ops.linear import Embedding, Linear, rounded


class PerLayerEmbeddings(nn.Module):
    """All layers' per-layer inputs, from tokens and their embeddings.

    In Gemma's source: embed is embed_tokens_per_layer, proj per_layer_model_projection, norm per_layer_projection_norm.
    """

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


class PerLayerGate(nn.Module):
    """x + norm(proj(act(gate(x)) * per_layer_input)), at the end of a layer.

    In Gemma's source: gate is per_layer_input_gate, proj per_layer_projection, norm post_per_layer_input_norm.
    """

    def __init__(self, layer: LayerConfig, size: int) -> None:
        super().__init__()
        self.gate = Linear(layer.n_embd, size, bias=False)
        self.act = Activation(layer.mlp)
        self.proj = Linear(size, layer.n_embd, bias=False)
        self.norm = make_norm(layer.norm, layer.n_embd)

    def forward(self, x: Tensor, per_layer_input: Tensor) -> Tensor:
        """x: (B, T, C); per_layer_input: (B, T, P) -> (B, T, C)"""
        return x + self.norm(self.proj(self.act(self.gate(x), per_layer_input)))
