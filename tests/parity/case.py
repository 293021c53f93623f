"""What a parity case is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """name: test id. family: Hugging Face model_type. hf: arguments of its config class. seed: of the weights."""

    name: str
    family: str
    hf: dict[str, Any] = field(hash=False)
    seed: int

    def __str__(self) -> str:
        return self.name


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def layered(family: str, name: str, seed: int, **hf: Any) -> Case:
    """A case of layers of several kinds."""
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Case(f"{family}-{name}", family, base | hf, seed)


def delta(keys: int, values: int, key_dim: int, value_dim: int, kernel: int = 4) -> dict[str, Any]:
    """Gated DeltaNet's fields. Where a query hardly meets a key, the norm magnifies what rounding left: a larger eps
    keeps that small."""
    return dict(
        rms_norm_eps=1e-3, linear_num_key_heads=keys, linear_num_value_heads=values, linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim, linear_conv_kernel_dim=kernel,
    )  # fmt: skip


def experts(n: int, chosen: int, width: int, shared: int = 0) -> dict[str, Any]:
    """shared: size of the shared expert; 0: the field is left out."""
    sizes = dict(num_experts=n, num_experts_per_tok=chosen, moe_intermediate_size=width)
    return sizes | (dict(shared_expert_intermediate_size=shared) if shared else {})


def partial_rope(theta: float, fraction: float, **more: Any) -> dict[str, Any]:
    return rope("default", theta, partial_rotary_factor=fraction, **more)
