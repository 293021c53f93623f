"""Quantized checkpoints against the libraries that write and read them: transformers' own dequantization (fp8, mxfp4),
bitsandbytes, AutoAWQ, GPTQModel and compressed-tensors, all on the CPU.

The last three are fetched, not installed; of AutoAWQ and GPTQModel single modules are imported, without what their
packages would pull in. Where integers and scales are made up here, the float64 formula is a second reference.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import re
import sys
import types
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import packages
import pytest
import torch
from parity import cases
from parity.cases import Case, close
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from litlm.checkpoint.base import WeightSource, load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.checkpoint.quantized import DequantizedSource, quantization_format
from litlm.config import Config

Tensors = dict[str, Tensor]
NAME = "model.layers.0.mlp.up_proj"


class Memory(WeightSource):
    """A checkpoint without a file, which remembers what was read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors, self.log = Path("somewhere"), tensors, []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        self.log.append(name)
        return self.tensors[name]


def dequantized(source: WeightSource, quantization: dict[str, Any]) -> WeightSource:
    return DequantizedSource(source, quantization_format(quantization))


def exactly(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(actual, expected)


def check(parts: Tensors, config: dict[str, Any], expected: Tensor, name: str = f"{NAME}.weight") -> None:
    """The parts become one tensor of that name and those values, and what is beside them stays."""
    other = {"model.norm.weight": torch.randn(5).bfloat16(), "model.embed_tokens.weight": torch.randn(3, 5)}
    source = dequantized(Memory(parts | other), config)
    assert source.shapes() == {n: tuple(t.shape) for n, t in other.items()} | {name: tuple(expected.shape)}
    exactly(source.read(name), expected)
    exactly(source.read(name), expected)  # the first time has changed nothing
    for n, t in other.items():
        exactly(source.read(n), t)


def under(module: str, parts: Mapping[str, Tensor]) -> Tensors:
    return {f"{module}.{k}": v for k, v in parts.items()}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the libraries -------------------------------------------------------------------------------------------------


def _borrowed(folder: Path, module: str, stubs: Iterable[str] = ()) -> Any:
    """One module of an unpacked package, without what its parents import; `stubs` hold nothing that is needed."""
    package = module.split(".")[0]
    assert package not in sys.modules
    try:
        for name in {*stubs, module}:
            parts = name.split(".")
            for i in range(1, len(parts)):
                parent = types.ModuleType(".".join(parts[:i]))
                parent.__path__ = [str(folder.joinpath(*parts[:i]))]
                sys.modules.setdefault(parent.__name__, parent)
        for name in stubs:
            sys.modules[name] = stub = types.ModuleType(name)
            stub.__getattr__ = lambda _: MagicMock()  # type: ignore[method-assign]
        return importlib.import_module(module)
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == package]:
            del sys.modules[name]


@functools.cache
def autoawq() -> Any:
    gemm = _borrowed(packages.unpacked("autoawq==0.2.9"), "awq.modules.linear.gemm")
    gemm.get_best_device = lambda: "cpu"
    return gemm


@functools.cache
def gptqmodel(module: str) -> Any:
    stubs = (
        "adapter.adapter models._const quantization quantization.dtype utils.backend utils.env utils.logger utils.safe"
    )
    folder = packages.unpacked("gptqmodel==7.7.0")
    return _borrowed(folder, f"gptqmodel.{module}", [f"gptqmodel.{s}" for s in stubs.split()])


@functools.cache
def compressed_tensors() -> Any:
    """Its compressors by format, and the class that describes a scheme."""
    folders = [str(packages.unpacked(p)) for p in ("loguru==0.7.3", "compressed-tensors==0.17.0")]
    sys.path[:0] = folders
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses torch.jit
            compressors = importlib.import_module("compressed_tensors.compressors")
            quantization = importlib.import_module("compressed_tensors.quantization")
    finally:
        del sys.path[:2]
    return compressors.BaseCompressor.get_value_from_registry, quantization


# --- writers: a weight -> what is stored, the configuration, and what the library makes of it ------------------------


def fp8(
    weight: Tensor, block: tuple[int, int] = (128, 128), ending: str = "weight_scale_inv"
) -> tuple[Tensors, dict[str, Any], Tensor]:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    high, wide = block
    rows, columns = weight.shape[-2:]
    padded = nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
    tiles = padded.unflatten(-1, (-1, wide)).unflatten(-3, (-1, high))
    scale = tiles.abs().amax((-1, -3)) / 448
    spread = scale.repeat_interleave(high, -2).repeat_interleave(wide, -1)[..., :rows, :columns]
    values = (weight / spread).to(torch.float8_e4m3fn)
    expected = _dequantize_fp8_weight(values, scale, list(block), torch.float32)
    config = dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=list(block))
    return {"weight": values, ending: scale}, config, expected


def bnb4(
    weight: Tensor, kind: str = "nf4", double: bool = True, block: int = 64, storage: torch.dtype = torch.uint8
) -> tuple[Tensors, dict[str, Any], Tensor]:
    import bitsandbytes as bnb

    linear = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type=kind)
    linear.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=double, quant_type=kind, blocksize=block, quant_storage=storage
    )
    linear.to("cpu")
    # Blocks run on from row to row, but bitsandbytes' CPU kernel restarts them in each one: let it see a single row.
    state = copy.copy(linear.weight.quant_state)
    state.shape = torch.Size([1, weight.numel()])
    with torch.compiler.set_stance("force_eager"):
        expected = bnb.functional.dequantize_4bit(linear.weight.data, state).view(weight.shape)
        if weight.shape[1] % block == 0:
            exactly(bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state), expected)
    config = dict(
        quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False, bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
    )  # fmt: skip
    return dict(linear.state_dict()), config, expected


def bnb8(weight: Tensor) -> tuple[Tensors, dict[str, Any], Tensor]:
    import bitsandbytes as bnb

    linear = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    values, scale, _ = bnb.functional.int8_vectorwise_quant(weight.half())
    linear.weight = bnb.nn.Int8Params(values, has_fp16_weights=False, CB=values, SCB=scale, requires_grad=False)
    expected = bnb.functional.int8_vectorwise_dequant(values, scale)
    config = dict(quant_method="bitsandbytes", load_in_4bit=False, load_in_8bit=True)
    return dict(linear.state_dict()), config, expected


def _integers(weight: Tensor, bits: int, group: Tensor, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scales and zero points (outputs, groups), for groups of columns."""
    n = int(group.max()) + 1
    low = torch.stack([weight[:, group == i].amin(1) for i in range(n)], 1).clamp(max=0)
    high = torch.stack([weight[:, group == i].amax(1) for i in range(n)], 1).clamp(min=0)
    top = 2**bits - 1
    if symmetric:
        low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
    scale = ((high - low) / top).half().float()
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round().clamp(0, top)
    return scale, zero


def awq(weight: Tensor, group: int = 32) -> tuple[Tensors, dict[str, Any], Tensor]:
    library = autoawq()
    outputs, inputs = weight.shape
    size = inputs if group == -1 else group
    scale, zero = _integers(weight, 4, torch.arange(inputs) // size)
    linear = nn.Linear(inputs, outputs, bias=False)
    rounded = ((weight.T / scale.T.repeat_interleave(size, 0)).round() + zero.T.repeat_interleave(size, 0)).clamp(0, 15)
    linear.weight.data = ((rounded - zero.T.repeat_interleave(size, 0)) * scale.T.repeat_interleave(size, 0)).T
    packed = library.WQLinear_GEMM.from_linear(linear, 4, size, scales=scale.T.contiguous(), zeros=zero.T.contiguous())
    parts = {k: v.contiguous() for k, v in packed.state_dict().items()}
    assert parts.keys() == {"qweight", "qzeros", "scales"}
    expected = library.dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, size).T.contiguous()
    config = dict(quant_method="awq", bits=4, group_size=group, version="gemm", zero_point=True)
    return parts, config, expected


def gptq(
    weight: Tensor,
    bits: int = 4,
    group: int = 32,
    act_order: bool = True,
    version: str = "gptq",
    symmetric: bool = False,
) -> tuple[Tensors, dict[str, Any], Tensor]:
    """Packed by GPTQModel's layer; the expected values are the float64 formula's, in the scales' fp16."""
    outputs, inputs = weight.shape
    size = inputs if group == -1 else group
    index = torch.arange(inputs) // size
    if act_order:
        index = index[torch.randperm(inputs, generator=generator(inputs))]
    scale, zero = _integers(weight, bits, index, symmetric)
    whole = ((weight / scale[:, index]).round() + zero[:, index]).clamp(0, 2**bits - 1)
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = (whole - zero[:, index]) * scale[:, index]
    layer = types.SimpleNamespace(
        bits=bits, maxq=2**bits - 1, planar=False, pack_dtype=torch.int32, pack_dtype_bits=32, pack_factor=32 // bits,
        pack_np_dtype=np.int32, pack_np_math_dtype=np.uint32,
    )  # fmt: skip
    layer.register_buffer = functools.partial(setattr, layer)
    gptqmodel("nn_modules.qlinear").PackableQuantLinear.pack_original(layer, linear, scale, zero, index.int())
    qzeros = layer.qzeros
    if version == "gptq":
        qzeros = gptqmodel("utils.model_dequant")._revert_gptq_v1_qzeros_correction(qzeros, bits)
    parts = {"qweight": layer.qweight, "qzeros": qzeros, "scales": layer.scales, "g_idx": layer.g_idx}
    config = dict(
        quant_method="gptq", bits=bits, group_size=group, desc_act=act_order, sym=symmetric, checkpoint_format=version
    )
    expected = ((whole - zero[:, index]).double() * scale[:, index].double()).half()
    return {k: v.contiguous() for k, v in parts.items()}, config, expected


def packed(
    weight: Tensor, form: str = "pack-quantized", bits: int = 4, kind: str = "int", strategy: str = "group",
    symmetric: bool = False, group: int | None = 32, dtype: torch.dtype = torch.bfloat16, act_order: bool = False,
    block: list[int] | None = None,
) -> tuple[Tensors, dict[str, Any], Tensor]:  # fmt: skip
    """Written and read back by compressed-tensors."""
    compressor, library = compressed_tensors()
    arguments = dict(num_bits=bits, type=kind, strategy=strategy, symmetric=symmetric)
    if strategy == "group":
        arguments |= dict(group_size=group)
    if block:
        arguments |= dict(block_structure=block)
    if act_order:
        arguments |= dict(actorder="group")
    scheme = library.QuantizationScheme(targets=["Linear"], weights=library.QuantizationArgs(**arguments))
    rows, columns = weight.shape
    high, wide = dict(group=(1, group), channel=(1, columns), tensor=(rows, columns), block=block)[strategy]
    index = torch.arange(columns) // wide
    if act_order:
        index = index[torch.randperm(columns, generator=generator(columns))]
    rows_of = torch.arange(rows) // high
    lows, highs = ([[None] * (int(index.max()) + 1) for _ in range(int(rows_of.max()) + 1)] for _ in range(2))
    for r, (low_row, high_row) in enumerate(zip(lows, highs, strict=True)):
        for c in range(len(low_row)):
            part = weight[rows_of == r][:, index == c]
            low_row[c], high_row[c] = min(0.0, part.min().item()), max(0.0, part.max().item())
    low, top = torch.tensor(lows), torch.tensor(highs)
    limit = 448.0 if kind == "float" else 2 ** (bits - 1) - 1
    if symmetric:
        scale, zero = torch.maximum(-low, top) / limit, torch.zeros_like(low)
    else:
        scale = (top - low) / (2**bits - 1)
        zero = (-(2 ** (bits - 1)) - low / scale).round().clamp(-(2 ** (bits - 1)), limit)
    zero_dtype = torch.float8_e4m3fn if kind == "float" else torch.int8
    state = dict(weight=weight.to(dtype), weight_scale=scale.to(dtype), weight_zero_point=zero.to(zero_dtype))
    if act_order:
        state["weight_g_idx"] = index.int()
    parts = compressor(form).compress(state, scheme)
    assert ("weight_zero_point" in parts) != symmetric
    expected = compressor(form).decompress(parts, scheme)["weight"]
    config = dict(
        quant_method="compressed-tensors", format=form, ignore=["lm_head"], quantization_status="compressed",
        config_groups=dict(group_0=dict(targets=["Linear"], weights=arguments)),
    )  # fmt: skip
    return {k: v.contiguous() for k, v in parts.items()}, config, expected


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    """Skewed, so that zero points matter, and with rows of very different sizes."""
    weight = torch.randn(rows, columns, generator=generator(seed)) + 0.3
    return weight * torch.rand(rows, 1, generator=generator(seed + 1)).exp() * columns**-0.5


# --- one weight ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 384), (128, 128)),
        ((130, 200), (128, 128)),
        ((100, 60), (128, 128)),
        ((3, 130, 257), (128, 128)),
        ((33, 50), (16, 8)),
        ((1, 300), (128, 128)),
    ],
)
def test_fp8_blocks(shape: tuple[int, ...], block: tuple[int, int], seed: int) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = torch.randn(shape, generator=generator(seed))
    parts, config, expected = fp8(weight, block)
    assert (expected - weight).abs().max() < 0.2
    if not (shape[-2] % block[0] or shape[-1] % block[1]):  # what transformers does when it loads
        exactly(
            Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.float32), expected
        )
        half = Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.bfloat16)
        exactly(dequantized(Memory(under(NAME, parts)), config).read(f"{NAME}.weight").bfloat16(), half)
    check(under(NAME, parts), config, expected)
    # Stacked experts are parameters of their own, without ".weight".
    stacked = {"experts.down_proj": parts["weight"], "experts.down_proj_scale_inv": parts["weight_scale_inv"]}
    check(stacked, config, expected, "experts.down_proj")


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1), (70,), (70, 1)])
@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale"])
def test_fp8_tensors_and_rows(scale_shape: tuple[int, ...], ending: str) -> None:
    values = torch.randn(70, 45, generator=generator(2)).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape, generator=generator(3)) + 0.1
    expected = values.float() * (scale[:, None] if len(scale_shape) == 1 else scale)
    parts = {"weight": values, ending: scale, "input_scale": torch.tensor(2.0)}
    check(under(NAME, parts), dict(quant_method="fp8", activation_scheme="static"), expected)


def test_fp8_one_scale_per_expert() -> None:
    values = torch.randn(3, 20, 30, generator=generator(4)).to(torch.float8_e5m2)
    for shape in ((3,), (3, 1, 1)):
        scale = torch.rand(shape, generator=generator(5)) + 0.1
        parts = {"mlp.gate_up_proj": values, "mlp.gate_up_proj_scale_inv": scale}
        parts["mlp.gate_up_proj_activation_scale"] = torch.ones(3)
        check(parts, dict(quant_method="fp8"), values.float() * scale.view(3, 1, 1), "mlp.gate_up_proj")


def test_fp8_exponents_as_scales() -> None:
    values = torch.randn(4, 64, generator=generator(6)).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[120, 127], [0, 130], [1, 2], [254, 100]], dtype=torch.uint8)
    expected = torch.from_numpy(
        np.ldexp(values.double().numpy(), (exponents.int() - 127).repeat_interleave(32, 1).numpy())
    ).float()
    config = dict(quant_method="fp8", weight_block_size=[1, 32], scale_fmt="ue8m0")
    for scale in (exponents, exponents.view(torch.float8_e8m0fnu)):
        check({"a.weight": values, "a.weight_scale_inv": scale}, config, expected, "a.weight")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 5, 3, 16), (1, 64, 1, 16), (3, 7, 90, 16)])
def test_mxfp4(shape: tuple[int, ...], seed: int) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)
    scales = torch.randint(100, 140, shape[:-1], generator=generator(seed + 9), dtype=torch.uint8)
    scales[0, 0, 0] = 0
    name = "model.layers.1.mlp.experts.gate_up_proj"
    expected = convert_moe_packed_tensors(blocks, scales)
    assert expected.shape == (shape[0], shape[2] * 32, shape[1])
    config = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"])
    check({f"{name}_blocks": blocks, f"{name}_scales": scales}, config, expected, name)


def test_mxfp4_known_values() -> None:
    """E2M1: sign, two bits of exponent, one of mantissa; two per byte, the first in the low bits."""
    blocks = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2, dtype=torch.uint8).view(1, 1, 1, 16)
    config = dict(quant_method="mxfp4")
    source = dequantized(Memory({"w_blocks": blocks, "w_scales": torch.tensor([[[128]]], dtype=torch.uint8)}), config)
    half = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
    assert source.read("w").flatten().tolist() == (half + [-v for v in half]) * 2


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("shape", "block", "dtype", "storage"),
    [
        ((96, 64), 64, torch.bfloat16, torch.uint8),
        ((33, 70), 64, torch.float16, torch.uint8),
        ((7, 13), 64, torch.float32, torch.uint8),
        ((300, 128), 128, torch.bfloat16, torch.uint8),
        ((128, 96), 64, torch.bfloat16, torch.bfloat16),
        ((520, 65), 64, torch.float16, torch.uint8),
    ],
)
def test_bitsandbytes_4bit(
    shape: tuple[int, int],
    block: int,
    dtype: torch.dtype,
    storage: torch.dtype,
    kind: str,
    double: bool,
    tmp_path: Path,
) -> None:
    weight = matrix(*shape, seed=shape[0]).to(dtype)
    parts, config, expected = bnb4(weight, kind, double, block, storage)
    assert expected.dtype == dtype
    assert (expected - weight).abs().max() < 0.4 * weight.abs().max()
    save_file({k: v.contiguous() for k, v in under(NAME, parts).items()}, tmp_path / "model.safetensors")
    check(load_file(tmp_path / "model.safetensors"), config, expected)
    check(under(NAME, parts), {k: v for k, v in config.items() if k != "quant_method"}, expected)  # as of 2023


@pytest.mark.parametrize("shape", [(96, 64), (33, 7), (1, 50)])
def test_bitsandbytes_8bit(shape: tuple[int, int]) -> None:
    weight = matrix(*shape, seed=shape[0])
    parts, config, expected = bnb8(weight)
    assert parts.keys() == {"weight", "SCB", "weight_format"}
    assert (expected - weight).abs().max() < 0.01 * weight.abs().max()
    check(under(NAME, parts), config, expected)
    check(under(NAME, {k: v for k, v in parts.items() if k != "weight_format"}), config, expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("shape", "group"), [((96, 256), 128), ((32, 96), 32), ((160, 72), -1), ((64, 192), 64)])
def test_awq(shape: tuple[int, int], group: int, seed: int) -> None:
    weight = matrix(*shape, seed)
    parts, config, expected = awq(weight, group)
    assert (expected - weight).abs().max() < 0.15 * weight.abs().max()
    check(under(NAME, parts), config, expected)
    old = dict(quant_method="awq", w_bit=4, q_group_size=group, version="GEMM", zero_point=True)
    check(under(NAME, parts), old, expected)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "in-order"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("shape", "group", "symmetric"), [((96, 160), 32, False), ((32, 192), 128, True), ((64, 96), -1, False)]
)
def test_gptq(
    shape: tuple[int, int], group: int, symmetric: bool, bits: int, act_order: bool, version: str, tmp_path: Path
) -> None:
    weight = matrix(*shape, seed=bits)
    parts, config, expected = gptq(weight, bits, group, act_order, version, symmetric)
    assert (expected - weight).abs().max() < 2.0**-bits * 2.2 * weight.abs().max()
    file = tmp_path / "model.safetensors"
    save_file(under(NAME, parts), file)
    theirs = gptqmodel("utils.model_dequant").convert_gptq_file(file, torch.float16, config, "cpu")
    exactly(theirs[f"{NAME}.weight"], expected)
    check(under(NAME, parts), config, expected)
    if not act_order:
        check(under(NAME, {k: v for k, v in parts.items() if k != "g_idx"}), config, expected)
    if version == "gptq":
        check(under(NAME, parts), {k: v for k, v in config.items() if k != "checkpoint_format"}, expected)


def test_gptq_zero_points_wrap() -> None:
    """A zero point of 0 is stored as the largest number by the first version of the format."""
    weight = matrix(32, 64, 0).abs()
    parts, config, expected = gptq(weight)
    assert (parts["qzeros"] == -1).any()
    check(under(NAME, parts), config, expected)


def test_gptq_layers_with_bits_of_their_own() -> None:
    one, config, expected = gptq(matrix(64, 96, 3), 8, 32)
    two, _, expected2 = gptq(matrix(32, 64, 4), 4, 64)
    config |= dict(bits=4, dynamic={r"+:.*\.a$": {"bits": 8}, r"+:.*\.b$": {"group_size": 64}})
    source = dequantized(Memory(under("m.a", one) | under("m.b", two)), config)
    exactly(source.read("m.a.weight"), expected)
    exactly(source.read("m.b.weight"), expected2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        dict(group=32),
        dict(group=128, symmetric=True),
        dict(group=64, dtype=torch.float16),
        dict(strategy="channel"),
        dict(strategy="channel", symmetric=True),
        dict(strategy="tensor", symmetric=True, bits=8),
        dict(group=32, bits=2),
        dict(group=32, bits=8),
        dict(group=32, act_order=True),
        dict(group=64, act_order=True, symmetric=True),
        dict(form="int-quantized", bits=8, strategy="channel", symmetric=True),
        dict(form="int-quantized", bits=8, strategy="channel"),
        dict(form="int-quantized", bits=8, strategy="tensor", symmetric=True, dtype=torch.float32),
        dict(form="float-quantized", bits=8, kind="float", strategy="channel", symmetric=True),
        dict(form="float-quantized", bits=8, kind="float", strategy="tensor", symmetric=True),
        dict(form="float-quantized", bits=8, kind="float", strategy="block", symmetric=True, block=[16, 64]),
        dict(form="naive-quantized", bits=8, strategy="group", group=32),
        dict(form="naive-quantized", bits=8, kind="float", strategy="channel", symmetric=True),
    ],
    ids=lambda o: "-".join(str(v).removeprefix("torch.") for v in o.values()),
)
def test_compressed_tensors(options: dict[str, Any], seed: int) -> None:
    # compressed-tensors wants whole groups, but words needn't be full, nor blocks of rows.
    shape = (35, 75) if options.get("strategy") in ("channel", "tensor") else (35, 128)
    if options.get("block"):
        shape = (48, 128)
    weight = matrix(*shape, seed)
    parts, config, expected = packed(weight, **options)
    assert (expected - weight).abs().max() < 2.0 ** -options.get("bits", 4) * 3 * weight.abs().max() + 0.07
    parts |= {"input_scale": torch.ones(1), "input_zero_point": torch.zeros(1)}
    check(under(NAME, parts) | {"model.layers.0.self_attn.k_scale": torch.ones(1)}, config, expected)


def test_compressed_tensors_of_several_kinds() -> None:
    four, config, expected = packed(matrix(32, 96, 0), group=32, symmetric=True)
    eight, other, expected8 = packed(matrix(32, 96, 1), bits=8, strategy="channel", symmetric=True)
    bytes_, third, expected_bytes = packed(
        matrix(32, 96, 2), form="int-quantized", bits=8, strategy="channel", symmetric=True
    )
    groups = [next(iter(c["config_groups"].values())) | dict(format=c["format"]) for c in (config, other, third)]
    config |= dict(format="mixed-precision", config_groups={f"group_{i}": g for i, g in enumerate(groups)})
    source = dequantized(Memory(under("a", four) | under("b", eight) | under("c", bytes_)), config)
    exactly(source.read("a.weight"), expected)
    exactly(source.read("b.weight"), expected8)
    exactly(source.read("c.weight"), expected_bytes)


def test_uneven_blocks_of_compressed_tensors() -> None:
    """The float64 formula: this version of compressed-tensors guesses blocks from the shapes, as if all were whole."""
    values = torch.randn(200, 300, generator=generator(0)).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3, generator=generator(1)).bfloat16()
    spread = scale.double().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    for block in ([128, 128], "128x128"):
        weights = dict(num_bits=8, type="float", strategy="block", block_structure=block)
        config = dict(
            quant_method="compressed-tensors", format="float-quantized", config_groups=dict(g=dict(weights=weights))
        )
        check({"a.weight": values, "a.weight_scale": scale}, config, (values.double() * spread).bfloat16(), "a.weight")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nvfp4(seed: int) -> None:
    compressor, library = compressed_tensors()
    weight = matrix(33, 96, seed)
    largest = weight.unflatten(1, (-1, 16)).abs().amax(-1)
    whole = (448 * 6 / weight.abs().max()).view(1)
    arguments = dict(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=library.QuantizationArgs(**arguments))
    scale = (largest / 6 * whole).to(torch.float8_e4m3fn).float()
    state = dict(weight=weight, weight_scale=scale, weight_global_scale=whole)
    form = "nvfp4-pack-quantized"
    with torch.compiler.set_stance("force_eager"):
        parts = compressor(form).compress(state, scheme)
        expected = compressor(form).decompress(parts, scheme)["weight"]
    assert parts["weight_scale"].dtype == torch.float8_e4m3fn
    assert (expected - weight).abs().max() < 0.2 * weight.abs().max()
    config = dict(quant_method="compressed-tensors", format=form, config_groups=dict(g=dict(weights=arguments)))
    check(under(NAME, parts) | {f"{NAME}.input_global_scale": torch.ones(1)}, config, expected)
    assert str(quantization_format(config)) == "4-bit compressed-tensors (nvfp4)"
    for gone in parts:
        _refused(under("a", {k: v for k, v in parts.items() if k != gone}), config, f"a.{gone} is missing")
    # ModelOpt multiplies by what compressed-tensors divides by: the float64 formula, from compressed-tensors' numbers.
    whole = torch.tensor(0.0371)
    numbers = expected.double() / (scale.double() / parts["weight_global_scale"].double()).repeat_interleave(16, 1)
    numbers = (numbers * 2).round() / 2
    expected = (numbers * scale.double().repeat_interleave(16, 1) * whole.double()).bfloat16()
    stored = dict(weight=parts["weight_packed"], weight_scale=parts["weight_scale"], weight_scale_2=whole)
    config = dict(quant_method="modelopt", quant_algo="NVFP4")
    source = dequantized(Memory(under(NAME, stored | {"input_scale": torch.ones(())})), config)
    assert source.shapes() == {f"{NAME}.weight": (33, 96)}
    # fp32 products, so that a value in the middle of two may go either way.
    ours = source.read(f"{NAME}.weight")
    assert ours.dtype == torch.bfloat16
    assert ((ours.double() - expected.double()).abs() <= expected.double().abs() * 2**-7).all()
    assert (ours == expected).float().mean() > 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_mxfp4_of_compressed_tensors(seed: int) -> None:
    compressor, library = compressed_tensors()
    weight = matrix(33, 96, seed)
    arguments = dict(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=library.QuantizationArgs(**arguments))
    scale = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 4).log2().floor().exp2()
    form = "mxfp4-pack-quantized"
    with torch.compiler.set_stance("force_eager"):
        parts = compressor(form).compress(dict(weight=weight, weight_scale=scale), scheme)
        expected = compressor(form).decompress(parts, scheme)["weight"]
    assert parts["weight_scale"].dtype == torch.uint8
    assert (expected - weight).abs().max() < 0.3 * weight.abs().max()
    config = dict(quant_method="compressed-tensors", format=form, config_groups=dict(g=dict(weights=arguments)))
    check(under(NAME, parts), config, expected)


def test_modelopt_fp8() -> None:
    values = torch.randn(70, 45, generator=generator(2)).to(torch.float8_e4m3fn)
    parts = {"weight": values, "weight_scale": torch.tensor(0.3), "input_scale": torch.tensor(2.0)}
    check(under(NAME, parts), dict(quant_method="modelopt", quant_algo="FP8"), values.float() * torch.tensor(0.3))


# --- whole models --------------------------------------------------------------------------------------------------

LLAMA = Case(
    "quantized-llama", "llama",
    dict(vocab_size=61, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
         num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5),
    60,
)  # fmt: skip

WRITERS = {
    "fp8": fp8,
    "fp8-small-blocks": functools.partial(fp8, block=(48, 80)),
    "nf4": bnb4,
    "fp4": functools.partial(bnb4, kind="fp4", double=False),
    "int8": bnb8,
    "awq": awq,
    "gptq": gptq,
    "gptq-3": functools.partial(gptq, bits=3, group=-1, version="gptq_v2", act_order=False),
    "w4a16": packed,
    "w8a8": functools.partial(packed, form="int-quantized", bits=8, strategy="channel", symmetric=True),
    "w8a8-fp8": functools.partial(
        packed, form="float-quantized", bits=8, kind="float", strategy="channel", symmetric=True
    ),
}  # fmt: skip


def ours(path: Path, quantization: Mapping[str, Any]) -> Any:
    fields = json.loads((path / "config.json").read_text())
    fields.pop("quantization_config", None)
    plain = path / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "config.json").write_text(json.dumps(fields))
    source = dequantized(SafetensorsSource(path), quantization)
    return load_model(Config.from_hf(plain), source, device=torch.device("cpu"), dtype=torch.float32)


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_whole_model(writer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(cases.hf_config(LLAMA), dtype=torch.float32, attn_implementation="eager")
    cases.randomize(theirs.eval(), LLAMA.seed)
    original = logits(theirs, cases.tokens(LLAMA, 2, 33))
    theirs.config.save_pretrained(tmp_path)
    tensors, config = dict(theirs.state_dict()), {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        parts, config, expected = writer(tensors.pop(name))
        tensors |= under(name.removesuffix(".weight"), parts)
        theirs.get_parameter(name).data = expected.float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    model, ids = ours(tmp_path, config), cases.tokens(LLAMA, 2, 33)
    expected = logits(theirs, ids)
    assert (expected - original).abs().max() > 1e-3 * original.abs().max()
    with torch.no_grad():
        close(model(ids), expected)


@pytest.mark.parametrize("writer", [fp8, bnb4, packed], ids=["fp8", "nf4", "w4a16"])
@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next", "lfm2"])
def test_recurrent_layers_of_which_parts_are_not_quantized(family: str, writer: Any, tmp_path: Path) -> None:
    """As published: all projections but those of Gated DeltaNet's decay and beta."""
    from transformers import AutoModelForCausalLM

    delta = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16)
    hf = dict(vocab_size=61, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False)  # fmt: skip
    hf |= dict(layer_types=["conv", "full_attention", "conv", "conv"]) if family == "lfm2" else delta
    hf |= dict(mlp_only_layers=[0, 1, 2, 3]) if family == "qwen3_next" else {}
    case = Case("quantized-recurrent", family, hf, 62)
    theirs = AutoModelForCausalLM.from_config(cases.hf_config(case), dtype=torch.float32, attn_implementation="eager")
    cases.randomize(theirs.eval(), case.seed)
    original = logits(theirs, cases.tokens(case, 2, 33))
    theirs.config.save_pretrained(tmp_path)
    left_out = (
        "lm_head",
        "linear_attn.in_proj_a",
        "linear_attn.in_proj_b",
        "linear_attn.in_proj_ba",
        "shared_expert_gate",
    )
    tensors, config = dict(theirs.state_dict()), {}
    chosen = [n for n, m in theirs.named_modules() if isinstance(m, nn.Linear) and not n.endswith(left_out)]
    assert len([name for name in chosen if ".conv." in name or ".linear_attn." in name]) >= 6
    for name in chosen:
        parts, config, expected = writer(tensors.pop(f"{name}.weight"))
        tensors |= under(name, parts)
        theirs.get_submodule(name).weight.data = expected.float()
    config |= dict(modules_to_not_convert=list(left_out), llm_int8_skip_modules=list(left_out), ignore=list(left_out))
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    model, ids = ours(tmp_path, config), cases.tokens(case, 2, 33)
    expected = logits(theirs, ids)
    assert (expected - original).abs().max() > 1e-3 * original.abs().max()
    with torch.no_grad():
        close(model(ids), expected)


def test_whole_model_of_mxfp4_experts(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    case = Case(
        "quantized-gpt-oss", "gpt_oss",
        dict(vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, num_local_experts=3, num_experts_per_tok=2, sliding_window=8),
        61,
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(cases.hf_config(case), dtype=torch.float32, attn_implementation="eager")
    cases.randomize(theirs.eval(), case.seed)
    theirs.config.save_pretrained(tmp_path)
    tensors, gen = dict(theirs.state_dict()), generator(7)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), generator=gen, dtype=torch.uint8)
        scales = torch.randint(121, 124, blocks.shape[:-1], generator=gen, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        theirs.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales).float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    model, ids = ours(tmp_path, dict(quant_method="mxfp4")), cases.tokens(case, 2, 33)
    with torch.no_grad():
        close(model(ids), logits(theirs, ids))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    """A model that transformers quantized with bitsandbytes and saved."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = dict(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=kind == "nf4")
    config = BitsAndBytesConfig(**(dict(load_in_8bit=True) if kind == "int8" else four))
    theirs = AutoModelForCausalLM.from_pretrained(
        cases.write(LLAMA),
        quantization_config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        device_map="cpu",
    )
    theirs.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    model, ids = ours(tmp_path, stored), cases.tokens(LLAMA, 2, 33)
    plain = theirs.dequantize(dtype=torch.float32)
    assert not (plain.model.layers[0].mlp.up_proj.weight == cases.build(LLAMA).model.layers[0].mlp.up_proj.weight).all()
    with torch.no_grad():
        close(model(ids), logits(plain, ids))


# --- streaming, and what can't be read -------------------------------------------------------------------------------


def test_reads_one_weight_at_a_time() -> None:
    one, config, _ = gptq(matrix(32, 64, 0))
    two, _, _ = gptq(matrix(32, 64, 1))
    memory = Memory(under("a", one) | under("b", two))
    source = dequantized(memory, config)
    assert source.shapes() == {"a.weight": (32, 64), "b.weight": (32, 64)}
    assert memory.log == []
    source.read("b.weight")
    assert {*memory.log} == {*under("b", two)}
    # These keep a weight's shape in a tensor of a few bytes.
    for parts, config, _ in (bnb4(matrix(32, 64, 0)), packed(matrix(32, 64, 0))):
        memory = Memory(under("a", parts))
        assert dequantized(memory, config).shapes() == {"a.weight": (32, 64)}
        assert all("quant_state" in name or name.endswith("weight_shape") for name in memory.log)


def test_describe() -> None:
    weight = matrix(64, 96, 0)
    for text, (_, config, _) in {
        "fp8 (blocks of 128x128)": fp8(weight),
        "4-bit bitsandbytes (nf4)": bnb4(weight),
        "8-bit bitsandbytes (int8)": bnb8(weight),
        "4-bit AWQ (groups of 32)": awq(weight),
        "3-bit GPTQ (groups of 32, act-order)": gptq(weight, 3),
        "8-bit GPTQ (a scale per output)": gptq(weight, 8, -1, False),
        "4-bit compressed-tensors (pack-quantized)": packed(weight),
        "fp8": ({}, dict(quant_method="fp8"), None),
        "4-bit mxfp4": ({}, dict(quant_method="mxfp4"), None),
    }.items():
        assert str(quantization_format(config)) == text


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (dict(quant_method="hqq"), ["'hqq'", "awq, bitsandbytes, compressed-tensors, fp8, gptq, modelopt, mxfp4; use"]),
        ({}, ["None", "mxfp4"]),
        (dict(quant_method="bitsandbytes"), ["load_in_8bit is False", "load_in_4bit is False"]),
        (dict(quant_method="awq", bits=8), ["bits is 8", "reads 4"]),
        (dict(quant_method="awq", bits=4, version="gemv"), ["version is 'gemv'", "gemm"]),
        (dict(quant_method="awq", bits=4, group_size="x"), ["group_size is 'x'"]),
        (dict(quant_method="gptq"), ["bits is None"]),
        (dict(quant_method="gptq", bits=5), ["bits is 5", "2 or 3 or 4 or 8"]),
        (dict(quant_method="gptq", bits=4, checkpoint_format="marlin"), ["'marlin'", "gptq_v2"]),
        (dict(quant_method="gptq", bits=4, group_size=0), ["group_size is 0"]),
        (dict(quant_method="fp8", weight_block_size=128), ["weight_block_size is 128"]),
        (dict(quant_method="modelopt", quant_algo="W4A8_AWQ"), ["quant_algo is 'W4A8_AWQ'", "NVFP4"]),
        (dict(quant_method="compressed-tensors"), ["config_groups says nothing"]),
        (
            dict(quant_method="compressed-tensors", format="marlin-24", config_groups=dict(a=dict(weights=dict())),
                 sparsity_config=dict(format="sparse-24-bitmask")),
            ["'marlin-24'", "pack-quantized", "sparsity_config"],
        ),
        (
            dict(quant_method="compressed-tensors", format="pack-quantized",
                 config_groups=dict(a=dict(weights=dict(num_bits=3)))),
            ["num_bits is 3"],
        ),
    ],
)  # fmt: skip
def test_methods_that_are_not_known(config: dict[str, Any], wrong: list[str]) -> None:
    for call in (lambda: str(quantization_format(config)), lambda: dequantized(Memory({}), config)):
        with pytest.raises(ValueError, match="quantization_config") as e:
            call()
        assert all(text in str(e.value) for text in wrong), str(e.value)


def _refused(parts: Tensors, config: dict[str, Any], *wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong[0])) as e:
        dequantized(Memory(parts), config).read("a.weight")
    assert all(text in str(e.value) for text in wrong), str(e.value)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_missing_parts_are_named(writer: Any) -> None:
    parts, config, _ = writer(matrix(64, 96, 0))
    for gone in parts:
        if gone in ("weight_format", "g_idx") and not config.get("desc_act"):
            continue
        rest = under("a", {k: v for k, v in parts.items() if k != gone})
        # What lacks its scale looks like an ordinary tensor, but for its values.
        whole = "weight" in parts and gone in ("weight_scale", "weight_scale_inv")
        wrong = ("a.weight", str(parts["weight"].dtype).removeprefix("torch.")) if whole else (f"a.{gone}",)
        if gone == "SCB" and "weight_format" in parts:
            del rest["a.weight_format"]
            wrong = ("a.weight", "int8")
        _refused(rest, config, *wrong)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_impossible_sizes_are_named(writer: Any) -> None:
    parts, config, expected = writer(matrix(64, 96, 0))
    for name, tensor in parts.items():
        if "quant_map" in name or "quant_state" in name or name in ("weight_format", "weight_shape"):
            continue
        longer = torch.cat([tensor, tensor, tensor]) if tensor.dim() else tensor.expand(5)
        try:
            source = dequantized(Memory(under("a", parts | {name: longer})), config)
            wrong = source.read("a.weight")
        except ValueError as e:
            assert "a." in str(e) and "shape" in str(e)  # noqa: PT017, PT018 - a weight may really have more rows
        else:
            assert name == "weight"
            assert wrong.shape != expected.shape


def test_all_problems_at_once() -> None:
    parts, config, _ = gptq(matrix(64, 96, 0))
    tensors = under("a", parts | {"scales": parts["scales"][1:]}) | under(
        "b", parts | {"qzeros": parts["qzeros"][:, 1:]}
    )
    with pytest.raises(ValueError, match="somewhere") as e:
        dequantized(Memory(tensors), config)
    for text in ("a.scales has shape [2, 64], expected [3, 64]", "b.qzeros has shape [3, 7], expected [3, 8]", "GGUF"):
        assert text in str(e.value)


def test_contents_that_cannot_be() -> None:
    parts, config, _ = gptq(matrix(64, 96, 0))
    _refused(under("a", parts | {"g_idx": parts["g_idx"] + 1}), config, "a.g_idx", "0 to 2")
    _refused(under("a", parts | {"qweight": parts["qweight"].float()}), config, "a.qweight", "float32")
    parts, config, _ = bnb4(matrix(64, 96, 0))
    state = "weight.quant_state.bitsandbytes__nf4"
    _refused(under("a", parts | {state: parts[state][:-3]}), config, f"a.{state}")
    parts, config, _ = bnb8(matrix(64, 96, 0))
    _refused(under("a", parts | {"weight_format": torch.tensor(2, dtype=torch.uint8)}), config, "a.weight_format", "2")
    parts, config, _ = packed(matrix(64, 96, 0), form="int-quantized", bits=8, strategy="channel", symmetric=True)
    _refused(under("a", parts | {"weight": torch.zeros(64, 96)}), config, "a.weight", "float32", "int8")
    parts, config, _ = fp8(matrix(64, 96, 0))
    _refused(under("a", parts | {"weight": torch.zeros(64, 96, dtype=torch.int8)}), config, "a.weight", "int8")
