"""On a CUDA device: latent attention, sinks, chunks and experts give the CPU's numbers, with a cache and without.

(The CPU's are compared with transformers in `parity`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from litlm.config import (
    AttentionConfig,
    Config,
    LatentConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    TemperatureConfig,
)
from litlm.context import KVCache
from litlm.model import GPT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

_SMALL: dict[str, Any] = dict(vocab_size=101, n_layer=3, n_embd=64, n_head=4, max_seq_len=128)
CONFIGS = {
    "latent": Config(
        attention=AttentionConfig(
            latent=LatentConfig(kv_rank=24, q_rank=16, nope_head_dim=16, rope_head_dim=8, v_head_dim=12)
        ),
        moe=MoEConfig(
            n_expert=8, n_expert_per_token=2, intermediate_size=32, scoring="sigmoid", selection_bias=True, n_group=2,
            group_score="top2", shared_intermediate_size=32,
        ),
        moe_layers=(False, True, True), rope=RopeConfig(interleaved=True), **_SMALL,
    ),
    "sinks": Config(
        n_kv_head=2, head_dim=16, layer_types=("sliding", "full", "sliding"), sliding_window=5,
        attention=AttentionConfig(sinks=True, bias=True, out_bias=True), mlp=MLPConfig(activation="clamped"),
        moe=MoEConfig(
            n_expert=5, n_expert_per_token=2, intermediate_size=40, router_bias=True, expert_bias=True
        ), **_SMALL,
    ),
    "chunks": Config(
        n_kv_head=2, head_dim=16, layer_types=("chunked", "full", "chunked"), sliding_window=6,
        rope_layers=(True, False, True), rope=RopeConfig(interleaved=True),
        attention=AttentionConfig(
            qk_norm=QKNormConfig(norm=NormConfig(weight=False), after_rope=True),
            temperature=TemperatureConfig(scale=0.3, interval=4, shift=1, no_rope_only=True),
        ),
        moe=MoEConfig(
            n_expert=3, n_expert_per_token=1, intermediate_size=32, scoring="sigmoid", normalize=False,
            scale_input=True, shared_intermediate_size=32,
        ), **_SMALL,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """fp32 products in fp32, whatever the machine's default is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@torch.no_grad()
def _model(name: str) -> GPT:
    gen = torch.Generator().manual_seed(len(name))
    model = GPT(CONFIGS[name])
    for key, t in model.state_dict().items():
        noise = torch.randn(t.shape, generator=gen)
        norm = "norm" in key and key.endswith("weight")
        t.copy_(noise * 1.5 * t.shape[-1] ** -0.5 if t.dim() > 1 else noise * 0.2 + norm)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunks", [None, [13] + [1] * 17, [2, 5, 3, 1, 11, 1, 7], [1] * 30], ids=str)
@torch.no_grad()
def test_same_as_on_the_cpu(name: str, dtype: torch.dtype, chunks: list[int] | None) -> None:
    ids = torch.randint(101, (3, 30), generator=torch.Generator().manual_seed(1))
    model = _model(name)
    expected = model(ids)
    model = model.to("cuda", dtype)
    if chunks is None:
        actual = model(ids.cuda())
    else:
        cache = KVCache(model.config, 3, 30, device="cuda", dtype=dtype)
        actual = torch.cat([model(part.cuda(), context=cache) for part in ids.split(chunks, 1)], 1)
    errors = (actual.float().cpu() - expected).abs().amax(-1) / expected.abs().max()  # (B, T)
    if dtype == torch.float32:
        assert errors.max() <= 2e-5
    else:  # rounding may send a token to another expert: most tokens, not all
        assert errors.median() <= 0.03
