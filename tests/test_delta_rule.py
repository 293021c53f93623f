"""The gated delta rule and the short convolution against float64 formulas, one token at a time; on CUDA, or else in
Triton's interpreter, their kernels as well.
"""

from __future__ import annotations

import os
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

from litlm.ops import delta_rule
from litlm.ops.conv import causal_conv, conv_step
from litlm.ops.delta_rule import CHUNK, DeltaRule, chunked, step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if ON_CUDA else "cpu"
with_kernels = pytest.mark.skipif(not (ON_CUDA or INTERPRETED), reason="runs in the interpreter, in one test below")
HALF = 1.2e-2 if INTERPRETED else 4e-3  # the interpreter cuts bits off where a GPU rounds to bf16
SHAPES = [  # B, T, key heads, value heads, key size, value size
    (2, 1, 2, 4, 8, 6), (1, CHUNK - 1, 1, 1, 16, 16), (3, CHUNK, 2, 2, 8, 12), (2, CHUNK + 1, 3, 6, 5, 7),
    (2, 3 * CHUNK + 11, 2, 4, 16, 24),
]  # fmt: skip


def make(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> DeltaRule:
    """Random inputs. scale: of the decay."""
    B, T, K, H, D, E = shape
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, T, *size, generator=gen) for size in ((K, D), (K, D), (H, E)))
    decay, beta = -scale * torch.rand(B, T, H, generator=gen), 2 * torch.rand(B, T, H, generator=gen)
    return DeltaRule(q.to(dtype), k.to(dtype), v.to(dtype), decay, beta.to(dtype))


def by_token(inputs: DeltaRule, state: Tensor | None = None, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule as its paper states it, in float64."""
    q, k, v, decay, beta = (x.double() for x in inputs)
    B, T, H, E = v.shape
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    q, k = (x.repeat_interleave(H // x.size(2), 2) for x in (q, k))
    S = torch.zeros(B, H, q.size(-1), E, dtype=torch.float64) if state is None else state.double()
    outputs = []
    for t in range(T):
        if documents is not None and t:
            S = S * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        S = S * decay[:, t].exp()[..., None, None]
        read = torch.einsum("bhde,bhd->bhe", S, k[:, t])
        S = S + torch.einsum("bhd,bhe->bhde", k[:, t], beta[:, t, :, None] * (v[:, t] - read))
        outputs.append(torch.einsum("bhde,bhd->bhe", S, q[:, t]) * q.size(-1) ** -0.5)
    return torch.stack(outputs, 1), S


def close(actual: Tensor, expected: Tensor, rtol: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm()
    assert error <= rtol, f"{error:.1e}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_are_the_rule(shape: tuple[int, ...], seed: int) -> None:
    inputs, state = make(shape, seed), torch.randn(shape[0], shape[3], *shape[4:])
    for before in (None, state):
        y, after = chunked(inputs, before)
        expected, last = by_token(inputs, before)
        close(y, expected)
        close(after, last)


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_no_decay_and_a_decay_that_would_overflow(scale: float) -> None:
    inputs = make((1, 2 * CHUNK, 1, 2, 8, 8), scale=scale)
    y, after = chunked(inputs)
    assert y.isfinite().all()
    expected, last = by_token(inputs)
    close(y, expected)
    close(after, last)


def test_tokens_one_by_one() -> None:
    inputs = make((2, 9, 2, 4, 8, 6))
    expected, last = by_token(inputs)
    state, outputs = None, []
    for t in range(9):
        y, state = step(DeltaRule(*(x[:, t : t + 1] for x in inputs)), state)
        outputs.append(y)
    assert state is not None
    close(torch.cat(outputs, 1), expected)
    close(state, last)


@pytest.mark.parametrize("cut", [1, CHUNK, CHUNK + 3, 2 * CHUNK + 1])
def test_a_row_in_two_parts(cut: int) -> None:
    inputs = make((2, 2 * CHUNK + 7, 1, 3, 8, 6))
    expected, last = by_token(inputs)
    first, state = DeltaRule(*(x[:, :cut] for x in inputs)).run()
    second, state = DeltaRule(*(x[:, cut:] for x in inputs)).run(state)
    close(torch.cat((first, second), 1), expected)
    close(state, last)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_gradients(shape: tuple[int, ...]) -> None:
    inputs, gen = make(shape), torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=gen) for t in by_token(inputs)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = torch.autograd.grad([(a * w).sum() for a, w in zip(DeltaRule(*leaves).run(), weights, strict=True)], leaves)
    wide = [x.double().requires_grad_() for x in inputs]
    outputs = by_token(DeltaRule(*wide))
    expected = torch.autograd.grad([(a * w).sum() for a, w in zip(outputs, weights, strict=True)], wide)
    for actual, wanted in zip(found, expected, strict=True):
        close(actual, wanted, 1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_documents_do_not_see_each_other(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    inputs = make((2, 3 * CHUNK + 5, 2, 4, 8, 6), seed)
    documents = (torch.rand(2, 3 * CHUNK + 5, generator=gen) < (0.02, 0.2, 1.0)[seed]).cumsum(1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    y, after = DeltaRule(*leaves).run(documents=documents)
    wide = [x.double().requires_grad_() for x in inputs]
    expected, last = by_token(DeltaRule(*wide), documents=documents)
    close(y, expected.detach())
    close(after, last.detach())
    weights = torch.randn(y.shape, generator=gen)
    found = torch.autograd.grad((y * weights).sum(), leaves)
    wanted = torch.autograd.grad((expected * weights).sum(), wide, allow_unused=True)
    for actual, reference in zip(found, wanted, strict=True):
        if reference is not None and reference.norm() > 0:
            close(actual, reference, 1e-4)


def test_a_document_is_as_exact_behind_others_that_decay() -> None:
    """Decays are not differences of those since the chunk began, which have the rounding of all before."""
    inputs = make((2, CHUNK + 20, 1, 2, 8, 6), scale=200.0)
    decay = inputs.log_decay.clone()
    decay[:, 40:] *= 1e-3
    inputs, documents = inputs._replace(log_decay=decay), (torch.arange(CHUNK + 20) >= 40).long().expand(2, -1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    y, after = DeltaRule(*leaves).run(documents=documents)
    expected, last = by_token(inputs, documents=documents)
    close(y[:, 40:], expected[:, 40:], 1e-6)
    close(after, last, 1e-6)
    for grad in torch.autograd.grad(y[:, 40:].square().sum(), leaves):
        assert (grad[:, :40] == 0).all()
        assert (grad[:, 40:] != 0).any()


@pytest.mark.parametrize("kept", [1, 20, CHUNK, CHUNK + 20])
def test_held_tokens_leave_state_and_outputs_bit_for_bit(kept: int) -> None:
    inputs = make((3, 2 * CHUNK, 2, 4, 8, 6))
    valid = torch.arange(2 * CHUNK)[None].expand(3, -1) < kept
    y, state = inputs.masked(valid).run()
    alone, last = chunked(DeltaRule(*(x[:, :kept] for x in inputs)))
    assert torch.equal(y[:, :kept], alone)
    assert torch.equal(state, last)
    one = DeltaRule(*(x[:, :1] for x in inputs)).masked(torch.zeros(3, 1, dtype=torch.bool))
    assert torch.equal(one.run(last)[1], last)


def test_a_backward_pass_keeps_little_more_than_the_inputs() -> None:
    inputs = DeltaRule(*(x.requires_grad_() for x in make((1, 8 * CHUNK, 2, 2, 32, 32))))
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        inputs.run()
    assert sum(kept.values()) <= 2 * sum(x.untyped_storage().nbytes() for x in inputs)


FLA_RULE = """
def chunk_gated_delta_rule(q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
    assert output_final_state and use_qk_l2norm_in_kernel
    {}
"""


@pytest.mark.parametrize(
    ("version", "body", "problem"),
    [
        ("0.6.0", "return v + 1, initial_state", None),
        ("0.10.1", "return v + 1, initial_state", None),
        ("0.5.1", "return v + 1, initial_state", "(ImportError: this is 0.5.1)"),
        ("0.6.0", "raise RuntimeError('Triton is\\n  too old')", "(RuntimeError: Triton is too old)"),
        (None, "", "(ModuleNotFoundError: No module named 'einops_that_is_missing')"),
    ],
)
def test_an_installed_fla_is_used_or_a_line_says_why_not(
    version: str | None, body: str, problem: str | None, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    place = tmp_path / "fla" / "ops"
    place.mkdir(parents=True)
    start = "import einops_that_is_missing" if version is None else f"__version__ = {version!r}"
    (tmp_path / "fla" / "__init__.py").write_text(start)
    (place / "__init__.py").touch()
    (place / "gated_delta_rule.py").write_text(FLA_RULE.format(body))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(delta_rule, "_HAS_FLA", True)
    monkeypatch.setattr(delta_rule, "_can_use_fla", lambda inputs: delta_rule._HAS_FLA)  # on a CPU, too
    inputs, state = make((2, 9, 1, 2, 8, 6), dtype=torch.bfloat16), torch.ones(2, 2, 8, 6)
    try:
        found = [inputs.run(state) for _ in range(2)]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
            del sys.modules[name]
    expected = chunked(inputs, state) if problem else (inputs.v + 1, state)
    for y, after in found:
        assert torch.equal(y, expected[0])
        assert torch.equal(after, expected[1])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (problem is not None)
    assert not problem or (problem in lines[0] and "flash-linear-attention>=0.6'" in lines[0])


def test_running_out_of_memory_is_no_reason_to_leave_fla_out(monkeypatch: Any) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("full")

    fake = SimpleNamespace(__version__="0.6.0", chunk_gated_delta_rule=fail)
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(delta_rule, "_HAS_FLA", True)
    monkeypatch.setattr(delta_rule, "_can_use_fla", lambda inputs: True)
    with pytest.raises(torch.OutOfMemoryError):
        make((1, 9, 1, 1, 8, 8), dtype=torch.bfloat16).run()
    assert delta_rule._HAS_FLA


# --- the convolution ------------------------------------------------------------------------------------------------


def conv_by_token(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, positions: Tensor) -> Tensor:
    """In float64. positions: (B, T), of each token in its document."""
    (B, T, C), W = x.shape, weight.size(1)
    padded, y = torch.cat((before, x), 1).double(), torch.zeros(B, T, C, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for j in range(min(W, int(positions[b, t]) + 1)):
                y[b, t] += weight[:, W - 1 - j].double() * padded[b, W - 1 + t - j]
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("width", [2, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 12])
def test_convolution(width: int, length: int) -> None:
    gen = torch.Generator().manual_seed(width)
    x, before = (torch.randn(2, n, 5, generator=gen) for n in (length, width - 1))
    weight, bias = torch.randn(5, width, generator=gen), torch.randn(5, generator=gen)
    far = torch.full((2, length), 99)
    close(causal_conv(x, weight, bias, before=before), conv_by_token(x, weight, bias, before, far), 1e-6)
    zeros = torch.zeros_like(before)
    close(causal_conv(x, weight), conv_by_token(x, weight, None, zeros, far), 1e-6)
    # as PyTorch's own convolution has it
    own = F.conv1d(x.mT.double(), weight[:, None].double(), bias.double(), padding=width - 1, groups=5)
    close(causal_conv(x, weight, bias), own[..., :length].mT, 1e-6)
    if length == 1:
        moved = before.clone()
        close(conv_step(x, weight, bias, moved), conv_by_token(x, weight, bias, before, far), 1e-6)
        assert torch.equal(moved, torch.cat((before, x), 1)[:, 1:])


def test_convolution_of_packed_rows() -> None:
    gen = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 11, 3, generator=gen), torch.randn(3, 4, generator=gen)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4], [*range(11)]])
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    wide = [t.double().requires_grad_() for t in (x, weight)]
    y = causal_conv(*leaves, positions=positions)
    expected = conv_by_token(*wide, None, torch.zeros(2, 3, 3), positions)
    close(y, expected.detach(), 1e-6)
    for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), wide),
                    strict=True):  # fmt: skip
        close(a, b, 1e-5)


def test_convolution_in_half_precision_rounds_once() -> None:
    gen = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=gen).bfloat16() for size in ((2, 9, 8), (8, 4)))
    exact = conv_by_token(x, weight, None, torch.zeros(2, 3, 8), torch.full((2, 9), 99))
    assert torch.equal(causal_conv(x, weight), exact.bfloat16())


# --- kernels --------------------------------------------------------------------------------------------------------


def _on_device(inputs: DeltaRule) -> DeltaRule:
    return DeltaRule(*(x.to(DEVICE) for x in inputs))


@pytest.mark.gpu
@with_kernels
@pytest.mark.parametrize("shape", [(2, 3, 2, 5, 7), (1, 2, 4, 16, 24), (2, 1, 1, 20, 70)])
def test_scan_kernel(shape: tuple[int, ...]) -> None:
    """Chunks of 16 tokens, and gradients of all that it returns."""
    from litlm.ops.delta_rule_triton import scan

    M, N, heads, D, E = shape
    gen = torch.Generator().manual_seed(0)
    sizes = [(M, heads, N, 16, E), (M, heads, N, 16, D), (M, heads, N, 16, D), (M, heads, N, 1, 1), (M, heads, D, E)]
    tensors = [0.5 * torch.randn(size, generator=gen) for size in sizes]
    tensors[3] = tensors[3].sigmoid()
    leaves = [t.to(DEVICE).requires_grad_() for t in tensors]
    wide = [t.double().requires_grad_() for t in tensors]
    state, states, corrections = wide[4], [], []
    for n in range(N):
        states.append(state)
        corrections.append(wide[0][:, :, n] - wide[1][:, :, n] @ state)
        state = state * wide[3][:, :, n] + wide[2][:, :, n].mT @ corrections[-1]
    expected = torch.stack(states, 2), torch.stack(corrections, 2), state
    found = scan(*leaves, tf32=False)
    weights = [torch.randn(t.shape, generator=gen) for t in found]
    for actual, wanted in zip(found, expected, strict=True):
        close(actual.detach().cpu(), wanted.detach(), 1e-5)
    loss = sum((a * w.to(DEVICE)).sum() for a, w in zip(found, weights, strict=True))
    reference = sum((a * w).sum() for a, w in zip(expected, weights, strict=True))
    grads: Any = torch.autograd.grad(loss, leaves), torch.autograd.grad(reference, wide)  # type: ignore[arg-type]
    for actual, wanted in zip(*grads, strict=True):
        close(actual.cpu(), wanted, 1e-5)


@pytest.mark.gpu
@with_kernels
def test_inverse_kernel() -> None:
    from litlm.ops.delta_rule_triton import inverse

    system = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.4
    leaf, wide = system.to(DEVICE).requires_grad_(), system.double().requires_grad_()
    expected = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + wide.tril(-1))
    found = inverse(leaf)
    close(found.detach().cpu(), expected.detach(), 1e-5)
    weight = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (a,) = torch.autograd.grad((found * weight.to(DEVICE)).sum(), leaf)
    (b,) = torch.autograd.grad((expected * weight).sum(), wide)
    close(a.cpu(), b, 1e-5)


@pytest.mark.gpu
@with_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1, 2, 6, 5, 7), (1, 1, 1, 2, 16, 40)])
def test_step_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from litlm.ops.delta_rule_triton import step_

    gen = torch.Generator().manual_seed(0)
    inputs, state = make(shape, dtype=dtype), torch.randn(shape[0], shape[3], *shape[4:], generator=gen)
    expected, last = by_token(inputs, state)
    state = state.to(DEVICE)
    y = step_(*_on_device(inputs), state, 1e-6)
    assert y.dtype == dtype
    close(y.cpu(), expected, 1e-5 if dtype == torch.float32 else HALF)
    close(state.cpu(), last, 1e-5)


@pytest.mark.gpu
@with_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta_scale", [1.0, 2.0])
def test_gates_kernel(beta_scale: float, dtype: torch.dtype) -> None:
    """Where softplus is tiny, curved and straight."""
    from litlm.ops.delta_rule_triton import gates as kernel

    gen = torch.Generator().manual_seed(0)
    decay = torch.linspace(-30, 60, 3 * 7 * 11).view(3, 7, 11).to(dtype)
    beta, rate, bias = (torch.randn(size, generator=gen).to(dtype) for size in ((3, 7, 11), (11,), (11,)))
    log_decay, scaled = kernel(*(t.to(DEVICE) for t in (decay, beta, rate, bias)), beta_scale)
    exact = -rate.double().exp() * F.softplus(decay.double() + bias.double())
    assert log_decay.dtype == torch.float32
    assert scaled.dtype == dtype
    close(log_decay.cpu(), exact, 1e-5)
    close(scaled.cpu(), beta.double().sigmoid() * beta_scale, 1e-6 if dtype == torch.float32 else HALF)


@pytest.mark.gpu
@with_kernels
@pytest.mark.parametrize("kind", ["offset", "plain", "round_first", "gate", "round_first gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 300])
def test_norm_kernel(size: int, dtype: torch.dtype, kind: str) -> None:
    from litlm.ops.norm_triton import rms_norm as kernel

    gen = torch.Generator().manual_seed(size)
    x, gate, weight = (torch.randn(s, generator=gen).to(dtype) for s in ((2, 5, size), (2, 5, size), (size,)))
    gates = gate if "gate" in kind else None
    y = kernel(x.to(DEVICE).mT.contiguous().mT, weight.to(DEVICE), 1e-3, kind == "offset", "round_first" in kind,
               None if gates is None else gates.to(DEVICE))  # fmt: skip
    assert y.dtype == dtype
    expected = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-3)
    if "round_first" in kind:
        expected = (expected.to(dtype) * weight).double()
    else:
        expected = expected * (weight.double() + (kind == "offset"))
    expected = expected if gates is None else expected * F.silu(gates.double())
    close(y.cpu(), expected, 1e-6 if dtype == torch.float32 else HALF)


@pytest.mark.gpu
@with_kernels
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_kernel(width: int, dtype: torch.dtype) -> None:
    from litlm.ops.conv_triton import conv_step as kernel

    gen = torch.Generator().manual_seed(width)
    x, before = (torch.randn(3, n, 301, generator=gen).to(dtype) for n in (1, width - 1))
    weight, bias = torch.randn(301, width, generator=gen).to(dtype), torch.randn(301, generator=gen).to(dtype)
    expected = conv_by_token(x, weight, bias, before, torch.full((3, 1), 99))
    moved = before.clone().to(DEVICE)
    y = kernel(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), moved)
    close(y.cpu(), expected, 1e-6 if dtype == torch.float32 else HALF)
    assert torch.equal(moved.cpu(), torch.cat((before, x), 1)[:, 1:])


@pytest.mark.gpu
@pytest.mark.skipif(not ON_CUDA, reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_rule_on_cuda(dtype: torch.dtype, rtol: float, packed: bool) -> None:
    for shape in [*SHAPES[1:], (1, 200, 2, 2, 96, 192), (1, 130, 1, 2, 128, 128)]:
        inputs = make(shape, dtype=dtype)
        leaves = [x.to(DEVICE).requires_grad_() for x in inputs]
        wide = [x.double().requires_grad_() for x in inputs]
        if packed:  # the last document begins inside a chunk
            cuts = sorted({0, 1, shape[1] // 3, shape[1] - 5} & {*range(shape[1])})
            document = torch.bucketize(torch.arange(shape[1]), torch.tensor(cuts), right=True)[None]
            y, after = DeltaRule(*leaves).run(documents=document.expand(shape[0], -1).to(DEVICE))
            ends = [*cuts[1:], shape[1]]
            parts = [by_token(DeltaRule(*(x[:, a:b] for x in wide))) for a, b in zip(cuts, ends, strict=True)]
            expected, last = torch.cat([part for part, _ in parts], 1), parts[-1][1]
        else:
            y, after = DeltaRule(*leaves).run()
            expected, last = by_token(DeltaRule(*wide))
        close(y.detach().cpu(), expected.detach(), rtol)
        close(after.detach().cpu(), last.detach(), rtol)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        found = torch.autograd.grad((y * weight.to(DEVICE)).sum(), leaves)
        wanted = torch.autograd.grad((expected * weight).sum(), wide)
        for actual, reference in zip(found, wanted, strict=True):
            close(actual.cpu(), reference, 5 * rtol)


if not (INTERPRETED or ON_CUDA) and find_spec("triton") is not None:

    def test_kernels_in_the_interpreter() -> None:
        assert passed_in_interpreter(__file__, "-k", "kernel", "-m", "") >= 36
