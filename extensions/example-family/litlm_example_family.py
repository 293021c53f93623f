"""An example: Llama under other names, as in checkpoints that predate Hugging Face's.

`dim`, `n_layers`, ... instead of `hidden_size`, `num_hidden_layers`, ...; q, k and v are one tensor, and so are gate
and up. Once this package is installed, `litlm` reads such directories everywhere: the entry point in pyproject.toml is
all that makes it known.
"""

from __future__ import annotations

from typing import Any

from litlm.config import Config, NormConfig
from litlm.families import Family, HFFields, Rule, rename
from litlm.families.base import hf_common, hf_rope
from litlm.families.weights import fused_gate_up, fused_qkv

# litlm's field -> the name it has here.
NAMES = {
    "n_layer": "n_layers",
    "n_embd": "dim",
    "n_head": "n_heads",
    "intermediate_size": "ffn_dim",
    "max_seq_len": "max_seq_len",
}


def from_hf(hf: HFFields) -> dict[str, Any]:
    return hf.common(NAMES) | dict(
        n_kv_head=hf.take("n_kv_heads", hf.data.get("n_heads")),
        norm=NormConfig(eps=float(hf.take("norm_eps", 1e-5))),
        rope=hf.rope(),
    )


def to_hf(config: Config) -> dict[str, Any]:
    own = dict(n_kv_heads=config.n_kv_head, norm_eps=config.norm.eps)
    return hf_common(config, NAMES) | hf_rope(config.rope) | own


FAMILY = Family(
    model_type="example",
    architecture="ExampleForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("tok_embeddings.weight", "embed.weight"),
        rename("layers.{i}.attention_norm.weight", "layers.{i}.attn_norm.weight"),
        Rule(
            "layers.{i}.attention.wqkv.weight",
            tuple(f"layers.{{i}}.attn.{x}_proj.weight" for x in "qkv"),
            **fused_qkv(),
        ),
        rename("layers.{i}.attention.wo.weight", "layers.{i}.attn.o_proj.weight"),
        rename("layers.{i}.ffn_norm.weight", "layers.{i}.mlp_norm.weight"),
        Rule(
            "layers.{i}.feed_forward.w13.weight",
            ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight"),
            **fused_gate_up(),
        ),
        rename("layers.{i}.feed_forward.w2.weight", "layers.{i}.mlp.down_proj.weight"),
        rename("norm.weight", "norm.weight"),
        rename("output.weight", "lm_head.weight"),
    ),
)
