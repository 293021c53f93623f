"""The feed-forward part of a layer, and its activation functions."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litlm.config import LayerConfig, MLPConfig
from litlm.ops.linear import Linear, swiglu


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021) of any shape, elementwise."""
    return F.relu(x).square()


FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
}


class XIELU(nn.Module):
    """Integral of the ELU with learned slopes on both sides (Huang & Schlag 2024).

    beta and eps are buffers because checkpoints store them.
    """

    beta: Tensor
    eps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.register_buffer("beta", torch.empty(()))
        self.register_buffer("eps", torch.empty(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values (transformers activations.py, XIELUActivation)."""
        self.beta.fill_(0.5)
        self.eps.fill_(-1e-6)
        # softplus(alpha_p) = 0.8, and beta + softplus(alpha_n) = 0.5 + 0.3
        self.alpha_p.fill_(0.8).expm1_().log_()
        self.alpha_n.fill_(0.3).expm1_().log_()

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), elementwise."""
        positive = F.softplus(self.alpha_p) * x * x
        negative = (torch.expm1(torch.minimum(x, self.eps.to(x.dtype))) - x) * (self.beta + F.softplus(self.alpha_n))
        return torch.where(x > 0, positive, negative) + self.beta * x


class Activation(nn.Module):
    """act(up), or act(gate) * up where there is a gate."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.kind, self.limit = config.activation, config.limit
        self.xielu = XIELU() if config.activation == "xielu" else None

    def forward(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """gate, up: (..., I) -> (..., I)"""
        if self.kind == "clamped":  # gpt-oss (transformers modeling_gpt_oss.py, GptOssExperts)
            assert gate is not None
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            return gate * torch.sigmoid(1.702 * gate) * (up + 1)
        if self.kind == "silu" and gate is not None:
            return swiglu(gate, up)
        act = FUNCTIONS[self.kind] if self.xielu is None else self.xielu
        return act(up) if gate is None else act(gate) * up


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), or down(act(up(x))) without a gate."""

    def __init__(self, layer: LayerConfig, width: int) -> None:
        super().__init__()
        gated, bias = layer.mlp.kind == "gated", layer.mlp.bias
        self.gate_proj = Linear(layer.n_embd, width, bias=bias) if gated else None
        self.up_proj = Linear(layer.n_embd, width, bias=bias)
        self.down_proj = Linear(width, layer.n_embd, bias=bias)
        self.act = Activation(layer.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        gate = None if self.gate_proj is None else self.gate_proj(x)
        return self.down_proj(self.act(gate, self.up_proj(x)))
