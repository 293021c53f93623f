"""One readable decoder-only transformer for every family.

What is unusual: a layer's parts are chosen by its `LayerConfig` (slots), never by a model's name; modules hold weights
and nothing else, and `context` decides what the tokens attend to (a causal row, a cache); training, generation and
export share this file, and everything else (LoRA, quantization, sharding) transforms the modules from outside.

Shapes: B batch, T query length, S key length, C embedding, H heads, K kv heads, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.attention import alibi_slopes
from litlm.config import Config, LayerConfig, NormConfig, QKNormConfig, TemperatureConfig
from litlm.context import Causal, Context
from litlm.layer_inputs import LayerInput, LayerInputs
from litlm.mlp import MLP, XIELU
from litlm.moe import Experts, MoE, Router
from litlm.norm import make_norm
from litlm.ops import Embedding, Linear, linear
from litlm.rope import Rope, apply_rope


class Turn(NamedTuple):
    """What positions do to queries and keys.

    cos, sin: (B, T, R / 2), None without rope. heat: (B, T, 1, 1), a factor of the queries, None without one.
    """

    cos: Tensor | None
    sin: Tensor | None
    heat: Tensor | None


class EachHeadNorm(nn.Module):
    """Norm of queries or keys (B, T, H, D) with a weight for each head."""

    def __init__(self, config: NormConfig, n_head: int, head_dim: int) -> None:
        super().__init__()
        self.kind, self.eps = config.kind, config.eps
        self.weight = nn.Parameter(torch.empty(n_head, head_dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide, size = x.float(), x.shape[-1:]
        wide = F.rms_norm(wide, size, None, self.eps) if self.kind == "rms" else F.layer_norm(wide, size, eps=self.eps)
        return (wide * self.weight.float()).to(x.dtype)


def make_qk_norm(config: QKNormConfig, n_head: int, head_dim: int) -> nn.Module:
    if config.over == "each_head":
        return EachHeadNorm(config.norm, n_head, head_dim)
    return make_norm(config.norm, head_dim if config.over == "head" else n_head * head_dim)


class Attention(nn.Module):
    """Grouped-query attention with rope; K heads of keys and values serve H heads of queries."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        attention, D = config.attention, config.head_dim
        width, kv_width = config.n_head * D, config.n_kv_head * D
        own_kv, qk = config.kv_layer is None, attention.qk_norm
        self.q_proj = Linear(config.n_embd, width, bias=attention.bias)
        self.k_proj = Linear(config.n_embd, kv_width, bias=attention.bias) if own_kv else None
        own_v = own_kv and not attention.k_as_v
        self.v_proj = Linear(config.n_embd, kv_width, bias=attention.bias) if own_v else None
        self.o_proj = Linear(width, config.n_embd, bias=attention.out_bias)
        self.q_norm = make_qk_norm(qk, config.n_head, D) if qk else None
        self.k_norm = make_qk_norm(qk, config.n_kv_head, D) if qk and own_kv else None
        self.v_norm = make_norm(attention.v_norm, D) if attention.v_norm and own_kv else None
        self.sinks = nn.Parameter(torch.empty(config.n_head)) if attention.sinks else None

    def forward(self, x: Tensor, turn: Turn, context: Context, layer: int) -> Tensor:
        B, T, _ = x.shape
        c, a = self.config, self.config.attention
        q = self._place(self.q_proj(x), self.q_norm, turn)
        if turn.heat is not None:
            q = q * turn.heat
        k = v = None
        if self.k_proj is not None:
            k = self.k_proj(x)
            v = self._heads(k if self.v_proj is None else self.v_proj(x))
            v = (v if self.v_norm is None else self.v_norm(v)).transpose(1, 2)  # (B, K, T, D)
            k = self._place(k, self.k_norm, turn).transpose(1, 2)
        slopes = alibi_slopes(c.n_head, x.device) if a.alibi else None
        softmax: Any = dict(scale=a.scale, softcap=a.softcap, sinks=self.sinks, slopes=slopes)
        where: Any = dict(window=c.window, chunk=c.chunk, share=c.kv_shared)
        source = layer if c.kv_layer is None else c.kv_layer
        y = context.attend(source, q.transpose(1, 2), k, v, **where, **softmax)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, T, heads, D), clipped."""
        clip = self.config.attention.clip
        x = x if clip is None else x.clamp(-clip, clip)
        return x.view(*x.shape[:2], -1, self.config.head_dim)

    def _place(self, x: Tensor, norm: nn.Module | None, turn: Turn) -> Tensor:
        """Queries or keys (B, T, heads * D) -> (B, T, heads, D), with norm, clip and rope."""
        qk, rope = self.config.attention.qk_norm, self.config.rope
        if norm is not None and qk is not None and qk.over == "all":
            x = norm(x)
        x = self._heads(x)
        if norm is not None and qk is not None and qk.over != "all" and not qk.after_rope:
            x = norm(x)
        if turn.cos is not None and turn.sin is not None and rope is not None:
            x = apply_rope(x, turn.cos, turn.sin, rope.interleaved)
        if norm is not None and qk is not None and qk.after_rope:
            x = norm(x)
        return x


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2): all heads' keys and values come from one small latent per token.

    A cache keeps latents only. With nothing cached, keys and values are expanded from them. Otherwise the expansion is
    absorbed: queries are mapped into the latents' space, all heads attend to the latents themselves (as one kv head),
    and what they read is mapped to values afterwards.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        assert config.attention.latent is not None
        self.config, self.latent = config, config.attention.latent
        c, latent, bias = config, self.latent, config.attention.bias
        if latent.q_rank is None:
            self.q_proj = Linear(c.n_embd, c.n_head * c.head_dim, bias=False)
        else:
            self.q_a_proj = Linear(c.n_embd, latent.q_rank, bias=bias)
            self.q_a_norm = make_norm(latent.norm, latent.q_rank)
            self.q_b_proj = Linear(latent.q_rank, c.n_head * c.head_dim, bias=False)
        self.kv_a_proj = Linear(c.n_embd, latent.kv_rank + latent.rope_head_dim, bias=bias)
        self.kv_a_norm = make_norm(latent.norm, latent.kv_rank)
        self.kv_b_proj = Linear(latent.kv_rank, c.n_head * (latent.nope_head_dim + latent.v_head_dim), bias=False)
        self.o_proj = Linear(c.n_head * latent.v_head_dim, c.n_embd, bias=config.attention.out_bias)

    def forward(self, x: Tensor, turn: Turn, context: Context, layer: int) -> Tensor:
        B, T, _ = x.shape
        H, a, latent = self.config.n_head, self.config.attention, self.latent
        N, R, E = latent.nope_head_dim, latent.rope_head_dim, latent.v_head_dim
        scale = self.config.head_dim**-0.5 if a.scale is None else a.scale
        q = self.q_proj(x) if latent.q_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        q, q_turned = q.view(B, T, H, N + R).split((N, R), dim=-1)
        c, k_turned = self.kv_a_proj(x).split((latent.kv_rank, R), dim=-1)
        c, k_turned = self.kv_a_norm(c), k_turned.view(B, T, 1, R)
        if turn.cos is not None and turn.sin is not None and self.config.rope is not None:
            inter = self.config.rope.interleaved
            q_turned, k_turned = (apply_rope(t, turn.cos, turn.sin, inter) for t in (q_turned, k_turned))
        if turn.heat is not None:
            q, q_turned = q * turn.heat, q_turned * turn.heat
        stored = torch.cat((c.view(B, T, 1, -1), k_turned), dim=-1).transpose(1, 2)  # (B, 1, T, rank + R)
        where: Any = dict(window=self.config.window, chunk=self.config.chunk, scale=scale, softcap=a.softcap)
        if context.fresh:
            k, v = self.kv_b_proj(c).view(B, T, H, N + E).split((N, E), dim=-1)
            q, k = torch.cat((q, q_turned), dim=-1), torch.cat((k, k_turned.expand(B, T, H, R)), dim=-1)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            y = context.attend(layer, q, k, v, stored=stored, **where)  # (B, H, T, E)
        else:
            to_k, to_v = context.once(layer, lambda: self._expansion(c)).view(H, N + E, -1).split((N, E), dim=1)
            q = torch.cat((q.transpose(1, 2) @ to_k, q_turned.transpose(1, 2)), dim=-1)  # (B, H, T, rank + R)
            y = context.attend(layer, q, stored, stored[..., : latent.kv_rank], **where)
            y = y @ to_v.transpose(1, 2)  # (B, H, T, E)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))

    def _expansion(self, like: Tensor) -> Tensor:
        """(H * (N + E), rank): the matrix of kv_b_proj, with whatever transforms added to that layer."""
        if type(self.kv_b_proj) is Linear and not self.kv_b_proj._forward_hooks:
            return self.kv_b_proj.weight
        return self.kv_b_proj(torch.eye(self.latent.kv_rank, dtype=like.dtype, device=like.device)).T


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
        output: Literal["logits", "hidden"] = "logits",
        keep: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids -> logits (B, T, V), or with output="hidden" the final states (B, T, C).

        positions: (B, T) or (1, T), for rope; the context's own by default. lengths: (B,), how long each row is without
        its padding, for ropes that depend on it; by default all positions count. context: what tokens attend to, plain
        causal by default. keep: (B, N) indexes into T; only those positions are returned, (B, N, V).
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
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.size(-1)))  # (B, N, C)
        return self.norm(x) if output == "hidden" else self.head(x)

    def _turn(self, kind: int, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> Turn:
        rope, _, temperature = self._kinds[kind]
        heat = None if temperature is None else _heat(positions, temperature).to(dtype)
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


def _heat(positions: Tensor, temperature: TemperatureConfig) -> Tensor:
    steps = torch.floor((positions.float() + temperature.shift) / temperature.interval)
    return (1 + temperature.scale * torch.log1p(steps))[..., None, None]  # (B, T, 1, 1)
