"""GPT-BigCode (SantaCoder, StarCoder 1): GPT-2 with one KV head, and matrices that are not transposed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.gpt2 import common as gpt2_common
from litlm.families.gpt2 import gguf_fields
from litlm.families.gpt2 import hf_fields as gpt2_fields
from litlm.families.weights import QKV, Rule, qkv_by_group, rename

if TYPE_CHECKING:
    from litlm.config import Config

# The precision of a softmax that is fp32 here anyway, and settings of an old inference runtime.
_UNUSED = """
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner validate_runner_input
    pre_allocate_kv_cache pad_key_length max_batch_size num_key_value_heads
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("add_cross_attention", False, False)
    hf.skip(_UNUSED)
    common = gpt2_common(hf, "gelu_pytorch_tanh", max_seq_len=1024, tie_embeddings=True)
    return common | dict(
        n_kv_head=1 if hf.take("multi_query", True) else common["n_head"],
        attention=AttentionConfig(bias=True, out_bias=True, scale=None if hf.take("scale_attn_weights", True) else 1.0),
        rope=None,
        learned_positions=True,
    )


def to_hf(config: Config) -> dict[str, Any]:
    return gpt2_fields(config) | dict(
        multi_query=config.n_kv_head == 1, scale_attn_weights=config.attention.scale is None
    )


_LAYER = "transformer.h.{i}."


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    rows, width = gguf.shapes["blk.0.attn_qkv.weight"]
    return gguf_fields(gguf, "gpt_bigcode") | dict(multi_query=rows < 3 * width)


FAMILY = Family(
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.wte.weight", "embed.weight"),
        rename("transformer.wpe.weight", "position_embed.weight"),
        rename(_LAYER + "ln_1.{p}", "layers.{i}.attn_norm.{p}"),
        Rule(_LAYER + "attn.c_attn.{p}", QKV, **qkv_by_group()),
        rename(_LAYER + "attn.c_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "ln_2.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "mlp.c_fc.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.c_proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("transformer.ln_f.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    ignore=(r"\.attn\.(bias|masked_bias)$",),
    gguf=GGUFSpec(arch="starcoder", from_gguf=from_gguf),
)
