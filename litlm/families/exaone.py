"""EXAONE 3.0 and 3.5: Llama with GPT-2's names of tensors. transformers runs it as a Llama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.gguf import GGUFFields, GGUFSpec
from litlm.families.llama import llama_fields, llama_from_gguf, llama_to_hf
from litlm.families.weights import LLAMA_RULES, rename

if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    hf.accept_old_names(
        num_layers="num_hidden_layers", layer_norm_epsilon="rms_norm_eps", activation_function="hidden_act"
    )
    hf.skip("embed_dropout")
    ids: dict[str, Any] = dict(bos_token_id=1, eos_token_id=361, pad_token_id=0)
    rope = hf.rope(theta=500000.0)
    return llama_fields(hf, n_kv_head=8, eps=1e-5, mlp_bias=False, rope=rope, max_seq_len=4096, **ids)


def to_hf(config: Config) -> dict[str, Any]:
    fields = llama_to_hf(config)  # and the names that the authors' own code and llama.cpp read
    old = dict(num_layers="num_hidden_layers", layer_norm_epsilon="rms_norm_eps", activation_function="hidden_act")
    return fields | {key: fields[new] for key, new in old.items()}


def from_gguf(gguf: GGUFFields) -> dict[str, Any]:
    gguf.get("attention.layer_norm_epsilon")  # a copy of the one for RMS norms
    return llama_from_gguf(gguf, "exaone")


_LAYER, _OURS = "transformer.h.{i}.", "layers.{i}."

FAMILY = Family(
    model_type="exaone",
    architecture="ExaoneForCausalLM",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        rename("transformer.wte.weight", "embed.weight"),
        rename(_LAYER + "ln_1.weight", _OURS + "attn_norm.weight"),
        *(rename(f"{_LAYER}attn.attention.{x}_proj.{{p}}", f"{_OURS}attn.{x}_proj.{{p}}") for x in "qkv"),
        rename(_LAYER + "attn.attention.out_proj.{p}", _OURS + "attn.o_proj.{p}"),
        rename(_LAYER + "ln_2.weight", _OURS + "mlp_norm.weight"),
        rename(_LAYER + "mlp.c_fc_0.{p}", _OURS + "mlp.gate_proj.{p}"),
        rename(_LAYER + "mlp.c_fc_1.{p}", _OURS + "mlp.up_proj.{p}"),
        rename(_LAYER + "mlp.c_proj.{p}", _OURS + "mlp.down_proj.{p}"),
        rename("transformer.ln_f.weight", "norm.weight"),
        rename("lm_head.weight", "lm_head.weight"),
    ),
    modules=LLAMA_RULES,
    ignore=(r"\.rotary\.inv_freq$", r"\.rotary_emb\.inv_freq$"),
    gguf=GGUFSpec(arch="exaone", from_gguf=from_gguf),
)
