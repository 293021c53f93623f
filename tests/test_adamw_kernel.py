"""AdamW's Triton kernel, and the optimizer around it, against a float64 formula and torch's own.

On a CUDA device these are tests of what runs there. Without one, a single test runs them all in Triton's interpreter,
if Triton is installed, and another compiles the kernel for a GPU that need not be there.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from interpreted import passed_in_interpreter
from torch import Tensor, nn
from torch.optim import Optimizer

from litlm.settings import MethodSettings, TrainSettings
from litlm.train import optim
from litlm.train.optim import (
    MixedAdamW,
    can_skip_on_device,
    clip_gradients,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    skip_step_if,
)
from litlm.train.precision import MasterWeights
from litlm.transforms.lora import apply_lora

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
with_kernel = (
    [pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")]  # the interpreter's own
    if INTERPRETED
    else [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
SIZES = (1, 2, 63, 64, 1024, 4097)


# --- the kernel by itself ------------------------------------------------------------------------------------------


class Case:
    """Parameters of all `SIZES`, each with NaN behind it, and float64 copies. `done`: steps taken before."""

    def __init__(self, dtype: torch.dtype, seed: int, done: tuple[int, ...], **options: Any) -> None:
        self.gen, self.dtype = torch.Generator().manual_seed(seed), dtype
        self.options: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1) | options
        self.buffers = [torch.full((4, n + 7), torch.nan, device=DEVICE) for n in SIZES]
        for n, buffer in zip(SIZES, self.buffers, strict=True):
            buffer[:3, :n] = torch.randn(3, n, generator=self.gen).to(DEVICE)
            buffer[1:3, :n] *= 0.1
            buffer[2, :n].square_().add_(1e-3)
        self.params, self.means, self.squares = ([b[k, : b.size(1) - 7] for b in self.buffers] for k in range(3))
        self.steps = [torch.tensor(float(done[i % len(done)]), device=DEVICE) for i in range(len(SIZES))]
        self.low = [torch.full((n + 7,), torch.nan, device=DEVICE).bfloat16() for n in SIZES]
        self.expected = [
            [t.double() for t in three] for three in zip(self.params, self.means, self.squares, strict=True)
        ]

    def gradients(self) -> list[Tensor]:
        sizes = [10 ** float(torch.randn((), generator=self.gen)) for _ in SIZES]
        return [
            (torch.randn(n, generator=self.gen) * s).to(DEVICE, self.dtype) for n, s in zip(SIZES, sizes, strict=True)
        ]

    def step(self, grads: list[Tensor], factor: float | None = None, bad: float | None = None) -> None:
        from litlm.ops.adamw import adamw_

        adamw_(
            self.params, grads, self.means, self.squares, self.steps,
            [low[:n] if i != 3 else None for i, (n, low) in enumerate(zip(SIZES, self.low, strict=True))],
            clip_coef=None if factor is None else torch.tensor(factor, device=DEVICE),
            found_inf=None if bad is None else torch.tensor(bad, device=DEVICE), **self.options,
        )  # fmt: skip

    def formula(self, grads: list[Tensor], counts: list[int], factor: float | None) -> None:
        """Loshchilov & Hutter's algorithm 2."""
        o, (beta1, beta2) = self.options, self.options["betas"]
        factor = 1.0 if factor is None else torch.tensor(factor).double().item()  # what fp32 makes of it
        for (p, m, v), grad, t in zip(self.expected, grads, counts, strict=True):
            g = grad.double() * factor
            m.mul_(beta1).add_((1 - beta1) * g)
            v.mul_(beta2).add_((1 - beta2) * g * g)
            update = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + o["eps"])
            p.sub_(o["lr"] * update + o["lr"] * o["weight_decay"] * p)

    def check(self) -> None:
        for i, (n, expected) in enumerate(zip(SIZES, self.expected, strict=True)):
            p, m, v = self.params[i], self.means[i], self.squares[i]
            torch.testing.assert_close(p.double(), expected[0], rtol=1e-6, atol=1e-7 + 2e-6 * self.options["lr"])
            for got, exactly in ((m, expected[1]), (v, expected[2])):
                atol = 3e-7 * float(exactly.abs().max())  # what cancels
                torch.testing.assert_close(got.double(), exactly, rtol=1e-6, atol=atol)
            assert self.buffers[i][:, n:].isnan().all(), "it wrote behind the end"
            assert self.buffers[i][3].isnan().all()
            low = self.low[i]
            assert low[n:].isnan().all()
            if i == 3:
                assert low.isnan().all()
            elif INTERPRETED:  # its rounding to bf16 cuts off
                assert ((low[:n].float() - p).abs() < 2**-7 * p.abs()).all()
            else:
                assert torch.equal(low[:n], p.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, None),
        (dict(weight_decay=0.0, betas=(0.8, 0.95)), 0.3),
        (dict(lr=1, weight_decay=1e-3, eps=1e-3), 1.0),
        (dict(betas=(0.0, 0.0), eps=1e-6), 7.5),
    ],
    ids=str,
)
class TestKernel:
    pytestmark = with_kernel

    @pytest.mark.parametrize("seed", [0, 1])
    def test_it_is_the_formula(
        self, options: dict[str, Any], factor: float | None, dtype: torch.dtype, seed: int
    ) -> None:
        done = (0, 3, 20_000)  # each parameter counts its own steps
        case = Case(dtype, seed, done, **options)
        for t in range(1, 6):
            grads = case.gradients()
            case.step(grads, factor, bad=0.0 if t % 2 else None)
            counts = [done[i % 3] + t for i in range(len(SIZES))]
            case.formula(grads, counts, factor)
            assert [step.item() for step in case.steps] == counts
        case.check()

    def test_it_is_torchs(self, options: dict[str, Any], factor: float | None, dtype: torch.dtype) -> None:
        case = Case(dtype, 2, (0,), **options)
        for state in (*case.means, *case.squares):
            state.zero_()
        theirs = [nn.Parameter(p.clone()) for p in case.params]
        other = torch.optim.AdamW(theirs, **case.options, foreach=False)
        for _ in range(5):
            grads = case.gradients()
            case.step(grads, factor)
            for p, grad in zip(theirs, grads, strict=True):
                p.grad = grad.float() * (1.0 if factor is None else factor)
            other.step()
        for p, q in zip(case.params, theirs, strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=2e-6, atol=2e-6 * case.options["lr"] + 1e-7)

    def test_a_step_left_out_changes_nothing(
        self, options: dict[str, Any], factor: float | None, dtype: torch.dtype
    ) -> None:
        case = Case(dtype, 3, (0, 5), **options)
        grads = case.gradients()
        case.step(grads, factor)
        tensors = [*case.buffers, *case.low, *case.steps]
        before = [t.clone() for t in tensors]
        for grad in grads[::2]:
            grad.fill_(torch.nan)
        case.step(grads, factor, bad=1.0)
        assert all(torch.equal(t.nan_to_num(9.0), b.nan_to_num(9.0)) for t, b in zip(tensors, before, strict=True))
        assert [t.isnan().sum() for t in tensors] == [b.isnan().sum() for b in before]


class TestEdges:
    pytestmark = with_kernel

    def test_no_gradient_and_no_elements(self) -> None:
        from litlm.ops.adamw import adamw_

        some = [torch.zeros(3, device=DEVICE), torch.zeros(0, 4, device=DEVICE)]
        p, m, v = ([t.clone() for t in some] for _ in range(3))
        p[0] += 2
        steps = [torch.zeros((), device=DEVICE) for _ in some]
        options: dict[str, Any] = dict(lr=0.5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5)
        adamw_(p, some, m, v, steps, [None, None], clip_coef=None, found_inf=None, **options)
        assert p[0].tolist() == [1.5] * 3  # decayed, and no 0 / 0
        assert not m[0].any()
        assert steps[1] == 1


# --- the optimizer -------------------------------------------------------------------------------------------------

ADAMW = TrainSettings(lr=1e-3, weight_decay=0.1, optimizer_args={"betas": [0.9, 0.95]})


class Trained:
    """Copies to train, and a torch optimizer of clones of them that gets the same gradients in fp32."""

    def __init__(self, adapters: bool) -> None:
        self.model = tiny.load().model
        if adapters:
            apply_lora(self.model, MethodSettings(name="lora", r=2, modules_to_save=("norm",)))
        self.model.to(DEVICE)
        self.masters = MasterWeights(self.model)
        self.optimizer = make_optimizer(self.masters, ADAMW)
        self.copies = {n: nn.Parameter(p.detach().clone()) for n, p in self.masters.named_parameters()}
        self.theirs = make_optimizer(_Named(self.copies), ADAMW)
        assert type(self.theirs) is torch.optim.AdamW

    def gradients(self, seed: int, micro_batches: int) -> None:
        for p in self.copies.values():
            p.grad = torch.zeros_like(p)
        for i in range(micro_batches):
            gen = torch.Generator().manual_seed(100 * seed + i)
            total: Any = 0.0
            for n, p in self.model.named_parameters():
                if p.requires_grad:
                    g = (torch.randn(p.shape, generator=gen) * 10 ** (seed % 3)).to(DEVICE, p.dtype)
                    total = total + (p * g).sum().float()  # whose gradient is g
                    copied = self.copies[n]
                    assert copied.grad is not None
                    copied.grad += g
            total.backward()

    def step(self, seed: int, micro_batches: int, most: float | None = None) -> None:
        self.gradients(seed, micro_batches)
        norm = clip_gradients(self.optimizer, self.params().values(), most)
        other = clip_gradients(self.theirs, self.copies.values(), most)
        assert norm is not None
        torch.testing.assert_close(norm, other, rtol=2e-6, atol=0)
        assert most is None or norm > most
        for optimizer in (self.optimizer, self.theirs):
            optimizer.step()
            optimizer.zero_grad()
        assert not self.masters.gradients()

    def params(self) -> dict[str, nn.Parameter]:
        return dict(self.masters.named_parameters())

    def check(self) -> None:
        for (name, p), q in zip(self.params().items(), self.copies.values(), strict=True):
            assert p.dtype == torch.float32
            assert (p - q).abs().max() <= 1e-6 * q.abs().max(), name
            ours, model = self.model.get_parameter(name), self.masters.model_params.get(p)
            assert ours is (p if model is None else model)
            if not INTERPRETED:
                assert torch.equal(ours, p.to(ours.dtype)), name
            else:
                assert ((ours.float() - p).abs() <= 2**-7 * p.abs()).all(), name
        states = optimizer_state(self.optimizer), optimizer_state(self.theirs)
        assert len(states[0][0]) == 3 * len(self.copies)
        for name, value in states[0][0].items():
            like = states[1][0][name]
            assert (value.dtype, value.shape, value.device) == (like.dtype, like.shape, like.device)
            assert (value - like).abs().max() <= 2e-6 * like.abs().max(), name


class _Named:
    def __init__(self, params: dict[str, nn.Parameter]) -> None:
        self.params = params

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.params.items())


def _like(old: Optimizer, named: Any) -> Optimizer:
    """A new optimizer that goes on from the state of the old one."""
    made = make_optimizer(named, ADAMW)
    load_optimizer_state(made, *copy.deepcopy(optimizer_state(old)))
    return made


class TestOptimizer:
    pytestmark = with_kernel

    @pytest.fixture(autouse=True)
    def _everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if INTERPRETED:
            from litlm.ops import adamw as kernels

            monkeypatch.setattr(optim, "_suits_kernel", lambda masters, _: isinstance(masters, MasterWeights))
            monkeypatch.setattr(kernels, "BLOCK", 2**16)  # it takes its time for each program

    @pytest.mark.parametrize("adapters", [False, True])
    @pytest.mark.parametrize(("micro_batches", "most"), [(1, None), (1, 0.5), (3, 0.5)])
    def test_steps_are_those_of_torchs_on_fp32_gradients(
        self, adapters: bool, micro_batches: int, most: float | None
    ) -> None:
        trained = Trained(adapters)
        assert isinstance(trained.optimizer, MixedAdamW)
        for seed in range(2 if INTERPRETED else 20):
            for group in (*trained.optimizer.param_groups, *trained.theirs.param_groups):
                group["lr"] = 1e-3 / (1 + seed)
            trained.step(seed, micro_batches, most)
        trained.check()

    def test_a_state_of_either_goes_on_in_the_other(self) -> None:
        trained = Trained(adapters=False)
        for seed in range(3):
            trained.step(seed, 1)
        mine, theirs = trained.optimizer, trained.theirs
        assert optimizer_state(mine)[1] == optimizer_state(theirs)[1]
        trained.optimizer = _like(theirs, trained.masters)
        trained.theirs = _like(mine, _Named(trained.copies))
        assert isinstance(trained.optimizer, MixedAdamW)
        for seed in range(3, 6):
            trained.step(seed, 1)
        trained.check()

    @pytest.mark.parametrize("first", [True, False])
    def test_a_step_left_out_leaves_all_bits(self, first: bool) -> None:
        trained = Trained(adapters=False)
        if not first:
            trained.step(0, 1)
        tensors = [*trained.params().values(), *trained.model.parameters()]
        before = [t.detach().clone() for t in tensors]
        known = {name: value.clone() for name, value in optimizer_state(trained.optimizer)[0].items()}
        trained.gradients(1, 2)
        skip_step_if(trained.optimizer, torch.ones((), device=DEVICE))
        clip_gradients(trained.optimizer, trained.params().values(), 0.1)
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
        state = optimizer_state(trained.optimizer)[0]
        for name, value in state.items():
            assert torch.equal(value, known.get(name, torch.zeros_like(value))), name
        # ... and the steps after it are those of a run that never tried.
        skip_step_if(trained.optimizer, torch.zeros((), device=DEVICE))
        trained.step(2, 1, 0.5)
        trained.check()

    def test_a_parameter_without_a_gradient_stays(self) -> None:
        trained = Trained(adapters=False)
        trained.gradients(0, 1)
        name, left = next(iter(trained.params().items()))
        before = left.detach().clone()
        del trained.masters.bf16_grads[left]
        trained.optimizer.step()
        assert torch.equal(left, before)
        assert f"step/{name}" not in optimizer_state(trained.optimizer)[0]
        assert all(f"step/{n}" in optimizer_state(trained.optimizer)[0] for n in trained.params() if n != name)

    def test_inside_fabrics_wrapper(self) -> None:
        from lightning.fabric import Fabric

        trained = Trained(adapters=False)
        fabric = Fabric(accelerator=DEVICE, devices=1)
        _, wrapped = fabric.setup(trained.model, trained.optimizer)
        trained.gradients(0, 1)
        clip_gradients(wrapped, trained.params().values(), 0.5)
        skip_step_if(wrapped, torch.zeros((), device=DEVICE))
        clip_gradients(trained.theirs, trained.copies.values(), 0.5)
        wrapped.step()
        trained.theirs.step()
        wrapped.zero_grad(set_to_none=True)
        assert not trained.masters.bf16_grads
        trained.check()


# --- on the device only --------------------------------------------------------------------------------------------

if not INTERPRETED:

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    class TestOnDevice:
        @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
        @pytest.mark.parametrize("micro_batches", [1, 2])
        def test_the_host_never_waits(self, micro_batches: int) -> None:
            trained = Trained(adapters=False)
            for mode in ("default", "error"):  # the first time, kernels are compiled
                trained.gradients(0, micro_batches)
                bad = torch.zeros((), device=DEVICE)
                torch.cuda.set_sync_debug_mode(mode)
                try:
                    for optimizer, params in (
                        (trained.optimizer, trained.params()), (trained.theirs, trained.copies)
                    ):  # fmt: skip
                        clip_gradients(optimizer, params.values(), 0.5)
                        skip_step_if(optimizer, bad)
                        optimizer.step()
                        optimizer.zero_grad()
                finally:
                    torch.cuda.set_sync_debug_mode("default")

        def test_rates_compile_nothing_anew(self) -> None:
            from litlm.ops import adamw as kernels

            trained = Trained(adapters=False)
            trained.step(0, 1)
            kernel: Any = kernels._adamw
            made = [len(caches[0]) for caches in kernel.device_caches.values()]
            assert sum(made) > 0
            for seed, lr in enumerate((0, 1, 1.0, 16, 1e-5)):
                for group in (*trained.optimizer.param_groups, *trained.theirs.param_groups):
                    group["lr"] = lr
                trained.step(seed, 1)
            assert [len(caches[0]) for caches in kernel.device_caches.values()] == made

        def test_only_what_the_kernel_does_is_left_to_it(self) -> None:
            def made(**settings: Any) -> Optimizer:
                return make_optimizer(MasterWeights(tiny.load().model.to(DEVICE)), TrainSettings(**settings))

            for args in ({}, {"eps": 1e-6}, {"betas": (0.9, 0.95)}):
                optimizer = made(optimizer_args=args)
                assert isinstance(optimizer, MixedAdamW)
                assert can_skip_on_device(optimizer)
            for args in ({"amsgrad": True}, {"maximize": True}, {"foreach": True}, {"fused": True}):
                optimizer = made(optimizer_args=args)
                assert type(optimizer) is torch.optim.AdamW
                assert can_skip_on_device(optimizer) == ("foreach" not in args)
            for name in ("muon", "sgd", "adamw8bit"):
                assert not can_skip_on_device(made(optimizer=name))
            behind = made(optimizer_in_backward=True, grad_clip=None)
            assert isinstance(behind, optim.StepInBackward)
            assert not can_skip_on_device(behind)

        def test_torchs_own_leave_a_step_out(self) -> None:
            trained = Trained(adapters=False)
            trained.step(0, 1)
            before = [p.detach().clone() for p in trained.copies.values()]
            trained.gradients(1, 1)
            skip_step_if(trained.theirs, torch.ones((), device=DEVICE))
            trained.theirs.step()
            assert all(torch.equal(p, b) for p, b in zip(trained.copies.values(), before, strict=True))
            skip_step_if(trained.theirs, torch.zeros((), device=DEVICE))
            trained.theirs.step()
            assert not any(torch.equal(p, b) for p, b in zip(trained.copies.values(), before, strict=True))
            assert all(trained.theirs.state[p]["step"] == 2 for p in trained.copies.values())

        @pytest.mark.skipif(
            torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 60e9, reason="too small"
        )
        def test_more_elements_than_32_bits_count(self) -> None:
            from litlm.ops.adamw import adamw_

            n = 2**31 + 4099
            p = torch.ones(n, device=DEVICE)
            m, v = torch.zeros_like(p), torch.zeros_like(p)
            g, low = torch.ones(n, device=DEVICE).bfloat16(), torch.zeros(n, device=DEVICE).bfloat16()
            options: dict[str, Any] = dict(lr=0.5, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
            adamw_(
                [p], [g], [m], [v], [torch.zeros((), device=DEVICE)], [low], clip_coef=None, found_inf=None, **options
            )
            for part in (slice(0, 2**20), slice(2**31 - 2**20, 2**31), slice(2**31, n)):
                assert (p[part] - 0.5).abs().max() < 1e-6
                assert torch.equal(low[part], p[part].bfloat16())

    # --- without a device ------------------------------------------------------------------------------------------

    needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

    @needs_triton
    def test_all_of_it_in_tritons_interpreter() -> None:
        assert passed_in_interpreter(__file__) > 40

    @needs_triton
    def test_it_compiles_for_an_h100(tmp_path: Path) -> None:
        """Also where there is none; and everything is read and written sixteen bytes at a time."""
        code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from litlm.ops import adamw as kernels
names = kernels._adamw.arg_names
types = dict(param="*fp32", exp_avg="*fp32", exp_avg_sq="*fp32", rates="*fp32", i="i32", n="i32")
types |= dict.fromkeys(("decay", "one_minus_beta1", "one_minus_beta2", "eps"), "fp32")
for grad, size, more in (
    ("*bf16", "i32", dict(model_param="*bf16", clip_coef="*fp32", found_inf="*fp32")), ("*fp32", "i64", {})
):
    known = types | more | dict(grad=grad, n=size)
    constants = dict.fromkeys(("model_param", "clip_coef", "found_inf"), None) | dict(BLOCK=kernels.BLOCK)
    constants = {name: value for name, value in constants.items() if name not in more}
    aligned = [i for i, name in enumerate(names) if known.get(name, "")[:1] == "*" or name == "n"]
    source = ASTSource(
        kernels._adamw, {name: known.get(name, "constexpr") for name in names}, constants,
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = dict(num_warps=kernels.WARPS, enable_fp_fusion=True)
    print("=====", triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""
        env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        _, *made = done.stdout.split("=====")
        assert len(made) == 2
        for ptx, low in zip(made, (1, 0), strict=True):
            # Eight elements for each thread: two loads for fp32, one for bf16.
            assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == (2 * 3 + 1 if low else 2 * 4)
            assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == 2 * 3 + low
            assert not re.search(r"(ld|st)\.global\S*\.b16", ptx)
            assert len(re.findall(r"ld\.global", ptx)) == (2 * 3 + 1 + 2 + 2 if low else 2 * 4 + 2)
            assert not re.search(r"div\.full|sqrt\.approx", ptx)
