"""Packing: examples laid into rows, and attention that keeps the documents of a row apart, beside a float64 formula."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from litlm.context import Causal, Packed, base
from litlm.context import packed as context_module
from litlm.data.base import IGNORE, Batch, Example, best_fit_decreasing, collate, micro_batches
from litlm.ops import sdpa as attention_module
from litlm.ops.sdpa import AttentionSpec, alibi_slopes, can_use_flex_attention, can_use_varlen

# Rows ------------------------------------------------------------------------------------------------------------


def _first_fit_decreasing(lengths: Sequence[int], capacity: int) -> int:
    room: list[int] = []
    for n in sorted(lengths, reverse=True):
        place = next((i for i, left in enumerate(room) if left >= n), None)
        if place is None:
            room.append(capacity - n)
        else:
            room[place] -= n
    return len(room)


def _random_lengths(rng: random.Random) -> tuple[list[int], int]:
    capacity = rng.choice([1, 2, 10, 97, 512, 4096])
    largest = max(1, int(capacity * rng.choice([0.1, 0.4, 0.7, 1.0])))
    return [rng.randint(1, largest) for _ in range(rng.choice([1, 2, 7, 40, 300]))], capacity


@pytest.mark.parametrize("seed", range(60))
def test_best_fit(seed: int) -> None:
    lengths, capacity = _random_lengths(random.Random(seed))
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in bins]
    assert min(filled) > 0
    assert max(filled) <= capacity
    # No two rows would go into one, the 11/9 of theory beside a bound from below, and about first-fit's rows.
    assert sum(sorted(filled)[:2]) > capacity or len(bins) == 1
    big = [n for n in lengths if 2 * n > capacity]
    least = max(-(-sum(lengths) // capacity), len(big))
    rivals = _first_fit_decreasing(lengths, capacity)
    assert least <= len(bins) <= rivals * 1.02 + 1
    if max(lengths) * 4 <= capacity:  # every row but the last is filled up to less than the largest length
        assert (len(bins) - 1) * (capacity - max(lengths)) < sum(lengths)
    assert best_fit_decreasing(lengths, capacity) == bins


def test_best_fit_is_within_theory_of_the_optimum() -> None:
    """Rows that were cut from full ones, so that the fewest possible are known."""
    for seed in range(40):
        rng = random.Random(seed)
        capacity, optimum = rng.choice([20, 300, 2048]), rng.randint(1, 60)
        lengths: list[int] = []
        for _ in range(optimum):
            cuts = sorted(rng.sample(range(1, capacity), rng.randint(0, 6)))
            lengths += [b - a for a, b in zip([0, *cuts], [*cuts, capacity], strict=True)]
        rng.shuffle(lengths)
        assert optimum <= len(best_fit_decreasing(lengths, capacity)) <= 11 / 9 * optimum + 6 / 9


def test_best_fit_at_the_edges() -> None:
    assert best_fit_decreasing([], 5) == []
    assert best_fit_decreasing([5], 5) == [[0]]
    assert best_fit_decreasing([5, 5, 5], 5) == [[0], [1], [2]]  # equal lengths keep their order
    assert best_fit_decreasing([1, 4, 1, 4], 5) == [[1, 0], [3, 2]]
    assert best_fit_decreasing([2, 3, 6, 4], 10) == [[2, 3], [1, 0]]  # 6 + 4, then 3 + 2
    assert best_fit_decreasing([1, 7, 6], 8) == [[1, 0], [2]]  # the fuller row of two that have room
    assert best_fit_decreasing([1] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(ValueError, match="2 of 4 lengths are above the capacity of 5"):
        best_fit_decreasing([6, 1, 5, 9], 5)


def _examples(seed: int, n: int, longest: int) -> list[Example]:
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        size = rng.randint(2, longest + 1)
        out.append(Example([rng.randrange(1, 90) for _ in range(size)], [rng.random() < 0.7 for _ in range(size)]))
    return out


def _documents(batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
    """Tokens and targets by the number of the example; what is left of the rows must be padding."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for b, (lengths, numbers) in enumerate(zip(batch.lengths, batch.examples, strict=True)):
        at = 0
        for n, number in zip(lengths, numbers, strict=True):
            assert number not in found
            found[number] = batch.tokens[b, at : at + n].tolist(), batch.targets[b, at : at + n].tolist()
            at += n
        assert (batch.targets[b, at:] == IGNORE).all()
        assert (batch.tokens[b, at:] == 0).all()
    return found


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize(("seed", "n", "size", "longest"), [(0, 1, 1, 9), (1, 7, 2, 13), (2, 32, 3, 40), (3, 50, 8, 5)])
def test_micro_batches(seed: int, n: int, size: int, longest: int, packing: bool, static_shapes: bool) -> None:
    examples = _examples(seed, n, longest)
    batches = micro_batches(examples, size, longest, packing=packing, static_shapes=static_shapes)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for batch in batches:
        assert 1 <= len(batch.tokens) <= size
        assert batch.tokens.shape == batch.targets.shape
        assert batch.tokens.size(1) <= longest
        documents = _documents(batch)
        assert not documents.keys() & found.keys()
        found |= documents
        fullest = max(sum(row) for row in batch.lengths)
        padded = min(longest, math.ceil(fullest / 64) * 64)
        assert batch.tokens.size(1) == (fullest if not static_shapes else longest if packing else padded)
        assert batch.n_tokens == sum(len(tokens) for tokens, _ in documents.values())
        assert batch.n_targets == sum(t != IGNORE for _, targets in documents.values() for t in targets)
    assert sorted(found) == list(range(n))
    for number, (tokens, targets) in found.items():
        e = examples[number]
        assert tokens == e.ids[:-1]
        assert targets == [t if learn else IGNORE for t, learn in zip(e.ids[1:], e.learn[1:], strict=True)]
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        pairs.update(zip(batch.tokens.flatten().tolist(), batch.targets.flatten().tolist(), strict=True))
    alone = collate(examples)
    expected = Counter(zip(alone.tokens.flatten().tolist(), alone.targets.flatten().tolist(), strict=True))
    del expected[0, IGNORE], pairs[0, IGNORE]  # padding (ids are from 1)
    assert pairs == expected
    if packing:
        rows = best_fit_decreasing([len(e.ids) - 1 for e in examples], longest)
        assert [row for batch in batches for row in batch.examples] == [tuple(row) for row in rows]
        assert len(batches) == -(-len(rows) // size)
        counts = [len(batch.tokens) for batch in batches]
        assert max(counts) - min(counts) <= 1
    else:
        assert [len(batch.tokens) for batch in batches] == [size] * (n // size) + ([n % size] if n % size else [])


def test_too_long_an_example_is_not_packed() -> None:
    with pytest.raises(ValueError, match="1 of 2 lengths are above the capacity of 3"):
        micro_batches([Example([1] * 5, [True] * 5), Example([1] * 4, [True] * 4)], 2, 3, packing=True)


def test_contexts_of_batches() -> None:
    a, b, c = _examples(4, 3, 12)
    sizes = [len(e.ids) - 1 for e in (a, b, c)]
    packed = collate([a, b, c], [[0, 1], [2]]).context()
    assert isinstance(packed, Packed)
    assert packed.lengths == ((sizes[0], sizes[1]), (sizes[2],))
    assert isinstance(collate([a, b, c]).context(), Causal)
    assert isinstance(collate([a, b], max_len=20, packing=True, static_shapes=True).context(), Causal)


# Attention -------------------------------------------------------------------------------------------------------

ROWS = [[1, 17, 8], [9, 1, 1, 5], [26], [3, 11], [2, 2]]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": dict(scale=0.7),
    "softcap": dict(softcap=1.5),
    "sinks": dict(sinks=True),
    "slopes": dict(slopes=True, scale=0.9),
    "softcap-sinks": dict(softcap=0.8, sinks=True),
}
PLACES = [(None, None), (1, None), (5, None), (100, None), (None, 4)]


def _inputs(kind: str, rows: Any, width: int, shape: Any, seed: int, **place: Any) -> tuple[list[Tensor], Any]:
    H, K, D, E = shape
    gen = torch.Generator().manual_seed(seed)
    sizes = [(len(rows), H, width, D), (len(rows), K, width, D), (len(rows), K, width, E)]
    tensors = [torch.randn(size, generator=gen).to(**place) for size in sizes]
    softmax = dict(KINDS[kind])
    if "sinks" in softmax:
        softmax["sinks"] = torch.randn(H, generator=gen).to(tensors[0].device)
    if "slopes" in softmax:
        softmax["slopes"] = alibi_slopes(H, tensors[0].device)
    return tensors, softmax


def _attend(context: Packed, layer: int, qkv: Any, window: Any, chunk: Any, softmax: dict[str, Any]) -> Tensor:
    spec = AttentionSpec(window, chunk, softmax.get("scale"), softmax.get("softcap"))
    sinks_and_slopes = {key: softmax[key] for key in ("sinks", "slopes") if key in softmax}
    return context.layer(layer).attend(*qkv, spec, **sinks_and_slopes)


@cache
def _hidden(n: int, window: int | None, chunk: int | None) -> Tensor:
    """(n, n), True where token t does not see token s of its document."""
    window, chunk = window or n, chunk or n
    return torch.tensor([[t < s or t - s >= window or t // chunk != s // chunk for s in range(n)] for t in range(n)])


def _reference(q: Tensor, k: Tensor, v: Tensor, rows: Any, window: Any, chunk: Any, **softmax: Any) -> Tensor:
    """One document at a time in float64; 0 for padding."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
    out = []
    for b, lengths in enumerate(rows):
        parts, start = [], 0
        for n in lengths:
            own = slice(start, start := start + n)
            scores = q[b, :, own] @ k[b, :, own].mT * (softmax.get("scale") or q.size(-1) ** -0.5)  # (H, n, n)
            if (cap := softmax.get("softcap")) is not None:
                scores = cap * (scores / cap).tanh()
            back = torch.arange(n)[:, None] - torch.arange(n)
            if (slopes := softmax.get("slopes")) is not None:
                scores = scores - slopes.double()[:, None, None] * back.to(scores.device)
            terms = scores.exp().masked_fill(_hidden(n, window, chunk).to(scores.device), 0)
            total = terms.sum(-1, keepdim=True)
            if (sinks := softmax.get("sinks")) is not None:
                total = total + sinks.double().exp()[:, None, None]
            parts.append(terms / total @ v[b, :, own])
        parts.append(v.new_zeros(q.size(1), q.size(2) - start, v.size(-1)))
        out.append(torch.cat(parts, 1))
    return torch.stack(out)


def _real(rows: Any, width: int) -> Tensor:
    """(B, 1, T, 1): what is no padding."""
    return (torch.arange(width) < torch.tensor([sum(row) for row in rows])[:, None])[:, None, :, None]


def varlen_stub(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                *, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """What PyTorch documents of its kernel, in float64. (T, H, D) of all sequences, which end at cu_seq."""
    ends = cu_seq_q.tolist()
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, len(query))
    assert max_q == max_k >= max(b - a for a, b in zip(ends, ends[1:], strict=False))
    assert len(query) == len(key) == len(value)
    assert enable_gqa or query.size(1) == key.size(1) == value.size(1)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    groups = query.size(1) // key.size(1)
    left, right = window_size
    parts = []
    for a, b in zip(ends, ends[1:], strict=False):
        q, k, v = (t[a:b].double().transpose(0, 1) for t in (query, key, value))
        k, v = (t.repeat_interleave(groups, dim=0) for t in (k, v))
        scores = q @ k.mT * (q.size(-1) ** -0.5 if scale is None else scale)
        ahead = torch.arange(b - a) - torch.arange(b - a)[:, None]  # key - query
        seen = ((ahead <= right) | (right < 0)) & ((-ahead <= left) | (left < 0))
        parts.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts).to(query.dtype)


def varlen_stub_211(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int,
                    max_k: int, *, scale: Any = None, window_size: Any = (-1, -1)) -> Tensor:  # fmt: skip
    return varlen_stub(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=False
    )


def _through(path: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make `Packed` go one way; returns a list that grows with each call of that way's kernel."""
    calls: list[str] = []

    def counted(function: Callable[..., Any]) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(path)
            return function(*args, **kwargs)

        wrapper.__kwdefaults__ = function.__kwdefaults__
        return wrapper

    if path == "mask":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(context_module, "attention", counted(context_module.attention))
    elif path == "each":
        monkeypatch.setattr(Packed, "_attend_by_document", counted(Packed._attend_by_document))
    elif path == "flex":
        from torch.nn.attention import flex_attention as flex_module

        monkeypatch.setattr(base, "can_use_flex_attention", lambda q, v, spec, *, has_sinks_or_slopes, packed: packed)
        monkeypatch.setattr(attention_module, "_flex_kernel", lambda: counted(flex_module.flex_attention))
        # Plain products instead of a compiler, and no warning that they are slow.
        monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
        monkeypatch.setattr(flex_module, "_warn_once", lambda *args, **kwargs: None, raising=False)
    else:
        stub = varlen_stub if path == "varlen" else varlen_stub_211
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted(stub))
        monkeypatch.setattr(context_module, "can_use_varlen", can_use_varlen_anywhere)
    return calls


def can_use_varlen_anywhere(q: Tensor, v: Tensor, spec: AttentionSpec, *, has_sinks_or_slopes: bool) -> bool:
    """The rule for softmax without that for devices."""
    return not has_sinks_or_slopes and spec.softcap is spec.chunk is None and q.size(3) == v.size(3)


WAYS = [
    (path, kind, window, chunk)
    for path in ("each", "mask", "flex", "varlen", "varlen-2.11")
    for kind in KINDS
    for window, chunk in PLACES
    if (kind in ("plain", "scaled") and chunk is None if path.startswith("varlen") else kind != "scaled")
    and (window in (None, 5) or kind in ("plain", "scaled"))
]


@pytest.mark.parametrize(("path", "kind", "window", "chunk"), WAYS)
def test_documents_by_themselves(
    path: str, kind: str, window: Any, chunk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _through(path, monkeypatch)
    shape = (4, 2, 8, 8) if path.startswith("varlen") or window == 5 else (6, 2, 16, 5)
    shape = (4, 2, 16, 16) if path == "flex" else shape
    many = [([[1] * 70, [40, 30]], 70)] if kind == "plain" else []  # more of them than `ends` has room for at first
    for rows, width in [(ROWS, 31 if window is None else 26), ([[7, 1]], 9), *many]:
        (q, k, v), softmax = _inputs(kind, rows, width, shape, seed=width)
        wanted = [q, k, v, *([softmax["sinks"]] if "sinks" in softmax else [])]
        grad = path != "flex"  # its backward pass is for CUDA only
        for t in wanted:
            t.requires_grad_(grad)
        context = Packed(rows)
        positions = context.begin(len(rows), width, q.device)
        expected_positions = [[*(i for n in row for i in range(n)), *range(width - sum(row))] for row in rows]
        assert positions.tolist() == expected_positions
        before = len(calls)
        with torch.set_grad_enabled(grad):
            y = _attend(context, 0, (q, k, v), window, chunk, softmax)
        assert len(calls) == before + 1
        expected = _reference(q, k, v, rows, window, chunk, **softmax)
        real = _real(rows, width)
        assert y.isfinite().all()
        torch.testing.assert_close(y.double() * real, expected * real, rtol=1e-5, atol=1e-5)
        again = _attend(context, 1, (q.detach(), k.detach(), v.detach()), window, chunk, softmax)
        torch.testing.assert_close(again.detach(), y.detach())
        if not grad:
            continue
        weight = torch.linspace(-1, 1, y.numel()).view_as(y) * real
        ours = torch.autograd.grad((y * weight).sum(), wanted, retain_graph=True)
        theirs = torch.autograd.grad((expected * weight).sum(), wanted)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-5)
        # A gradient of everything, padding too, is a number.
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), wanted, allow_unused=True) if g is not None)


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (5, None), (None, 4)])
@pytest.mark.parametrize("path", ["each", "mask", "varlen"])
def test_nothing_comes_from_other_documents(
    path: str, window: Any, chunk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients between documents are exactly zero."""
    _through(path, monkeypatch)
    (q, k, v), _ = _inputs("plain", ROWS, 27, (2, 1, 8, 8), seed=5)
    for t in (q, k, v):
        t.requires_grad_()
    context = Packed(ROWS)
    context.begin(len(ROWS), 27, q.device)
    y = _attend(context, 0, (q, k, v), window, chunk, {})
    for b, lengths in enumerate(ROWS):
        start = 0
        for n in lengths:
            own = torch.zeros(len(ROWS), 1, 27, 1, dtype=torch.bool)
            own[b, :, start : start + n] = True
            start += n
            weight = torch.linspace(0.5, 1, y.numel()).view_as(y) * own
            grads = torch.autograd.grad((y * weight).sum(), (q, k, v), retain_graph=True)
            assert all((g.masked_fill(own, 0) == 0).all() for g in grads)
            assert grads[2].abs().sum(dim=(1, 3))[own[:, 0, :, 0]].gt(0).all()  # each of its values counts


@pytest.mark.parametrize(("window", "chunk"), PLACES)
def test_the_compiled_kernel_sees_the_same_places(window: Any, chunk: Any) -> None:
    """The function that FlexAttention calls and the blocks it skips, place by place."""
    rows, width = [[1, 130, 69], [200], [150, 3, 30]], 200
    context = Packed(rows)
    context.begin(3, width, torch.device("cpu"))
    made = attention_module.make_block_mask(width, window, chunk, torch.device("cpu"), context.documents)
    b, t, s = torch.meshgrid(*map(torch.arange, (3, width, width)), indexing="ij")
    seen = made.mask_mod(b, torch.tensor(0), t, s)
    expected = torch.zeros(3, width, width, dtype=torch.bool)
    for row, lengths in enumerate([*rows[:2], [*rows[2], 17]]):
        start = 0
        for n in lengths:
            for at in range(n):
                first = max(0, at - (window or n) + 1, at // (chunk or n) * (chunk or n))
                expected[row, start + at, start + first : start + at + 1] = True
            start += n
    assert torch.equal(seen, expected)
    visited = made.to_dense()[:, 0].repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :width, :width].bool()
    assert not (expected & ~visited).any()


def test_what_flash_attention_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule, with stand-ins for tensors on a GPU."""

    def on_gpu(size: int, dtype: torch.dtype = torch.bfloat16) -> Any:
        return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0), size=lambda dim: size)

    generation = 9
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    plain = AttentionSpec(scale=0.3)
    for size, fits in ((8, True), (64, True), (96, True), (256, True), (12, False), (264, False)):
        assert can_use_varlen(on_gpu(size), on_gpu(size), plain, has_sinks_or_slopes=False) == fits
    assert can_use_varlen(on_gpu(64, torch.float16), on_gpu(64), plain, has_sinks_or_slopes=False)
    assert not can_use_varlen(on_gpu(64, torch.float32), on_gpu(64), plain, has_sinks_or_slopes=False)
    assert not can_use_varlen(on_gpu(192), on_gpu(128), plain, has_sinks_or_slopes=False)
    assert can_use_varlen(on_gpu(64), on_gpu(64), AttentionSpec(window=16), has_sinks_or_slopes=False)
    assert not can_use_varlen(on_gpu(64), on_gpu(64), AttentionSpec(chunk=16), has_sinks_or_slopes=False)
    assert not can_use_varlen(on_gpu(64), on_gpu(64), AttentionSpec(softcap=1.0), has_sinks_or_slopes=False)
    assert not can_use_varlen(on_gpu(64), on_gpu(64), plain, has_sinks_or_slopes=True)
    generation = 7
    assert not can_use_varlen(on_gpu(64), on_gpu(64), plain, has_sinks_or_slopes=False)
    q = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
    assert not can_use_varlen(q, q, AttentionSpec(), has_sinks_or_slopes=False)
    assert not can_use_flex_attention(q, q, AttentionSpec(), has_sinks_or_slopes=False, packed=True)


def test_varlen_is_called_as_pytorch_declares_it() -> None:
    """The stand-in of these tests has the real one's parameters."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    theirs, mine = (inspect.signature(f).parameters for f in (varlen_attn, varlen_stub_211))
    assert {name: p.kind for name, p in mine.items()}.items() <= {name: p.kind for name, p in theirs.items()}.items()
    assert attention_module._varlen_has_gqa() == ("enable_gqa" in theirs)


# On CUDA ---------------------------------------------------------------------------------------------------------

# Odd lengths, documents of one token, blocks of 128 that hold several, and padding.
LONG = [[1, 130, 200, 2], [333], [64, 64, 128, 1, 1], [300]]
SMALL, LARGE = (4, 2, 64, 64), (6, 6, 128, 128)
HALF = [torch.bfloat16, torch.float16]
# Flash attention: nothing is compiled but what asks for it.
VARLEN = [("plain", None, None), ("scaled", None, None), ("plain", 1, None), ("plain", 100, None)]
CUDA = [
    *((*case, shape, dtype, False) for case in VARLEN for shape in (SMALL, LARGE) for dtype in HALF),
    ("plain", 100, None, SMALL, torch.bfloat16, True),
    # FlexAttention makes a kernel of each (5 to 20 s): every part of it and every place, eager and compiled.
    ("plain", None, 50, SMALL, torch.bfloat16, False),
    ("softcap", 100, None, SMALL, torch.bfloat16, False),
    ("sinks", None, None, SMALL, torch.bfloat16, False),
    ("slopes", None, None, LARGE, torch.float16, False),
    ("plain", None, 50, LARGE, torch.float16, True),
    ("sinks", 100, None, LARGE, torch.bfloat16, True),
    ("slopes", None, None, SMALL, torch.bfloat16, True),
    ("softcap-sinks", None, 50, SMALL, torch.bfloat16, True),
]


@pytest.fixture
def exact() -> Any:
    """fp32 products in fp32, whatever the machine's default is; no graphs of other tests, whose number has a limit."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision(before)


def _outputs_and_gradients(
    tensors: Sequence[Tensor], softmax: Any, run: Callable[..., Tensor], real: Tensor
) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    own = dict(softmax)
    if own.get("sinks") is not None:
        own["sinks"] = own["sinks"].detach().clone().requires_grad_()
        leaves.append(own["sinks"])
    y = run(*leaves[:3], **own)
    weight = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
    grads = torch.autograd.grad((y * weight * real).float().sum(), leaves)
    return [y.detach() * real, *grads]


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "window", "chunk", "shape", "dtype", "compiled"), CUDA)
def test_kernels_on_cuda(kind: str, window: Any, chunk: Any, shape: Any, dtype: torch.dtype, compiled: bool) -> None:
    """Values and gradients in half precision, beside the masks of fp32 and the formula of float64."""
    width = 340
    tensors, softmax = _inputs(kind, LONG, width, shape, seed=3, device="cuda")
    tensors = [t.to(dtype) for t in tensors]
    kernel = can_use_varlen if kind in ("plain", "scaled") and chunk is None else None
    q, _, v = tensors
    spec, has_sinks_or_slopes = (
        AttentionSpec(window, chunk, softcap=softmax.get("softcap")),
        "sinks" in softmax or "slopes" in softmax,
    )
    assert can_use_varlen(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes) == (kernel is not None)
    assert can_use_flex_attention(q, v, spec, has_sinks_or_slopes=has_sinks_or_slopes, packed=True)
    real = _real(LONG, width).cuda()

    def packed(q: Tensor, k: Tensor, v: Tensor, **own: Any) -> Tensor:
        context = Packed(LONG)
        context.begin(len(LONG), width, q.device)
        context.block_mask(window, chunk)  # as `prepare` does, before compiled code

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            first = _attend(context, 0, (q, k, v), window, chunk, own)
            return (first + _attend(context, 1, (q, k, v), window, chunk, own)) / 2  # the cached mask

        half = q.dtype != torch.float32
        return (torch.compile(attend) if compiled and half else attend)(q, k, v)

    wide = [t.float() for t in tensors]
    exactly = _outputs_and_gradients(
        wide, softmax, lambda q, k, v, **own: _reference(q, k, v, LONG, window, chunk, **own), real
    )
    masks = _outputs_and_gradients(wide, softmax, packed, real)
    kernels = _outputs_and_gradients(tensors, softmax, packed, real)
    for expected, mask, actual in zip(exactly, masks, kernels, strict=True):
        assert actual.isfinite().all()
        if window == 1 and expected.norm() < 1e-6 * exactly[0].norm():  # queries and keys of one place: no gradient
            assert actual.float().norm() < 1e-2 * exactly[0].norm()
            continue
        assert (mask - expected).norm() / expected.norm() < 3e-5
        error = (actual.float() - expected).norm() / expected.norm()
        assert error < (2e-2 if dtype == torch.bfloat16 else 5e-3), error
    again = _outputs_and_gradients(tensors, softmax, packed, real)
    assert torch.equal(again[0], kernels[0])


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("kind", "window", "chunk"),
    [("plain", None, None), ("plain", 100, None), ("plain", None, 50), ("softcap", 100, None), ("sinks", None, None)],
)
def test_nothing_comes_from_other_documents_on_cuda(kind: str, window: Any, chunk: Any) -> None:
    """Other values in the same blocks change no bit; gradients between documents are exactly zero."""
    tensors, softmax = _inputs(kind, LONG, 340, SMALL, seed=4, device="cuda", dtype=torch.bfloat16)
    own = torch.zeros(len(LONG), 1, 340, 1, dtype=torch.bool, device="cuda")
    own[0, :, 1:131] = own[2, :, 64:128] = True  # second documents

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = Packed(LONG)
        context.begin(len(LONG), 340, q.device)
        return _attend(context, 0, (q, k, v), window, chunk, softmax)

    leaves = [t.requires_grad_() for t in tensors]
    y = run(*leaves)
    for g in torch.autograd.grad((y * own).float().sum(), leaves):
        assert (g.masked_fill(own, 0) == 0).all()
        assert g.isfinite().all()
    gen = torch.Generator("cuda").manual_seed(0)
    noise = [torch.where(own, t, 9 * torch.randn(t.shape, generator=gen, device="cuda").bfloat16()) for t in leaves]
    assert torch.equal(run(*noise)[own.expand_as(y)], y[own.expand_as(y)])
