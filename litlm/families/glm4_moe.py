"""GLM-4.5, 4.6, 4.7 and GLM-4.5-Air: grouped attention with rope on half a head, DeepSeek-V3's experts and router.

The multi-token-prediction layer behind the last one (46 in Air, 92 in the others) is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.config.layers import AttentionConfig, MLPConfig, NormConfig, QKNormConfig
from litlm.families.base import HF_ACTIVATIONS, Family, HFFields, hf_common, hf_head_dim, hf_rope
from litlm.families.deepseek_v3 import MOE_RULES, first_dense, hf_first_dense, moe_to_hf, sigmoid_moe_from_hf
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config

QK_NORM_RULES = (
    rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
)


def from_hf(hf: HFFields) -> dict[str, Any]:
    common = hf.common(max_seq_len=131072)
    norm = NormConfig(kind="rms", eps=float(hf.take("rms_norm_eps", 1e-5)))
    qk_norm = QKNormConfig(norm=norm) if hf.take("use_qk_norm", False) else None
    return common | dict(
        n_kv_head=hf.take("num_key_value_heads", 8),
        head_dim=hf.take("head_dim", 0),
        norm=norm,
        attention=AttentionConfig(bias=hf.take("attention_bias", False), qk_norm=qk_norm),
        mlp=MLPConfig(activation=hf.activation("hidden_act", "silu")),
        moe=sigmoid_moe_from_hf(
            hf, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408, routed_scaling_factor=1.0
        ),
        moe_layers=first_dense(hf, common["n_layer"], 1),
        rope=hf.rope(fraction_key="partial_rotary_factor", fraction=0.5),
    )


def to_hf(config: Config) -> dict[str, Any]:
    assert config.rope is not None
    rope = hf_rope(config.rope)
    rope["rope_parameters"]["partial_rotary_factor"] = config.rope.fraction  # 1 is not the default here
    return (
        hf_common(config)
        | rope
        | moe_to_hf(config.moe)
        | hf_head_dim(config)
        | dict(
            num_key_value_heads=config.n_kv_head,
            rms_norm_eps=config.norm.eps,
            hidden_act=HF_ACTIVATIONS[config.mlp.activation],
            attention_bias=config.attention.bias,
            use_qk_norm=config.attention.qk_norm is not None,
            first_k_dense_replace=hf_first_dense(config),
        )
    )


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    fields = gguf.common("glm4_moe", fraction="partial_rotary_factor") | gguf.sigmoid_experts()
    return fields | dict(
        first_k_dense_replace=gguf.get("leading_dense_block_count", 0),
        use_qk_norm=gguf.has("attn_q_norm.weight"),
        attention_bias=gguf.has("attn_q.bias"),
    )


FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(*LLAMA_RULES, *QK_NORM_RULES, *MOE_RULES),
    ignore=(r"^model\.layers\.(46|92)\.",),
    gguf=GGUFSpec(arch="glm4moe", from_gguf=from_gguf),
)
