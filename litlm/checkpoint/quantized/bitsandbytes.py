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
    PLAIN,
    REMEDY,
    Format,
    Stored,
    affine,
    dtype_name,
    pairs,
)


class Bnb4(Format):
    """Indices into a table of 16 values, first of a pair in the high bits; the largest of each block as its scale.

    With double quantization the scales are themselves indices into a table of 256, with scales of their own.
    """

    parts = re.compile(
        r"(\.absmax|\.quant_map|\.nested_absmax|\.nested_quant_map|\.quant_state\.bitsandbytes__(?:nf4|fp4))$"
    )
    main = target = ""
    required = ("", ".absmax", ".quant_map")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        self.kind = quantization.get("bnb_4bit_quant_type", "fp4")

    def __str__(self) -> str:
        return f"4-bit bitsandbytes ({self.kind})"

    def missing(self, weight: Stored) -> list[str]:
        missing = super().missing(weight)
        if not self._state_part(weight):
            missing.append(f".quant_state.bitsandbytes__{self.kind}")
        elif "nested_blocksize" in self._state(weight):
            missing += [e for e in (".nested_absmax", ".nested_quant_map") if e not in weight]
        return missing

    def _state_part(self, weight: Stored) -> str | None:
        endings = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
        return next((ending for ending in endings if ending in weight), None)

    def _state(self, weight: Stored) -> dict[str, Any]:
        part = self._state_part(weight)
        assert part is not None
        try:
            state = json.loads(bytes(weight[part].tolist()))
            state["shape"] = tuple(int(n) for n in state["shape"])
            state["dtype"] = {dtype_name(dtype): dtype for dtype in PLAIN}[state["dtype"]]
            if min(*state["shape"], state["blocksize"], state.get("nested_blocksize", 1)) < 1:
                raise ValueError("a size below 1")
        except (ValueError, KeyError, TypeError) as e:
            raise weight.wrong(part, f"can't be understood ({e!r})") from None
        return state

    def shape(self, weight: Stored) -> tuple[int, ...]:
        state = self._state(weight)
        n = math.prod(state["shape"])
        blocks = math.ceil(n / state["blocksize"])
        if weight.shape(".absmax") != (blocks,):
            raise weight.wrong_size(".absmax", str([blocks]))
        if "nested_blocksize" in state:
            nested = math.ceil(blocks / state["nested_blocksize"])
            if weight.shape(".nested_absmax") != (nested,):
                raise weight.wrong_size(".nested_absmax", str([nested]))
        return state["shape"]

    def read(self, weight: Stored) -> Tensor:
        state = self._state(weight)
        n = math.prod(state["shape"])
        packed = weight[""].contiguous().view(torch.uint8).flatten()  # `bnb_4bit_quant_storage` may be any dtype
        if len(packed) != (n + 1) // 2:
            raise weight.wrong_size("", f"{(n + 1) // 2} bytes for {list(state['shape'])}")
        scale = weight[".absmax"]
        if "nested_blocksize" in state:
            scale = weight[".nested_quant_map"].float()[scale.int()]
            affine(scale[None], weight[".nested_absmax"].float()[None], None, (1, state["nested_blocksize"]))
            scale.add_(state["nested_offset"])
        values = pairs(packed, weight[".quant_map"].float(), high_first=True)[:n]
        affine(values[None], scale.float()[None], None, (1, state["blocksize"]))
        return values.view(state["shape"]).to(state["dtype"])


class Bnb8(Format):
    """LLM.int8(): bytes, and each row's largest magnitude."""

    parts = re.compile(r"(\.SCB|\.weight_format)$")
    main = ".weight"
    required = (".weight", ".SCB")

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        pass

    def __str__(self) -> str:
        return "8-bit bitsandbytes (int8)"

    def shape(self, weight: Stored) -> tuple[int, ...]:
        shape = weight.shape(".weight")
        if weight.shape(".SCB") != shape[:1]:
            raise weight.wrong_size(".SCB", str(list(shape[:1])))
        return shape

    def read(self, weight: Stored) -> Tensor:
        if ".weight_format" in weight and int(weight[".weight_format"]) != 0:
            raise weight.wrong(
                ".weight_format", f"is {int(weight['.weight_format'])}, only rows (0) are known; {REMEDY}"
            )
        values = weight.values(".weight", torch.int8).float()
        return values.mul_(weight[".SCB"].float()[:, None]).mul_(1 / 127)
