"""EXAONE 4.0: norms behind attention and MLP and of each head's query and key. The 32B has rope in its sliding layers
alone, three of four; the 1.2B has no window, and rope everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families import olmo2
from litlm.families.base import HF_ACTIVATIONS, HF_LAYER_TYPES, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.gguf import GGUFFields, GGUFSpec

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(bos_token_id=0, eos_token_id=2)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    window = hf.take("sliding_window", 4096, null=None)
    pattern = hf.take("sliding_window_pattern", 4)
    if window is None:
        pattern = 1
    elif not isinstance(pattern, int):  # the 32B's "LLLG", beside layer_types
        if "layer_types" not in hf.data:
            hf.problems.append(f"sliding_window_pattern={pattern!r} needs layer_types beside it, or must be a number")
        pattern = 4
    layers = hf.layer_types(["sliding" if (i + 1) % pattern else "full" for i in range(common["n_layer"])])
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 32, null=0),
        head_dim=hf.take("head_dim", 0),
        sliding_window=window,
        layer_types=layers,
        block="post",
        norm=norm,
        attention=AttentionConfig(qk_norm=QKNormConfig(norm=norm)),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        rope=hf.rope(),
        rope_layers=tuple(window is None or layer == "sliding" for layer in layers),
    )


def to_hf(config: Config) -> dict[str, Any]:
    return (
        hf_common(config)
        | hf_rope(config.rope)
        | hf_head_dim(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            sliding_window=config.sliding_window,
            layer_types=[HF_LAYER_TYPES[t] for t in config.layer_types],
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    window = gguf.get("attention.sliding_window")
    return gguf.common("exaone4") | dict(sliding_window=window, layer_types=gguf.layer_types(4 if window else 1))


FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=olmo2.RULES,
    gguf=GGUFSpec(arch="exaone4", from_gguf=from_gguf),
)
