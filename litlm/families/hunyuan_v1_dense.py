"""Hunyuan 0.5B to 7B and Hunyuan-MT: Llama with an RMSNorm on each head's query and key, after rope.

Files state a "dynamic" rope with an `alpha`, which raises theta once, whatever the length. litlm keeps the result.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from litlm.config.layers import NormConfig, QKNormConfig, RopeConfig
from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_to_hf
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config

# Of Tencent's own code: other model types, images, and training. transformers uses none of them.
_UNUSED = """
    add_classification_head anyres_pooling_size anyres_vit_max_image_size anyres_vit_two_views attention_head_dim
    cla_share_factor class_num dense_list enable_lm_head_fp32 eod_token_id eot_token_id group_limited_greedy
    hybrid_override_pattern im_end_id im_newline_id im_start_id image_token_id is_causal kv_lora_rank mask_init_id
    moe_drop_tokens moe_intermediate_size moe_layer_num_skipped moe_random_routing_dropped_token n_group norm_topk_prob
    norm_type num_media_embeds num_shared_expert org_vocab_size pad_id pool_type q_lora_rank qk_nope_head_dim
    qk_rope_head_dim routed_scaling_factor skip_cls_token text_end_id text_start_id topk_group use_mixed_mlp_moe
    use_rotary_pos_emb v_head_dim video_end_id video_start_id vit_add_patchemb_bias vit_input_resolution
    vit_mapping_type vit_norm_type vit_patch vit_path vit_remove_prenorm vit_token vit_type vit_used_rms_norm
    xdrope_section capacity_factor mamba_ssm_ngroups mamba_d_state mamba_d_conv mamba_expand mamba_head_dim
"""


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.expect("num_experts", 1, 1)
    return hunyuan_fields(hf)


def hunyuan_fields(hf: HFFields) -> dict[str, Any]:
    """What all Hunyuan families read the same way."""
    hf.skip(_UNUSED)
    hf.expect("use_qk_norm", True, True)
    norm = NormConfig(eps=float(hf.take("rms_norm_eps", 1e-5)))
    values = llama_fields(hf, norm=norm, rope=_rope(hf), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    qk_norm = QKNormConfig(norm=norm, after_rope=True)
    return values | dict(attention=dataclasses.replace(values["attention"], qk_norm=qk_norm))


def _rope(hf: HFFields) -> RopeConfig:
    scaling = hf.data.get("rope_scaling") or hf.data.get("rope_parameters") or {}
    rope_type, alpha = scaling.get("rope_type") or scaling.get("type"), scaling.get("alpha")
    if rope_type != "dynamic" or not alpha:
        return hf.rope()
    hf.skip("rope_scaling rope_parameters")
    head_dim = hf.take("head_dim", 0) or hf.take("hidden_size") // hf.take("num_attention_heads")
    theta = float(scaling.get("rope_theta") or hf.take("rope_theta", 10000.0))
    return RopeConfig(theta=theta * alpha ** (head_dim / (head_dim - 2)))


def to_hf(config: Config) -> dict[str, Any]:
    return llama_to_hf(config, without="mlp_bias")


RULES = (
    *LLAMA_RULES,
    rename("model.layers.{i}.self_attn.query_layernorm.weight", "layers.{i}.attn.q_norm.weight"),
    rename("model.layers.{i}.self_attn.key_layernorm.weight", "layers.{i}.attn.k_norm.weight"),
)


def from_gguf(gguf: GGUFFields, model_type: str = "hunyuan_v1_dense") -> dict[str, Any]:
    return gguf.common(model_type) | dict(attention_bias=gguf.has("attn_q.bias"))


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=RULES,
    ignore=(r"\.rotary_emb\.inv_freq$",),
    gguf=GGUFSpec(arch="hunyuan-dense", from_gguf=from_gguf),
)
