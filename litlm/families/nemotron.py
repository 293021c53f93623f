"""Nemotron-4 and Minitron: layer norms stored as their difference from 1, plain MLP with squared ReLU, partial rope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, Rule

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias, mlp_bias = hf.take("attention_bias", False), hf.take("mlp_bias", False)
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.5)
    for key in ("rope_percent", "rope_percentage"):  # NeMo's names for the same share
        hf.expect(key, rope.fraction, rope.fraction)
    return hf.common(max_seq_len=4096, init_std=0.0134, bos_token_id=2, eos_token_id=3) | dict(
        n_kv_head=hf.take("num_key_value_heads", 0),
        head_dim=hf.take("head_dim", hf.take("kv_channels", 0)),  # NeMo's name, which the first files had
        norm=NormConfig(kind="layer", eps=float(hf.take("norm_eps", 1e-5)), offset=True),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "relu2"), bias=mlp_bias),
        rope=rope,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    rope = hf_rope(config.rope)
    rope["rope_parameters"]["partial_rotary_factor"] = config.rope.fraction  # 1.0 is not this family's default
    return (
        hf_common(config)
        | rope
        | dict(
            partial_rotary_factor=config.rope.fraction,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            mlp_bias=config.mlp.bias,
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("attention.layer_norm_rms_epsilon")  # the same number again
    return gguf.common("nemotron", eps="norm_eps", fraction="partial_rotary_factor") | dict(
        attention_bias=gguf.has("attn_q.bias"), mlp_bias=gguf.has("ffn_up.bias")
    )


FAMILY = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="nemotron",
        from_gguf=from_gguf,
        rules=tuple(
            Rule(f"{theirs}.weight", (f"{ours}.weight",), split=lambda t, c: [t - 1])
            for theirs, ours in (
                ("blk.{i}.attn_norm", "layers.{i}.attn_norm"),
                ("blk.{i}.ffn_norm", "layers.{i}.mlp_norm"),
                ("output_norm", "norm"),
            )
        ),
    ),
)
