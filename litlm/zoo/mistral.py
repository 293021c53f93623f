"""Mistral AI's models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, parse_versions, row, size_fields, token_ids


def _mistral(*shape: int, theta: float = 1e6, model_type: str = "mistral", **more: Any) -> dict[str, Any]:
    return (
        size_fields(model_type, *shape) | dict(rms_norm_eps=1e-5, rope_theta=theta, sliding_window=None) | _IDS | more
    )


_IDS = token_ids(1, 2)
_7B = (4096, 32, 14336, 32, 8)


def models() -> Iterator[Row]:
    """The rows of this table."""
    free: dict[str, Any] = dict(license="apache-2.0")
    research: dict[str, Any] = dict(license="mrl", gated=True)

    def chat(tokenizer: str) -> dict[str, Any]:
        return dict(chat=True, style=f"mistral-{tokenizer}")

    first = _mistral(*_7B, 32000, 32768, theta=1e4, sliding_window=4096)
    yield row("mistralai/Mistral-7B-v0.1", first, **free)
    yield row("mistralai/Mistral-7B-Instruct-v0.1", first, **free, **chat("v1"))
    yield row("unsloth/Mistral-7B-v0.2", _mistral(*_7B, 32000, 32768), **free)
    yield row("mistralai/Mistral-7B-Instruct-v0.2", _mistral(*_7B, 32000, 32768), **free, **chat("v1"))
    yield row("mistralai/Mistral-7B-v0.3", _mistral(*_7B, 32768, 32768), **free)
    yield row("mistralai/Mistral-7B-Instruct-v0.3", _mistral(*_7B, 32768, 32768), **free, **chat("v3"))
    yield row("mistralai/Mathstral-7B-v0.1", _mistral(*_7B, 32768, 32768, sliding_window=4096), **free, **chat("v3"))

    middle = _mistral(6144, 56, 16384, 48, 8, 32768, 32768, head_dim=128)
    yield row("mistralai/Codestral-22B-v0.1", middle, license="mnpl", gated=True, **chat("v3"))
    yield row("mistralai/Mistral-Small-Instruct-2409", middle, **research, **chat("v3"))
    large = _mistral(12288, 88, 28672, 96, 8, 32768, 131072, head_dim=128)
    yield row("mistralai/Mistral-Large-Instruct-2407", large, **research, **chat("v3"))
    yield row("mistralai/Mistral-Large-Instruct-2411", large, **research, **chat("v7"))
    ministral = _mistral(4096, 36, 12288, 32, 8, 131072, 32768, theta=1e8, head_dim=128, sliding_window=32768)
    yield row("mistralai/Ministral-8B-Instruct-2410", ministral, **research, **chat("v3-tekken"))

    small = _mistral(5120, 40, 32768, 32, 8, 131072, 32768, theta=1e8, head_dim=128)
    yield row("mistralai/Mistral-Small-24B-Base-2501", small, **free)
    yield row("mistralai/Mistral-Small-24B-Instruct-2501", small, **free, **chat("v7-tekken"))
    # From here on with eyes; this is the text part.
    small = small | dict(rope_theta=1e9, max_position_embeddings=131072)
    for name, is_chat in parse_versions(
        "Mistral-Small-3.1-24B-Base-2503 Mistral-Small-3.1-24B-Instruct-2503* Mistral-Small-3.2-24B-Instruct-2506*"
    ):
        yield row(f"mistralai/{name}", small, **free, **(chat("v7-tekken") if is_chat else {}))

    scaling = dict(
        rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=16384, beta_fast=32.0,
        beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
    )  # fmt: skip
    for size, shape, tied in (("3B", (3072, 26, 9216, 32, 8), True), ("8B", (4096, 34, 14336, 32, 8), False)):
        hf = size_fields("ministral3", *shape, 131072, 262144) | token_ids(1, 2, 11)
        hf |= dict(head_dim=128, rms_norm_eps=1e-5, rope_parameters=scaling, tie_word_embeddings=tied)
        for kind, is_chat in parse_versions("Base Instruct* Reasoning*"):
            yield row(f"mistralai/Ministral-3-{size}-{kind}-2512", hf, **free, **(chat("v13") if is_chat else {}))

    moe = dict(num_local_experts=8, num_experts_per_tok=2)
    for size, shape, version in (
        ("8x7B", (*_7B, 32000, 32768), "v1"),
        ("8x22B", (6144, 56, 16384, 48, 8, 32768, 65536), "v3"),
    ):
        hf = _mistral(*shape, model_type="mixtral") | moe
        yield row(f"mistralai/Mixtral-{size}-v0.1", hf, **free)
        yield row(f"mistralai/Mixtral-{size}-Instruct-v0.1", hf, **free, **chat(version))

    pruned = _mistral(4096, 40, 11520, 32, 8, 131072, 8192, head_dim=128)
    yield row("nvidia/Mistral-NeMo-Minitron-8B-Base", pruned, license="other")
