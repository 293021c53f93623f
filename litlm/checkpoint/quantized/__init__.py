"""Quantized Hugging Face checkpoints, presented as ordinary floating-point tensors while they stream.

`config.json` names the method under `quantization_config`; each method stores a weight as several tensors (packed
integers, scales, zero points, ...), which are found by the endings of their names. A weight is computed when it is
read, with the rounding and in the dtype of the method's own dequantization; fp8 and 8-bit bitsandbytes compute in
fp32 and leave the rounding to whoever asked. What was never quantized passes through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from litlm.checkpoint.base import WeightSource
from litlm.checkpoint.quantized.base import PLAIN, REMEDY, Format, Stored, dtype_name
from litlm.checkpoint.quantized.bitsandbytes import Bnb4, Bnb8
from litlm.checkpoint.quantized.floats import FP4_FORMATS, Fp8, Mxfp4, PackedFloats, ct_formats
from litlm.checkpoint.quantized.integers import Awq, CompressedTensors, Gptq


def dequantized(source: WeightSource, quantization: Mapping[str, Any]) -> WeightSource:
    """The tensors of `source`, which `quantization` (`config.json`'s `quantization_config`) describes, as floats."""
    return Dequantized(source, format_of(quantization))


def describe(quantization: Mapping[str, Any]) -> str:
    """For people: "4-bit bitsandbytes (nf4)"."""
    return str(format_of(quantization))


class Dequantized(WeightSource):
    def __init__(self, source: WeightSource, form: Format) -> None:
        self.path = source.path
        self._source, self._form = source, form
        stored = source.shapes()
        groups: dict[str, dict[str, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in stored.items():
            if form.ignored is not None and form.ignored.search(name):
                continue
            if (found := form.parts.search(name)) is not None:
                groups.setdefault(name[: found.start()], {})[found[1]] = name
            else:
                self._shapes[name] = shape
        self._weights: dict[str, Stored] = {}
        problems: list[str] = []
        for stem, parts in groups.items():
            if form.main is not None and stem + form.main in stored:
                parts[form.main] = stem + form.main
                self._shapes.pop(stem + form.main, None)
            weight = Stored(source, stored, stem, parts)
            problems += [f"{stem}{ending} is missing" for ending in form.missing(weight)]
            self._weights[stem + form.target] = weight
        if not problems:
            for name, weight in self._weights.items():
                try:
                    self._shapes[name] = form.shape(weight)
                except ValueError as e:
                    problems.append(str(e))
        if problems:
            shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
            raise ValueError(
                f"The quantized weights in {self.path} don't fit their quantization_config ({form}); download them "
                "again, or " + REMEDY + ":\n" + "\n".join(f"- {p}" for p in shown)
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def read(self, name: str) -> Tensor:
        if (weight := self._weights.get(name)) is not None:
            try:
                return self._form.read(weight)
            except ValueError as e:
                raise ValueError(f"{self.path}: {e}") from None
        tensor = self._source.read(name)
        if tensor.dtype not in PLAIN:
            raise ValueError(
                f"{name} in {self.path} holds {dtype_name(tensor.dtype)} values, but nothing else that {self._form} "
                f"needs is stored for it; {REMEDY}"
            )
        return tensor


FORMATS: dict[str, type[Format]] = {
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "gptq": Gptq,
    "mxfp4": Mxfp4,
}


def format_of(quantization: Mapping[str, Any]) -> Format:
    method = quantization.get("quant_method")
    eight, four = bool(quantization.get("load_in_8bit")), bool(quantization.get("load_in_4bit"))
    if method is None and (eight or four):
        method = "bitsandbytes"  # as written before there was a quant_method
    if method == "bitsandbytes":
        if eight == four:
            raise ValueError(
                f"quantization_config: load_in_8bit is {eight} and load_in_4bit is {four}, exactly one must be true"
            )
        return Bnb8(quantization) if eight else Bnb4(quantization)
    if method == "modelopt":
        algorithm = quantization.get("quant_algo")
        if algorithm not in ("FP8", "NVFP4"):
            raise ValueError(f"quantization_config: quant_algo is {algorithm!r}, litlm reads FP8 or NVFP4; {REMEDY}")
        return Fp8({}) if algorithm == "FP8" else PackedFloats(quantization)
    if method == "compressed-tensors" and ct_formats(quantization) in ({form} for form in FP4_FORMATS):
        return PackedFloats(quantization)
    if method not in FORMATS:
        known = ", ".join(sorted({*FORMATS, "bitsandbytes", "modelopt"}))
        raise ValueError(f"quantization_config: quant_method {method!r} can't be read; litlm reads {known}; {REMEDY}")
    return FORMATS[method](quantization)
