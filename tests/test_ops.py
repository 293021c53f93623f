"""The CPU product against float64, in every shape a model could hand it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.ops import linear as ops

pytestmark = pytest.mark.skipif(not ops._ONEDNN, reason="this PyTorch has no oneDNN product; ops.linear is F.linear")
SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (2, 1, 3), (1, 1), (64, 2)]


def _tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert (actual is None) == (expected is None)
    if actual is not None and expected is not None:
        assert actual.shape == expected.shape
        assert actual.dtype == torch.float32
        # Up to 65 terms, products of standard normals: 65 roundoffs (2**-24) of their absolute values' sum, about 41.
        torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=2e-4)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Value and all wanted gradients against float64 F.linear."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    out, expected = ops.linear(x, weight, bias), F.linear(*doubles)
    _close(out.detach(), expected.detach())
    assert out.requires_grad == expected.requires_grad
    if out.requires_grad:
        grad = _tensor(*out.shape, seed=9)
        wanted = [i for i, t in enumerate(tensors) if t.requires_grad]
        actual = torch.autograd.grad(out, [tensors[i] for i in wanted], grad)
        for a, e in zip(
            actual, torch.autograd.grad(expected, [doubles[i] for i in wanted], grad.double()), strict=True
        ):
            _close(a, e)


@pytest.mark.parametrize("rows", SHAPES, ids=str)
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (3, 17), (33, 5), (64, 96)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward_and_backward(rows: tuple[int, ...], n_in: int, n_out: int, with_bias: bool) -> None:
    for wants in itertools.product((False, True), repeat=3):
        x, weight = _tensor(*rows, n_in).requires_grad_(wants[0]), _tensor(n_out, n_in, seed=1).requires_grad_(wants[1])
        _check(x, weight, _tensor(n_out, seed=2).requires_grad_(wants[2]) if with_bias else None)


def test_no_rows() -> None:
    for rows in ((0,), (2, 0), (0, 3)):
        x, weight = _tensor(*rows, 4).requires_grad_(), _tensor(5, 4).requires_grad_()
        out = ops.linear(x, weight)
        assert out.shape == (*rows, 5)
        out.sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("with_bias", [False, True])
def test_inputs_that_are_not_contiguous(with_bias: bool) -> None:
    bias = _tensor(6, seed=5)[::2] if with_bias else None
    for x, weight in [
        (_tensor(8, 5).t(), _tensor(3, 8, seed=1)),
        (_tensor(5, 16)[:, ::2], _tensor(8, 3, seed=1).t()),
        (_tensor(4, 2, 8).transpose(0, 1), _tensor(6, 8, seed=1)[::2]),
        (_tensor(8).expand(3, 8), _tensor(3, 16, seed=1)[:, 1::2]),
        (_tensor(2, 3, 8, 1)[..., 0].permute(1, 0, 2), _tensor(8, seed=1).expand(3, 8)),
    ]:
        for wants in (False, True):
            _check(x.detach().requires_grad_(wants), weight.detach().requires_grad_(wants), bias)


def test_a_gradient_that_is_not_contiguous() -> None:
    x, weight = _tensor(5, 8).requires_grad_(), _tensor(3, 8, seed=1).requires_grad_()
    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
    (ops.linear(x, weight).t() * _tensor(3, 5, seed=2)).sum().backward()
    (F.linear(*doubles).t() * _tensor(3, 5, seed=2).double()).sum().backward()
    _close(x.grad, doubles[0].grad)
    _close(weight.grad, doubles[1].grad)
    x.grad = None
    ops.linear(x, weight).sum().backward()  # an expanded gradient
    _close(x.grad, weight.detach().sum(0).expand(5, 8))


def test_used_twice() -> None:
    """A weight in two places of one graph, and a result that feeds itself."""
    x, weight = _tensor(4, 6).requires_grad_(), _tensor(6, 6, seed=1).requires_grad_()
    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]

    def twice(linear, x: Tensor, weight: Tensor) -> Tensor:
        y = linear(x, weight)
        return (linear(torch.tanh(y), weight) * y + linear(x, weight)).sum()

    twice(ops.linear, x, weight).backward()
    twice(F.linear, *doubles).backward()
    for mine, double in zip((x, weight), doubles, strict=True):
        _close(mine.grad, double.grad)


def test_without_gradients() -> None:
    x, weight, bias = _tensor(4, 6).requires_grad_(), _tensor(3, 6, seed=1).requires_grad_(), _tensor(3, seed=2)
    expected = F.linear(x.detach().double(), weight.detach().double(), bias.double())
    with torch.no_grad():
        out = ops.linear(x, weight, bias)
    assert not out.requires_grad
    _close(out, expected)
    with torch.inference_mode():
        _close(ops.linear(x, weight, bias), expected)
        made_inside = torch.nn.Parameter(weight.clone())
    _close(ops.linear(x.detach(), made_inside.detach(), bias), expected)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, weight = _tensor(4, 6).requires_grad_(), _tensor(3, 6, seed=1).requires_grad_()
    out = ops.linear(x, weight).square().sum()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_f_linear(dtype: torch.dtype) -> None:
    x, weight, bias = _tensor(4, 6).to(dtype), _tensor(3, 6, seed=1).to(dtype), _tensor(3, seed=2).to(dtype)
    assert torch.equal(ops.linear(x, weight, bias), F.linear(x, weight, bias))


def test_autocast_is_respected() -> None:
    x, weight = _tensor(4, 6), _tensor(3, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, weight).dtype == torch.bfloat16


def test_meta_tensors_have_shapes_only() -> None:
    assert ops.linear(torch.empty(2, 3, 4, device="meta"), torch.empty(5, 4, device="meta")).shape == (2, 3, 5)


def test_under_compile_it_is_f_linear() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x, weight = _tensor(4, 6), _tensor(3, 6, seed=1).requires_grad_()
    out = torch.compile(ops.linear, backend=backend, fullgraph=True)(x, weight)
    assert len(seen) == 1
    assert "linear" in seen[0]
    assert "mkldnn" not in seen[0]
    _close(out.detach(), F.linear(x.double(), weight.detach().double()))


def test_the_module() -> None:
    module = ops.Linear(6, 3)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    x = _tensor(4, 6)
    _close(module(x).detach(), F.linear(x.double(), module.weight.detach().double(), module.bias.detach().double()))
