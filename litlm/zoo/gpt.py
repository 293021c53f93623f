"""The models before and beside Llama: GPT-2, -Neo, -J and -NeoX, BLOOM, Pythia, RedPajama, StableLM, Falcon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, row, size_fields, token_ids


def models() -> Iterator[Row]:
    """The rows of this table."""
    yield from _gpt2()
    yield from _bloom()
    yield from _neox()
    yield from _stablelm()
    yield from _falcon()


def _gpt2() -> Iterator[Row]:
    def gpt(n_embd: int, n_layer: int, n_head: int, **more: Any) -> dict[str, Any]:
        return dict(
            n_embd=n_embd, n_layer=n_layer, n_head=n_head, layer_norm_epsilon=1e-5, activation_function="gelu_new",
        ) | token_ids(50256, 50256) | more  # fmt: skip

    for name, shape in {
        "gpt2": (768, 12, 12),
        "gpt2-medium": (1024, 24, 16),
        "gpt2-large": (1280, 36, 20),
        "gpt2-xl": (1600, 48, 25),
    }.items():
        hf = gpt(*shape, model_type="gpt2", vocab_size=50257, n_positions=1024, tie_word_embeddings=True)
        yield row(f"openai-community/{name}", hf, license="mit")
    hf = gpt(4096, 28, 16, model_type="gptj", vocab_size=50400, n_positions=2048, rotary_dim=64)
    yield row("EleutherAI/gpt-j-6b", hf | dict(tie_word_embeddings=False), license="apache-2.0")

    for size, (width, n_layer, n_head) in {
        "125m": (768, 12, 12),
        "1.3B": (2048, 24, 16),
        "2.7B": (2560, 32, 20),
    }.items():
        hf = dict(
            model_type="gpt_neo", vocab_size=50257, hidden_size=width, num_layers=n_layer, num_heads=n_head,
            max_position_embeddings=2048, attention_types=[[["global", "local"], n_layer // 2]], window_size=256,
            layer_norm_epsilon=1e-5, activation_function="gelu_new", tie_word_embeddings=True,
        )  # fmt: skip
        yield row(f"EleutherAI/gpt-neo-{size}", hf | token_ids(50256, 50256), license="mit")


def _bloom() -> Iterator[Row]:
    for name, (width, n_layer, n_head) in {
        "bloom-560m": (1024, 24, 16),
        "bloom-1b1": (1536, 24, 16),
        "bloom-1b7": (2048, 24, 16),
        "bloom-3b": (2560, 30, 32),
        "bloom-7b1": (4096, 30, 32),
        "bloom": (14336, 70, 112),
    }.items():
        hf = dict(
            model_type="bloom", vocab_size=250880, hidden_size=width, n_layer=n_layer, n_head=n_head,
            layer_norm_epsilon=1e-5, tie_word_embeddings=True, torch_dtype="bfloat16" if name == "bloom" else "float16",
        )  # fmt: skip
        yield row(f"bigscience/{name}", hf | token_ids(1, 2, 3), license="bigscience-bloom-rail-1.0")


def _neox() -> Iterator[Row]:
    def neox(n_embd: int, n_layer: int, n_head: int, vocab: int, context: int, **more: Any) -> dict[str, Any]:
        hf = size_fields("gpt_neox", n_embd, n_layer, 4 * n_embd, n_head, n_head, vocab, context)
        del hf["num_key_value_heads"]
        return hf | dict(
            rotary_pct=0.25, rotary_emb_base=10000, layer_norm_eps=1e-5, use_parallel_residual=True, hidden_act="gelu",
            torch_dtype="float16",
        ) | token_ids(0, 0) | more  # fmt: skip

    for size, shape in {
        "14m": (128, 6, 4, 50304, 512),
        "31m": (256, 6, 8, 50304, 1024),
        "70m": (512, 6, 8, 50304, 2048),
        "160m": (768, 12, 12, 50304, 2048),
        "410m": (1024, 24, 16, 50304, 2048),
        "1b": (2048, 16, 8, 50304, 2048),
        "1.4b": (2048, 24, 16, 50304, 2048),
        "2.8b": (2560, 32, 32, 50304, 2048),
        "6.9b": (4096, 32, 32, 50432, 2048),
        "12b": (5120, 36, 40, 50688, 2048),
    }.items():
        hf = neox(*shape)
        yield row(f"EleutherAI/pythia-{size}", hf, license="apache-2.0")
        if size not in ("14m", "31m"):
            yield row(f"EleutherAI/pythia-{size}-deduped", hf, license="apache-2.0")
    hf = neox(6144, 44, 64, 50432, 2048, hidden_act="gelu_fast")
    yield row("EleutherAI/gpt-neox-20b", hf, license="apache-2.0")

    for names, width in (
        (("Base-3B-v1", "Chat-3B-v1", "Instruct-3B-v1"), 2560),
        (("7B-Base", "7B-Chat", "7B-Instruct"), 4096),
    ):
        hf = neox(width, 32, 32, 50432, 2048, rotary_pct=1.0, use_parallel_residual=False)
        for name in names:
            kind = "chat" if "Chat" in name else "instruct"
            facts: dict[str, Any] = {} if "Base" in name else dict(chat=True, style=f"redpajama-{kind}")
            yield row(f"togethercomputer/RedPajama-INCITE-{name}", hf, license="apache-2.0", **facts)

    for size, width, n_head, vocab in (("3b", 4096, 32, 50688), ("7b", 6144, 48, 50432)):
        hf = neox(width, 16, n_head, vocab, 4096)
        yield row(f"stabilityai/stablelm-base-alpha-{size}", hf, license="cc-by-sa-4.0")
        facts = dict(license="cc-by-nc-sa-4.0", chat=True, style="stablelm-alpha")
        yield row(f"stabilityai/stablelm-tuned-alpha-{size}", hf, **facts)
    hf = neox(2560, 32, 32, 49152, 16384)
    yield row("stabilityai/stablecode-completion-alpha-3b", hf, license="apache-2.0")
    hf = neox(2560, 32, 32, 49152, 4096)
    yield row("stabilityai/stablecode-completion-alpha-3b-4k", hf, license="apache-2.0")
    facts = dict(license="other", chat=True, style="stablecode")
    yield row("stabilityai/stablecode-instruct-alpha-3b", hf, **facts)


def _stablelm() -> Iterator[Row]:
    def stablelm(*shape: int, **more: Any) -> dict[str, Any]:
        return size_fields("stablelm", *shape) | dict(
            layer_norm_eps=1e-5, partial_rotary_factor=0.25, rope_theta=1e4, use_qkv_bias=False
        ) | token_ids(0, 0) | more  # fmt: skip

    hf = stablelm(2560, 32, 6912, 32, 32, 50304, 4096)
    yield row("stabilityai/stablelm-3b-4e1t", hf, license="cc-by-sa-4.0")
    yield row("stabilityai/stablelm-zephyr-3b", hf, license="other", chat=True, style="stablelm-zephyr")
    hf = stablelm(2560, 32, 6912, 32, 32, 50304, 16384, rope_theta=1e6)
    yield row("stabilityai/stable-code-3b", hf, license="other")
    hf = stablelm(2048, 24, 5632, 32, 32, 100352, 4096, use_qkv_bias=True, torch_dtype="float16")
    hf |= token_ids(100257, 100257)
    yield row("stabilityai/stablelm-2-1_6b", hf, license="other")
    yield row("stabilityai/stablelm-2-zephyr-1_6b", hf, license="other", chat=True, style="stablelm-zephyr")


def _falcon() -> Iterator[Row]:
    def falcon(n_embd: int, n_layer: int, n_head: int, n_kv_head: int, **more: Any) -> dict[str, Any]:
        return dict(
            model_type="falcon", vocab_size=65024, hidden_size=n_embd, num_hidden_layers=n_layer,
            num_attention_heads=n_head, num_kv_heads=n_kv_head, max_position_embeddings=2048, rope_theta=1e4,
            layer_norm_epsilon=1e-5, parallel_attn=True, bias=False, alibi=False, torch_dtype="bfloat16",
        ) | token_ids(11, 11) | more  # fmt: skip

    small = falcon(4544, 32, 71, 1, multi_query=True, new_decoder_architecture=False)
    middle = falcon(8192, 60, 128, 8, new_decoder_architecture=True)
    large = falcon(14848, 80, 232, 8, new_decoder_architecture=True)
    for size, hf in (("7b", small), ("40b", middle)):
        yield row(f"tiiuae/falcon-{size}", hf, license="apache-2.0")
        yield row(f"tiiuae/falcon-{size}-instruct", hf, license="apache-2.0", chat=True, style="falcon-instruct")
    facts = dict(license="falcon-180b", gated=True)
    yield row("tiiuae/falcon-180B", large, **facts)
    yield row("tiiuae/falcon-180B-chat", large, chat=True, **facts)
