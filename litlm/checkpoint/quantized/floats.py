"""Weights in 8 or 4 bit floating point: DeepSeek's fp8, mxfp4, and those of ModelOpt and compressed-tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.quantized.base import (
    ACTIVATIONS,
    FP8,
    Block,
    Format,
    Stored,
    affine,
    expect,
    fit,
    fp4,
    pair,
)


class Fp8(Format):
    """DeepSeek V3, Qwen3-FP8, MiniMax-M2: 8-bit floats and a scale per block, per row or per tensor.

    `weight_scale_inv` is what the values are multiplied by, despite its name; some tools call it `weight_scale`.
    """

    parts = re.compile(r"(_scale_inv|(?<=\.weight)_scale)$")
    ignored = ACTIVATIONS
    main = target = ""
    required = ("",)

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.block = pair(quantization, "weight_block_size")

    def __str__(self) -> str:
        return "fp8" + (f" (blocks of {self.block[0]}x{self.block[1]})" if self.block else "")

    def _layout(self, weight: Stored) -> tuple[str, tuple[int, ...], Block]:
        scale = "_scale_inv" if "_scale_inv" in weight else "_scale"
        return scale, *fit(weight, scale, weight.shape(""), [self.block or (128, 128)])

    def shape(self, weight: Stored) -> tuple[int, ...]:
        self._layout(weight)
        return weight.shape("")

    def read(self, weight: Stored) -> Tensor:
        part, grid, block = self._layout(weight)
        values, scale = weight.values("", *FP8).float(), weight[part]
        if scale.dtype == torch.uint8:  # E8M0: an exponent
            scale = (scale.float() - 127).exp2()
        return affine(values, scale.float().view(grid), None, block)


class Mxfp4(Format):
    """gpt-oss: each expert's matrix in blocks of 32 four-bit floats along its inputs, which share an exponent.

    The result has the inputs first, as transformers' experts have.
    """

    parts = re.compile(r"(_blocks|_scales)$")
    target = ""
    required = ("_blocks", "_scales")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        return "4-bit mxfp4"

    def shape(self, weight: Stored) -> tuple[int, ...]:
        blocks, scales = weight.shape("_blocks"), weight.shape("_scales")
        if len(blocks) != 4:
            raise weight.wrong_size("_blocks", "[experts, outputs, groups, 16]")
        if scales != blocks[:-1]:
            raise weight.wrong_size("_scales", str(list(blocks[:-1])))
        return blocks[0], blocks[2] * blocks[3] * 2, blocks[1]

    def read(self, weight: Stored) -> Tensor:
        blocks, scales = weight.values("_blocks", torch.uint8), weight.values("_scales", torch.uint8)
        experts, inputs, outputs = self.shape(weight)
        result = torch.empty(experts, outputs, inputs, dtype=torch.bfloat16)
        for expert, packed, exponent in zip(result, blocks, scales, strict=True):  # what else it takes is for one only
            scale = (exponent.float() - 127).exp2().bfloat16()
            expert.copy_(fp4(packed, torch.bfloat16).mul_(scale[..., None]).flatten(1))
        return result.mT


FP4_FORMATS = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")  # alone; see PackedFloats


def ct_formats(quantization: Mapping[str, Any]) -> set[Any]:
    groups = (quantization.get("config_groups") or {}).values()
    return {g.get("format") or quantization.get("format") for g in groups if g.get("weights") is not None} - {"dense"}


class PackedFloats(Format):
    """nvfp4 and mxfp4 as compressed-tensors and ModelOpt store them: 4-bit floats along the inputs, a scale for each 16
    (8-bit floats, with one more scale for the tensor, by which compressed-tensors divides) or 32 (exponents).
    """

    parts = re.compile(r"(\.weight_packed|\.weight_scale|\.weight_scale_2|\.weight_global_scale)$")
    ignored = ACTIVATIONS
    main = ".weight"

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.tool = str(quantization["quant_method"])
        if self.tool == "modelopt":
            self.kind, self.values, self.whole = "nvfp4", ".weight", ".weight_scale_2"
        else:
            self.kind = "nvfp4" if ct_formats(quantization) == {"nvfp4-pack-quantized"} else "mxfp4"
            self.values, self.whole = ".weight_packed", ".weight_global_scale"
        self.group = 16 if self.kind == "nvfp4" else 32
        self.required = (self.values, ".weight_scale") + ((self.whole,) if self.kind == "nvfp4" else ())

    def __str__(self) -> str:
        return f"4-bit {self.tool} ({self.kind})"

    def shape(self, weight: Stored) -> tuple[int, ...]:
        shape = weight.shape(self.values)
        if not shape or shape[-1] * 2 % self.group:
            raise weight.wrong_size(self.values, f"a multiple of {self.group // 2} columns")
        expect(weight, ".weight_scale", (*shape[:-1], shape[-1] * 2 // self.group))
        if self.whole in weight and math.prod(weight.shape(self.whole)) != 1:
            raise weight.wrong_size(self.whole, "a single number")
        return *shape[:-1], shape[-1] * 2

    def read(self, weight: Stored) -> Tensor:
        values = fp4(weight.values(self.values, torch.uint8), torch.float32)
        if self.kind == "mxfp4":
            scale = (weight.values(".weight_scale", torch.uint8).float() - 127).exp2()
        else:
            scale, whole = weight.values(".weight_scale", *FP8).float(), weight[self.whole].float()
            scale = scale * whole if self.tool == "modelopt" else scale / whole
        return affine(values, scale, None, (1, self.group)).bfloat16()
