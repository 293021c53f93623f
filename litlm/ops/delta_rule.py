"""The gated delta rule (Yang et al. 2024, Gated Delta Networks): a recurrence over a state of fixed size.

A head's state S (D, E) maps keys to values. Each token first decays it, then corrects the value of its key toward its
own, then reads it with its query:

    S <- exp(g) S;    S <- S + k (beta (v - S' k))';    y = S' q

`step` does this for one token. `chunked` does it for CHUNK tokens at once in matrix products: within a chunk the
corrections v - S' k depend on one another through a triangular system (the WY representation), and only the state is
passed from chunk to chunk.

Shapes: B batch, T tokens, K key heads, H value heads (each key head serves H / K consecutive ones), D and E the sizes
of their keys and values, N chunks of C tokens.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from litlm.ops.norm import runs_fused

CHUNK = 64
_HAS_TRITON, _HAS_FLA = find_spec("triton") is not None, find_spec("fla") is not None
_FLA_LEAST, _FLA_MAX_KEY_DIM = (0, 6), 256  # the version that was tried, and what its kernels take
_NORM_EPS = 1e-6  # the published models' value, and that of fla's kernels


class DeltaRule(NamedTuple):
    """The rule's inputs for the tokens of a pass.

    q, k: (B, T, K, D), not yet normalized. v: (B, T, H, E). log_decay: (B, T, H), fp32, at most 0: g above.
    beta: (B, T, H), the share of the correction that is made.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor

    def masked(self, valid: Tensor) -> DeltaRule:
        """The same, but tokens outside `valid` (B, T) leave the state exactly as it is."""
        padding = ~valid[..., None]
        return self._replace(log_decay=self.log_decay.masked_fill(padding, 0), beta=self.beta.masked_fill(padding, 0))

    def run(self, state: Tensor | None = None, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, H, E) in v's dtype, and the state (B, H, D, E), fp32, after the last token.

        state: before the first token; None: zeros. documents: (B, T), the index of each token's document; the state
        restarts at zero with each, so they must all begin in this pass. None: one document a row.
        """
        if self.q.size(1) == 1 and documents is None:
            return step(self, state)
        if torch.is_grad_enabled() and any(x.requires_grad for x in self):
            # Otherwise `chunked` would keep some twenty times the size of its inputs for the backward pass.
            return checkpoint(chunked, self, state, documents, use_reentrant=False)  # type: ignore[return-value]
        if documents is None and _can_use_fla(self) and (found := _fla(self, state)) is not None:
            return found
        return chunked(self, state, documents)

    def advance(self, state: Tensor) -> Tensor:
        """Outputs (B, T, H, E); the state (B, H, D, E) is updated in place. Without gradients."""
        if self.q.size(1) == 1 and state.is_cuda and _HAS_TRITON:
            from litlm.ops.delta_rule_triton import step_

            return step_(*self, state, _NORM_EPS)
        y, after = self.run(state)
        state.copy_(after)
        return y


def gates(decay: Tensor, beta: Tensor, rate: Tensor, bias: Tensor, beta_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A token's log-decay -exp(rate) softplus(decay + bias) in fp32, and beta_scale sigmoid(beta) in beta's dtype.

    decay, beta: (B, T, H), projected from the token. rate (the checkpoints' A_log), bias (dt_bias): (H,).
    """
    if type(decay) is Tensor and runs_fused(decay):
        from litlm.ops.delta_rule_triton import gates as fused

        return fused(decay, beta, rate, bias, beta_scale)
    beta = beta.sigmoid() if beta_scale == 1 else beta.sigmoid() * beta_scale
    return -rate.float().exp() * F.softplus(decay.float() + bias.float()), beta


def step(inputs: DeltaRule, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule for one token in each row (T = 1). Takes and returns what `DeltaRule.run` does."""
    B, _, H, E = inputs.v.shape
    q, k, v, decay, beta = (x[:, 0].float() for x in inputs)
    q, k = _normalized(q) * q.size(-1) ** -0.5, _normalized(k)
    q, k = (x.repeat_interleave(H // x.size(1), 1) for x in (q, k))  # (B, H, D)
    S = v.new_zeros(B, H, k.size(-1), E) if state is None else state
    S = S * decay.exp()[..., None, None]
    correction = (v - (S * k[..., None]).sum(-2)) * beta[..., None]  # (B, H, E)
    S = S + k[..., None] * correction[..., None, :]
    return (S * q[..., None]).sum(-2)[:, None].to(inputs.v.dtype), S


def chunked(inputs: DeltaRule, state: Tensor | None = None, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule for many tokens, in fp32. Takes and returns what `DeltaRule.run` does."""
    B, T, H, E = inputs.v.shape
    K, D = inputs.q.shape[2:]
    C, G = CHUNK, H // K  # G value heads share a key head
    padding = -T % C  # added to the gates themselves: padding has log_decay and beta 0, and changes nothing

    def split(x: Tensor, groups: int) -> Tensor:
        """(B, T, heads, ...) -> (B, K, groups, N, C, ...)"""
        x = F.pad(x.float(), (0, 0) * (x.ndim - 2) + (0, padding))
        x = x.unflatten(2, (K, groups)).unflatten(1, (-1, C))  # (B, N, C, K, groups, ...)
        return x.permute(0, 3, 4, 1, 2, *range(5, x.ndim))

    q, k = split(_normalized(inputs.q.float()) * D**-0.5, 1), split(_normalized(inputs.k.float()), 1)
    v, beta = split(inputs.v, G), split(inputs.beta, G)[..., None]
    log_decay = split(inputs.log_decay, G)  # (B, K, G, N, C)
    visible = torch.ones(C, C, dtype=torch.bool, device=v.device).tril()
    continued = unfinished = None
    if documents is None:
        total = log_decay.cumsum(-1)  # the log of the decay since the start of the chunk, or of the document in it
    else:
        documents = F.pad(documents, (0, padding), mode="replicate").unflatten(1, (-1, C))[:, None, None]
        last = documents[..., -1:]  # (B, 1, 1, N, 1)
        before = F.pad(last, (0, 0, 1, -1), value=-1)  # the last document of the previous chunk
        visible = visible & (documents[..., None] == documents[..., None, :])
        # Tokens whose document began before the chunk, and those whose document goes on after it.
        continued, unfinished = documents == before, documents == last
        # Summed per document: differences of the whole chunk's sums would lose digits, in values and gradients.
        total = (log_decay[..., None, :] * visible).sum(-1)
    # Decay from one token to another. Differences of logs are never positive, so this can't overflow.
    decay = (total[..., None] - total[..., None, :]).masked_fill(~visible, -torch.inf).exp()  # (B, K, G, N, C, C)
    log_from_start, log_to_end = total, total[..., -1:] - total
    if continued is not None and unfinished is not None:  # no document sees another's state
        log_from_start = log_from_start.masked_fill(~continued, -torch.inf)
        log_to_end = log_to_end.masked_fill(~unfinished, -torch.inf)
    from_start, to_end = log_from_start.exp()[..., None], log_to_end.exp()[..., None]
    chunk_decay = from_start[..., -1:, :]
    # (I + A) corrections = beta (v - S' k decayed). S comes later, in `scan`: solve for the term without it and for its
    # factor.
    tf32 = inputs.v.dtype != torch.float32
    system = matmul(k, k.mT, tf32) * decay * beta
    values, keys = solve(system, torch.cat((v * beta, k * from_start * beta), -1), tf32).split((E, D), -1)
    first = v.new_zeros(B, K, G, D, E) if state is None else state.unflatten(1, (K, G))
    states, corrections, last = scan(values, keys, k * to_end, chunk_decay, first, tf32)
    scores = matmul(q, k.mT, tf32) * decay
    y = matmul(q * from_start, states, tf32) + matmul(scores, corrections, tf32)  # (B, K, G, N, C, E)
    y = y.flatten(3, 4)[..., :T, :].permute(0, 3, 1, 2, 4).flatten(2, 3)
    return y.to(inputs.v.dtype), last.flatten(1, 2)


def _can_use_fla(inputs: DeltaRule) -> bool:
    """Whether flash-linear-attention's kernels are installed, take the inputs, and are faster: in half precision."""
    is_half, fits = inputs.v.dtype != torch.float32, inputs.k.size(-1) <= _FLA_MAX_KEY_DIM
    return _HAS_FLA and inputs.v.is_cuda and is_half and fits and not torch.compiler.is_compiling()


def _fla(inputs: DeltaRule, state: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """What `DeltaRule.run` returns, or None where the package fails, which is then said and not tried again."""
    global _HAS_FLA
    options: Any = dict(initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    try:
        import fla  # pyright: ignore[reportMissingImports]

        if tuple(map(int, re.findall(r"\d+", fla.__version__)[:2])) < _FLA_LEAST:
            raise ImportError(f"this is {fla.__version__}")
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

        return chunk_gated_delta_rule(*(x.contiguous() for x in inputs), **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # of any kind: its modules, Triton's compiler or a check of the card
        _HAS_FLA, least = False, ".".join(map(str, _FLA_LEAST))
        print(
            f"litlm: flash-linear-attention can't be used ({type(e).__name__}: {' '.join(str(e).split())[:300]}). "
            f"litlm's own kernels read prompts instead, more slowly; pip install -U 'flash-linear-attention>={least}' "
            "may help",
            file=sys.stderr,
        )
        return None


def matmul(a: Tensor, b: Tensor, tf32: bool) -> Tensor:
    """a @ b. tf32: on CUDA in TF32, whose 10 bits of mantissa are enough for inputs in half precision."""
    if a.is_cuda and _HAS_TRITON:
        from litlm.ops import delta_rule_triton

        return delta_rule_triton.matmul(a, b, tf32)
    return a @ b


def solve(system: Tensor, right: Tensor, tf32: bool) -> Tensor:
    """The solution x of (I + A) x = right, with A the part of `system` (..., C, C) below its diagonal."""
    if system.is_cuda and _HAS_TRITON:
        from litlm.ops import delta_rule_triton

        return delta_rule_triton.matmul(delta_rule_triton.inverse(system), right, tf32)
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)


def scan(
    values: Tensor, keys: Tensor, keys_at_end: Tensor, chunk_decay: Tensor, state: Tensor, tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence over chunks: the states before each chunk (..., N, D, E), the corrections (..., N, C, E), and the
    state after the last chunk (..., D, E).

    values: (..., N, C, E), the corrections if a chunk's initial state were zero. keys: (..., N, C, D), times that state
    what to subtract from them. keys_at_end: (..., N, C, D), the keys under which corrections are stored, decayed to the
    chunk's end. chunk_decay: (..., N, 1, 1), the decay over a whole chunk. state: (..., D, E), before the first chunk.
    """
    if values.is_cuda and _HAS_TRITON:
        from litlm.ops import delta_rule_triton

        return delta_rule_triton.scan(values, keys, keys_at_end, chunk_decay, state, tf32=tf32)
    states, corrections = [], []
    for chunk in zip(*(x.unbind(-3) for x in (values, keys, keys_at_end, chunk_decay)), strict=True):
        value, key, key_at_end, decay = chunk
        states.append(state)
        corrections.append(value - key @ state)
        state = state * decay + key_at_end.mT @ corrections[-1]
    return torch.stack(states, -3), torch.stack(corrections, -3), state


def _normalized(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)
