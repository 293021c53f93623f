"""Multi-head latent attention (DeepSeek-V2): keys and values come from one small latent per token.

Shapes: B batch, T query length, H heads, N and R size of a head's part without and with rope, E size of a value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from litlm.config import LayerConfig
from litlm.context import Context
from litlm.model.norm import make_norm
from litlm.model.rope import Turn, apply_rope
from litlm.ops.linear import Linear


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
