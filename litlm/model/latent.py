"""Multi-head latent attention, MLA (DeepSeek-V2, 2024): keys and values come from one small latent per token.

Shapes: B batch, T query length, C embedding, H heads, N and R the sizes of a head's parts without and with rope
(qk_nope_head_dim and qk_rope_head_dim), E size of a value, rank = kv_rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from litlm.config import IndexConfig, LatentConfig, LayerConfig, index_limit
from litlm.context import Context, KVCache, LayerContext, Packed
from litlm.model.attention import make_spec
from litlm.model.norm import make_norm
from litlm.model.rope import RopeTables, apply_rope
from litlm.ops.linear import Linear


class Indexer(nn.Module):
    """The weights of a layer's indexer (`IndexConfig`): loaded and saved with the model, but neither used nor trained.

    q_proj: (heads * size, q_rank). k_proj: (size, C), followed by a layer norm (k_norm_*).
    head_proj: (heads, C), a token's weight for each head.
    """

    def __init__(self, n_embd: int, q_rank: int, config: IndexConfig) -> None:
        super().__init__()
        size = config.head_dim
        self.register_buffer("q_proj", torch.zeros(config.n_head * size, q_rank))
        self.register_buffer("k_proj", torch.zeros(size, n_embd))
        self.register_buffer("k_norm_weight", torch.ones(size))
        self.register_buffer("k_norm_bias", torch.zeros(size))
        self.register_buffer("head_proj", torch.zeros(config.n_head, n_embd))

    def init_weights(self, std: float) -> None:
        """New weights, as `GPT.init_weights`."""
        for name, buffer in self.named_buffers():
            if "norm" in name:
                buffer.fill_(float(name == "k_norm_weight"))
            else:
                nn.init.normal_(buffer, std=std)


def check_indexed(latent: LatentConfig | None, context: Context, length: int, lengths: Sequence[int] | None) -> None:
    """Raise ValueError if a pass over `length` new tokens makes a row longer than what an indexer would choose.

    lengths: see `GPT.forward`.
    """
    if latent is None or latent.index is None:
        return
    if lengths is not None:
        longest = max(lengths)
    elif isinstance(context, Packed):
        longest = max(n for row in context.lengths for n in row)
    else:
        longest = length + (max(context.lengths) if isinstance(context, KVCache) else 0)
    if longest > latent.index.top_k:
        raise ValueError(f"a row has {longest} tokens, and can have at most {index_limit(latent.index)}")


class LatentAttention(nn.Module):
    """MLA (DeepSeek-V2, 2024): all heads' keys and values are up-projections W_UK and W_UV of one latent per token.

    A cache stores latents only. Without a past, keys and values are computed from them. With a past, W_UK and W_UV are
    absorbed (section 2.1.2): queries are multiplied by W_UK, all heads attend to the latents themselves (multi-query
    attention), and the output is multiplied by W_UV. The cache computes these matrices once (`up_projections`).
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        assert config.attention.latent is not None
        self.config, self.latent = config, config.attention.latent
        c, latent, bias, scale = config, self.latent, config.attention.bias, config.attention.scale
        # Explicit, since absorbed queries are wider (rank + R) but keep the heads' scale.
        self.spec = make_spec(config, config.head_dim**-0.5 if scale is None else scale)
        if latent.q_rank is None:
            self.q_proj = Linear(c.n_embd, c.n_head * c.head_dim, bias=False)
        else:
            self.q_a_proj = Linear(c.n_embd, latent.q_rank, bias=bias)
            self.q_a_norm = make_norm(latent.norm, latent.q_rank)
            self.q_b_proj = Linear(latent.q_rank, c.n_head * c.head_dim, bias=False)
        self.kv_a_proj = Linear(c.n_embd, latent.kv_rank + latent.rope_head_dim, bias=bias)
        self.kv_a_norm = make_norm(latent.norm, latent.kv_rank)
        self.kv_b_proj = Linear(latent.kv_rank, c.n_head * (latent.nope_head_dim + latent.v_head_dim), bias=False)
        self.o_proj = Linear(c.n_head * latent.v_head_dim, c.n_embd, bias=config.attention.out_bias)
        self.indexer = Indexer(c.n_embd, latent.q_rank or 0, latent.index) if latent.index is not None else None

    def forward(self, x: Tensor, rotary: RopeTables, context: LayerContext) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        B, T, _ = x.shape
        H, latent = self.config.n_head, self.latent
        N, R, E = latent.nope_head_dim, latent.rope_head_dim, latent.v_head_dim
        q = self.q_proj(x) if latent.q_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        q, q_rope = q.view(B, T, H, N + R).split((N, R), dim=-1)
        c, k_rope = self.kv_a_proj(x).split((latent.kv_rank, R), dim=-1)
        c, k_rope = self.kv_a_norm(c), k_rope.view(B, T, 1, R)
        if rotary.cos is not None and rotary.sin is not None and self.config.rope is not None:
            interleaved = self.config.rope.interleaved
            q_rope, k_rope = (apply_rope(t, rotary.cos, rotary.sin, interleaved) for t in (q_rope, k_rope))
        if rotary.query_scale is not None:
            q, q_rope = q * rotary.query_scale, q_rope * rotary.query_scale
        cache_entry = torch.cat((c.view(B, T, 1, -1), k_rope), dim=-1).transpose(1, 2)  # (B, 1, T, rank + R)
        if not context.has_past:
            k, v = self.kv_b_proj(c).view(B, T, H, N + E).split((N, E), dim=-1)
            q, k = torch.cat((q, q_rope), dim=-1), torch.cat((k, k_rope.expand(B, T, H, R)), dim=-1)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            y = context.attend(q, k, v, self.spec, cache_entry=cache_entry)  # (B, H, T, E)
        else:
            assert context.cached_weights is not None
            W_UK, W_UV = context.cached_weights["W_UK_UV"].split((N, E), dim=1)
            q = torch.cat((q.transpose(1, 2) @ W_UK, q_rope.transpose(1, 2)), dim=-1)  # (B, H, T, rank + R)
            y = context.attend(q, cache_entry, cache_entry[..., : latent.kv_rank], self.spec)
            y = y @ W_UV.transpose(1, 2)  # (B, H, T, E)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))

    def up_projections(self, like: Tensor) -> Tensor:
        """(H, N + E, rank): each head's W_UK and W_UV, one above the other, in the dtype of `like`.

        They are computed as kv_b_proj of the identity matrix, and so include what transforms did to that layer
        (adapters, packed weights).
        """
        identity = torch.eye(self.latent.kv_rank, dtype=like.dtype, device=like.device)
        return self.kv_b_proj(identity).T.contiguous().view(self.config.n_head, -1, self.latent.kv_rank)
