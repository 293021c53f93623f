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
from litlm.ops.delta_rule import DeltaRule, gates
from litlm.ops.linear import Linear
from litlm.ops.norm import rms_norm


class GatedRMSNorm(nn.Module):
    """RMSNorm of each head, times silu of a gate."""

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__()
        self.eps, self.in_fp32 = config.norm_eps, config.norm_fp32
        self.weight = nn.Parameter(torch.empty(config.value_dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: (B, T, H, E) -> (B, T, H, E)"""
        return rms_norm(x, self.weight, self.eps, round_first=not self.in_fp32, gate=gate)


class GatedDeltaNet(nn.Module):
    """Queries, keys and values through a short convolution and the gated delta rule, without position encoding."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        assert isinstance(config.recurrent, GatedDeltaConfig)
        self.config = mixer = config.recurrent
        heads, width = mixer.n_value_head, mixer.n_value_head * mixer.value_dim
        if mixer.separate_qkv:
            self.q_proj, self.k_proj, self.v_proj = (Linear(config.n_embd, n, bias=False) for n in mixer.qkv_dims)
            self.q_conv, self.k_conv, self.v_conv = (DepthwiseConv(n, mixer.kernel_size) for n in mixer.qkv_dims)
        else:
            self.in_proj_qkv = Linear(config.n_embd, mixer.qkv_dim, bias=False)
            self.conv = DepthwiseConv(mixer.qkv_dim, mixer.kernel_size)
        self.in_proj_z = Linear(config.n_embd, width, bias=False)  # the norm's gate
        self.in_proj_b = Linear(config.n_embd, heads, bias=False)  # beta
        self.in_proj_a = Linear(config.n_embd, heads, bias=False)  # decay
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
        if c.separate_qkv:
            projected = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
            kernels = torch.cat((self.q_conv.weight, self.k_conv.weight, self.v_conv.weight))
        else:
            projected, kernels = self.in_proj_qkv(x), self.conv.weight
        q, k, v = F.silu(context.convolve(projected, kernels, None)).split(c.qkv_dims, -1)
        log_decay, beta = gates(self.in_proj_a(x), self.in_proj_b(x), self.A_log, self.dt_bias, c.beta_scale)
        heads = (q.unflatten(-1, (-1, c.key_dim)), k.unflatten(-1, (-1, c.key_dim)), v.unflatten(-1, (-1, c.value_dim)))
        y = context.recur(DeltaRule(*heads, log_decay, beta))  # (B, T, H, E)
        return self.out_proj(self.norm(y, self.in_proj_z(x).view(y.shape)).flatten(2))
