"""Models of other makers, one function for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litlm.zoo.fields import Row, layer_pattern, llama3_scaling, parse_versions, row, size_fields, token_ids


def models() -> Iterator[Row]:
    """The rows of this table."""
    for table in (_openai, _deepseek, _zai, _cohere, _bigcode, _nvidia, _ibm, _lg, _baidu, _bytedance, _tencent):
        yield from table()
    yield from _swiss()
    yield from _minimax()
    yield from _liquid()
    yield from _arcee()
    yield from _of_2026()


def _openai() -> Iterator[Row]:
    scaling = dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False)
    scaling |= dict(original_max_position_embeddings=4096)
    for size, n_layer, n_expert in (("20b", 24, 32), ("120b", 36, 128)):
        hf = size_fields("gpt_oss", 2880, n_layer, 2880, 64, 8, 201088, 131072) | dict(
            head_dim=64, num_local_experts=n_expert, num_experts_per_tok=4, sliding_window=128, attention_bias=True,
            layer_types=layer_pattern(n_layer, "sliding", "full"), rms_norm_eps=1e-5, rope_theta=150000.0,
            rope_scaling=scaling, swiglu_limit=7.0, eos_token_id=200002, pad_token_id=199999,
        )  # fmt: skip
        yield row(f"openai/gpt-oss-{size}", hf, license="apache-2.0", chat=True, style="gpt-oss")


def _deepseek() -> Iterator[Row]:
    def yarn(mscale: float) -> dict[str, Any]:
        scaling: dict[str, Any] = dict(type="yarn", factor=40.0, beta_fast=32.0, beta_slow=1.0)
        return scaling | dict(original_max_position_embeddings=4096, mscale=mscale, mscale_all_dim=mscale)

    latent = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    v2 = latent | dict(
        n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, norm_topk_prob=False, rms_norm_eps=1e-6,
        rope_theta=1e4,
    ) | token_ids(100000, 100001)  # fmt: skip
    lite = size_fields("deepseek_v2", 2048, 27, 10944, 16, 16, 102400, 163840) | v2 | dict(
        q_lora_rank=None, moe_intermediate_size=1408, n_routed_experts=64, topk_method="greedy", n_group=1,
        topk_group=1, routed_scaling_factor=1.0, rope_scaling=yarn(0.707),
    )  # fmt: skip
    full = size_fields("deepseek_v2", 5120, 60, 12288, 128, 128, 102400, 163840) | v2 | dict(
        q_lora_rank=1536, moe_intermediate_size=1536, n_routed_experts=160, topk_method="group_limited_greedy",
        n_group=8, topk_group=3, routed_scaling_factor=16.0, rope_scaling=yarn(0.707),
    )  # fmt: skip
    for name, is_chat in parse_versions(
        "DeepSeek-V2-Lite DeepSeek-V2-Lite-Chat* DeepSeek-Coder-V2-Lite-Base DeepSeek-Coder-V2-Lite-Instruct*"
    ):
        yield row(f"deepseek-ai/{name}", lite, license="deepseek", **_chat(is_chat, "deepseek-v2"))
    for name, is_chat in parse_versions("DeepSeek-V2 DeepSeek-V2-Chat*"):
        yield row(f"deepseek-ai/{name}", full, license="deepseek", **_chat(is_chat, "deepseek-v2"))
    hf = full | dict(rope_scaling=yarn(1.0))
    yield row("deepseek-ai/DeepSeek-V2.5", hf, license="deepseek", chat=True, style="deepseek-v2.5")

    third = size_fields("deepseek_v3", 7168, 61, 18432, 128, 128, 129280, 163840) | latent | token_ids(0, 1) | dict(
        q_lora_rank=1536, moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
        first_k_dense_replace=3, n_group=8, topk_group=4, norm_topk_prob=True, routed_scaling_factor=2.5,
        scoring_func="sigmoid", topk_method="noaux_tc", rms_norm_eps=1e-6, rope_theta=1e4, rope_scaling=yarn(1.0),
    )  # fmt: skip
    for name, is_chat in parse_versions(
        "DeepSeek-V3-Base DeepSeek-V3* DeepSeek-V3-0324* DeepSeek-V3.1-Base DeepSeek-V3.1* DeepSeek-V3.1-Terminus* "
        "DeepSeek-R1* DeepSeek-R1-0528*"
    ):
        style = name.lower().removesuffix("-0324").removesuffix("-0528").removesuffix("-terminus")
        license = "deepseek" if name in ("DeepSeek-V3-Base", "DeepSeek-V3") else "mit"
        yield row(f"deepseek-ai/{name}", third, license=license, **_chat(is_chat, style))


def _zai() -> Iterator[Row]:
    end = dict(eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    hf = size_fields("glm4", 4096, 40, 13696, 32, 2, 151552, 32768) | end
    hf |= dict(head_dim=128, partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=1e4, attention_bias=True)
    for name in ("GLM-4-9B-0414", "GLM-Z1-9B-0414"):
        yield row(f"zai-org/{name}", hf, license="mit", chat=True, style="glm4")

    moe = end | dict(
        head_dim=128, partial_rotary_factor=0.5, num_experts_per_tok=8, n_shared_experts=1, n_group=1, topk_group=1,
        norm_topk_prob=True, attention_bias=True, rms_norm_eps=1e-5, rope_theta=1e6,
    )  # fmt: skip
    large = size_fields("glm4_moe", 5120, 92, 12288, 96, 8, 151552, 131072) | moe | dict(
        moe_intermediate_size=1536, n_routed_experts=160, first_k_dense_replace=3, routed_scaling_factor=2.5,
        use_qk_norm=True,
    )  # fmt: skip
    air = size_fields("glm4_moe", 4096, 46, 10944, 96, 8, 151552, 131072) | moe | dict(
        moe_intermediate_size=1408, n_routed_experts=128, first_k_dense_replace=1, routed_scaling_factor=1.0,
        use_qk_norm=False,
    )  # fmt: skip
    facts = dict(license="mit", chat=True, style="glm-4.5")
    yield row("zai-org/GLM-4.5", large, **facts)
    yield row("zai-org/GLM-4.5-Base", large, license="mit")
    yield row("zai-org/GLM-4.5-Air", air, **facts)
    yield row("zai-org/GLM-4.5-Air-Base", air, license="mit")
    yield row("zai-org/GLM-4.6", large | dict(max_position_embeddings=202752), **facts)


def _cohere() -> Iterator[Row]:
    ids = token_ids(5, 255001, 0) | dict(layer_norm_eps=1e-5, tie_word_embeddings=True)
    facts: dict[str, Any] = dict(license="cc-by-nc-4.0", gated=True, chat=True)
    shared = ids | dict(logit_scale=0.0625, use_qk_norm=False, torch_dtype="float16")
    hf = size_fields("cohere", 8192, 40, 22528, 64, 64, 256000, 8192) | shared | dict(rope_theta=8e6)
    yield row("CohereLabs/c4ai-command-r-v01", hf, style="command-r", **facts)
    hf = size_fields("cohere", 8192, 40, 24576, 64, 8, 256000, 131072) | shared | dict(rope_theta=4e6)
    yield row("CohereLabs/c4ai-command-r-08-2024", hf, style="command-r", **facts)
    hf = size_fields("cohere2", 4096, 32, 14336, 32, 8, 256000, 132096) | ids | dict(
        head_dim=128, logit_scale=0.25, rope_theta=5e4, sliding_window=4096,
        layer_types=layer_pattern(32, *["sliding"] * 3, "full"),
    )  # fmt: skip
    yield row("CohereLabs/c4ai-command-r7b-12-2024", hf, **facts)


def _bigcode() -> Iterator[Row]:
    for size, shape, theta, std, tied in (
        ("3b", (3072, 30, 12288, 24, 2), 999999.4420358813, 0.018042, True),
        ("7b", (4608, 32, 18432, 36, 4), 1e6, 0.018042, True),
        ("15b", (6144, 40, 24576, 48, 4), 1e5, 0.01275, False),
    ):
        hf = size_fields("starcoder2", *shape, 49152, 16384) | token_ids(0, 0) | dict(
            rope_theta=theta, sliding_window=4096, norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", use_bias=True,
            initializer_range=std, tie_word_embeddings=tied,
        )  # fmt: skip
        yield row(f"bigcode/starcoder2-{size}", hf, license="bigcode-openrail-m")


def _nvidia() -> Iterator[Row]:
    for name, shape in (
        ("Minitron-4B-Base", (3072, 32, 9216, 24, 8)),
        ("Minitron-8B-Base", (4096, 32, 16384, 48, 8)),
    ):
        hf = size_fields("nemotron", *shape, 256000, 4096) | token_ids(2, 3) | dict(
            head_dim=128, partial_rotary_factor=0.5, rope_theta=1e4, norm_eps=1e-5, hidden_act="relu2"
        )  # fmt: skip
        yield row(f"nvidia/{name}", hf, license="other")


def _ibm() -> Iterator[Row]:
    def granite(
        model_type: str, *shape: int, theta: float, attention: float, logits: float, **more: Any
    ) -> dict[str, Any]:
        return size_fields(model_type, *shape) | token_ids(0, 0, 0) | dict(
            rope_theta=theta, rms_norm_eps=1e-5, tie_word_embeddings=True, embedding_multiplier=12.0,
            residual_multiplier=0.22, attention_multiplier=attention, logits_scaling=logits,
        ) | more  # fmt: skip

    small, large = (2048, 40, 8192, 32, 8), (4096, 40, 12800, 32, 8)
    of_small, of_large = dict(attention=1 / 64, logits=8.0), dict(attention=1 / 128, logits=16.0)
    for kind, is_chat in parse_versions("base instruct*"):
        facts = dict(license="apache-2.0", **_chat(is_chat, "granite"))
        hf = granite("granite", *small, 49155, 4096, theta=1e4, **of_small)
        yield row(f"ibm-granite/granite-3.0-2b-{kind}", hf, **facts)
        hf = granite("granite", *large, 49155, 4096, theta=1e4, **of_large)
        yield row(f"ibm-granite/granite-3.0-8b-{kind}", hf, **facts)
        hf = granite(
            "granitemoe", 1536, 32, 512, 24, 8, 49155, 4096, theta=1e4, attention=1 / 64, logits=6.0,
            num_local_experts=40, num_experts_per_tok=8,
        )  # fmt: skip
        yield row(f"ibm-granite/granite-3.0-3b-a800m-{kind}", hf, **facts)
    for version, vocab, style in (("3.1", 49155, None), ("3.2", 49155, None), ("3.3", 49159, "granite-3.3")):
        hf = granite("granite", *large, vocab, 131072, theta=1e7, **of_large)
        yield row(f"ibm-granite/granite-{version}-8b-instruct", hf, license="apache-2.0", chat=True, style=style)


def _lg() -> Iterator[Row]:
    shared = token_ids(1, 361, 0) | dict(rms_norm_eps=1e-5, rope_theta=1e6, rope_scaling=llama3_scaling(16.0))
    facts = dict(license="exaone", chat=True, style="exaone4")
    hf = size_fields("exaone4", 2048, 30, 4096, 32, 8, 102400, 65536) | shared | dict(
        head_dim=64, tie_word_embeddings=True, sliding_window=None, layer_types=layer_pattern(30, "full")
    )  # fmt: skip
    yield row("LGAI-EXAONE/EXAONE-4.0-1.2B", hf, **facts)
    hf = size_fields("exaone4", 5120, 64, 27392, 40, 8, 102400, 131072) | shared | dict(
        head_dim=128, sliding_window=4096, layer_types=layer_pattern(64, *["sliding"] * 3, "full")
    )  # fmt: skip
    yield row("LGAI-EXAONE/EXAONE-4.0-32B", hf, **facts)


def _baidu() -> Iterator[Row]:
    shared = token_ids(1, 2, 0) | dict(rms_norm_eps=1e-5, rope_theta=5e5, use_bias=False, tie_word_embeddings=True)
    small = size_fields("ernie4_5", 1024, 18, 3072, 16, 2, 103424, 131072) | shared | dict(head_dim=128)
    moe = size_fields("ernie4_5_moe", 2560, 28, 12288, 20, 4, 103424, 131072) | shared | dict(
        moe_intermediate_size=1536, moe_num_experts=64, moe_k=6, moe_num_shared_experts=2, moe_layer_start_index=1,
        moe_layer_interval=1,
    )  # fmt: skip
    for size, hf in (("0.3B", small), ("21B-A3B", moe)):
        yield row(f"baidu/ERNIE-4.5-{size}-Base-PT", hf, license="apache-2.0")
        yield row(f"baidu/ERNIE-4.5-{size}-PT", hf, license="apache-2.0", chat=True, style="ernie4.5")


def _bytedance() -> Iterator[Row]:
    hf = size_fields("seed_oss", 5120, 64, 27648, 80, 8, 155136, 524288) | token_ids(0, 2, 1)
    hf |= dict(head_dim=128, attention_bias=True, attention_out_bias=False, rms_norm_eps=1e-6, rope_theta=1e7)
    yield row("ByteDance-Seed/Seed-OSS-36B-Base", hf, license="apache-2.0")
    yield row("ByteDance-Seed/Seed-OSS-36B-Instruct", hf, license="apache-2.0", chat=True, style="seed-oss")


def _tencent() -> Iterator[Row]:
    scaling = dict(type="dynamic", alpha=1000.0, factor=1.0)
    hf = size_fields("hunyuan_v1_dense", 4096, 32, 14336, 32, 8, 128167, 262144) | token_ids(127958, 127960, 127961)
    hf |= dict(head_dim=128, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=scaling, tie_word_embeddings=True)
    yield row("tencent/Hunyuan-7B-Instruct", hf, license="other", chat=True, style="hunyuan")


def _swiss() -> Iterator[Row]:
    for size, shape in (("8B", (4096, 32, 21504, 32, 8)), ("70B", (8192, 80, 43008, 64, 8))):
        hf = size_fields("apertus", *shape, 131072, 65536) | token_ids(1, 2, 3)
        hf |= dict(hidden_act="xielu", rms_norm_eps=1e-5, rope_theta=12e6, rope_scaling=llama3_scaling(8.0))
        yield row(f"swiss-ai/Apertus-{size}-2509", hf, license="apache-2.0")
        hf = hf | token_ids(1, 68, 3)
        yield row(f"swiss-ai/Apertus-{size}-Instruct-2509", hf, license="apache-2.0", chat=True, style="apertus")


def _minimax() -> Iterator[Row]:
    hf = size_fields("minimax_m2", 3072, 62, 1536, 48, 8, 200064, 196608) | dict(
        head_dim=128, num_local_experts=256, num_experts_per_tok=8, rotary_dim=64, rms_norm_eps=1e-6, rope_theta=5e6
    )  # fmt: skip
    yield row("MiniMaxAI/MiniMax-M2", hf, license="mit", chat=True, style="minimax-m2")


def _liquid() -> Iterator[Row]:
    facts = dict(license="lfm1.0", chat=True, style="lfm2")
    shared = token_ids(1, 7, 0) | dict(conv_L_cache=3, norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=True)
    for size, shape in (
        ("350M", (1024, 16, 6656, 16, 8)),
        ("700M", (1536, 16, 10240, 24, 8)),
        ("1.2B", (2048, 16, 12288, 32, 8)),
    ):
        hf = size_fields("lfm2", *shape, 65536, 128000) | shared
        hf |= dict(block_auto_adjust_ff_dim=True, block_multiple_of=256, full_attn_idxs=[2, 5, 8, 10, 12, 14])
        yield row(f"LiquidAI/LFM2-{size}", hf, **facts)
    hf = size_fields("lfm2", 2048, 30, 10752, 32, 8, 65536, 128000) | shared
    hf |= dict(block_auto_adjust_ff_dim=False, full_attn_idxs=[2, 5, 9, 13, 17, 21, 24, 27])
    yield row("LiquidAI/LFM2-2.6B", hf, **facts)

    def moe(n_layer: int, width: int, attending: list[int], **experts: int) -> dict[str, Any]:
        types = ["full_attention" if i in attending else "conv" for i in range(n_layer)]
        return size_fields("lfm2_moe", 2048, n_layer, width, 32, 8, 65536, 128000) | shared | experts | dict(
            layer_types=types, num_dense_layers=2, num_experts_per_tok=4, use_expert_bias=True, norm_topk_prob=True,
            routed_scaling_factor=1.0,
        )  # fmt: skip

    hf = moe(24, 7168, [2, 6, 10, 14, 18, 21], num_experts=32, moe_intermediate_size=1792)
    yield row("LiquidAI/LFM2-8B-A1B", hf, **facts)
    # Unverified: the width of the dense layers, and which ten layers attend.
    hf = moe(40, 11776, list(range(2, 40, 4)), num_experts=64, moe_intermediate_size=1536)
    yield row("LiquidAI/LFM2-24B-A2B", hf, **facts)


def _arcee() -> Iterator[Row]:
    """Fields as others' tests quote the published files, which hold no ids of tokens. They give the published numbers
    of weights, Nano's to the last one. Unverified: Large's context, the prompt style, licenses."""
    shared = dict(
        head_dim=128, num_shared_experts=1, route_scale=2.826, mup_enabled=True, rms_norm_eps=1e-5, rope_theta=1e4,
        global_attn_every_n_layers=4, score_func="sigmoid", route_norm=True,
    )  # fmt: skip
    few = dict(num_experts=128, num_experts_per_tok=8, num_dense_layers=2, sliding_window=2048)
    many = dict(num_experts=256, num_experts_per_tok=4, num_dense_layers=6, sliding_window=4096)
    nano = size_fields("afmoe", 1024, 56, 3072, 8, 2, 200192, 131072) | few | dict(moe_intermediate_size=256)
    mini = size_fields("afmoe", 2048, 32, 6144, 32, 4, 200192, 131072) | few | dict(moe_intermediate_size=1024)
    large = size_fields("afmoe", 3072, 60, 12288, 48, 8, 200192, 262144) | many | dict(moe_intermediate_size=3072)
    for size, hf, chat in (("Nano", nano, "Nano-Preview"), ("Mini", mini, "Mini"), ("Large", large, "Large-Preview")):
        yield row(f"arcee-ai/Trinity-{size}-Base", hf | shared, license="apache-2.0")
        yield row(f"arcee-ai/Trinity-{chat}", hf | shared, license="apache-2.0", chat=True, style="chatml")


def _of_2026() -> Iterator[Row]:
    """Sizes are the defaults of transformers' config classes, which name these checkpoints, and give the published
    numbers of weights. Unverified, from memory: rope's theta and scaling, ids of tokens, licenses."""
    ids = token_ids(1, 361, 0)
    hf = size_fields("exaone", 4096, 32, 14336, 32, 8, 102400, 4096) | ids | dict(rms_norm_eps=1e-5, rope_theta=5e5)
    yield row("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct", hf, license="exaone", chat=True)

    experts = dict(num_experts_per_tok=6, moe_intermediate_size=1024, n_routed_experts=128, n_shared_experts=1)
    hf = size_fields("sarvam_moe", 4096, 19, 8192, 64, 4, 262144, 131072) | experts | token_ids(None, 1, 0) | dict(
        head_dim=64, first_k_dense_replace=1, routed_scaling_factor=2.5, use_qk_norm=True, rope_theta=8e6,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    yield row("sarvamai/sarvam-30b", hf, license="apache-2.0", chat=True)

    hf = size_fields("hy_v3", 4096, 80, 13312, 64, 8, 120832, 131072) | dict(
        head_dim=128, num_experts=192, num_experts_per_tok=8, num_shared_experts=1, moe_intermediate_size=1536,
        router_scaling_factor=2.826, rms_norm_eps=1e-5, rope_theta=11158840.0,
    )  # fmt: skip
    yield row("tencent/Hy3-preview", hf, license="other", chat=True)

    latent = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=1536)
    experts = dict(num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1, routed_scaling_factor=2.5)
    grouped = latent | experts | dict(n_group=8, topk_group=4, rms_norm_eps=1e-6)
    hf = size_fields("axk1", 7168, 61, 18432, 64, 64, 163840, 32768) | grouped | token_ids(163691, 163691)
    hf |= dict(n_routed_experts=192, first_k_dense_replace=1, rope_theta=1e4)
    yield row("skt/A.X-K1", hf, license="apache-2.0", chat=True)

    scaling: dict[str, Any] = dict(type="yarn", factor=40.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0)
    scaling |= dict(original_max_position_embeddings=4096, mscale_all_dim=1.0)
    hf = size_fields("deepseek_v32", 7168, 61, 18432, 128, 128, 129280, 163840) | grouped | token_ids(0, 1) | dict(
        n_routed_experts=256, first_k_dense_replace=3, rope_theta=1e4, rope_scaling=scaling, index_n_heads=64,
        index_head_dim=128, index_topk=2048,
    )  # fmt: skip
    yield row("deepseek-ai/DeepSeek-V3.2-Exp", hf, license="mit", chat=True)
    yield row("deepseek-ai/DeepSeek-V3.2", hf, license="mit", chat=True)

    wide = latent | dict(q_lora_rank=2048, qk_nope_head_dim=192, v_head_dim=256)
    hf = size_fields("glm_moe_dsa", 6144, 78, 12288, 64, 64, 154880, 202752) | wide | experts | token_ids(None, 154820)
    hf |= dict(
        n_routed_experts=256, first_k_dense_replace=3, rms_norm_eps=1e-5, rope_theta=1e6, index_n_heads=32,
        index_head_dim=128, index_topk=2048,
    )  # fmt: skip
    yield row("zai-org/GLM-5", hf, license="mit", chat=True)


def _chat(is_chat: bool, style: str) -> dict[str, Any]:
    return dict(chat=True, style=style) if is_chat else {}
