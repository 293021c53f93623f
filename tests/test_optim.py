"""Optimizers by name against the classes themselves, and their states through files."""

from __future__ import annotations

import copy
import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from litlm.config import Config, GatedDeltaConfig, ShortConvConfig
from litlm.model import GPT
from litlm.settings import TrainSettings
from litlm.train.optim import (
    CombinedOptimizer,
    MixedAdamW,
    StepInBackward,
    can_skip_on_device,
    clip_gradients,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    skip_step_if,
)
from litlm.train.precision import MasterWeights


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16, bias=False)
        self.q_norm = nn.LayerNorm((2, 8))  # a weight for each head
        self.experts = nn.Parameter(0.1 * torch.randn(3, 16, 16))  # (E, out, in)
        self.up_bias = nn.Parameter(torch.randn(3, 16))  # one for each expert

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(F.silu(self.up(x)))
        x = self.q_norm(x.unflatten(-1, (2, 8))).flatten(-2)
        return x + torch.einsum("eoi,bi->bo", self.experts, x) + self.up_bias.sum(0)


class Toy(nn.Module):
    """The names of a language model. The embedding is wide enough for 8-bit states; the head is tied to it."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.embed = nn.Embedding(300, 16)
        self.layers = nn.ModuleList([Block(), Block()])
        self.late = nn.Linear(16, 16)  # has no gradient before step 2

    def forward(self, tokens: Tensor, late: bool) -> Tensor:
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x)
        return (self.late(x) if late else x) @ self.embed.weight.T


class Joint:
    """What a loop with several optimizers does."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def train(model: Toy, optimizer: Optimizer | Joint, steps: range) -> None:
    for step in steps:
        gen = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 300, (7,), generator=gen)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        F.cross_entropy(model(tokens, late=step >= 2).float(), tokens.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    theirs = dict(other.named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p, theirs[name]), name


def by_name(model: nn.Module, *names: str) -> list[nn.Parameter]:
    found = [p for n, p in model.named_parameters() if any(part in n for part in names)]
    assert found
    return found


MATRICES = ("embed", "up.weight", "down", "experts", "late.weight")
VECTORS = ("up.bias", "norm", "up_bias", "late.bias")


@pytest.mark.parametrize("seed", [0, 1])
def test_adamw_is_the_formula(seed: int) -> None:
    """Loshchilov & Hutter's algorithm 2 in float64, with decay on matrices alone."""
    model = Toy(seed)
    settings = TrainSettings(lr=0.01, weight_decay=0.3, optimizer_args={"betas": [0.8, 0.9], "eps": 1e-6})
    optimizer = make_optimizer(model, settings)
    decayed = {id(p) for p in by_name(model, *MATRICES)}
    assert len(decayed) + len(by_name(model, *VECTORS)) == len(list(model.parameters()))
    reference = {n: p.detach().double() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in reference.items()}
    v = {n: torch.zeros_like(p) for n, p in reference.items()}
    gen = torch.Generator().manual_seed(seed)
    for t in range(1, 6):
        for name, p in model.named_parameters():
            g = torch.randn(p.shape, generator=gen)
            p.grad, g = g.clone(), g.double()
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g * g
            update = (m[name] / (1 - 0.8**t)) / ((v[name] / (1 - 0.9**t)).sqrt() + 1e-6)
            decay = 0.3 if id(p) in decayed else 0.0
            reference[name] = reference[name] - 0.01 * update - 0.01 * decay * reference[name]
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), reference[name], rtol=1e-5, atol=1e-6)
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("seed", [0, 1])
def test_muon_is_torchs_with_adamw_beside_it(seed: int) -> None:
    model, other = Toy(seed), Toy(seed)
    args = {"momentum": 0.9, "betas": (0.8, 0.95)}
    optimizer = make_optimizer(model, TrainSettings(optimizer="Muon", weight_decay=0.1, optimizer_args=args))
    muon = torch.optim.Muon(
        by_name(other, "up.weight", "down"), weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    rest = [
        {"params": by_name(other, "embed", "experts", "late.weight"), "weight_decay": 0.1},
        {"params": by_name(other, *VECTORS), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, betas=(0.8, 0.95), fused=True)
    train(model, optimizer, range(5))
    train(other, Joint(muon, adamw), range(5))
    assert_same(model, other)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_which_parameters_of_recurrent_layers_are_matrices(optimizer: str) -> None:
    """The projections decay and go to Muon; kernels, decay rates, biases and norms do neither."""
    delta = GatedDeltaConfig(n_key_head=2, n_value_head=4, key_dim=8, value_dim=8)
    for mixer, projections in ((delta, "qkv z b a"), (ShortConvConfig(bias=True), "")):
        config = Config(
            vocab_size=9, n_layer=1, n_embd=16, n_head=2, layer_types=("recurrent",), recurrent=mixer, n_kv_head=1
        )
        model = GPT(config)
        made = make_optimizer(model, TrainSettings(optimizer=optimizer, weight_decay=0.1))
        names = {p: name.removeprefix("layers.0.attn.") for name, p in model.named_parameters() if ".attn." in name}
        groups = {names[p]: g for g in made.param_groups for p in g["params"] if p in names}
        matrices = {f"in_proj_{x}.weight" for x in projections.split()} or {"in_proj.weight"}
        matrices.add("out_proj.weight")
        others = {"A_log", "dt_bias", "norm.weight"} if projections else {"in_proj.bias", "conv.bias", "out_proj.bias"}
        assert groups.keys() == matrices | others | {"conv.weight"}
        assert {name for name, group in groups.items() if group["weight_decay"]} == matrices
        if optimizer == "muon":
            assert {name for name, group in groups.items() if "ns_steps" in group} == matrices


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "SGD": ("SGD", {}),
    "adafactor": ("Adafactor", {}),
    "Adagrad": ("Adagrad", {"lr_decay": 0.1}),
    "rmsprop": ("RMSprop", {"momentum": 0.5, "centered": True}),
    "radam": ("RAdam", {}),
    "nadam": ("NAdam", {}),
    "adam": ("Adam", {"amsgrad": True, "foreach": True}),
    "asgd": ("ASGD", {"t0": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_class_of_torch_by_name(name: str) -> None:
    cls, args = OTHERS[name]
    model, other = Toy(), Toy()
    train(model, make_optimizer(model, TrainSettings(optimizer=name, weight_decay=0.1, optimizer_args=args)), range(4))
    groups = [
        {"params": by_name(other, *MATRICES), "weight_decay": 0.1},
        {"params": by_name(other, *VECTORS), "weight_decay": 0.0},
    ]
    train(other, getattr(torch.optim, cls)(groups, **args), range(4))
    assert_same(model, other)


def test_adamw8bit_is_that_of_bitsandbytes_but_for_embeddings() -> None:
    from bitsandbytes.optim.adamw import AdamW, AdamW8bit

    args = {"min_8bit_size": 256, "betas": (0.8, 0.9)}
    model, other, wide = Toy(), Toy(), Toy()
    optimizer = make_optimizer(model, TrainSettings(optimizer="adamw8bit", weight_decay=0.1, optimizer_args=args))
    train(model, optimizer, range(4))
    matrices = AdamW8bit(by_name(other, "up.weight", "down", "experts", "late.weight"), weight_decay=0.1, **args)
    vectors = AdamW8bit(by_name(other, *VECTORS), weight_decay=0.0, **args)
    embed = AdamW([other.embed.weight], weight_decay=0.1, **args)
    train(other, Joint(matrices, vectors, embed), range(4))
    assert_same(model, other)
    states = [optimizer.state[p]["state1"].dtype for p in (model.embed.weight, model.layers[0].experts)]
    assert states == [torch.float32, torch.uint8]
    # and near AdamW, whose states all have 32 bits
    train(wide, make_optimizer(wide, TrainSettings(weight_decay=0.1, optimizer_args={"betas": (0.8, 0.9)})), range(4))
    start = dict(Toy().named_parameters())
    for (name, p), q in zip(model.named_parameters(), wide.parameters(), strict=True):
        assert (p - q).norm() < 0.1 * (q - start[name]).norm(), name


STATES = {"adamw": {}, "adamw8bit": {"min_8bit_size": 256}, "muon": {}, "rprop": {}} | {
    name: args for name, (_, args) in OTHERS.items()
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", STATES)
def test_a_state_goes_through_files_and_on_bit_for_bit(name: str, seed: int, tmp_path: Path) -> None:
    settings = TrainSettings(optimizer=name, optimizer_args=STATES[name])
    model = Toy(seed)
    if seed == 2:
        model = model.bfloat16()  # states of another dtype than the weights
    optimizer = make_optimizer(model, settings)
    train(model, optimizer, range(seed + 1))  # the late layer has a state at seed 2 alone
    tensors, info = optimizer_state(optimizer)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    text = json.dumps(info)
    resumed = copy.deepcopy(model)
    train(model, optimizer, range(seed + 1, 6))

    again = make_optimizer(resumed, settings)
    load_optimizer_state(again, load_file(tmp_path / "optimizer.safetensors"), json.loads(text))
    train(resumed, again, range(seed + 1, 6))
    assert_same(resumed, model)
    kinds = [{k: (v.dtype, v.shape) for k, v in optimizer_state(o)[0].items()} for o in (optimizer, again)]
    assert kinds[0] == kinds[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STATES)
def test_a_state_goes_on_on_cuda(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Some tensors of a state lie on the CPU even there. Gradients are given: backward passes on CUDA may differ."""
    settings = TrainSettings(optimizer=name, optimizer_args=STATES[name])
    model = Toy().to("cuda", dtype)
    optimizer = make_optimizer(model, settings)

    def steps(model: Toy, optimizer: Optimizer, numbers: range) -> None:
        for number in numbers:
            gen = torch.Generator().manual_seed(number)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=gen).to("cuda", dtype)
            optimizer.step()

    steps(model, optimizer, range(3))
    tensors, info = optimizer_state(optimizer)
    save_file(tensors, tmp_path / "optimizer.safetensors")
    resumed = copy.deepcopy(model)
    again = make_optimizer(resumed, settings)
    load_optimizer_state(again, load_file(tmp_path / "optimizer.safetensors"), json.loads(json.dumps(info)))
    for key, value in optimizer_state(again)[0].items():
        assert value.device == tensors[key].device, key
    steps(model, optimizer, range(3, 6))
    steps(resumed, again, range(3, 6))
    assert_same(resumed, model)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_goes_on_in_another_precision(name: str) -> None:
    settings = TrainSettings(optimizer=name)
    models = Toy(1).bfloat16(), Toy(1)
    optimizers = [make_optimizer(model, settings) for model in models]
    train(models[0], optimizers[0], range(3))
    load_optimizer_state(optimizers[1], *optimizer_state(optimizers[0]))
    known = optimizer_state(optimizers[0])[0]
    for key, value in optimizer_state(optimizers[1])[0].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, known[key].float())
    train(models[1], optimizers[1], range(3, 5))


def test_a_state_is_matched_by_name_not_order(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names:
                self.register_parameter(name, nn.Parameter(torch.ones(4, 4)))

    first, second = Two("ab"), Two("ba")
    optimizers = [make_optimizer(model, TrainSettings(optimizer="adagrad")) for model in (first, second)]
    first.a.grad, first.b.grad = torch.full((4, 4), 2.0), torch.full((4, 4), 5.0)
    optimizers[0].step()
    load_optimizer_state(optimizers[1], *optimizer_state(optimizers[0]))
    assert optimizers[1].state[second.a]["sum"].eq(4).all()
    assert optimizers[1].state[second.b]["sum"].eq(25).all()


def test_a_loaded_state_has_its_parameters_strides() -> None:
    """The fused kernel walks both in memory order."""

    def models() -> tuple[nn.ParameterDict, Optimizer]:
        weight = nn.Parameter(torch.arange(15.0).view(5, 3).T)
        model = nn.ParameterDict({"weight": weight})
        return model, make_optimizer(model, TrainSettings(lr=0.1))

    def step(model: nn.ParameterDict, optimizer: Optimizer, seed: int) -> None:
        grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        model["weight"].grad = torch.empty_like(model["weight"]).copy_(grad)
        optimizer.step()

    model, optimizer = models()
    other, again = models()
    step(model, optimizer, 0)
    with torch.no_grad():
        other["weight"].copy_(model["weight"])
    load_optimizer_state(again, *optimizer_state(optimizer))
    step(model, optimizer, 1)
    step(other, again, 1)
    assert torch.equal(model["weight"], other["weight"])


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "adamw8bit"])
def test_steps_in_backward_are_the_same_steps(name: str) -> None:
    args = {"momentum": 0.9} if name == "sgd" else {}
    settings = TrainSettings(
        optimizer=name, optimizer_args=args, weight_decay=0.1, optimizer_in_backward=True, grad_clip=None
    )
    model, other = Toy(), Toy()
    optimizer = make_optimizer(model, settings)
    assert isinstance(optimizer, StepInBackward)
    ordinary = make_optimizer(other, TrainSettings(optimizer=name, optimizer_args=args, weight_decay=0.1))
    train(model, optimizer, range(4))
    train(other, ordinary, range(4))
    assert_same(model, other)
    # Their states are the same as well, and either goes on from the other's.
    mine, theirs = optimizer_state(optimizer), optimizer_state(ordinary)
    assert mine[0].keys() == theirs[0].keys()
    for key, value in mine[0].items():
        assert torch.equal(value, theirs[0][key]), key
    resumed = copy.deepcopy(other)
    again = make_optimizer(resumed, settings)
    load_optimizer_state(again, *theirs)
    train(resumed, again, range(4, 6))
    train(model, optimizer, range(4, 6))
    assert_same(resumed, model)


@pytest.mark.parametrize("end", ["remove", "let go"])
def test_steps_in_backward_end_with_their_optimizer(end: str) -> None:
    model = Toy()
    settings = TrainSettings(optimizer="muon", optimizer_in_backward=True, grad_clip=None)
    optimizer = make_optimizer(model, settings)
    assert isinstance(optimizer, StepInBackward)

    def moved() -> list[bool]:
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.arange(5), late=True).square().sum().backward()
        return [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]

    assert all(moved())
    assert all(p.grad is None for p in model.parameters())
    if end == "remove":
        optimizer.remove_hooks()
    else:
        del optimizer
        gc.collect()
    assert not any(moved())
    assert all(p.grad is not None for p in model.parameters())


def test_joined_optimizers_pass_for_one() -> None:
    """With torch's own state_dict, and inside Fabric's wrapper."""
    from lightning.fabric import Fabric

    settings = TrainSettings(optimizer="muon")
    model, resumed = Toy(), Toy()
    optimizer = make_optimizer(model, settings)
    assert isinstance(optimizer, CombinedOptimizer)
    train(model, optimizer, range(3))
    resumed.load_state_dict(model.state_dict())
    again = make_optimizer(resumed, settings)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(3, 5))
    train(resumed, again, range(3, 5))
    assert_same(model, resumed)

    wrapped, other = Toy(), Toy()
    fabric = Fabric(accelerator="cpu", devices=1)
    _, inside = fabric.setup(wrapped, make_optimizer(wrapped, settings))
    train(wrapped, inside, range(3))
    tensors, info = optimizer_state(inside)
    assert info["optimizer"] == "AdamW + Muon"
    other.load_state_dict(wrapped.state_dict())
    _, again = fabric.setup(other, make_optimizer(other, settings))
    load_optimizer_state(again, copy.deepcopy(tensors), info)
    train(wrapped, inside, range(3, 5))
    train(other, again, range(3, 5))
    assert_same(wrapped, other)


def fill(params: list[nn.Parameter], dtype: torch.dtype, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    for p in params[1:]:
        p.grad = torch.randn(p.shape, generator=gen).to(dtype)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "most"), [("adamw", 0.7), ("muon", 1e4), ("sgd", None), ("adamw", 0.0)])
def test_clipping_is_torchs_to_the_bit(name: str, most: float | None, dtype: torch.dtype, seed: int) -> None:
    from lightning.fabric import Fabric

    model, other = Toy(seed).to(dtype), Toy(seed).to(dtype)
    optimizer = make_optimizer(model, TrainSettings(optimizer=name))
    params, theirs = list(model.parameters()), list(other.parameters())
    assert clip_gradients(optimizer, params, most) is None
    fill(params, dtype, seed)
    fill(theirs, dtype, seed)
    norm = clip_gradients(Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer), iter(params), most)
    expected = torch.nn.utils.clip_grad_norm_(theirs, torch.inf if most is None else most)
    assert norm is not None
    assert (norm.dtype, norm.shape) == (torch.float32, ())
    assert norm == expected.float()
    for p, q in zip(params[1:], theirs[1:], strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)


def mixed(seed: int = 0) -> tuple[MasterWeights, MixedAdamW]:
    """The optimizer that needs a GPU to step, but not for what is around it."""
    masters = MasterWeights(Toy(seed))  # type: ignore[arg-type]
    optimizer = make_optimizer(masters, TrainSettings())
    assert type(optimizer) is torch.optim.AdamW, "on a CPU"
    assert not masters.keep_bf16_grads
    return masters, MixedAdamW(optimizer, masters)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("most", [None, 0.5, 1e9])
@pytest.mark.parametrize("arrivals", [0, 1, 2])
def test_the_mixed_optimizer_clips_when_it_steps(arrivals: int, most: float | None, seed: int) -> None:
    masters, optimizer = mixed(seed)
    params = dict(masters.named_parameters())
    assert masters.keep_bf16_grads
    gen, sums = torch.Generator().manual_seed(seed), {name: torch.zeros(p.shape).double() for name, p in params.items()}
    for _ in range(arrivals):
        for name, p in params.items():
            g = torch.randn(p.shape, generator=gen).bfloat16()
            sums[name] += g.double()
            (masters.model_params[p] * g).sum().backward()
    before = [grad.clone() for grad in masters.gradients()]
    norm = clip_gradients(optimizer, params.values(), most)
    if not arrivals:
        assert norm is None
        return
    assert norm is not None
    assert (norm.dtype, norm.shape) == (torch.float32, ())
    exactly = torch.cat([g.flatten() for g in sums.values()]).norm()
    # A sum of n squares is off by at most n roundoffs (2**-24), its root by half of that.
    rtol = max(p.numel() for p in params.values()) * 2**-25
    torch.testing.assert_close(norm.double(), exactly, rtol=rtol, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, masters.gradients(), strict=True))
    assert {g.dtype for g in before} == {torch.bfloat16 if arrivals == 1 else torch.float32}
    if most is None:
        assert optimizer.clip_coef is None
    else:
        assert optimizer.clip_coef is not None
        assert optimizer.clip_coef.item() == pytest.approx(min(1.0, most / exactly.item()), rel=rtol)
    optimizer.zero_grad()
    assert masters.gradients() == []


def test_the_mixed_optimizer_passes_for_adamw() -> None:
    masters, optimizer = mixed()
    names = [name for name, _ in masters.named_parameters()]
    assert [n for g in optimizer.param_groups for n in g["param_names"]] != []
    assert sorted(n for g in optimizer.param_groups for n in g["param_names"]) == sorted(names)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [TrainSettings().weight_decay, 0.0]
    # The state of an ordinary one, which stepped on the same parameters, goes on in it.
    other = Toy()
    ordinary = make_optimizer(other, TrainSettings())
    train(other, ordinary, range(3))
    tensors, info = optimizer_state(ordinary)
    load_optimizer_state(optimizer, tensors, info)
    again, same = optimizer_state(optimizer)
    assert same == info
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_steps_are_left_out_on_a_device_only() -> None:
    model = Toy()
    optimizers = [
        make_optimizer(model, TrainSettings(optimizer=name)) for name in ("adamw", "muon", "sgd", "adamw8bit")
    ]
    optimizers.append(make_optimizer(Toy(), TrainSettings(optimizer_in_backward=True, grad_clip=None)))
    assert not any(can_skip_on_device(optimizer) for optimizer in optimizers)
    bad = torch.ones(())
    for optimizer in (optimizers[0], mixed()[1]):
        skip_step_if(optimizer, bad)
        assert optimizer.found_inf is bad  # type: ignore[attr-defined]
    # torch's fused one knows of it on a CPU too.
    before = copy.deepcopy(model)
    fill(list(model.parameters()), torch.float32, 0)
    optimizers[0].step()
    assert_same(model, before)
    skip_step_if(optimizers[0], torch.zeros(()))
    optimizers[0].step()
    assert not torch.equal(model.late.weight, before.late.weight)


def test_only_what_requires_a_gradient_is_trained() -> None:
    model = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(model, TrainSettings())
    model.late.requires_grad_(True)
    optimizer = make_optimizer(model, TrainSettings(optimizer="muon", lr="find"))
    assert optimizer_state(optimizer)[1]["shapes"] == {"late.weight": [16, 16], "late.bias": [16]}
    assert all(group["lr"] == 0 for group in optimizer.param_groups)


def test_what_can_not_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy()

    def fails(match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            make_optimizer(model, TrainSettings(**settings))

    fails("'adamq' is unknown .did you mean .*adam.*; there are adadelta, .*adamw8bit.*muon", optimizer="adamq")
    fails("LBFGS doesn't work with ordinary training steps", optimizer="LBFGS")
    fails(
        "has momentun, which is no argument of SGD; there are momentum, ",
        optimizer="sgd",
        optimizer_args={"momentun": 1},
    )
    fails("has beta, which is no argument of Muon and AdamW", optimizer="muon", optimizer_args={"beta": 1})
    fails("lr is a setting of its own", optimizer_args={"lr": 1})
    fails("weight_decay=0.1 means nothing to Rprop", optimizer="rprop", weight_decay=0.1)
    fails("AdamW refuses .*betas.* 1.5", optimizer_args={"betas": (1.5, 0.9)})
    for name in ("bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.adamw"):
        monkeypatch.setitem(sys.modules, name, None)
    fails(r"adamw8bit needs bitsandbytes: pip install bitsandbytes", optimizer="adamw8bit")


def test_a_state_of_something_else_is_refused_whole() -> None:
    model = Toy()
    optimizer = make_optimizer(model, TrainSettings())
    train(model, optimizer, range(1))
    tensors, info = optimizer_state(optimizer)
    other = nn.ModuleDict({"embed": nn.Embedding(300, 8), "new": nn.Linear(2, 2)})
    sgd = make_optimizer(other, TrainSettings(optimizer="sgd"))
    with pytest.raises(ValueError) as e:
        load_optimizer_state(sgd, tensors, info)
    for line in (
        "it is that of AdamW, but this run uses SGD",
        "new.weight is trained, but the state doesn't have it",
        "late.weight is in the state, but not trained",
        "embed.weight has shape [300, 8], in the state [300, 16]",
    ):
        assert line in str(e.value)

    fresh = make_optimizer(model, TrainSettings())
    tensors["sum/late.weight"] = tensors.pop("exp_avg/embed.weight")
    with pytest.raises(ValueError, match=r"exp_avg/embed.weight is missing\n.*sum/late.weight does not belong"):
        load_optimizer_state(fresh, tensors, info)
    assert not fresh.state
