"""GPT-NeoX (Pythia, RedPajama-INCITE): LayerNorm, a parallel block, partial rope, plain MLP, QKV fused in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import QKV, Rule, qkv_by_group, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    bias = hf.take("attention_bias", True)
    rope = hf.rope(theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25)
    # Files of transformers 4.4x repeat both under the names that other families use.
    hf.expect("rope_theta", rope.theta, rope.theta)
    hf.expect("partial_rotary_factor", rope.fraction, rope.fraction)
    return hf.common(bos_token_id=0, eos_token_id=2) | dict(
        block="parallel" if hf.take("use_parallel_residual", True) else "pre",
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_eps", 1e-5))),
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=hf.activation("hidden_act", "gelu"), bias=True),
        rope=rope,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    rope = hf_rope(config.rope, fraction=True)
    theta = rope.pop("rope_theta")
    return (
        hf_common(config)
        | rope
        | dict(
            rotary_emb_base=theta,
            rotary_pct=config.rope.fraction,
            layer_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            use_parallel_residual=config.block == "parallel",
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common(
        "gpt_neox", eps="layer_norm_eps", kv_heads=None, head_dim=None, theta="rotary_emb_base", fraction="rotary_pct"
    )
    return fields | dict(
        use_parallel_residual=gguf.get("use_parallel_residual", True), attention_bias=gguf.has("attn_qkv.bias")
    )


def _by_head(tensor: Any, config: Config) -> Any:
    """(3 H D, ...) with all of q, then k, then v, as llama.cpp stores it, to Hugging Face's order by head."""
    shape = tensor.shape
    return tensor.reshape(3, config.n_head, config.head_dim, *shape[1:]).swapaxes(0, 1).reshape(shape)


_LAYER = "gpt_neox.layers.{i}."
_QKV = _LAYER + "attention.query_key_value.{p}"

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("gpt_neox.embed_in.weight", "embed.weight"),
        rename(_LAYER + "input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
        Rule(_QKV, QKV, **qkv_by_group()),
        rename(_LAYER + "attention.dense.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "mlp.dense_h_to_4h.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.dense_4h_to_h.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("gpt_neox.final_layer_norm.{p}", "norm.{p}"),
        rename("embed_out.weight", "lm_head.weight"),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$", r"\.attention\.(bias|masked_bias)$"),
    gguf=GGUFSpec(arch="gptneox", from_gguf=from_gguf, restore={_QKV: _by_head}),
)
