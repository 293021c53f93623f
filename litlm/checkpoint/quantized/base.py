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
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

Block = tuple[int, int]  # rows and columns that share a scale


class QuantizedWeight:
    """The stored tensors that make up one weight, by the suffixes of their names.

    shapes: of all tensors of the source. stem: what the names have in common. names: suffix -> full name.
    """

    def __init__(
        self, source: WeightSource, shapes: Mapping[str, tuple[int, ...]], stem: str, names: Mapping[str, str]
    ) -> None:
        self._source, self._shapes, self._names, self.stem = source, shapes, names, stem

    def __contains__(self, suffix: str) -> bool:
        return suffix in self._names

    def __getitem__(self, suffix: str) -> Tensor:
        return self._source.read(self._names[suffix])

    def shape(self, suffix: str) -> tuple[int, ...]:
        """The shape of a stored tensor, from its file's header."""
        return self._shapes[self._names[suffix]]

    def error(self, suffix: str, problem: str) -> ValueError:
        """The error to raise about a stored tensor."""
        return ValueError(f"{self._names[suffix]} {problem}")

    def size_error(self, suffix: str, expected: str) -> ValueError:
        """The error to raise where a stored tensor has another shape than expected."""
        return self.error(suffix, f"has shape {list(self.shape(suffix))}, expected {expected}")

    def values(self, suffix: str, *dtypes: torch.dtype) -> Tensor:
        """A stored tensor, of any shape. Raises ValueError if its dtype isn't one of `dtypes`."""
        tensor = self[suffix]
        if tensor.dtype not in dtypes:
            raise self.error(
                suffix,
                f"holds {dtype_name(tensor.dtype)} values, expected {' or '.join(map(dtype_name, dtypes))}; {REMEDY}",
            )
        return tensor


# Of static quantization of activations and of the KV cache; the weights don't depend on them.
ACTIVATION_SCALES = re.compile(
    r"([._](input|output|activation)_(scale|zero_point|global_scale)|\.(k|v|q|kv)_(scale|zero_point))$"
)


class QuantFormat(ABC):
    """How one method stores a weight."""

    suffixes: re.Pattern[str]  # of the names of stored tensors, as group 1
    weight_suffix: str | None = None  # of the packed weight, where that is no suffix of the format's own
    required: tuple[str, ...] = ()  # suffixes
    ignored: re.Pattern[str] | None = None
    target_suffix = ".weight"  # of the dequantized weight's name

    @abstractmethod
    def __init__(self, quantization: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def __str__(self) -> str: ...

    def missing(self, weight: QuantizedWeight) -> list[str]:
        """The suffixes of tensors that the weight lacks."""
        return [suffix for suffix in self.required if suffix not in weight]

    @abstractmethod
    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        """The dequantized weight's shape, from headers and at most a few bytes. Raises ValueError if the stored shapes
        contradict each other."""

    @abstractmethod
    def read(self, weight: QuantizedWeight) -> Tensor:
        """The dequantized weight, of shape `shape(weight)`. Raises ValueError for dtypes and values that it can't
        have."""


def scale_layout(
    weight: QuantizedWeight, suffix: str, shape: Sequence[int], blocks: Sequence[Block]
) -> tuple[tuple[int, ...], Block]:
    """The shape of a weight's scales, as (..., rows, columns) of blocks, and the size of a block: one of `blocks`, a
    row, or the whole matrix. Raises ValueError if no size of block fits."""
    stored = weight.shape(suffix)
    if len(shape) < 2:
        raise weight.error(suffix, f"belongs to a tensor of shape {list(shape)}, expected a matrix")
    rows, columns = shape[-2:]
    lead = tuple(shape[:-2])
    if math.prod(stored) == 1:
        return (1,) * len(shape), (rows, columns)
    for n_row, n_column in [*blocks, (1, columns), (rows, columns)]:
        grid = (*lead, math.ceil(rows / n_row), math.ceil(columns / n_column))
        # Scales per row, or per matrix of several, may lack the dimensions of size 1.
        if stored == grid or (stored == grid[: len(stored)] and math.prod(stored) == math.prod(grid)):
            return grid, (n_row, n_column)
    sizes = " or ".join(f"{n_row}x{n_column}" for n_row, n_column in [*blocks, (1, columns), (rows, columns)])
    raise weight.size_error(suffix, f"one scale for each {sizes} of {list(shape)}")


def iter_blocks(values: Tensor, grid: Tensor, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of `values`, (..., rows, columns), each with the entries of `grid`, one per block, that broadcast to it."""
    (block_rows, block_columns), (rows, columns) = block, values.shape[-2:]
    if block_rows > 1 and grid.shape[-2] > 1:
        grid = grid.repeat_interleave(block_rows, -2)[..., :rows, :]
    whole = columns // block_columns
    if whole:
        yield values[..., : whole * block_columns].unflatten(-1, (whole, block_columns)), grid[..., :whole, None]
    if whole * block_columns < columns:
        yield values[..., whole * block_columns :], grid[..., whole:]


def dequantize_(values: Tensor, scale: Tensor, zeros: Tensor | None, block: Block) -> Tensor:
    """(values - zeros) * scale in place; values: (..., rows, columns), scale and zeros: one entry per block."""
    if zeros is not None:
        for view, its_zeros in iter_blocks(values, zeros, block):
            view.sub_(its_zeros)
    for view, its_scale in iter_blocks(values, scale, block):
        view.mul_(its_scale)
    return values


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """(..., words) to the first `count` numbers of each row, (..., count), packed from the lowest bit of the first word
    on."""
    octets = words.contiguous().view(torch.uint8)
    if 8 % bits == 0:
        values = (octets[..., None] >> torch.arange(0, 8, bits, dtype=torch.uint8)) & (2**bits - 1)
    else:  # `bits` bytes hold 8 numbers
        octets = torch.nn.functional.pad(octets, (0, -octets.shape[-1] % bits)).unflatten(-1, (-1, bits))
        eight = (octets.long() << torch.arange(0, 8 * bits, 8)).sum(-1)
        values = ((eight[..., None] >> torch.arange(0, 8 * bits, bits)) & (2**bits - 1)).to(torch.uint8)
    return values.flatten(-2)[..., :count]


def unpack_nibbles(packed: Tensor, table: Tensor, *, high_first: bool = False) -> Tensor:
    """(..., n) bytes to (..., 2 n) entries of `table`, (16,): those of a byte's low and high half, in this order unless
    high_first."""
    low, high = table.repeat(16), table.repeat_interleave(16)
    both = torch.stack((high, low) if high_first else (low, high), 1)
    as_int = both.view({2: torch.int32, 4: torch.int64}[table.itemsize]).flatten()  # one lookup for both is faster
    return as_int.index_select(0, packed.flatten().int()).view(table.dtype).view(*packed.shape[:-1], -1)


def unpack_fp4(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., n) bytes to (..., 2 n) E2M1 numbers, the first of two in the low bits."""
    return unpack_nibbles(packed, torch.tensor(FP4_VALUES, dtype=dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """ "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def describe_groups(size: int) -> str:
    """The group size in words."""
    return f"groups of {size}" if size > 0 else "a scale per output"


def block_size(fields: Mapping[str, Any], key: str) -> Block | None:
    """A block size of the quantization_config. Raises ValueError if it isn't two positive numbers."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):  # early compressed-tensors: "128x128"
        value = [int(n) for n in value.split("x")]
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
        raise ValueError(f"quantization_config: {key} is {value!r}, expected two positive numbers like [128, 128]")
    return value[0], value[1]


def group_size(fields: Mapping[str, Any], key: str) -> int:
    """A group size of the quantization_config, -1 for whole rows. Raises ValueError for anything else."""
    value = fields.get(key, 128)
    if not isinstance(value, int) or (value < 1 and value != -1):
        raise ValueError(f"quantization_config: {key} is {value!r}, expected a positive number, or -1 for whole rows")
    return value


def check_bits(fields: Mapping[str, Any], key: str, alias: str, known: Sequence[int]) -> None:
    """Raise ValueError if the number of bits, under one of two names, isn't known."""
    value = fields.get(key, fields.get(alias))
    if value not in known:
        raise ValueError(
            f"quantization_config: {key} is {value!r}, litlm reads {' or '.join(map(str, known))}; {REMEDY}"
        )


def matrix_shape(weight: QuantizedWeight, suffix: str) -> tuple[int, int]:
    """The shape of a stored matrix. Raises ValueError if it isn't one."""
    shape = weight.shape(suffix)
    if len(shape) != 2:
        raise weight.size_error(suffix, "a matrix")
    return shape[0], shape[1]


def check_shape(weight: QuantizedWeight, suffix: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a stored tensor has another shape."""
    if weight.shape(suffix) != shape:
        raise weight.size_error(suffix, str(list(shape)))
