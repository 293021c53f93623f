"""GPT-Neo (TinyStories): GPT-2 with matrices that are not transposed, unscaled scores, and alternating full and sliding
layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common
from litlm.families.gpt2 import UNUSED
from litlm.families.weights import rename

if TYPE_CHECKING:
    from litlm.config import Config

_NAMES = {"n_layer": "num_layers", "n_head": "num_heads"}
_TYPES = {"global": "full", "local": "sliding"}


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.skip(UNUSED)
    pattern = hf.take("attention_types", [[["global", "local"], 12]])
    layers = [name for names, times in pattern for _ in range(times) for name in names]
    hf.expect("attention_layers", layers, layers)  # the same as a list
    if unknown := sorted(set(layers) - set(_TYPES)):
        hf.problems.append(f"attention_types holds {', '.join(unknown)}; known are {', '.join(_TYPES)}")
    types, window = tuple(_TYPES.get(name, "full") for name in layers), hf.take("window_size", 256)
    return hf.common(_NAMES, intermediate_size=0, tie_embeddings=True, bos_token_id=50256, eos_token_id=50256) | dict(
        sliding_window=window if "sliding" in types else None,
        layer_types=types,
        norm=NormConfig(kind="layer", eps=float(hf.take("layer_norm_epsilon", 1e-5))),
        attention=AttentionConfig(out_bias=True, scale=1.0),
        mlp=MLPConfig(kind="plain", activation=hf.activation("activation_function", "gelu_new"), bias=True),
        rope=None,
        learned_positions=True,
    )


def to_hf(config: Config) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _TYPES.items()}
    layers = [names[kind] for kind in config.layer_types]
    # The shortest pattern that is repeated.
    sizes = (n for n in range(1, len(layers) + 1) if len(layers) % n == 0)
    size = next(n for n in sizes if layers[:n] * (len(layers) // n) == layers)
    inner = config.intermediate_size if config.intermediate_size != 4 * config.n_embd else None
    return hf_common(config, _NAMES) | dict(
        intermediate_size=inner,
        attention_types=[[layers[:size], len(layers) // size]],
        window_size=config.sliding_window or 256,
        layer_norm_epsilon=config.norm.eps,
        activation_function=HF_ACTIVATIONS[config.mlp.activation],
    )


_LAYER = "transformer.h.{i}."

FAMILY = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.wte.weight", "embed.weight"),
        rename("transformer.wpe.weight", "position_embed.weight"),
        rename(_LAYER + "ln_1.{p}", "layers.{i}.attn_norm.{p}"),
        *(rename(_LAYER + f"attn.attention.{x}_proj.{{p}}", f"layers.{{i}}.attn.{x}_proj.{{p}}") for x in "qkv"),
        rename(_LAYER + "attn.attention.out_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
        rename(_LAYER + "ln_2.{p}", "layers.{i}.mlp_norm.{p}"),
        rename(_LAYER + "mlp.c_fc.{p}", "layers.{i}.mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.c_proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
        rename("transformer.ln_f.{p}", "norm.{p}"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    ignore=(r"\.attn\.attention\.(bias|masked_bias)$",),
)
