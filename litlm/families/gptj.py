"""GPT-J: a parallel block with one norm, interleaved rope on `rotary_dim` of each head, a bias in the output head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, RopeConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import rotary_fraction
from litlm.families.gpt2 import common as gpt2_common
from litlm.families.gpt2 import hf_fields as gpt2_fields
from litlm.families.weights import Rule, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("rotary", True, True)
    hf.expect("scale_attn_weights", True, True)
    common = gpt2_common(hf)
    rotary_dim = hf.take("rotary_dim", 64, null=0)
    head_dim = common["n_embd"] // max(common["n_head"], 1)
    if not 0 < rotary_dim <= head_dim:
        hf.problems.append(f"rotary_dim={rotary_dim or None} must lie between 1 and the head size, {head_dim}")
        rotary_dim = head_dim = max(head_dim, 1)
    return common | dict(
        block="parallel",
        shared_norm=True,
        attention=AttentionConfig(),
        rope=RopeConfig(fraction=rotary_fraction(rotary_dim, head_dim), interleaved=True),
        head_bias=True,
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    return gpt2_fields(config) | dict(rotary_dim=int(config.head_dim * config.rope.fraction))


_LAYER = "transformer.h.{i}."

FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.wte.weight", "embed.weight"),
        rename(_LAYER + "ln_1.{p}", "layers.{i}.attn_norm.{p}"),
        *(rename(_LAYER + f"attn.{x}_proj.{{p}}", f"layers.{{i}}.attn.{x}_proj.{{p}}") for x in "qkv"),
        rename(_LAYER + "attn.out_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "mlp.fc_in.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.fc_out.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("transformer.ln_f.{p}", "norm.{p}"),
        Rule("lm_head.bias", ("head_bias",), when=lambda config: config.tie_embeddings),
        rename("lm_head.{p}", "lm_head.{p}"),
    ),
    ignore=(r"\.attn\.(bias|masked_bias|embed_positions)$",),
)
