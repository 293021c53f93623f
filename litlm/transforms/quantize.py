"""Weights that stay quantized: 4 bits (QLoRA's NormalFloat, or FP4) and LLM.int8()'s rows, in bitsandbytes' formats.

What is unusual: bitsandbytes packs the weights, but a layer unpacks them in plain PyTorch where it is compiled, so that
the compiler sees through it. Outside of compiled code bitsandbytes' own kernels are faster: up to ten times on a CPU.
The backward pass keeps the packed weight and unpacks it again. A packed weight is never trained and keeps its name.
Each expert of a mixture is packed on its own, and unpacked only where tokens have chosen it.

- nf4, fp4: two indices into 16 values in a byte, the first in the high bits; each 64 values in a row share a scale.
- nf4-dq, fp4-dq: the scales, less their mean, are indices into 256 values; each 256 of them share a scale.
- int8: integers up to 127, and each row's largest magnitude.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from litlm.model.moe import Experts
from litlm.ops.grouped import grouped_linear
from litlm.ops.linear import Linear, linear
from litlm.settings.train import Quantization

KINDS: tuple[str, ...] = get_args(Quantization)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, NESTED_BLOCK = 64, 256
_CHUNK = 2**24  # weights packed at a time: bitsandbytes on a CPU needs several temporary copies in fp32


def check_kind(kind: str) -> None:
    """A ValueError if `kind` is unknown or its library is missing."""
    if kind not in KINDS:
        raise ValueError(f"quantize={kind!r} is unknown; use one of {', '.join(KINDS)}, or leave it out")
    if kind != "int8":
        _bitsandbytes()


@cache
def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it would advise to install more
    try:
        import bitsandbytes
    except ImportError as e:
        raise ValueError(f"4-bit weights need bitsandbytes ({e}): pip install 'litlm[quant]'") from None
    return bitsandbytes


# --- the formats ---------------------------------------------------------------------------------------------------


def quantize(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """(out, in) -> what is kept of it, by name: the packed values and the scales."""
    if kind == "int8":
        scale = weight.abs().amax(1).float()
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows, part, top in zip(*(t.split(_rows(weight)) for t in (values, weight, scale)), strict=True):
            rows.copy_(torch.round(part * (127 / top.clamp(min=1e-30))[:, None]))
        return {"weight": values, "weight_absmax": scale}
    bnb = _bitsandbytes().functional
    options: Any = dict(blocksize=BLOCK, quant_type=kind[:3], compress_statistics=False)
    parts = [bnb.quantize_4bit(part, **options) for part in weight.flatten().split(_CHUNK)]
    packed, scale = torch.cat([p for p, _ in parts]), torch.cat([state.absmax for _, state in parts])
    if not kind.endswith("-dq"):
        return {"weight": packed, "weight_absmax": scale}
    offset = scale.mean()
    indices, state = bnb.quantize_blockwise(scale - offset, blocksize=NESTED_BLOCK)
    return {"weight": packed, "weight_absmax": indices, "weight_nested_absmax": state.absmax, "weight_offset": offset}


def _rows(weight: Tensor) -> int:
    return max(1, _CHUNK // weight.size(1))


@cache
def _tables(kind: str) -> dict[str, Tensor]:
    """What the indices of a kind mean: for each byte its pair of values, and for double quantization the scales."""
    if kind == "int8":
        return {}
    bnb = _bitsandbytes().functional
    values = bnb.get_4bit_type(kind[:3], device="cpu")
    tables = {"pairs": torch.cartesian_prod(values, values)}  # (256, 2)
    if kind.endswith("-dq"):
        tables["levels"] = bnb.create_dynamic_map()
    return tables


def _spread(values: Tensor, scale: Tensor, block: int) -> Tensor:
    """Rows of values (..., n), each block of them times its scale."""
    n, blocks = values.size(-1), scale.size(-1)
    values = values if n == blocks * block else F.pad(values, (0, blocks * block - n))
    return (values.unflatten(-1, (blocks, block)) * scale[..., None]).flatten(-2)[..., :n]


def dequantize(kind: str, shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[Tensor]) -> Tensor:
    """(out, in) from `parts`: packed values, scales, for -dq the scales' scales and their mean, then the tables.

    All but the tables may have E in front, and so has the result then.
    """
    packed, scale = parts[:2]
    if kind == "int8":
        return (packed * scale[..., None]).mul_(1 / 127).to(dtype)
    if not torch.compiler.is_compiling() and _has_kernel(packed, shape):
        return _bitsandbytes().functional.dequantize_4bit(packed, _state(kind, shape, dtype, parts))
    if kind.endswith("-dq"):
        nested, offset, pairs, levels = parts[2:]
        scale = _spread(F.embedding(scale.int(), levels[:, None])[..., 0], nested, NESTED_BLOCK) + offset[..., None]
    else:
        (pairs,) = parts[2:]
    values = F.embedding(packed[..., 0].int(), pairs).flatten(-2)
    return _spread(values[..., : math.prod(shape)], scale, BLOCK).to(dtype).unflatten(-1, shape)


def _has_kernel(packed: Tensor, shape: tuple[int, int]) -> bool:
    """That of a CPU reads wrong scales where blocks go over the ends of rows (0.50); a lone byte is taken for a row."""
    if packed.dim() > 2 or packed.numel() == 1:
        return False
    return packed.device.type == "cuda" or (packed.device.type == "cpu" and shape[1] % BLOCK == 0)


def _state(kind: str, shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[Tensor]) -> Any:
    """The same as bitsandbytes describes it."""
    State = _bitsandbytes().functional.QuantState
    options: Any = dict(shape=torch.Size(shape), blocksize=BLOCK, quant_type=kind[:3], dtype=dtype)
    if kind.endswith("-dq"):
        nested = State(absmax=parts[2], code=parts[5], blocksize=NESTED_BLOCK, dtype=torch.float32)
        options |= dict(offset=parts[3], state2=nested)
    return State(absmax=parts[1], **options)


# --- products ------------------------------------------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """x W^T + bias. Only the parts of W are kept for the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, kind: str, shape: tuple[int, int], *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.kind, ctx.shape = kind, shape
        return linear(x, dequantize(kind, shape, x.dtype, parts), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        parts = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(grad, dequantize(ctx.kind, ctx.shape, grad.dtype, parts).t())
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.size(-1)).sum(0)
        return grad_x, grad_bias, None, None, *(None for _ in parts)


def _product(x: Tensor, bias: Tensor | None, kind: str, shape: tuple[int, int], parts: Sequence[Tensor]) -> Tensor:
    """x (..., in) times the packed weight (out, in) transposed, plus bias."""
    if torch.compiler.is_compiling():
        return linear(x, _seen(x, kind, shape, parts), bias)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Product.apply(x, bias, kind, shape, *parts)  # type: ignore[return-value]
    half = x.dtype in (torch.bfloat16, torch.float16)
    if kind != "int8" and half and x.device.type == "cuda" and x.numel() and shape[1] % BLOCK == 0:
        bias = None if bias is None else bias.to(x.dtype)  # for few rows a kernel that unpacks as it multiplies
        return _bitsandbytes().matmul_4bit(x, parts[0], _state(kind, shape, x.dtype, parts), bias=bias)
    return linear(x, dequantize(kind, shape, x.dtype, parts), bias)


def _seen(x: Tensor, kind: str, shape: tuple[int, int], parts: Sequence[Tensor]) -> Tensor:
    """The weight in compiled code. Without being told to compute it again, the compiler keeps it for the backward."""
    if torch.is_grad_enabled():
        return checkpoint(dequantize, kind, shape, x.dtype, parts, use_reentrant=False)  # type: ignore[return-value]
    return dequantize(kind, shape, x.dtype, parts)


def _cast(x: Tensor) -> Tensor:
    """In the dtype that products have here."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


# --- modules -------------------------------------------------------------------------------------------------------


class _Packed(nn.Module):
    """A packed `weight` with its scales beside it as buffers, `weight_absmax` and so on. `set_weight` fills them."""

    kind: str
    dtype: torch.dtype  # of the weight where it is asked for outside of a product
    weight: Tensor

    def _prepare(self, kind: str, dtype: torch.dtype) -> None:
        self.kind, self.dtype = kind, dtype
        for name, table in _tables(kind).items():
            self.register_buffer(name, table, persistent=False)

    @property
    def parts(self) -> list[Tensor]:
        names = ["weight", "weight_absmax"]
        if self.kind.endswith("-dq"):
            names += ["weight_nested_absmax", "weight_offset"]
        if self.kind != "int8":
            names += ["pairs", "levels"] if self.kind.endswith("-dq") else ["pairs"]
        return [getattr(self, name) for name in names]

    @torch.no_grad()
    def _pack(self, value: Tensor, device: torch.device) -> dict[str, Tensor]:
        """A matrix (out, in), in full precision on any device -> its parts on `device`."""
        value = value.to(device if device.type == "cuda" else "cpu", self.dtype).contiguous()
        return {name: part.to(device) for name, part in quantize(value, self.kind).items()}

    def _keep(self, parts: dict[str, Tensor]) -> None:
        parts = dict(parts)
        self.weight = nn.Parameter(parts.pop("weight"), requires_grad=False)
        for name, part in parts.items():
            self.register_buffer(name, part)
        for name in _tables(self.kind):
            setattr(self, name, getattr(self, name).to(self.weight.device))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves of the module move the scales; casts only change what dtype the weight has when unpacked."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, was in before.items():
            now = self._buffers[name]
            if was is not None and now is not None and now.dtype != was.dtype:
                self._buffers[name] = was.to(now.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}".removeprefix(", ")


class QuantizedLinear(_Packed, Linear):
    """A linear layer whose weight is packed."""

    def __init__(self, layer: nn.Linear, kind: str, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        self._prepare(kind, dtype)

    def set_weight(self, value: Tensor, device: torch.device, index: int | None = None) -> None:
        """Take the weight (out, in) and keep it packed on `device`."""
        assert index is None
        self._keep(self._pack(value, device))

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in)."""
        return dequantize(self.kind, (self.out_features, self.in_features), dtype or self.dtype, self.parts)

    def forward(self, input: Tensor) -> Tensor:
        return _product(_cast(input), self.bias, self.kind, (self.out_features, self.in_features), self.parts)


class QuantizedStack(_Packed):
    """The packed weights (E, out, in) of experts, in the place of the parameter that `grouped_linear` is given."""

    def __init__(self, stack: Tensor, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = stack.shape
        self._prepare(kind, dtype)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def set_weight(self, value: Tensor, device: torch.device, index: int | None = None) -> None:
        """Take the weight of expert `index` (out, in), or of all (E, out, in), and keep it packed on `device`."""
        for e, matrix in enumerate(value) if index is None else [(index, value)]:
            parts = self._pack(matrix, device)
            if "weight" not in self._parameters:
                self._keep({name: part.new_empty(self.shape[0], *part.shape) for name, part in parts.items()})
            for name, part in parts.items():
                getattr(self, name)[e] = part

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weights (E, out, in)."""
        every = (self._of(e) for e in range(self.shape[0]))
        return torch.stack([dequantize(self.kind, self._matrix, dtype or self.dtype, parts) for parts in every])

    @property
    def _matrix(self) -> tuple[int, int]:
        return self.shape[1], self.shape[2]

    def _of(self, expert: int | Tensor) -> list[Tensor]:
        """The parts of one expert, or of one for each row."""
        parts, own = self.parts, 4 if self.kind.endswith("-dq") else 2
        return [*(p[expert] for p in parts[:own]), *parts[own:]]

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor, bias: Tensor | None = None) -> Tensor:
        """What `grouped_linear` says."""
        x = _cast(x)
        if torch.compiler.is_compiling():
            if x.device.type == "cuda":
                return grouped_linear(x, _seen(x, self.kind, self._matrix, self.parts), ends, experts, bias)
            y = (_seen(x, self.kind, self._matrix, self._of(experts)) * x[:, None]).sum(-1)
            return y if bias is None else y + bias[experts]
        outputs, start = [], 0
        for e, end in enumerate(ends.tolist()):
            if end > start:
                own = None if bias is None else bias[e]
                outputs.append(_product(x[start:end], own, self.kind, self._matrix, self._of(e)))
                start = end
        return torch.cat(outputs)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, kind={self.kind}"


def kinds(model: nn.Module) -> list[str]:
    """In which formats weights of the model are kept."""
    return list(dict.fromkeys(m.kind for m in model.modules() if isinstance(m, _Packed)))


def n_weights(model: nn.Module) -> dict[nn.Parameter, int]:
    """How many weights each parameter holds: a packed one more than it has elements."""
    packed: dict[Tensor, int] = {}
    for m in model.modules():
        if isinstance(m, QuantizedLinear):
            packed[m.weight] = m.out_features * m.in_features
        elif isinstance(m, QuantizedStack):
            packed[m.weight] = math.prod(m.shape)
    return {p: packed.get(p, p.numel()) for p in model.parameters()}


def weight_of(layer: nn.Module) -> Tensor:
    """The full weight of a linear layer (out, in) or of experts, plain or quantized."""
    return layer.dequantized() if isinstance(layer, _Packed) else layer.weight  # type: ignore[return-value, operator]


def quantize_layers(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Replace the linear layers and experts inside the blocks by packed ones, still empty; routers stay as they are."""
    check_kind(kind)
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype={str(dtype).removeprefix('torch.')} does not go with quantize; use bfloat16 or float32"
        )
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if type(module) is Linear and name.startswith("layers.") and leaf != "shared_gate":
            setattr(model.get_submodule(owner), leaf, QuantizedLinear(module, kind, dtype))
        elif isinstance(module, Experts):
            for leaf, stack in list(module.named_parameters(recurse=False)):
                if stack.dim() == 3:
                    delattr(module, leaf)
                    module.add_module(leaf, QuantizedStack(stack, kind, dtype))
