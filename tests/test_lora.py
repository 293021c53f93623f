"""LoRA: what it starts as, what it moves, what merging leaves; gradients against PEFT's on the same weights.

DoRA, experts and modules trained whole are compared with PEFT in `test_peft_fused.py`.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import Case
from parity.choices import Choices
from torch import Tensor, nn

from litlm.checkpoint.peft import load_adapter, save_adapter
from litlm.checkpoint.peft_targets import adapter_targets
from litlm.model import GPT
from litlm.model.moe import Experts
from litlm.ops.cross_entropy import cross_entropy_sum
from litlm.settings import MethodSettings
from litlm.train.loss import loss_sum
from litlm.transforms.lora import (
    ALL_LINEAR,
    LoRA,
    OriginalWeights,
    adapters,
    adapters_disabled,
    apply_lora,
    attach,
    merge,
    merged_state,
    targets,
    trained_whole,
)
from litlm.transforms.quantize import QuantizedLinear, QuantizedStack

MIXTRAL, DEEPSEEK = cases.by_name("mixtral-plain"), cases.by_name("deepseek_v3-groups")
# PEFT reads a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CASES = [cases.by_name(name) for name in ("llama-mha-biases", "llama-mqa-tied", "qwen3-plain", "gpt_neox-odd-share")]


def _fresh(case: Case, dtype: torch.dtype = torch.float32) -> GPT:
    return cases.load(cases.write(case), dtype)


@torch.no_grad()
def _fill(model: nn.Module, seed: int = 0) -> None:
    """Adapters as if trained."""
    gen = torch.Generator().manual_seed(seed)
    for _, lora in adapters(model):
        lora.A.copy_(torch.randn(lora.A.shape, generator=gen) * lora.A.size(1) ** -0.5)
        lora.B.copy_(torch.randn(lora.B.shape, generator=gen) * 0.3)
        if lora.magnitude is not None:
            lora.magnitude.mul_(1 + 0.2 * torch.randn(lora.magnitude.shape, generator=gen))
    for name in trained_whole(model):
        for p in model.get_submodule(name).parameters(recurse=False):
            p.add_(torch.randn(p.shape, generator=gen) * 0.1)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_starts_unchanged_to_the_bit(case: Case, dtype: torch.dtype) -> None:
    model = _fresh(case, dtype)
    tokens = cases.tokens(case, 2, 9)
    before = model(tokens)
    names = apply_lora(model, MethodSettings(r=3, alpha=5, dropout=0.5))
    assert torch.equal(model(tokens), before)
    assert names == [n for n, _ in adapters(model)]
    per_layer = 7 if case.family != "gpt_neox" else 6
    assert len(names) == per_layer * case.hf["num_hidden_layers"]
    for name, p in model.named_parameters():
        assert p.requires_grad == (".lora." in name)
        assert p.dtype == (torch.float32 if ".lora." in name else dtype)
    assert not model.training
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_steps_move_every_adapter_and_nothing_else(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = _fresh(case, dtype)
    apply_lora(model, MethodSettings(r=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    model.train()
    tokens = cases.tokens(case, 3, 12)
    for _ in range(3):
        loss = cross_entropy_sum(model(tokens[:, :-1], output="hidden"), model.head_weight, tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (".lora." not in name), name
        assert p.grad is None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merging_changes_no_logits(case: Case) -> None:
    model = _fresh(case)
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    apply_lora(model, MethodSettings(r=5, alpha=7))
    _fill(model)
    tokens = cases.tokens(case, 2, 11)
    with torch.no_grad():
        expected = model(tokens)
        assert (expected - cases.ours(case)(tokens)).abs().max() > 0.1
        state = merged_state(model)
        assert state.keys() == plain.keys()
        assert torch.equal(model(tokens), expected)  # the model itself is as it was
        other = _fresh(case)
        other.load_state_dict(state, strict=False)
        cases.close(other(tokens), expected)
        for name, lora in adapters(model):  # against the formula, in float64
            weight = plain[f"{name}.weight"].double() + 7 / 5 * lora.B.double() @ lora.A.double()
            torch.testing.assert_close(state[f"{name}.weight"].double(), weight, rtol=1e-6, atol=1e-6)
        merge(model)
        cases.close(model(tokens), expected)
    assert {name for name, _ in model.named_parameters()} == plain.keys()
    assert not list(adapters(model))
    assert all(not m._forward_hooks for m in model.modules())
    apply_lora(model, MethodSettings())  # a second adapter on the merged model
    cases.close(model(tokens).detach(), expected)


def test_merging_in_bf16_rounds_once() -> None:
    case = CASES[0]
    model = _fresh(case, torch.bfloat16)
    apply_lora(model, MethodSettings(r=4, alpha=4))
    _fill(model)
    state = merged_state(model)
    for name, lora in adapters(model):
        weight = model.get_submodule(name).weight
        exact = weight.double() + lora.B.double() @ lora.A.double()
        assert state[f"{name}.weight"].dtype == torch.bfloat16
        assert (state[f"{name}.weight"].double() - exact).abs().max() <= exact.abs().max() * 2**-8
    merge(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, state[name])


# --- gradients against PEFT ----------------------------------------------------------------------------------------


def _peft(case: Case, names: list[str], r: int, alpha: float) -> Any:
    from peft import LoraConfig, get_peft_model

    base = copy.deepcopy(cases.build(case))
    return get_peft_model(base, LoraConfig(r=r, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("case", "ours", "theirs"),
    [
        (CASES[0], (ALL_LINEAR,), ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        (CASES[1], ("q_proj", "down_proj"), ["q_proj", "down_proj"]),
        (CASES[2], (ALL_LINEAR,), ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        (CASES[3], ("o_proj", "up_proj", "down_proj"), ["dense", "dense_h_to_4h", "dense_4h_to_h"]),
    ],
    ids=["llama", "llama-two", "qwen3", "gpt_neox"],
)
def test_gradients_equal_peft(case: Case, ours: tuple[str, ...], theirs: list[str]) -> None:
    model, peft = _fresh(case), _peft(case, theirs, r=3, alpha=8)
    apply_lora(model, MethodSettings(r=3, alpha=8, targets=ours))
    _fill(model, seed=3)
    place_of = adapter_targets(model)
    modules = {name: peft.get_submodule(f"base_model.model.{place_of[name].module}") for name, _ in adapters(model)}
    assert len(modules) == sum("lora_A.default.weight" in n for n, _ in peft.named_parameters())
    with torch.no_grad():
        for name, lora in adapters(model):
            modules[name].lora_A["default"].weight.copy_(lora.A)
            modules[name].lora_B["default"].weight.copy_(lora.B)
    tokens = cases.tokens(case, 2, 13)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    out = peft(tokens, labels=labels)
    out.loss.backward()
    wanted = labels[:, 1:]
    loss = cross_entropy_sum(model(tokens[:, :-1], output="hidden"), model.head_weight, wanted) / (wanted >= 0).sum()
    loss.backward()
    torch.testing.assert_close(loss, out.loss, rtol=1e-5, atol=1e-6)
    for name, lora in adapters(model):
        for mine, his in ((lora.A, modules[name].lora_A), (lora.B, modules[name].lora_B)):
            expected = his["default"].weight.grad
            assert mine.grad is not None
            assert expected.abs().max() > 0
            assert (mine.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_fresh_adapters_are_drawn_as_peft_draws_them() -> None:
    """A uniform within 1 / sqrt(in), B zero."""
    torch.manual_seed(0)
    lora = LoRA((30, 400), r=64, scale=2.0)
    assert lora.B.abs().max() == 0
    bound = 400**-0.5
    assert lora.A.abs().max() <= bound
    assert lora.A.abs().max() > 0.99 * bound
    assert abs(lora.A.std().item() - bound / 3**0.5) < 0.02 * bound


# --- dropout -------------------------------------------------------------------------------------------------------


def test_dropout_drops_inputs_and_keeps_the_mean() -> None:
    layer = nn.Linear(200, 6)
    lora = attach(layer, r=200, scale=1.0, dropout=0.25)
    with torch.no_grad():
        lora.A.copy_(torch.eye(200))
        lora.B.copy_(torch.ones(6, 200))
        layer.weight.zero_()
        layer.bias.zero_()
    torch.manual_seed(0)
    x = torch.ones(4000, 200)
    with torch.no_grad():
        out = layer.train()(x)[:, 0] * 0.75  # how many inputs were kept
        assert abs(out.mean().item() - 150) < 1
        assert abs(out.var().item() / (200 * 0.75 * 0.25) - 1) < 0.1
        assert not torch.equal(layer(x), layer(x))
        assert layer.eval()(x).eq(200).all()


def test_an_adapter_takes_the_mode_of_its_layer() -> None:
    for mode in (True, False):
        layer = nn.Linear(3, 3).train(mode)
        assert attach(layer, 2, 1.0, 0.5).training == mode


# --- targets -------------------------------------------------------------------------------------------------------


def test_targets_are_the_ends_of_names() -> None:
    model = _fresh(CASES[0])
    every = targets(model, (ALL_LINEAR,))
    assert len(every) == 21
    assert targets(model, ("q_proj",)) == [f"layers.{i}.attn.q_proj" for i in range(3)]
    assert targets(model, ("layers.1.mlp.up_proj",)) == ["layers.1.mlp.up_proj"]
    assert targets(model, ("0.attn.v_proj", "mlp.down_proj")) == [
        n for n in every if n == "layers.0.attn.v_proj" or n.endswith("mlp.down_proj")
    ]


@pytest.mark.parametrize("names", [("proj",), ("Q_proj",), ("head",), ("embed_tokens",), ("q_proj", "c_attn", "fc")])
def test_unknown_targets_are_named_with_those_there_are(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no linear layer is called") as e:
        apply_lora(_fresh(CASES[0]), MethodSettings(targets=names))
    for name in names:
        assert (repr(name) in str(e.value)) == (name != "q_proj")
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj (or all-linear)" in str(e.value)


def test_one_target_only_trains_that() -> None:
    model = _fresh(CASES[2])
    assert apply_lora(model, MethodSettings(targets=("layers.2.mlp.gate_proj",))) == ["layers.2.mlp.gate_proj"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "layers.2.mlp.gate_proj.lora.A", "layers.2.mlp.gate_proj.lora.B",
    ]  # fmt: skip


def test_twice_is_an_error() -> None:
    model = _fresh(CASES[0])
    apply_lora(model, MethodSettings())
    with pytest.raises(ValueError, match="merge them first"):
        apply_lora(model, MethodSettings())


@pytest.mark.parametrize(
    ("bad", "text"),
    [({"r": 0}, "r=0"), ({"alpha": 0.0}, "alpha=0"), ({"dropout": 1.0}, "dropout=1"), ({"targets": ()}, "targets")],
)
def test_bad_settings_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MethodSettings(**bad)


def test_bf16_base_with_fp32_adapters() -> None:
    """The output is bf16, gradients are fp32 and close to those of the same model in fp32."""
    case = CASES[0]
    half, whole = _fresh(case, torch.bfloat16), _fresh(case)
    tokens = cases.tokens(case, 2, 12)
    grads: list[list[Tensor]] = []
    for model in (half, whole):
        apply_lora(model, MethodSettings(r=4))
        _fill(model)
        hidden = model(tokens[:, :-1], output="hidden")
        assert hidden.dtype == model.embed.weight.dtype
        cross_entropy_sum(hidden, model.head_weight, tokens[:, 1:]).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    flat = [torch.cat([g.flatten() for g in row]) for row in grads]
    assert flat[0].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.97


# --- DoRA, experts, modules trained whole --------------------------------------------------------------------------

KINDS = [
    (CASES[0], dict(dora=True)), (CASES[1], dict(rslora=True, modules_to_save=("embed", "norm"))),
    (CASES[2], dict(dora=True, modules_to_save=("lm_head",))), (MIXTRAL, dict(targets=("all-linear", "experts"))),
    (DEEPSEEK, dict(targets=("experts.down_proj", "layers.[01].mlp.*"), modules_to_save=("router",))),
    (CASES[2], dict(targets=("v_proj", "embed", "lm_head"))),
]  # fmt: skip


def _exact(model: GPT, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """The merged weights in float64, by the papers' formulas."""
    state = {n: t.double() for n, t in plain.items()}
    for name, lora in adapters(model):
        key = name if name in plain else f"{name}.weight"
        weight = state[key] + lora.scale * lora.B.double() @ lora.A.double()
        if lora.magnitude is not None:
            weight = lora.magnitude.double()[:, None] * weight / weight.square().sum(1, keepdim=True).sqrt()
        state[key] = weight
    for name in trained_whole(model):
        module = model.get_submodule(name)
        state |= {f"{name}.{key}": p.double() for key, p in module.named_parameters(recurse=False)}
    return {n: t.detach() for n, t in state.items()}


# What merging in fp32 may be off, of the largest weight: 5 terms at r=3, each a few times as large as their sum, and
# with DoRA a norm of up to 60, all rounded by up to 6e-8 of themselves.
FP32 = 1e-5


def _rounds_as_merged(adapted: Any, merged: Any, in_half: Any, tokens: Tensor) -> None:
    """In half precision a model with adapters is about as near to fp32 as one that has them merged.

    Theirs is the one rounding of a merged product; x A, times B, and the sum are three, of which some count for less:
    their squares add up, so that less than twice the distance is left. Experts are the same, see `Choices`.
    """
    with torch.no_grad():
        with Choices() as made:
            exact = merged(tokens)
        with Choices(made):
            near = in_half(tokens)
        with Choices(made):
            actual = adapted(tokens)
    assert 0 < (actual - exact).norm() <= 2 * (near - exact).norm()


@pytest.mark.parametrize(("case", "options"), KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_starts_unchanged_merges_and_can_be_off(
    case: Case, options: dict[str, Any], dtype: torch.dtype
) -> None:
    model, tokens = _fresh(case, dtype), cases.tokens(case, 2, 9)
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        before = model(tokens)
        apply_lora(model, MethodSettings(r=3, alpha=5, dropout=0.3, **options))
        assert torch.equal(model(tokens), before)
        _fill(model)
        adapted = model(tokens)
        assert (adapted - before).abs().max() > 0.05 * before.abs().max()
        with adapters_disabled(model):
            assert torch.equal(model(tokens), before)
        assert torch.equal(model(tokens), adapted)
        state, exact = merged_state(model), _exact(model, plain)
        assert state.keys() == plain.keys() == exact.keys()
        for name, tensor in state.items():
            assert tensor.dtype == plain[name].dtype
            error = (tensor.double() - exact[name]).abs().max()
            half = tensor.dtype == torch.bfloat16
            assert error <= exact[name].abs().max() * (2**-8 if half else FP32), name
        other = _fresh(case)
        other.load_state_dict({n: t.float() for n, t in exact.items()})
        if dtype == torch.float32:
            cases.close(adapted, other(tokens))
        else:
            _rounds_as_merged(model, other, copy.deepcopy(other).bfloat16(), cases.tokens(case, 8, 17))
        merge(model)
        assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in plain.items()}
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name])
    assert not any(isinstance(m, (LoRA, OriginalWeights)) or m._forward_hooks for m in model.modules())
    assert all(type(m) is Experts for m in model.modules() if isinstance(m, Experts))


@pytest.mark.parametrize(("case", "options"), KINDS, ids=str)
def test_all_that_is_trained_has_a_gradient_and_nothing_else(case: Case, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, tokens = _fresh(case), cases.tokens(case, 4, 31)
    apply_lora(model, MethodSettings(r=2, dropout=0.2, **options))
    _fill(model)
    model.train()
    loss_sum(model, model(tokens[:, :-1], output="hidden"), tokens[:, 1:]).backward()
    whole = trained_whole(model)
    for name, p in model.named_parameters():
        assert p.requires_grad == (".lora." in name or name.rpartition(".")[0] in whole), name
        assert (p.grad is not None and bool(p.grad.abs().max() > 0)) == p.requires_grad, name
        assert ".lora." not in name or p.dtype == torch.float32


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (CASES[0], dict(dora=True)), (CASES[0], dict(dora=True, targets=("q_proj",))), (CASES[1], dict(rslora=True)),
        (CASES[1], dict(targets=("k_proj", "up_proj"))), (MIXTRAL, dict(targets=("experts.up_proj", "v_proj"))),
    ],
    ids=str,
)  # fmt: skip
def test_mixed_precision(case: Case, options: dict[str, Any]) -> None:
    """Layers with and without adapters meet in attention, so that all must give the same dtype."""
    model, tokens = _fresh(case), cases.tokens(case, 8, 17)
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    apply_lora(model, MethodSettings(r=2, **options))
    _fill(model)
    merged = _fresh(case)
    merged.load_state_dict({n: t.float() for n, t in _exact(model, plain).items()})

    def in_half(chosen: GPT) -> Any:
        def run(ids: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return chosen(ids, output="hidden")

        return run

    for mode in (False, True):
        model.train(mode)
        _rounds_as_merged(in_half(model), lambda ids: merged(ids, output="hidden"), in_half(merged), tokens)
        in_half(model)(tokens).float().square().sum().backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if ".lora." in n)


def test_off_is_undone_after_an_error_and_gradients_flow_as_before() -> None:
    model, tokens = _fresh(CASES[0]), cases.tokens(CASES[0], 2, 9)
    apply_lora(model, MethodSettings(r=2, dora=True, modules_to_save=("norm",)))
    _fill(model)
    loss = model(tokens).square().mean()
    with pytest.raises(IndexError), adapters_disabled(model), torch.no_grad():
        model(tokens + 10**6)
    loss.backward()
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(tokens).square().mean().backward()
    for a, b in zip(first, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dora_with_dropout_equals_peft(seed: int) -> None:
    """On one layer, where both draw the same mask from the same seed."""
    from peft import LoraConfig, get_peft_model

    gen = torch.Generator().manual_seed(seed)
    layer, x = nn.Linear(13, 7), torch.randn(5, 3, 13, generator=gen)
    holder = nn.Sequential(copy.deepcopy(layer))
    config = LoraConfig(r=3, lora_alpha=5, lora_dropout=0.4, use_dora=True, target_modules=["0"])
    theirs = get_peft_model(holder, config)  # type: ignore[arg-type]
    layer.requires_grad_(False)
    lora = attach(layer, 3, 5 / 3, 0.4, dora=True)
    wrapped: Any = theirs.base_model.model[0]  # type: ignore[index]
    his = (wrapped.lora_A.default.weight, wrapped.lora_B.default.weight, wrapped.lora_magnitude_vector.default.weight)
    mine = (lora.A, lora.B, lora.magnitude)
    with torch.no_grad():
        for a, b in zip(mine, his, strict=True):
            a.copy_(torch.rand(a.shape, generator=gen) + 0.2)  # type: ignore[union-attr]
            b.copy_(a)
    grad = torch.randn(5, 3, 7, generator=gen)
    outputs = []
    for model in (layer.train(), theirs.train()):
        torch.manual_seed(seed)
        outputs.append(model(x))
        outputs[-1].backward(grad)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine, his, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_experts_with_dropout_keep_the_mean() -> None:
    model = _fresh(MIXTRAL)
    apply_lora(model, MethodSettings(r=2, targets=("experts.up_proj",), dropout=0.25))
    _fill(model)
    experts: Any = model.layers[0].mlp.experts  # type: ignore[union-attr]
    lora, E = experts.lora["up_proj"], experts.up_proj.size(0)
    x, which = torch.randn(E, 48), torch.arange(E)
    ends = torch.arange(1, E + 1, dtype=torch.int32)
    with torch.no_grad():
        exact = torch.stack([lora.scale * lora.B[e] @ (lora.A[e] @ x[e]) for e in range(E)])
        cases.close(lora.eval().grouped(x, ends, which), exact)
        lora.train()
        torch.manual_seed(0)
        runs = torch.stack([lora.grouped(x, ends, which) for _ in range(3000)])
    assert not torch.equal(runs[0], runs[1])
    assert ((runs.mean(0) - exact).abs() < 6 * runs.std(0) / 3000**0.5).all()


@pytest.mark.parametrize(
    ("case", "options", "dropout"),
    [*((*kind, 0.0) for kind in (KINDS[0], KINDS[3], KINDS[4])), *((*kind, 0.3) for kind in KINDS[:2])],
    ids=str,
)
def test_an_adapted_layer_is_one_graph(case: Case, options: dict[str, Any], dropout: float) -> None:
    """The compiler traces a whole layer through; with its plain backend the numbers stay those of eager code."""
    torch._dynamo.reset()
    model = _fresh(case)
    apply_lora(model, MethodSettings(r=2, dropout=dropout, **options))
    _fill(model)
    model.train(dropout > 0)
    tokens, seen = cases.tokens(case, 2, 9), {}

    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["args"], seen["kwargs"] = (args[0].detach(), *args[1:]), kwargs

    last = model.layers[-1]
    with last.register_forward_pre_hook(keep, with_kwargs=True):
        model(tokens)
    step = torch.compile(type(last).forward, fullgraph=True, backend="eager")
    # Compiled, plain LoRA draws its mask otherwise.
    for off in (True,) if dropout and not options.get("dora") else (False, True):
        step(last, *seen["args"], **seen["kwargs"])
        with adapters_disabled(model) if off else contextlib.nullcontext():
            torch.manual_seed(0)
            expected = last(*seen["args"], **seen["kwargs"])
            torch.manual_seed(0)
            cases.close(step(last, *seen["args"], **seen["kwargs"]), expected)
    torch._dynamo.reset()


def _quantized(case: Case) -> GPT:
    from litlm.checkpoint.base import load_model
    from litlm.checkpoint.hf import SafetensorsSource
    from litlm.config import Config

    path, device = cases.write(case), torch.device("cpu")
    source = SafetensorsSource(path)
    return load_model(Config.from_hf(path), source, device=device, dtype=torch.float32, quantize="int8")


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (CASES[0], dict(dora=True)),
        (CASES[2], {}),
        (CASES[2], dict(targets=("all-linear", "embed", "lm_head"))),
        (MIXTRAL, dict(targets=("all-linear", "experts"))),
    ],
    ids=str,
)
def test_adapters_on_quantized_weights(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    model, tokens = _quantized(case), cases.tokens(case, 2, 9)
    plain = merged_state(model)  # nothing to merge: the weights as they compute
    assert plain.keys() == cases.ours(case).state_dict().keys()
    before = model(tokens)
    apply_lora(model, MethodSettings(r=3, **options))
    assert torch.equal(model(tokens), before)
    _fill(model)
    exact = _exact(model, plain)
    other = _fresh(case)
    other.load_state_dict({n: t.float() for n, t in exact.items()})
    with torch.no_grad():
        adapted, expected = model(tokens), other(tokens)
        assert (expected - before).abs().max() > 0.1
        cases.close(adapted, expected)
        for name, tensor in merged_state(model).items():
            assert (tensor.double() - exact[name]).abs().max() <= FP32 * exact[name].abs().max(), name
        save_adapter(model, tmp_path, base="x")
        again = _quantized(case)
        load_adapter(again, tmp_path)
        assert torch.equal(again(tokens), adapted)
        merge(model)
        cases.close(model(tokens), expected)
    assert not any(isinstance(m, (QuantizedLinear, QuantizedStack)) for m in model.layers.modules())


def test_a_quantized_layer_is_not_trained_whole() -> None:
    with pytest.raises(ValueError, match=r"modules_to_save names layers\.0\.attn\.q_proj, which is quantized"):
        apply_lora(_quantized(CASES[0]), MethodSettings(targets=("v_proj",), modules_to_save=("q_proj",)))


# --- more names ----------------------------------------------------------------------------------------------------


def test_patterns_and_experts_as_targets() -> None:
    model = _fresh(DEEPSEEK)  # one dense layer, then experts and a shared MLP
    up = targets(model, ("up_proj",))
    assert up == ["layers.0.mlp.up_proj", *(f"layers.{i}.mlp.shared.up_proj" for i in (1, 2))]
    stacked = [f"layers.{i}.mlp.experts.{p}_proj" for i in (1, 2) for p in ("gate", "up", "down")]
    assert targets(model, ("experts",)) == stacked
    assert targets(model, ("1.mlp.experts",)) == stacked[:3]
    assert targets(model, ("experts.down_proj",)) == [stacked[2], stacked[5]]
    assert set(stacked[:3]) < set(targets(model, ("layers.1.mlp.*",)))
    assert targets(model, ("layers.?.mlp.shared.*", "layers.[02].attn.o_proj")) == [
        n
        for n in targets(model, (ALL_LINEAR,))
        if ".shared." in n or n in ("layers.0.attn.o_proj", "layers.2.attn.o_proj")
    ]
    assert not set(stacked) & set(targets(model, (ALL_LINEAR,)))
    assert set(targets(model, (ALL_LINEAR, "experts"))) == set(targets(model, (ALL_LINEAR,))) | set(stacked)
    for name in ("*.w1", "experts.w1", "layers.7.*"):
        with pytest.raises(ValueError, match="and experts"):
            targets(model, (name,))


@pytest.mark.parametrize(
    ("case", "options", "text"),
    [
        (CASES[0], dict(targets=("*head",)), "and outside of its layers embed, lm_head"),
        (CASES[1], dict(targets=("wte", "head")), "and outside of its layers embed, lm_head"),
        (CASES[1], dict(targets=("embed",), modules_to_save=("embed",)), "embed is in both"),
        (CASES[0], dict(targets=("experts",)), "no linear layer is called 'experts'"),
        (CASES[1], dict(modules_to_save=("lm_head",)), "Its head is tied to embed"),
        (CASES[0], dict(modules_to_save=("wte", "head")), "nothing is called 'wte', 'head'; this model has embed"),
        (CASES[0], dict(targets=("q_proj",), modules_to_save=("0.attn",)), "layers.0.attn.q_proj is in both"),
        (MIXTRAL, dict(targets=("experts", "q_proj"), dora=True), "dora=True is for linear layers"),
    ],
    ids=str,
)
def test_what_can_not_be_adapted_is_said(case: Case, options: dict[str, Any], text: str) -> None:
    model = _fresh(case)
    with pytest.raises(ValueError, match=".") as e:
        apply_lora(model, MethodSettings(**options))
    assert text in str(e.value)
    assert not list(adapters(model))
    assert all(p.requires_grad for p in model.parameters())


def test_all_linear_leaves_out_what_is_trained_whole() -> None:
    model = _fresh(CASES[0])
    names = apply_lora(model, MethodSettings(modules_to_save=("1.mlp", "norm")))
    assert len(names) == 21 - 3
    assert trained_whole(model) == [*(f"layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")), "norm"]
