"""Training on one CUDA device: the CPU's losses and gradients, compiled or not, packed or not; whole runs; memory.

The CPU's numbers are compared with transformers elsewhere. Here the device's kernels (packed attention, the loss,
grouped products, compiled layers) are compared with it. Compiling takes most of the time (5 to 15 s for a kind of
layer), so each part of it is compiled in few tests. No file and no network is needed.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from litlm.checkpoint.training import Checkpoints, get_random_states
from litlm.config import Config
from litlm.context import Packed
from litlm.data.base import Batch, Example, TokenizedDataset
from litlm.data.preference import PreferenceDataset
from litlm.llm import LLM
from litlm.model import GPT
from litlm.settings import MethodSettings, PreferenceSettings, TrainSettings
from litlm.train import Result, fit
from litlm.train.flops import peak_flops
from litlm.train.loss import NextToken, Objective, loss_sum
from litlm.train.methods import apply_method
from litlm.train.preference import Preference
from litlm.train.report import Report
from litlm.transforms.blocks import training_blocks

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]

FP32, BF16 = torch.float32, torch.bfloat16
VOCAB, WIDTH = 320, 192  # the kernels that attend to packed rows with capped scores begin at rows of 128
_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
)  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": dict(tie_word_embeddings=True),
    "gemma2": dict(sliding_window=40, query_pre_attn_scalar=48),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
}
FAMILIES = list(_OWN)
METHODS = {
    "full": MethodSettings(name="full"),
    "lora": MethodSettings(name="lora"),
    "dora": MethodSettings(name="lora", dora=True),
    "nf4": MethodSettings(name="qlora", quantize="nf4"),
    "int8": MethodSettings(name="qlora", quantize="int8"),
    "adapter": MethodSettings(name="adapter", start_layer=0),
    "adapter_v2": MethodSettings(name="adapter_v2", start_layer=0),
    "experts": MethodSettings(name="lora", targets=("all-linear", "experts")),
}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """fp32 products in fp32, whatever the machine's default is; no graphs of other tests; memory given back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision(before)
    gc.collect()
    torch.cuda.empty_cache()


# --- models and data -----------------------------------------------------------------------------------------------


@cache
def _config(family: str) -> Config:
    return Config.from_hf(dict(model_type=family) | _SIZES | _OWN[family])


@cache
def _weights(family: str) -> dict[str, Tensor]:
    """Large enough that a wrong detail shows, and numbers that bf16 knows."""
    gen = torch.Generator().manual_seed(len(family))
    weights = {}
    for name, p in GPT(_config(family)).named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        one = "norm" in name and not _config(family).norm.offset
        weights[name] = noise * p.shape[-1] ** -0.5 if p.dim() > 1 else noise * 0.1 + one
    return {name: value.to(BF16).float() for name, value in weights.items()}


def _quantize(model: GPT, kind: str) -> None:
    from litlm.transforms.quantize import QuantizedLinear, QuantizedStack, quantize_layers

    plain = dict(model.named_parameters())
    quantize_layers(model, kind, FP32)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            module.set_weight(plain[f"{name}.weight"], torch.device("cpu"))
        elif isinstance(module, QuantizedStack):
            module.set_weight(plain[name], torch.device("cpu"))


def _llm(family: str, method: str = "full", device: str = DEVICE, dtype: torch.dtype = FP32) -> LLM:
    """A model to train with the method; quantized weights are the same bytes on every device."""
    if method == "nf4":
        pytest.importorskip("bitsandbytes")
    model = GPT(_config(family))
    model.load_state_dict(_weights(family), strict=False)
    if METHODS[method].name == "qlora":
        _quantize(model, METHODS[method].quantize)
    return LLM(model.to(device=device, dtype=dtype).eval(), _config(family))


def _adapted(family: str, method: str, device: str, dtype: torch.dtype) -> GPT:
    """The method's own parameters have values as training might leave them, the same on every device."""
    llm = _llm(family, method, device, dtype)
    apply_method(llm, METHODS[method])
    if method != "full":
        gen = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, p in llm.model.named_parameters():
                if p.requires_grad:
                    noise = torch.randn(p.shape, generator=gen).to(p.device, p.dtype)
                    fresh = name.endswith((".A", ".B", ".prompt"))  # drawn at random or zero
                    p.copy_(0.3 * noise * p.shape[-1] ** -0.5 if fresh else p + 0.1 * noise)
    return llm.model.train()


LENGTHS = (150, 3, 61, 33, 190, 5, 90, 128)


def _examples(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Example]:
    gen = torch.Generator().manual_seed(seed)
    ids = [torch.randint(VOCAB, (n,), generator=gen).tolist() for n in lengths]
    return [Example(i, [False, True, *(torch.rand(len(i) - 2, generator=gen) < 0.7).tolist()]) for i in ids]


def _data(
    lengths: tuple[int, ...] = LENGTHS, seed: int = 0, *, packing: bool = True, whole: bool = False
) -> TokenizedDataset:
    data = TokenizedDataset.from_examples(_examples(lengths, seed), max_len=WIDTH, packing=packing)
    return dataclasses.replace(data, static_shapes=whole)


def _pairs(n: int = 4) -> PreferenceDataset:
    """Two answers of 20 to 40 tokens to prompts of 30."""
    gen = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(VOCAB, (n,), generator=gen).tolist()  # noqa: E731
    answers = []
    for i in range(n):
        prompt = draw(30)
        for size in (20 + 5 * i, 40 - 3 * i):
            answers.append(Example(prompt + draw(size), [False] * 30 + [True] * size))
    return PreferenceDataset(TokenizedDataset.from_examples(answers, max_len=WIDTH))


# --- one step ------------------------------------------------------------------------------------------------------


def _step(model: GPT, batches: list[Batch], objective: Objective | None = None) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of what is trained, on the CPU in fp32, as `fit` takes them."""
    objective, device = objective or NextToken(), model.embed.weight.device
    count, total = sum(map(objective.count, batches)), 0.0
    for batch in batches:
        loss = objective.loss_sum(model, batch.to(device)) / count
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}


@cache
def _on_the_cpu(family: str, method: str) -> tuple[float, dict[str, Tensor]]:
    """fp32, eager, one example after the other."""
    return _step(_adapted(family, method, "cpu", FP32), _data(packing=False).batches(range(len(LENGTHS)), 1))


def _check(
    actual: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], tolerance: float, *, loss: float
) -> None:
    """Of all gradients together within `tolerance`, of each tensor within twice that. loss: relative."""
    assert actual[0] == pytest.approx(expected[0], rel=loss)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert (actual[1][name] - grad).norm() <= 2 * tolerance * grad.norm(), name
    mine, theirs = (torch.cat([grads[n].flatten() for n in expected[1]]) for grads in (actual[1], expected[1]))
    assert theirs.norm() > 0
    assert torch.dist(mine, theirs) <= tolerance * theirs.norm()


def _tolerances(family: str, dtype: torch.dtype) -> dict[str, float]:
    """On a CPU bf16 is off by up to 0.02, and by 0.11 where rounding sends a few tokens to other experts."""
    if dtype == FP32:
        return dict(tolerance=1e-4, loss=1e-5)
    return dict(tolerance=0.2 if family == "mixtral" else 0.03, loss=1e-3)


EAGER = [
    *((family, "full", FP32, packing, "none") for family in FAMILIES for packing in (0, 1)),
    # In bf16 Gemma's attention is compiled even here.
    *((family, "full", BF16, packing, "none") for family in FAMILIES if family != "gemma2" for packing in (0, 1)),
    *((family, "full", FP32, 1, c) for family in FAMILIES for c in ("selective", "full")),
    *(("llama", method, FP32, 1, c) for method in METHODS if method not in ("full", "experts")
      for c in ("none", "selective", "full")),
    *(("mixtral", method, FP32, 1, "none") for method in ("experts", "nf4", "int8")),
]  # fmt: skip
COMPILED = [
    ("llama", "full", BF16, 0, "none"),  # rows of several widths
    ("llama", "full", FP32, 1, "none"),  # masks instead of a kernel
    ("gemma2", "full", BF16, 1, "selective"),
    ("gemma2", "full", BF16, 1, "full"),
    ("gemma2", "full", BF16, 1, "none"),
    ("qwen3", "lora", BF16, 1, "full"),
    ("llama", "nf4", BF16, 1, "none"),
    ("llama", "adapter", BF16, 1, "none"),
    ("mixtral", "experts", BF16, 1, "none"),
]


@pytest.mark.parametrize(
    ("family", "method", "dtype", "packing", "checkpointing", "compiled"),
    [*((*case, False) for case in EAGER), *((*case, True) for case in COMPILED)],
)
def test_a_step_equals_the_cpus(
    family: str, method: str, dtype: torch.dtype, packing: int, checkpointing: Any, compiled: bool
) -> None:
    model = _adapted(family, method, DEVICE, dtype)
    batches = _data(packing=bool(packing), whole=compiled).batches(range(len(LENGTHS)), 2)  # as `fit` makes rows
    assert any(isinstance(batch.context(), Packed) for batch in batches) == bool(packing)
    with training_blocks(model, compile=compiled, checkpointing=checkpointing):
        actual = _step(model, batches)
    _check(actual, _on_the_cpu(family, method), **_tolerances(family, dtype))


@pytest.mark.parametrize(("compiled", "dtype"), [(False, FP32), (True, BF16)])
def test_preference_equals_the_cpus(compiled: bool, dtype: torch.dtype) -> None:
    from litlm.transforms.lora import adapters_disabled

    steps, metrics = [], []
    for device, kind, micro in (("cpu", FP32, 1), (DEVICE, dtype, 4)):
        model = _adapted("llama", "lora", device, kind)
        objective = Preference(PreferenceSettings(beta=0.05), lambda m=model: adapters_disabled(m))
        with training_blocks(model, compile=compiled and device == DEVICE):
            steps.append(_step(model, _pairs().batches(range(4), micro), objective))
        metrics.append({key: float(value) for key, value in objective.metrics().items()})
    # A reward is a small difference of two sums over an answer's tokens.
    assert metrics[1] == pytest.approx(
        metrics[0], rel=1e-3 if dtype == FP32 else 0.1, abs=1e-3 if dtype == FP32 else 0.1
    )
    _check(steps[1], steps[0], tolerance=1e-4 if dtype == FP32 else 0.1, loss=1e-5 if dtype == FP32 else 0.02)


# --- whole runs ----------------------------------------------------------------------------------------------------


def _fit(llm: LLM, train: Any, tmp: Path, *, seed: int = 1, **options: Any) -> tuple[Result, list[dict[str, str]]]:
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    settings = TrainSettings(**{k: v for k, v in options.items() if k in fields})
    with Report(tmp, None, quiet=True) as report:
        result = fit(
            llm.model, train, settings=settings, seed=seed, report=report,
            **{k: v for k, v in options.items() if k not in fields},
        )  # fmt: skip
    with (tmp / "metrics.csv").open(newline="") as f:
        return result, list(csv.DictReader(f))


RUNS: list[tuple[str, str, dict[str, Any], float]] = [
    # family, method, settings, how much of the first loss may be left
    ("qwen3", "full", dict(precision="bf16-mixed", compile=False), 0.2),
    ("llama", "full", dict(precision="32-true", compile=False), 0.2),
    ("llama", "lora", dict(precision="bf16-true", compile=False, lr=1e-2), 0.3),
    ("llama", "nf4", dict(precision="bf16-true", compile=False, lr=1e-2), 0.3),
    ("llama", "adapter", dict(precision="bf16-true", compile=False, lr=5e-2), 0.8),
    ("qwen3", "adapter_v2", dict(precision="bf16-true", lr=2e-2), 0.6),
    ("mixtral", "full", dict(precision="bf16-mixed", router_balance=0.01, checkpointing="selective"), 0.2),
    ("llama", "full", dict(precision="bf16-mixed", compile=False, optimizer="muon", lr=1e-2), 0.3),
    ("llama", "full", dict(precision="bf16-mixed", compile=False, optimizer="adamw8bit"), 0.3),
]


@pytest.mark.parametrize(("family", "method", "options", "left"), RUNS)
def test_a_run_learns(family: str, method: str, options: dict[str, Any], left: float, tmp_path: Path) -> None:
    """With packed rows that are all equally long; compiled where nothing is said, as is the default on CUDA."""
    if options.get("optimizer") == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    llm = _llm(family, method, dtype=BF16 if options["precision"] == "bf16-true" else FP32)
    apply_method(llm, METHODS[method])
    frozen = {n: p.detach().clone() for n, p in llm.model.named_parameters() if not p.requires_grad}
    train = _data(whole=True)
    widths = {batch.tokens.size(1) for batch in train.batches(range(len(train)), 2)}
    assert widths == {WIDTH}
    settings: dict[str, Any] = dict(
        batch_size=8, micro_batch_size=4, max_steps=50, lr=3e-3, warmup_steps=5, schedule="constant"
    )
    result, rows = _fit(llm, train, tmp_path, **(settings | options))
    assert result.losses[0] > 3
    assert result.losses[-1] < left * result.losses[0]
    assert len(rows) == 50
    assert all(torch.equal(p, frozen[n]) for n, p in llm.model.named_parameters() if n in frozen)
    if family == "mixtral":
        assert 1 <= float(rows[-1]["router_max_load"]) <= 4
    _check_columns(rows, llm.model)


def _check_columns(rows: list[dict[str, str]], model: GPT) -> None:
    device = torch.device(DEVICE)
    assert ("memory_gb" in rows[0]) == (DEVICE == "cuda")
    assert ("mfu" in rows[0]) == (peak_flops(device) is not None)
    if "memory_gb" in rows[0]:
        least = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        assert all(least < float(row["memory_gb"]) < total for row in rows)
    if "mfu" in rows[0]:
        assert all(0 < float(row["mfu"]) < 1 for row in rows)


class NeverWaits(Report):
    """Where something waits for the device after the first steps, PyTorch raises."""

    def __init__(self) -> None:
        super().__init__(None, None, quiet=True)

    def step(self, row: Any, progress: float | None = None) -> None:
        torch.cuda.set_sync_debug_mode("error" if 4 <= row["step"] < 9 else "default")
        super().step(row, progress)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "lora", dict(precision="bf16-true")),
        ("llama", "nf4", dict(precision="bf16-true", checkpointing="full")),
        ("qwen3", "full", dict(precision="bf16-mixed")),
        ("qwen3", "full", dict(precision="bf16-mixed", micro_batch_size=1)),
        ("qwen3", "full", dict(precision="32-true")),
    ],
)
def test_the_host_never_waits_for_a_step(family: str, method: str, options: dict[str, Any]) -> None:
    llm = _llm(family, method, dtype=BF16 if options["precision"] == "bf16-true" else FP32)
    apply_method(llm, METHODS[method])
    settings = TrainSettings(**(dict(batch_size=8, micro_batch_size=4, max_steps=12, compile=False) | options))
    try:
        result = fit(llm.model, _data(whole=True), settings=settings, report=NeverWaits())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result.losses) == 12


@pytest.mark.parametrize("on_spike", ["skip", "rollback", "stop"])
def test_a_bad_step_leaves_no_trace(on_spike: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out on the device while the next step is under way, or before it: the same weights."""

    class Broken(NextToken):
        calls = 0

        def loss_sum(self, model: Any, batch: Batch) -> Tensor:
            self.calls += 1
            return super().loss_sum(model, batch) * (math.inf if self.calls == 6 else 1)

    found = []
    for ahead in (False, True):
        if not ahead:
            monkeypatch.setattr(import_module("litlm.train.loop"), "can_skip_on_device", lambda _: False)
        llm = _llm("llama")
        settings = TrainSettings(
            batch_size=4, micro_batch_size=4, max_steps=9, lr=1e-3, warmup_steps=0, on_spike=on_spike, save_interval=2,
            precision="bf16-mixed", compile=False,
        )  # fmt: skip
        checkpoints = Checkpoints(tmp_path / str(ahead), lambda folder: None, keep=9)
        options: dict[str, Any] = dict(
            checkpoints=checkpoints, objective=Broken(), report=Report(None, None, quiet=True)
        )
        stops = pytest.raises(ValueError, match="step 6: the loss is inf") if on_spike == "stop" else nullcontext()
        with stops:
            fit(llm.model, _data(whole=True), settings=settings, **options)
        found.append((checkpoints.steps().keys(), {n: p.detach().clone() for n, p in llm.model.named_parameters()}))
        monkeypatch.undo()
    assert found[0][0] == found[1][0]
    for name, weight in found[0][1].items():
        # The kernels of attention add up in no fixed order; another step's data would differ by far more.
        assert torch.dist(weight, found[1][1][name]) < 3e-3 * weight.norm(), name


def test_adamw_takes_its_steps_in_one_kernel() -> None:
    from litlm.train.optim import make_optimizer

    assert all(group["fused"] for group in make_optimizer(_llm("llama").model, TrainSettings()).param_groups)


def test_preference_learns(tmp_path: Path) -> None:
    llm = _llm("llama", "lora", dtype=BF16)
    applied = apply_method(llm, METHODS["lora"])
    result, rows = _fit(
        llm, _pairs(), tmp_path, objective=Preference(PreferenceSettings(), applied.disabled), batch_size=4,
        micro_batch_size=2, max_steps=30, lr=3e-3, warmup_steps=2, schedule="constant", precision="bf16-true",
        compile=False,
    )  # fmt: skip
    assert result.losses[0] == pytest.approx(math.log(2), abs=0.02)  # policy and reference are the same yet
    assert result.losses[-1] < 0.1
    assert float(rows[-1]["accuracy"]) == 1
    assert float(rows[-1]["margin"]) > 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_equals_one_in_one_go(precision: str, tmp_path: Path) -> None:
    """To the bit: eager, in fp32, where attention is plain products (the fused kernels' backward passes add up in an
    order that changes). Otherwise, compiled in bf16, up to what two equal runs differ by.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    exact = precision == "32-true"
    train = _data((150, 3, 61, 33, 190, 5, 90, 128, 44, 12, 70), seed=2, whole=True)
    settings: dict[str, Any] = dict(
        batch_size=4, micro_batch_size=2, max_steps=10, save_interval=5, lr=3e-3, warmup_steps=2, precision=precision,
        compile=False if exact else None,
    )  # fmt: skip
    runs = []
    for resume in (None, tmp_path / "run" / "step-000005"):
        llm = _llm("qwen3")
        start = torch.cat([p.detach().flatten() for p in llm.model.parameters()])
        apply_method(llm, METHODS["full"])
        checkpoints = Checkpoints(tmp_path / "run", lambda folder: None, keep=100)
        with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
            result, _ = _fit(
                llm, train, tmp_path / "log", checkpoints=checkpoints, resume=resume, **settings
            )  # fmt: skip
        runs.append((result.losses, torch.cat([p.detach().float().flatten() for p in llm.model.parameters()])))
    (losses, whole), (again, resumed) = runs
    assert (len(losses), len(again)) == (10, 5)
    if exact:
        assert again == losses[5:]
        assert torch.equal(resumed, whole)
    else:
        assert again == pytest.approx(losses[5:], rel=2e-2)
        assert torch.dist(resumed, whole) < 0.1 * torch.dist(start, whole)


def test_answers_between_the_steps_are_those_of_the_model(tmp_path: Path) -> None:
    """Generating goes around the compiled layers, and leaves the run as it would be without."""
    prompts = [[5, 9, 100, 3], [7], list(range(40))]
    losses, seen = [], []
    for with_samples in (True, False):
        torch._dynamo.reset()
        llm = _llm("llama", "lora", dtype=BF16)
        torch.manual_seed(0)
        apply_method(llm, METHODS["lora"])
        ask = lambda llm=llm: llm.generate(prompts, max_new_tokens=12, return_ids=True)  # noqa: E731
        before = ask()
        answers: list[Any] = []

        def sample(ask: Callable[[], Any] = ask, answers: list[Any] = answers) -> list[tuple[str, str]]:
            answers.append(ask())
            return []

        result, _ = _fit(
            llm, _data(whole=True), tmp_path, sample=sample if with_samples else None,
            val=_data((60, 90), seed=4, whole=True), batch_size=8, micro_batch_size=2, max_steps=9, val_interval=3,
            lr=1e-2, warmup_steps=0, precision="bf16-true",
        )  # fmt: skip
        losses.append(result.losses)
        if with_samples:
            assert answers[0] == before
            assert len(answers) == 4
            assert answers[-1] == ask()
            assert answers[-1] != before
        seen.append(result.val_losses)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert [loss for _, loss in seen[0]] == pytest.approx([loss for _, loss in seen[1]], rel=2e-2)


class Counting(NextToken):
    """Notes for each micro batch how many graphs there are then, its layout, and its kind: what a graph may be for."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.layouts: set[Any] = set()
        self.kinds: list[Any] = []

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        loss = super().loss_sum(model, batch)
        self.graphs.append(counters["stats"]["unique_graphs"])
        self.layouts.add(batch.lengths)
        full = batch.n_tokens == batch.tokens.numel()
        self.kinds.append((isinstance(batch.context(), Packed), full, len(batch.tokens)))
        return loss


@pytest.mark.parametrize(
    ("family", "method", "sizes", "micro"),
    [
        ("llama", "full", (3, WIDTH), 2),  # one or two rows in a micro batch
        ("gemma2", "lora", (50, 62), 4),  # three documents fit into a row: always three rows
    ],
)
def test_few_graphs_for_many_layouts(family: str, method: str, sizes: Any, micro: int, tmp_path: Path) -> None:
    """Rows that hold other documents in each step are no reason to compile again."""
    gen = torch.Generator().manual_seed(0)
    lengths = tuple(torch.randint(*sizes, (60,), generator=gen).tolist())
    llm = _llm(family, method)
    apply_method(llm, METHODS[method])
    objective = Counting()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        _fit(
            llm, _data(lengths, whole=True), tmp_path, objective=objective, batch_size=8, micro_batch_size=micro,
            max_steps=20, lr=1e-4, precision="bf16-mixed",
        )  # fmt: skip
    assert len(objective.layouts) >= 20
    assert any(packed for packed, *_ in objective.kinds)
    if DEVICE == "cuda":
        assert objective.graphs[0] >= 1
    for i, (before, after) in enumerate(zip(objective.graphs, objective.graphs[1:], strict=False), start=1):
        assert after == before or objective.kinds[i] not in objective.kinds[:i]
    assert objective.graphs[-1] <= len(set(objective.kinds)) * len(set(_config(family).layer_types))
    assert not counters["graph_break"]


# --- memory --------------------------------------------------------------------------------------------------------


def _peak(work: Callable[[], Any]) -> int:
    """How many bytes more than before are held at most."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def _deep(**fields: Any) -> GPT:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = GPT(_config("llama").changed(**fields))
        model.init_weights()
    return model.train()


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing_saves_memory(compiled: bool) -> None:
    model = _deep(n_layer=24).bfloat16()  # so that layers count more than the loss
    batches = _data((192,) * 64).batches(range(64), 64)

    def work(checkpointing: Any) -> None:
        with training_blocks(model, compile=compiled, checkpointing=checkpointing):
            _step(model, batches)

    peaks = {}
    for checkpointing in ("none", "full") if compiled else ("none", "selective", "full"):
        torch._dynamo.reset()
        work(checkpointing)  # gradients, and what compiling takes
        peaks[checkpointing] = _peak(lambda c=checkpointing: work(c))
    assert peaks["full"] < 0.5 * peaks["none"]
    if not compiled:
        assert peaks["full"] < peaks["selective"] < peaks["none"]


WIDE, ROWS = 131_072, 16_384  # logits of 8.6 GB in fp32, 4.3 GB in bf16


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_loss_never_holds_all_logits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held at once depends on the device's memory, so the test says how much that is: an eighth."""
    size = 2 if dtype == BF16 else 4
    monkeypatch.setattr(
        import_module("litlm.ops.cross_entropy"), "_kernel_bytes", lambda device: ROWS * WIDE * size // 8
    )
    model = _deep(n_layer=1, vocab_size=WIDE, tie_embeddings=True).to(dtype)
    hidden = torch.randn(1, ROWS, 128, device=DEVICE, dtype=dtype, requires_grad=True)
    targets = torch.randint(WIDE, (1, ROWS), device=DEVICE)
    peak = _peak(lambda: loss_sum(model, hidden, targets).backward())
    assert hidden.grad is not None
    assert hidden.grad.abs().max() > 0
    weight_gradient = 128 * WIDE * (4 + size)  # in fp32, then in the model's dtype
    assert peak < ROWS * WIDE * size // 8 * 1.1 + weight_gradient + 3 * hidden.nbytes


def test_updating_in_the_backward_pass_frees_the_gradients(tmp_path: Path) -> None:
    peaks, losses = [], []
    _step(_deep(n_layer=1), _data((40,)).batches([0], 1))  # the libraries' own memory
    for in_backward in (False, True):
        llm = LLM(_deep(n_layer=6, n_embd=512, n_head=8, n_kv_head=8, intermediate_size=1536), _config("llama"))
        train = _data((40, 30, 20))
        settings: dict[str, Any] = dict(
            batch_size=3, micro_batch_size=3, max_steps=3, grad_clip=None, precision="32-true", compile=False,
            warmup_steps=0, optimizer_in_backward=in_backward,
        )  # fmt: skip
        results: list[Result] = []
        peaks.append(_peak(lambda llm=llm, t=train, s=settings, r=results: r.append(_fit(llm, t, tmp_path, **s)[0])))
        losses.append(results[0].losses)
        n_bytes = 4 * sum(p.numel() for p in llm.model.parameters())
        del llm
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert n_bytes > 60e6
    assert peaks[1] < peaks[0] - 0.5 * n_bytes


@pytest.fixture
def little_memory() -> Iterator[None]:
    """About 1.5 GB of the device, so that real allocations fail early."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.5e9) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


AUTO = 2048  # examples in a step; one of them takes some MB


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_largest_micro_batch_that_fits(method: str, tmp_path: Path) -> None:
    from litlm.train.trials import largest_micro_batch

    llm = _llm("llama", method)
    apply_method(llm, METHODS[method])
    train = _data((192,) * 8).select([i % 8 for i in range(AUTO)])
    precision = "bf16-mixed" if method == "full" else "32-true"
    settings = TrainSettings(
        batch_size=AUTO, micro_batch_size="auto", max_steps=1, precision=precision, compile=False, lr=1e-2
    )
    before = {n: p.detach().clone() for n, p in llm.model.named_parameters()}
    random, hooks = get_random_states()[0], _hooks(llm.model)
    size = largest_micro_batch(llm.model, train, None, settings)
    assert size in [2**i for i in range(12)]
    assert size < AUTO
    for name, p in llm.model.named_parameters():
        assert p.dtype == before[name].dtype
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert all(torch.equal(value, random[key]) for key, value in get_random_states()[0].items())
    assert _hooks(llm.model) == hooks
    assert not llm.model.training
    assert all("forward" not in vars(block) for block in llm.model.layers)
    result, _ = _fit(llm, train, tmp_path, **(dataclasses.asdict(settings) | dict(micro_batch_size=size)))
    assert result.steps == 1
    # It is the largest: four times as much breaks the limit, also without the share that is left free.
    with pytest.raises(torch.OutOfMemoryError):
        _fit(llm, train, tmp_path, **(dataclasses.asdict(settings) | dict(micro_batch_size=4 * size)))


def _hooks(model: GPT) -> int:
    every = [*model.modules(), *model.parameters()]
    names = ("_forward_hooks", "_forward_pre_hooks", "_post_accumulate_grad_hooks")
    return sum(len(getattr(thing, name, None) or ()) for thing in every for name in names)


@pytest.mark.usefixtures("little_memory")
def test_too_little_memory_is_said_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from litlm.settings import FinetuneSettings
    from litlm.settings.data import DataSettings
    from litlm.train.run import run

    # Names versions of installed packages.
    monkeypatch.setattr("litlm.train.files.write_settings", lambda *args, **options: None)
    llm = _llm("llama")
    train = _data((192,) * 8).select([i % 8 for i in range(AUTO)])
    settings = FinetuneSettings(
        model="somewhere", data=DataSettings(path="none.jsonl"), method=METHODS["full"], out_dir=str(tmp_path / "run"),
        train=TrainSettings(batch_size=AUTO, micro_batch_size=AUTO, max_steps=1, compile=False),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"memory is not enough.*micro_batch_size 1 .*checkpointing full"):
        run(settings, llm, apply_method(llm, METHODS["full"]), train, None, None, quiet=True)
