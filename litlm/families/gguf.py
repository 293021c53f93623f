"""What a family says about llama.cpp's GGUF files of it: a `GGUFSpec`, which reads metadata through `GGUFFields`.

The aim is the model that was converted. What a file doesn't say (activation functions, which layers slide) is what
llama.cpp fixes for the architecture. No torch, as in the other families' modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litlm.config import Config
from litlm.families.base import Rule, yarn_attention_factor

# Metadata that doesn't change what the model computes.
_HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type")


class GGUFFields:
    """The metadata of a GGUF file being read; keys are without the architecture's prefix. `unread` is what is left.

    shapes: the shape of each tensor, by llama.cpp's name. values: the content of small ones that are really metadata.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, list[float]] | None = None,
    ) -> None:
        self.arch = str(metadata.get("general.architecture"))
        self.shapes = shapes
        self.values = values or {}
        self._metadata = metadata
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        key = f"{self.arch}.{key}"
        self._read.add(key)
        value = self._metadata.get(key)
        return default if value is None else value

    def has(self, tensor: str) -> bool:
        """Does any layer have this tensor ("attn_q.bias")?"""
        return any(name.startswith("blk.") and name.split(".", 2)[-1] == tensor for name in self.shapes)

    def unread(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self._metadata.items()
            if value
            and key.startswith(f"{self.arch}.")
            and key.removeprefix(f"{self.arch}.") not in _HARMLESS
            and key not in self._read
        }

    def expect(self, key: str, *allowed: Any) -> None:
        """Metadata for which litlm implements some values only; a file need not state it."""
        value = self.get(key)
        if value is not None and value not in allowed:
            only = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.arch}.{key}={value!r} is not supported for this architecture, only {only}")

    def common(
        self,
        model_type: str,
        *,
        eps: str = "rms_norm_eps",
        kv_heads: str | None = "num_key_value_heads",
        head_dim: str | None = "head_dim",
        theta: str | None = "rope_theta",
        share: str | None = None,
        latent: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The fields of a `config.json` that GGUF states the same way for every architecture.

        The arguments are the family's names of fields; None where it has no such field. share: of a head that turns.
        latent: keys and values have sizes of their own. names: the common name -> the family's, if that is different.
        """
        norm = "layer_norm_rms_epsilon" if "rms" in eps else "layer_norm_epsilon"
        required = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length", "context_length")
        if lacking := [f"{self.arch}.{k}" for k in (*required, f"attention.{norm}") if self.get(k) is None]:
            raise ValueError(f"metadata of a GGUF {self.arch} model is missing: {', '.join(lacking)}")
        width, heads = self.get("embedding_length"), self.get("attention.head_count")
        size, turned = 0, self.get("rope.dimension_count")
        if not latent:
            whole = width // heads
            size = self.get("attention.key_length") or (turned if share is None else None) or whole
            sizes = {"attention.key_length": size, "attention.value_length": self.get("attention.value_length", size)}
            if share is None:
                sizes["rope.dimension_count"] = turned or size
            if head_dim is None:
                sizes["embedding_length / head_count"] = whole
            if len(set(sizes.values())) > 1:
                listed = ", ".join(f"{self.arch}.{key}={value}" for key, value in sizes.items())
                raise ValueError(f"{listed} differ, which {model_type} models can't express")
        fields: dict[str, Any] = dict(
            model_type=model_type,
            vocab_size=self.shapes["token_embd.weight"][0],
            hidden_size=width,
            # Those behind the last one guess further tokens; they are not read.
            num_hidden_layers=self.get("block_count") - self.get("nextn_predict_layers", 0),
            num_attention_heads=heads,
            intermediate_size=self.get("feed_forward_length"),
            max_position_embeddings=self.get("context_length"),
            tie_word_embeddings="output.weight" not in self.shapes,
            torch_dtype="float32",
        )
        fields[eps] = self.get(f"attention.{norm}")
        for key, stored in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            fields[f"{key}_token_id"] = self._metadata.get(f"tokenizer.ggml.{stored}_token_id")
        kv = self.get("attention.head_count_kv", heads)
        if isinstance(kv, list) and len(set(kv)) == 1:
            kv = kv[0]
        if kv_heads is not None and not latent:
            fields[kv_heads] = kv
        if head_dim is not None and not latent:
            fields[head_dim] = size
        if theta is not None:
            fields[theta] = self.get("rope.freq_base", 10000.0)  # llama.cpp's default
        if share is not None:
            fields[share] = share_of(turned or size, size)
        fields["rope_scaling"] = self.scaling() if theta is not None else None
        return {(names or {}).get(key, key): value for key, value in fields.items() if value is not None}

    def scaling(self) -> dict[str, Any] | None:
        """`rope_scaling`."""
        # As llama.cpp: a factor without a type is linear, and files of 2023 call it scale_linear.
        kind, factor = self.get("rope.scaling.type"), self.get("rope.scaling.factor") or self.get("rope.scale_linear")
        original, extra = self.get("rope.scaling.original_context_length"), self.get("rope.scaling.attn_factor")
        short, long = (self.values.get(f"rope_factors_{name}.weight") for name in ("short", "long"))
        if short and long:
            limit = self.get("context_length")
            longrope = dict(short_factor=short, long_factor=long, original_max_position_embeddings=original or limit)
            return dict(rope_type="longrope", attention_factor=extra) | longrope
        if kind == "longrope":
            raise ValueError(f"{self.arch}.rope.scaling.type={kind!r}, but the tensors rope_factors_... are missing")
        if kind is None and factor:
            kind = "linear"
        if kind in (None, "none", "linear", "yarn") and factor in (None, 1.0):
            return None
        if kind == "linear":
            return dict(rope_type="linear", factor=factor)
        if kind != "yarn":
            return None if kind == "none" else dict(rope_type=kind)
        own, per_log = self.get("rope.scaling.yarn_attn_factor"), self.get("rope.scaling.yarn_log_multiplier")
        mscale: dict[str, float] = {}
        if per_log:
            mscale["mscale_all_dim"] = round(10 * per_log, 6) if self.arch in ("deepseek2", "mistral4") else per_log
            if own is None and extra is None:
                # The other of the two isn't stored. As llama.cpp: it is the same, or 1, as in the published files.
                mscale["mscale"] = mscale["mscale_all_dim"] if self.arch == "deepseek2" else 1.0
        if extra not in (None, 1.0):  # llama.cpp multiplies YaRN's own factor by this one
            own = (yarn_attention_factor(factor) if own is None else own) * extra
        scaling = dict(
            rope_type="yarn",
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=own,
            beta_fast=self.get("rope.scaling.yarn_beta_fast"),
            beta_slow=self.get("rope.scaling.yarn_beta_slow"),
        )
        return {key: value for key, value in (scaling | mscale).items() if value is not None}

    def ropes(self, sliding_theta: float | None = None) -> dict[str, Any]:
        """`rope_parameters` with an entry for full layers, and one for sliding layers, which are not scaled."""
        theta = self.get("rope.freq_base", 10000.0)
        sliding = dict(rope_type="default", rope_theta=self.get("rope.freq_base_swa", sliding_theta or theta))
        full = (self.scaling() or dict(rope_type="default")) | dict(rope_theta=theta)
        return dict(full_attention=full, sliding_attention=sliding)

    def layer_types(self, period: int) -> list[str]:
        """`layer_types`: what the file lists, or full in every `period`-th layer."""
        stated, n_layer = self.get("attention.sliding_window_pattern", period), self.get("block_count")
        slides = stated if isinstance(stated, list) else [stated > 0 and (i + 1) % stated != 0 for i in range(n_layer)]
        slides = slides[: n_layer - self.get("nextn_predict_layers", 0)]
        return ["sliding_attention" if s else "full_attention" for s in slides]

    def experts(self, n_expert: str, width: str | None = "moe_intermediate_size") -> dict[str, Any]:
        """Experts' fields; n_expert, width: the family's names for how many there are and how wide they are."""
        fields = {n_expert: self.get("expert_count"), "num_experts_per_tok": self.get("expert_used_count")}
        if width is not None:
            fields[width] = self.get("expert_feed_forward_length")
        return fields

    def sigmoid_experts(self, n_expert: str = "n_routed_experts", shared: str = "n_shared_experts") -> dict[str, Any]:
        """The fields of DeepSeek-V3's router and experts."""
        self.expect("expert_gating_func", 2)  # sigmoid
        return self.experts(n_expert) | {
            shared: self.get("expert_shared_count", 0),
            "routed_scaling_factor": self.get("expert_weights_scale", 1.0),
            "norm_topk_prob": bool(self.get("expert_weights_norm", False)),
            "n_group": self.get("expert_group_count", 1),
            "topk_group": self.get("expert_group_used_count", 1),
        }


def share_of(turned: int, size: int) -> float:
    """The share of a head, as a number that gives `turned` back when it is multiplied and cut off."""
    share = turned / size
    return math.nextafter(share, 1.0) if int(size * share) < turned else share  # 44 * (30 / 44) is less than 30


def _any(gguf: GGUFFields) -> bool:
    return True


@dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp's files of this family differ from its Hugging Face checkpoints.

    arch: `general.architecture`. config(fields) gives the fields of a `config.json`. when(fields): is a file of this
    architecture of this family? (llama.cpp has one architecture for several families.) restore: pattern of a Hugging
    Face name -> function(tensor, config) that undoes a change of layout which llama.cpp's converter made. rules: for
    tensors that are cut differently there (`theirs` are then llama.cpp's names); they go before the derived ones.
    merged: llama.cpp's name of a tensor -> the names of its parts in newer files, and function(parts) that joins them.
    values: name of a tensor -> the metadata that holds its one number, as a list with an entry per layer.
    names: an architecture with the same names of tensors, where releases of the `gguf` package lack this one.
    divisors: `config` reads rope_freqs.weight, which is otherwise the effect of Llama 3's rope scaling.
    """

    arch: str
    config: Callable[[GGUFFields], dict[str, Any]]
    when: Callable[[GGUFFields], bool] = _any
    restore: Mapping[str, Callable[[Any, Config], Any]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    merged: Mapping[str, tuple[tuple[str, ...], Callable[[Sequence[Any]], Any]]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    names: str = ""
    divisors: bool = False


def halves(tensor: Any, heads: int) -> Any:
    """llama.cpp turns neighbouring rows of q and k; Hugging Face's layout turns row j with row j + head_dim / 2."""
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


# Where llama.cpp keeps q and k as Meta's own checkpoints do.
HALVES: Mapping[str, Callable[[Any, Config], Any]] = {
    "model.layers.{i}.self_attn.q_proj.{p}": lambda t, c: halves(t, c.n_head),
    "model.layers.{i}.self_attn.k_proj.{p}": lambda t, c: halves(t, c.n_kv_head),
}


def without_one(names: Iterable[str]) -> dict[str, Callable[[Any, Config], Any]]:
    """Norms that Hugging Face's files keep as their difference from 1, and llama.cpp's as the weights themselves."""
    return {name: lambda t, c: t - 1 for name in names}
