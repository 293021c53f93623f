"""Matrix products on the CPU through the fastest kernel that PyTorch has. On other devices they are `F.linear`.

PyTorch multiplies fp32 matrices with MKL, which takes a slow path on processors that are not Intel's. oneDNN, which the
same build of PyTorch contains and uses for bf16, is twice as fast on AMD's Zen 5, for one row as for thousands. For one
row in bf16 it is the other way round: PyTorch's own kernel reads the weights twice as fast as oneDNN. In compiled code
a product with one row is fastest as a plain sum, which becomes a loop at memory speed. See `benchmarks/`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None if bias is None else bias.contiguous(), "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.size(-1))
        return (
            _onednn(grad, weight.t()) if want_x else None,
            _onednn(rows.t(), x.reshape(-1, x.size(-1)).t()) if want_weight else None,
            rows.sum(0) if want_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in) transposed, plus bias (out,): `F.linear`, faster on some CPUs."""
    if x.device.type != "cpu" or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        if x.numel() != x.size(-1) or torch.is_grad_enabled():
            return F.linear(x, weight, bias)
        row = (weight * x.view(-1)).sum(-1)
        return (row if bias is None else row + bias).view(*x.shape[:-1], -1)
    if not _ONEDNN or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") or x.numel() == 0:
        return F.linear(x, weight, bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _OneDNNLinear.apply(x, weight, bias)  # type: ignore[return-value]
    return _onednn(x, weight, bias)


class _SwiGLU(torch.autograd.Function):
    """Saves gate and up for the backward pass but not silu(gate), which is a third of a layer's largest activations."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        # d silu = sigmoid + silu (1 - sigmoid)
        slope = torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1)
        return slope.mul_(up).mul_(grad), silu.mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020), each (..., I)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)  # type: ignore[return-value]


@contextmanager
def generation_kernels(dtype: torch.dtype, rows: int, device: torch.device) -> Iterator[None]:
    """Within the context, use the kernels that are fast for generating `rows` rows.

    On CUDA cuDNN's attention is off: it takes 45 ms to plan for each new key length. On a CPU, for one row in half
    precision, oneDNN is off: PyTorch's own product is faster.
    """
    no_cudnn = device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
    no_onednn = device.type == "cpu" and rows == 1 and dtype != torch.float32 and torch.backends.mkldnn.enabled
    if no_cudnn:
        torch.backends.cuda.enable_cudnn_sdp(False)
    if no_onednn:
        torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        if no_cudnn:
            torch.backends.cuda.enable_cudnn_sdp(True)
        if no_onednn:
            torch.backends.mkldnn.enabled = True


@lru_cache
def rounded(value: float, dtype: torch.dtype) -> float:
    """A number rounded to `dtype`, for models whose own code multiplies by a tensor of that dtype."""
    return torch.tensor(value, dtype=dtype).item()


class Linear(nn.Linear):
    """`nn.Linear` through `linear`, whose weights start empty: `GPT.init_weights` or a checkpoint fills them.

    (Initializing them on the meta device would also import all of torch's compiler, which takes several seconds.)
    """

    def reset_parameters(self) -> None:
        """Nothing: see above."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` whose weights also start empty."""

    def reset_parameters(self) -> None:
        """Nothing: see `Linear`."""
