"""Models with packed rows beside each document alone: transformers' logits, losses and gradients, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import cases
from parity.cases import Case, close, hf_logits, ours
from test_packing import can_use_varlen_anywhere, varlen_stub
from torch import Tensor
from torch._dynamo.utils import counters

from litlm.context import Packed, base
from litlm.context import packed as context_module
from litlm.data.base import IGNORE, Example, best_fit_decreasing, micro_batches
from litlm.model import GPT
from litlm.ops import sdpa as attention_module
from litlm.ops.delta_rule import CHUNK
from litlm.train.loss import NextToken
from litlm.transforms.blocks import training_blocks

# One for each part that knows of places: windows, chunks, ropes, learned positions, ALiBi, temperature, shared keys.
NAMES = [
    "llama-plain", "qwen3-sliding-pattern", "qwen3-sliding-one", "gemma2-plain", "gemma3_text-two-ropes",
    "gpt_oss-default-yarn", "bloom-five-heads", "mpt-clip-scale", "llama4_text-small-chunks", "deepseek_v3-yarn",
    "phi3-mini4", "gpt2-plain", "opt-plain", "gpt_neo-alternating", "mixtral-window-tied", "qwen3_moe-plain",
    "gemma4_text-shared-kv", "gemma4_text-layer-inputs", "cohere2-plain", "lfm2-wide-kernel-biases-untied",
    "qwen3_next-many-values-per-key-biases", "qwen3_5_text-plain",
]  # fmt: skip
CASES = [cases.by_name(name) for name in NAMES]
# Ropes that depend on the length, on both sides of the limits (128 to 130).
LENGTHS = [cases.by_name(name) for name in ("internlm3-dynamic", "phi3-longrope-short", "phi3-mini4")]
ROWS = [[1, 17, 8], [9, 1, 1, 5], [26], [3, 11]]
LONG_ROWS = [[20, 150], [140, 1, 29], [100, 60]]
RECURRENT = [case for case in CASES if case.family in ("lfm2", "qwen3_next", "qwen3_5_text")]
# Shorter than a convolution, within a chunk of the delta rule (64 tokens), at its ends and beyond them.
CHUNK_ROWS = [[63, 2, 1, 64, 65], [1, 1, 127, 1, 62], [3, 128, 64], [194], [20, 5, 30, 2, 70, 3, 64]]
PATHS = ["each", "mask", "varlen", "flex"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _through(path: str, patch: pytest.MonkeyPatch) -> None:
    """The ways of `Packed`: each document on the CPU; masks (compiled code, other devices); the kernels of CUDA."""
    if path == "mask":
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
    elif path == "varlen":
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_stub)
        patch.setattr(context_module, "can_use_varlen", can_use_varlen_anywhere)
    elif path == "flex":
        from torch.nn.attention import flex_attention as module

        _can_use_flex_anywhere(patch)
        patch.setattr(attention_module, "_flex_kernel", lambda: module.flex_attention)
        patch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
        patch.setattr(module, "_warn_once", lambda *args, **kwargs: None, raising=False)


def _can_use_flex_anywhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(base, "can_use_flex_attention", lambda q, v, spec, *, has_sinks_or_slopes, packed: packed)


@cache
def _rows(case: Case, long: bool = False) -> tuple[Tensor, list[tuple[int, slice]]]:
    """Tokens (B, T) of packed rows with two places of padding, and where each document is."""
    rows = LONG_ROWS if long else ROWS
    ids = cases.tokens(case, len(rows), max(map(sum, rows)) + 2, seed=9)
    places = [(b, slice(sum(row[:i]), sum(row[: i + 1]))) for b, row in enumerate(rows) for i in range(len(row))]
    return ids, places


@cache
def _alone(case: Case, long: bool = False) -> list[Tensor]:
    """transformers' logits of each document."""
    ids, places = _rows(case, long)
    out = []
    for b, own in places:
        hf_logits(case, ids[:1, :1])  # its dynamic rope remembers longer rows; this makes it forget
        out.append(hf_logits(case, ids[b : b + 1, own])[0])
    return out


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("case", "long"), [*((c, False) for c in CASES), *((c, True) for c in LENGTHS)], ids=str)
def test_logits(case: Case, long: bool, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, places) = ours(case), _rows(case, long)
    expected = _alone(case, long)
    single = [model(ids[b : b + 1, own])[0] for b, own in places]
    _through(path, monkeypatch)
    actual = model(ids, context=Packed(LONG_ROWS if long else ROWS))
    assert actual.isfinite().all()
    for (b, own), theirs, mine in zip(places, expected, single, strict=True):
        close(actual[b, own], theirs)
        close(actual[b, own], mine)
    if long:  # it does matter here which length a token's rope takes
        whole = model(ids, context=Packed([[sum(row)] for row in LONG_ROWS]))
        b, own = places[0]
        assert (whole[b, own] - expected[0]).abs().max() > 1e-3 * expected[0].abs().max()


@pytest.mark.parametrize("path", ["each", "mask"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_token_sees_another_document(case: Case, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a document's logits are exactly zero at the embeddings of all others."""
    _through(path, monkeypatch)
    model, (ids, places) = ours(case), _rows(case)
    states: list[Tensor] = []

    def leaf(module: Any, args: Any, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())
        return states[-1]

    handle = model.embed.register_forward_hook(leaf)
    try:
        logits = model(ids, context=Packed(ROWS))
    finally:
        handle.remove()
    for b, own in (places[1], places[2], places[4], places[6]):
        weight = torch.linspace(-1, 1, logits[b, own].numel()).view_as(logits[b, own])
        (grad,) = torch.autograd.grad((logits[b, own] * weight).sum(), states[0], retain_graph=True)
        assert (grad[b, own].abs().sum(-1) > 0).all()
        grad[b, own] = 0
        assert (grad == 0).all()


def _examples(case: Case, seed: int) -> list[Example]:
    """Documents of 1 to 23 tokens, of which some are learned."""
    gen = torch.Generator().manual_seed(seed)
    out = []
    for n in (2, 24, 9, 5, 2, 17, 3):
        learn = (torch.rand(n, generator=gen) < 0.7).tolist()
        out.append(Example(cases.tokens(case, 1, n, seed=100 * seed + n)[0].tolist(), [*learn[:-1], True]))
    return out


@cache
def _separate(case: Case) -> tuple[float, dict[str, Tensor]]:
    """The summed loss and its gradients, a document at a time, from whole logits."""
    model = ours(case)
    total = torch.zeros((), dtype=torch.float64)
    grads = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for e in _examples(case, 1):
        targets = torch.tensor([t if learn else IGNORE for t, learn in zip(e.ids, e.learn, strict=True)][1:])
        logits = model(torch.tensor([e.ids[:-1]]))[0]
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        total += loss.item()
        parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for name, part in zip(grads, parts, strict=True):
            grads[name] += 0 if part is None else part
    return total.item(), grads


def _check_training(case: Case, model: GPT) -> None:
    batches = micro_batches(_examples(case, 1), 2, 26, packing=True)
    assert sum(len(batch.tokens) for batch in batches) == len(best_fit_decreasing([1, 23, 8, 4, 1, 16, 2], 26)) == 3
    assert any(sum(row) < batch.tokens.size(1) for batch in batches for row in batch.lengths)  # some padding
    expected, grads = _separate(case)
    objective, total = NextToken(), 0.0
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        loss = objective.loss_sum(model, batch)
        total += loss.item()
        parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for name, part in zip(sums, parts, strict=True):
            sums[name] += 0 if part is None else part
    assert total == pytest.approx(expected, rel=1e-5)
    norm = torch.stack([g.norm() for g in grads.values()]).norm()
    for name, grad in grads.items():
        assert sums[name].isfinite().all(), name
        error = (sums[name] - grad).norm() / max(grad.norm(), 1e-2 * norm)
        assert error <= 1e-4, f"{name}: {error:.1e}"  # as for gradients of whole rows in tests/parity


@pytest.mark.parametrize(
    ("case", "path"),
    [
        *((case, path) for case in CASES for path in ("each", "mask")),
        *((case, "varlen") for case in CASES if case.family in ("llama", "gemma3_text", "gemma4_text", "qwen3_moe")),
    ],
    ids=str,
)
def test_losses_and_gradients(case: Case, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _separate(case)
    _through(path, monkeypatch)
    _check_training(case, ours(case))


def _weighted(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


@pytest.mark.parametrize("case", RECURRENT, ids=str)
def test_documents_around_the_chunks_of_a_recurrence(case: Case) -> None:
    """Logits of each document are those of transformers, gradients those of the documents alone."""
    assert CHUNK == 64
    model, ids = cases.ours(case), cases.tokens(case, len(CHUNK_ROWS), 197, seed=5)
    packed, parameters = model(ids, context=Packed(CHUNK_ROWS)), dict(model.named_parameters())
    assert packed.isfinite().all()
    found, places, sums = torch.zeros(()), [], {name: torch.zeros_like(p) for name, p in parameters.items()}
    for b, row in enumerate(CHUNK_ROWS):
        places += [(b, slice(end - n, end)) for n, end in zip(row, accumulate(row), strict=True)]
    for b, own in places:
        close(packed[b, own].detach(), hf_logits(case, ids[b : b + 1, own])[0])
        found = found + _weighted(packed[b, own])
        parts = torch.autograd.grad(_weighted(model(ids[b : b + 1, own])[0]), list(parameters.values()))
        for name, part in zip(sums, parts, strict=True):
            sums[name] += part
    norm = torch.stack([g.norm() for g in sums.values()]).norm()
    for name, grad in zip(sums, torch.autograd.grad(found, list(parameters.values())), strict=True):
        error = (grad - sums[name]).norm() / max(sums[name].norm(), 1e-2 * norm)
        assert error <= 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", RECURRENT, ids=str)
def test_no_token_sees_another_document_of_a_chunk(case: Case) -> None:
    model, (row,) = cases.ours(case), [[70, 40, 3, 80]]
    ids, states = cases.tokens(case, 1, sum(row), seed=6), []

    def leaf(module: Any, args: Any, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())
        return states[-1]

    handle = model.embed.register_forward_hook(leaf)
    try:
        logits = model(ids, context=Packed([row]))
    finally:
        handle.remove()
    for n, end in zip(row, accumulate(row), strict=True):
        own = slice(end - n, end)
        (grad,) = torch.autograd.grad(_weighted(logits[:, own]), states[0], retain_graph=True)
        assert (grad[:, own].abs().sum(-1) > 0).all()
        grad[:, own] = 0
        assert (grad == 0).all()


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("path", ["each", "mask"])
@pytest.mark.parametrize(
    "name", ["gemma4_text-shared-kv", "gpt_oss-default-yarn", "lfm2-wide-kernel-biases-untied", "qwen3_5_text-plain"]
)
def test_layers_that_are_computed_again(
    name: str, path: str, checkpointing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.by_name(name)
    _separate(case)
    _through(path, monkeypatch)
    with training_blocks(ours(case), checkpointing=checkpointing):
        _check_training(case, ours(case))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler reads
def test_compiled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.by_name("qwen3-sliding-one")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    with training_blocks(ours(case), compile=True):
        _check_training(case, ours(case))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("path", ["mask", "varlen", "flex"])
def test_other_documents_compile_nothing_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph does not depend on how many documents there are or where they end."""
    case = cases.by_name("qwen3-sliding-one")
    model, ids = ours(case), cases.tokens(case, 3, 26)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    if path == "varlen":
        monkeypatch.setattr(context_module, "can_use_varlen", can_use_varlen_anywhere)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _opaque)
    elif path == "flex":
        _can_use_flex_anywhere(monkeypatch)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    with training_blocks(model, compile=True):
        for rows in (
            [[1, 17, 8], [9, 1, 1, 5], [26]],
            [[26], [5, 21], [1] * 20],
            [[26]] * 3,
            [[2] * 13, [4], [1] * 26],
        ):
            model(ids, context=Packed(rows))
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 4
    assert not counters["graph_break"]


def _opaque(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
            *, scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """Something of the right shape, without a loop over values as a kernel has none."""
    return query + cu_seq_q[1] + value.repeat_interleave(query.size(1) // value.size(1), dim=1)
