"""StarCoder 2: grouped-query attention and rope with GPT-2's LayerNorm, biases and plain MLP; all layers may slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import llama_rules_without, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("mlp_type", "default", "default")
    hf.expect("norm_type", "layer_norm", "layer_norm")
    hf.expect("scale_attn_weights", True, True)
    # Dropout, and the precision of a softmax that is fp32 here anyway.
    hf.skip("residual_dropout embedding_dropout attention_softmax_in_fp32 scale_attention_softmax_in_fp32")
    hf.skip("activation_function layer_norm_epsilon")  # StarCoder 1's, unused
    bias, window = hf.take("use_bias", True), hf.take("sliding_window", None)
    norm = NormConfig(kind="layer", eps=float(hf.take("norm_epsilon", 1e-5)))
    sizes: dict[str, Any] = dict(intermediate_size=12288, max_seq_len=4096, init_std=0.018042)
    ids: dict[str, Any] = dict(tie_embeddings=True, bos_token_id=50256, eos_token_id=50256)
    values = llama_fields(
        hf, n_kv_head=2, head_dim=None, activation="gelu_pytorch_tanh", attention_bias=None, norm=norm, **sizes, **ids
    )
    return values | dict(
        sliding_window=window,
        layer_types=("full" if window is None else "sliding",) * values["n_layer"],
        attention=AttentionConfig(bias=bias, out_bias=bias),
        mlp=MLPConfig(kind="plain", activation=values["mlp"].activation, bias=bias),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="head_dim rms_norm_eps attention_bias mlp_bias") | dict(
        sliding_window=config.sliding_window, norm_epsilon=config.norm.eps, use_bias=config.attention.bias
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("starcoder2", eps="norm_epsilon", head_dim=None) | dict(use_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *llama_rules_without(".mlp."),
        rename("model.layers.{i}.mlp.c_fc.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename("model.layers.{i}.mlp.c_proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="starcoder2", from_gguf=from_gguf),
)
