"""LoRA: what it starts as, what it moves, what merging leaves; gradients against PEFT's on the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import Case
from torch import Tensor, nn

from litlm.model import GPT
from litlm.settings import LoraMethod
from litlm.train.loss import cross_entropy_sum
from litlm.transforms.lora import ALL_LINEAR, LoRA, adapters, apply_lora, attach, merge, merged_state, targets

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


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_starts_unchanged_to_the_bit(case: Case, dtype: torch.dtype) -> None:
    model = _fresh(case, dtype)
    tokens = cases.tokens(case, 2, 9)
    before = model(tokens)
    names = apply_lora(model, LoraMethod(r=3, alpha=5, dropout=0.5))
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
    apply_lora(model, LoraMethod(r=4))
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
    apply_lora(model, LoraMethod(r=5, alpha=7))
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
    apply_lora(model, LoraMethod())  # a second adapter on the merged model
    cases.close(model(tokens).detach(), expected)


def test_merging_in_bf16_rounds_once() -> None:
    case = CASES[0]
    model = _fresh(case, torch.bfloat16)
    apply_lora(model, LoraMethod(r=4, alpha=4))
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
    apply_lora(model, LoraMethod(r=3, alpha=8, targets=ours))
    _fill(model, seed=3)
    from litlm.checkpoint.peft import hf_module

    modules = {name: peft.get_submodule(f"base_model.model.{hf_module(model, name)}") for name, _ in adapters(model)}
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
    lora = LoRA(400, 30, r=64, scale=2.0)
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


@pytest.mark.parametrize("names", [("proj",), ("Q_proj",), ("lm_head",), ("embed",), ("q_proj", "c_attn", "fc")])
def test_unknown_targets_are_named_with_those_there_are(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no linear layer is called") as e:
        apply_lora(_fresh(CASES[0]), LoraMethod(targets=names))
    for name in names:
        assert (repr(name) in str(e.value)) == (name != "q_proj")
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj (or all-linear)" in str(e.value)


def test_one_target_only_trains_that() -> None:
    model = _fresh(CASES[2])
    assert apply_lora(model, LoraMethod(targets=("layers.2.mlp.gate_proj",))) == ["layers.2.mlp.gate_proj"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "layers.2.mlp.gate_proj.lora.A", "layers.2.mlp.gate_proj.lora.B",
    ]  # fmt: skip


def test_left_out_layers_get_none_and_can_not_be_asked_for() -> None:
    model = _fresh(CASES[3])
    leave = [n for n in targets(model, (ALL_LINEAR,)) if n.endswith(("q_proj", "k_proj", "v_proj"))]
    assert len(apply_lora(model, LoraMethod(), leave=leave)) == 9
    with pytest.raises(ValueError, match="q_proj can't be saved"):
        apply_lora(_fresh(CASES[3]), LoraMethod(targets=("q_proj", "o_proj")), leave=leave)


def test_twice_is_an_error() -> None:
    model = _fresh(CASES[0])
    apply_lora(model, LoraMethod())
    with pytest.raises(ValueError, match="merge them first"):
        apply_lora(model, LoraMethod())


@pytest.mark.parametrize(
    ("bad", "text"),
    [({"r": 0}, "r=0"), ({"alpha": 0.0}, "alpha=0"), ({"dropout": 1.0}, "dropout=1"), ({"targets": ()}, "targets")],
)
def test_bad_settings_are_named(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LoraMethod(**bad)


def test_bf16_base_with_fp32_adapters() -> None:
    """The output is bf16, gradients are fp32 and close to those of the same model in fp32."""
    case = CASES[0]
    half, whole = _fresh(case, torch.bfloat16), _fresh(case)
    tokens = cases.tokens(case, 2, 12)
    grads: list[list[Tensor]] = []
    for model in (half, whole):
        apply_lora(model, LoraMethod(r=4))
        _fill(model)
        hidden = model(tokens[:, :-1], output="hidden")
        assert hidden.dtype == model.embed.weight.dtype
        cross_entropy_sum(hidden, model.head_weight, tokens[:, 1:]).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    flat = [torch.cat([g.flatten() for g in row]) for row in grads]
    assert flat[0].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.97
