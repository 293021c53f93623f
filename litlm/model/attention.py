"""Grouped-query attention: projections, norms and rope around `context.attend`, which decides what a query sees.

Shapes: B batch, T query length, C embedding, H heads, K kv heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import LayerConfig, NormConfig, QKNormConfig
from litlm.context import Context
from litlm.model.norm import make_norm
from litlm.model.rope import Turn, apply_rope
from litlm.ops.linear import Linear
from litlm.ops.sdpa import alibi_slopes


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
