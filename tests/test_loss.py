"""The chunked loss against torch's cross_entropy in float64: value, and gradients of both inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.data.base import IGNORE
from litlm.ops import cross_entropy as module
from litlm.ops.cross_entropy import cross_entropy_sum, token_losses


def _case(B: int, T: int, C: int, V: int, seed: int, masked: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(B, T, C, generator=gen), torch.randn(V, C, generator=gen) * 0.7
    targets = torch.randint(V, (B, T), generator=gen)
    return hidden, weight, targets.masked_fill(torch.rand(B, T, generator=gen) < masked, IGNORE)


def _reference(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (hidden @ weight.t()).flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss * scale, (hidden, weight))


SIZES = [(1, 1, 1, 2), (2, 7, 5, 11), (3, 13, 16, 101), (1, 50, 33, 3), (5, 1, 8, 64)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
@pytest.mark.parametrize("masked", [0.0, 0.5, 0.95])
def test_value_and_gradients(sizes, chunk_rows: int, masked: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = _case(*sizes, seed=sum(sizes), masked=masked)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * sizes[3] * chunk_rows + 1)
    scale = 0.37
    expected, grad_hidden, grad_weight = _reference(hidden, weight, targets, scale)
    for want_hidden, want_weight in ((True, True), (True, False), (False, True), (False, False)):
        h, w = hidden.clone().requires_grad_(want_hidden), weight.clone().requires_grad_(want_weight)
        value = cross_entropy_sum(h, w, targets)
        assert value.dtype == torch.float32
        assert value.shape == ()
        torch.testing.assert_close(value.double().detach(), expected, rtol=1e-6, atol=1e-5)
        assert value.requires_grad == (want_hidden or want_weight)
        if value.requires_grad:
            (value * scale).backward()
        for tensor, wanted, grad in ((h, want_hidden, grad_hidden), (w, want_weight, grad_weight)):
            assert (tensor.grad is not None) == wanted
            if tensor.grad is not None:
                torch.testing.assert_close(tensor.grad.double(), grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [2, 1000])
@pytest.mark.parametrize(("scale", "softcap", "biased"), [(0.3, None, False), (1.0, 2.5, False), (1.7, 4.0, True)])
def test_heads_with_a_bias_scale_and_cap(
    scale: float, softcap: float | None, biased: bool, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = _case(3, 7, 6, 19, seed=5, masked=0.3)
    bias = torch.randn(19, generator=torch.Generator().manual_seed(6)) if biased else None
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 19 * chunk_rows + 1)
    tensors = [t for t in (hidden, weight, bias) if t is not None]
    wide = [t.double().requires_grad_() for t in tensors]
    logits = wide[0] @ wide[1].t() + (wide[2] if biased else 0)
    logits = logits * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected.backward()
    mine = [t.clone().requires_grad_() for t in tensors]
    value = cross_entropy_sum(mine[0], mine[1], targets, bias=mine[2] if biased else None, scale=scale, softcap=softcap)
    value.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-5)
    for t, reference in zip(mine, wide, strict=True):
        assert t.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(t.grad.double(), reference.grad, rtol=1e-5, atol=1e-5)


def test_everything_ignored() -> None:
    hidden, weight, targets = _case(2, 3, 4, 9, seed=0)
    hidden.requires_grad_()
    weight.requires_grad_()
    value = cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE))
    assert value.item() == 0
    value.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.abs().sum() == weight.grad.abs().sum() == 0


def test_logits_far_out_do_not_overflow() -> None:
    hidden, weight, targets = _case(2, 9, 6, 40, seed=3, masked=0.3)
    hidden = hidden * 300
    expected, grad, _ = _reference(hidden, weight, targets, 1.0)
    hidden.requires_grad_()
    value = cross_entropy_sum(hidden, weight, targets)
    value.backward()
    torch.testing.assert_close(value.double().detach(), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(hidden.grad.double(), grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunk_rows", [5, 1000])
def test_bf16(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs rounded to bf16, sums in fp32: the value is that of the rounded logits, gradients within bf16's step."""
    hidden, weight, targets = _case(4, 32, 64, 333, seed=1, masked=0.2)
    hidden, weight = hidden.bfloat16(), (weight / 4).bfloat16()
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 333 * chunk_rows)
    expected, grad_hidden, grad_weight = _reference(hidden, weight, targets, 1.0)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = cross_entropy_sum(h, w, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double().detach(), expected, rtol=2e-3, atol=0)
    value.backward()
    for tensor, grad in ((h, grad_hidden), (w, grad_weight)):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad.double() - grad).norm() / grad.norm() < 1e-2


def test_numeric_derivative() -> None:
    """Independent of autograd: a central difference of the float64 loss along random directions."""
    hidden, weight, targets = _case(2, 5, 6, 13, seed=4, masked=0.2)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    cross_entropy_sum(h, w, targets).backward()
    assert h.grad is not None
    assert w.grad is not None
    for seed in range(5):
        gen = torch.Generator().manual_seed(seed)
        dh, dw = (torch.randn(t.shape, generator=gen).double() for t in (h, w))
        step = 1e-5
        ends = [_reference(hidden.double() + s * dh, weight.double() + s * dw, targets, 1.0)[0] for s in (step, -step)]
        slope = (ends[0] - ends[1]) / (2 * step)
        mine = (h.grad.double() * dh).sum() + (w.grad.double() * dw).sum()
        torch.testing.assert_close(mine, slope, rtol=1e-4, atol=1e-4)


def test_no_more_than_a_chunk_of_logits_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal widest
        out = F.linear(x, weight, bias)
        widest = max(widest, out.numel() if out.size(-1) == 500 else 0)
        return out

    monkeypatch.setattr(module, "linear", spy)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 500 * 8)
    hidden, weight, targets = _case(2, 100, 4, 500, seed=5)
    hidden.requires_grad_()
    value = cross_entropy_sum(hidden, weight, targets)
    assert widest == 8 * 500
    saved = value.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert sum(t.numel() for t in saved if t is not None) == hidden.numel()


def test_a_second_derivative_is_refused_not_wrong() -> None:
    hidden, weight, targets = _case(2, 3, 4, 9, seed=6)
    hidden.requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


# --- each token's own loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
@pytest.mark.parametrize("masked", [0.0, 0.6])
@pytest.mark.parametrize(
    ("scale", "softcap", "biased"), [(1.0, None, False), (0.3, None, True), (1.0, 2.5, False), (1.7, 4.0, True)]
)
def test_each_tokens_loss_and_gradients(
    sizes, chunk_rows: int, masked: float, scale: float, softcap: float | None, biased: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hidden, weight, targets = _case(*sizes, seed=sum(sizes) + 1, masked=masked)
    gen = torch.Generator().manual_seed(sizes[3])
    bias = torch.randn(sizes[3], generator=gen) if biased else None
    incoming = torch.randn(targets.shape, generator=gen)  # another one for each token, of either sign
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * sizes[3] * chunk_rows + 1)
    tensors = [t for t in (hidden, weight, bias) if t is not None]
    wide = [t.double().requires_grad_() for t in tensors]
    logits = (wide[0] @ wide[1].t() + (wide[2] if biased else 0)) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    chosen = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(targets == IGNORE, 0.0, -chosen)
    (expected * incoming).sum().backward()
    for want in ((True,) * 3, (True, False, False), (False, True, False), (False, False, True), (False,) * 3):
        mine = [t.clone().requires_grad_(w) for t, w in zip(tensors, want, strict=False)]
        value = token_losses(mine[0], mine[1], targets, bias=mine[2] if biased else None, scale=scale, softcap=softcap)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
        assert value.requires_grad == any(want[: len(mine)])
        if value.requires_grad:
            (value * incoming).sum().backward()
        for t, w, reference in zip(mine, want, wide, strict=False):
            assert (t.grad is not None) == w
            if t.grad is not None:
                assert reference.grad is not None
                torch.testing.assert_close(t.grad.double(), reference.grad, rtol=1e-5, atol=2e-5)


def test_each_tokens_loss_in_bf16() -> None:
    hidden, weight, targets = _case(4, 32, 64, 333, seed=1, masked=0.2)
    hidden, weight = hidden.bfloat16(), (weight / 4).bfloat16()
    incoming = torch.randn(targets.shape, generator=torch.Generator().manual_seed(2))
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    expected = F.cross_entropy(
        (wide[0] @ wide[1].t()).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(targets.shape)
    (expected * incoming).sum().backward()
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = token_losses(h, w, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach().double(), expected.detach(), rtol=1e-2, atol=5e-2)
    (value * incoming).sum().backward()
    for tensor, reference in ((h, wide[0]), (w, wide[1])):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad.double() - reference.grad).norm() / reference.grad.norm() < 2e-2


def test_no_more_than_a_chunk_of_logits_is_alive_for_each_tokens_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal widest
        out = F.linear(x, weight, bias)
        widest = max(widest, out.numel() if out.size(-1) == 500 else 0)
        return out

    monkeypatch.setattr(module, "linear", spy)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 500 * 8)
    hidden, weight, targets = _case(2, 100, 4, 500, seed=5)
    hidden.requires_grad_()
    weight.requires_grad_()
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t.numel()), t)[1], lambda t: t):
        value = token_losses(hidden, weight, targets)
    value.sum().backward()
    assert widest == 8 * 500
    assert sum(held) <= 2 * hidden.numel() + weight.numel() + targets.numel()


def test_no_token_has_a_loss_of_its_own() -> None:
    hidden, weight, targets = _case(2, 3, 4, 9, seed=0)
    hidden.requires_grad_()
    weight.requires_grad_()
    value = token_losses(hidden, weight, torch.full_like(targets, IGNORE))
    assert value.tolist() == [[0.0] * 3] * 2
    value.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.abs().sum() == weight.grad.abs().sum() == 0
