"""Attention contexts against attention restated one query at a time in float64."""

from __future__ import annotations

import gc
import math
import random
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from litlm.config import Config
from litlm.context import Causal, KVCache, Packed
from litlm.context.base import visible
from litlm.context.static import StaticCache, StaticLayer
from litlm.model import GPT
from litlm.ops.sdpa import AttentionSpec


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """q: (H, D), the last of the tokens whose keys and values, (K, S, D), are given -> (H, D)."""
    first = 0 if window is None else max(0, keys.size(1) - window)
    out = []
    for h in range(q.size(0)):
        kv = h * keys.size(0) // q.size(0)
        k, v = keys[kv, first:].double(), values[kv, first:].double()
        scores = [sum((q[h].double() * k[s]).tolist()) / math.sqrt(q.size(1)) for s in range(k.size(0))]
        top = max(scores)
        weights = [math.exp(s - top) for s in scores]
        out.append(sum(w * v[s] for s, w in enumerate(weights)) / sum(weights))
    return torch.stack(out)


def _qkv(batch: int, heads: int, kv_heads: int, length: int, size: int, gen: torch.Generator) -> tuple[Tensor, ...]:
    shapes = [(batch, n, length, size) for n in (heads, kv_heads, kv_heads)]
    return tuple(2 * torch.randn(shape, generator=gen) for shape in shapes)


def _config(heads: int, kv_heads: int, size: int, layers: int = 1) -> Config:
    return Config(vocab_size=5, n_layer=layers, n_embd=8, n_head=heads, n_kv_head=kv_heads, head_dim=size)


HEADS = [(1, 1, 4), (4, 4, 6), (6, 2, 8), (5, 1, 2)]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
def test_causal(heads: int, kv_heads: int, size: int, window: int | None) -> None:
    gen = torch.Generator().manual_seed(heads)
    q, k, v = _qkv(2, heads, kv_heads, 8, size, gen)
    context = Causal()
    assert context.begin(2, 8, q.device).tolist() == [list(range(8))]
    spec = AttentionSpec(window=window)
    actual = context.layer(0).attend(q, k, v, spec)
    assert torch.equal(context.layer(3).attend(q, k, v, spec), actual)  # layers don't influence each other
    for b in range(2):
        for t in range(8):
            expected = _attend_one(q[b, :, t], k[b, :, : t + 1], v[b, :, : t + 1], window)
            torch.testing.assert_close(actual[b, :, t].double(), expected, rtol=1e-5, atol=1e-5)


def test_one_causal_context_serves_several_lengths_and_windows() -> None:
    gen = torch.Generator().manual_seed(0)
    context = Causal()
    for length in (9, 4, 11):
        q, k, v = _qkv(1, 2, 2, length, 4, gen)
        context.begin(1, length, q.device)
        for window in (2, 3, None, 2):
            expected = torch.stack(
                [_attend_one(q[0, :, t], k[0, :, : t + 1], v[0, :, : t + 1], window) for t in range(length)], 1
            )
            actual = context.layer(0).attend(q, k, v, AttentionSpec(window=window))[0].double()
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_visible() -> None:
    mask = visible(torch.tensor([[2, 3], [0, 1]]), torch.arange(4), 2)
    assert mask.shape == (2, 1, 2, 4)
    assert mask.int().tolist() == [[[[0, 1, 1, 0], [0, 0, 1, 1]]], [[[1, 0, 0, 0], [1, 1, 0, 0]]]]
    assert visible(torch.tensor([[1]]), torch.arange(3), None).tolist() == [[[[True, True, False]]]]


@pytest.mark.parametrize("seed", range(12))
def test_cache_follows_any_course(seed: int) -> None:
    """Random chunks, random truncation of each row (even back to nothing), two layers, several windows at once."""
    rnd, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    heads, kv_heads, size = HEADS[seed % len(HEADS)]
    batch, room = rnd.randint(1, 4), 16
    cache = KVCache(_config(heads, kv_heads, size, layers=2), batch, room, dtype=torch.float32)
    rows: list[list[list[tuple[Tensor, Tensor]]]] = [[[] for _ in range(batch)] for _ in range(2)]
    for _ in range(25):
        length = min(rnd.choice([1, 1, 1, 2, 3, 5]), room - max(cache.lengths))
        if length == 0 or rnd.random() < 0.3:
            even = rnd.random() < 0.5
            to = [min(cache.lengths)] * batch if even else list(cache.lengths)
            to = [max(0, n - rnd.choice([0, 1, 4, 16])) for n in to]
            to = [min(to)] * batch if even else to
            cache.truncate(to)
            assert cache.lengths == to
            rows = [[row[:n] for row, n in zip(layer, to, strict=True)] for layer in rows]
            continue
        before = list(cache.lengths)
        positions = cache.begin(batch, length, torch.device("cpu"))
        assert positions.expand(batch, -1).tolist() == [list(range(n, n + length)) for n in before]
        for layer in range(2):
            q, k, v = _qkv(batch, heads, kv_heads, length, size, gen)
            for window in (None, 1, 3):
                actual = cache.layer(layer).attend(q, k, v, AttentionSpec(window=window))
                for b in range(batch):
                    seen = rows[layer][b][: before[b]]
                    for t in range(length):
                        seen = [*seen, (k[b, :, t], v[b, :, t])]
                        keys, values = (torch.stack([pair[j] for pair in seen], 1) for j in (0, 1))
                        expected = _attend_one(q[b, :, t], keys, values, window)
                        torch.testing.assert_close(actual[b, :, t].double(), expected, rtol=1e-5, atol=1e-5)
                    if window == 3:
                        rows[layer][b] = seen


def test_cache_has_the_sizes_of_its_layers_and_knows_its_limits() -> None:
    cache = KVCache(_config(6, 2, 8, layers=3), 4, 10, dtype=torch.bfloat16)
    assert (
        [tuple(k.shape) for k in cache.k] == [tuple(v.shape) for v in cache.v] == [(4, 2, 16, 8)] * 3
    )  # room for 10, in steps of 16
    assert {t.dtype for t in cache.k + cache.v} == {torch.bfloat16}
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(cache.k, cache.v, strict=True))
    cache.begin(4, 10, torch.device("cpu"))
    with pytest.raises(ValueError, match="holds 10 tokens a row, and this pass would make it 11"):
        cache.begin(4, 1, torch.device("cpu"))
    cache = KVCache(_config(6, 2, 8), 4, 10, dtype=torch.float32)
    with pytest.raises(ValueError, match="tokens have 3 rows, the cache has 4"):
        cache.begin(3, 1, torch.device("cpu"))
    cache.begin(4, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="none above"):
        cache.truncate([3, 2, 2, 2])


def test_a_refused_pass_changes_nothing() -> None:
    cache = KVCache(_config(6, 2, 8), 2, 4, dtype=torch.float32)
    cache.begin(2, 3, torch.device("cpu"))
    for batch, length, lengths in ((2, 2, None), (3, 1, None), (2, 1, [2, 4]), (2, 1, [4])):
        with pytest.raises(ValueError, match=r"the cache|are cached"):
            cache.begin(batch, length, torch.device("cpu"), lengths)
        assert cache.lengths == [3, 3]
    assert cache.begin(2, 1, torch.device("cpu")).tolist() == [[3]]


@pytest.mark.parametrize(("seed", "limit"), [(0, 1), (1, 40), (2, 200)])
@torch.no_grad()
def test_single_tokens_of_unequal_rows_a_few_heads_at_a_time(seed: int, limit: int, monkeypatch: Any) -> None:
    """Capped scores beyond the limit of what is held at once; all heads of a row share its mask."""
    from litlm.ops import sdpa

    gen, before = torch.Generator().manual_seed(seed), [3, 7]
    cache = KVCache(_config(6, 2, 8), 2, 16, dtype=torch.float32)
    rows = [_qkv(2, 6, 2, 7, 8, gen), _qkv(2, 6, 2, 1, 8, gen)]
    monkeypatch.setattr(sdpa, "_MAX_SCORES", limit)
    for (q, k, v), lengths in zip(rows, (before, None), strict=True):
        cache.begin(2, q.size(2), torch.device("cpu"), lengths)
        actual = cache.layer(0).attend(q, k, v, AttentionSpec(softcap=1.5))
    for b in range(2):
        keys, values = (torch.cat((rows[0][j][b, :, : before[b]], rows[1][j][b]), 1).double() for j in (1, 2))
        for h in range(6):
            scores = 1.5 * torch.tanh(keys[h // 3] @ rows[1][0][b, h, 0].double() * 8**-0.5 / 1.5)
            expected = scores.softmax(-1) @ values[h // 3]
            torch.testing.assert_close(actual[b, h, 0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_padded_pass_that_knows_its_lengths(seed: int) -> None:
    """It leaves what the same pass leaves when it is cut back afterwards, in chunks as well."""
    rnd, gen = random.Random(seed), torch.Generator().manual_seed(seed)
    config = _config(4, 2, 6, layers=1)
    told, cut = (KVCache(config, 3, 32, dtype=torch.float32) for _ in range(2))
    for width in (7, 1, 4, 1, 1):
        after = [n + rnd.randint(0, width) for n in told.lengths]
        q, k, v = _qkv(3, 4, 2, width, 6, gen)
        found = []
        for cache, lengths in ((told, after), (cut, None)):
            positions = cache.begin(3, width, torch.device("cpu"), lengths)
            found.append((positions, cache.layer(0).attend(q, k, v, AttentionSpec(window=5))))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
        assert told.seq_lens is not None
        assert told.seq_lens[:, 0].tolist() == after
        cut.truncate(after)
        assert told.lengths == cut.lengths == after
    assert torch.equal(told.k[0], cut.k[0])
    with pytest.raises(ValueError, match="none below"):
        told.begin(3, 1, torch.device("cpu"), [0, 0, 0])


def test_a_row_that_is_read_as_part_of_a_longer_one() -> None:
    cache = KVCache(_config(4, 2, 6), 1, 32, dtype=torch.float32)
    cache.begin(1, 5, torch.device("cpu"), [9])
    assert cache.seq_lens is not None
    assert (cache.lengths, cache.seq_lens.tolist()) == ([5], [[9]])
    cache.begin(1, 1, torch.device("cpu"))
    assert (cache.lengths, cache.seq_lens) == ([6], None)


@torch.no_grad()
@pytest.mark.parametrize(("window", "chunk", "first"), [(None, None, 0), (1, None, 5), (3, None, 3), (None, 4, 4)])
def test_the_bias_of_a_static_layer_is_the_mask_of_one_step(window: int | None, chunk: int | None, first: int) -> None:
    """It covers slots that are not filled yet; those are not visible."""
    kind = "full" if window is chunk is None else "sliding" if chunk is None else "chunked"
    config = _config(6, 2, 8).changed(layer_types=(kind,), sliding_window=window or chunk)
    cache, x, layers = StaticCache(config, 1, 12, dtype=torch.float32), torch.zeros(1, 1, 8), GPT(config).layers
    cache.begin(1, 5, torch.device("cpu"))
    cache.prepare(x.expand(1, 5, 8), layers)
    assert not isinstance(cache.layer(0), StaticLayer)
    cache.begin(1, 1, torch.device("cpu"))
    cache.prepare(x, layers)
    layer = cache.layer(0)
    assert isinstance(layer, StaticLayer)
    assert layer.slot.tolist() == [5]
    assert layer.bias.tolist() == [[[[0.0 if first <= s <= 5 else -math.inf for s in range(12)]]]]
    cache.begin(1, 1, torch.device("cpu"))
    cache.prepare(x, layers)
    assert cache.layer(0) is layer  # the same tensors, with other contents
    assert layer.slot.tolist() == [6]
    assert (layer.bias == 0).sum() == {None: 7, 1: 1, 3: 3}[window] - (4 if chunk else 0)


def test_contexts_are_freed_without_the_garbage_collector() -> None:
    """A cycle would keep a cache, or the activations of a training step, until the collector runs."""
    config = Config(
        vocab_size=9, n_layer=4, n_embd=8, n_head=2, n_kv_shared_layer=2, layer_types=("full", "sliding") * 2,
        sliding_window=3,
    )  # fmt: skip
    model, ids, static = GPT(config), torch.tensor([[1, 2, 3, 4]]), partial(StaticCache, dtype=torch.float32)
    gc.disable()
    try:
        for make in (Causal, lambda: Packed([[1, 3]]), lambda: model.make_cache(1, 8), lambda: static(config, 1, 8)):
            context = make()
            alive = weakref.ref(context)
            is_cache = isinstance(context, KVCache)
            with torch.inference_mode(is_cache):
                for part in ids.split([3, 1], 1) if is_cache else [ids]:
                    model(part, context=context)
            del context
            assert alive() is None
    finally:
        gc.enable()


def test_packed_rows_refuse_what_does_not_fit() -> None:
    cpu = torch.device("cpu")
    for batch, length, lengths, message in (
        (1, 9, None, "tokens have 1 rows, but Packed was given the documents of 2"),
        (2, 4, None, "rows have 4 tokens, but the documents of one have 5 together"),
        (2, 9, [5, 4], "lengths must be left out with Packed"),
    ):
        with pytest.raises(ValueError, match=message):
            Packed([[2, 3], [4]]).begin(batch, length, cpu, lengths)
