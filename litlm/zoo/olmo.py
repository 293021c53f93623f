"""The models of the Allen Institute for AI: OLMo 1 to 3, OLMo Hybrid, OLMoE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, layer_pattern, parse_versions, row, size_fields, token_ids

_FREE: dict[str, Any] = dict(license="apache-2.0")
_TULU: dict[str, Any] = dict(license="apache-2.0", chat=True, style="olmo2")


def models() -> Iterator[Row]:
    """The rows of this table."""
    first = dict(rope_theta=1e4, clip_qkv=None, torch_dtype="float32") | token_ids(None, 50279, 1)
    hf = size_fields("olmo", 2048, 16, 8192, 16, 16, 50304, 2048) | first | dict(tie_word_embeddings=True)
    yield row("allenai/OLMo-1B-hf", hf, **_FREE)
    hf = size_fields("olmo", 4096, 32, 11008, 32, 32, 50304, 2048) | first
    yield row("allenai/OLMo-7B-hf", hf, **_FREE)
    yield row("allenai/OLMo-7B-Instruct-hf", hf, chat=True, style="olmo", **_FREE)

    second = dict(rms_norm_eps=1e-6, rope_theta=5e5, torch_dtype="float32") | token_ids(None, 100257, 100277)
    for size, shape in (
        ("0425-1B", (2048, 16, 8192, 16, 16)),
        ("1124-7B", (4096, 32, 11008, 32, 32)),
        ("1124-13B", (5120, 40, 13824, 40, 40)),
        ("0325-32B", (5120, 64, 27648, 40, 8)),
    ):
        hf = size_fields("olmo2", *shape, 100352, 4096) | second
        for kind, is_chat in parse_versions("-SFT* -DPO* -Instruct*"):
            assert is_chat
            yield row(f"allenai/OLMo-2-{size}{kind}", hf | dict(torch_dtype="bfloat16"), **_TULU)
        yield row(f"allenai/OLMo-2-{size}", hf, **_FREE)

    # The rope is stretched in the layers that see everything; the others keep the first one.
    scaling = dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=8192, beta_fast=32.0, beta_slow=1.0,
        attention_factor=1.2079441541679836,
    )  # fmt: skip
    for date, size, shape in (("1025", "7B", (4096, 32, 11008, 32, 32)), ("1125", "32B", (5120, 64, 27648, 40, 8))):
        hf = size_fields("olmo3", *shape, 100278, 65536) | token_ids(None, 100257, 100277)
        hf |= dict(
            rms_norm_eps=1e-6, rope_theta=5e5, rope_scaling=scaling, sliding_window=4096,
            layer_types=layer_pattern(shape[1], *["sliding"] * 3, "full"),
        )  # fmt: skip
        yield row(f"allenai/Olmo-3-{date}-{size}", hf, **_FREE)
        for kind in ("Think", "Instruct") if size == "7B" else ("Think",):
            style = "olmo3" if kind == "Instruct" else "olmo3-think"
            yield row(f"allenai/Olmo-3-{size}-{kind}", hf, license="apache-2.0", chat=True, style=style)

    # Sizes and ids are transformers' defaults. Unverified, from reports: no rope, the finetuned models' context,
    # and that the Instruct models are asked as Olmo-3-Instruct is.
    hybrid = size_fields("olmo_hybrid", 3840, 32, 11008, 30, 30, 100352, 65536) | token_ids(None, 100257, 100277)
    hybrid |= dict(
        rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=None), linear_allow_neg_eigval=True,
        linear_num_key_heads=30, linear_num_value_heads=30, linear_key_head_dim=96, linear_value_head_dim=192,
        linear_conv_kernel_dim=4, layer_types=[*["linear_attention"] * 3, "full_attention"] * 8,
    )  # fmt: skip
    yield row("allenai/Olmo-Hybrid-7B", hybrid, **_FREE)
    for kind, style in (("Instruct-SFT", "olmo3"), ("Instruct-DPO", "olmo3"), ("Think-SFT", None)):
        hf = hybrid | dict(max_position_embeddings=32768)
        yield row(f"allenai/Olmo-Hybrid-{kind}-7B", hf, chat=True, style=style, **_FREE)

    moe = size_fields("olmoe", 2048, 16, 1024, 16, 16, 50304, 4096) | token_ids(None, 50279, 1)
    moe |= dict(num_experts=64, num_experts_per_tok=8, norm_topk_prob=False, rms_norm_eps=1e-5, rope_theta=1e4)
    for name, is_chat in parse_versions("OLMoE-1B-7B-0924 OLMoE-1B-7B-0924-Instruct* OLMoE-1B-7B-0125"):
        yield row(f"allenai/{name}", moe, **(_TULU if is_chat else _FREE))
