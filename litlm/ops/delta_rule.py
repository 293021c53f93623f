"""The gated delta rule (Yang et al. 2024, Gated Delta Networks): a recurrence over a state of fixed size, no modules.

A head's state S (D, E) stores values under keys. Each token first lets it fade, then moves what is stored under its key
toward its value, then reads it with its query:

    S <- exp(g) S;    S <- S + k (beta (v - S' k))';    y = S' q

One token at a time this is `step`. `chunked` does the same for CHUNK tokens at once in matrix products: within a chunk
the corrections v - S' k depend on one another through a triangular system (the WY form), and only the state goes from
one chunk to the next.

Shapes: B batch, T tokens, K key heads, H value heads (each key head serves H / K consecutive ones), D and E the sizes
of their keys and values, N chunks of C tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 64
_NORM_EPS = 1e-6  # of the published models, as fla's kernels have it


class DeltaRule(NamedTuple):
    """The rule's inputs for the tokens of a pass.

    q, k: (B, T, K, D), not yet normalized. v: (B, T, H, E). log_decay: (B, T, H), fp32, at most 0: g above.
    beta: (B, T, H), how far the stored value moves toward v.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor

    def held(self, valid: Tensor) -> DeltaRule:
        """The same, but tokens outside `valid` (B, T) leave the state exactly as it is."""
        hold = ~valid[..., None]
        return self._replace(log_decay=self.log_decay.masked_fill(hold, 0), beta=self.beta.masked_fill(hold, 0))

    def run(self, state: Tensor | None = None, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, H, E) in v's dtype, and the state (B, H, D, E), fp32, after the last token.

        state: before the first token; None: zeros. documents: (B, T), which one a token is in, each in a row and begun
        in this pass; the state starts anew with each. None: one a row.
        """
        if self.q.size(1) == 1 and documents is None:
            return step(self, state)
        if torch.is_grad_enabled() and any(x.requires_grad for x in self):
            # What `chunked` would keep for the backward pass is some twenty times as large as its inputs.
            return checkpoint(chunked, self, state, documents, use_reentrant=False)  # type: ignore[return-value]
        return chunked(self, state, documents)


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
    padding = -T % C  # after the gates, so these tokens change nothing: their decay and beta are 0

    def split(x: Tensor, groups: int) -> Tensor:
        """(B, T, heads, ...) -> (B, K, groups, N, C, ...)"""
        x = F.pad(x.float(), (0, 0) * (x.ndim - 2) + (0, padding))
        x = x.unflatten(2, (K, groups)).unflatten(1, (-1, C))  # (B, N, C, K, groups, ...)
        return x.permute(0, 3, 4, 1, 2, *range(5, x.ndim))

    q, k = split(_normalized(inputs.q.float()) * D**-0.5, 1), split(_normalized(inputs.k.float()), 1)
    v, beta = split(inputs.v, G), split(inputs.beta, G)[..., None]
    total = split(inputs.log_decay, G).cumsum(-1)  # (B, K, G, N, C), the decay since the chunk began
    visible = torch.ones(C, C, dtype=torch.bool, device=v.device).tril()
    fresh = kept = carried = None
    if documents is not None:
        documents = F.pad(documents, (0, padding), mode="replicate").unflatten(1, (-1, C))[:, None, None]
        last = documents[..., -1:]  # (B, 1, 1, N, 1)
        before = F.pad(last, (0, 0, 1, -1), value=-1)  # of the chunk before
        visible = visible & (documents[..., None] == documents[..., None, :])
        fresh, kept, carried = documents != before, documents != last, before == last
    # Decay from one token to another. Only differences are exponentiated: they are never positive.
    decay = (total[..., None] - total[..., None, :]).masked_fill(~visible, -torch.inf).exp()  # (B, K, G, N, C, C)
    since, until = total.exp()[..., None], (total[..., -1:] - total).exp()[..., None]  # the chunk's begin, its end
    through = since[..., -1:, :]
    if fresh is not None and kept is not None and carried is not None:  # a document sees no state but its own
        since, until = since.masked_fill(fresh[..., None], 0), until.masked_fill(kept[..., None], 0)
        through = through * carried[..., None]
    # (I + A) corrections = beta (v - S' k decayed), solved for the part without S and the part that S multiplies
    system = (k @ k.mT) * decay * beta
    right = torch.cat((v * beta, k * since * beta), -1)
    values, keys = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split((E, D), -1)
    scores, queries, keys_at_end = (q @ k.mT) * decay, q * since, (k * until).mT

    S = v.new_zeros(B, K, G, D, E) if state is None else state.unflatten(1, (K, G))
    outputs = []
    for n in range(v.size(3)):
        corrections = values[:, :, :, n] - keys[:, :, :, n] @ S
        outputs.append(queries[:, :, :, n] @ S + scores[:, :, :, n] @ corrections)
        S = S * through[:, :, :, n] + keys_at_end[:, :, :, n] @ corrections
    y = torch.cat(outputs, -2)[..., :T, :]  # (B, K, G, T, E)
    return y.permute(0, 3, 1, 2, 4).flatten(2, 3).to(inputs.v.dtype), S.flatten(1, 2)


def _normalized(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)
