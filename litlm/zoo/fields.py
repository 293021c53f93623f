"""What the tables of models share: their rows, and the fields that nearly every `config.json` has."""

from __future__ import annotations

from typing import Any

# (hub id, fields of its config.json, further fields of ModelInfo)
Row = tuple[str, dict[str, Any], dict[str, Any]]


def row(hub_id: str, hf: dict[str, Any], **facts: Any) -> Row:
    """A row of a table."""
    return hub_id, hf, facts


def size_fields(
    model_type: str, n_embd: int, n_layer: int, mlp: int, n_head: int, n_kv_head: int, vocab: int, context: int
) -> dict[str, Any]:
    """The sizes, under the names that most families use."""
    return dict(
        model_type=model_type, vocab_size=vocab, hidden_size=n_embd, num_hidden_layers=n_layer, intermediate_size=mlp,
        num_attention_heads=n_head, num_key_value_heads=n_kv_head, max_position_embeddings=context,
        torch_dtype="bfloat16", tie_word_embeddings=False,
    )  # fmt: skip


def token_ids(bos: int | None, eos: int | list[int] | None, pad: int | None = None) -> dict[str, Any]:
    """The ids of special tokens."""
    ids: dict[str, Any] = dict(bos_token_id=bos, eos_token_id=eos)
    return ids if pad is None else ids | dict(pad_token_id=pad)


def llama3_scaling(factor: float, high_freq_factor: float = 4.0) -> dict[str, Any]:
    """Llama 3.1's scaling of rope from 8192 tokens on."""
    return dict(
        rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=high_freq_factor,
        original_max_position_embeddings=8192,
    )  # fmt: skip


def layer_pattern(n_layer: int, *types: str) -> list[str]:
    """`layer_types`: the types (`sliding`, `full`), repeated until each layer has one."""
    return [f"{types[i % len(types)]}_attention" for i in range(n_layer)]


def parse_versions(names: str) -> list[tuple[str, bool]]:
    """Names in one text, those of chat models with a star, as (name, is a chat model)."""
    return [(name.rstrip("*"), name.endswith("*")) for name in names.split()]
