"""The cross-entropy's Triton kernel, and the chunks that it works on, against float64 formulas.

On a CUDA device these are tests of what runs there. Without one, a single test runs them all in Triton's interpreter,
if Triton is installed, and another compiles the kernel for a GPU that need not be there. What is around the kernel is
tested everywhere, with a stand-in for it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreted import passed_in_interpreter
from torch import Tensor

from litlm.ops import cross_entropy as module
from litlm.ops.cross_entropy import IGNORE, cross_entropy_sum, token_losses

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
KERNEL_MARKS = (
    [
        pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, on what lies between rows
        pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # the interpreter's own
    ]
    if INTERPRETED
    else [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
with_kernel = [pytest.mark.usefixtures("_exact"), *KERNEL_MARKS]


@pytest.fixture
def _exact() -> Any:
    """fp32 products in fp32, whatever the machine's default is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def _finish(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    return logits * scale if softcap is None else softcap * torch.tanh(logits * scale / softcap)


# --- the kernel by itself ------------------------------------------------------------------------------------------


def _run(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    from litlm.ops.cross_entropy_triton import softmax_gradient_

    losses = torch.full(targets.shape, torch.nan, device=logits.device)
    softmax_gradient_(logits, targets, losses, **options)
    return losses


def _rows_case(
    N: int, V: int, width: int, dtype: torch.dtype, size: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A buffer (N + 1, width) of NaN, logits in its first V columns and N rows, and targets, one of them missing."""
    gen = torch.Generator().manual_seed(seed + V)
    buffer = torch.full((N + 1, width), torch.nan).to(DEVICE, dtype)
    logits = buffer[:N, :V]
    logits.copy_(torch.randn(N, V, generator=gen) * size)
    targets = torch.randint(V, (N,), generator=gen)
    targets[0], targets[1], targets[N // 2] = V - 1, 0, IGNORE
    return buffer, logits, targets.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("V", "width", "block"), [(2, 2, 64), (37, 37, 16), (101, 128, 32), (128, 128, 128), (333, 384, 8192)]
)
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, 2.5)])
class TestKernel:
    pytestmark = with_kernel

    @pytest.fixture(autouse=True)
    def _variant(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from litlm.ops import cross_entropy_triton as kernels

        monkeypatch.setattr(kernels, "BLOCK", block)

    def test_loss_and_gradient(
        self, V: int, width: int, dtype: torch.dtype, scale: float, softcap: float | None
    ) -> None:
        buffer, logits, targets = _rows_case(7, V, width, dtype, size=4.0)
        wide = logits.double().requires_grad_()
        expected = F.cross_entropy(_finish(wide, scale, softcap), targets, ignore_index=IGNORE, reduction="none")
        expected.sum().backward()
        assert wide.grad is not None
        losses = _run(logits, targets, scale=scale, softcap=softcap, gradient=True)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=2e-6, atol=2e-6)
        # Rounded once, from fp32; the interpreter's rounding to bf16 cuts off.
        rtol = 3e-6 if dtype == torch.float32 else 2**-7 if INTERPRETED else 2**-8
        torch.testing.assert_close(logits.double(), wide.grad, rtol=rtol, atol=3e-7)
        assert losses[3] == 0
        assert (logits[3] == 0).all()
        assert buffer[7].isnan().all(), "it wrote behind the last row"

    def test_the_loss_alone_leaves_the_logits(
        self, V: int, width: int, dtype: torch.dtype, scale: float, softcap: float | None
    ) -> None:
        buffer, logits, targets = _rows_case(3, V, width, dtype, size=4.0, seed=1)
        before = buffer.clone()
        expected = F.cross_entropy(
            _finish(logits.double(), scale, softcap), targets, ignore_index=IGNORE, reduction="none"
        )
        losses = _run(logits, targets, scale=scale, softcap=softcap, gradient=False)
        torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-6)
        assert torch.equal(buffer.nan_to_num(7), before.nan_to_num(7))


@pytest.mark.parametrize(("shift", "softcap"), [(-3e4, None), (3e4, None), (3e4, 30.0)])
class TestFarOut:
    pytestmark = with_kernel

    def test_nothing_overflows(self, shift: float, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Logits around +-30,000 that differ by tens of thousands."""
        from litlm.ops import cross_entropy_triton as kernels

        monkeypatch.setattr(kernels, "BLOCK", 32)
        _, logits, targets = _rows_case(6, 150, 192, torch.float32, size=1e4)
        logits += shift
        wide = logits.double().requires_grad_()
        expected = F.cross_entropy(_finish(wide, 1.0, softcap), targets, ignore_index=IGNORE, reduction="none")
        expected.sum().backward()
        losses = _run(logits, targets, scale=1.0, softcap=softcap, gradient=True)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(logits.double(), wide.grad, rtol=1e-4, atol=1e-5)


class TestWrong:
    pytestmark = with_kernel

    @pytest.mark.parametrize("target", [-1, 50, 2**40])
    def test_a_target_that_is_no_token_shows(self, target: int) -> None:
        _, logits, targets = _rows_case(4, 50, 64, torch.float32, size=1.0)
        targets[1] = target
        losses = _run(logits, targets, scale=1.0, softcap=None, gradient=True)
        assert losses.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("shape", [(1,), (3, 7), (33, 64), (5, 1025)])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
class TestScaled:
    pytestmark = with_kernel

    def test_it_is_a_product(self, shape: tuple[int, ...], into: torch.dtype) -> None:
        from litlm.ops import cross_entropy_triton as kernels

        gen = torch.Generator().manual_seed(len(shape))
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, generator=gen).to(DEVICE, dtype)
            before = x.clone()
            got = kernels.scaled(x, torch.tensor(0.37, device=DEVICE), into)
            assert got.dtype == into
            expected = x.double() * torch.tensor(0.37).double().to(DEVICE)
            # The interpreter's rounding to bf16 cuts off.
            rtol = 1e-6 if into == torch.float32 else 2**-7 if INTERPRETED else 2**-8
            torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=0)
            assert torch.equal(x, before)


# --- the chunks around it ------------------------------------------------------------------------------------------


def _stand_in(
    logits: Tensor, targets: Tensor, losses: Tensor, *, scale: float, softcap: float | None, gradient: bool
) -> None:
    with torch.enable_grad():
        wide = logits.double().requires_grad_()
        each = F.cross_entropy(_finish(wide, scale, softcap), targets, ignore_index=IGNORE, reduction="none")
        total = each.sum()
    losses.copy_(each.detach())
    if gradient:
        logits.copy_(torch.autograd.grad(total, wide)[0])


@pytest.fixture(params=["stand-in", pytest.param("kernel", marks=KERNEL_MARKS)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _exact: None) -> str:
    """Where to compute, with the way over the kernel switched on."""
    if request.param == "stand-in":
        monkeypatch.setattr(module, "_kernels", lambda *_: SimpleNamespace(ALIGN=64, softmax_gradient_=_stand_in))
        monkeypatch.setattr(module, "_kernel_bytes", lambda _: module._KERNEL_BYTES)
        monkeypatch.setattr(module, "_TILE", 4)
        return "cpu"
    from litlm.ops import cross_entropy_triton as kernels

    if INTERPRETED:
        monkeypatch.setattr(module, "_kernels", lambda *_: kernels)
        monkeypatch.setattr(module, "_kernel_bytes", lambda _: module._KERNEL_BYTES)
    monkeypatch.setattr(kernels, "BLOCK", 64)
    monkeypatch.setattr(module, "_TILE", 4)
    return DEVICE


def _case(
    sizes: tuple[int, int, int, int], masked: float, biased: bool, dtype: torch.dtype, device: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden states, weight and bias; targets; what comes in from above, for each token."""
    B, T, C, V = sizes
    gen = torch.Generator().manual_seed(sum(sizes))
    inputs = [torch.randn(B, T, C, generator=gen), torch.randn(V, C, generator=gen) * 2 * C**-0.5]
    if biased:
        inputs.append(torch.randn(V, generator=gen))
    targets = torch.randint(V, (B, T), generator=gen)
    targets = targets.masked_fill(torch.rand(B, T, generator=gen) < masked, IGNORE)
    return [t.to(device, dtype) for t in inputs], targets.to(device), torch.randn(B, T, generator=gen).to(device)


def _expected(
    inputs: list[Tensor], targets: Tensor, incoming: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, list[Tensor]]:
    wide = [t.double().requires_grad_() for t in inputs]
    logits = wide[0] @ wide[1].t() + (wide[2] if len(wide) == 3 else 0)
    logp = _finish(logits, scale, softcap).log_softmax(-1)
    losses = torch.where(targets == IGNORE, 0.0, -logp.gather(2, targets.clamp(min=0)[..., None])[..., 0])
    return losses.detach(), list(torch.autograd.grad((losses * incoming).sum(), wide))


def _close(got: Tensor | None, expected: Tensor, dtype: torch.dtype) -> None:
    assert got is not None
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= (1e-2 if dtype == torch.bfloat16 else 2e-6) * expected.norm()


HEADS = [(1.0, None, False), (0.3, None, True), (1.7, 4.0, False), (1.0, 2.5, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("scale", "softcap", "biased"), HEADS)
@pytest.mark.parametrize(
    ("sizes", "bytes_at_once", "masked", "told"),
    [((1, 6, 24, 101), 1, 0.0, False), ((2, 5, 16, 64), 7 * 64 * 4, 0.4, False), ((2, 4, 8, 7), 2**20, 0.5, True)],
    ids=["smallest", "chunks", "told-which"],
)
class TestChunks:
    def test_sum(
        self, sizes: Any, bytes_at_once: int, masked: float, told: bool, scale: float, softcap: float | None,
        biased: bool, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(module, "_KERNEL_BYTES", bytes_at_once)
        inputs, targets, _ = _case(sizes, masked, biased, dtype, device)
        expected, gradients = _expected(inputs, targets, torch.full(targets.shape, 0.5, device=device), scale, softcap)
        options: dict[str, Any] = dict(scale=scale, softcap=softcap)
        options["target_positions"] = (targets.flatten() != IGNORE).nonzero()[:, 0] if told else None
        for want in ((True,) * 3, (True, False, False), (False, True, True)):
            mine = [t.clone().requires_grad_(w) for t, w in zip(inputs, want, strict=False)]
            value = cross_entropy_sum(mine[0], mine[1], targets, bias=mine[2] if biased else None, **options)
            assert value.dtype == torch.float32
            rtol = 2e-3 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(value.detach().double(), expected.sum(), rtol=rtol, atol=0)
            (value * 0.5).backward()
            for t, w, gradient in zip(mine, want, gradients, strict=False):
                assert (t.grad is not None) == w
                if w:
                    _close(t.grad, gradient, dtype)
        with torch.no_grad():  # perhaps in other chunks
            again = cross_entropy_sum(inputs[0], inputs[1], targets, bias=inputs[2] if biased else None, **options)
        torch.testing.assert_close(again.double(), expected.sum(), rtol=rtol, atol=0)

    def test_each_token(
        self, sizes: Any, bytes_at_once: int, masked: float, told: bool, scale: float, softcap: float | None,
        biased: bool, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(module, "_KERNEL_BYTES", bytes_at_once)
        inputs, targets, incoming = _case(sizes, masked, biased, dtype, device)
        expected, gradients = _expected(inputs, targets, incoming, scale, softcap)
        mine = [t.clone().requires_grad_() for t in inputs]
        wanted = (targets.flatten() != IGNORE).nonzero()[:, 0] if told else None
        losses = token_losses(
            mine[0],
            mine[1],
            targets,
            bias=mine[2] if biased else None,
            scale=scale,
            softcap=softcap,
            target_positions=wanted,
        )
        assert losses.dtype == torch.float32
        assert losses.shape == targets.shape
        _close(losses.detach().to(dtype), expected, dtype)
        (losses * incoming).sum().backward()
        for t, gradient in zip(mine, gradients, strict=True):
            _close(t.grad, gradient, dtype)


@pytest.mark.parametrize("told", [False, True])
def test_nothing_to_learn(device: str, told: bool) -> None:
    inputs, targets, _ = _case((2, 3, 4, 9), 1.0, True, torch.float32, device)
    assert (targets == IGNORE).all()
    mine = [t.requires_grad_() for t in inputs]
    wanted = torch.zeros(0, dtype=torch.int64, device=device) if told else None
    for function in (cross_entropy_sum, token_losses):
        value = function(mine[0], mine[1], targets, bias=mine[2], target_positions=wanted).sum()
        assert value.item() == 0
        value.backward()
        for t in mine:
            assert t.grad is not None
            assert (t.grad == 0).all()


# --- on the device only --------------------------------------------------------------------------------------------

if not INTERPRETED:

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    class TestOnDevice:
        @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
        def test_the_host_never_waits(self) -> None:
            inputs, targets, _ = _case((2, 300, 64, 1000), 0.4, True, torch.bfloat16, "cuda")
            wanted = (targets.flatten() != IGNORE).nonzero()[:, 0]
            mine = [t.requires_grad_() for t in inputs]
            for told in (None, wanted):
                for mode in ("default", "error"):  # the first time, kernels are compiled
                    torch.cuda.set_sync_debug_mode(mode)
                    try:
                        cross_entropy_sum(mine[0], mine[1], targets, bias=mine[2], target_positions=told).backward()
                    finally:
                        torch.cuda.set_sync_debug_mode("default")

        def test_a_real_vocabulary(self) -> None:
            """Sizes at which blocks, chunks and tiles are those of a real run; V is odd, as GPT-2's."""
            inputs, targets, _ = _case((4, 1024, 256, 50257), 0.1, False, torch.bfloat16, "cuda")
            expected, gradients = _expected(inputs, targets, torch.ones(targets.shape, device="cuda"), 1.0, None)
            before = module._KERNEL_BYTES
            mine = [t.requires_grad_() for t in inputs]
            for n_bytes in (before, before // 8):
                module._KERNEL_BYTES = n_bytes
                try:
                    value = cross_entropy_sum(mine[0], mine[1], targets)
                finally:
                    module._KERNEL_BYTES = before
                got = torch.autograd.grad(value, mine)
                torch.testing.assert_close(value.detach().double(), expected.sum(), rtol=1e-4, atol=0)
                for mine_, gradient in zip(got, gradients, strict=True):
                    _close(mine_, gradient, torch.bfloat16)

        def test_memory_is_a_chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
            inputs, targets, _ = _case((4, 1024, 64, 50304), 0.0, False, torch.bfloat16, "cuda")
            monkeypatch.setattr(module, "_KERNEL_BYTES", 2**26)
            mine = [inputs[0].requires_grad_(), inputs[1]]
            peak = 0
            for _ in range(2):  # the first time, libraries take their workspaces
                torch.cuda.reset_peak_memory_stats()
                start = torch.cuda.memory_allocated()
                cross_entropy_sum(mine[0], mine[1], targets).backward()
                peak = torch.cuda.max_memory_allocated() - start
            assert peak < 2**26 + 128 * 50304 * 2 + 2**23

    # --- without a device ------------------------------------------------------------------------------------------

    needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

    @needs_triton
    def test_all_of_it_in_tritons_interpreter() -> None:
        assert passed_in_interpreter(__file__, "-k", "not stand-in") > 80

    @needs_triton
    def test_it_compiles_for_an_h100(tmp_path: Path) -> None:
        """Also where there is none; and elements are read and written eight at a time, whatever V is."""
        code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from litlm.ops import cross_entropy_triton as kernels
types = dict(logits="*bf16", targets="*i64", losses="*fp32", V="i32", stride="i32", scale="fp32", softcap="fp32")
aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1, 2, 4)}
for capped in (False, True):
    constants = dict(CAPPED=capped, GRADIENT=True, BLOCK=kernels.BLOCK)
    source = ASTSource(kernels._softmax_gradient, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    options = dict(num_warps=kernels.WARPS, enable_fp_fusion=True)
    print("=====", triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""
        env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        _, *made = done.stdout.split("=====")
        assert len(made) == 2
        for ptx in made:
            assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
            assert re.search(r"st\.global\S*\.v4\.b32", ptx)
            assert not re.search(r"st\.global\S*\.b16", ptx)
