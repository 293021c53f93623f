"""Quantized Hugging Face checkpoints, dequantized while they are read.

`config.json` names the format under `quantization_config`; each format stores a weight as several tensors (packed
integers, scales, zero points, ...), which are found by the suffixes of their names. A weight is dequantized when it is
read, with the rounding and in the dtype of the format's own dequantization; fp8 and 8-bit bitsandbytes give fp32. Other
tensors are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from litlm.checkpoint.base import WeightSource, bullet_list
from litlm.checkpoint.quantized.base import FLOAT_DTYPES, REMEDY, QuantFormat, QuantizedWeight, dtype_name
from litlm.checkpoint.quantized.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from litlm.checkpoint.quantized.floats import FP4_FORMATS, Fp8, Mxfp4, PackedFp4, compressed_tensors_formats
from litlm.checkpoint.quantized.integers import Awq, CompressedTensors, Gptq


class DequantizedSource(WeightSource):
    """The tensors of `source` as floats, of which some are stored in a quantized format.

    Raises ValueError for all tensors that are missing or have a wrong shape.
    """

    def __init__(self, source: WeightSource, quant_format: QuantFormat) -> None:
        self.path = source.path
        self._source, self._format = source, quant_format
        stored = source.shapes()
        groups: dict[str, dict[str, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in stored.items():
            if quant_format.ignored is not None and quant_format.ignored.search(name):
                continue
            if (found := quant_format.suffixes.search(name)) is not None:
                groups.setdefault(name[: found.start()], {})[found[1]] = name
            else:
                self._shapes[name] = shape
        self._weights: dict[str, QuantizedWeight] = {}
        problems: list[str] = []
        for stem, names in groups.items():
            if (suffix := quant_format.weight_suffix) is not None and stem + suffix in stored:
                names[suffix] = stem + suffix
                self._shapes.pop(stem + suffix, None)
            weight = QuantizedWeight(source, stored, stem, names)
            problems += [f"{stem}{suffix} is missing" for suffix in quant_format.missing(weight)]
            self._weights[stem + quant_format.target_suffix] = weight
        if not problems:
            for name, weight in self._weights.items():
                try:
                    self._shapes[name] = quant_format.shape(weight)
                except ValueError as e:
                    problems.append(str(e))
        if problems:
            raise ValueError(
                f"The quantized weights in {self.path} don't fit their quantization_config ({quant_format}); download "
                f"them again, or {REMEDY}:\n{bullet_list(problems)}"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def read(self, name: str) -> Tensor:
        if (weight := self._weights.get(name)) is not None:
            try:
                return self._format.read(weight)
            except ValueError as e:
                raise ValueError(f"{self.path}: {e}") from None
        tensor = self._source.read(name)
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"{name} in {self.path} holds {dtype_name(tensor.dtype)} values, but nothing else that {self._format} "
                f"needs is stored for it; {REMEDY}"
            )
        return tensor


FORMATS: dict[str, type[QuantFormat]] = {
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "gptq": Gptq,
    "mxfp4": Mxfp4,
}


def quantization_format(quantization: Mapping[str, Any]) -> QuantFormat:
    """The format of a `quantization_config`; as text: "4-bit bitsandbytes (nf4)". Raises ValueError for one that litlm
    can't read."""
    method = quantization.get("quant_method")
    in_8bit, in_4bit = bool(quantization.get("load_in_8bit")), bool(quantization.get("load_in_4bit"))
    if method is None and (in_8bit or in_4bit):
        method = "bitsandbytes"  # older configs have no quant_method
    if method == "bitsandbytes":
        if in_8bit == in_4bit:
            raise ValueError(
                f"quantization_config: load_in_8bit is {in_8bit} and load_in_4bit is {in_4bit}, exactly one must be "
                "true"
            )
        return BitsAndBytes8(quantization) if in_8bit else BitsAndBytes4(quantization)
    if method == "modelopt":
        algorithm = quantization.get("quant_algo")
        if algorithm not in ("FP8", "NVFP4"):
            raise ValueError(f"quantization_config: quant_algo is {algorithm!r}, litlm reads FP8 or NVFP4; {REMEDY}")
        return Fp8({}) if algorithm == "FP8" else PackedFp4(quantization)
    if method == "compressed-tensors" and compressed_tensors_formats(quantization) in ({name} for name in FP4_FORMATS):
        return PackedFp4(quantization)
    if method not in FORMATS:
        known = ", ".join(sorted({*FORMATS, "bitsandbytes", "modelopt"}))
        raise ValueError(f"quantization_config: quant_method {method!r} can't be read; litlm reads {known}; {REMEDY}")
    return FORMATS[method](quantization)
