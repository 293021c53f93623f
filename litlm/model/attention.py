"""Grouped-query attention: projections, norms and rope around `context.attend`, which knows what each query sees.

Shapes: B batch, T query length, C embedding, H heads, K kv heads, D head size.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import LayerConfig, NormConfig, QKNormConfig
from litlm.context import LayerContext
from litlm.model.buffers import ComputedBuffer
from litlm.model.norm import make_norm
from litlm.model.rope import RopeTables, apply_rope
from litlm.ops.linear import Linear
from litlm.ops.sdpa import AttentionSpec, alibi_slopes


def make_spec(config: LayerConfig, scale: float | None) -> AttentionSpec:
    """The layer's `AttentionSpec`. scale: factor of the scores; None: D ** -0.5."""
    return AttentionSpec(config.window, config.chunk, scale, config.attention.softcap)


class PerHeadNorm(nn.Module):
    """Norm over each head of queries or keys (B, T, H, D), where each head has a weight of its own: (H, D) (Cohere)."""

    def __init__(self, config: NormConfig, n_head: int, head_dim: int) -> None:
        super().__init__()
        self.kind, self.eps = config.kind, config.eps
        self.weight = nn.Parameter(torch.empty(n_head, head_dim))

    def reset_parameters(self) -> None:
        """All ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, D) -> (B, T, H, D), computed in fp32."""
        x_fp32, size = x.float(), x.shape[-1:]
        rms = self.kind == "rms"
        normed = F.rms_norm(x_fp32, size, None, self.eps) if rms else F.layer_norm(x_fp32, size, eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)


def make_qk_norm(config: QKNormConfig, n_head: int, head_dim: int) -> nn.Module:
    """The norm of a layer's queries or keys."""
    if config.over == "each_head":
        return PerHeadNorm(config.norm, n_head, head_dim)
    return make_norm(config.norm, head_dim if config.over == "head" else n_head * head_dim)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): K heads of keys and values serve H heads of queries.

    What else a layer has (norms of queries and keys, sinks, ALiBi, clipping, a gate) is its `AttentionConfig`'s choice.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        attention, D = config.attention, config.head_dim
        self.spec = make_spec(config, attention.scale)
        q_dim, kv_dim = config.n_head * D, config.n_kv_head * D
        has_kv, qk = config.kv_layer is None, attention.qk_norm
        has_v = has_kv and not attention.k_as_v
        gate = self.gate = attention.gate
        in_q_proj = gate is not None and gate.in_q_proj
        self.q_proj = Linear(config.n_embd, 2 * q_dim if in_q_proj else q_dim, bias=attention.bias)
        self.k_proj = Linear(config.n_embd, kv_dim, bias=attention.bias) if has_kv else None
        self.v_proj = Linear(config.n_embd, kv_dim, bias=attention.bias) if has_v else None
        n_gate = 0 if gate is None or in_q_proj else q_dim if gate.over == "channel" else config.n_head
        self.gate_proj = Linear(config.n_embd, n_gate, bias=False) if n_gate else None
        self.o_proj = Linear(q_dim, config.n_embd, bias=attention.out_bias)
        at_head = "after_rope" if qk is not None and qk.after_rope else "before_rope"
        self.norm_at = "all_heads" if qk is not None and qk.over == "all" else at_head
        self.q_norm = make_qk_norm(qk, config.n_head, D) if qk else None
        self.k_norm = make_qk_norm(qk, config.n_kv_head, D) if qk and has_kv else None
        self.v_norm = make_norm(attention.v_norm, D) if attention.v_norm and has_kv else None
        self.sinks = nn.Parameter(torch.empty(config.n_head)) if attention.sinks else None
        self.alibi = ComputedBuffer(partial(alibi_slopes, config.n_head)) if attention.alibi else None

    def forward(self, x: Tensor, rotary: RopeTables, context: LayerContext) -> Tensor:
        """(B, T, C) -> (B, T, C). A layer without k and v projections attends to an earlier layer's keys and values."""
        B, T, _ = x.shape
        q, gate = self.q_proj(x), None if self.gate_proj is None else self.gate_proj(x)
        if self.gate is not None and self.gate.in_q_proj:
            q, gate = (half.flatten(2) for half in q.view(B, T, self.config.n_head, -1).chunk(2, -1))
        q = self.norm_and_rope(q, self.q_norm, rotary)  # (B, T, H, D)
        if rotary.query_scale is not None:
            q = q * rotary.query_scale
        k = v = None
        if self.k_proj is not None:
            k = self.k_proj(x)
            v = self.split_heads(k if self.v_proj is None else self.v_proj(x))
            v = (v if self.v_norm is None else self.v_norm(v)).transpose(1, 2)  # (B, K, T, D)
            k = self.norm_and_rope(k, self.k_norm, rotary).transpose(1, 2)
        slopes = None if self.alibi is None else self.alibi.values
        y = context.attend(q.transpose(1, 2), k, v, self.spec, sinks=self.sinks, slopes=slopes)  # (B, H, T, D)
        y = y.transpose(1, 2)  # (B, T, H, D)
        if gate is not None:
            y = y * self.activate(gate.view(B, T, self.config.n_head, -1))
        return self.o_proj(y.reshape(B, T, -1))

    def activate(self, gate: Tensor) -> Tensor:
        """The activation of the gate (B, T, H, D or 1)."""
        assert self.gate is not None
        return gate.sigmoid() if self.gate.activation == "sigmoid" else F.softplus(gate.float()).to(gate.dtype)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, T, heads, D), clamped to `AttentionConfig.clip`."""
        clip = self.config.attention.clip
        x = x if clip is None else x.clamp(-clip, clip)
        return x.view(*x.shape[:2], -1, self.config.head_dim)

    def norm_and_rope(self, x: Tensor, norm: nn.Module | None, rotary: RopeTables) -> Tensor:
        """Queries or keys (B, T, heads * D) -> (B, T, heads, D), clamped, with norm and rope."""
        if norm is not None and self.norm_at == "all_heads":
            x = norm(x)
        x = self.split_heads(x)
        if norm is not None and self.norm_at == "before_rope":
            x = norm(x)
        if rotary.cos is not None and rotary.sin is not None and self.config.rope is not None:
            x = apply_rope(x, rotary.cos, rotary.sin, self.config.rope.interleaved)
        if norm is not None and self.norm_at == "after_rope":
            x = norm(x)
        return x
