"""LitGPT's directories, read only: `lit_model.pth` and `model_config.yaml`, with Hugging Face's tokenizer files.

`config_from_litgpt` gives the Config the plainest Hugging Face family that can express it, so that the model can be
written as a Hugging Face directory. The pickle is memory-mapped and read by torch's `weights_only` unpickler, which
runs no code. LitGPT's config can't tie embedding and output head, so they are tied if their values are equal. A
directory that holds the Hugging Face weights too is read as one of Hugging Face's.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from litlm.checkpoint.base import WeightSource
from litlm.config import (
    AttentionConfig,
    Config,
    LinearScaling,
    Llama3Scaling,
    MLPConfig,
    MoEConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
)
from litlm.families import WeightMap
from litlm.families.weights import QKV, Rule, fused_qkv, qkv_by_group, rename
from litlm.io.reading import check_readable, read_json
from litlm.io.yaml import read_yaml

WEIGHTS, CONFIG, STYLE = "lit_model.pth", "model_config.yaml", "prompt_style.yaml"

# All fields of LitGPT's config, with its defaults.
_DEFAULTS: dict[str, Any] = dict(
    name="", hf_config={}, block_size=4096, n_layer=16, n_embd=4096, vocab_size=50254, padding_multiple=512,
    padded_vocab_size=None, norm_class_name="LayerNorm", norm_eps=1e-5, norm_qk=False,
    # Missing in files of early 2025, when OLMo 2's models were the only ones with norm_qk.
    norm_qk_type="olmo2",
    post_attention_norm=False, post_mlp_norm=False, parallel_residual=True, shared_attention_norm=False, n_head=32,
    head_size=None, n_query_groups=None, attn_bias=False, attention_scores_scalar=None, sliding_window_size=None,
    sliding_window_indices=None, attention_logit_softcapping=None, rope_base=10000, rotary_percentage=0.25,
    rope_condense_ratio=1, rope_adjustments=None, rope_interleave=False, intermediate_size=None,
    moe_intermediate_size=None, bias=True, mlp_class_name="GptNeoxMLP", gelu_approximate="none", n_expert=0,
    n_shared_expert=None, n_expert_groups=None, n_topk_groups=None, n_topk_scores_per_group=None,
    n_expert_per_token=0, first_k_dense_replace=None, routed_scaling_factor=1.0, norm_topk_prob=False,
    scale_embeddings=False, lm_head_bias=False, final_logit_softcapping=None, norm_1=True, norm_2=True,
    latent_attention=None, rope_local_base_freq=None, rope_indices=None,
    sliding_window_layer_placing=None,  # until early 2025, instead of the indices: every layer, or every other one
)  # fmt: skip


def is_litgpt(path: Path) -> bool:
    """Whether a directory holds weights in LitGPT's format and none in Hugging Face's."""
    return any(path.glob(f"{WEIGHTS}*")) and not any(path.glob("model*.safetensors*"))


# --- the config ----------------------------------------------------------------------------------------------------

# The Hugging Face families of LitGPT's models, the plainest first.
_FAMILIES = (
    "llama", "mistral", "qwen2", "phi3", "qwen3", "gpt_neox", "stablelm", "phi", "falcon", "olmo", "olmo2", "gemma",
    "gemma2", "gemma3_text",
)  # fmt: skip
_MOE_FAMILIES = ("mixtral", "qwen3_moe")


def config_from_litgpt(data: Mapping[str, Any], **known: Any) -> Config:
    """The content of a `model_config.yaml` as a Config of the plainest family whose format can express it.

    known: fields of Config that the file doesn't state (tie_embeddings, dtype, eos_token_id, ...). Raises ValueError
    for unknown fields, and if no family can express it.
    """
    f = _checked(data)
    values = _values(f) | known
    reasons: list[str] = []
    for family in _MOE_FAMILIES if values["moe"] else _FAMILIES:
        config = Config(family=family, **values)
        try:
            config.to_hf()
        except ValueError as e:
            reasons.append(str(e))
        else:
            return config
    # A format that can't be written with these values at all ("can't follow") stops at its first difference.
    closest = min(reasons, key=lambda reason: ("can't follow" in reason, reason.count("\n- ")))
    raise ValueError(f"no family of litlm's is built like this. The closest one: {closest}")


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    """All of LitGPT's fields. Raises one ValueError for all that are unknown or have no counterpart in litlm."""
    problems = [
        f"{key}={data[key]!r} is not a field of LitGPT's that litlm knows, and it might change what the model computes"
        for key in sorted(set(data) - set(_DEFAULTS))
    ]
    f = _DEFAULTS | dict(data)
    for key in ("block_size", "n_layer", "n_embd", "n_head", "vocab_size", "padding_multiple"):
        if not _is_count(f[key]):
            problems.append(f"{key}={f[key]!r} must be a whole number of at least 1")
    optional = ("padded_vocab_size", "head_size", "n_query_groups", "intermediate_size", "moe_intermediate_size")
    for key in (*optional, "sliding_window_size"):
        if f[key] is not None and not _is_count(f[key]):
            problems.append(f"{key}={f[key]!r} must be a whole number of at least 1, or null")
    for key in ("norm_eps", "rope_base", "rotary_percentage", "rope_condense_ratio"):
        if not _is_number(f[key]):
            problems.append(f"{key}={f[key]!r} must be a number greater than 0")
    softcaps = ("attention_logit_softcapping", "final_logit_softcapping")
    for key in (*softcaps, "attention_scores_scalar", "rope_local_base_freq"):
        if f[key] is not None and not _is_number(f[key]):
            problems.append(f"{key}={f[key]!r} must be a number greater than 0, or null")
    for key, choices in (
        ("norm_class_name", ("RMSNorm", "LayerNorm")),
        ("mlp_class_name", ("LLaMAMLP", "GemmaMLP", "GptNeoxMLP", "LLaMAMoE")),
        ("gelu_approximate", ("none", "tanh")),
        ("norm_qk_type", ("default", "olmo2")),
        ("sliding_window_layer_placing", (None, "all", "interleaved", 1, 2)),
        ("routed_scaling_factor", (1.0,)),
    ):
        if f[key] not in choices:
            problems.append(f"{key}={f[key]!r} is not supported, only {' or '.join(map(repr, choices))}")
    for key in ("latent_attention", "n_expert_groups", "n_shared_expert", "first_k_dense_replace", "rope_interleave"):
        if f[key]:
            problems.append(f"{key}={f[key]!r} is not supported")
    if f["mlp_class_name"] == "LLaMAMoE" and not (_is_count(f["n_expert"]) and _is_count(f["n_expert_per_token"])):
        problems.append("mlp_class_name='LLaMAMoE' needs n_expert and n_expert_per_token of at least 1")
    if _block(f) is None:
        keys = ("norm_1", "norm_2", "post_attention_norm", "post_mlp_norm", "parallel_residual")
        problems.append(
            f"{', '.join(f'{key}={f[key]!r}' for key in keys)} is an arrangement of norms that litlm doesn't have"
        )
    for key in ("sliding_window_indices", "rope_indices"):
        flags = f[key]
        if isinstance(flags, list) and _is_count(f["n_layer"]):
            flags = None if len(flags) >= f["n_layer"] and all(flag in (0, 1) for flag in flags) else flags
        if flags is not None:
            problems.append(f"{key}={flags!r} must hold a 0 or 1 for each of n_layer={f['n_layer']} layers")
    problems = problems or _rope_problems(f)
    if problems:
        raise ValueError("LitGPT's config can't be followed:\n" + "\n".join(f"- {p}" for p in problems))
    return f


def _block(f: Mapping[str, Any]) -> Literal["pre", "post", "sandwich", "parallel"] | None:
    before, after = (f["norm_1"], f["norm_2"]), (f["post_attention_norm"], f["post_mlp_norm"])
    if f["parallel_residual"]:
        return "parallel" if all(before) and not any(after) else None
    if all(before):
        return "sandwich" if all(after) else None if any(after) else "pre"
    return "post" if all(after) and not any(before) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _rope_problems(f: Mapping[str, Any]) -> list[str]:
    given, local = set(f["rope_adjustments"] or {}), f["rope_local_base_freq"]
    if given & {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}:
        return [
            "rope_adjustments: LitGPT's YaRN blends the frequencies the other way round than every other "
            "implementation, so litlm can't compute the same; load the model from its Hugging Face checkpoint"
        ]
    problems = []
    if given not in (set(), {"factor"}, _LLAMA3):
        problems.append(
            f"rope_adjustments={f['rope_adjustments']} is not understood; known are factor alone, or {sorted(_LLAMA3)}"
        )
    if f["rope_condense_ratio"] != 1 and (local is not None or given == _LLAMA3):
        problems.append(
            f"rope_condense_ratio={f['rope_condense_ratio']} can't be combined with rope_local_base_freq or with "
            "Llama 3's rope_adjustments"
        )
    if local is not None and _layer_flags(f, "rope_indices") != _sliding(f):
        problems.append("rope_indices must name the same layers as sliding_window_indices")
    return problems


_LLAMA3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}


def _layer_flags(f: Mapping[str, Any], key: str) -> list[bool]:
    """A list of 0 and 1 per layer as bools; without a list, all true."""
    return [bool(flag) for flag in (f[key] or [1] * f["n_layer"])[: f["n_layer"]]]


def _sliding(f: Mapping[str, Any]) -> list[bool]:
    if f["sliding_window_size"] is None:
        return [False] * f["n_layer"]
    if f["sliding_window_layer_placing"] in ("interleaved", 2):
        return [i % 2 == 0 for i in range(f["n_layer"])]
    return _layer_flags(f, "sliding_window_indices")


def _values(f: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Config, without its family."""
    n_embd, bias, multiple = f["n_embd"], bool(f["bias"]), f["padding_multiple"]
    head_dim = f["head_size"] or n_embd // f["n_head"]
    intermediate_size = f["intermediate_size"] or 4 * n_embd
    name = str(f["name"] or (f["hf_config"] or {}).get("name", ""))
    norm = _norm(f, name)
    qk_norm = QKNormConfig(norm=norm, over="all" if f["norm_qk_type"] == "olmo2" else "head")
    scalar, slides = f["attention_scores_scalar"], _sliding(f)
    softcap, logit_softcap = f["attention_logit_softcapping"], f["final_logit_softcapping"]
    gelu = "gelu_tanh" if f["gelu_approximate"] == "tanh" else "gelu"
    moe = None
    if f["mlp_class_name"] == "LLaMAMoE":
        intermediate_size = f["moe_intermediate_size"] or intermediate_size
        moe = MoEConfig(
            n_expert=f["n_expert"],
            n_expert_per_token=f["n_expert_per_token"],
            intermediate_size=intermediate_size,
            normalize=True,  # in LitGPT whatever norm_topk_prob says
            expert_bias=bias,
        )
    fraction, local = float(f["rotary_percentage"]), f["rope_local_base_freq"]
    return dict(
        name=name,
        vocab_size=f["padded_vocab_size"] or -(-f["vocab_size"] // multiple) * multiple,
        n_layer=f["n_layer"],
        n_embd=n_embd,
        n_head=f["n_head"],
        n_kv_head=f["n_query_groups"] or f["n_head"],
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_seq_len=f["block_size"],
        sliding_window=f["sliding_window_size"] if any(slides) else None,
        layer_types=tuple("sliding" if slide else "full" for slide in slides),
        block=_block(f),
        shared_norm=bool(f["shared_attention_norm"]),
        norm=norm,
        attention=AttentionConfig(
            bias=bias or bool(f["attn_bias"]),
            out_bias=bias,
            qk_norm=qk_norm if f["norm_qk"] else None,
            scale=None if scalar in (None, head_dim) else scalar**-0.5,
            softcap=softcap and float(softcap),
        ),
        mlp=MLPConfig(
            kind="plain" if f["mlp_class_name"] == "GptNeoxMLP" else "gated",
            activation=gelu if f["mlp_class_name"] in ("GptNeoxMLP", "GemmaMLP") else "silu",
            bias=bias,
        ),
        moe=moe,
        rope=RopeConfig(theta=float(f["rope_base"]), fraction=fraction, scaling=_rope_scaling(f)),
        sliding_rope=None if local is None else RopeConfig(theta=float(local), fraction=fraction),
        embed_scale=n_embd**0.5 if f["scale_embeddings"] else 1.0,
        logit_softcap=logit_softcap and float(logit_softcap),
        head_bias=bool(f["lm_head_bias"]),
    )


def _norm(f: Mapping[str, Any], name: str) -> NormConfig:
    """LitGPT's own code infers two things from a model's name: OLMo's norm without weight, Gemma's weight offset."""
    eps = float(f["norm_eps"])
    if f["norm_class_name"] == "LayerNorm":
        has_weight = "OLMo" not in name
        return NormConfig(kind="layer", eps=eps, weight=has_weight, bias=has_weight)
    return NormConfig(kind="rms", eps=eps, offset="Gemma" in name)


def _rope_scaling(f: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    given = {key: float(value) for key, value in (f["rope_adjustments"] or {}).items()}
    if set(given) == _LLAMA3:
        return Llama3Scaling(
            factor=given["factor"],
            low_freq_factor=given["low_freq_factor"],
            high_freq_factor=given["high_freq_factor"],
            original_max_seq_len=int(given["original_max_seq_len"]),
        )
    factor = given.get("factor", 1.0) * f["rope_condense_ratio"]
    return LinearScaling(factor=factor) if factor != 1 else None


# --- the weights ---------------------------------------------------------------------------------------------------

_LAYER = "transformer.h.{i}."
_RULES = (
    rename("transformer.wte.weight", "embed.weight"),
    rename(_LAYER + "norm_1.{p}", "layers.{i}.attn_norm.{p}"),
    Rule(_LAYER + "attn.qkv.{p}", QKV, **fused_qkv()),
    Rule(_LAYER + "attn.attn.{p}", QKV, **qkv_by_group()),  # until the end of 2024
    rename(_LAYER + "attn.norm_q.{p}", "layers.{i}.attn.q_norm.{p}"),
    rename(_LAYER + "attn.norm_k.{p}", "layers.{i}.attn.k_norm.{p}"),
    rename(_LAYER + "attn.proj.{p}", "layers.{i}.attn.o_proj.{p}"),
    rename(_LAYER + "post_attention_norm.{p}", "layers.{i}.post_attn_norm.{p}"),
    rename(_LAYER + "norm_2.{p}", "layers.{i}.mlp_norm.{p}"),
    rename(_LAYER + "mlp.fc_1.{p}", "layers.{i}.mlp.gate_proj.{p}"),
    rename(_LAYER + "mlp.fc_2.{p}", "layers.{i}.mlp.up_proj.{p}"),
    rename(_LAYER + "mlp.proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
    rename(_LAYER + "mlp.gate.weight", "layers.{i}.mlp.router.weight"),
    rename(_LAYER + "mlp.experts.{e}.fc_1.weight", "layers.{i}.mlp.experts.gate_proj"),
    rename(_LAYER + "mlp.experts.{e}.fc_2.weight", "layers.{i}.mlp.experts.up_proj"),
    rename(_LAYER + "mlp.experts.{e}.proj.weight", "layers.{i}.mlp.experts.down_proj"),
    rename(_LAYER + "post_mlp_norm.{p}", "layers.{i}.post_mlp_norm.{p}"),
    rename("transformer.ln_f.{p}", "norm.{p}"),
    rename("lm_head.{p}", "lm_head.{p}"),
)
_PLAIN_MLP = rename(_LAYER + "mlp.fc.{p}", "layers.{i}.mlp.up_proj.{p}")


class LitGPTSource(WeightSource):
    """The weights of a LitGPT directory, and its `config`. Raises ValueError if it can't be read or followed.

    style: our name of the prompt style that the model was finetuned with; None if the directory names none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_unmerged(path)
        fields = _read_yaml(path / CONFIG)
        self._tensors = _unpickle(path / WEIGHTS)
        embedding, head = (self._tensors.get(f"{name}.weight") for name in ("transformer.wte", "lm_head"))
        known: dict[str, Any] = _token_ids(path)
        if embedding is not None and embedding.dim() == 2:
            same = head is not None and head.dtype == embedding.dtype and torch.equal(embedding, head)
            tied = same and "lm_head.bias" not in self._tensors
            dtype = str(embedding.dtype).removeprefix("torch.")
            known |= dict(vocab_size=len(embedding), dtype=dtype, tie_embeddings=tied)
        try:
            self.config = config_from_litgpt(fields, **known)
        except ValueError as e:
            raise ValueError(f"{path / CONFIG}: {e}") from None
        self.style = _style(path / STYLE)

    def weight_map(self, config: Config) -> WeightMap:
        # Errors show the name of the first rule that has one of our names.
        return WeightMap((_PLAIN_MLP, *_RULES) if config.mlp.kind == "plain" else (*_RULES, _PLAIN_MLP))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


# --- files ---------------------------------------------------------------------------------------------------------


def _refuse_unmerged(path: Path) -> None:
    if (path / WEIGHTS).exists():
        return
    if (path / f"{WEIGHTS}.lora").exists():
        raise ValueError(
            f"{path} holds LoRA weights apart from their model ({WEIGHTS}.lora); merge them with "
            f"`litgpt merge_lora {path}`, which writes {WEIGHTS} beside them"
        )
    found = sorted(p.name for p in path.glob(f"{WEIGHTS}*"))
    raise ValueError(
        f"{path} has no {WEIGHTS}, only {', '.join(found)}: what LitGPT's adapter finetuning adds is no part of "
        "litlm's model and can't be merged into it; finetune the base model again with `litlm finetune`"
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file} is missing, so the model's architecture is unknown; copy it from the directory that LitGPT "
            "converted or finetuned"
        )
    data = read_yaml(file)
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a mapping of LitGPT's config fields")
    return data


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a `lit_model.pth`, backed by the file."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder of shards; make one file of it with `fabric consolidate {file}`")
    check_readable(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors, and reading it would run code; litlm reads plain weights only. If you "
            "trust the file, load it with torch and save its state dict alone"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(f"{file} is truncated, corrupt or not a checkpoint of LitGPT's ({reason})") from None
    # A training run's checkpoint holds the optimizer's state as well.
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{file} must hold a state dict of tensors, or one under the key 'model'")
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def _token_ids(path: Path) -> dict[str, Any]:
    """The special tokens' ids, from Hugging Face's files, which LitGPT keeps."""
    found: dict[str, Any] = {}
    for file in (path / "config.json", path / "generation_config.json"):
        content = read_json(file) if file.is_file() else {}
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if content.get(key) is not None:
                value = content[key]
                found[key] = tuple(value) if isinstance(value, list) else value
    return found


# LitGPT's classes of prompt styles -> ours.
_STYLES = {
    "Default": "plain", "Alpaca": "alpaca", "StableLMAlpha": "stablelm-alpha", "StableLMZephyr": "stablelm-zephyr",
    "Falcon": "falcon", "Falcon3": "falcon3", "Llama2FunctionCalling": "llama2-function-calling", "Llama2": "llama2",
    "Llama3": "llama3", "FreeWilly2": "freewilly2", "Platypus": "platypus", "StableCode": "stablecode",
    "CodeLlama": "codellama", "Phi1": "phi-1", "Phi2": "phi-2", "Phi3": "phi-3", "Phi4": "phi-4",
    "Phi4Reasoning": "phi-4-reasoning", "Phi4Mini": "phi-4-mini", "Phi4MiniReasoning": "phi-4-mini-reasoning",
    "TinyLlama": "tinyllama", "Gemma": "gemma", "OLMo": "olmo", "ChatML": "chatml", "Qwen2_5": "qwen2.5",
    "Qwen2_5_Math": "qwen2.5-math", "QwQ": "qwq", "Qwen3": "qwen3", "SmolLM2": "smollm2", "Salamandra": "salamandra",
}  # fmt: skip


def _style(file: Path) -> str | None:
    """Our name of the prompt style that LitGPT finetuned the model with; None if it is unknown."""
    if not file.is_file():
        return None
    class_path = str(_read_yaml(file).get("class_path"))
    name = _STYLES.get(class_path.removeprefix("litgpt.prompts."))
    if name is None:
        print(
            f"{file} names {class_path}, which litlm has no style for: chats go by the tokenizer's own template",
            file=sys.stderr,
        )
    return name
