"""Cases of the plain families: Llama, Qwen3, GPT-NeoX."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope


def _llama(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
    )  # fmt: skip
    return Case(f"llama-{name}", "llama", base | hf, seed)


def _qwen3(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=67, hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=128, rms_norm_eps=1e-6,
    )  # fmt: skip
    return Case(f"qwen3-{name}", "qwen3", base | hf, seed)


def _neox(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=59, hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=128, layer_norm_eps=1e-5,
    )  # fmt: skip
    return Case(f"gpt_neox-{name}", "gpt_neox", base | hf, seed)


CASES = [
    _llama("plain", 0),
    _llama("mqa-tied", 1, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True, rms_norm_eps=1e-3),
    _llama("mha-biases", 2, num_key_value_heads=4, attention_bias=True, mlp_bias=True, **rope("default", 500.0)),
    _llama("wide-heads-gelu", 3, head_dim=22, hidden_act="gelu", attention_bias=True),
    _llama("linear", 4, hidden_size=30, num_attention_heads=5, num_key_value_heads=5, **rope("linear", factor=3.7)),
    _llama(
        "llama3", 5, hidden_size=64, mlp_bias=True, hidden_act="gelu_pytorch_tanh",
        **rope("llama3", 333.0, factor=5.5, low_freq_factor=1.3, high_freq_factor=3.1,
                original_max_position_embeddings=37),
    ),
    _llama(
        "yarn", 6, hidden_size=72, tie_word_embeddings=True, max_position_embeddings=160,
        **rope("yarn", 777.0, factor=5.0, original_max_position_embeddings=32, beta_fast=3.0, beta_slow=0.7),
    ),
    _llama(
        "yarn-untruncated", 7, hidden_act="relu", head_dim=26,
        **rope("yarn", 99.0, factor=2.5, original_max_position_embeddings=51, beta_fast=5.0, beta_slow=0.5,
                truncate=False, attention_factor=0.8),
    ),
    _qwen3("plain", 10),
    _qwen3("mqa-tied-biases", 11, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True),
    _qwen3(
        "sliding-pattern", 12, num_hidden_layers=5, use_sliding_window=True, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    ),
    _qwen3(
        "sliding-last-layers", 13, num_hidden_layers=4, use_sliding_window=True, sliding_window=3, max_window_layers=1,
        num_key_value_heads=4, head_dim=10,
    ),
    _qwen3("sliding-one", 14, use_sliding_window=True, sliding_window=1, max_window_layers=2, head_dim=8),
    _qwen3(
        "yarn-mscale", 15, max_position_embeddings=256, head_dim=20, hidden_act="gelu_new",
        **rope("yarn", 1234.5, factor=4.0, original_max_position_embeddings=64, mscale=0.8, mscale_all_dim=0.3),
    ),
    _qwen3("linear-sliding", 16, use_sliding_window=True, sliding_window=7, max_window_layers=0,
           **rope("linear", 1e6, factor=2.0)),
    _neox("parallel", 20),
    _neox("sequential-full-rope", 21, use_parallel_residual=False, rotary_pct=1.0, hidden_act="relu"),
    _neox("odd-share", 22, hidden_size=60, rotary_pct=0.3, rotary_emb_base=321, hidden_act="gelu_fast",
          intermediate_size=49),
    _neox("no-attention-bias", 23, attention_bias=False, rotary_pct=0.5, tie_word_embeddings=True, hidden_act="silu"),
    _neox("one-head", 24, num_attention_heads=1, hidden_size=22, rotary_pct=0.19, num_hidden_layers=2),
    _neox("linear", 25, use_parallel_residual=False,
          **rope("linear", 10000.0, factor=2.2, partial_rotary_factor=0.25)),
    _neox("yarn", 26, hidden_size=96,
          **rope("yarn", 100.0, factor=3.0, original_max_position_embeddings=40, beta_fast=4.0, beta_slow=0.3,
                  partial_rotary_factor=0.75)),
]  # fmt: skip
