"""Gated DeltaNet (Yang et al. 2024; transformers modeling_qwen3_next.py): the mixer around the gated delta rule.

Shapes: B batch, T tokens, C embedding, K key heads, H value heads, D and E the sizes of their keys and values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import GatedDeltaConfig, LayerConfig
from litlm.context import LayerContext
from litlm.model.rope import RopeTables
from litlm.model.short_conv import DepthwiseConv
from litlm.ops.delta_rule import DeltaRule
from litlm.ops.linear import Linear


class GatedRMSNorm(nn.Module):
    """RMSNorm of each head, times silu of a gate."""

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__()
        self.eps, self.in_fp32 = config.norm_eps, config.norm_fp32
        self.weight = nn.Parameter(torch.empty(config.value_dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: (B, T, H, E) -> (B, T, H, E)"""
        normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        normed = normed * self.weight.float() if self.in_fp32 else self.weight * normed.to(x.dtype)
        return (normed * F.silu(gate.float())).to(x.dtype)


class GatedDeltaNet(nn.Module):
    """Queries, keys and values through a short convolution and the gated delta rule, without position encoding."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        assert isinstance(config.recurrent, GatedDeltaConfig)
        self.config = mixer = config.recurrent
        heads, width = mixer.n_value_head, mixer.n_value_head * mixer.value_dim
        self.in_proj_qkv = Linear(config.n_embd, mixer.qkv_dim, bias=False)
        self.in_proj_z = Linear(config.n_embd, width, bias=False)  # the norm's gate
        self.in_proj_b = Linear(config.n_embd, heads, bias=False)  # beta
        self.in_proj_a = Linear(config.n_embd, heads, bias=False)  # decay
        self.conv = DepthwiseConv(mixer.qkv_dim, mixer.kernel_size)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(mixer)
        self.out_proj = Linear(width, config.n_embd, bias=False)

    def reset_parameters(self) -> None:
        """Decay rates uniform between 0.01 and 16, as in transformers modeling_qwen3_next.py."""
        nn.init.uniform_(self.A_log, 0.01, 16)
        self.A_log.data.log_()
        nn.init.ones_(self.dt_bias)
        nn.init.ones_(self.norm.weight)

    def forward(self, x: Tensor, rotary: RopeTables, context: LayerContext) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        c = self.config
        qkv = F.silu(context.convolve(self.in_proj_qkv(x), self.conv.weight, None))
        keys, values = c.n_key_head * c.key_dim, c.n_value_head * c.value_dim
        q, k, v = qkv.split((keys, keys, values), -1)
        beta = self.in_proj_b(x).sigmoid() * c.beta_scale
        log_decay = -self.A_log.float().exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias.float())
        heads = (q.unflatten(-1, (-1, c.key_dim)), k.unflatten(-1, (-1, c.key_dim)), v.unflatten(-1, (-1, c.value_dim)))
        y = context.recur(DeltaRule(*heads, log_decay, beta))  # (B, T, H, E)
        return self.out_proj(self.norm(y, self.in_proj_z(x).view(y.shape)).flatten(2))
