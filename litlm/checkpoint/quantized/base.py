"""What the formats of quantized checkpoints share: how a weight is stored, and unpacking and scaling in blocks."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.base import WeightSource

REMEDY = "use the unquantized checkpoint or a GGUF file of the model"
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

Block = tuple[int, int]  # rows and columns that share a scale


class Stored:
    """The stored tensors that make up one weight, by the endings of their names."""

    def __init__(
        self, source: WeightSource, shapes: Mapping[str, tuple[int, ...]], stem: str, parts: Mapping[str, str]
    ) -> None:
        self._source, self._shapes, self._parts, self.stem = source, shapes, parts, stem

    def __contains__(self, ending: str) -> bool:
        return ending in self._parts

    def __getitem__(self, ending: str) -> Tensor:
        return self._source.read(self._parts[ending])

    def shape(self, ending: str) -> tuple[int, ...]:
        return self._shapes[self._parts[ending]]

    def wrong(self, ending: str, problem: str) -> ValueError:
        return ValueError(f"{self._parts[ending]} {problem}")

    def wrong_size(self, ending: str, expected: str) -> ValueError:
        return self.wrong(ending, f"has shape {list(self.shape(ending))}, expected {expected}")

    def values(self, ending: str, *dtypes: torch.dtype) -> Tensor:
        """The tensor, whose dtype must be one of those."""
        tensor = self[ending]
        if tensor.dtype not in dtypes:
            raise self.wrong(
                ending,
                f"holds {dtype_name(tensor.dtype)} values, expected {' or '.join(map(dtype_name, dtypes))}; {REMEDY}",
            )
        return tensor


# What static quantization of activations and of the KV cache leaves behind; the weights don't depend on it.


ACTIVATIONS = re.compile(
    r"([._](input|output|activation)_(scale|zero_point|global_scale)|\.(k|v|q|kv)_(scale|zero_point))$"
)


class Format(ABC):
    """How one method stores a weight."""

    parts: re.Pattern[str]  # the endings of what belongs to a weight, as group 1
    main: str | None = None  # the ending of the stored weight where that is an ordinary name
    required: tuple[str, ...] = ()
    ignored: re.Pattern[str] | None = None
    target = ".weight"  # what follows the stem in the name of the weight

    @abstractmethod
    def __init__(self, quantization: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def __str__(self) -> str: ...

    def missing(self, weight: Stored) -> list[str]:
        return [ending for ending in self.required if ending not in weight]

    @abstractmethod
    def shape(self, weight: Stored) -> tuple[int, ...]:
        """The weight's shape, from headers and at most a few bytes; ValueError if the stored sizes can't be."""

    @abstractmethod
    def read(self, weight: Stored) -> Tensor: ...


def fit(weight: Stored, part: str, shape: Sequence[int], blocks: Sequence[Block]) -> tuple[tuple[int, ...], Block]:
    """The scales' shape as (..., rows, columns) of blocks, and a block's size: of `blocks`, or a row, or everything."""
    stored = weight.shape(part)
    if len(shape) < 2:
        raise weight.wrong(part, f"belongs to a tensor of shape {list(shape)}, expected a matrix")
    rows, columns = shape[-2:]
    lead = tuple(shape[:-2])
    if math.prod(stored) == 1:
        return (1,) * len(shape), (rows, columns)
    for high, wide in [*blocks, (1, columns), (rows, columns)]:
        grid = (*lead, math.ceil(rows / high), math.ceil(columns / wide))
        # Rows of one scale each, and one scale for each of several matrices, may lack the axes of size 1.
        if stored == grid or (stored == grid[: len(stored)] and math.prod(stored) == math.prod(grid)):
            return grid, (high, wide)
    sizes = " or ".join(f"{high}x{wide}" for high, wide in [*blocks, (1, columns), (rows, columns)])
    raise weight.wrong_size(part, f"one scale for each {sizes} of {list(shape)}")


def blocks(values: Tensor, grid: Tensor, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of `values` (..., rows, columns), each with what of `grid` (one entry per block) belongs to it."""
    (high, wide), (rows, columns) = block, values.shape[-2:]
    if high > 1 and grid.shape[-2] > 1:
        grid = grid.repeat_interleave(high, -2)[..., :rows, :]
    whole = columns // wide
    if whole:
        yield values[..., : whole * wide].unflatten(-1, (whole, wide)), grid[..., :whole, None]
    if whole * wide < columns:
        yield values[..., whole * wide :], grid[..., whole:]


def affine(values: Tensor, scale: Tensor, zeros: Tensor | None, block: Block) -> Tensor:
    """(values - zeros) * scale, in the memory of `values`."""
    if zeros is not None:
        for each, its in blocks(values, zeros, block):
            each.sub_(its)
    for each, its in blocks(values, scale, block):
        each.mul_(its)
    return values


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of each row, which is a stream of bits that begins at the lowest of its first word."""
    octets = words.contiguous().view(torch.uint8)
    if 8 % bits == 0:
        values = (octets[..., None] >> torch.arange(0, 8, bits, dtype=torch.uint8)) & (2**bits - 1)
    else:  # `bits` bytes hold 8 numbers
        octets = torch.nn.functional.pad(octets, (0, -octets.shape[-1] % bits)).unflatten(-1, (-1, bits))
        eight = (octets.long() << torch.arange(0, 8 * bits, 8)).sum(-1)
        values = ((eight[..., None] >> torch.arange(0, 8 * bits, bits)) & (2**bits - 1)).to(torch.uint8)
    return values.flatten(-2)[..., :count]


def pairs(packed: Tensor, table: Tensor, *, high_first: bool = False) -> Tensor:
    """What `table` has for the two halves of each byte, next to each other."""
    low, high = table.repeat(16), table.repeat_interleave(16)
    both = torch.stack((high, low) if high_first else (low, high), 1)
    as_one = both.view({2: torch.int32, 4: torch.int64}[table.itemsize]).flatten()  # looking up both at once is faster
    return as_one.index_select(0, packed.flatten().int()).view(table.dtype).view(*packed.shape[:-1], -1)


def fp4(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Two E2M1 numbers per byte, the first in its low bits."""
    return pairs(packed, torch.tensor(FP4, dtype=dtype))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def groups(size: int) -> str:
    return f"groups of {size}" if size > 0 else "a scale per output"


def pair(fields: Mapping[str, Any], key: str) -> Block | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):  # early compressed-tensors: "128x128"
        value = [int(n) for n in value.split("x")]
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
        raise ValueError(f"quantization_config: {key} is {value!r}, expected two positive numbers like [128, 128]")
    return value[0], value[1]


def size(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key, 128)
    if not isinstance(value, int) or (value < 1 and value != -1):
        raise ValueError(f"quantization_config: {key} is {value!r}, expected a positive number, or -1 for whole rows")
    return value


def only(fields: Mapping[str, Any], key: str, alias: str, known: Sequence[int]) -> None:
    value = fields.get(key, fields.get(alias))
    if value not in known:
        raise ValueError(
            f"quantization_config: {key} is {value!r}, litlm reads {' or '.join(map(str, known))}; {REMEDY}"
        )


def two(weight: Stored, part: str) -> tuple[int, int]:
    shape = weight.shape(part)
    if len(shape) != 2:
        raise weight.wrong_size(part, "a matrix")
    return shape[0], shape[1]


def expect(weight: Stored, part: str, shape: tuple[int, ...]) -> None:
    if weight.shape(part) != shape:
        raise weight.wrong_size(part, str(list(shape)))
