"""Gemma 2: Gemma with norms before and after attention and MLP, capped scores and logits, every other layer sliding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec, subtract_one
from litlm.families.llama import llama_to_hf
from litlm.families.weights import llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=8192, tie_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    every_other = ["full" if i % 2 else "sliding" for i in range(common["n_layer"])]
    return common | gemma_fields(hf, softcap=hf.take("attn_logit_softcapping", 50.0, null=None)) | dict(
        layer_types=hf.layer_types(every_other),
        rope=hf.rope(),
        embed_scale=common["n_embd"] ** 0.5,
        logit_softcap=hf.take("final_logit_softcapping", 30.0, null=None),
    )  # fmt: skip


def gemma_fields(hf: HFFields, **attention: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 read the same way. attention: more fields of AttentionConfig."""
    bias = hf.take("attention_bias", False)
    head_dim, scalar = hf.take("head_dim", 256), hf.take("query_pre_attn_scalar", 256)
    hf.expect("use_bidirectional_attention", False, False)
    # Older files repeat hidden_activation and sliding_window under other names, which transformers doesn't read.
    hf.skip("hidden_act sliding_window_size cache_implementation")
    return dict(
        n_kv_head=hf.take("num_key_value_heads", 4),
        head_dim=head_dim,
        sliding_window=hf.take("sliding_window", 4096, null=None),
        block="sandwich",
        norm=NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-6)), offset=True),
        attention=AttentionConfig(
            bias=bias, out_bias=bias, scale=None if scalar == head_dim else scalar**-0.5, **attention
        ),
        mlp=MLPConfig(activation=hf.activation("hidden_activation", "gelu_pytorch_tanh")),
    )


def to_hf(config: Config) -> dict[str, Any]:
    scale = config.attention.scale
    fields = llama_to_hf(config, without="hidden_act mlp_bias") | hf_sliding(config)
    return fields | dict(
        hidden_activation=HF_ACTIVATIONS[config.mlp.activation],
        query_pre_attn_scalar=config.head_dim if scale is None else round(scale**-2),
        attn_logit_softcapping=config.attention.softcap,
        final_logit_softcapping=config.logit_softcap,
    )


_LAYER = "model.layers.{i}."
RULES = (
    rename(_LAYER + "post_attention_layernorm.{p}", "layers.{i}.post_attn_norm.{p}"),
    rename(_LAYER + "pre_feedforward_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
    rename(_LAYER + "post_feedforward_layernorm.{p}", "layers.{i}.post_mlp_norm.{p}"),
    *llama_rules_without("post_attention_layernorm"),
)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gemma_from_gguf(gguf, "gemma2", n_layer_27b=46) | dict(
        attn_logit_softcapping=gguf.get("attn_logit_softcapping", 50.0),
        final_logit_softcapping=gguf.get("final_logit_softcapping", 30.0),
        sliding_window=gguf.get("attention.sliding_window", 4096),
        layer_types=gguf.layer_types(2),
    )


def gemma_from_gguf(gguf: GGUFFields, model_type: str, *, n_layer_27b: int, **names: Any) -> dict[str, Any]:
    """n_layer_27b: layers of the 27B model, whose scores are scaled by n_embd / n_head instead of head_dim."""
    fields = gguf.common(model_type, **names)
    per_head = fields["hidden_size"] // fields["num_attention_heads"]
    scalar = per_head if fields["num_hidden_layers"] == n_layer_27b else fields["head_dim"]
    return fields | dict(query_pre_attn_scalar=scalar, attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    gguf=GGUFSpec(arch="gemma2", from_gguf=from_gguf, restore=subtract_one(RULES)),
)
