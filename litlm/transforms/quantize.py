"""Weights that stay quantized: in 4 bits (QLoRA, Dettmers et al. 2023: NF4, or FP4), or int8 with a scale per row
(LLM.int8(), Dettmers et al. 2022), in bitsandbytes' formats.

bitsandbytes packs the weights, but compiled layers unpack them in plain PyTorch, so that the compiler sees through it.
Outside of compiled code bitsandbytes' own kernels are faster: up to ten times on a CPU. The backward pass keeps the
packed weight and unpacks it again. A packed weight is never trained and keeps its name. Each expert of a mixture is
packed on its own, and unpacked only if tokens have chosen it.

The formats (`qtype`):

- nf4, fp4: two indices into 16 values per byte, the first in the high bits; 64 values in a row share a scale.
- nf4-dq, fp4-dq: the scales minus their mean are indices into 256 values; 256 of them share a scale.
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

QTYPES: tuple[str, ...] = get_args(Quantization)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, NESTED_BLOCK = 64, 256
SMALL_GATES = ("shared_gate", "in_proj_a", "in_proj_b")  # linear layers that stay plain: few outputs decide much
_CHUNK = 2**24  # weights packed at a time: bitsandbytes on a CPU needs several temporary copies in fp32


def check_qtype(qtype: str) -> None:
    """Raises ValueError if `qtype` is unknown or its library is missing."""
    if qtype not in QTYPES:
        raise ValueError(f"quantize={qtype!r} is unknown; use one of {', '.join(QTYPES)}, or leave it out")
    if qtype != "int8":
        _bitsandbytes()


@cache
def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it recommends further packages
    try:
        import bitsandbytes
    except ImportError as e:
        raise ValueError(f"4-bit weights need bitsandbytes ({e}): pip install bitsandbytes") from None
    return bitsandbytes


# --- the formats ---------------------------------------------------------------------------------------------------


def quantize(weight: Tensor, qtype: str) -> dict[str, Tensor]:
    """(out, in) -> its parts by name: the packed values and the scales."""
    if qtype == "int8":
        scale = weight.abs().amax(1).float()
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows, part, top in zip(*(t.split(_rows(weight)) for t in (values, weight, scale)), strict=True):
            rows.copy_(torch.round(part * (127 / top.clamp(min=1e-30))[:, None]))
        return {"weight": values, "weight_absmax": scale}
    bnb = _bitsandbytes().functional
    options: Any = dict(blocksize=BLOCK, quant_type=qtype[:3], compress_statistics=False)
    parts = [bnb.quantize_4bit(part, **options) for part in weight.flatten().split(_CHUNK)]
    packed, scale = torch.cat([p for p, _ in parts]), torch.cat([state.absmax for _, state in parts])
    if not qtype.endswith("-dq"):
        return {"weight": packed, "weight_absmax": scale}
    offset = scale.mean()
    indices, state = bnb.quantize_blockwise(scale - offset, blocksize=NESTED_BLOCK)
    return {"weight": packed, "weight_absmax": indices, "weight_nested_absmax": state.absmax, "weight_offset": offset}


def _rows(weight: Tensor) -> int:
    return max(1, _CHUNK // weight.size(1))


@cache
def _tables(qtype: str) -> dict[str, Tensor]:
    """What the indices mean: the pair of values of each byte, and for double quantization the scales."""
    if qtype == "int8":
        return {}
    bnb = _bitsandbytes().functional
    values = bnb.get_4bit_type(qtype[:3], device="cpu")
    tables = {"pairs": torch.cartesian_prod(values, values)}  # (256, 2)
    if qtype.endswith("-dq"):
        tables["levels"] = bnb.create_dynamic_map()
    return tables


def _scale_blocks(values: Tensor, scale: Tensor, block: int) -> Tensor:
    """values (..., n), each block of them times its scale (..., blocks)."""
    n, blocks = values.size(-1), scale.size(-1)
    values = values if n == blocks * block else F.pad(values, (0, blocks * block - n))
    return (values.unflatten(-1, (blocks, block)) * scale[..., None]).flatten(-2)[..., :n]


def dequantize(qtype: str, shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[Tensor]) -> Tensor:
    """(out, in) from `parts`: packed values, scales, for -dq the scales' scales and their mean, then the tables.

    If all parts but the tables have E in front, so has the result.
    """
    packed, scale = parts[:2]
    if qtype == "int8":
        return (packed * scale[..., None]).mul_(1 / 127).to(dtype)
    if not torch.compiler.is_compiling() and _has_kernel(packed, shape):
        return _bitsandbytes().functional.dequantize_4bit(packed, _state(qtype, shape, dtype, parts))
    if qtype.endswith("-dq"):
        nested, offset, pairs, levels = parts[2:]
        scale = (
            _scale_blocks(F.embedding(scale.int(), levels[:, None])[..., 0], nested, NESTED_BLOCK) + offset[..., None]
        )
    else:
        (pairs,) = parts[2:]
    values = F.embedding(packed[..., 0].int(), pairs).flatten(-2)
    return _scale_blocks(values[..., : math.prod(shape)], scale, BLOCK).to(dtype).unflatten(-1, shape)


def _has_kernel(packed: Tensor, shape: tuple[int, int]) -> bool:
    """Whether bitsandbytes has one. On a CPU it reads wrong scales if blocks span rows (0.50), and takes a single byte
    for a row.
    """
    if packed.dim() > 2 or packed.numel() == 1:
        return False
    return packed.device.type == "cuda" or (packed.device.type == "cpu" and shape[1] % BLOCK == 0)


def _state(qtype: str, shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[Tensor]) -> Any:
    """The parts as bitsandbytes' QuantState."""
    State = _bitsandbytes().functional.QuantState
    options: Any = dict(shape=torch.Size(shape), blocksize=BLOCK, quant_type=qtype[:3], dtype=dtype)
    if qtype.endswith("-dq"):
        nested = State(absmax=parts[2], code=parts[5], blocksize=NESTED_BLOCK, dtype=torch.float32)
        options |= dict(offset=parts[3], state2=nested)
    return State(absmax=parts[1], **options)


# --- products ------------------------------------------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """x W^T + bias, saving only the parts of W for the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, qtype: str, shape: tuple[int, int], *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.qtype, ctx.shape = qtype, shape
        return linear(x, dequantize(qtype, shape, x.dtype, parts), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        parts = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(grad, dequantize(ctx.qtype, ctx.shape, grad.dtype, parts).t())
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.size(-1)).sum(0)
        return grad_x, grad_bias, None, None, *(None for _ in parts)


def _product(x: Tensor, bias: Tensor | None, qtype: str, shape: tuple[int, int], parts: Sequence[Tensor]) -> Tensor:
    """x (..., in) times the packed weight (out, in) transposed, plus bias."""
    if torch.compiler.is_compiling():
        return linear(x, _recomputed(x, qtype, shape, parts), bias)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Product.apply(x, bias, qtype, shape, *parts)  # type: ignore[return-value]
    half = x.dtype in (torch.bfloat16, torch.float16)
    if qtype != "int8" and half and x.device.type == "cuda" and x.numel() and shape[1] % BLOCK == 0:
        bias = None if bias is None else bias.to(x.dtype)  # for few rows there is a fused kernel
        return _bitsandbytes().matmul_4bit(x, parts[0], _state(qtype, shape, x.dtype, parts), bias=bias)
    return linear(x, dequantize(qtype, shape, x.dtype, parts), bias)


def _recomputed(x: Tensor, qtype: str, shape: tuple[int, int], parts: Sequence[Tensor]) -> Tensor:
    """The weight (out, in) in compiled code: recomputed in the backward pass, or the compiler would save it."""
    if torch.is_grad_enabled():
        return checkpoint(dequantize, qtype, shape, x.dtype, parts, use_reentrant=False)  # type: ignore[return-value]
    return dequantize(qtype, shape, x.dtype, parts)


def _autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast asks for, if it is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


# --- modules -------------------------------------------------------------------------------------------------------


class _Packed(nn.Module):
    """A packed `weight` with its scales as buffers (`weight_absmax`, ...). `set_weight` fills them."""

    qtype: str
    dtype: torch.dtype  # of the weight if it is dequantized outside of a product
    weight: Tensor

    def _prepare(self, qtype: str, dtype: torch.dtype) -> None:
        self.qtype, self.dtype = qtype, dtype
        for name, table in _tables(qtype).items():
            self.register_buffer(name, table, persistent=False)

    @property
    def parts(self) -> list[Tensor]:
        """The arguments of `dequantize`."""
        names = ["weight", "weight_absmax"]
        if self.qtype.endswith("-dq"):
            names += ["weight_nested_absmax", "weight_offset"]
        if self.qtype != "int8":
            names += ["pairs", "levels"] if self.qtype.endswith("-dq") else ["pairs"]
        return [getattr(self, name) for name in names]

    @torch.no_grad()
    def _pack(self, value: Tensor, device: torch.device) -> dict[str, Tensor]:
        """A matrix (out, in) in full precision, on any device -> its parts on `device`."""
        value = value.to(device if device.type == "cuda" else "cpu", self.dtype).contiguous()
        return {name: part.to(device) for name, part in quantize(value, self.qtype).items()}

    def _set_parts(self, parts: dict[str, Tensor]) -> None:
        parts = dict(parts)
        self.weight = nn.Parameter(parts.pop("weight"), requires_grad=False)
        for name, part in parts.items():
            self.register_buffer(name, part)
        for name in _tables(self.qtype):
            setattr(self, name, getattr(self, name).to(self.weight.device))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moving the module moves the scales; casting it only changes the dtype of the dequantized weight."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, quant_type={self.qtype}".removeprefix(", ")


class QuantizedLinear(_Packed, Linear):
    """A linear layer whose weight is packed."""

    def __init__(self, layer: nn.Linear, qtype: str, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.bias = layer.bias
        self._prepare(qtype, dtype)

    def set_weight(self, value: Tensor, device: torch.device, index: int | None = None) -> None:
        """Pack the weight (out, in) onto `device`."""
        assert index is None
        self._set_parts(self._pack(value, device))

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in)."""
        return dequantize(self.qtype, (self.out_features, self.in_features), dtype or self.dtype, self.parts)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return _product(_autocast(input), self.bias, self.qtype, (self.out_features, self.in_features), self.parts)


class QuantizedStack(_Packed):
    """The packed weights (E, out, in) of experts, in place of the parameter that `grouped_linear` takes."""

    def __init__(self, stack: Tensor, qtype: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = stack.shape
        self._prepare(qtype, dtype)

    @property
    def device(self) -> torch.device:
        """Where the packed weights are."""
        return self.weight.device

    def size(self, dim: int) -> int:
        """As of the unpacked tensor."""
        return self.shape[dim]

    def set_weight(self, value: Tensor, device: torch.device, index: int | None = None) -> None:
        """Pack the weight of expert `index` (out, in), or of all (E, out, in), onto `device`."""
        for e, matrix in enumerate(value) if index is None else [(index, value)]:
            parts = self._pack(matrix, device)
            if "weight" not in self._parameters:
                self._set_parts({name: part.new_empty(self.shape[0], *part.shape) for name, part in parts.items()})
            for name, part in parts.items():
                getattr(self, name)[e] = part

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weights (E, out, in)."""
        experts = (self._expert_parts(e) for e in range(self.shape[0]))
        dtype = dtype or self.dtype
        return torch.stack([dequantize(self.qtype, self._size, dtype, parts) for parts in experts])

    @property
    def _size(self) -> tuple[int, int]:
        return self.shape[1], self.shape[2]

    def _expert_parts(self, expert: int | Tensor) -> list[Tensor]:
        """The parts of one expert, or of the expert (M,) of each row."""
        parts, stacked = self.parts, 4 if self.qtype.endswith("-dq") else 2
        return [*(p[expert] for p in parts[:stacked]), *parts[stacked:]]

    def forward(self, x: Tensor, ends: Tensor, experts: Tensor, bias: Tensor | None = None) -> Tensor:
        """(M, in) -> (M, out): see `grouped_linear`."""
        x = _autocast(x)
        if torch.compiler.is_compiling():
            if x.device.type == "cuda":
                return grouped_linear(x, _recomputed(x, self.qtype, self._size, self.parts), ends, experts, bias)
            y = (_recomputed(x, self.qtype, self._size, self._expert_parts(experts)) * x[:, None]).sum(-1)
            return y if bias is None else y + bias[experts]
        outputs, start = [], 0
        for e, end in enumerate(ends.tolist()):
            if end > start:
                expert_bias = None if bias is None else bias[e]
                outputs.append(_product(x[start:end], expert_bias, self.qtype, self._size, self._expert_parts(e)))
                start = end
        return torch.cat(outputs)

    def extra_repr(self) -> str:
        """For printing the module."""
        return f"{tuple(self.shape)}, quant_type={self.qtype}"


def formats(model: nn.Module) -> list[str]:
    """The formats of the model's quantized weights."""
    return list(dict.fromkeys(m.qtype for m in model.modules() if isinstance(m, _Packed)))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of trainable and of all parameters, counting quantized weights as if unpacked."""
    packed: dict[Tensor, int] = {}
    for m in model.modules():
        if isinstance(m, QuantizedLinear):
            packed[m.weight] = m.out_features * m.in_features
        elif isinstance(m, QuantizedStack):
            packed[m.weight] = math.prod(m.shape)
    counts = {p: packed.get(p, p.numel()) for p in model.parameters()}
    return sum(n for p, n in counts.items() if p.requires_grad), sum(counts.values())


def weight_of(layer: nn.Module) -> Tensor:
    """The full weight of a linear layer (out, in) or of experts (E, out, in), plain or quantized."""
    return layer.dequantized() if isinstance(layer, _Packed) else layer.weight  # type: ignore[return-value, operator]


def quantize_layers(model: nn.Module, qtype: str, dtype: torch.dtype) -> None:
    """Replace the linear layers and experts in the decoder layers by packed ones, still empty; routers, small gates
    (Gated DeltaNet's decay among them) and convolutions stay as they are.

    Raises ValueError for an unknown format or dtype.
    """
    check_qtype(qtype)
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype={str(dtype).removeprefix('torch.')} does not go with quantize; use bfloat16 or float32"
        )
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if type(module) is Linear and name.startswith("layers.") and leaf not in SMALL_GATES:
            setattr(model.get_submodule(owner), leaf, QuantizedLinear(module, qtype, dtype))
        elif isinstance(module, Experts):
            for leaf, stack in list(module.named_parameters(recurse=False)):
                if stack.dim() == 3:
                    delattr(module, leaf)
                    module.add_module(leaf, QuantizedStack(stack, qtype, dtype))
