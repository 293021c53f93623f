"""Alibaba's Qwen 1.5 to 3.5, and DeepSeek's distillations into Qwen 2.5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, row, size_fields, token_ids

_BASE, _CHAT = token_ids(151643, 151643), token_ids(151643, 151645)
# The models of July 2025 either always think or never do.
_2507 = {"Thinking": "qwen3-thinking", "Instruct": "chatml"}


def models() -> Iterator[Row]:
    """The rows of this table."""
    yield from _qwen2_moe()
    yield from _qwen25()
    yield from _qwen3()
    yield from _qwen3_moe()
    yield from _qwen3_next()
    yield from _qwen35()


def _qwen2_moe() -> Iterator[Row]:
    def moe(*shape: int, n_expert: int, top: int, width: int, shared: int, **more: Any) -> dict[str, Any]:
        return size_fields("qwen2_moe", *shape) | dict(
            num_experts=n_expert, num_experts_per_tok=top, moe_intermediate_size=width, decoder_sparse_step=1,
            shared_expert_intermediate_size=shared, norm_topk_prob=False, rms_norm_eps=1e-6, rope_theta=1e6,
        ) | more  # fmt: skip

    hf = moe(2048, 24, 5632, 16, 16, 151936, 8192, n_expert=60, top=4, width=1408, shared=5632)
    yield row("Qwen/Qwen1.5-MoE-A2.7B", hf | _BASE, license="other")
    chat = dict(license="other", chat=True, style="qwen2")
    yield row("Qwen/Qwen1.5-MoE-A2.7B-Chat", hf | _CHAT | dict(max_position_embeddings=32768), **chat)


# n_embd, n_layer, intermediate_size, n_head, n_kv_head, vocab_size; rms_norm_eps; tied embeddings
_QWEN25 = {
    "0.5B": ((896, 24, 4864, 14, 2, 151936), 1e-6, True),
    "1.5B": ((1536, 28, 8960, 12, 2, 151936), 1e-6, True),
    "3B": ((2048, 36, 11008, 16, 2, 151936), 1e-6, True),
    "7B": ((3584, 28, 18944, 28, 4, 152064), 1e-6, False),
    "14B": ((5120, 48, 13824, 40, 8, 152064), 1e-5, False),
    "32B": ((5120, 64, 27648, 40, 8, 152064), 1e-5, False),
    "72B": ((8192, 80, 29568, 64, 8, 152064), 1e-5, False),
}


def _qwen25_hf(size: str, context: int, theta: float = 1e6, **more: Any) -> dict[str, Any]:
    shape, eps, tied = _QWEN25[size]
    hf = size_fields("qwen2", *shape, context)
    return hf | dict(rms_norm_eps=eps, rope_theta=theta, tie_word_embeddings=tied) | more


def _qwen25() -> Iterator[Row]:
    chat = dict(chat=True, style="qwen2.5")
    for size in _QWEN25:
        license = {"3B": "qwen-research", "72B": "qwen"}.get(size, "apache-2.0")
        base = _qwen25_hf(size, 32768 if size in ("0.5B", "3B") else 131072) | _BASE
        yield row(f"Qwen/Qwen2.5-{size}", base, license=license)
        yield row(f"Qwen/Qwen2.5-{size}-Instruct", _qwen25_hf(size, 32768) | _CHAT, license=license, **chat)
        if size != "72B":
            license = "qwen-research" if size == "3B" else "apache-2.0"
            yield row(f"Qwen/Qwen2.5-Coder-{size}", _qwen25_hf(size, 32768) | _BASE, license=license)
            hf = _qwen25_hf(size, 32768) | _CHAT
            yield row(f"Qwen/Qwen2.5-Coder-{size}-Instruct", hf, license=license, **chat)
    for size in ("1.5B", "7B", "72B"):
        license = "qwen" if size == "72B" else "apache-2.0"
        hf = _qwen25_hf(size, 4096, theta=1e4)
        yield row(f"Qwen/Qwen2.5-Math-{size}", hf | _BASE, license=license)
        facts = dict(license=license, chat=True, style="qwen2.5-math")
        yield row(f"Qwen/Qwen2.5-Math-{size}-Instruct", hf | _CHAT, **facts)
    for size in ("7B", "14B"):
        hf = _qwen25_hf(size, 1010000, theta=1e7, rms_norm_eps=1e-5) | _CHAT
        yield row(f"Qwen/Qwen2.5-{size}-Instruct-1M", hf, license="apache-2.0", **chat)

    qwq = dict(license="apache-2.0", chat=True)
    yield row("Qwen/QwQ-32B", _qwen25_hf("32B", 131072) | _CHAT, style="qwq", **qwq)
    yield row("Qwen/QwQ-32B-Preview", _qwen25_hf("32B", 32768) | _CHAT, style="qwq-preview", **qwq)

    for size, theta in (("1.5B", 1e4), ("7B", 1e4), ("14B", 1e6), ("32B", 1e6)):
        hf = _qwen25_hf(size, 131072, theta=theta, tie_word_embeddings=False) | _BASE
        hub_id = f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}"
        yield row(
            hub_id, hf, license="mit", chat=True, style="deepseek-r1", aliases=(f"r1-distill-qwen-{size}".lower(),)
        )


def _qwen3() -> Iterator[Row]:
    chat = dict(license="apache-2.0", chat=True)
    for size, shape, tied in (
        ("0.6B", (1024, 28, 3072, 16, 8), True),
        ("1.7B", (2048, 28, 6144, 16, 8), True),
        ("4B", (2560, 36, 9728, 32, 8), True),
        ("8B", (4096, 36, 12288, 32, 8), False),
        ("14B", (5120, 40, 17408, 40, 8), False),
        ("32B", (5120, 64, 25600, 64, 8), False),
    ):
        hf = size_fields("qwen3", *shape, 151936, 40960)
        hf |= dict(head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=tied) | _CHAT
        yield row(f"Qwen/Qwen3-{size}", hf, style="qwen3", **chat)
        if size != "32B":
            yield row(f"Qwen/Qwen3-{size}-Base", hf | dict(max_position_embeddings=32768) | _BASE, license="apache-2.0")
        if size == "4B":
            longer = hf | dict(max_position_embeddings=262144, rope_theta=5e6)
            for kind, style in _2507.items():
                yield row(f"Qwen/Qwen3-4B-{kind}-2507", longer, style=style, **chat)


def _qwen3_moe() -> Iterator[Row]:
    def moe(*shape: int, width: int, n_expert: int = 128, **more: Any) -> dict[str, Any]:
        return size_fields("qwen3_moe", *shape) | dict(
            head_dim=128, moe_intermediate_size=width, num_experts=n_expert, num_experts_per_tok=8,
            norm_topk_prob=True, decoder_sparse_step=1, rms_norm_eps=1e-6, rope_theta=1e6,
        ) | _CHAT | more  # fmt: skip

    chat = dict(license="apache-2.0", chat=True)
    small = moe(2048, 48, 6144, 32, 4, 151936, 40960, width=768)
    large = moe(4096, 94, 12288, 64, 4, 151936, 40960, width=1536)
    base = small | _BASE | dict(max_position_embeddings=32768)
    yield row("Qwen/Qwen3-30B-A3B-Base", base, license="apache-2.0")
    for size, hf, theta in (("30B-A3B", small, 1e7), ("235B-A22B", large, 5e6)):
        yield row(f"Qwen/Qwen3-{size}", hf, style="qwen3", **chat)
        longer = hf | dict(max_position_embeddings=262144, rope_theta=theta)
        for kind, style in _2507.items():
            yield row(f"Qwen/Qwen3-{size}-{kind}-2507", longer, style=style, **chat)

    coder = moe(2048, 48, 5472, 32, 4, 151936, 262144, width=768, rope_theta=1e7)
    yield row("Qwen/Qwen3-Coder-30B-A3B-Instruct", coder, style="chatml", **chat)
    coder = moe(6144, 62, 8192, 96, 8, 151936, 262144, width=2560, n_expert=160, rope_theta=1e7)
    yield row("Qwen/Qwen3-Coder-480B-A35B-Instruct", coder, style="chatml", **chat)


def _qwen3_next() -> Iterator[Row]:
    chat = dict(license="apache-2.0", chat=True)
    hf = size_fields("qwen3_next", 2048, 48, 5120, 16, 2, 151936, 262144) | dict(
        head_dim=256, full_attention_interval=4, linear_num_key_heads=16, linear_num_value_heads=32,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, num_experts=512,
        num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[], rms_norm_eps=1e-6, rope_theta=1e7, partial_rotary_factor=0.25,
    ) | _CHAT  # fmt: skip
    for kind, style in _2507.items():
        yield row(f"Qwen/Qwen3-Next-80B-A3B-{kind}", hf, style=style, **chat)
    yield row("Qwen/Qwen3-Coder-Next", hf | dict(rope_theta=5e6), style="chatml", **chat)


def _qwen35_hf(
    model_type: str, shape: tuple[int, int, int, int, int], n_value_head: int, **more: Any
) -> dict[str, Any]:
    return size_fields(model_type, *shape, 248320, 262144) | dict(
        head_dim=256, full_attention_interval=4, linear_num_key_heads=16, linear_num_value_heads=n_value_head,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, rope_theta=1e7,
        partial_rotary_factor=0.25,
    ) | more  # fmt: skip


# Ids of <|endoftext|>, and of <|im_end|> before it as in generation_config.json. Unverified, and so is whether Qwen3's
# text is theirs: a checkpoint's own template wins.
_BASE35, _CHAT35 = token_ids(None, 248044), token_ids(None, [248046, 248044])


def _qwen35() -> Iterator[Row]:
    for size, shape, n_value_head in (
        ("0.8B", (1024, 24, 3584, 8, 2), 16),
        ("2B", (2048, 24, 6144, 8, 2), 16),
        ("4B", (2560, 32, 9216, 16, 4), 32),
        ("9B", (4096, 32, 12288, 16, 4), 32),
        ("27B", (5120, 64, 17408, 24, 4), 48),
    ):
        tied = size in ("0.8B", "2B", "4B")
        hf = _qwen35_hf("qwen3_5_text", shape, n_value_head, tie_word_embeddings=tied)
        yield row(f"Qwen/Qwen3.5-{size}", hf | _CHAT35, license="apache-2.0", chat=True, style="qwen3")
        if size != "27B":
            yield row(f"Qwen/Qwen3.5-{size}-Base", hf | _BASE35, license="apache-2.0")
    for size, shape, n_value_head, n_expert, top, width in (
        ("35B-A3B", (2048, 40, 512, 16, 2), 32, 256, 8, 512),
        ("122B-A10B", (3072, 48, 1024, 32, 2), 64, 256, 8, 1024),
        ("397B-A17B", (4096, 60, 1024, 32, 2), 64, 512, 10, 1024),
    ):
        hf = _qwen35_hf("qwen3_5_moe_text", shape, n_value_head, num_experts=n_expert, num_experts_per_tok=top)
        hf |= dict(moe_intermediate_size=width, shared_expert_intermediate_size=width)
        yield row(f"Qwen/Qwen3.5-{size}", hf | _CHAT35, license="apache-2.0", chat=True, style="qwen3")
