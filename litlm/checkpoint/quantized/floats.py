"""Weights in 8- or 4-bit floating point: DeepSeek's fp8, mxfp4, and those of ModelOpt and compressed-tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.quantized.base import (
    ACTIVATION_SCALES,
    FP8_DTYPES,
    Block,
    QuantFormat,
    QuantizedWeight,
    block_size,
    check_shape,
    dequantize_,
    scale_layout,
    unpack_fp4,
)


class Fp8(QuantFormat):
    """DeepSeek V3, Qwen3-FP8, MiniMax-M2: 8-bit floats and a scale per block, per row or per tensor.

    Values are multiplied by `weight_scale_inv`, despite its name; some tools call it `weight_scale`.
    """

    suffixes = re.compile(r"(_scale_inv|(?<=\.weight)_scale)$")
    ignored = ACTIVATION_SCALES
    weight_suffix = target_suffix = ""
    required = ("",)

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.block = block_size(quantization, "weight_block_size")

    def __str__(self) -> str:
        return "fp8" + (f" (blocks of {self.block[0]}x{self.block[1]})" if self.block else "")

    def _layout(self, weight: QuantizedWeight) -> tuple[str, tuple[int, ...], Block]:
        scale = "_scale_inv" if "_scale_inv" in weight else "_scale"
        return scale, *scale_layout(weight, scale, weight.shape(""), [self.block or (128, 128)])

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        self._layout(weight)
        return weight.shape("")

    def read(self, weight: QuantizedWeight) -> Tensor:
        part, grid, block = self._layout(weight)
        values, scale = weight.values("", *FP8_DTYPES).float(), weight[part]
        if scale.dtype == torch.uint8:  # E8M0: an exponent
            scale = (scale.float() - 127).exp2()
        return dequantize_(values, scale.float().view(grid), None, block)


class Mxfp4(QuantFormat):
    """gpt-oss: each expert's matrix in blocks of 32 four-bit floats along its inputs, which share an exponent.

    The result has the inputs first, as transformers' experts have.
    """

    suffixes = re.compile(r"(_blocks|_scales)$")
    target_suffix = ""
    required = ("_blocks", "_scales")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        return "4-bit mxfp4"

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        blocks, scales = weight.shape("_blocks"), weight.shape("_scales")
        if len(blocks) != 4:
            raise weight.size_error("_blocks", "[experts, outputs, groups, 16]")
        if scales != blocks[:-1]:
            raise weight.size_error("_scales", str(list(blocks[:-1])))
        return blocks[0], blocks[2] * blocks[3] * 2, blocks[1]

    def read(self, weight: QuantizedWeight) -> Tensor:
        blocks, scales = weight.values("_blocks", torch.uint8), weight.values("_scales", torch.uint8)
        experts, inputs, outputs = self.shape(weight)
        result = torch.empty(experts, outputs, inputs, dtype=torch.bfloat16)
        for expert, packed, exponent in zip(
            result, blocks, scales, strict=True
        ):  # temporary memory for one expert only
            scale = (exponent.float() - 127).exp2().bfloat16()
            expert.copy_(unpack_fp4(packed, torch.bfloat16).mul_(scale[..., None]).flatten(1))
        return result.mT


FP4_FORMATS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")  # alone; see PackedFp4


def compressed_tensors_formats(quantization: Mapping[str, Any]) -> set[Any]:
    """The formats of the weights that a compressed-tensors config lists, without dense ones."""
    groups = (quantization.get("config_groups") or {}).values()
    return {g.get("format") or quantization.get("format") for g in groups if g.get("weights") is not None} - {"dense"}


class PackedFp4(QuantFormat):
    """nvfp4 and mxfp4 as compressed-tensors and ModelOpt store them: 4-bit floats along the inputs, a scale for each 16
    (8-bit floats, with one more scale for the tensor, by which compressed-tensors divides) or 32 (exponents).
    """

    suffixes = re.compile(r"(\.weight_packed|\.weight_scale|\.weight_scale_2|\.weight_global_scale)$")
    ignored = ACTIVATION_SCALES
    weight_suffix = ".weight"

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.tool = str(quantization["quant_method"])
        if self.tool == "modelopt":
            self.number_type, self.values_suffix, self.global_suffix = "nvfp4", ".weight", ".weight_scale_2"
        else:
            is_nvfp4 = compressed_tensors_formats(quantization) == {"nvfp4-pack-quantized"}
            self.number_type = "nvfp4" if is_nvfp4 else "mxfp4"
            self.values_suffix, self.global_suffix = ".weight_packed", ".weight_global_scale"
        self.group_size = 16 if self.number_type == "nvfp4" else 32
        has_global_scale = self.number_type == "nvfp4"
        self.required = (self.values_suffix, ".weight_scale", *([self.global_suffix] if has_global_scale else []))

    def __str__(self) -> str:
        return f"4-bit {self.tool} ({self.number_type})"

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        shape = weight.shape(self.values_suffix)
        if not shape or shape[-1] * 2 % self.group_size:
            raise weight.size_error(self.values_suffix, f"a multiple of {self.group_size // 2} columns")
        check_shape(weight, ".weight_scale", (*shape[:-1], shape[-1] * 2 // self.group_size))
        if self.global_suffix in weight and math.prod(weight.shape(self.global_suffix)) != 1:
            raise weight.size_error(self.global_suffix, "a single number")
        return *shape[:-1], shape[-1] * 2

    def read(self, weight: QuantizedWeight) -> Tensor:
        values = unpack_fp4(weight.values(self.values_suffix, torch.uint8), torch.float32)
        if self.number_type == "mxfp4":
            scale = (weight.values(".weight_scale", torch.uint8).float() - 127).exp2()
        else:
            scale, global_scale = (
                weight.values(".weight_scale", *FP8_DTYPES).float(),
                weight[self.global_suffix].float(),
            )
            scale = scale * global_scale if self.tool == "modelopt" else scale / global_scale
        return dequantize_(values, scale, None, (1, self.group_size)).bfloat16()
