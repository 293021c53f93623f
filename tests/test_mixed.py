"""bf16-mixed: fp32 copies of the trained weights, beside a plain loop over copies in the test itself."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_run import Files, rows_of, run, settings_of, write_files
from torch import Tensor

from litlm.data.base import Batch, Example, collate
from litlm.model import GPT
from litlm.settings import MethodSettings, TrainSettings
from litlm.train.loss import NextToken
from litlm.train.optim import hooks_removed, make_optimizer
from litlm.train.precision import MasterWeights
from litlm.transforms.lora import apply_lora

ADAMW = dict(lr=3e-3, weight_decay=0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


def batches(step: int, n: int) -> list[Batch]:
    gen = torch.Generator().manual_seed(step)
    rows = [torch.randint(300, (9 + i,), generator=gen).tolist() for i in range(n)]
    return [collate([Example(row, [True] * len(row))]) for row in rows]


def bf16_gradients(weights: dict[str, Tensor], like: GPT, step: int, n: int) -> dict[str, Tensor]:
    """The sum, in fp32, of what a bf16 model with these weights has for gradients in each micro batch by itself."""
    model = copy.deepcopy(like).bfloat16()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for batch in batches(step, n):
        model.zero_grad(set_to_none=True)
        (NextToken().loss_sum(model, batch) / 40).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                assert p.grad.dtype == torch.bfloat16
                sums[name] += p.grad.float()
    return sums


@pytest.mark.parametrize("case", ["own-head", "tied"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_are_those_of_adamw_on_fp32_copies(case: str, clip: float | None) -> None:
    """Frozen weights, tied embeddings, several micro batches, clipping."""
    model = tiny.load().model if case == "tied" else tiny.load("gpt_neox").model
    assert (model.lm_head is None) == (case == "tied")
    frozen = [name for name, _ in model.named_parameters() if name.startswith("layers.0.mlp")]
    plain = copy.deepcopy(model)
    for p in (model.get_parameter(name) for name in frozen):
        p.requires_grad_(False)
    weights = {name: p.detach().clone() for name, p in plain.named_parameters()}
    copies = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items() if name not in frozen}
    theirs = torch.optim.AdamW(copies.values(), **ADAMW)

    masters = MasterWeights(model)
    ours = torch.optim.AdamW([p for _, p in masters.named_parameters()], **ADAMW)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with hooks_removed(masters):
        for step in range(4):
            sums = bf16_gradients(weights, plain, step, 3)
            for name, p in copies.items():
                p.grad = sums[name]
            norm = torch.nn.utils.clip_grad_norm_(copies.values(), clip or torch.inf)
            theirs.step()
            weights.update((name, p.detach().bfloat16().float()) for name, p in copies.items())

            for batch in batches(step, 3):
                (NextToken().loss_sum(model, batch) / 40).backward()
                assert all(p.grad is None for p in model.parameters())
            found = dict(masters.named_parameters())
            assert found.keys() == copies.keys()
            assert {p.grad.dtype for p in found.values() if p.grad is not None} == {torch.float32}
            assert torch.nn.utils.clip_grad_norm_(found.values(), clip or torch.inf).item() == pytest.approx(
                norm.item(), rel=1e-5
            )
            assert clip is None or norm > clip
            ours.step()
            masters.copy_to_model()
            ours.zero_grad(set_to_none=True)
            for name, p in found.items():
                torch.testing.assert_close(p, copies[name], rtol=1e-6, atol=1e-7)
                assert torch.equal(model.get_parameter(name), p.bfloat16())
    for name in frozen:
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name).bfloat16())


def test_micro_batches_sum_up_in_fp32() -> None:
    """256 gradients of 1 and one of 1/64: in bf16 the sum would stop at 256."""
    model = tiny.load().model
    masters = MasterWeights(model)
    weight, master = model.norm.weight, dict(masters.named_parameters())["norm.weight"]
    for _ in range(300):
        weight.sum().backward()
    (weight / 64).sum().backward()
    assert torch.equal(master.grad, torch.full_like(master, 300 + 1 / 64))


@pytest.mark.parametrize("arrivals", [1, 2, 3])
def test_a_first_gradient_may_stay_bf16(arrivals: int) -> None:
    """With LoRA beside it, whose gradients are fp32 anyway; and one weight has no gradient in the first micro batch."""
    model = tiny.load().model
    apply_lora(model, MethodSettings(name="lora", r=2, modules_to_save=("norm", "embed")))
    masters = MasterWeights(model)
    masters.keep_bf16_grads = True
    given = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kinds = {name: p.dtype for name, p in given.items()}
    assert list(given) == [name for name, _ in masters.named_parameters()]
    assert set(kinds.values()) == {torch.float32, torch.bfloat16}
    late = "norm.weight"
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in given.items()}
    counts = dict.fromkeys(given, 0)
    assert masters.gradients() == []
    with hooks_removed(masters):
        for i in range(arrivals):
            gen = torch.Generator().manual_seed(i)
            total = torch.zeros(())
            for name, p in given.items():
                g = (torch.randn(p.shape, generator=gen) * 100.0**i).to(p.dtype)
                if i or name != late:
                    total = total + (p * g).sum().float()
                    sums[name] += g.double()
                    counts[name] += 1
            total.backward()
            assert all(model.get_parameter(name).grad is None for name in given if kinds[name] == torch.bfloat16)
    found = masters.gradients()
    with_one = [name for name in given if counts[name]]
    assert len(found) == len(with_one)
    for name, grad in zip(with_one, found, strict=True):
        master = dict(masters.named_parameters())[name]
        assert grad is masters.gradient(master)
        low = kinds[name] == torch.bfloat16 and counts[name] == 1
        assert grad.dtype == (torch.bfloat16 if low else torch.float32)
        assert (master.grad is None) == low
        if counts[name] == 1:
            assert torch.equal(grad.double(), sums[name])
        torch.testing.assert_close(grad.double(), sums[name], rtol=1e-6, atol=1e-3 if arrivals == 3 else 1e-5)
    masters.bf16_grads.clear()
    assert masters.bf16_grads == {}
    assert len(masters.gradients()) == len([p for _, p in masters.named_parameters() if p.grad is not None])


@pytest.mark.parametrize("arrivals", [1, 2, 3])
def test_kept_gradients_add_up_to_the_same_bits(arrivals: int) -> None:
    found = []
    for keep_bf16_grads in (False, True):
        masters = MasterWeights(model := tiny.load().model)
        masters.keep_bf16_grads = keep_bf16_grads
        for batch in batches(5, arrivals):
            NextToken().loss_sum(model, batch).backward()
        found.append([grad.float() for grad in masters.gradients()])
        masters.remove_hooks()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_tiny_updates_are_not_lost() -> None:
    """SGD by 1e-5 of each weight, 200 times: 0.2 percent, half of a bf16's last digit and less."""
    settings = TrainSettings(optimizer="sgd", lr=1.0, weight_decay=0.0)
    moved = {}
    for mixed in (True, False):
        model = tiny.load().model
        model = model if mixed else model.bfloat16()
        masters = MasterWeights(model) if mixed else None
        optimizer = make_optimizer(masters or model, settings)
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        params = dict((masters or model).named_parameters())
        before = {name: p.detach().clone() for name, p in params.items()}
        for _ in range(200):
            for name, p in params.items():
                p.grad = (1e-5 * before[name]).to(p.dtype)
            optimizer.step()
            if masters is not None:
                masters.copy_to_model()
        moved[mixed] = params, before
    for name, p in moved[True][0].items():  # 200 roundings, by at most 6e-8 each
        torch.testing.assert_close(p, moved[True][1][name] * (1 - 200e-5), rtol=2e-5, atol=1e-8)
    assert all(torch.equal(p, moved[False][1][name]) for name, p in moved[False][0].items())


def test_without_hooks_the_model_learns_no_more() -> None:
    model = tiny.load().model
    masters = MasterWeights(model)
    with pytest.raises(KeyError), hooks_removed(masters, None):
        raise KeyError
    NextToken().loss_sum(model, batches(0, 1)[0]).backward()
    assert all(master.grad is None for _, master in masters.named_parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_adapters_train_beside_a_bf16_model() -> None:
    model = tiny.load().model
    apply_lora(model, MethodSettings(name="lora", r=2, modules_to_save=("norm",)))
    masters = MasterWeights(model)
    NextToken().loss_sum(model, batches(0, 1)[0]).backward()
    trained = dict(masters.named_parameters())
    assert set(trained) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora.A", "lora.B")) or name == "norm.weight" for name in trained)
    assert trained["norm.weight"].grad is not None
    assert trained["norm.weight"].grad.any()


def test_packed_weights_of_quantized_layers_are_left_alone() -> None:
    model = tiny.load(quantize="nf4").model
    apply_lora(model, MethodSettings(name="qlora", r=2, quantize="nf4"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = MasterWeights(model)
    packed = [name for name, p in before.items() if not p.is_floating_point()]
    assert packed
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in packed)
    NextToken().loss_sum(model, batches(0, 1)[0]).backward()
    assert all(master.grad is not None for _, master in masters.named_parameters())


def test_a_checkpoint_holds_the_copies_and_resume_restores_them(files: Files, tmp_path: Path) -> None:
    whole = run(settings_of("full-mixed", files, tmp_path / "whole", max_steps=6, schedule="constant"))
    first = settings_of("full-mixed", files, tmp_path / "parts", max_steps=4, schedule="constant")
    run(first)
    stored = load_file(tmp_path / "parts" / "step-000004" / "training" / "weights.safetensors")
    saved = load_file(tmp_path / "parts" / "step-000004" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    assert torch.equal(stored["embed.weight"].bfloat16(), saved["model.embed_tokens.weight"])
    assert not torch.equal(stored["embed.weight"], saved["model.embed_tokens.weight"].float())
    more = dataclasses.replace(first.train, max_steps=6)
    result = run(dataclasses.replace(first, train=more, resume="auto"))
    assert result.losses == whole.losses[4:]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, other = (load_file(tmp_path / d / "step-000006" / "training" / name) for d in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(rows_of(tmp_path / "parts" / "metrics.csv")) == 6


@pytest.mark.parametrize("method", [dict(dora=True), dict(dora=True, modules_to_save=("norm",)), {}], ids=str)
def test_adapters_stay_fp32_and_the_model_starts_as_it_was(method: dict[str, Any]) -> None:
    """In bf16 a row's length would be off by up to 0.4 %, and small steps of it lost."""
    llm = tiny.load("qwen3")
    tokens = torch.arange(1, 60)[None]
    expected = tiny.load("qwen3", dtype="bfloat16").model(tokens)
    apply_lora(llm.model, MethodSettings(r=4, **method))
    masters = MasterWeights(llm.model)
    kinds = {name: p.dtype for name, p in llm.model.named_parameters()}
    assert {kinds[name] for name in kinds if ".lora." in name} == {torch.float32}
    assert kinds["layers.0.attn.q_proj.weight"] == torch.bfloat16
    assert all(p.dtype == torch.float32 for _, p in masters.named_parameters())
    assert (llm.model(tokens) - expected).abs().max() <= 2**-8 * expected.abs().max()
    masters.remove_hooks()
