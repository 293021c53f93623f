"""Config files of EXAONE 3 and Sarvam as their authors wrote them: what transformers makes of these."""

from __future__ import annotations

from typing import Any

import pytest

from litlm.config import Config

_YARN = dict(
    type="deepseek_yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=1.0,
    mscale_all_dim=1.0,
)  # fmt: skip
AUTHORS: dict[str, dict[str, Any]] = {
    "exaone": dict(
        num_layers=3, layer_norm_epsilon=1e-3, activation_function="gelu", embed_dropout=0.0, num_attention_heads=4,
        hidden_size=48, intermediate_size=56, vocab_size=61, rope_theta=1000.0, head_dim=12, bos_token_id=1,
        num_key_value_heads=2, eos_token_id=5, pad_token_id=0,
    ),
    "sarvam_moe": dict(
        num_hidden_layers=3, num_experts=6, num_shared_experts=2, use_qkv_bias=True, num_attention_heads=4, head_dim=12,
        hidden_size=48, intermediate_size=56, vocab_size=61, num_key_value_heads=2, eos_token_id=5,
    ),
    "sarvam_mla": dict(
        num_hidden_layers=3, num_experts=8, num_shared_experts=2, q_head_dim=192, head_dim=576, rope_scaling=_YARN,
        rope_theta=10000.0, num_attention_heads=4, hidden_size=48, intermediate_size=56, vocab_size=61,
        max_position_embeddings=131072,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", AUTHORS)
def test_old_names(family: str) -> None:
    from transformers import AutoConfig

    old = AUTHORS[family]
    config = Config.from_hf(old | dict(model_type=family))
    theirs = AutoConfig.for_model(family, **old).to_dict()
    assert Config.from_hf(theirs | dict(model_type=family)) == config
    assert Config.from_hf(config.to_hf()) == config


def test_two_names_that_disagree() -> None:
    fields = AUTHORS["exaone"] | dict(model_type="exaone", num_hidden_layers=4)
    with pytest.raises(ValueError, match="num_hidden_layers=4 is also stated as 3, under an older name"):
        Config.from_hf(fields)
