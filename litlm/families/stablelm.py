"""StableLM 3B, Zephyr, 2 1.6B and 12B: Llama with LayerNorm and partial rope; 12B has a parallel block, and norms of
queries and keys with a weight per head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, NormConfig, QKNormConfig
from litlm.families.base import Family, HFFields, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, Rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    eps = float(hf.take("layer_norm_eps", 1e-5))
    parallel = hf.take("use_parallel_residual", False)
    qk_norm = QKNormConfig(norm=NormConfig(kind="layer", eps=eps, bias=False), over="each_head")
    norm = NormConfig(kind="layer", eps=eps)
    rope = hf.rope(fraction_key="partial_rotary_factor", fraction=0.25)
    sizes: dict[str, Any] = dict(intermediate_size=6912, max_seq_len=4096, bos_token_id=0, eos_token_id=0)
    values = llama_fields(hf, n_kv_head=32, head_dim=None, attention_bias=None, norm=norm, rope=rope, **sizes)
    return values | dict(
        block="parallel" if parallel else "pre",
        shared_norm=parallel,
        attention=AttentionConfig(
            bias=hf.take("use_qkv_bias", False), qk_norm=qk_norm if hf.take("qk_layernorm", False) else None
        ),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    fields = llama_to_hf(config, without="head_dim rms_norm_eps attention_bias mlp_bias")
    return (
        fields
        | hf_rope(config.rope, fraction=True)
        | dict(
            partial_rotary_factor=config.rope.fraction,
            layer_norm_eps=config.norm.eps,
            use_qkv_bias=config.attention.bias,
            qk_layernorm=config.attention.qk_norm is not None,
            use_parallel_residual=config.block == "parallel",
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("use_parallel_residual")  # llama.cpp looks at the norms instead; older converters wrote it wrong
    fields = gguf.common("stablelm", eps="layer_norm_eps", head_dim=None, fraction="partial_rotary_factor")
    return fields | dict(
        use_parallel_residual=not gguf.has("ffn_norm.weight"),
        use_qkv_bias=gguf.has("attn_q.bias"),
        qk_layernorm=gguf.has("attn_q_norm.weight"),
    )


FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *LLAMA_RULES,
        *(
            Rule(
                f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{e}}.weight",
                (f"layers.{{i}}.attn.{x}_norm.weight",),
            )
            for x in "qk"
        ),
    ),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(
        arch="stablelm",
        from_gguf=from_gguf,
        rules=tuple(rename(f"blk.{{i}}.attn_{x}_norm.weight", f"layers.{{i}}.attn.{x}_norm.weight") for x in "qk"),
    ),
)
