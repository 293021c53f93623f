"""Preference optimization against TRL's own loss code and float64 log-probabilities from transformers' logits.

TRL's trainers import what is not installed here, so their methods are cut out of its files and run on their own. The
reference computation pads, never packs, and merges adapters into a float64 copy of transformers' model.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import gc
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from packages import unpacked
from torch import Tensor, nn

from litlm.data.base import Batch, Example
from litlm.data.preference import PreferenceDataset
from litlm.data.sft import TokenizedDataset
from litlm.model import GPT
from litlm.settings import MethodSettings, PreferenceSettings
from litlm.train.preference import Preference, log_probs, orpo, precompute_reference
from litlm.transforms import llama_adapter as prompts
from litlm.transforms import lora
from litlm.transforms.lora import adapters_disabled, apply_lora

VOCAB = 340
SETTINGS = {
    "dpo": PreferenceSettings(loss="dpo", beta=0.3),
    "ipo": PreferenceSettings(loss="ipo", beta=0.2),
    "cdpo": PreferenceSettings(loss="cdpo", beta=0.25, label_smoothing=0.2),
    "orpo": PreferenceSettings(loss="orpo", beta=0.4),
}
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fresh adapters and dropout are drawn from the global generator."""
    torch.manual_seed(0)


# --- data and models -----------------------------------------------------------------------------------------------


def _data(n: int = 5, seed: int = 0, *, max_len: int = 31, packing: bool = True) -> PreferenceDataset:
    gen = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=gen))  # noqa: E731
    answers = []
    for _ in range(n):
        prompt = torch.randint(VOCAB, (draw(1, 12),), generator=gen).tolist()
        for _ in ("chosen", "rejected"):
            answer = torch.randint(VOCAB, (draw(1, max_len - len(prompt)),), generator=gen).tolist()
            answers.append(Example(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return PreferenceDataset(TokenizedDataset.from_examples(answers, max_len=max_len, packing=packing))


def _fill(model: nn.Module, seed: int) -> None:
    """Adapters as training might leave them."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, adapter in lora.adapters(model):
            for p in (adapter.A, adapter.B):
                p.copy_(torch.randn(p.shape, generator=gen) * 0.15)


def _model(
    seed: int = 0, dropout: float = 0.0, *, filled: bool = True, targets: tuple[str, ...] = ("all-linear",)
) -> GPT:
    model = tiny.load().model
    apply_lora(model, MethodSettings(r=3, alpha=6.0, dropout=dropout, targets=targets))
    if filled:
        _fill(model, seed)
    return model.train()


def _objective(name: str, model: GPT) -> Preference:
    return Preference(SETTINGS[name], lambda: adapters_disabled(model))


def _totals(objective: Preference, model: GPT, batches: list[Batch]) -> tuple[float, int, Weights]:
    """Loss and pairs over all micro batches, and the gradients of what is trained."""
    model.zero_grad()
    total, pairs = 0.0, 0
    for batch in batches:
        loss = objective.loss_sum(model, batch)
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        loss.backward()
        total, pairs = total + loss.item(), pairs + objective.count(batch)
    return total, pairs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# --- the reference -------------------------------------------------------------------------------------------------


@functools.cache
def _trl(file: str, *names: str) -> dict[str, Any]:
    """Functions and methods of TRL, by themselves."""
    tree = ast.parse((unpacked("trl==1.16.0") / file).read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    assert len(found) == len(names)
    for function in found:
        function.decorator_list, function.returns = [], None
        for argument in function.args.args:
            argument.annotation = None
    namespace: dict[str, Any] = dict(torch=torch, F=F, math=math, contextlib=contextlib)
    namespace |= dict(is_peft_model=lambda model: False)
    exec(compile(ast.Module(found, []), file, "exec"), namespace)
    return namespace


@functools.cache
def _hf() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.folder(), dtype=torch.float64, attn_implementation="eager").eval()


def _hf_name(name: str) -> str:
    name = name.replace(".attn.", ".self_attn.").replace("attn_norm", "input_layernorm")
    return "model." + name.replace("mlp_norm", "post_attention_layernorm").replace("embed.", "embed_tokens.")


def _wide(model: GPT) -> Weights:
    """The model's adapters in float64, by name, to be differentiated."""
    return {n: p.detach().double().requires_grad_() for n, p in model.named_parameters() if ".lora." in n}


def _merged(model: GPT, wide: Weights) -> Weights:
    """transformers' weights with the adapters in them."""
    base = dict(_hf().named_parameters())
    scales = {name: adapter.scale for name, adapter in lora.adapters(model)}
    assert scales
    return {
        _hf_name(f"{n}.weight"): base[_hf_name(f"{n}.weight")] + s * wide[f"{n}.lora.B"] @ wide[f"{n}.lora.A"]
        for n, s in scales.items()
    }


def _padded(data: PreferenceDataset) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask and answers' mask, padded, chosen answers first."""
    rows = [data[i].chosen for i in range(len(data))] + [data[i].rejected for i in range(len(data))]
    longest = max(len(e.ids) for e in rows)
    pad = lambda values: [*values, *[0] * (longest - len(values))]  # noqa: E731
    return (
        torch.tensor([pad(e.ids) for e in rows]),
        torch.tensor([pad([1] * len(e.ids)) for e in rows]),
        torch.tensor([pad([*map(int, e.learn)]) for e in rows]),
    )


def _token_log_probs(data: PreferenceDataset, weights: Weights) -> Tensor:
    """(2 n, T - 1) in float64, 0 where nothing is learned."""
    ids, attention, answer = _padded(data)
    logits = torch.func.functional_call(_hf(), weights, (ids,), dict(attention_mask=attention)).logits
    each = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return each * answer[:, 1:]


def _trl_dpo(loss: str, settings: PreferenceSettings, data: PreferenceDataset, policy: Tensor, ref: Tensor) -> Any:
    """TRL's mean loss and its metrics."""
    compute = _trl("trl/trainer/dpo_trainer.py", "_compute_loss")
    compute["disable_gradient_checkpointing"] = lambda *_: contextlib.nullcontext()
    ids, attention, answer = _padded(data)
    chosen, rejected = ref.sum(1).chunk(2)
    nothing = torch.zeros_like(policy)
    outputs = SimpleNamespace(
        log_probs=policy, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), aux_loss=None
    )
    same = lambda t: t  # noqa: E731
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        f_divergence_type="reverse_kl", loss_types=[loss], loss_weights=[1.0], beta=settings.beta, use_weighting=False,
        label_smoothing=settings.label_smoothing, _total_train_tokens=0, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=answer)
    inputs |= dict(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
    value = compute["_compute_loss"](trainer, lambda **_: outputs, inputs, False)
    return value, {k: v[0] for k, v in trainer._metrics["train"].items() if isinstance(v, list) and len(v) == 1}


def _trl_orpo(settings: PreferenceSettings, data: PreferenceDataset, policy: Tensor) -> Any:
    """TRL's odds ratio behind the chosen answers' cross-entropy; the mean, and the rewards."""
    code = _trl("trl/experimental/orpo/orpo_trainer.py", "odds_ratio_loss", "log1mexp")
    means = policy.sum(1) / _padded(data)[2].sum(1)
    chosen, rejected = means.chunk(2)
    # it casts to fp32, which would hide what is compared
    wide = [type("Wide", (), dict(float=lambda self, t=t: t))() for t in (chosen, rejected)]
    trainer = SimpleNamespace(beta=settings.beta, accelerator=SimpleNamespace(device=torch.device("cpu")))
    odds, *rewards = code["odds_ratio_loss"](trainer, *wide)[:3]
    return (-chosen - odds).mean(), rewards


def _expected(name: str, data: PreferenceDataset, policy: Tensor, ref: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The mean loss, to be differentiated, and the metrics that TRL reports."""
    settings = SETTINGS[name]
    if name == "orpo":
        value, (chosen, rejected) = _trl_orpo(settings, data, policy)
        return value, dict(
            rewards_chosen=chosen.mean().item(), rewards_rejected=rejected.mean().item(),
            margin=(chosen - rejected).mean().item(), accuracy=(chosen > rejected).double().mean().item(),
        )  # fmt: skip
    theirs = {"dpo": "sigmoid", "ipo": "ipo", "cdpo": "sigmoid"}[name]
    value, metrics = _trl_dpo(theirs, settings, data, policy, ref)
    if name == "cdpo":  # TRL has it as AOT, which sorts the pairs first: with one pair that does nothing
        n = len(data)
        parts = []
        for i in range(n):
            one = [torch.stack((t[i], t[n + i])) for t in (policy, ref)]
            parts.append(_trl_dpo("aot", settings, _crop(data, i, one[0].size(1) + 1), *one)[0])
        value = torch.stack(parts).mean()
    names = dict(rewards_chosen="chosen", rewards_rejected="rejected", margin="margins", accuracy="accuracies")
    return value, {ours: metrics[f"rewards/{theirs}"] for ours, theirs in names.items()}


def _metrics(objective: Preference) -> dict[str, float]:
    return {name: value.item() for name, value in objective.metrics().items()}


def _crop(data: PreferenceDataset, i: int, width: int) -> PreferenceDataset:
    """Pair i alone, as wide as it is among the others."""
    answers = [Example(e.ids + [0] * (width - len(e.ids)), e.learn + [False] * (width - len(e.ids))) for e in data[i]]
    return PreferenceDataset(TokenizedDataset.from_examples(answers))


def _close(mine: Weights, wide: Weights, scale: float, tolerance: float = 2e-4) -> None:
    assert mine.keys() == {n for n, p in wide.items() if p.grad is not None}
    for name, grad in mine.items():
        expected = wide[name].grad * scale  # type: ignore[operator]
        assert (grad.double() - expected).norm() <= tolerance * expected.norm() + 1e-6, name


# --- values and gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(2))
def test_loss_metrics_and_gradients_are_those_of_trl(name: str, seed: int, packing: bool) -> None:
    model, data = _model(seed), _data(5, seed, packing=packing)
    wide = _wide(model)
    policy, ref = _token_log_probs(data, _merged(model, wide)), _token_log_probs(data, {}).detach()
    expected, metrics = _expected(name, data, policy, ref)
    expected.backward()
    objective = _objective(name, model)
    total, pairs, grads = _totals(objective, model, data.batches(range(5), 2))
    assert pairs == 5
    assert total / 5 == pytest.approx(expected.item(), rel=2e-5)
    _close(grads, wide, 5)
    assert _metrics(objective) == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_log_probs_of_packed_documents() -> None:
    model, data = _model(), _data(6, 3, max_len=25)
    expected = _token_log_probs(data, _merged(model, _wide(model)))
    n_tokens = _padded(data)[2].sum(1)
    found = {}
    for batch in data.batches(range(6), 3):
        assert any(len(row) > 1 for row in batch.lengths)
        values, lengths = log_probs(model, batch)
        numbers = [n for row in batch.examples for n in row]
        found |= {n: (v, k) for n, v, k in zip(numbers, values.tolist(), lengths.tolist(), strict=True)}
    assert len(found) == 12
    for n, (value, length) in found.items():
        row = n // 2 + 6 * (n % 2)
        assert value == pytest.approx(expected[row].sum().item(), rel=1e-5)
        assert length == n_tokens[row]


@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_and_packing_change_nothing(name: str) -> None:
    model = _model(1)
    results = []
    for packing in (True, False):
        data = _data(7, 5, packing=packing)
        for size in (1, 3, 7):
            objective = _objective(name, model)
            results.append((*_totals(objective, model, data.batches(range(7), size)), _metrics(objective)))
    total, pairs, grads, metrics = results[0]
    for other in results[1:]:
        assert other[0] == pytest.approx(total, rel=1e-5)
        assert other[1] == pairs == 7
        assert other[3] == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        for key, grad in grads.items():
            assert (other[2][key] - grad).norm() <= 2e-4 * grad.norm() + 1e-6


def test_a_pair_that_occurs_twice_counts_twice() -> None:
    model, data = _model(), _data(3)
    objective = _objective("dpo", model)
    once, twice = (_totals(objective, model, data.batches(i, 4)) for i in ([0, 1, 2], [0, 1, 2, 2, 1, 0]))
    assert twice[1] == 2 * once[1] == 6
    assert twice[0] == pytest.approx(2 * once[0], rel=1e-5)


@pytest.mark.parametrize("margin", [-1e4, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_far_out(margin: float, smoothing: float) -> None:
    from litlm.train.preference import dpo

    m = torch.tensor([margin], requires_grad=True)
    value = dpo(m, 0.5, smoothing).sum()
    value.backward()
    softplus = lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))  # noqa: E731
    assert value.item() == pytest.approx(
        (1 - smoothing) * softplus(-0.5 * margin) + smoothing * softplus(0.5 * margin), rel=1e-6, abs=1e-12
    )
    assert m.grad is not None
    assert m.grad.isfinite().all()


def test_orpo_of_answers_that_are_certain_or_impossible() -> None:
    for pair in ([0.0, -5.0], [-5.0, 0.0], [0.0, 0.0], [-1e-9, -300.0], [-300.0, -1e-9]):
        a = torch.tensor(pair, requires_grad=True)
        value = orpo(a[:1], a[1:], 0.1).sum()
        value.backward()
        assert value.isfinite()
        assert a.grad is not None
        assert a.grad.isfinite().all()
    a = torch.tensor([-0.2, -1.3], dtype=torch.float64)
    odds = [math.exp(x) / (1 - math.exp(x)) for x in a.tolist()]
    expected = 0.2 - 0.7 * math.log(1 / (1 + odds[1] / odds[0]))
    assert orpo(a[:1], a[1:], 0.7).item() == pytest.approx(expected, rel=1e-12)


# --- the reference model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("method", ["lora", "adapter", "adapter_v2"])
def test_at_the_start_the_loss_is_log_2_and_margins_are_zero(method: str, packing: bool) -> None:
    model = tiny.load().model
    if method == "lora":
        apply_lora(model, MethodSettings(dropout=0.5))
    else:
        prompts.apply_adapter(model, MethodSettings(name=method, start_layer=0), v2=method == "adapter_v2")  # type: ignore[arg-type]
    model.train()
    objective = Preference(PreferenceSettings(), lambda: adapters_disabled(model))
    for batch in _data(6, packing=packing).batches(range(6), 3):
        n = objective.count(batch)
        loss = objective.loss_sum(model, batch)
        assert loss.item() == (torch.full((n,), 2.0).log().sum()).item()
        loss.backward()
    assert _metrics(objective) == dict(rewards_chosen=0.0, rewards_rejected=0.0, margin=0.0, accuracy=0.0)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "options", [dict(modules_to_save=("lm_head", "norm")), dict(dora=True), dict(rslora=True)], ids=str
)
def test_the_reference_stays_what_the_model_was(options: dict[str, Any]) -> None:
    """Also where a module is trained whole, and for the other kinds of LoRA."""
    model, data = tiny.load("mistral").model, _data(4, 1)
    batches = data.batches(range(4), 2)
    before = [log_probs(model, batch)[0] for batch in batches]
    apply_lora(model, MethodSettings(r=2, **options))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    objective = _objective("dpo", model)
    first = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        _totals(objective, model, batches)
        optimizer.step()
    assert all(not torch.equal(p, first[n]) for n, p in model.named_parameters() if n in first)
    for batch, expected in zip(batches, before, strict=True):
        rewards = 0.3 * (log_probs(model, batch)[0] - expected).detach()
        chosen, rejected = rewards[torch.tensor(batch.answer_documents())].T  # type: ignore[attr-defined]
        objective.metrics()
        objective.loss_sum(model, batch)
        metrics = _metrics(objective)
        assert metrics["rewards_chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4, abs=1e-5)
        assert metrics["rewards_rejected"] == pytest.approx(rejected.mean().item(), rel=1e-4, abs=1e-5)
        assert rewards.abs().max() > 0.01


def test_gradients_reach_the_adapters_only() -> None:
    model = _model(targets=("q_proj", "down_proj"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, _, grads = _totals(_objective("dpo", model), model, _data().batches(range(5), 2))
    assert set(grads) == {n for n in before if ".lora." in n}
    assert all(g.abs().sum() > 0 for g in grads.values())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_reference_has_no_dropout_and_the_policy_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = _model(dropout=0.4), _data()
    model.norm.register_forward_hook(lambda module, _, out: F.dropout(out, 0.3, module.training))
    seen: list[tuple[bool, bool, bool]] = []
    states: list[Tensor] = []
    forward = model.forward

    def spy(tokens: Tensor, *, output: Any, **options: Any) -> Tensor:
        disabled = all(adapter.disabled for _, adapter in lora.adapters(model))
        seen.append((model.training, torch.is_grad_enabled(), disabled))
        return forward(tokens, output=lambda hidden: (states.append(hidden), output(hidden))[1], **options)

    monkeypatch.setattr(model, "forward", spy)
    (batch,) = data.batches(range(5), 5)
    objective = _objective("dpo", model)
    for _ in range(2):
        objective.loss_sum(model, batch)
    assert seen == [(False, False, True), (True, True, False)] * 2
    assert model.training
    assert all(module.training for module in model.modules())
    plain = tiny.shared().model(batch.tokens, output="hidden", context=batch.context())
    assert torch.equal(states[0], states[2])
    torch.testing.assert_close(states[0], plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(states[1], states[3], rtol=1e-2)
    with torch.no_grad():  # validation: nothing is switched to training
        objective.loss_sum(model.eval(), batch)
    assert not any(module.training for module in model.modules())


def test_an_error_in_the_reference_pass_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()

    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _objective("dpo", model).loss_sum(model, _data().batches([0], 1)[0])
    assert model.training
    assert not any(adapter.disabled for _, adapter in lora.adapters(model))


def test_there_is_no_second_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    shapes = {p.shape for n, p in model.named_parameters() if ".lora." not in n and p.dim() == 2}

    def held() -> int:
        tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.shape in shapes]
        return len({t.untyped_storage().data_ptr() for t in tensors})

    gc.collect()
    before, places = held(), {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()}
    objective = _objective("dpo", model)
    during: list[int] = []
    forward = model.forward

    def spy(*args: Any, **options: Any) -> Tensor:
        during.append(held())
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", spy)
    loss = objective.loss_sum(model, _data().batches([0, 1], 2)[0])
    assert during == [before, before]
    assert held() == before
    loss.backward()
    assert {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()} == places


def test_orpo_needs_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = _model(), _data()
    passes, forward = 0, model.forward

    def spy(*args: Any, **options: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", spy)
    batches = data.batches(range(5), 1)
    for batch in batches:
        Preference(SETTINGS["orpo"]).loss_sum(model, batch)
    assert passes == len(batches)


# --- all weights trained: the reference is computed before ---------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_reference_computed_before_training_is_that_of_transformers(packing: bool) -> None:
    model = tiny.load().model.train()
    data = _data(9, 2, packing=packing)
    kept = precompute_reference(model, data, 2, torch.device("cpu"))
    assert model.training
    assert data.reference_logps is None
    expected = _token_log_probs(data, {}).sum(1).view(2, 9).T
    assert kept.reference_logps is not None
    assert not kept.reference_logps.requires_grad
    torch.testing.assert_close(kept.reference_logps.double(), expected.detach(), rtol=1e-5, atol=1e-4)
    many = PreferenceDataset(kept.answers.select([n for _ in range(15) for n in range(18)]))  # more than one part
    again = precompute_reference(model, many, 4, torch.device("cpu")).reference_logps
    assert again is not None
    torch.testing.assert_close(again, kept.reference_logps.repeat(15, 1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_training_all_weights(name: str) -> None:
    """Loss and gradients of every weight, of a model that has moved away from its reference."""
    model = tiny.load().model.train()
    data = precompute_reference(model, _data(5, 4), 2, torch.device("cpu"))
    gen = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.05 * torch.randn(p.shape, generator=gen))
    wide = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    policy = _token_log_probs(data, {_hf_name(n): p for n, p in wide.items()})
    expected, metrics = _expected(name, data, policy, _token_log_probs(data, {}).detach())
    expected.backward()
    objective = Preference(SETTINGS[name])
    total, _, grads = _totals(objective, model, data.batches([4, 2, 0, 1, 3], 2))
    assert total / 5 == pytest.approx(expected.item(), rel=5e-5)
    _close(grads, wide, 5, tolerance=1e-3)
    assert _metrics(objective) == pytest.approx(metrics, rel=1e-3, abs=1e-4)


def test_without_any_reference_there_is_an_error_not_a_number() -> None:
    model = tiny.load().model
    with pytest.raises(ValueError, match="loss=dpo needs a reference"):
        Preference(SETTINGS["dpo"]).loss_sum(model, _data().batches([0], 1)[0])


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_one_pair_is_learned(name: str) -> None:
    model, data = _model(filled=False), _data(1, 6)
    objective = _objective(name, model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)
    (batch,) = data.batches([0], 1)
    losses, margins, accuracy = [], [], 0.0
    for _ in range(25):
        loss = objective.loss_sum(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics = _metrics(objective)
        losses.append(loss.item())
        margins.append(metrics["margin"])
        accuracy = metrics["accuracy"]
    assert min(losses) < losses[0] - (0.15 if name == "cdpo" else 0.3 * losses[0])  # cdpo's least is 0.5
    assert margins[-1] > margins[0] + 0.3
    assert accuracy == 1.0
    assert name != "cdpo" or margins[-1] < 2.5  # its least loss is at log(0.8 / 0.2) = 1.39; dpo goes on
    assert name != "dpo" or margins[-1] > 2.5
    before, after = (_token_log_probs(data, w).sum(1) for w in ({}, _merged(model, _wide(model))))
    assert after[0] - after[1] > before[0] - before[1] + 1  # says transformers, too


def test_metrics_are_means_over_pairs_since_the_last_call() -> None:
    model, data = _model(2), _data(5, 7)
    objective = _objective("dpo", model)
    assert _metrics(objective) == {}
    rewards = 0.3 * (_token_log_probs(data, _merged(model, _wide(model))) - _token_log_probs(data, {})).sum(1)
    chosen, rejected = rewards.detach().view(2, 5)

    def expected(indexes: list[int]) -> dict[str, float]:
        c, r = chosen[indexes], rejected[indexes]
        values = (c, r, c - r, (c > r).double())
        names = ("rewards_chosen", "rewards_rejected", "margin", "accuracy")
        return {k: v.mean().item() for k, v in zip(names, values, strict=True)}

    with torch.no_grad():
        for indexes, sizes in (([0, 1, 2], 2), ([3], 1), ([4, 0], 1)):
            for batch in data.batches(indexes, sizes):
                objective.loss_sum(model, batch)
            assert _metrics(objective) == pytest.approx(expected(indexes), rel=1e-4, abs=1e-5)
            assert _metrics(objective) == {}


def test_bf16_starts_at_log_2_too() -> None:
    model = tiny.load(dtype="bfloat16").model
    apply_lora(model, MethodSettings(r=2))
    model.train()
    objective = _objective("dpo", model)
    (batch,) = _data().batches(range(5), 5)
    assert Preference(PreferenceSettings(), objective.reference).loss_sum(model, batch).item() == pytest.approx(
        5 * math.log(2), rel=1e-6
    )
    _fill(model, 1)
    wide = copy.deepcopy(model).float()
    values = [log_probs(m, batch)[0] for m in (model, wide)]
    assert ((values[0] - values[1]).norm() / values[1].norm()).item() < 0.03


def test_static_shapes_change_nothing() -> None:
    model, data = _model(), _data(4, 9)
    objective = _objective("ipo", model)
    a, b = (_totals(objective, model, d.batches(range(4), 2)) for d in (data, replace(data, static_shapes=True)))
    assert a[0] == pytest.approx(b[0], rel=1e-5)
