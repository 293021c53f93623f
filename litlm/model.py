"""One readable decoder-only transformer for every family.

What is unusual: a layer's parts are chosen by its `LayerConfig` (slots), never by a model's name; modules hold weights
and nothing else, and `context` decides what the tokens attend to (a causal row, a cache); training, generation and
export share this file, and everything else (LoRA, quantization, sharding) transforms the modules from outside.

Shapes: B batch, T query length, S key length, C embedding, H heads, K kv heads, D head size, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import Config, LayerConfig, NormConfig
from litlm.context import Causal, Context
from litlm.ops import Embedding, Linear, linear, swiglu
from litlm.rope import Rope, apply_rope

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}


def make_norm(config: NormConfig, size: int) -> nn.Module:
    if config.kind == "rms":
        return nn.RMSNorm(size, eps=config.eps)
    return nn.LayerNorm(size, eps=config.eps)


class Attention(nn.Module):
    """Grouped-query attention with rope; K heads of keys and values serve H heads of queries."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = Linear(config.n_embd, width, bias=config.attention.bias)
        self.k_proj = Linear(config.n_embd, kv_width, bias=config.attention.bias)
        self.v_proj = Linear(config.n_embd, kv_width, bias=config.attention.bias)
        self.o_proj = Linear(width, config.n_embd, bias=config.attention.out_bias)
        if config.attention.qk_norm:
            self.q_norm = make_norm(config.norm, config.head_dim)
            self.k_norm = make_norm(config.norm, config.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Context, layer: int) -> Tensor:
        B, T, _ = x.shape
        D = self.config.head_dim
        q = self.q_proj(x).view(B, T, -1, D)  # (B, T, H, D)
        k = self.k_proj(x).view(B, T, -1, D)  # (B, T, K, D)
        v = self.v_proj(x).view(B, T, -1, D)
        if self.config.attention.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, D)
        y = context.attend(layer, q, k, v, window=self.config.sliding_window)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))"""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.mlp.activation]
        self.gate_proj = Linear(config.n_embd, config.intermediate_size, bias=config.mlp.bias)
        self.up_proj = Linear(config.n_embd, config.intermediate_size, bias=config.mlp.bias)
        self.down_proj = Linear(config.intermediate_size, config.n_embd, bias=config.mlp.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(swiglu(gate, up) if self.act is F.silu else self.act(gate) * up)


class PlainMLP(nn.Module):
    """down(act(up(x)))"""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.mlp.activation]
        self.up_proj = Linear(config.n_embd, config.intermediate_size, bias=config.mlp.bias)
        self.down_proj = Linear(config.intermediate_size, config.n_embd, bias=config.mlp.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


MLPS = {"gated": GatedMLP, "plain": PlainMLP}


class Block(nn.Module):
    """One layer. `pre`: x + attn(norm(x)), then the same with the MLP. `parallel`: both read the same x."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        self.attn_norm = make_norm(config.norm, config.n_embd)
        self.attn = Attention(config)
        self.mlp_norm = make_norm(config.norm, config.n_embd)
        self.mlp = MLPS[config.mlp.kind](config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Context, layer: int) -> Tensor:
        attended = self.attn(self.attn_norm(x), cos, sin, context, layer)
        if self.config.block == "parallel":
            return x + attended + self.mlp(self.mlp_norm(x))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer: `GPT(config)(tokens)` gives logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layers = [config.layer(i) for i in range(config.n_layer)]
        self.embed = Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(layer) for layer in layers)
        self.norm = make_norm(config.norm, config.n_embd)
        self.lm_head = None if config.tie_embeddings else Linear(config.n_embd, config.vocab_size, bias=False)
        # Layers with the same rope share its tables.
        kinds = {(layer.rope, layer.head_dim): None for layer in layers}
        self.ropes = nn.ModuleList(Rope(*kind) for kind in kinds)
        self._rope_of = [list(kinds).index((layer.rope, layer.head_dim)) for layer in layers]
        if self.embed.weight.device.type != "meta":
            self.init_weights()

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the output projection, which is the embedding where the two are tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        context: Context | None = None,
        output: Literal["logits", "hidden"] = "logits",
        keep: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids -> logits (B, T, V), or with output="hidden" the final states (B, T, C).

        positions: (B, T) or (1, T), for rope; the context's own by default. context: what tokens attend to, plain
        causal by default. keep: (B, N) indexes into T; only those positions are returned, (B, N, V).
        """
        context = Causal() if context is None else context
        own = context.begin(*tokens.shape, device=tokens.device)
        positions = own if positions is None else positions
        x = self.embed(tokens)  # (B, T, C)
        tables = [tuple(t.to(x.dtype) for t in rope(positions)) for rope in self.ropes]
        for i, layer in enumerate(self.layers):
            x = layer(x, *tables[self._rope_of[i]], context, i)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.size(-1)))  # (B, N, C)
        return self.norm(x) if output == "hidden" else self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of the last layer's output (..., C)."""
        x = self.norm(x)
        return linear(x, self.embed.weight) if self.lm_head is None else self.lm_head(x)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights: matrices and embeddings normal with `config.init_std`, norms one, biases zero (as GPT-2)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
                module.reset_parameters()
