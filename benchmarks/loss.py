"""The output projection and its cross-entropy, forward and backward, on a CUDA device: ways to do it and their cost.

    python benchmarks/loss.py [SHAPE ...] [--only REGEX] [--repeats 10] [--smoke]

Prints a JSON line as soon as a figure is there: the median time of forward and backward in ms, the peak of memory above
the inputs in GB, and how far the loss and the gradients are from an fp32 computation. Each shape begins with its limit:
its products at 600 TFLOP/s, and the logits read and written once by what is between the products at 3 TB/s. Then come
the kernel by itself in several block sizes, and the three products by themselves in several chunk sizes.
--smoke takes tiny sizes, on a CPU too: only to see that this file runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litlm.data.base import IGNORE
from litlm.ops import cross_entropy as module
from litlm.ops.cross_entropy import cross_entropy_sum

MB = 2**20
CHUNKS = {"256MB": 256 * MB, "512MB": 512 * MB, "1GB": 1024 * MB, "whole": 2**50}
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@dataclass
class Shape:
    rows: int
    vocab: int
    width: int
    frozen: bool = False  # the head takes no gradient, as with LoRA


SHAPES = {
    "gpt2-124m": Shape(32 * 1024, 50304, 768),
    "llama-1b": Shape(16384, 128256, 2048),
    "llama-8b-lora": Shape(4096, 128256, 4096, frozen=True),
}
SMOKE = {"smoke": Shape(300, 1001, 64), "smoke-frozen": Shape(100, 513, 32, frozen=True)}


def say(**row: Any) -> None:
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def timed(function: Callable[[], Any], repeats: int) -> float:
    """The median of `repeats` runs in ms, after three more."""
    times = []
    for i in range(repeats + 3):
        if CUDA:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            took = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            function()
            took = 1000 * (time.perf_counter() - start)
        if i >= 3:
            times.append(took)
    return statistics.median(times)


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


# --- the ways ---------------------------------------------------------------------------------------------------------

Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden (N, C), weight (V, C), targets (N,) -> summed loss


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORE, reduction="sum")


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy_sum(hidden[None], weight, targets[None])


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, *, n_bytes: int) -> Tensor:
    with patched(module, _kernels=lambda *_: None, _CHUNK_BYTES=n_bytes):
        return ours(hidden, weight, targets)


def with_rows(hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: Any, n_bytes: int) -> Tensor:
    """litlm's chunks, with `rows` in place of its kernel."""
    with patched(module, _kernels=lambda *_: rows, _kernel_bytes=lambda _: n_bytes):
        return ours(hidden, weight, targets)


def triton(hidden: Tensor, weight: Tensor, targets: Tensor, *, n_bytes: int) -> Tensor:
    with patched(module, _kernel_bytes=lambda _: n_bytes):
        return ours(hidden, weight, targets)


def _rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide, has_target = logits.float(), targets != IGNORE
    log_norm = wide.logsumexp(-1, keepdim=True)
    t = targets.clamp(min=0)[:, None]
    losses = torch.where(has_target, (log_norm - wide.gather(1, t))[:, 0], 0.0)
    hot = torch.arange(logits.size(1), device=logits.device) == t
    grad = (wide - log_norm).exp() - hot.float()
    return losses, torch.where(has_target[:, None], grad, 0.0).to(logits.dtype)


def compiled_rows() -> Any:
    """What the kernel does, left to torch.compile."""
    made = torch.compile(_rows, dynamic=False)

    def softmax_gradient_(logits: Tensor, targets: Tensor, losses: Tensor, **_: Any) -> None:
        some, grad = made(logits, targets)
        losses.copy_(some)
        logits.copy_(grad)

    def in_place(logits: Tensor, targets: Tensor, losses: Tensor) -> None:
        some, grad = _rows(logits, targets)
        losses.copy_(some)
        logits.copy_(grad)

    fused = torch.compile(in_place, dynamic=False)
    separate = SimpleNamespace(ALIGN=64, softmax_gradient_=softmax_gradient_)
    return separate, SimpleNamespace(ALIGN=64, softmax_gradient_=lambda a, b, c, **_: fused(a, b, c))


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {"whole, compiled": torch.compile(whole, dynamic=False)}
    for name in ("64MB", "512MB"):
        found[f"plain {name}"] = partial(plain, n_bytes=int(name[:-2]) * MB)
    separate, fused = compiled_rows()
    found["compiled chunks 1GB"] = partial(with_rows, rows=separate, n_bytes=CHUNKS["1GB"])
    found["compiled chunks in place 1GB"] = partial(with_rows, rows=fused, n_bytes=CHUNKS["1GB"])
    if CUDA and module.triton_kernels() is not None:
        for name, n_bytes in CHUNKS.items():
            found[f"triton {name}"] = partial(triton, n_bytes=n_bytes)
    if hasattr(F, "linear_cross_entropy"):
        for name, options in (("whole", None), ("chunked", torch.nn.LinearCrossEntropyOptions())):
            found[f"F.linear_cross_entropy {name}"] = partial(
                F.linear_cross_entropy, reduction="sum", ignore_index=IGNORE, options=options
            )
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def inputs(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Like a model in training: the loss is neither that of noise nor 0, and a few positions have no target."""
    gen = torch.Generator(DEVICE).manual_seed(0)
    random = partial(torch.randn, generator=gen, device=DEVICE)
    hidden = random(shape.rows, shape.width).bfloat16().requires_grad_()
    weight = (random(shape.vocab, shape.width) * 2 * shape.width**-0.5).bfloat16().requires_grad_(not shape.frozen)
    targets = torch.randint(shape.vocab, (shape.rows,), generator=gen, device=DEVICE)
    targets[::17] = IGNORE
    return hidden, weight, targets


@torch.no_grad()
def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in fp32, some rows at a time."""
    loss = torch.zeros((), device=DEVICE, dtype=torch.float64)
    wide, grads = weight.float(), [torch.empty_like(hidden, dtype=torch.float32)]
    if weight.requires_grad:
        grads.append(torch.zeros_like(wide))
    for start in range(0, hidden.size(0), 1024):
        part = slice(start, start + 1024)
        h, t = hidden[part].float(), targets[part]
        logits = h @ wide.t()
        loss += F.cross_entropy(logits, t, ignore_index=IGNORE, reduction="sum").double()
        grad = logits.softmax(-1)
        grad[torch.arange(t.numel(), device=DEVICE), t.clamp(min=0)] -= 1
        grad[t == IGNORE] = 0
        grads[0][part] = grad @ wide
        if len(grads) == 2:
            grads[1] += grad.t() @ h
    return loss, grads


def measure(way: Way, tensors: tuple[Tensor, Tensor, Tensor], expected: Any, repeats: int) -> dict[str, float]:
    hidden, weight, targets = tensors

    def step() -> Tensor:
        hidden.grad = weight.grad = None
        value = way(hidden, weight, targets)
        value.backward()
        return value.detach()

    value = step()
    found: dict[str, float] = dict(loss_error=abs(value.item() / expected[0].item() - 1))
    for name, t, exactly in zip(("dx_error", "dw_error"), (hidden, weight), expected[1], strict=False):
        assert t.grad is not None
        found[name] = ((t.grad - exactly).norm() / exactly.norm()).item()
    hidden.grad = weight.grad = None
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        step()
        found["peak_gb"] = (torch.cuda.max_memory_allocated() - start) / 1e9
    return dict(ms=timed(step, repeats), **found)


def kernel_alone(shape: Shape, repeats: int) -> Iterator[dict[str, Any]]:
    """The kernel on 8192 rows of logits, which it overwrites: what it reads is then no logits, which costs the same."""
    from litlm.ops import cross_entropy_triton as kernels

    n = min(8192, shape.rows)
    logits = torch.randn(n, shape.vocab, device=DEVICE).bfloat16()
    targets = torch.randint(shape.vocab, (n,), device=DEVICE)
    losses = torch.empty(n, device=DEVICE)
    n_bytes = 4 * logits.numel()
    run = partial(kernels.softmax_gradient_, logits, targets, losses, scale=1.0, softcap=None)
    for block, warps in (
        (2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16), (8192, 32), (16384, 16), (16384, 32), (32768, 32)
    ):  # fmt: skip
        with patched(kernels, BLOCK=block, WARPS=warps):
            ms = timed(partial(run, gradient=True), repeats)
            forward = timed(partial(run, gradient=False), repeats)
        yield dict(
            kernel=f"{block} x {warps}", ms=ms, tb_s=n_bytes / ms / 1e9,
            forward_only_ms=forward, all_rows_ms=ms * shape.rows / n,
        )  # fmt: skip
    fused = compiled_rows()[1]
    ms = timed(lambda: fused.softmax_gradient_(logits, targets, losses), repeats)
    yield dict(kernel="torch.compile", ms=ms, tb_s=n_bytes / ms / 1e9, all_rows_ms=ms * shape.rows / n)


@torch.no_grad()
def products_alone(shape: Shape, repeats: int) -> Iterator[dict[str, Any]]:
    hidden, weight, _ = inputs(shape)
    total = torch.zeros(shape.vocab, shape.width, device=DEVICE)
    for name, n_bytes in CHUNKS.items():
        rows = min(shape.rows, max(1, n_bytes // (2 * shape.vocab)) // 128 * 128)
        logits, h = torch.zeros(rows, shape.vocab, device=DEVICE).bfloat16(), hidden[:rows]
        torch.mm(h, weight.t(), out=logits)
        out = torch.empty_like(h)
        flops = 2 * rows * shape.vocab * shape.width
        times = dict(
            logits=timed(partial(torch.mm, h, weight.t(), out=logits), repeats),
            dx=timed(partial(torch.mm, logits, weight, out=out), repeats),
            dw=timed(partial(module._add_product, total, logits, h), repeats),
            dw_bf16=timed(partial(torch.mm, logits.t(), h), repeats),
        )
        yield dict(products=name, rows=rows) | {f"{k}_tflops": flops / ms / 1e9 for k, ms in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--only", default="", help="measure only the ways whose names match")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if not CUDA and not args.smoke:
        raise SystemExit("there is no CUDA device; --smoke runs tiny sizes on the CPU")
    shapes = SMOKE if args.smoke else SHAPES
    if unknown := [name for name in args.shapes if name not in shapes]:
        raise SystemExit(f"unknown shapes {', '.join(unknown)}; there are {', '.join(shapes)}")
    say(device=torch.cuda.get_device_name() if CUDA else "cpu", torch=torch.__version__)
    torch._dynamo.config.recompile_limit = 64
    for name in args.shapes or shapes:
        shape = shapes[name]
        products = 2.0 * (2 if shape.frozen else 3) * shape.rows * shape.vocab * shape.width / 600e12 * 1e3
        between = 4.0 * shape.rows * shape.vocab / 3e12 * 1e3
        say(shape=name, **vars(shape), products_ms=products, between_ms=between, limit_ms=products + between)
        tensors = inputs(shape)
        expected = exact(*tensors)
        for label, way in ways().items():
            if not re.search(args.only, label):
                continue
            try:
                say(shape=name, way=label, **measure(way, tensors, expected, args.repeats))
            except Exception as e:  # one that fails, or takes too much memory, must not take the others with it
                say(shape=name, way=label, error=f"{type(e).__name__}: {e}"[:300])
            tensors[0].grad = tensors[1].grad = None
            torch._dynamo.reset()
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
        del tensors, expected
        if CUDA and not args.only:
            for alone in (kernel_alone, products_alone):
                try:
                    for row in alone(shape, args.repeats):
                        say(shape=name, **row)
                except Exception as e:
                    say(shape=name, alone=alone.__name__, error=f"{type(e).__name__}: {e}"[:300])


if __name__ == "__main__":
    main()
