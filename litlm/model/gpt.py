"""One readable decoder-only transformer for every family.

What is unusual: a layer's parts are chosen by its `LayerConfig` (slots), never by a model's name; modules hold weights
and nothing else, and `context` decides what the tokens attend to (a causal row, a cache); training, generation and
export share this file, and everything else (LoRA, quantization, sharding) transforms the modules from outside.

Shapes: B batch, T query length, S key length, C embedding, H heads, K kv heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from litlm.config import Config, LayerConfig
from litlm.context import Causal, Context
from litlm.model.attention import Attention, EachHeadNorm
from litlm.model.latent import LatentAttention
from litlm.model.layer_inputs import LayerInput, LayerInputs
from litlm.model.mlp import MLP, XIELU
from litlm.model.moe import Experts, MoE, Router
from litlm.model.norm import make_norm
from litlm.model.rope import Rope, Turn, query_scale
from litlm.ops.linear import Embedding, Linear, linear


class Block(nn.Module):
    """One layer: attention, then the MLP (or experts), each added to its input. `Config.block` says where norms are."""

    layer_scalar: Tensor | None

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config

        def norm(*blocks: str) -> nn.Module:
            return make_norm(config.norm, config.n_embd) if config.block in blocks else nn.Identity()

        self.attn_norm = norm("pre", "sandwich", "parallel")
        self.attn = Attention(config) if config.attention.latent is None else LatentAttention(config)
        self.post_attn_norm = norm("post", "sandwich")
        normed = config.shared_norm or (config.moe is not None and config.moe.own_norms)
        self.mlp_norm = nn.Identity() if normed else norm("pre", "sandwich", "parallel")
        self.mlp = MLP(config, config.intermediate_size) if config.moe is None else MoE(config, config.moe)
        self.post_mlp_norm = norm("post", "sandwich")
        self.layer_input = LayerInput(config, config.layer_input_dim) if config.layer_input_dim else None
        self.register_buffer("layer_scalar", torch.ones(1) if config.layer_scalar else None)

    def forward(self, x: Tensor, turn: Turn, context: Context, layer: int, layer_input: Tensor | None = None) -> Tensor:
        normed = self.attn_norm(x)
        attended = self._scaled(self.post_attn_norm(self.attn(normed, turn, context, layer)))
        if self.config.block == "parallel":
            x = x + attended + self._scaled(self.mlp(normed if self.config.shared_norm else self.mlp_norm(x)))
        else:
            x = x + attended
            x = x + self._scaled(self.post_mlp_norm(self.mlp(self.mlp_norm(x))))
        if self.layer_input is not None:
            x = self.layer_input(x, layer_input)
        return x if self.layer_scalar is None else x * self.layer_scalar.to(x.dtype)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.config.residual_scale == 1 else x * self.config.residual_scale


class GPT(nn.Module):
    """A decoder-only transformer: `GPT(config)(tokens)` gives logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layers = [config.layer(i) for i in range(config.n_layer)]
        self.embed = Embedding(config.vocab_size, config.n_embd)
        self.embed_norm = make_norm(config.norm, config.n_embd) if config.embed_norm else None
        rows = config.max_seq_len + config.position_offset
        self.position_embed = Embedding(rows, config.n_embd) if config.learned_positions else None
        self.layer_inputs = LayerInputs(config) if config.layer_input_dim else None
        self.layers = nn.ModuleList(Block(layer) for layer in layers)
        self.norm = make_norm(config.norm, config.n_embd)
        tied = config.tie_embeddings
        self.lm_head = None if tied else Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if tied and config.head_bias else None
        # Layers with the same rope share its tables, layers with the same temperature its factors.
        self._kinds = list(dict.fromkeys((c.rope, c.rope_dim, c.attention.temperature) for c in layers))
        self._kind_of = [self._kinds.index((c.rope, c.rope_dim, c.attention.temperature)) for c in layers]
        # One layer of each way to attend, for what the context prepares.
        self._attends = list({(c.window, c.chunk, c.head_dim, c.attention): c for c in layers}.values())
        self.ropes = nn.ModuleList(Rope(rope, dim) if rope else nn.Identity() for rope, dim, _ in self._kinds)
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
        lengths: Tensor | None = None,
        context: Context | None = None,
        output: Literal["logits", "hidden"] | Callable[[Tensor], Tensor] = "logits",
        logit_positions: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids -> logits (B, T, V).

        output: "hidden" returns the final normed hidden states (B, T, C) instead; a callable is given these and its
        result is returned, so that a loss runs inside `forward` (FSDP2 gathers the root's parameters only there).
        logit_positions: (B, N) indexes into T; only these positions reach the head or `output`.
        positions: (B, T) or (1, T), for rope; the context's own by default. lengths: (B,), how long each row is without
        its padding, for ropes that depend on it; by default all positions count. context: what tokens attend to, plain
        causal by default.
        """
        context = Causal() if context is None else context
        own = context.begin(*tokens.shape, device=tokens.device)
        positions = own if positions is None else positions
        lengths = context.row_lengths if lengths is None else lengths[:, None]
        x = self.embed(tokens)  # (B, T, C)
        if self.config.embed_scale != 1:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype)  # rounded to x's dtype first, as Gemma does
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.position_embed is not None:
            x = x + self.position_embed(positions + self.config.position_offset)
        context.prepare(x, self._attends)
        turns = [self._turn(i, positions, lengths, x.dtype) for i in range(len(self._kinds))]
        # (L, B, T, P), a part for each layer
        inputs = [None] * len(self.layers) if self.layer_inputs is None else self.layer_inputs(tokens, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, turns[self._kind_of[i]], context, i, inputs[i])
        if logit_positions is not None:
            x = x.gather(1, logit_positions[..., None].expand(-1, -1, x.size(-1)))  # (B, N, C)
        if output == "logits":
            return self.head(x)
        x = self.norm(x)
        return x if output == "hidden" else output(x)

    def _turn(self, kind: int, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> Turn:
        rope, _, temperature = self._kinds[kind]
        heat = None if temperature is None else query_scale(positions, temperature).to(dtype)
        if rope is None:
            return Turn(None, None, heat)
        cos, sin = self.ropes[kind](positions, lengths)
        return Turn(cos.to(dtype), sin.to(dtype), heat)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of the last layer's output (..., C)."""
        x = self.norm(x)
        logits = linear(x, self.embed.weight, self.head_bias) if self.lm_head is None else self.lm_head(x)
        return self.finish_logits(logits)

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Scale and cap of the logits, where the config has them."""
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        if (cap := self.config.logit_softcap) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def init_weights(self, *, scale_residual: bool = False) -> None:
        """Fresh weights: matrices and embeddings normal with `config.init_std`, norms one, biases zero.

        scale_residual: what writes into the residual stream (o_proj, down_proj) is smaller by sqrt(2 n_layer), so that
        the stream does not grow with depth (GPT-2).
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (Experts, Router)):
                for name, p in module.named_parameters(recurse=False):
                    if name.endswith("bias"):
                        nn.init.zeros_(p)
                    elif name in ("input_scale", "expert_scale"):
                        nn.init.ones_(p)
                    else:
                        nn.init.normal_(p, std=self.config.init_std)
            elif isinstance(module, Attention) and module.sinks is not None:
                nn.init.normal_(module.sinks, std=self.config.init_std)
            elif isinstance(module, (nn.RMSNorm, nn.LayerNorm, EachHeadNorm, XIELU)):
                module.reset_parameters()
        if self.head_bias is not None:
            nn.init.zeros_(self.head_bias)
        if scale_residual:
            for name, p in self.layers.named_parameters():
                if name.removesuffix(".weight").endswith((".o_proj", ".down_proj")):
                    p.div_((2 * self.config.n_layer) ** 0.5)
