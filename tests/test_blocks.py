"""Layers that are compiled, or computed again in the backward pass: gradients, what is kept, graphs, and the way back.

transformers' gradients are the reference where it can compute them; elsewhere the same model without the transform.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from parity import cases
from parity.cases import Case
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from litlm.config import GatedDeltaConfig
from litlm.context import Causal, Context, Packed
from litlm.model import GPT, DecoderLayer
from litlm.model.mlp import MLP
from litlm.model.moe import watch_routers
from litlm.settings import MethodSettings
from litlm.transforms import blocks
from litlm.transforms.blocks import training_blocks
from litlm.transforms.compile import compile_decoding
from litlm.transforms.fp8 import fp8_training
from litlm.transforms.lora import adapters, apply_lora

NAMES = [
    "llama-plain", "qwen3-sliding-pattern", "gemma2-plain", "gemma3_text-two-ropes", "mixtral-window-tied",
    "deepseek_v3-yarn", "lfm2-plain",
    "qwen3_next-many-values-per-key-biases",
]  # fmt: skip
PARALLEL = ["gpt_neox-parallel", "cohere-plain"]
MODES: list[Any] = ["selective", "full"]
# The compiler itself reads .grad of tensors that are no leaves, and uses what Python calls deprecated.
compiler = pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
Grads = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the compiler but the code that it writes, which would take seconds for each graph."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def grads(model: GPT, ids: Tensor, context: Context | None = None, extra: Callable[[], Any] = float) -> Grads:
    """Gradients of a sum of all logits, each with its own weight."""
    model.zero_grad(set_to_none=True)
    logits = model(ids, context=context)
    loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum() + extra()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def check(actual: Grads, expected: Grads, rtol: float = 2e-5) -> None:
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm > 0
    for name, grad in expected.items():
        error = (actual[name] - grad).norm() / max(grad.norm(), 1e-2 * norm)
        assert error <= rtol, f"{name}: {error:.1e}"


def same(actual: Grads, expected: Grads) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.equal(actual[name], grad), name


def theirs(case: Case, ids: Tensor) -> Grads:
    model = cases.build(case)
    model.zero_grad(set_to_none=True)
    logits = model(ids, use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    found = cases.gradients(case)
    model.zero_grad(set_to_none=True)
    return {name: found[name] for name, _ in cases.ours(case).named_parameters()}


def with_lora(model: GPT, dropout: float = 0.0, targets: tuple[str, ...] = ("all-linear",)) -> GPT:
    apply_lora(model, MethodSettings(name="lora", r=3, dropout=dropout, targets=targets))
    gen = torch.Generator().manual_seed(5)
    for _, lora in adapters(model):
        lora.B.data = torch.randn(lora.B.shape, generator=gen) * 0.1
    return model.train()


# --- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_transformers(name: str, checkpointing: Any) -> None:
    case = cases.by_name(name)
    ids, model = cases.tokens(case, 2, 21), cases.ours(case)
    with training_blocks(model, checkpointing=checkpointing):
        check(grads(model, ids), theirs(case, ids), 1e-4)


@pytest.mark.parametrize("checkpointing", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_packed_and_padded_rows_and_adapters(name: str, checkpointing: Any) -> None:
    """The same products in the same order: to the last bit."""
    case = cases.by_name(name)
    ids, model = cases.tokens(case, 3, 26), with_lora(cases.load(cases.write(case)))
    for make in (lambda: Causal([26, 7, 1]), lambda: Packed([[1, 17, 8], [9, 1, 5], [26]])):
        expected = grads(model, ids, make())
        assert len(expected) == 2 * len(list(adapters(model))) > 0
        with training_blocks(model, checkpointing=checkpointing):
            same(grads(model, ids, make()), expected)


@pytest.mark.parametrize("checkpointing", MODES)
def test_dropout_drops_the_same_again(checkpointing: Any) -> None:
    case = cases.by_name("llama-plain")
    ids, model = cases.tokens(case, 2, 9), with_lora(cases.load(cases.write(case)), dropout=0.4)
    torch.manual_seed(3)
    expected, state = grads(model, ids), torch.get_rng_state()
    with training_blocks(model, checkpointing=checkpointing):
        torch.manual_seed(3)
        same(grads(model, ids), expected)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(4)
        assert any(not torch.equal(grad, expected[n]) for n, grad in grads(model, ids).items())


COMPILED = [
    ("llama-plain", "full"), ("gemma2-plain", "selective"), ("mixtral-window-tied", "none"),
    ("mixtral-window-tied", "selective"), ("deepseek_v3-yarn", "full"),
]  # fmt: skip


@pytest.mark.slow
@compiler
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("name", "checkpointing"), COMPILED)
def test_compiled_gradients_are_those_of_transformers(name: str, checkpointing: Any) -> None:
    case = cases.by_name(name)
    ids, model = cases.tokens(case, 2, 21), cases.ours(case).train()
    with training_blocks(model, compile=True, checkpointing=checkpointing):
        check(grads(model, ids), theirs(case, ids), 1e-4)
    model.eval()
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@compiler
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_with_adapters_and_packed_rows(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters of the two layers differ, so one layer's graph is wrong in the other."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = with_lora(tiny.load().model, targets=("layers.0.attn.q_proj", "layers.1.mlp.up_proj"))
    ids = torch.randint(300, (2, 13), generator=torch.Generator().manual_seed(1))
    rows = [[4, 9], [13]]
    expected = grads(model, ids, Packed(rows))
    with training_blocks(model, compile=True, checkpointing="selective"):
        check(grads(model, ids, Packed(rows)), expected)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.slow
@compiler
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("checkpointing", MODES)
def test_compiled_dropout_drops_the_same_again(checkpointing: Any) -> None:
    """Gradients beside differences of the loss, in float64 but for the adapters, which are fp32."""
    model = with_lora(tiny.load().model, dropout=0.4)
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    slope = torch.linspace(-1, 1, 2 * 9 * 48).view(2, 9, 48)
    adapted = [lora.B for _, lora in adapters(model)]
    gen = torch.Generator().manual_seed(2)
    direction = [torch.randn(b.shape, generator=gen) for b in adapted]

    def loss(step: float) -> Tensor:
        for b, d in zip(adapted, direction, strict=True):
            b.data += step * d
        torch.manual_seed(7)
        out = (model(ids, output="hidden").double() * slope).sum()
        for b, d in zip(adapted, direction, strict=True):
            b.data -= step * d
        return out

    with training_blocks(model, compile=True, checkpointing=checkpointing):
        found = torch.autograd.grad(loss(0.0), adapted)
        slope_found = sum((g * d).sum().item() for g, d in zip(found, direction, strict=True))
        slopes = [((loss(h) - loss(-h)) / (2 * h)).item() for h in (1e-3, 2e-3)]
    expected = (4 * slopes[0] - slopes[1]) / 3
    assert slope_found == pytest.approx(expected, rel=2e-3)
    assert abs(expected) > 1e-2


# --- what is kept --------------------------------------------------------------------------------------------------


class Watched(TorchDispatchMode):
    """How often products run, and how many bytes of what was made are still there."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.weights = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
        self.made: dict[StorageWeakRef, int] = {}
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "_linear_pointwise")
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return out

    def alive(self) -> int:
        return sum(n for ref, n in self.made.items() if not ref.expired() and ref not in self.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_and_what_is_computed_again(dtype: torch.dtype) -> None:
    config = tiny.shared().config.changed(n_layer=4)
    model = GPT(config).to(dtype)
    ids = torch.randint(300, (2, 64))
    x = 2 * 64 * config.n_embd * model.embed.weight.element_size()
    kept, forward, backward = {}, {}, {}
    for mode in ("none", *MODES):
        with training_blocks(model, checkpointing=mode), Watched(model) as watched:
            hidden = model(ids, output="hidden")
            kept[mode], forward[mode] = watched.alive(), watched.products
            hidden.float().sum().backward()
            backward[mode] = watched.products - forward[mode]
    products = 7 * config.n_layer
    assert set(forward.values()) == {products}
    assert backward["none"] == backward["selective"] == 2 * products
    # Each anew, but for a layer's last product where its result is in no gradient (`ops.linear` in fp32 is one whole).
    assert backward["full"] == 3 * products - (config.n_layer if dtype == torch.bfloat16 else 0)
    # A layer's input each; beside them the last states, of which the norm keeps some in fp32, and tables of positions.
    assert kept["full"] <= (config.n_layer + 6) * x
    of_products = sum(
        2 * 64 * m.out_features * model.embed.weight.element_size()
        for n, m in model.layers.named_modules() if isinstance(m, torch.nn.Linear)
    )  # fmt: skip
    assert kept["selective"] >= of_products
    assert kept["full"] < 0.5 * kept["selective"]
    assert kept["selective"] < 0.8 * kept["none"]


@pytest.mark.slow
@compiler
@pytest.mark.usefixtures("traced")
def test_what_compiled_layers_keep() -> None:
    case = cases.by_name("llama-plain")
    ids, model = cases.tokens(case, 2, 64), cases.load(cases.write(case))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}
    for mode in ("none", *MODES):
        seen: dict[int, int] = {}

        def pack(t: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with (
            training_blocks(model, compile=True, checkpointing=mode),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            hidden = model(ids, output="hidden")
        kept[mode] = sum(size for at, size in seen.items() if at not in own)
        hidden.sum().backward()
    of_products = sum(
        2 * 64 * 4 * m.out_features for _, m in model.layers.named_modules() if isinstance(m, torch.nn.Linear)
    )
    assert kept["full"] <= (model.config.n_layer + 6) * hidden.numel() * 4
    assert kept["full"] < 0.5 * kept["selective"]
    # o_proj and down_proj go into sums and are in no gradient.
    assert 0.6 * of_products <= kept["selective"] < 0.8 * kept["none"]


# --- MLPs in pieces ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_MIN_ROWS", 4), ("_MIN_WIDTH", 16), ("_PIECES", 4), ("_PACKED_PIECES", 8)):
        monkeypatch.setattr(blocks, name, value)


class Rows:
    """How many rows each pass through an MLP had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        plain = MLP.forward

        def forward(mlp: MLP, x: Tensor) -> Tensor:
            self.seen.append(x.numel() // x.size(-1))
            return plain(mlp, x)

        monkeypatch.setattr(MLP, "forward", forward)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["llama-plain", "gemma2-plain", "deepseek_v3-yarn", *PARALLEL])
def test_pieces_have_the_gradients_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The MLPs' own weights are frozen; everything before them gets its gradient through them."""
    case, rows = cases.by_name(name), Rows(monkeypatch)
    model, ids = cases.load(cases.write(case)), cases.tokens(case, 3, 9)
    for module in model.modules():
        if isinstance(module, MLP):
            module.requires_grad_(False)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    expected = {n: g for n, g in theirs(case, ids).items() if n in trained}
    with training_blocks(model, checkpointing="full"):
        found = grads(model, ids)
    assert found.keys() == expected.keys()
    check(found, expected, 1e-4)
    whole = sum(isinstance(layer.mlp, MLP) for layer in model.layers)
    assert whole > 0
    assert [n for n in rows.seen if n != 27] == [6, 6, 6, 9] * (2 * whole)  # the last rows, which 4 does not divide


@compiler
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("quantize", "backend"),
    [
        (None, None), (None, "aot_eager"),
        pytest.param("nf4", "aot_eager", marks=pytest.mark.slow),
        pytest.param("nf4", "inductor", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_pieces_with_adapters(quantize: str | None, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend is not None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = with_lora(tiny.load(quantize=quantize).model)
    gen = torch.Generator().manual_seed(1)
    for T in (13, 3) if backend is None else (13,):
        ids = torch.randint(300, (3, T), generator=gen)
        expected = grads(model, ids)
        with training_blocks(model, compile=backend is not None, checkpointing="full"):
            check(grads(model, ids), expected)
    assert not counters["graph_break"]


@pytest.mark.usefixtures("small_pieces")
def test_what_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(24).view(2, 12)

    def passes(model: GPT, rows: Tensor = ids, **options: Any) -> set[int]:
        with monkeypatch.context() as patch:
            seen = Rows(patch)
            with training_blocks(model, **options):
                grads(model, rows)
        assert all(type(layer.mlp) is MLP for layer in model.layers)
        return set(seen.seen)

    model = with_lora(tiny.load().model)
    assert passes(model, checkpointing="full") == {6}
    assert passes(model, ids[:, :5], checkpointing="full") == {5}  # two pieces, or they would be too small
    assert passes(model, ids[:1, :7], checkpointing="full") == {7}
    assert passes(model) == passes(model, checkpointing="selective") == {24}
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_MIN_WIDTH", 73)
        assert passes(model, checkpointing="full") == {24}
    model.layers[1].mlp.up_proj.weight.requires_grad_(True)  # whose gradient would come in pieces
    assert passes(model, checkpointing="full") == {6, 24}
    assert passes(tiny.load().model.train(), checkpointing="full") == {24}
    assert passes(with_lora(tiny.load(quantize="nf4").model), checkpointing="full") == {24}  # each would unpack anew
    with torch.no_grad(), monkeypatch.context() as patch:
        seen = Rows(patch)
        with training_blocks(model, checkpointing="full"):
            model(ids)
    assert set(seen.seen) == {24}


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that PyTorch held at a time of those that it took while `run` ran; in compiled code too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    every = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = [(e.start_ns(), e.nbytes()) for e in every if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(sizes, key=lambda e: e[0])))


@compiler
@pytest.mark.usefixtures("small_pieces", "traced")
@pytest.mark.parametrize("compile", [False, True])
def test_pieces_hold_less(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(GPT(tiny.shared().config.changed(n_layer=1, intermediate_size=512)))
    ids, wide, most = torch.randint(300, (2, 64)), 2 * 64 * 512 * 4, {}
    for pieces in (1, 4):
        monkeypatch.setattr(blocks, "_PIECES", pieces)
        torch._dynamo.reset()
        with training_blocks(model, compile=compile, checkpointing="full"):
            model(ids, output="hidden").sum().backward()  # which compiles
            hidden = model(ids, output="hidden")
            most[pieces] = peak(hidden.sum().backward)
    assert most[1] > 6 * wide
    assert most[4] < most[1] - 2 * wide


# --- routers -------------------------------------------------------------------------------------------------------


@compiler
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("compile", "checkpointing"),
    [
        (False, "none"),
        (False, "selective"),
        (False, "full"),
        pytest.param(True, "none", marks=pytest.mark.slow),
        (True, "full"),
    ],
)
def test_routers_count_each_pass_once(compile: bool, checkpointing: Any) -> None:
    """Statistics and the gradients of the routers' losses, against formulas over transformers' router logits."""
    case = cases.by_name("mixtral-window-tied")
    model, hf = cases.ours(case).train(), cases.build(case)
    k, n = hf.config.num_experts_per_tok, hf.config.num_local_experts

    def expected(ids: Tensor) -> tuple[Grads, float]:
        hf.zero_grad(set_to_none=True)
        out = hf(ids, use_cache=False, output_router_logits=True)
        logits = torch.cat([r.view(-1, n).float() for r in out.router_logits])
        chosen = F.one_hot(logits.topk(k, -1).indices, n).sum(1).float()
        balance = n * (chosen.mean(0) * logits.softmax(-1).mean(0)).sum()
        weight = torch.linspace(-1, 1, out.logits.numel()).view_as(out.logits)
        ((out.logits * weight).sum() + 50 * balance + 5 * logits.logsumexp(-1).square().mean()).backward()
        found = {name: cases.gradients(case)[name] for name, _ in model.named_parameters()}
        hf.zero_grad(set_to_none=True)
        per_layer = chosen.view(len(out.router_logits), -1, n).mean(1) / k
        return found, per_layer.max().item() * n

    with training_blocks(model, compile=compile, checkpointing=checkpointing), watch_routers(model) as watch:
        for seed in (0, 1):
            watch.clear()
            ids = cases.tokens(case, 2, 21, seed=seed)
            found = grads(model, ids, extra=lambda: 50 * watch.balance_loss() + 5 * watch.z_loss())
            theirs, load = expected(ids)
            check(found, theirs, 1e-4)
            assert len(watch.routings) == case.hf["num_hidden_layers"]
            assert watch.statistics()["router_max_load"].item() == pytest.approx(load, rel=1e-6)
        model(ids)  # a second pass before `clear`
        assert len(watch.routings) == 2 * case.hf["num_hidden_layers"]
        graphs = counters["stats"]["unique_graphs"]
        with torch.no_grad():
            model(ids)
        assert len(watch.routings) == 2 * case.hf["num_hidden_layers"]
    model.eval()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    if compile:
        # A window makes a mask in the first layer that the others find; nothing else tells layers apart.
        assert 0 < graphs <= 3
        assert not counters["graph_break"]


def test_what_is_computed_again_is_not_held() -> None:
    case = cases.by_name("mixtral-window-tied")
    model, ids = cases.ours(case), cases.tokens(case, 2, 21)
    for mode in MODES:
        with training_blocks(model, checkpointing=mode), watch_routers(model):
            grads(model, ids)
            assert all(m.last_routing is None for m in model.modules() if hasattr(m, "last_routing"))


# --- graphs --------------------------------------------------------------------------------------------------------


@compiler
@pytest.mark.parametrize("make", [Causal, lambda: Packed([[4, 9], [13]])], ids=["causal", "packed"])
@pytest.mark.parametrize("window", [None, 5])
def test_eight_equal_layers_are_one_graph(make: Callable[[], Context], window: int | None) -> None:
    """As the engine and `training_blocks` compile them, with a mask that they share as well."""
    kind = "full" if window is None else "sliding"
    config = tiny.shared().config.changed(n_layer=8, layer_types=(kind,) * 8, sliding_window=window)
    model, ids = GPT(config).train(), torch.randint(300, (2, 13), generator=torch.Generator().manual_seed(1))
    expected, counter = grads(model, ids, make()), CompileCounter()
    step = torch.compile(DecoderLayer.forward, fullgraph=True, backend=counter)
    undo = blocks.wrap_forward(list(model.layers), lambda forward, layer, *args: step(layer, *args))
    for _ in range(2):
        check(grads(model, ids, make()), expected)
        assert counter.frame_count == 1
    model.layers[3].attn.spec = dataclasses.replace(model.layers[3].attn.spec, window=2)  # one that differs is seen
    grads(model, ids, make())
    assert counter.frame_count == 2
    undo()
    assert not any("forward" in layer.__dict__ for layer in model.layers)


@compiler
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["lfm2-plain", "qwen3_next-many-values-per-key-biases", "qwen3_5_text-plain"])
def test_equal_layers_of_each_kind_are_one_graph(name: str, packed: bool) -> None:
    """Where documents begin is no part of a graph."""
    case = cases.by_name(name)
    types = ("recurrent", "full", "recurrent", "recurrent", "full", "recurrent")
    config, rope_layers = cases.ours(case).config, tuple(t == "full" for t in types)
    moe_layers = (config.moe is not None,) * 6
    config = config.changed(n_layer=6, layer_types=types, rope_layers=rope_layers, moe_layers=moe_layers)
    model, ids = GPT(config).train(), cases.tokens(case, 2, 70)
    rows = [[[4, 66], [70]], [[1, 1, 68], [64, 6]]] if packed else [None, None]
    contexts = [Causal() if row is None else Packed(row) for row in rows]
    expected, counter = [grads(model, ids, context) for context in contexts], CompileCounter()
    step = torch.compile(DecoderLayer.forward, fullgraph=True, backend=counter)
    undo = blocks.wrap_forward(list(model.layers), lambda forward, layer, *args: step(layer, *args))
    for context, wanted in zip(contexts, expected, strict=True):
        check(grads(model, ids, context), wanted)
        assert counter.frame_count == 2
    undo()


@compiler
@pytest.mark.usefixtures("small_pieces")
def test_pieces_do_not_tell_layers_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ids, counts = torch.randint(300, (2, 13), generator=torch.Generator().manual_seed(1)), []
    for n_layer in (2, 6):
        model = with_lora(GPT(tiny.shared().config.changed(n_layer=n_layer)))
        torch._dynamo.reset()
        counters.clear()
        with training_blocks(model, compile=True, checkpointing="full"):
            grads(model, ids)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1] > 0


@compiler
@pytest.mark.parametrize(("family", "most"), [("llama", 2), ("mixtral", 3), ("qwen3", 6)])
def test_graphs_do_not_grow_with_layers_or_steps(family: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    name = {"llama": "llama-plain", "mixtral": "mixtral-window-tied", "qwen3": "qwen3-sliding-pattern"}[family]
    config = cases.ours(cases.by_name(name)).config
    seen = {}
    for n_layer in (4, 8):
        kinds = ("full", "sliding") if family == "qwen3" else config.layer_types[:1]
        model = GPT(config.changed(n_layer=n_layer, layer_types=(kinds * 8)[:n_layer])).train()
        torch._dynamo.reset()
        counters.clear()
        counts = []
        with training_blocks(model, compile=True):
            for step in range(4):
                ids = torch.randint(model.config.vocab_size, (2, 21), generator=torch.Generator().manual_seed(step))
                with watch_routers(model):  # anew in each step, as `fit` does
                    grads(model, ids)
                counts.append(counters["stats"]["unique_graphs"])
        assert counts == counts[:1] * 4
        seen[n_layer] = counts[0]
    assert seen[4] == seen[8] > 0
    assert seen[4] <= most


@pytest.mark.slow
@compiler
@pytest.mark.usefixtures("traced")
def test_packed_rows_of_other_lengths_make_few_graphs() -> None:
    model = tiny.load().model.train()
    with training_blocks(model, compile=True, checkpointing="full"):
        counts = []
        for rows, T in (([[4, 9], [13]], 13), ([[1, 1, 11], [2, 6, 5]], 13), ([[20], [5, 5]], 20), ([[8, 8], [3]], 16)):
            grads(model, torch.ones(2, T, dtype=torch.long), Packed(rows))
            counts.append(counters["stats"]["unique_graphs"])
    assert counts[1] == counts[0]  # other documents
    assert counts[2] <= 2 * counts[0]  # another length, which is dynamic from then on
    assert counts[3] == counts[2]


@pytest.mark.slow
@compiler
@pytest.mark.usefixtures("traced", "small_pieces")
def test_pieces_of_other_lengths_make_few_graphs() -> None:
    model = with_lora(tiny.load().model)
    counts = []
    for T in (9, 13, 20, 21, 26):
        ids = torch.randint(300, (2, T), generator=torch.Generator().manual_seed(T))
        expected = grads(model, ids)
        with training_blocks(model, compile=True, checkpointing="full"):
            check(grads(model, ids), expected)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[-1] == counts[1] <= 2 * counts[0]


# --- around it -----------------------------------------------------------------------------------------------------


@compiler
@pytest.mark.parametrize(("compile", "checkpointing"), [(False, "full"), (True, "selective"), (True, "none")])
def test_generation_goes_around_it(compile: bool, checkpointing: Any) -> None:
    llm = tiny.load()
    options: dict[str, Any] = dict(max_new_tokens=7, ignore_eos=True, return_ids=True)
    expected = llm.generate(["The quick", "ab ba"], **options)
    with training_blocks(llm.model, compile=compile, checkpointing=checkpointing):
        assert llm.generate(["The quick", "ab ba"], **options) == expected
    assert not counters["stats"]


@compiler
def test_everything_is_undone() -> None:
    model = tiny.load().model
    before = torch._dynamo.config.skip_nnmodule_hook_guards, torch._dynamo.config.recompile_limit
    for fails in (False, True):
        for compile in (False, True):
            with (
                pytest.raises(KeyError) if fails else nullcontext(),
                training_blocks(model, compile=compile, checkpointing="full"),
            ):
                assert all("forward" in layer.__dict__ for layer in model.layers)
                if fails:
                    raise KeyError
            assert not any("forward" in layer.__dict__ for layer in model.layers)
            assert (torch._dynamo.config.skip_nnmodule_hook_guards, torch._dynamo.config.recompile_limit) == before
    compile_decoding(model)
    forwards = [layer.forward for layer in model.layers]
    with training_blocks(model, checkpointing="full"):
        pass
    assert [layer.forward for layer in model.layers] == forwards


# --- FP8 -----------------------------------------------------------------------------------------------------------


class Halved(torch.nn.Linear):
    """A stand-in for torchao's layer: it is visible that it ran."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) / 2


def stub(seen: list[Any]) -> ModuleType:
    """torchao.float8, as far as litlm uses it: layers are replaced by others with the same parameters."""

    @dataclass(frozen=True)
    class Float8LinearConfig:
        recipe: str = "tensorwise"
        emulate: bool = False
        pad_inner_dim: bool = False

        @staticmethod
        def from_recipe_name(name: str) -> Float8LinearConfig:
            return Float8LinearConfig(name)

    def convert(module: Any, *, module_filter_fn: Any, config: Any) -> Any:
        seen.append(config)
        for name, layer in list(module.named_modules()):
            if isinstance(layer, torch.nn.Linear) and module_filter_fn(layer, name):
                with torch.device("meta"):
                    new = Halved(layer.in_features, layer.out_features, bias=False)
                new.weight, new.bias = layer.weight, layer.bias
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, new)
        return module

    float8 = ModuleType("torchao.float8")
    float8.Float8LinearConfig, float8.convert_to_float8_training = Float8LinearConfig, convert  # type: ignore[attr-defined]
    return float8


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    tiny.shared(), tiny.load(quantize="nf4")  # which import what would look for torchao
    seen: list[Any] = []
    package = ModuleType("torchao")
    package.float8 = stub(seen)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.float8", package.float8)
    return seen


def fp8_model(**fields: Any) -> GPT:
    """Width 48 and queries of 4 * 16; keys and values of 2 * 16; an intermediate size that is no multiple of 16."""
    return GPT(tiny.shared().config.changed(**(dict(head_dim=16) | fields)))


def test_fp8_layers_come_and_go(torchao: list[Any]) -> None:
    model = fp8_model()
    before, layers = dict(model.named_parameters()), dict(model.named_modules())
    plain = model(torch.tensor([[1, 2, 3]]))
    for fails in (False, True):
        with pytest.raises(KeyError) if fails else nullcontext(), fp8_training(model, emulate=True) as names:
            assert names == [f"layers.{i}.attn.{p}" for i in (0, 1) for p in ("q_proj", "k_proj", "v_proj", "o_proj")]
            assert all(isinstance(model.get_submodule(name), Halved) for name in names)
            assert sum(isinstance(m, Halved) for m in model.modules()) == 8  # 72 is no multiple of 16
            now = dict(model.named_parameters())
            assert now.keys() == before.keys()
            assert all(now[name] is p for name, p in before.items())
            assert (model(torch.tensor([[1, 2, 3]])) - plain).abs().max() > 1e-3 * plain.abs().max()
            model.eval()
            if fails:
                raise KeyError
        assert dict(model.named_modules()) == layers
        assert not any(m.training for m in model.modules())
        assert torch.equal(model(torch.tensor([[1, 2, 3]])), plain)
    with fp8_training(model, emulate=True):
        assert not any(m.training for m in model.modules())
        model.train()
    assert all(m.training for m in model.modules())
    assert [(c.recipe, c.emulate, c.pad_inner_dim) for c in torchao] == [("tensorwise", True, True)] * 3


def test_fp8_leaves_small_gates(torchao: list[Any]) -> None:
    """Those of Gated DeltaNet have sizes that FP8 kernels take."""
    delta = GatedDeltaConfig(n_key_head=16, n_value_head=16, key_dim=4, value_dim=4)
    model = fp8_model(recurrent=delta, layer_types=["recurrent"] * 2)
    with fp8_training(model, emulate=True) as names:
        parts = ("in_proj_qkv", "in_proj_z", "out_proj")
        assert names == [f"layers.{i}.attn.{part}" for i in (0, 1) for part in parts]


def test_fp8_has_conditions(torchao: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(model: GPT, **options: Any) -> str:
        with pytest.raises(ValueError) as e, fp8_training(model, **options):
            pass
        return str(e.value)

    assert "needs a CUDA device of capability 8.9 or more, and the model is on cpu" in problem(fp8_model())
    lora = problem(with_lora(fp8_model(), targets=("k_proj",)), emulate=True)
    assert "layers.0.attn.k_proj is a Linear with adapters or quantized weights" in lora
    assert "use method full, or leave fp8 out" in lora
    both = problem(with_lora(fp8_model(), targets=("k_proj",)))
    assert "on cpu" in both
    assert "layers.0.attn.k_proj" in both
    odd = problem(fp8_model(n_embd=40), emulate=True)
    assert "no linear layer in the decoder layers has sizes divisible by 16" in odd
    quantized = problem(tiny.load(quantize="nf4").model, emulate=True)
    assert "is a QuantizedLinear with adapters or quantized weights" in quantized
    assert torchao == []
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    missing = problem(fp8_model())
    assert "fp8=True needs torchao" in missing
    assert "pip install torchao" in missing


@pytest.mark.filterwarnings("ignore")  # of torchao and what it imports
def test_fp8_emulated() -> None:
    """torchao's rounding, beside the formula: the largest value of a matrix becomes E4M3's 448, or of a gradient E5M2's
    largest."""
    pytest.importorskip("torchao.float8", exc_type=ImportError)
    torch.manual_seed(0)
    model = fp8_model().bfloat16()
    layer = model.layers[0].attn.q_proj
    x = torch.randn(5, 48, dtype=torch.bfloat16, requires_grad=True)  # five rows: the weight's gradient needs padding
    w = layer.weight

    def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
        wide = t.detach().double()
        scale = (torch.finfo(dtype).max / wide.abs().amax()).float().double()
        return (wide * scale).float().to(dtype).double() / scale

    def close_to(actual: Tensor, expected: Tensor) -> None:
        assert (actual.double() - expected).norm() <= 1e-2 * expected.norm()

    with fp8_training(model, emulate=True):
        y = model.layers[0].attn.q_proj(x)
        grad = torch.randn_like(y)
        y.backward(grad)
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    close_to(y, rounded(x, e4m3) @ rounded(w, e4m3).T)
    close_to(x.grad, rounded(grad, e5m2) @ rounded(w, e4m3))  # type: ignore[arg-type]
    close_to(w.grad, rounded(grad, e5m2).T @ rounded(x, e4m3))  # type: ignore[arg-type]
    assert (y.double() - x.double() @ w.double().T).norm() > 5e-3 * y.double().norm()
    w.grad = None
    ids = torch.randint(300, (2, 9))
    expected = grads(model.float(), ids)
    with fp8_training(model, emulate=True), training_blocks(model, checkpointing="full"):
        check(grads(model, ids), expected, 0.5)
