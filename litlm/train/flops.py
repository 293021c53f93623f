"""Model FLOPs utilization (MFU): the operations that training a token takes, and the peak of a device.

As in PaLM (Chowdhery et al. 2022), only what the mathematics needs is counted: not the activations that checkpointing
computes again, and not LoRA's small matrices.
"""

from __future__ import annotations

import re

import torch

from litlm.config import Config
from litlm.config.counts import attention_flops, forward_flops
from litlm.data.base import Dataset
from litlm.model import GPT

# Words of a device's name -> dense bf16 products with fp32 sums, from the vendors' data sheets (which often print twice
# that, for sparse matrices). The first entry all of whose words occur counts.
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


def train_flops(model: GPT, data: Dataset) -> float:
    """Operations per token of training the model on rows as the data has them."""
    frozen = not any(p.requires_grad for name, p in model.layers.named_parameters() if name.endswith("proj.weight"))
    return train_flops_per_token(model.config, data.batches([0], 1)[0].tokens.size(1), frozen=frozen)


def train_flops_per_token(config: Config, length: int, *, frozen: bool = False) -> float:
    """Operations per token, mean over a row of `length` tokens: 6 per weight in the products (of experts only those a
    token is routed to), and 6 per product of query and key or score and value.

    frozen: the weights need no gradients, which saves a third of the products with them.
    """
    attention = attention_flops(config, length)
    return 3 * attention + (2 if frozen else 3) * (forward_flops(config, length) - attention)


def peak_flops(device: torch.device, fp8: bool = False) -> float | None:
    """The device's peak operations per second in bf16 (or FP8); None if unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), fp8)


def peak_of(name: str, fp8: bool = False) -> float | None:
    """`peak_flops` by the device's name."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"mig", "laptop", "ti", "d"}:  # a part of a device, or a smaller model
        return None
    for known, flops in PEAK_BF16.items():
        if words >= set(known.lower().split()):
            return flops * (2 if fp8 and known not in NO_FP8 else 1)
    return None
