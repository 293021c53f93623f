"""Attention beyond the fused kernels (caps, sinks, ALiBi, windows, chunks) against a float64 formula."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from litlm.context.base import visible
from litlm.ops import sdpa as module
from litlm.ops.sdpa import (
    AttentionSpec,
    alibi_slopes,
    attention,
    can_use_flex_attention,
    flex_attention,
    make_block_mask,
)


def _reference(q: Tensor, k: Tensor, v: Tensor, window: Any, chunk: Any, **softmax: Any) -> Tensor:
    """One query of one head at a time."""
    q, k, v = q.double(), k.double(), v.double()
    B, H, T, D = q.shape
    rows = []
    for b in range(B):
        for h in range(H):
            kv = h // (H // k.size(1))
            for t in range(T):
                first = 0 if window is None else max(0, t - window + 1)
                first = first if chunk is None else max(first, t // chunk * chunk)
                keys, values = k[b, kv, first : t + 1], v[b, kv, first : t + 1]
                scores = keys @ q[b, h, t] * (softmax.get("scale") or D**-0.5)
                if (cap := softmax.get("softcap")) is not None:
                    scores = cap * torch.tanh(scores / cap)
                if (slopes := softmax.get("slopes")) is not None:
                    scores = scores - slopes[h].double() * (t - torch.arange(first, t + 1, device=q.device))
                terms = scores.exp()
                total = terms.sum()
                if (sinks := softmax.get("sinks")) is not None:
                    total = total + sinks[h].double().exp()
                rows.append(terms / total @ values)
    return torch.stack(rows).view(B, H, T, v.size(-1))


KINDS: list[dict[str, Any]] = [
    {},
    dict(softcap=1.5),
    dict(sinks=True),
    dict(slopes=True, scale=0.7),
    dict(softcap=0.8, sinks=True),
    dict(softcap=0.8, slopes=True),
]
PLACES = [(None, None), (3, None), (None, 4)]


def _split(softmax: dict[str, Any]) -> tuple[AttentionSpec, dict[str, Any]]:
    """How all heads attend, and what each has."""
    spec = AttentionSpec(scale=softmax.get("scale"), softcap=softmax.get("softcap"))
    return spec, {key: softmax[key] for key in ("sinks", "slopes") if key in softmax}


def _case(kind: dict[str, Any], shape: tuple[int, ...], seed: int, device: str = "cpu") -> tuple[list[Tensor], Any]:
    B, H, K, T, D, E = shape
    gen = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=gen).to(device)

    tensors = [random(B, H, T, D), random(B, K, T, D), random(B, K, T, E)]
    softmax = dict(kind)
    if "sinks" in softmax:
        softmax["sinks"] = random(H)
    if "slopes" in softmax:
        softmax["slopes"] = alibi_slopes(H, torch.device(device))
    return tensors, softmax


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(k) or "plain")
@pytest.mark.parametrize(("window", "chunk"), PLACES)
@pytest.mark.parametrize("shape", [(2, 4, 2, 11, 6, 6), (1, 6, 1, 7, 8, 5), (1, 3, 3, 1, 4, 4)], ids=str)
def test_plain_products(kind: Any, window: Any, chunk: Any, shape: tuple[int, ...], monkeypatch: Any) -> None:
    (q, k, v), softmax = _case(kind, shape, seed=sum(shape))
    at = torch.arange(shape[3])
    mask = visible(at[None], at, window, chunk)
    expected = _reference(q, k, v, window, chunk, **softmax)
    spec, sinks_and_slopes = _split(softmax)
    torch.testing.assert_close(
        attention(q, k, v, spec, mask=mask, **sinks_and_slopes).double(), expected, rtol=1e-5, atol=1e-6
    )
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(
        attention(q, k, v, spec, mask=bias, **sinks_and_slopes).double(), expected, rtol=1e-5, atol=1e-6
    )
    if window is chunk is None:
        torch.testing.assert_close(
            attention(q, k, v, spec, causal=True, **sinks_and_slopes).double(), expected, rtol=1e-5, atol=1e-6
        )
    # A few rows at a time give the same numbers.
    monkeypatch.setattr(module, "_MAX_SCORES", 2 * shape[0] * shape[1] * shape[3])
    with torch.no_grad():
        split = attention(q, k, v, spec, mask=mask, **sinks_and_slopes)
    torch.testing.assert_close(split.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_head", [1, 2, 5, 8, 12])
def test_alibi_slopes(n_head: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 3), n_head, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(n_head, torch.device("cpu")), theirs)


@pytest.mark.parametrize("kind", KINDS[1:], ids="-".join)
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (37, None), (None, 50)])
def test_flex_formulas(kind: Any, window: Any, chunk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What FlexAttention is asked for, evaluated without its compiler."""
    from torch.nn.attention import flex_attention as torch_module

    monkeypatch.setattr(module, "_flex_kernel", lambda: torch_module.flex_attention)
    (q, k, v), softmax = _case(kind, (1, 4, 2, 131, 16, 16), seed=3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow like this
        spec, sinks_and_slopes = _split(softmax)
        actual = flex_attention(q, k, v, spec, make_block_mask(131, window, chunk, q.device), **sinks_and_slopes)
    expected = _reference(q, k, v, window, chunk, **softmax)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 128, 333, 512])
@pytest.mark.parametrize("window", [None, 1, 100, 128, 300])
@pytest.mark.parametrize("chunk", [None, 50, 128, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_flex_attention(length: int, window: Any, chunk: Any, packed: bool) -> None:
    """Blocks that are left out hold no pair that is seen, blocks that are seen whole no pair that isn't.

    Pairs are written down one by one, from the docstring of `make_block_mask`.
    """
    gen = torch.Generator().manual_seed(length)
    document = None
    if packed:
        ends = torch.rand(2, length, generator=gen) < 4 / length
        document = torch.cat([ends.new_zeros(2, 1), ends[:, :-1]], dim=1).cumsum(1) + torch.tensor([[0], [9]])
    blocks = make_block_mask(length, window, chunk, torch.device("cpu"), document)
    at = torch.arange(length)
    seen = torch.zeros(2 if packed else 1, length, length, dtype=torch.bool)
    for b in range(len(seen)):
        own = torch.zeros(length, dtype=torch.int64) if document is None else document[b]
        first = torch.tensor([int((own == d).nonzero()[0]) for d in own])
        near, same = at[:, None] - at, own[:, None] == own
        seen[b] = (near >= 0) & same
        if window is not None:
            seen[b] &= near < window
        if chunk is not None:
            seen[b] &= (at - first)[:, None] // chunk == (at - first) // chunk
    n = -(-length // 128)
    padded = torch.zeros(len(seen), n * 128, n * 128, dtype=torch.bool)
    padded[:, :length, :length] = seen
    real = torch.zeros(n * 128, n * 128, dtype=torch.bool)
    real[:length, :length] = True
    tiles = padded.view(len(seen), n, 128, n, 128).transpose(2, 3).flatten(3)
    inside = real.view(n, 128, n, 128).transpose(1, 2).flatten(2)
    listed = {}
    for name, count, index in (
        ("partial", blocks.kv_num_blocks, blocks.kv_indices),
        ("whole", blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        listed[name] = torch.zeros(len(seen), n, n, dtype=torch.bool)
        for b, row in ((b, row) for b in range(len(seen)) for row in range(n)):
            listed[name][b, row, index[b, 0, row, : count[b, 0, row]].long()] = True
    assert not (listed["partial"] & listed["whole"]).any()
    assert not (tiles.any(-1) & ~(listed["partial"] | listed["whole"])).any()
    assert (tiles | ~inside)[listed["whole"]].all()
    if length > 300 and window is None and chunk is None and not packed:
        assert listed["whole"].sum() == n * (n - 1) // 2


def test_flex_is_for_cuda_only() -> None:
    q = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
    assert not can_use_flex_attention(q, q, AttentionSpec(softcap=1.0), has_sinks_or_slopes=False)


def test_what_a_spec_makes_visible() -> None:
    for spec, full, first in (
        (AttentionSpec(), True, 0),
        (AttentionSpec(window=3), False, 5),
        (AttentionSpec(window=8), True, 0),
        (AttentionSpec(chunk=3), False, 6),
        (AttentionSpec(window=2, chunk=3), False, 6),
        (AttentionSpec(window=1, chunk=3), False, 7),
    ):
        seen = visible(torch.tensor([[7]]), torch.arange(8), spec.window, spec.chunk)[0, 0, 0]
        assert (spec.is_full(8), spec.first_visible(7)) == (full, first)
        assert int(seen.nonzero()[0]) == first
        assert bool(seen.all()) or not full


def test_the_compiler_is_set_up_for_many_kernels_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    limits: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda kernel: lambda: limits.append(_limit()))
    before, run = _limit(), module._compiled_flex_kernel.__wrapped__()
    run()
    with torch._dynamo.config.patch(recompile_limit=100):
        run()
    assert limits == [64, 100]
    assert _limit() == before < 64


def _limit() -> int:
    return torch._dynamo.config.recompile_limit  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("kind", "window", "chunk"),  # each is compiled for itself: all kinds, all places
    [
        (KINDS[1], None, None),
        (KINDS[2], 100, None),
        (KINDS[3], None, 64),
        (KINDS[4], None, 64),
        (KINDS[5], 100, None),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else str(x),
)
def test_flex_on_cuda(kind: Any, window: Any, chunk: Any) -> None:
    """Values and gradients in bf16, beside the plain products in float32."""
    (q, k, v), softmax = _case(kind, (2, 4, 2, 333, 64, 64), seed=7, device="cuda")
    q, k, v = (t.bfloat16() for t in (q, k, v))
    spec, sinks_and_slopes = _split(softmax)
    assert can_use_flex_attention(q, v, spec, has_sinks_or_slopes=bool(sinks_and_slopes))
    assert not can_use_flex_attention(q, v, AttentionSpec(), has_sinks_or_slopes=False)
    wide = [t.float().requires_grad_() for t in (q, k, v)]
    thin = [t.requires_grad_() for t in (q, k, v)]
    sinks = sinks_and_slopes.get("sinks")
    both = []
    for tensors, run in ((wide, "plain"), (thin, "flex")):
        own = dict(sinks_and_slopes) if sinks is None else sinks_and_slopes | dict(sinks=sinks.clone().requires_grad_())
        if run == "plain":
            at = torch.arange(333, device="cuda")
            y = attention(*tensors, spec, mask=visible(at[None], at, window, chunk), **own)
        else:
            y = flex_attention(*tensors, spec, make_block_mask(333, window, chunk, q.device), **own)
        weight = torch.linspace(-1, 1, y.numel(), device="cuda").view_as(y)
        wanted = [*tensors, *([own["sinks"]] if sinks is not None else [])]
        both.append([y, *torch.autograd.grad((y.float() * weight).sum(), wanted)])
    for expected, actual in zip(*both, strict=True):
        error = (actual.float() - expected).norm() / expected.norm()
        assert error < 2e-2, error
