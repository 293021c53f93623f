"""Model FLOPs utilization: the operations that training a token needs, and how many a device could do at best.

Only what the mathematics needs is counted: activations computed a second time (checkpointing) and LoRA's small matrices
are not, as in the papers that made MFU known (Chowdhery et al. 2022).
"""

from __future__ import annotations

import re

import torch

from litlm.cli.describe import forward_flops, seen
from litlm.config import Config

# Words of a device's name -> dense products in bf16 with fp32 sums, from the vendors' data sheets (which often print
# twice that, for sparse matrices). The first entry whose words all occur is the one.
PEAK_BF16 = {
    "GB300": 2500e12,
    "GB200": 2500e12,
    "B300": 2250e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "RTX A6000": 154.8e12,
}
NO_FP8 = ("A100", "A800", "A40", "A30", "A10", "A10G", "RTX 3090", "RTX A6000")


def train_flops_per_token(config: Config, length: int, *, frozen: bool = False) -> float:
    """Mean over a row of `length` tokens: 6 operations a weight in the products (of experts only those a token is sent
    to) and 6 a product of query and key or score and value in what a token sees.

    frozen: the weights need no gradients, which saves a third of the products with them.
    """
    forward, attention = forward_flops(config, length), 0.0
    for layer in map(config.layer, range(config.n_layer)):
        latent = layer.attention.latent
        value_dim = layer.head_dim if latent is None else latent.v_head_dim
        attention += 2 * layer.n_head * (layer.head_dim + value_dim) * seen(length, layer)
    return 3 * attention + (2 if frozen else 3) * (forward - attention)


def peak_flops(device: torch.device, fp8: bool = False) -> float | None:
    """Operations per second that the device could do in bf16 (or FP8) at best; None where that isn't known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), fp8)


def peak_of(name: str, fp8: bool = False) -> float | None:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"mig", "laptop", "ti", "d"}:  # a part of a device, or another one than the name without it
        return None
    for known, flops in PEAK_BF16.items():
        if words >= set(known.lower().split()):
            return flops * (2 if fp8 and known not in NO_FP8 else 1)
    return None
