"""Triton kernels for what batched products can't do in the gated delta rule (Yang et al. 2024): the recurrence over
chunks, the inverse of many small triangular matrices, and the whole rule for one token.

Shapes: M = all rows' heads, N chunks of C tokens, D and E the sizes of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


# A custom operator: the precision is a global switch, which compiled code would ignore.
@torch.library.custom_op("litlm::matmul_tf32", mutates_args=())
def _matmul_tf32(a: Tensor, b: Tensor) -> Tensor:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return a @ b
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@_matmul_tf32.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.size(-1))


def _save_matmul(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_matmul(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors
    return _matmul_tf32(grad, b.mT), _matmul_tf32(a.mT, grad)


_matmul_tf32.register_autograd(_differentiate_matmul, setup_context=_save_matmul)


def matmul(a: Tensor, b: Tensor, tf32: bool) -> Tensor:
    """a @ b of fp32 tensors with the same leading dimensions. tf32: on the tensor cores, with 10 bits of mantissa."""
    return _matmul_tf32(a, b) if tf32 else a @ b


@triton.jit
def _scan_forward(values, keys, keys_at_end, chunk_decay, first, states, corrections, last, N, D, E,
                  C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    m, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BE + tl.arange(0, BE)
    c, d = tl.arange(0, C), tl.arange(0, BD)
    in_d, in_e = d < D, e < E
    place = d[:, None] * E + e[None, :]
    inside = in_d[:, None] & in_e[None, :]
    state = tl.load(first + m * D * E + place, inside, 0.0)
    for n in range(N):
        chunk = m * N + n
        tl.store(states + chunk * D * E + place, state, inside)
        key_at = (chunk * C + c)[:, None] * D + d[None, :]
        value_at = (chunk * C + c)[:, None] * E + e[None, :]
        key = tl.load(keys + key_at, in_d[None, :], 0.0)
        correction = tl.load(values + value_at, in_e[None, :], 0.0)
        correction -= tl.dot(key, state, input_precision=PRECISION)
        tl.store(corrections + value_at, correction, in_e[None, :])
        key = tl.load(keys_at_end + key_at, in_d[None, :], 0.0)
        state = state * tl.load(chunk_decay + chunk) + tl.dot(tl.trans(key), correction, input_precision=PRECISION)
    tl.store(last + m * D * E + place, state, inside)


@triton.jit
def _scan_backward(d_states, d_corrections, d_last, keys, keys_at_end, chunk_decay, d_after, d_values, d_first, N, D, E,
                   C: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    m, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BE + tl.arange(0, BE)
    c, d = tl.arange(0, C), tl.arange(0, BD)
    in_d, in_e = d < D, e < E
    place = d[:, None] * E + e[None, :]
    inside = in_d[:, None] & in_e[None, :]
    grad = tl.load(d_last + m * D * E + place, inside, 0.0)  # of the state after the chunk
    for i in range(N):
        chunk = m * N + N - 1 - i
        tl.store(d_after + chunk * D * E + place, grad, inside)
        key_at = (chunk * C + c)[:, None] * D + d[None, :]
        value_at = (chunk * C + c)[:, None] * E + e[None, :]
        key = tl.load(keys_at_end + key_at, in_d[None, :], 0.0)
        d_value = tl.load(d_corrections + value_at, in_e[None, :], 0.0)
        d_value += tl.dot(key, grad, input_precision=PRECISION)
        tl.store(d_values + value_at, d_value, in_e[None, :])
        key = tl.load(keys + key_at, in_d[None, :], 0.0)
        grad = grad * tl.load(chunk_decay + chunk) + tl.load(d_states + chunk * D * E + place, inside, 0.0)
        grad -= tl.dot(tl.trans(key), d_value, input_precision=PRECISION)
    tl.store(d_first + m * D * E + place, grad, inside)


def _launch(kernel: Any, tensors: list[Tensor], M: int, N: int, C: int, D: int, E: int, tf32: bool) -> None:
    BD, BE = max(16, triton.next_power_of_2(D)), min(64, max(16, triton.next_power_of_2(E)))
    precision = "tf32" if tf32 else "tf32x3"
    options: Any = dict(C=C, BD=BD, BE=BE, PRECISION=precision, num_warps=4, num_stages=2)
    kernel[(M, triton.cdiv(E, BE))](*tensors, N, D, E, **options)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, keys: Tensor, keys_at_end: Tensor, chunk_decay: Tensor, first: Tensor, tf32: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        M, N, C, E = values.shape
        D = keys.size(-1)
        states, corrections, last = values.new_empty(M, N, D, E), torch.empty_like(values), torch.empty_like(first)
        tensors = [values, keys, keys_at_end, chunk_decay, first, states, corrections, last]
        _launch(_scan_forward, tensors, M, N, C, D, E, tf32)
        ctx.save_for_backward(keys, keys_at_end, chunk_decay, states, corrections)
        ctx.tf32 = tf32
        return states, corrections, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor, d_corrections: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        keys, keys_at_end, chunk_decay, states, corrections = ctx.saved_tensors
        M, N, C, E = corrections.shape
        D = keys.size(-1)
        d_after, d_values, d_first = torch.empty_like(states), torch.empty_like(corrections), torch.empty_like(d_last)
        grads = [x.contiguous() for x in (d_states, d_corrections, d_last)]
        tensors = [*grads, keys, keys_at_end, chunk_decay, d_after, d_values, d_first]
        _launch(_scan_backward, tensors, M, N, C, D, E, ctx.tf32)
        d_keys, d_keys_at_end = -matmul(d_values, states.mT, ctx.tf32), matmul(corrections, d_after.mT, ctx.tf32)
        d_chunk_decay = torch.linalg.vecdot(states.flatten(-2), d_after.flatten(-2))[..., None, None]
        return d_values, d_keys, d_keys_at_end, d_chunk_decay, d_first, None


def scan(
    values: Tensor, keys: Tensor, keys_at_end: Tensor, chunk_decay: Tensor, state: Tensor, *, tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`delta_rule.scan` of fp32 tensors on CUDA. tf32: products with 10 bits of mantissa; otherwise nearly fp32's."""
    heads = state.shape[:-2]
    flat = [
        x.expand(*heads, *x.shape[-3:]).flatten(0, -4).contiguous() for x in (values, keys, keys_at_end, chunk_decay)
    ]
    found = _Scan.apply(*flat, state.flatten(0, -3).contiguous(), tf32)
    states, corrections, last = (x.unflatten(0, heads) for x in found)  # type: ignore[union-attr]
    return states, corrections, last


@triton.jit
def _step(q, k, v, log_decay, beta, state, out, groups, scale, D, E,
          BD: tl.constexpr, BE: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    m, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BE + tl.arange(0, BE)
    d = tl.arange(0, BD)
    in_d, in_e = d < D, e < E
    inside = in_d[:, None] & in_e[None, :]
    key = tl.load(k + m // groups * D + d, d < D, 0.0).to(tl.float32)
    query = tl.load(q + m // groups * D + d, d < D, 0.0).to(tl.float32)
    key *= tl.rsqrt(tl.sum(key * key, 0) + EPS)
    query *= tl.rsqrt(tl.sum(query * query, 0) + EPS) * scale
    value = tl.load(v + m * E + e, e < E, 0.0).to(tl.float32)
    place = state + m * D * E + d[:, None] * E + e[None, :]
    S = tl.load(place, inside, 0.0) * tl.exp(tl.load(log_decay + m))
    correction = (value - tl.sum(S * key[:, None], 0)) * tl.load(beta + m).to(tl.float32)
    S += key[:, None] * correction[None, :]
    tl.store(place, S, inside)
    tl.store(out + m * E + e, tl.sum(S * query[:, None], 0), e < E)


def step_(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, eps: float) -> Tensor:
    """`delta_rule.step` in one kernel, which updates `state` (B, H, D, E) in place. eps: of the norm of q and k."""
    B, _, H, E = v.shape
    D, out = q.size(-1), torch.empty_like(v)
    BD, BE = triton.next_power_of_2(D), min(32, triton.next_power_of_2(E))
    tensors = [x.contiguous() for x in (q, k, v, log_decay, beta)]
    grid = (B * H, triton.cdiv(E, BE))
    _step[grid](*tensors, state, out, H // q.size(2), D**-0.5, D, E, BD=BD, BE=BE, EPS=eps, num_warps=4)  # type: ignore[index]
    return out


@triton.jit
def _gates(decay, beta, rate, bias, log_decay, out, n, H, beta_scale, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, h = i < n, i % H
    x = tl.load(decay + i, inside, 0.0).to(tl.float32) + tl.load(bias + h, inside, 0.0).to(tl.float32)
    soft = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))  # as F.softplus
    tl.store(log_decay + i, -tl.exp(tl.load(rate + h, inside, 0.0).to(tl.float32)) * soft, inside)
    b = tl.sigmoid(tl.load(beta + i, inside, 0.0).to(tl.float32)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + i, (b * beta_scale).to(out.dtype.element_ty), inside)


def gates(decay: Tensor, beta: Tensor, rate: Tensor, bias: Tensor, beta_scale: float) -> tuple[Tensor, Tensor]:
    """`delta_rule.gates` in one kernel: decay, beta (B, T, H), rate, bias (H,) -> (B, T, H), (B, T, H)."""
    decay, beta = decay.contiguous(), beta.contiguous()
    log_decay, out = torch.empty_like(decay, dtype=torch.float32), torch.empty_like(beta)
    n, H = decay.numel(), decay.size(-1)
    _gates[(triton.cdiv(n, 1024),)](decay, beta, rate, bias, log_decay, out, n, H, beta_scale, BLOCK=1024)  # type: ignore[index]
    return log_decay, out


@triton.jit
def _inverse(system, out, C: tl.constexpr):
    m, i = tl.program_id(0).to(tl.int64), tl.arange(0, C)
    place = m * C * C + i[:, None] * C + i[None, :]
    lower = tl.load(system + place)
    lower = tl.where(i[:, None] > i[None, :], lower, 0.0)
    found = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for row in range(1, C):
        # Row r of the inverse is that of I less the rows above it, weighted by row r of A.
        weights = tl.sum(tl.where(i[:, None] == row, lower, 0.0), 0)
        found -= tl.where(i[:, None] == row, tl.sum(weights[:, None] * found, 0)[None, :], 0.0)  # pyright: ignore[reportArgumentType]
    tl.store(out + place, found)


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, system: Tensor) -> Tensor:
        out = torch.empty_like(system, memory_format=torch.contiguous_format)
        C = system.size(-1)
        _inverse[(system.numel() // C**2,)](system.contiguous(), out, C=C, num_warps=4)  # type: ignore[index]
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (out,) = ctx.saved_tensors
        return -(out.mT @ grad @ out.mT).tril(-1)


def inverse(system: Tensor) -> Tensor:
    """(I + A)^-1 for the part A of `system` (..., C, C), fp32 on CUDA, below its diagonal."""
    return _Inverse.apply(system)  # type: ignore[return-value]
