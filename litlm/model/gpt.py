"""One readable decoder-only transformer for every family.

What is unusual: a layer's parts are chosen by its `LayerConfig` (slots), never by a model's name; modules keep no state
between passes, and `context` decides what the tokens attend to (a causal row, a cache); training, generation and
export share this file, and everything else (LoRA, quantization, sharding) transforms the modules from outside.

Shapes: B batch, T tokens, C embedding, V vocabulary, N selected positions, L layers, P = layer_input_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litlm.config import Config, LayerConfig, ShortConvConfig
from litlm.context import Causal, Context, KVCache, LayerContext
from litlm.model.attention import Attention, EachHeadNorm
from litlm.model.gated_delta_net import GatedDeltaNet
from litlm.model.latent import Indexer, LatentAttention, check_indexed
from litlm.model.layer_inputs import LayerInput, LayerInputs
from litlm.model.mlp import MLP, XIELU
from litlm.model.moe import Experts, MoE, Router
from litlm.model.norm import make_norm
from litlm.model.rope import Rope, RotaryInputs, temperature_scale
from litlm.model.short_conv import DepthwiseConv, ShortConv
from litlm.ops.linear import Embedding, Linear, linear, rounded


def make_mixer(config: LayerConfig) -> nn.Module:
    """What mixes a layer's tokens: attention, or a recurrence."""
    if isinstance(config.recurrent, ShortConvConfig):
        return ShortConv(config)
    if config.recurrent is not None:
        return GatedDeltaNet(config)
    return Attention(config) if config.attention.latent is None else LatentAttention(config)


class Block(nn.Module):
    """One layer: a mixer (attention or a recurrence), then the MLP (or experts, or nothing), each added to its input.

    `LayerConfig.block` says where norms are: before what is added ("pre", Llama), after ("post", OLMo 2), on both sides
    ("sandwich", Gemma 2), or before mixer and MLP of the same input ("parallel", GPT-NeoX).
    """

    attn: Any  # the mixer, see `make_mixer`
    layer_scalar: Tensor | None

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config

        def norm(*blocks: str) -> nn.Module:
            return make_norm(config.norm, config.n_embd) if config.block in blocks else nn.Identity()

        self.attn_norm = norm("pre", "sandwich", "parallel")
        self.attn = make_mixer(config)
        self.post_attn_norm = norm("post", "sandwich")
        width, moe = config.intermediate_size, config.moe
        mlp = MoE(config, moe) if moe is not None else MLP(config, width) if width else None
        no_norm = mlp is None or config.shared_norm or (moe is not None and moe.own_norms)
        self.mlp_norm = nn.Identity() if no_norm else norm("pre", "sandwich", "parallel")
        self.mlp = mlp
        self.post_mlp_norm = nn.Identity() if mlp is None else norm("post", "sandwich")
        self.layer_input = LayerInput(config, config.layer_input_dim) if config.layer_input_dim else None
        self.register_buffer("layer_scalar", torch.ones(1) if config.layer_scalar else None)

    def forward(
        self, x: Tensor, rotary: RotaryInputs, context: LayerContext, layer_input: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). context: what this layer attends through. layer_input: (B, T, P), its own
        (`layer_inputs.py`)."""
        normed = self.attn_norm(x)
        attended = self._scaled(self.post_attn_norm(self.attn(normed, rotary, context)))
        if self.mlp is None:
            x = x + attended
        elif self.config.block == "parallel":
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

    cache_class: type[KVCache] = KVCache  # of `make_cache`

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
        self.lm_head = None if tied else Linear(config.n_embd, config.n_output, bias=config.head_bias)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if tied and config.head_bias else None
        # Layers with the same rope share its tables, layers with the same temperature its factors.
        keys = [(c.rope, c.rope_dim, c.attention.temperature) for c in layers]
        self._rope_groups = list(dict.fromkeys(keys))
        self._rope_group_of = [self._rope_groups.index(key) for key in keys]
        self.ropes = nn.ModuleList(Rope(rope, dim) if rope else nn.Identity() for rope, dim, _ in self._rope_groups)
        if self.embed.weight.device.type != "meta":
            self.init_weights()

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the output projection, which is the embedding where the two are tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    def make_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for `batch` rows of at most `max_len` tokens, on the model's device and in its dtype."""
        weight = self.embed.weight
        return self.cache_class(self.config, batch, max_len, device=weight.device, dtype=weight.dtype)

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        context: Context | None = None,
        output: Literal["logits", "hidden"] | Callable[[Tensor], Tensor] = "logits",
        logit_positions: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids -> logits (B, T, V), or (B, N, V) with logit_positions.

        output: "hidden" returns the final normed hidden states (B, T, C) instead; a callable is given these and its
        result is returned, so that a loss runs inside `forward` (FSDP2 gathers the root's parameters only there).
        logit_positions: (B, N) indexes into T; only these positions reach the head or `output`.

        positions: (B, T) or (1, T), for rope, learned positions and the temperature of queries; what a token attends to
        goes by the context's own, which are the default. lengths: how long each row is without the
        padding at its end, tokens of earlier passes included; by default all positions count. context: what tokens
        attend to, plain causal by default.
        """
        context = Causal() if context is None else context
        check_indexed(self.config.attention.latent, context, tokens.size(1), lengths)
        context_positions = context.begin(*tokens.shape, device=tokens.device, lengths=lengths)
        positions = context_positions if positions is None else positions
        x = self.embed(tokens)  # (B, T, C)
        if self.config.embed_scale != 1:
            x = x * rounded(self.config.embed_scale, x.dtype)  # as Gemma does (transformers modeling_gemma.py)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.position_embed is not None:
            x = x + self.position_embed(positions + self.config.position_offset)
        context.prepare(x, self.layers)  # type: ignore[arg-type]
        rotary = [self._rotary(i, positions, context.row_lengths, x.dtype) for i in range(len(self._rope_groups))]
        # (L, B, T, P), a part for each layer
        inputs = [None] * len(self.layers) if self.layer_inputs is None else self.layer_inputs(tokens, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, rotary[self._rope_group_of[i]], context.layer(i), inputs[i])
        if logit_positions is not None:
            x = x.gather(1, logit_positions[..., None].expand(-1, -1, x.size(-1)))  # (B, N, C)
        if output == "logits":
            return self.head(x)
        x = self.norm(x)
        return x if output == "hidden" else output(x)

    def _rotary(self, group: int, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> RotaryInputs:
        """positions: (B, T); lengths: (B, 1 or T), of the rows"""
        rope, _, temperature = self._rope_groups[group]
        scale = None if temperature is None else temperature_scale(positions, temperature).to(dtype)
        if rope is None:
            return RotaryInputs(None, None, scale)
        cos, sin = self.ropes[group](positions, lengths)
        return RotaryInputs(cos.to(dtype), sin.to(dtype), scale)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of the last layer's output (..., C)."""
        x = self.norm(x)
        logits = linear(x, self.embed.weight, self.head_bias) if self.lm_head is None else self.lm_head(x)
        return self.finish_logits(logits)

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Scale and cap of the logits (..., V), where the config has them."""
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        if (cap := self.config.logit_softcap) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def init_weights(self, *, scale_residual: bool = False) -> None:
        """New weights: matrices and embeddings normal with `config.init_std`, norms one, biases zero.

        scale_residual: what writes into the residual stream (o_proj, out_proj, down_proj) is divided by
        sqrt(2 n_layer), so that the stream does not grow with depth (Radford et al. 2019).
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (Experts, Router)):
                if isinstance(module, Router) and module.selection_bias is not None:
                    module.selection_bias.zero_()
                for name, p in module.named_parameters(recurse=False):
                    if name.endswith("bias"):
                        nn.init.zeros_(p)
                    elif name in ("input_scale", "expert_scale"):
                        nn.init.ones_(p)
                    else:
                        nn.init.normal_(p, std=self.config.init_std)
            elif isinstance(module, Attention) and module.sinks is not None:
                nn.init.normal_(module.sinks, std=self.config.init_std)
            elif isinstance(module, Indexer):
                module.init_weights(self.config.init_std)
            elif isinstance(module, DepthwiseConv):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Block) and module.layer_scalar is not None:
                module.layer_scalar.fill_(1)
            elif isinstance(module, (nn.RMSNorm, nn.LayerNorm, EachHeadNorm, XIELU, GatedDeltaNet)):
                module.reset_parameters()
        if self.head_bias is not None:
            nn.init.zeros_(self.head_bias)
        if scale_residual:
            for name, p in self.layers.named_parameters():
                if name.removesuffix(".weight").endswith((".o_proj", ".out_proj", ".down_proj")):
                    p.div_((2 * self.config.n_layer) ** 0.5)
