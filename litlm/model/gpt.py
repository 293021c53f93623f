"""One readable decoder-only transformer for every family.

What is unusual: a layer's parts are chosen by its `LayerConfig`, never by a model's name; modules keep no state between
passes, and `context` decides what the tokens attend to (a causal row, packed documents, a cache); training, generation
and export share this file, and everything else (LoRA, quantization, sharding) transforms the modules from outside.

Shapes: B batch, T tokens, C embedding, V vocabulary, N selected positions, L layers, P = layer_input_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litlm.config import Config, LayerConfig, ShortConvConfig
from litlm.context import Causal, Context, KVCache, LayerContext
from litlm.model.attention import Attention, PerHeadNorm
from litlm.model.gated_delta_net import GatedDeltaNet
from litlm.model.latent import Indexer, LatentAttention, check_indexed
from litlm.model.layer_inputs import PerLayerEmbeddings, PerLayerGate
from litlm.model.mlp import MLP, XIELU
from litlm.model.moe import Experts, MoE, Router
from litlm.model.norm import make_norm
from litlm.model.rope import Rope, RopeTables, query_scale
from litlm.model.short_conv import DepthwiseConv, ShortConv
from litlm.ops.linear import Embedding, Linear, linear, rounded


def make_mixer(config: LayerConfig) -> nn.Module:
    """The token mixer of a layer: attention, a short convolution or Gated DeltaNet."""
    if isinstance(config.recurrent, ShortConvConfig):
        return ShortConv(config)
    if config.recurrent is not None:
        return GatedDeltaNet(config)
    return Attention(config) if config.attention.latent is None else LatentAttention(config)


class DecoderLayer(nn.Module):
    """A mixer (attention or a recurrence), then an MLP (or experts, or neither), each with a residual connection.

    `LayerConfig.block` says where the norms are: on the input of mixer and MLP ("pre", Llama), on their output ("post",
    OLMo 2), or on both ("sandwich", Gemma 2); in a "parallel" layer (GPT-NeoX) mixer and MLP have the same input.
    """

    attn: Any  # the mixer, of any kind (see `make_mixer`); the name is part of the parameters' names
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
        self.layer_input = PerLayerGate(config, config.layer_input_dim) if config.layer_input_dim else None
        self.register_buffer("layer_scalar", torch.ones(1) if config.layer_scalar else None)

    def forward(
        self, x: Tensor, rotary: RopeTables, context: LayerContext, per_layer_input: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). context: what this layer attends through. per_layer_input: (B, T, P), see
        `layer_inputs.py`."""
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
            x = self.layer_input(x, per_layer_input)
        return x if self.layer_scalar is None else x * self.layer_scalar.to(x.dtype)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.config.residual_scale == 1 else x * self.config.residual_scale


class GPT(nn.Module):
    """A decoder-only transformer: `GPT(config)(tokens)` gives logits."""

    cache_class: type[KVCache] = KVCache  # what `make_cache` makes

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layers = [config.layer(i) for i in range(config.n_layer)]
        self.embed = Embedding(config.vocab_size, config.n_embd)
        self.embed_norm = make_norm(config.norm, config.n_embd) if config.embed_norm else None
        rows = config.max_seq_len + config.position_offset
        self.position_embed = Embedding(rows, config.n_embd) if config.learned_positions else None
        self.layer_inputs = PerLayerEmbeddings(config) if config.layer_input_dim else None
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in layers)
        self.norm = make_norm(config.norm, config.n_embd)
        tied = config.tie_embeddings
        self.lm_head = None if tied else Linear(config.n_embd, config.n_output, bias=config.head_bias)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if tied and config.head_bias else None
        # Rope's tables depend on these fields and the positions alone; layers that agree in them share one computation.
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

        positions: (B, T) or (1, T), for rope, learned positions and attention temperature; by default the context's.
        What a token attends to follows from the context's positions in any case. lengths: each row's length without
        the padding at its end, earlier passes included; by default there is no padding. context: what tokens attend
        to; by default those before them (`Causal`).
        """
        context = Causal() if context is None else context
        check_indexed(self.config.attention.latent, context, tokens.size(1), lengths)
        context_positions = context.begin(*tokens.shape, device=tokens.device, lengths=lengths)
        positions = context_positions if positions is None else positions
        x = self.embed(tokens)  # (B, T, C)
        if self.config.embed_scale != 1:
            scale = self.config.embed_scale
            x = x * (rounded(scale, x.dtype) if self.config.round_embed_scale else scale)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.position_embed is not None:
            x = x + self.position_embed(positions + self.config.position_offset)
        context.prepare(x, self.layers)  # type: ignore[arg-type]
        rotary = [self._rotary(i, positions, context.seq_lens, x.dtype) for i in range(len(self._rope_groups))]
        no_inputs = [None] * len(self.layers)
        per_layer_inputs = no_inputs if self.layer_inputs is None else self.layer_inputs(tokens, x)  # (L, B, T, P)
        for i, layer in enumerate(self.layers):
            x = layer(x, rotary[self._rope_group_of[i]], context.layer(i), per_layer_inputs[i])
        if logit_positions is not None:
            x = x.gather(1, logit_positions[..., None].expand(-1, -1, x.size(-1)))  # (B, N, C)
        if output == "logits":
            return self.head(x)
        x = self.norm(x)
        return x if output == "hidden" else output(x)

    def _rotary(self, group: int, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> RopeTables:
        """positions: (B, T); lengths: (B, 1 or T), see `Context.seq_lens`"""
        rope, _, temperature = self._rope_groups[group]
        scale = None if temperature is None else query_scale(positions, temperature).to(dtype)
        if rope is None:
            return RopeTables(None, None, scale)
        cos, sin = self.ropes[group](positions, lengths)
        return RopeTables(cos.to(dtype), sin.to(dtype), scale)

    def head(self, x: Tensor) -> Tensor:
        """The last layer's output (..., C) -> logits (..., V)."""
        x = self.norm(x)
        logits = linear(x, self.embed.weight, self.head_bias) if self.lm_head is None else self.lm_head(x)
        return self.finish_logits(logits)

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Scale and cap the logits (..., V) as the config says."""
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        if (cap := self.config.logit_softcap) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def init_weights(self, *, scale_residual: bool = False) -> None:
        """New weights: matrices and embeddings normal with `config.init_std`, norms one, biases zero.

        scale_residual: weights that write into the residual stream (o_proj, out_proj, down_proj) are divided by
        sqrt(2 n_layer), so that the stream does not grow with depth (Radford et al. 2019). This is about their initial
        values only; `Config.residual_scale` is a factor in every pass.
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
            elif isinstance(module, DecoderLayer) and module.layer_scalar is not None:
                module.layer_scalar.fill_(1)
            elif isinstance(module, (nn.RMSNorm, nn.LayerNorm, PerHeadNorm, XIELU, GatedDeltaNet)):
                module.reset_parameters()
        if self.head_bias is not None:
            nn.init.zeros_(self.head_bias)
        if scale_residual:
            for name, p in self.layers.named_parameters():
                if name.removesuffix(".weight").endswith((".o_proj", ".out_proj", ".down_proj")):
                    p.div_((2 * self.config.n_layer) ** 0.5)
