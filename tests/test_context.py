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
from parity import cases
from parity.cases import Case, close, hf_logits, ours
from torch import Tensor

from litlm.config import Config, GatedDeltaConfig, ShortConvConfig
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


# --- recurrent layers -------------------------------------------------------------------------------------------------

RECURRENT = [
    cases.by_name(name)
    for name in ("lfm2-wide-kernel-biases-untied", "qwen3_next-many-values-per-key-biases", "qwen3_5_text-plain")
]  # fmt: skip
each_recurrent = pytest.mark.parametrize("case", RECURRENT, ids=str)
near = partial(close, rtol=2e-4)  # of a single token, whose norm inside Gated DeltaNet may magnify what rounding left
LENGTHS = [70, 1, 2, 63, 64, 65, 3]  # shorter than a convolution; around a chunk of the delta rule


def _states(cache: KVCache, row: int) -> list[Tensor]:
    """Copies of what the recurrent layers hold of a row."""
    return [t[row].clone() for t in cache._row_tensors()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def _last(case: Case, *parts: Tensor) -> Tensor:
    """transformers' logits (V,) behind parts (T,) of a row."""
    return hf_logits(case, torch.cat(parts)[None])[0, -1]


@torch.no_grad()
@each_recurrent
def test_padded_prompts_then_single_tokens(case: Case) -> None:
    """The padding is read by no one, to the last bit: what it is changes neither logits nor states."""
    model, ids = ours(case), cases.tokens(case, len(LENGTHS), 74)
    real = torch.arange(70) < torch.tensor(LENGTHS)[:, None]
    caches, logits = [model.make_cache(len(LENGTHS), 80) for _ in range(2)], []
    for cache, filler in zip(caches, (0, 17), strict=True):
        logits.append(model(ids[:, :70].where(real, filler), context=cache, lengths=LENGTHS))
    assert torch.equal(logits[0][real], logits[1][real])
    assert all(map(torch.equal, caches[0]._row_tensors(), caches[1]._row_tensors()))
    cache = caches[0]
    for b, n in enumerate(LENGTHS):
        close(logits[0][b, :n], hf_logits(case, ids[b : b + 1, :n])[0])
        alone = model.make_cache(1, 80)
        model(ids[b : b + 1, :n], context=alone)
        for mine, other in zip(_states(cache, b), _states(alone, 0), strict=True):
            close(mine, other)
    for step in range(4):
        found = model(ids[:, 70 + step, None], context=cache)[:, 0]
        for b, n in enumerate(LENGTHS):
            near(found[b], _last(case, ids[b, :n], ids[b, 70 : 71 + step]))
    assert cache.lengths == [n + 4 for n in LENGTHS]


@torch.no_grad()
@each_recurrent
def test_tokens_behind_the_end_of_a_row_are_held(case: Case) -> None:
    """In single steps and in longer passes; what a row holds stays as it is, and the others go on."""
    model, ids = ours(case), cases.tokens(case, 3, 40)
    cache = model.make_cache(3, 90)
    model(ids[:, :9], context=cache, lengths=[9, 2, 1])
    rows = [list(ids[b, :n]) for b, n in enumerate((9, 2, 1))]
    for width, new in ((1, (1, 0, 1)), (5, (0, 5, 2)), (1, (0, 0, 1)), (66, (0, 66, 0)), (1, (1, 1, 1))):
        before = [_states(cache, b) for b in range(3)]
        part = cases.tokens(case, 3, width, seed=width)
        logits = model(part, context=cache, lengths=[n + more for n, more in zip(cache.lengths, new, strict=True)])
        for b, more in enumerate(new):
            rows[b] += part[b, :more]
            assert _same(_states(cache, b), before[b]) == (more == 0)
            if more:
                near(logits[b, more - 1], _last(case, torch.stack(rows[b])))
        assert cache.lengths == list(map(len, rows))


@torch.no_grad()
@each_recurrent
def test_snapshots(case: Case) -> None:
    """Rows of different lengths, of which one goes back and reads the same, then something else."""
    model, ids, other = ours(case), cases.tokens(case, 2, 30), cases.tokens(case, 2, 30, seed=1)
    cache = model.make_cache(2, 60)
    model(ids[:, :9], context=cache, lengths=[9, 2])
    saved, states = [cache.snapshot(b) for b in range(2)], [_states(cache, b) for b in range(2)]
    assert [state.length for state in saved] == [9, 2]
    assert [_same(state.tensors, held) for state, held in zip(saved, states, strict=True)] == [True, True]
    expected = [model(ids[:, n, None], context=cache) for n in range(9, 13)]
    assert [_same(state.tensors, held) for state, held in zip(saved, states, strict=True)] == [True, True]  # copies
    assert not any(_same(_states(cache, b), states[b]) for b in range(2))
    for b in range(2):
        cache.restore(b, saved[b])
    assert cache.lengths == [9, 2]
    assert all(_same(_states(cache, b), states[b]) for b in range(2))
    again = [model(ids[:, n, None], context=cache) for n in range(9, 13)]
    assert all(map(torch.equal, again, expected))
    kept = _states(cache, 0)
    cache.restore(1, saved[1])
    assert cache.lengths == [13, 2]
    assert _same(_states(cache, 0), kept)
    logits = model(other[:, :7], context=cache)
    for b, parts in enumerate([(ids[0, :13], other[0, :7]), (ids[1, :2], other[1, :7])]):
        near(logits[b, -1], _last(case, *parts))


@torch.no_grad()
@each_recurrent
def test_taking_back_tokens_needs_a_snapshot(case: Case) -> None:
    model, ids = ours(case), cases.tokens(case, 3, 12)
    cache = model.make_cache(3, 20)
    model(ids[:, :5], context=cache)
    cache.snapshot(0)
    model(ids[:, 5:], context=cache)
    states, message = [_states(cache, b) for b in range(3)], r"no snapshot of row 1 at 5 tokens, row 2 at 6 tokens"
    with pytest.raises(ValueError, match=rf"lengths=\[5, 5, 6\]: .*{message}; call snapshot\(row\)"):
        cache.truncate([5, 5, 6])
    assert cache.lengths == [12] * 3
    assert all(_same(_states(cache, b), states[b]) for b in range(3))
    cache.truncate([12, 12, 12])
    cache.truncate([5, 12, 0])  # nothing is known without a snapshot
    assert _same(_states(cache, 1), states[1])
    logits = model(ids[:, :2], context=cache)
    for b, before in enumerate((5, 12, 0)):
        near(logits[b, -1], _last(case, ids[b, :before], ids[b, :2]))


@torch.no_grad()
@each_recurrent
def test_snapshots_do_not_outlive_what_they_are_of(case: Case) -> None:
    """Behind a place that a row went back to, it may have read something else."""
    model, ids, other = ours(case), cases.tokens(case, 1, 12), cases.tokens(case, 1, 12, seed=1)
    for back in ("restore", "truncate"):
        cache = model.make_cache(1, 20)
        model(ids[:, :4], context=cache)
        early = cache.snapshot(0)
        model(ids[:, 4:8], context=cache)
        late = cache.snapshot(0)
        assert cache.snapshot(0) is late
        if back == "restore":
            cache.restore(0, early)
        else:
            cache.truncate([4])
        with pytest.raises(ValueError, match="row 0 .* 8 tokens"):
            cache.restore(0, late)
        model(other[:, 4:], context=cache)
        with pytest.raises(ValueError, match="row 0 .* 8 tokens"):
            cache.restore(0, late)
        with pytest.raises(ValueError, match="no snapshot of row 0 at 8 tokens"):
            cache.truncate([8])
        cache.restore(0, early)
        close(model(ids[:, 4:], context=cache), hf_logits(case, ids)[:, 4:])


@torch.no_grad()
@each_recurrent
def test_a_row_that_is_used_again_knows_nothing_of_the_one_before(case: Case) -> None:
    model, ids, other = ours(case), cases.tokens(case, 2, 12), cases.tokens(case, 2, 12, seed=1)
    used, fresh = model.make_cache(2, 20), model.make_cache(2, 20)
    model(ids, context=used)
    used.snapshot(0)
    used.truncate([0, 0])
    assert not any(state.any() for b in range(2) for state in _states(used, b))
    assert torch.equal(model(other[:, :3], context=used), model(other[:, :3], context=fresh))
    used.truncate([3, 0])  # one of them, while the other goes on
    logits = model(ids[:, :2], context=used)
    close(logits[0], hf_logits(case, torch.cat((other[:1, :3], ids[:1, :2]), 1))[0, 3:])
    close(logits[1], hf_logits(case, ids[1:, :2])[0])
    # Another cache's only row in its place
    alone = model.make_cache(1, 20)
    model(other[:1, :5], context=alone)
    used.snapshot(0)
    used.overwrite_row(0, alone)
    assert _same(_states(used, 0), _states(alone, 0))
    near(model(ids[:, 2:3], context=used)[0, 0], _last(case, other[0, :5], ids[0, 2:3]))
    with pytest.raises(ValueError, match="no snapshot of row 0 at 5 tokens"):
        used.truncate([5, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "mixer", [ShortConvConfig(kernel_size=5), GatedDeltaConfig(n_key_head=2, n_value_head=6, key_dim=10, value_dim=4)]
)
def test_what_is_allocated_for_a_row(
    mixer: ShortConvConfig | GatedDeltaConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(6, 2, 8, layers=3).changed(layer_types=("recurrent", "full", "recurrent"), recurrent=mixer)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # which a state is not made of
    try:
        cache = KVCache(config, 4, 10, dtype=dtype)
    finally:
        torch.set_default_dtype(default)
    conv, state = cache._recurrent[0].conv, cache._recurrent[0].state
    channels = 8 if state is None else 2 * 2 * 10 + 6 * 4
    assert (conv.shape, conv.dtype) == ((4, mixer.kernel_size - 1, channels), dtype)
    if isinstance(mixer, GatedDeltaConfig):
        assert state is not None
        assert (state.shape, state.dtype) == ((4, 6, 10, 4), torch.float32)
    tensors = cache._row_tensors()
    assert len(tensors) == len({t.data_ptr() for t in tensors}) == (2 if state is None else 4)
    assert not any(t.any() for t in tensors)
    size = config.state_bytes_per_row(dtype.itemsize)
    assert sum(t.untyped_storage().nbytes() for t in tensors) == 4 * size > 0
    kept = [t for t in [*cache.k, *cache.v] if t is not None]
    assert sum(t.untyped_storage().nbytes() for t in kept) == 4 * 16 * config.kv_bytes_per_token(dtype.itemsize)
