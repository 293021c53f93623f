"""MiniCPM3 (4B): latent attention, dense, with MiniCPM's factors on embeddings, residuals and logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.deepseek_v3 import LATENT_RULES, latent_fields, latent_to_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    n_embd, n_layer, n_head = (hf.take(f) for f in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    depth = hf.take("scale_depth", 1.4, null=math.sqrt(n_layer))
    sizes = dict(kv_lora_rank=256, q_lora_rank=768, qk_nope_head_dim=64, qk_rope_head_dim=32)
    defaults: dict[str, Any] = dict(tie_embeddings=True, init_std=0.1, bos_token_id=1, eos_token_id=2)
    values = latent_fields(
        hf,
        **sizes,
        v_head_dim=n_embd // n_head,
        interleaved=False,
        eps=1e-5,
        mlp_bias=False,
        max_seq_len=32768,
        **defaults,
    )
    return values | dict(
        embed_scale=float(hf.take("scale_emb", 12)),
        residual_scale=depth / math.sqrt(n_layer),
        logit_scale=hf.take("dim_model_base", 256, null=n_embd) / n_embd,
    )


def to_hf(config: Config) -> dict[str, Any]:
    depth = config.residual_scale * math.sqrt(config.n_layer)
    rounded = round(depth, 10)  # the number that was in the file, if it was a short one
    return latent_to_hf(config, without="rope_interleave") | dict(
        scale_emb=config.embed_scale,
        scale_depth=rounded if rounded / math.sqrt(config.n_layer) == config.residual_scale else depth,
        dim_model_base=round(config.logit_scale * config.n_embd),
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("minicpm3", latent=True)
    rope_head_dim = gguf.get("rope.dimension_count")
    nope_head_dim = gguf.get("attention.key_length") - rope_head_dim
    rows = gguf.shapes["blk.0.attn_kv_b.weight"][0]
    gguf.get("attention.value_length")
    return fields | dict(
        kv_lora_rank=gguf.get("attention.kv_lora_rank"),
        q_lora_rank=gguf.get("attention.q_lora_rank"),
        qk_nope_head_dim=nope_head_dim,
        qk_rope_head_dim=rope_head_dim,
        v_head_dim=rows // fields["num_attention_heads"] - nope_head_dim,
        attention_bias=gguf.has("attn_kv_a_mqa.bias"),
        mlp_bias=gguf.has("ffn_up.bias"),
    )


FAMILY = Family(
    model_type="minicpm3",
    architecture="MiniCPM3ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *LATENT_RULES),
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="minicpm3", from_gguf=from_gguf),
)
