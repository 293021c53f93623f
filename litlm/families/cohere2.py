"""Command R7B and Command A: Command R with three of four layers sliding, and rope in these alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families import cohere
from litlm.families.base import Family, HFFields, hf_sliding
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES

if TYPE_CHECKING:
    from litlm.config import Config

# Stated in the files and not read by transformers.
_FIXED = dict(
    order_of_interleaved_layers="local_attn_first",
    position_embedding_type="rope_gptj",
    rotary_pct=1.0,
    use_gated_activation=True,
    use_parallel_block=True,
    use_qk_norm=False,
)

# Newer files have the pattern with an underscore beside layer_types.
_UNUSED = """
    _sliding_window_pattern cache_implementation layer_switch use_embedding_sharing use_parallel_embedding
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    for key, value in _FIXED.items():
        hf.expect(key, value, value)
    hf.skip(_UNUSED)
    values = cohere.cohere_fields(hf, head_dim=None, rope=hf.rope(interleaved=True))
    head_dim = values["n_embd"] // max(values["n_head"], 1)
    hf.expect("head_dim", head_dim, head_dim)
    pattern = hf.take("sliding_window_pattern", 4)
    layers = hf.layer_types(["sliding" if (i + 1) % pattern else "full" for i in range(values["n_layer"])])
    return values | dict(
        sliding_window=hf.take("sliding_window", 4096, null=None),
        layer_types=layers,
        rope_layers=tuple(layer == "sliding" for layer in layers),
    )


def to_hf(config: Config) -> dict[str, Any]:
    fields = cohere.to_hf(config)
    del fields["use_qk_norm"]
    return fields | hf_sliding(config)


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    return gguf.common("cohere2", eps="layer_norm_eps", head_dim=None) | dict(
        logit_scale=gguf.get("logit_scale"),
        sliding_window=gguf.get("attention.sliding_window"),
        layer_types=gguf.layer_types(4),
    )


FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=LLAMA_RULES,
    gguf=GGUFSpec(arch="cohere2", from_gguf=from_gguf),
)
