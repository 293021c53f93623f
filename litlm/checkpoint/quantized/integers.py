"""Weights as packed integers with scales and zero points: AWQ, GPTQ, compressed-tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.quantized.base import (
    ACTIVATION_SCALES,
    FLOAT_DTYPES,
    FP8_DTYPES,
    REMEDY,
    Block,
    QuantFormat,
    QuantizedWeight,
    block_size,
    check_bits,
    check_shape,
    dequantize_,
    describe_groups,
    group_size,
    matrix_shape,
    scale_layout,
    unpack_bits,
)
from litlm.checkpoint.quantized.floats import FP4_FORMATS, compressed_tensors_formats


class Awq(QuantFormat):
    """AutoAWQ's "gemm" layout: (in, out) in 4 bits, eight neighbouring outputs per word, in an order of its own."""

    suffixes = re.compile(r"(\.qweight|\.qzeros|\.scales)$")
    required = (".qweight", ".qzeros", ".scales")
    # The position in the word of output 0, 1, ... of eight.
    order = (0, 4, 1, 5, 2, 6, 3, 7)

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        check_bits(quantization, "bits", "w_bit", (4,))
        version = next(
            (quantization[k] for k in ("version", "format", "checkpoint_format") if quantization.get(k)), "gemm"
        )
        if str(version).lower() != "gemm":
            raise ValueError(f"quantization_config: version is {version!r}, litlm reads gemm; {REMEDY}")
        self.group_size = group_size(quantization, "q_group_size" if "q_group_size" in quantization else "group_size")

    def __str__(self) -> str:
        return f"4-bit AWQ ({describe_groups(self.group_size)})"

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        inputs, words = matrix_shape(weight, ".qweight")
        groups = math.ceil(inputs / self.group_size) if self.group_size > 0 else 1
        check_shape(weight, ".qzeros", (groups, words))
        check_shape(weight, ".scales", (groups, words * 8))
        return words * 8, inputs

    def read(self, weight: QuantizedWeight) -> Tensor:
        rows, columns = self.shape(weight)
        scales = weight.values(".scales", *FLOAT_DTYPES)
        block = (1, self.group_size if self.group_size > 0 else columns)
        values = self._unpack(weight.values(".qweight", torch.int32)).T.contiguous().to(scales.dtype)
        zeros = self._unpack(weight.values(".qzeros", torch.int32)).T.to(scales.dtype)
        return dequantize_(values, scales.T, zeros, block)

    def _unpack(self, words: Tensor) -> Tensor:
        count = words.shape[1] * 8
        return unpack_bits(words, 4, count).view(-1, words.shape[1], 8)[..., self.order].flatten(1)


class Gptq(QuantFormat):
    """GPTQModel's and AutoGPTQ's layout: (in, out), packed along the inputs; `g_idx` states each input's group.

    The first version of the format stores zero points less 1 (modulo the range), gptq_v2 stores them as they are.
    """

    suffixes = re.compile(r"(\.qweight|\.qzeros|\.scales|\.g_idx)$")
    required = (".qweight", ".qzeros", ".scales")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        check_bits(quantization, "bits", "bits", (2, 3, 4, 8))
        version = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
        if version not in ("gptq", "gptq_v2"):
            raise ValueError(
                f"quantization_config: checkpoint_format is {version!r}, litlm reads gptq or gptq_v2; {REMEDY}"
            )
        self.bits, self.group_size = int(quantization["bits"]), group_size(quantization, "group_size")
        self.zero_offset = 0 if version == "gptq_v2" else 1
        self.act_order = bool(quantization.get("desc_act", False))
        self.dynamic = bool(quantization.get("dynamic"))

    def __str__(self) -> str:
        return f"{self.bits}-bit GPTQ ({describe_groups(self.group_size)}{', act-order' if self.act_order else ''})"

    def missing(self, weight: QuantizedWeight) -> list[str]:
        needed = self.required + ((".g_idx",) if self.act_order or self.dynamic else ())
        return [suffix for suffix in needed if suffix not in weight]

    def _sizes(self, weight: QuantizedWeight) -> tuple[int, int, int]:
        """Outputs, inputs and bits; `dynamic` gives some layers bits and groups of their own."""
        words, outputs = matrix_shape(weight, ".qweight")
        bits = self.bits
        if ".g_idx" in weight:
            inputs = math.prod(weight.shape(".g_idx"))
            if self.dynamic:
                bits = next((b for b in (2, 3, 4, 8) if math.ceil(inputs * b / 32) == words), bits)
        else:
            inputs = words * 32 // bits
        if math.ceil(inputs * bits / 32) != words:
            raise weight.size_error(
                ".qweight", f"{math.ceil(inputs * bits / 32)} rows for {inputs} inputs of {bits} bits"
            )
        groups = matrix_shape(weight, ".scales")[0]
        if not self.dynamic:
            groups = math.ceil(inputs / self.group_size) if self.group_size > 0 else 1
        check_shape(weight, ".scales", (groups, outputs))
        check_shape(weight, ".qzeros", (groups, math.ceil(outputs * bits / 32)))
        return outputs, inputs, bits

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        return self._sizes(weight)[:2]

    def read(self, weight: QuantizedWeight) -> Tensor:
        outputs, inputs, bits = self._sizes(weight)
        scales = weight.values(".scales", *FLOAT_DTYPES)
        values = unpack_bits(weight.values(".qweight", torch.int32).T, bits, inputs).to(scales.dtype)
        zeros = unpack_bits(weight.values(".qzeros", torch.int32), bits, outputs)
        zeros = ((zeros + self.zero_offset) & (2**bits - 1)).T.to(scales.dtype)
        if ".g_idx" in weight:
            group = weight[".g_idx"].flatten().long()
            if not 0 <= int(group.min()) <= int(group.max()) < len(scales):
                raise weight.error(".g_idx", f"names groups outside of 0 to {len(scales) - 1}")
            return values.sub_(zeros[:, group]).mul_(scales.T[:, group])
        return dequantize_(values, scales.T, zeros, (1, self.group_size if self.group_size > 0 else inputs))


class CompressedTensors(QuantFormat):
    """llm-compressor: integers packed into words (their zero points along the outputs), or bytes, or 8-bit floats."""

    suffixes = re.compile(r"(\.weight_(?:packed|scale|zero_point|shape|g_idx))$")
    ignored = ACTIVATION_SCALES
    weight_suffix = ".weight"
    formats = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        groups = [g for g in (quantization.get("config_groups") or {}).values() if g.get("weights") is not None]
        formats, known = compressed_tensors_formats(quantization), ", ".join((*self.formats, *FP4_FORMATS))
        problems = [f"format {f!r} can't be read here (known: {known})" for f in formats - {*self.formats}]
        if (quantization.get("sparsity_config") or {}).get("format", "dense") != "dense":
            problems.append("sparsity_config: sparse weights can't be read")
        if (quantization.get("transform_config") or {}).get("config_groups"):
            problems.append("transform_config: weights in a rotated space can't be read")
        problems += [
            f"num_bits is {bits} (known for packed weights: 2, 4, 8)"  # tools disagree on how others cross words
            for g in groups
            if (g.get("format") or quantization.get("format")) == "pack-quantized"
            and (bits := g["weights"].get("num_bits", 8)) not in (2, 4, 8)
        ]
        if not groups:
            problems.append("config_groups says nothing about weights")
        if problems:
            raise ValueError("quantization_config: " + "; ".join(sorted(problems)) + f"; {REMEDY}")
        self.weight_args = [g["weights"] for g in groups]
        self.format = ", ".join(sorted(map(str, formats)))
        self.bits = sorted({int(a.get("num_bits", 8)) for a in self.weight_args})
        self.asymmetric = all(not a.get("symmetric", True) for a in self.weight_args)

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.bits))}-bit compressed-tensors ({self.format})"

    def missing(self, weight: QuantizedWeight) -> list[str]:
        packed = ".weight_packed" in weight or ".weight_shape" in weight
        needed = [".weight_packed", ".weight_shape"] if packed else [".weight"]
        needed += [".weight_scale"] + ([".weight_zero_point"] if self.asymmetric else [])
        return [suffix for suffix in needed if suffix not in weight]

    def _layout(self, weight: QuantizedWeight) -> tuple[tuple[int, ...], int, tuple[int, ...], Block]:
        """The weight's shape, bits (0: not packed), and how its scales are laid out."""
        bits = 0
        if ".weight_packed" in weight:
            if weight.shape(".weight_shape") != (len(weight.shape(".weight_packed")),):
                raise weight.size_error(".weight_shape", str([len(weight.shape(".weight_packed"))]))
            shape, packed = tuple(weight[".weight_shape"].tolist()), weight.shape(".weight_packed")
            fitting = [b for b in self.bits if packed == (*shape[:-1], math.ceil(shape[-1] * b / 32))]
            if not fitting:
                raise weight.size_error(
                    ".weight_packed", f"{' or '.join(map(str, self.bits))} bits each of {list(shape)}"
                )
            if len(fitting) > 1:
                raise weight.error(".weight_packed", f"may hold {' or '.join(map(str, fitting))} bits; {REMEDY}")
            bits = fitting[0]
        else:
            shape = weight.shape(".weight")
        blocks = []
        for args in self.weight_args:
            if args.get("block_structure"):
                blocks.append(block_size(args, "block_structure"))
            elif (args.get("group_size") or 0) > 0:
                blocks.append((1, int(args["group_size"])))
        grid, block = scale_layout(weight, ".weight_scale", shape, blocks)
        if ".weight_zero_point" in weight:
            stored, whole = weight.shape(".weight_zero_point"), math.prod(weight.shape(".weight_scale"))
            words = (*grid[:-2], math.ceil(grid[-2] * bits / 32), grid[-1])
            if math.prod(stored) != whole and (not bits or stored != words):
                raise weight.size_error(".weight_zero_point", str(list(words if bits else grid)))
        return shape, bits, grid, block

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        shape = self._layout(weight)[0]
        if ".weight_g_idx" in weight:
            check_shape(weight, ".weight_g_idx", shape[-1:])
        return shape

    def read(self, weight: QuantizedWeight) -> Tensor:
        shape, bits, grid, block = self._layout(weight)
        scale = weight.values(".weight_scale", *FLOAT_DTYPES).view(grid)
        offset = 2 ** (bits - 1) if bits else 0
        if bits:
            values = (
                unpack_bits(weight.values(".weight_packed", torch.int32), bits, shape[-1]).to(scale.dtype).sub_(offset)
            )
        else:
            values = weight.values(".weight", torch.int8, *FP8_DTYPES).to(scale.dtype)
        zeros = None
        if ".weight_zero_point" in weight:
            zeros = weight[".weight_zero_point"]
            if bits and zeros.dtype == torch.int32:
                zeros = unpack_bits(zeros.mT, bits, grid[-2]).mT.to(scale.dtype).sub_(offset)
            zeros = zeros.to(scale.dtype).reshape(grid)
        if ".weight_g_idx" in weight and int((group := weight[".weight_g_idx"].long()).min()) >= 0:  # -1: not used
            if int(group.max()) >= grid[-1]:
                raise weight.error(".weight_g_idx", f"names groups outside of 0 to {grid[-1] - 1}")
            if zeros is not None:
                values.sub_(zeros[..., group])
            return values.mul_(scale[..., group])
        return dequantize_(values, scale, zeros, block)
