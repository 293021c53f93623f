"""Operations in training a token: the usual formula's numbers, windows and experts by hand, and devices by name."""

from __future__ import annotations

import pytest
import torch

from litlm.config import Config, MLPConfig, MoEConfig
from litlm.train.flops import peak_flops, peak_of, train_flops_per_token

SHAPES = {
    "124m": dict(n_layer=12, n_embd=768, n_head=12, intermediate_size=2048, vocab_size=50304),
    "1b": dict(n_layer=16, n_embd=2048, n_head=32, n_kv_head=8, intermediate_size=8192, vocab_size=128256),
    "8b": dict(n_layer=32, n_embd=4096, n_head=32, n_kv_head=8, intermediate_size=14336, vocab_size=128256),
}


# 6 (frozen: 4) operations a weight in the products and 12 n_layer n_head head_dim T / 2 of attention, which takes T / 2
# tokens as seen where (T + 1) / 2 are.
@pytest.mark.parametrize(
    ("shape", "length", "frozen", "flops"),
    [
        ("124m", 1024, False, 798031872), ("124m", 1024, True, 550895616), ("124m", 4096, False, 967901184),
        ("1b", 2048, False, 7817134080), ("1b", 4096, True, 5748293632),
        ("8b", 2048, False, 46638563328), ("8b", 4096, True, 33239859200),
    ],
)  # fmt: skip
def test_the_usual_formula(shape: str, length: int, frozen: bool, flops: int) -> None:
    for tied in (True, False):
        config = Config(**SHAPES[shape], tie_embeddings=tied, max_seq_len=8192)
        one_more = 6 * config.n_layer * config.n_embd
        assert train_flops_per_token(config, length, frozen=frozen) == flops + one_more
    assert one_more < 1e-3 * flops


def test_windows_and_experts_count_what_is_used() -> None:
    config = Config(
        vocab_size=100, n_layer=3, n_embd=24, n_head=4, n_kv_head=2, head_dim=10, intermediate_size=50,
        layer_types=("full", "sliding", "chunked"), sliding_window=4, mlp=MLPConfig(kind="plain"),
        moe=MoEConfig(n_expert=8, n_expert_per_token=3, intermediate_size=7), moe_layers=(False, True, False),
    )  # fmt: skip
    attention = 2 * 24 * 40 + 2 * 24 * 20
    weights = 3 * attention + 2 * (2 * 24 * 50) + (24 * 8 + 3 * 2 * 24 * 7) + 24 * 100
    seen = [0, 0, 0]  # over a row of 11, token by token
    for i in range(11):
        seen[0] += i + 1
        seen[1] += min(i + 1, 4)
        seen[2] += i % 4 + 1
    pairs = sum(seen) / 11 * 4 * (10 + 10)
    assert train_flops_per_token(config, 11) == pytest.approx(6 * weights + 6 * pairs)
    assert train_flops_per_token(config, 11, frozen=True) == pytest.approx(4 * weights + 6 * pairs)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10", 125e12), ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA L40", 181e12), ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12), ("NVIDIA B200", 2250e12), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("Tesla T4", None), ("NVIDIA GeForce RTX 3090 Ti", None),
        ("", None),
    ],
)  # fmt: skip
def test_devices_by_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_of(name) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_fp8_is_twice_as_fast_where_there_is_any() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3", fp8=True) == 2 * 989e12
    assert peak_of("NVIDIA A100-PCIE-40GB", fp8=True) == 312e12
