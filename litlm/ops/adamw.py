"""AdamW in mixed precision as one Triton kernel: it is memory-bound, and reads and writes everything only once."""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 1024, 4  # elements of a program, and its warps: eight neighbors per thread


# `param`, not `params`: the launcher that Triton 3.6 generates has a variable of that name.
@triton.jit(do_not_specialize=["i"])
def _adamw(
    param, grad, exp_avg, exp_avg_sq, model_param, rates, i, n, clip_coef, found_inf, decay,
    one_minus_beta1, one_minus_beta2, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    if found_inf is not None and tl.load(found_inf) != 0:
        return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if clip_coef is not None:
        g *= tl.load(clip_coef)
    p = tl.load(param + at, mask=inside, other=0.0)
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    # Written with 1 - beta: in fp32 beta itself is off by enough to show after a thousand steps.
    m = m - one_minus_beta1 * m + one_minus_beta1 * g
    v = v - one_minus_beta2 * v + one_minus_beta2 * g * g
    p -= decay * p
    p -= tl.load(rates + 2 * i) * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), tl.load(rates + 2 * i + 1)) + eps)
    tl.store(param + at, p, mask=inside)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    if model_param is not None:
        tl.store(model_param + at, p.to(model_param.dtype.element_ty), mask=inside)


# The signature follows torch's functional `adamw`.
def adamw_(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor], model_params: list[Tensor | None], *, lr: float, betas: tuple[float, float], eps: float,
    weight_decay: float, clip_coef: Tensor | None, found_inf: Tensor | None,
) -> None:  # fmt: skip
    """One AdamW step (Loshchilov & Hutter 2019), like torch's fused one, on contiguous fp32 tensors of one device.

    grads: in any float dtype, multiplied by the scalar `clip_coef`. state_steps: 0-dim counts of each parameter's
    updates, incremented here. model_params: new parameters are also written to these, rounded to their dtype. If
    found_inf is 1, nothing changes. Never synchronizes with the device.
    """
    add: Any = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
    # A list, because `_foreach_add_` would read a single tensor as a number, which synchronizes.
    add(state_steps, [torch.ones_like(state_steps[0]) if found_inf is None else 1 - found_inf] * len(state_steps))
    t = torch.stack(state_steps).double()
    corrections = [-torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t) for beta in betas]  # 1 - beta^t
    rates = torch.stack([lr / corrections[0], corrections[1].sqrt()], 1).float()
    one_minus_beta1, one_minus_beta2, decay = float(1 - betas[0]), float(1 - betas[1]), float(lr * weight_decay)
    launch: Any = _adamw
    with torch.cuda.device_of(rates):
        for i, (p, g, m, v, copy) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, model_params, strict=True)):
            assert all(x is None or (x.is_contiguous() and x.shape == p.shape) for x in (p, g, m, v, copy))
            assert p.dtype == m.dtype == v.dtype == torch.float32
            n = p.numel()
            if n:
                launch[(triton.cdiv(n, BLOCK),)](
                    p, g, m, v, copy, rates, i, n, clip_coef, found_inf, decay, one_minus_beta1, one_minus_beta2,
                    float(eps), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True,
                )  # fmt: skip
