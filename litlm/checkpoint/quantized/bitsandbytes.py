"""Weights of bitsandbytes, in 4 and 8 bits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.quantized.base import (
    FLOAT_DTYPES,
    REMEDY,
    QuantFormat,
    QuantizedWeight,
    dequantize_,
    dtype_name,
    unpack_nibbles,
)


class BitsAndBytes4(QuantFormat):
    """QLoRA's nf4 and fp4 (Dettmers et al. 2023): indices into a table of 16 values, the first of two in the high bits;
    each block's scale is its largest magnitude.

    With double quantization the scales are themselves indices into a table of 256, with scales of their own.
    """

    suffixes = re.compile(
        r"(\.absmax|\.quant_map|\.nested_absmax|\.nested_quant_map|\.quant_state\.bitsandbytes__(?:nf4|fp4))$"
    )
    weight_suffix = target_suffix = ""
    required = ("", ".absmax", ".quant_map")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.quant_type = quantization.get("bnb_4bit_quant_type", "fp4")

    def __str__(self) -> str:
        return f"4-bit bitsandbytes ({self.quant_type})"

    def missing(self, weight: QuantizedWeight) -> list[str]:
        missing = super().missing(weight)
        if not self._state_part(weight):
            missing.append(f".quant_state.bitsandbytes__{self.quant_type}")
        elif "nested_blocksize" in self._state(weight):
            missing += [e for e in (".nested_absmax", ".nested_quant_map") if e not in weight]
        return missing

    def _state_part(self, weight: QuantizedWeight) -> str | None:
        suffixes = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
        return next((suffix for suffix in suffixes if suffix in weight), None)

    def _state(self, weight: QuantizedWeight) -> dict[str, Any]:
        part = self._state_part(weight)
        assert part is not None
        try:
            state = json.loads(bytes(weight[part].tolist()))
            state["shape"] = tuple(int(n) for n in state["shape"])
            state["dtype"] = {dtype_name(dtype): dtype for dtype in FLOAT_DTYPES}[state["dtype"]]
            if min(*state["shape"], state["blocksize"], state.get("nested_blocksize", 1)) < 1:
                raise ValueError("a size below 1")
        except (ValueError, KeyError, TypeError) as e:
            raise weight.error(part, f"can't be understood ({e!r})") from None
        return state

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        state = self._state(weight)
        n = math.prod(state["shape"])
        blocks = math.ceil(n / state["blocksize"])
        if weight.shape(".absmax") != (blocks,):
            raise weight.size_error(".absmax", str([blocks]))
        if "nested_blocksize" in state:
            nested = math.ceil(blocks / state["nested_blocksize"])
            if weight.shape(".nested_absmax") != (nested,):
                raise weight.size_error(".nested_absmax", str([nested]))
        return state["shape"]

    def read(self, weight: QuantizedWeight) -> Tensor:
        state = self._state(weight)
        n = math.prod(state["shape"])
        packed = weight[""].contiguous().view(torch.uint8).flatten()  # `bnb_4bit_quant_storage` may be any dtype
        if len(packed) != (n + 1) // 2:
            raise weight.size_error("", f"{(n + 1) // 2} bytes for {list(state['shape'])}")
        scale = weight[".absmax"]
        if "nested_blocksize" in state:
            scale = weight[".nested_quant_map"].float()[scale.int()]
            dequantize_(scale[None], weight[".nested_absmax"].float()[None], None, (1, state["nested_blocksize"]))
            scale.add_(state["nested_offset"])
        values = unpack_nibbles(packed, weight[".quant_map"].float(), high_first=True)[:n]
        dequantize_(values[None], scale.float()[None], None, (1, state["blocksize"]))
        return values.view(state["shape"]).to(state["dtype"])


class BitsAndBytes8(QuantFormat):
    """LLM.int8() (Dettmers et al. 2022): bytes, and each row's largest magnitude."""

    suffixes = re.compile(r"(\.SCB|\.weight_format)$")
    weight_suffix = ".weight"
    required = (".weight", ".SCB")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        return "8-bit bitsandbytes (int8)"

    def shape(self, weight: QuantizedWeight) -> tuple[int, ...]:
        shape = weight.shape(".weight")
        if weight.shape(".SCB") != shape[:1]:
            raise weight.size_error(".SCB", str(list(shape[:1])))
        return shape

    def read(self, weight: QuantizedWeight) -> Tensor:
        if ".weight_format" in weight and int(weight[".weight_format"]) != 0:
            raise weight.error(
                ".weight_format", f"is {int(weight['.weight_format'])}, only rows (0) are known; {REMEDY}"
            )
        values = weight.values(".weight", torch.int8).float()
        return values.mul_(weight[".SCB"].float()[:, None]).mul_(1 / 127)
