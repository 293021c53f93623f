"""Google's Gemma 1 to 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, layer_pattern, row, size_fields, token_ids

_FACTS: dict[str, Any] = dict(license="gemma", gated=True)


def _gemma(model_type: str, *shape: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return size_fields(model_type, *shape) | dict(
        head_dim=head_dim, rms_norm_eps=1e-6, rope_theta=1e4, hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    ) | token_ids(2, 1, 0) | more  # fmt: skip


def _gemma4(*shape: int, sliding: int, **more: Any) -> dict[str, Any]:
    """sliding: how many layers slide between two full ones. Scores are not scaled, heads of full layers are larger."""
    return size_fields("gemma4_text", *shape) | dict(
        head_dim=256, global_head_dim=512, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh",
        rope_parameters=dict(
            full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1e6),
            sliding_attention=dict(rope_type="default", rope_theta=1e4),
        ),
        layer_types=layer_pattern(shape[1], *["sliding"] * sliding, "full"), final_logit_softcapping=30.0,
        tie_word_embeddings=True,
    ) | token_ids(2, 1, 0) | more  # fmt: skip


def _pair(
    base: str, chat: str, hf: dict[str, Any], style: str = "gemma", facts: dict[str, Any] = _FACTS, **of_chat: Any
) -> Iterator[Row]:
    yield row(f"google/{base}", hf, **facts)
    yield row(f"google/{chat}", hf | of_chat, chat=True, style=style, **facts)


def models() -> Iterator[Row]:
    """The rows of this table."""
    small = _gemma("gemma", 2048, 18, 16384, 8, 1, 256000, 8192, head_dim=256)
    large = _gemma("gemma", 3072, 28, 24576, 16, 16, 256000, 8192, head_dim=256)
    yield from _pair("gemma-2b", "gemma-2b-it", small)
    yield from _pair("gemma-7b", "gemma-7b-it", large)
    yield from _pair("codegemma-7b", "codegemma-7b-it", large)

    for size, shape, head_dim, scalar in (
        ("2b", (2304, 26, 9216, 8, 4), 256, 256),
        ("9b", (3584, 42, 14336, 16, 8), 256, 256),
        ("27b", (4608, 46, 36864, 32, 16), 128, 144),
    ):
        hf = _gemma(
            "gemma2", *shape, 256000, 8192, head_dim=head_dim, query_pre_attn_scalar=scalar, sliding_window=4096,
            attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
            layer_types=layer_pattern(shape[1], "sliding", "full"), torch_dtype="float32",
        )  # fmt: skip
        yield from _pair(f"gemma-2-{size}", f"gemma-2-{size}-it", hf, torch_dtype="bfloat16")

    for size, shape, vocab, context, window, head_dim, scalar in (
        ("270m", (640, 18, 2048, 4, 1), 262144, 32768, 512, 256, 256),
        ("1b", (1152, 26, 6912, 4, 1), 262144, 32768, 512, 256, 256),
        ("4b", (2560, 34, 10240, 8, 4), 262208, 131072, 1024, 256, 256),
        ("12b", (3840, 48, 15360, 16, 8), 262208, 131072, 1024, 256, 256),
        ("27b", (5376, 62, 21504, 32, 16), 262208, 131072, 1024, 128, 168),
    ):
        hf = _gemma(
            "gemma3_text", *shape, vocab, context, head_dim=head_dim, query_pre_attn_scalar=scalar,
            sliding_window=window, layer_types=layer_pattern(shape[1], *["sliding"] * 5, "full"),
            rope_theta=1e6, rope_local_base_freq=1e4,
        )  # fmt: skip
        if context == 131072:
            hf["rope_scaling"] = dict(rope_type="linear", factor=8.0)
        base = "gemma-3-270m" if size == "270m" else f"gemma-3-{size}-pt"
        yield from _pair(base, f"gemma-3-{size}-it", hf, style="gemma3", eos_token_id=[1, 106])

    small = dict(sliding_window=512, hidden_size_per_layer_input=256, vocab_size_per_layer_input=262144)
    large = dict(sliding_window=1024, hidden_size_per_layer_input=0, attention_k_eq_v=True)
    experts = dict(enable_moe_block=True, num_experts=128, top_k_experts=8, moe_intermediate_size=704)
    for size, shape, sliding, more in (
        ("E2B", (1536, 35, 6144, 8, 1), 4, small | dict(num_kv_shared_layers=20, use_double_wide_mlp=True)),
        ("E4B", (2560, 42, 10240, 8, 2), 5, small | dict(num_kv_shared_layers=18)),
        ("31B", (5376, 60, 21504, 32, 16), 5, large | dict(num_global_key_value_heads=4)),
        ("26B-A4B", (2816, 30, 2112, 16, 8), 5, large | dict(num_global_key_value_heads=2) | experts),
    ):
        context = 131072 if size.startswith("E") else 262144
        hf = _gemma4(*shape, 262144, context, sliding=sliding, **more)
        facts = dict(license="apache-2.0")
        yield from _pair(f"gemma-4-{size}", f"gemma-4-{size}-it", hf, "gemma4", facts, eos_token_id=[1, 106])
