"""Packed weights: bytes, scales and values against bitsandbytes', products and gradients against float64."""

from __future__ import annotations

import copy
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from parity import cases
from rounding import within_roundoff
from torch import Tensor, nn

from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.cli.main import main
from litlm.context import KVCache
from litlm.llm import LLM
from litlm.model import GPT
from litlm.model.moe import Experts
from litlm.ops.grouped import group_ends, grouped_linear_loop
from litlm.ops.linear import Linear
from litlm.settings import MethodSettings
from litlm.transforms import compile, quantize
from litlm.transforms.lora import adapters, apply_lora
from litlm.transforms.quantize import QTYPES, QuantizedLinear, QuantizedStack, weight_of

FOUR = [kind for kind in QTYPES if kind != "int8"]
SHAPES = [(1, 2), (5, 7), (17, 96), (33, 40), (64, 128), (129, 192), (300, 1000)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


def _weight(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blocks of different sizes, and one of zeros."""
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=gen) * torch.rand(*shape[:-1], 1, generator=gen) * shape[-1] ** -0.5
    if weight.numel() > 256:
        weight.view(-1)[64:128] = 0
    return weight.to(dtype)


def _layer(weight: Tensor, kind: str, bias: bool = False, device: torch.device = CPU) -> QuantizedLinear:
    plain = Linear(weight.size(1), weight.size(0), bias=bias, dtype=weight.dtype, device=device)
    if plain.bias is not None:
        nn.init.normal_(plain.bias)
    layer = QuantizedLinear(plain, kind, weight.dtype)
    layer.set_weight(weight, device)
    return layer


def _theirs(weight: Tensor, kind: str) -> tuple[Tensor, Any]:
    import bitsandbytes.functional as bnb

    return bnb.quantize_4bit(weight, blocksize=64, quant_type=kind[:3], compress_statistics=kind.endswith("-dq"))


def _unpacked(weight: Tensor, kind: str) -> Tensor:
    """What bitsandbytes makes of a weight (out, in), in fp32.

    Spelled out: its kernel for CPUs (0.50) reads wrong scales where a block of 64 goes over the end of a row.
    """
    import bitsandbytes.functional as bnb

    if kind == "int8":
        return bnb.int8_vectorwise_dequant(*torch.ops.bitsandbytes.int8_vectorwise_quant(weight)[:2])
    packed, state = _theirs(weight, kind)
    scale = state.absmax
    if state.nested:
        scale = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    flat = packed.flatten().long()
    values = state.code[torch.stack((flat // 16, flat % 16), 1).flatten()][: weight.numel()]
    return (values * scale.repeat_interleave(64)[: weight.numel()]).view(weight.shape)


def _near(actual: Tensor, expected: Tensor, rtol: float) -> None:
    """The distance in proportion to the length of what is expected."""
    distance = (actual.double() - expected.double()).norm()
    assert distance <= rtol * expected.double().norm(), f"{distance / expected.double().norm():.1e}"


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_four_bits_are_those_of_bitsandbytes(
    kind: str, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes.functional as bnb

    for seed in range(3):
        weight = _weight(shape, seed, dtype)
        layer, (packed, state) = _layer(weight, kind), _theirs(weight, kind)
        assert layer.weight.dtype == torch.uint8
        assert torch.equal(layer.weight, packed)
        assert torch.equal(layer.weight_absmax, state.absmax)
        if kind.endswith("-dq"):
            assert torch.equal(layer.weight_nested_absmax, state.state2.absmax)
            assert torch.equal(layer.weight_offset, state.offset)
            assert torch.equal(layer.levels, state.state2.code)
        expected = _unpacked(weight, kind)
        if shape[1] % 64 == 0:
            assert torch.equal(bnb.dequantize_4bit(packed, state), expected.to(dtype))
        assert torch.equal(layer.dequantized(), expected.to(dtype))
        assert torch.equal(layer.dequantized(torch.float32), expected)
        with monkeypatch.context() as patch:
            patch.setattr(quantize, "_has_kernel", lambda *_: False)  # the plain operations, which are compiled
            assert torch.equal(layer.dequantized(), expected.to(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_is_that_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    import bitsandbytes.functional as bnb

    for seed in range(3):
        weight = _weight(shape, seed, dtype)
        weight[0] = weight[0] if len(weight) == 1 else 0  # a row of zeros stays one
        layer = _layer(weight, "int8")
        values, scale, _ = bnb.int8_vectorwise_quant(weight[1:] if len(weight) > 1 else weight)
        some = slice(1 if len(weight) > 1 else 0, None)
        assert layer.weight.dtype == torch.int8
        assert torch.equal(layer.weight[some], values)
        assert torch.equal(layer.weight_absmax[some], scale)
        assert torch.equal(layer.dequantized()[some], bnb.int8_vectorwise_dequant(values, scale).to(dtype))
        assert len(weight) == 1 or not layer.dequantized()[0].any()
        step = weight.double().abs().amax(1, keepdim=True) / 127
        error = (layer.dequantized(torch.float32).double() - weight.double()).abs()
        assert (error <= 0.5001 * step).all()


@pytest.mark.parametrize("kind", FOUR)
def test_a_large_weight_is_packed_in_chunks_and_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _weight((130, 75), 0)
    monkeypatch.setattr(quantize, "_CHUNK", 640)
    layer, (packed, state) = _layer(weight, kind), _theirs(weight, kind)
    assert torch.equal(layer.weight, packed)
    assert torch.equal(layer.weight_absmax, state.absmax)
    assert torch.equal(layer.dequantized(), _unpacked(weight, kind))


@pytest.mark.parametrize(
    ("kind", "size"), [("nf4", 0.5625), ("fp4", 0.5625), ("nf4-dq", 0.516), ("fp4-dq", 0.516), ("int8", 1.002)]
)
def test_bytes_per_weight(kind: str, size: float) -> None:
    layer = _layer(torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)), kind)
    held = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
    assert held / 2048**2 == pytest.approx(size, abs=1e-3)


# --- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (33, 40), (130, 192)], ids=str)
# In halves the products are rounded, by up to 2**-8 and 2**-11, and where bias or kernel add them up, a few times.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 0), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_products_and_gradients(kind: str, shape: tuple[int, int], dtype: torch.dtype, rtol: float) -> None:
    for seed, rows in enumerate([(1,), (1, 1), (2, 3)]):
        weight = _weight(shape, seed, dtype)
        layer = _layer(weight, kind, bias=seed != 1)
        gen = torch.Generator().manual_seed(seed)
        x = torch.randn(*rows, shape[1], generator=gen).to(dtype).requires_grad_()
        sent = torch.randn(*rows, shape[0], generator=gen).to(dtype)
        y = layer(x)
        y.backward(sent)
        wide = _unpacked(weight, kind).double()
        expected = x.double() @ wide.T + (0 if layer.bias is None else layer.bias.double())
        assert y.dtype == dtype
        assert x.grad is not None
        size = x.double().abs() @ wide.abs().T + (0 if layer.bias is None else layer.bias.double().abs())

        def check(actual: Tensor, expected: Tensor, size: Tensor) -> None:
            if dtype == torch.float32:
                within_roundoff(actual, expected, size, max(shape) + 1)
            else:
                _near(actual, expected, rtol)

        with torch.no_grad():
            check(y, expected, size)
            check(x.grad, sent.double() @ wide, sent.double().abs() @ wide.abs())
            if layer.bias is not None:
                rows_sent = sent.double().flatten(0, -2)
                check(layer.bias.grad, rows_sent.sum(0), rows_sent.abs().sum(0))
            check(layer(x), expected, size)
        assert not layer.weight.requires_grad


def test_autocast_multiplies_in_half_precision() -> None:
    weight = _weight((64, 128), 0)
    layer, x = _layer(weight, "nf4", bias=True), torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    _near(x.grad, _unpacked(weight, "nf4").sum(0).expand(3, -1), 1e-2)


class _MLP(nn.Module):
    def __init__(self, kind: str, width: int = 64, inner: int = 200) -> None:
        super().__init__()
        self.up = _layer(_weight((inner, width), 0), kind, bias=True)
        self.down = _layer(_weight((width, inner), 1), kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def _held(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and what the backward pass keeps for it."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        return model(x), kept


def _check_kept(kept: list[Tensor]) -> None:
    """Activations of 3 rows, packed weights, scales, tables: nothing in full precision has a weight's size."""
    assert kept
    wide = [t for t in kept if t.is_floating_point()]
    assert max(t.numel() for t in wide) < 64 * 200 // 4
    assert sum(t.dtype in (torch.uint8, torch.int8) and t.numel() >= 64 * 200 // 2 for t in kept) == 2


@pytest.mark.parametrize("kind", QTYPES)
def test_the_backward_pass_keeps_packed_weights_only(kind: str) -> None:
    x = torch.randn(3, 64, requires_grad=True)
    y, kept = _held(_MLP(kind), x)
    _check_kept(kept)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in its partitioner
@pytest.mark.parametrize("kind", ["nf4-dq", "int8"])
def test_compiled_in_one_graph(kind: str) -> None:
    """Up to the compiler's backend: one graph, and what it decides to keep for the backward pass."""
    torch._dynamo.reset()
    model = _MLP(kind)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    assert model.up.bias.grad is not None
    expected, bias_grad = x.grad, model.up.bias.grad
    x.grad = model.up.bias.grad = None
    whole = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    compiled, kept = _held(whole, x)
    _check_kept(kept)
    compiled.square().sum().backward()
    _near(compiled, y, 1e-6)
    _near(x.grad, expected, 1e-6)
    _near(model.up.bias.grad, bias_grad, 1e-6)


@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("shape", [(5, 24, 40), (3, 64, 192), (4, 5, 7)], ids=str)
def test_experts(kind: str, shape: tuple[int, int, int]) -> None:
    weight = _weight(shape, 3)
    stack = QuantizedStack(torch.empty(shape, device="meta"), kind, torch.float32)
    stack.set_weight(weight[0], CPU, 0)
    for e in reversed(range(1, len(weight))):
        stack.set_weight(weight[e], CPU, e)
    wide = torch.stack([_unpacked(matrix, kind) for matrix in weight])
    assert torch.equal(stack.dequantized(), wide)
    whole = QuantizedStack(torch.empty(shape, device="meta"), kind, torch.float32)
    whole.set_weight(weight, CPU)
    assert torch.equal(whole.dequantized(), wide)
    with torch.no_grad():  # all at once, as compiled code does it
        together = quantize.dequantize(kind, shape[1:], torch.float32, stack.parts)
    assert torch.equal(together, wide)
    experts = torch.tensor([0, 0, 1, 2, 2, 2])
    ends = group_ends(experts, len(weight))
    x, bias = torch.randn(6, shape[2], requires_grad=True), torch.randn(shape[:2], requires_grad=True)
    y, sent = stack(x, ends, experts, bias), torch.randn(6, shape[1])
    y.backward(sent)
    twin, twin_bias = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    expected = grouped_linear_loop(twin, wide.double(), ends, twin_bias)
    expected.backward(sent.double())
    _near(y, expected, 1e-6)
    assert x.grad is not None
    assert bias.grad is not None
    _near(x.grad, twin.grad, 1e-6)  # type: ignore[arg-type]
    _near(bias.grad, twin_bias.grad, 1e-6)  # type: ignore[arg-type]


# --- models --------------------------------------------------------------------------------------------------------


def _load(path: Path, kind: str | None, dtype: torch.dtype = torch.float32) -> GPT:
    from litlm.checkpoint.hf import open_directory

    config, source, _ = open_directory(path)
    return load_model(config, source, device=CPU, dtype=dtype, quantize=kind)


def _is_packed(name: str) -> bool:
    """Of the linear layers."""
    return name.startswith("layers.") and not name.endswith(("shared_gate", "in_proj_a", "in_proj_b"))


@torch.no_grad()
def _plain(path: Path, kind: str, dtype: torch.dtype = torch.float32) -> GPT:
    """The plain model with bitsandbytes' values for its weights."""
    model = _load(path, None, dtype)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _is_packed(name):
            module.weight.copy_(_unpacked(module.weight, kind))
        if isinstance(module, Experts):
            for stack in (module.gate_proj, module.up_proj, module.down_proj):
                for matrix in [] if stack is None else stack:
                    matrix.copy_(_unpacked(matrix, kind))
    return model


MODELS = [
    "llama-mha-biases", "llama-mqa-tied", "gpt_neox-odd-share", "deepseek_v3-groups", "lfm2-wide-kernel-biases-untied",
    "qwen3_5_text-plain", "qwen3_next-plain",
]  # fmt: skip


@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_computes_with_the_packed_values(name: str, kind: str) -> None:
    case = cases.by_name(name)
    path = cases.write(case)
    model, plain = _load(path, kind), _plain(path, kind)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, (QuantizedLinear, QuantizedStack))}
    assert packed
    for n, p in model.named_parameters():
        assert (p.dtype in (torch.uint8, torch.int8)) == (n.removesuffix(".weight") in packed and "weight" in n)
    for n, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            assert (n in packed) == _is_packed(n)
            assert torch.equal(weight_of(model.get_submodule(n)), module.weight)
            assert weight_of(module) is module.weight
    ids = cases.tokens(case, 2, 20)
    expected = plain(ids)
    _near(model(ids), expected, 2e-6)
    assert (_load(path, None)(ids) - expected).norm() > 1e-3 * expected.norm()  # packing is felt
    cache = KVCache(model.config, 2, 20, dtype=torch.float32)
    _near(torch.cat([model(part, context=cache) for part in ids.split([7, 1, 1, 5, 6], 1)], 1), expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-plain", "int8"),
        ("gpt_oss-no-biases", "nf4-dq"),
        pytest.param("gpt_oss-default-yarn", "int8", marks=pytest.mark.slow),
        pytest.param("deepseek_v3-groups", "nf4-dq", marks=pytest.mark.slow),
    ],
)
def test_compiled_decoding(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without graph breaks, experts included; Dynamo's eager backend runs the graphs."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compile.shutil, "which", lambda name: name)
    path = cases.write(cases.by_name(name))
    options: Any = dict(max_new_tokens=8, ignore_eos=True, return_ids=True)
    plain = LLM.load(path, device="cpu", dtype="float32")
    plain.model = _plain(path, kind)
    llm = LLM.load(path, device="cpu", dtype="float32", quantize=kind, compile=True)
    assert llm.generate([3, 1, 4, 1, 5], **options) == plain.generate([3, 1, 4, 1, 5], **options)


def test_weights_arrive_one_at_a_time(tmp_path: Path) -> None:
    """When a tensor is read, at most the one before it is still there."""
    alive: list[weakref.ref[Tensor]] = []

    class Watched(SafetensorsSource):
        def read(self, name: str) -> Tensor:
            assert sum(ref() is not None for ref in alive) <= 1
            tensor = super().read(name).clone()
            alive.append(weakref.ref(tensor))
            return tensor

    case = cases.by_name("llama-mha-biases")
    path = cases.write(case)
    model = load_model(_load(path, None).config, Watched(path), device=CPU, dtype=torch.float32, quantize="nf4-dq")
    assert len(alive) > 10
    ids = cases.tokens(case, 1, 5)
    assert torch.equal(model(ids), _load(path, "nf4-dq")(ids))


@pytest.mark.parametrize("kind", ["nf4-dq", "int8"])
def test_moves_and_casts_leave_scales_alone(kind: str) -> None:
    weight = _weight((64, 128), 0)
    layer = _layer(weight, kind)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    other = copy.deepcopy(layer).to(torch.bfloat16)
    for name, b in other.named_buffers():
        assert torch.equal(b, before[name])
    assert other.dequantized().dtype == torch.bfloat16
    assert torch.equal(other.dequantized(), layer.dequantized().bfloat16())
    assert layer.dequantized().dtype == torch.float32
    assert torch.equal(other.float().dequantized(), layer.dequantized())


@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("name", ["llama-mha-biases", "deepseek_v3-groups"])
def test_lora_on_packed_weights(name: str, kind: str) -> None:
    """The adapters' gradients are those beside the plain values, and the packed weights stay as they are."""
    case = cases.by_name(name)
    path = cases.write(case)
    model, plain = _load(path, kind), _plain(path, kind)
    ids = cases.tokens(case, 2, 9)
    for m in (model, plain):
        torch.manual_seed(0)
        apply_lora(m, MethodSettings(r=3))
        for _, lora in adapters(m):
            nn.init.normal_(lora.B, std=0.1)
        m(ids).logsumexp(-1).sum().backward()
    ours, theirs = (dict(m.named_parameters()) for m in (model, plain))
    trained = [n for n, p in ours.items() if p.requires_grad]
    assert trained == [n for n, p in theirs.items() if p.requires_grad]
    assert all(".lora." in n for n in trained)
    for n in trained:
        _near(ours[n].grad, theirs[n].grad, 2e-5)  # type: ignore[arg-type]
    fresh = dict(_load(path, kind).named_parameters())
    assert all(torch.equal(p, fresh[n]) for n, p in ours.items() if ".lora." not in n)


# --- for people ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), [*(("llama", kind) for kind in QTYPES), ("mixtral", "nf4-dq")])
def test_load_generate_and_save(family: str, kind: str, tmp_path: Path) -> None:
    llm, plain = tiny.load(family, quantize=kind), tiny.load(family)
    assert any(isinstance(m, QuantizedLinear) for m in llm.model.modules())
    plain.model = _plain(tiny.folder(family), kind)
    prompts = ["The quick", "abab baab"]
    options: Any = dict(max_new_tokens=6, return_ids=True, ignore_eos=True)
    assert llm.generate(prompts, **options) == plain.generate(prompts, **options)
    llm.save(tmp_path)  # as plain weights, with the values that it computes with
    back = LLM.load(tmp_path, device="cpu", dtype="float32").model.state_dict()
    expected = plain.model.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(t, back[name]) for name, t in expected.items())


@pytest.mark.parametrize("kind", ["nf4", "fp4-dq"])
def test_the_same_bytes_as_transformers(kind: str, tmp_path: Path) -> None:
    """Its bitsandbytes model and ours from one checkpoint; and what it saves, packed again, is the same once more."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: Any = dict(bnb_4bit_quant_type=kind[:3], bnb_4bit_use_double_quant=kind.endswith("-dq"))
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny.folder(), quantization_config=BitsAndBytesConfig(load_in_4bit=True, **options), dtype=torch.float32,
        device_map="cpu",
    )  # fmt: skip
    model = tiny.load(quantize=kind).model
    for i, layer in enumerate(theirs.model.layers):
        for part, names in (("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")), ("mlp", ("up_proj", "down_proj"))):
            for name in names:
                weight = getattr(getattr(layer, part), name).weight
                ours = model.get_submodule(f"layers.{i}.{part.removeprefix('self_')}.{name}")
                assert torch.equal(ours.weight, weight.data)
                assert torch.equal(ours.weight_absmax, weight.quant_state.absmax)
    if kind == "nf4":  # packing again changes nothing where the scales are exact
        theirs.save_pretrained(tmp_path)
        again = LLM.load(tmp_path, device="cpu", dtype="float32", quantize=kind).model.state_dict()
        assert all(torch.equal(t, again[name]) for name, t in model.state_dict().items())


def test_the_command_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", str(tiny.folder()), "--prompt", "The", "--max_new_tokens", "3", "--quantize", "nf4-dq"])
    expected = tiny.load(quantize="nf4-dq").generate("The", max_new_tokens=3)
    assert capsys.readouterr().out == f"The{expected}\n"


def test_bfloat16_on_a_cpu() -> None:
    llm = tiny.load(quantize="nf4", dtype="bfloat16")
    ids = torch.tensor([[3, 5, 7, 11]])
    _near(llm.model(ids), _plain(tiny.folder(), "nf4", torch.bfloat16)(ids), 2e-2)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"quantize='int4' is unknown; use one of nf4, nf4-dq, fp4, fp4-dq, int8"):
        tiny.load(quantize="int4")
    with pytest.raises(ValueError, match="dtype=float64 does not go with quantize"):
        tiny.load(quantize="nf4", dtype=torch.float64)
    quantize._bitsandbytes.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ValueError, match=r"4-bit weights need bitsandbytes .*pip install bitsandbytes"):
            tiny.load(quantize="nf4")
        assert tiny.load(quantize="int8").generate("The", max_new_tokens=1, return_ids=True)  # needs nothing


# --- on a GPU ------------------------------------------------------------------------------------------------------


no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("shape", [(33, 40), (64, 128), (300, 1000), (512, 1024)], ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_cuda_computes_what_the_cpu_does(kind: str, shape: tuple[int, int], dtype: torch.dtype, rtol: float) -> None:
    """A layer packed on the CPU and moved: its values, products of one row and of many, and gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    weight = _weight(shape, 0, dtype)
    layer = _layer(weight, kind, bias=True)
    wide = _unpacked(weight, kind).double()
    moved = copy.deepcopy(layer).to("cuda")
    _near(moved.dequantized(torch.float32).cpu(), wide, 1e-6)
    try:
        for rows in (1, 3, 70):
            x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
            expected = x.double() @ wide.T + layer.bias.double()
            with torch.no_grad():
                _near(moved(x.cuda()).cpu(), expected, rtol)
            there = x.cuda().requires_grad_()
            y = moved(there)
            _near(y.cpu(), expected, rtol)
            y.sum().backward()
            assert there.grad is not None
            _near(there.grad.cpu(), wide.sum(0).expand(rows, -1), rtol)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("kind", QTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_packs_as_the_cpu_does(kind: str, dtype: torch.dtype) -> None:
    """The same, but where a weight lies halfway between two values: its kernels round such ties another way.

    In bf16 they are not rare: FP4's halfway points are simple fractions (5/6, 7/12) of the block's largest weight.
    """
    weight = _weight((300, 1000), 0, dtype)
    here, there = _layer(weight, kind), _layer(weight, kind, device=torch.device("cuda"))
    assert there.weight.device.type == there.weight_absmax.device.type == "cuda"
    a, b = _chosen(here), _chosen(there)
    block = weight.size(1) if kind == "int8" else quantize.BLOCK
    flat = weight.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    largest = blocks.abs().amax(1).repeat_interleave(block)[: len(flat)]
    some = largest > 0  # in a block of zeros it does not matter what is chosen
    a, b, exact = a[some], b[some], (flat / largest)[some]
    assert ((b - exact).abs() - (a - exact).abs()).abs().max() < 2e-6  # as near
    assert (a != b).float().mean() < 2e-3
    if kind.endswith("-dq"):
        indices = here.weight_absmax.int() - there.weight_absmax.cpu().int()
        assert indices.abs().max() <= 1
        assert indices.abs().float().mean() < 1e-2
        _near(there.weight_nested_absmax.cpu(), here.weight_nested_absmax, 1e-5)
        _near(there.weight_offset.cpu(), here.weight_offset, 1e-5)
    else:
        assert torch.equal(there.weight_absmax.cpu(), here.weight_absmax)
    _near(there.dequantized(torch.float32).cpu(), weight, 0.01 if kind == "int8" else 0.14)


def _chosen(layer: QuantizedLinear) -> Tensor:
    """The value that each weight was given, where its block's largest is 1."""
    if layer.qtype == "int8":
        return layer.weight.cpu().float().flatten() / 127
    return layer.pairs.cpu()[layer.weight.cpu().flatten().int()].flatten()[: layer.in_features * layer.out_features]


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_cuda_compiled_in_one_graph(kind: str) -> None:
    model = _MLP(kind).to("cuda")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).cuda().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    expected, x.grad = x.grad, None
    compiled, kept = _held(torch.compile(model, fullgraph=True), x)
    _check_kept(kept)
    compiled.square().sum().backward()
    assert expected is not None
    assert x.grad is not None
    _near(compiled.cpu(), y.cpu(), 1e-3)
    _near(x.grad.cpu(), expected.cpu(), 1e-3)


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("kind", ["nf4-dq", "int8"])
def test_cuda_experts(kind: str) -> None:
    weight = _weight((5, 64, 192), 3)
    stack = QuantizedStack(torch.empty(weight.shape, device="meta"), kind, torch.float32)
    stack.set_weight(weight, CPU)
    experts = torch.tensor([0, 0, 1, 2, 2, 2])
    x, ends = torch.randn(6, 192), group_ends(experts, 5)
    moved = copy.deepcopy(stack).to("cuda")
    _near(moved(x.cuda(), ends.cuda(), experts.cuda()).cpu(), stack(x, ends, experts), 1e-3)
