"""What a family says about llama.cpp's GGUF files of it: a `GGUFSpec`, which reads metadata through `GGUFFields`.

`from_gguf` gives the fields of the config.json that the file was converted from. What a file doesn't say (activation
functions, which layers slide) is what llama.cpp fixes for the architecture. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from litlm.config.layers import yarn_attention_factor
from litlm.families.weights import Rule

if TYPE_CHECKING:
    from litlm.config import Config

# Metadata that doesn't change what the model computes.
_NO_EFFECT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type")


class GGUFFields:
    """The metadata of a GGUF file being read; keys are without the architecture's prefix. `unread` tells what is left.

    shapes: of each tensor, by llama.cpp's name. values: the content of small tensors that are really metadata.
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
        """A value, which then counts as read."""
        key = f"{self.arch}.{key}"
        self._read.add(key)
        value = self._metadata.get(key)
        return default if value is None else value

    def has(self, tensor: str) -> bool:
        """Whether any layer has this tensor ("attn_q.bias")."""
        return any(name.startswith("blk.") and name.split(".", 2)[-1] == tensor for name in self.shapes)

    def unread(self) -> dict[str, Any]:
        """The architecture's metadata with a value that nobody read."""
        return {
            key: value
            for key, value in self._metadata.items()
            if value
            and key.startswith(f"{self.arch}.")
            and key.removeprefix(f"{self.arch}.") not in _NO_EFFECT
            and key not in self._read
        }

    def expect(self, key: str, *allowed: Any) -> None:
        """Raise ValueError if a value is stated that litlm doesn't support."""
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
        fraction: str | None = None,
        latent: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The fields of a `config.json` that GGUF states the same way for every architecture.

        eps, kv_heads, head_dim, theta, fraction (of a head that is rotated): the family's names of these fields; None
        where it has no such field. latent: of latent attention, whose heads have other sizes. names: common name -> the
        family's, where they differ. Raises ValueError for metadata that is missing or that the family can't express.
        """
        norm = "layer_norm_rms_epsilon" if "rms" in eps else "layer_norm_epsilon"
        required = ["embedding_length", "block_count", "attention.head_count", "context_length"]
        if self.get("expert_feed_forward_length") is None:  # all layers may have experts
            required.append("feed_forward_length")
        if lacking := [f"{self.arch}.{k}" for k in (*required, f"attention.{norm}") if self.get(k) is None]:
            raise ValueError(f"metadata of a GGUF {self.arch} model is missing: {', '.join(lacking)}")
        heads = self.get("attention.head_count")
        fields: dict[str, Any] = dict(
            model_type=model_type,
            vocab_size=self.shapes["token_embd.weight"][0],
            hidden_size=self.get("embedding_length"),
            # Multi-token-prediction layers come last and are not read.
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
        kv, rotated = self.get("attention.head_count_kv", heads), self.get("rope.dimension_count")
        if not latent:
            size = self._head_dim(model_type, has_field=head_dim is not None, rotated=None if fraction else rotated)
            if kv_heads is not None:
                fields[kv_heads] = kv[0] if isinstance(kv, list) and len(set(kv)) == 1 else kv
            if head_dim is not None:
                fields[head_dim] = size
            if fraction is not None:
                fields[fraction] = rotary_fraction(rotated or size, size)
        if theta is not None:
            fields[theta] = self.get("rope.freq_base", 10000.0)  # llama.cpp's default
            fields["rope_scaling"] = self.scaling()
        return {(names or {}).get(key, key): value for key, value in fields.items() if value is not None}

    def _head_dim(self, model_type: str, *, has_field: bool, rotated: int | None) -> int:
        """The size of a head. rotated: how much of it is rotated, for families that rotate whole heads."""
        default = self.get("embedding_length") // self.get("attention.head_count")
        size = self.get("attention.key_length") or rotated or default
        sizes = {"attention.key_length": size, "attention.value_length": self.get("attention.value_length", size)}
        if rotated is not None:
            sizes["rope.dimension_count"] = rotated
        if not has_field:
            sizes["embedding_length / head_count"] = default
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{self.arch}.{key}={value}" for key, value in sizes.items())
            raise ValueError(f"{listed} differ, which {model_type} models can't express")
        return size

    def scaling(self) -> dict[str, Any] | None:
        """`rope_scaling`, None for none. Raises ValueError where LongRoPE's factors are missing."""
        # As llama.cpp: a factor without a type is linear, and files of 2023 call it scale_linear.
        rope_type = self.get("rope.scaling.type")
        factor = self.get("rope.scaling.factor") or self.get("rope.scale_linear")
        original, attn_factor = self.get("rope.scaling.original_context_length"), self.get("rope.scaling.attn_factor")
        short, long = (self.values.get(f"rope_factors_{name}.weight") for name in ("short", "long"))
        if short and long:
            limit = self.get("context_length")
            longrope = dict(short_factor=short, long_factor=long, original_max_position_embeddings=original or limit)
            return dict(rope_type="longrope", attention_factor=attn_factor) | longrope
        if rope_type == "longrope":
            raise ValueError(
                f"{self.arch}.rope.scaling.type={rope_type!r}, but the tensors rope_factors_... are missing"
            )
        if rope_type is None and factor:
            rope_type = "linear"
        if rope_type in (None, "none", "linear", "yarn") and factor in (None, 1.0):
            return None
        if rope_type == "linear":
            return dict(rope_type="linear", factor=factor)
        if rope_type != "yarn":
            return None if rope_type == "none" else dict(rope_type=rope_type)
        yarn_factor = self.get("rope.scaling.yarn_attn_factor")
        log_multiplier = self.get("rope.scaling.yarn_log_multiplier")
        mscale: dict[str, float] = {}
        if log_multiplier:
            times_ten = self.arch in ("deepseek2", "deepseek32", "mistral4")
            mscale["mscale_all_dim"] = round(10 * log_multiplier, 6) if times_ten else log_multiplier
            if yarn_factor is None and attn_factor is None:
                # mscale isn't stored. As llama.cpp: it equals mscale_all_dim, or is 1, as in the published files.
                mscale["mscale"] = mscale["mscale_all_dim"] if self.arch.startswith("deepseek") else 1.0
        if attn_factor not in (None, 1.0):  # llama.cpp multiplies YaRN's own factor by this one
            yarn_factor = (yarn_attention_factor(factor) if yarn_factor is None else yarn_factor) * attn_factor
        scaling = dict(
            rope_type="yarn",
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=yarn_factor,
            beta_fast=self.get("rope.scaling.yarn_beta_fast"),
            beta_slow=self.get("rope.scaling.yarn_beta_slow"),
        )
        return {key: value for key, value in (scaling | mscale).items() if value is not None}

    def rope_parameters(self, sliding_theta: float | None = None) -> dict[str, Any]:
        """`rope_parameters` with an entry for full layers, and one for sliding layers, which are not scaled."""
        theta = self.get("rope.freq_base", 10000.0)
        sliding = dict(rope_type="default", rope_theta=self.get("rope.freq_base_swa", sliding_theta or theta))
        full = (self.scaling() or dict(rope_type="default")) | dict(rope_theta=theta)
        return dict(full_attention=full, sliding_attention=sliding)

    def layer_types(self, period: int) -> list[str]:
        """`layer_types`: what the file lists, or every `period`-th layer full and the others sliding."""
        stated, n_layer = self.get("attention.sliding_window_pattern", period), self.get("block_count")
        slides = stated if isinstance(stated, list) else [stated > 0 and (i + 1) % stated != 0 for i in range(n_layer)]
        slides = slides[: n_layer - self.get("nextn_predict_layers", 0)]
        return ["sliding_attention" if s else "full_attention" for s in slides]

    def experts(self, n_expert: str, intermediate_size: str | None = "moe_intermediate_size") -> dict[str, Any]:
        """Experts' fields. n_expert, intermediate_size: the family's names of their number and of their hidden size."""
        fields = {n_expert: self.get("expert_count"), "num_experts_per_tok": self.get("expert_used_count")}
        if intermediate_size is not None:
            fields[intermediate_size] = self.get("expert_feed_forward_length")
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


def rotary_fraction(rotated: int, head_dim: int) -> float:
    """The fraction that, times head_dim and rounded down, gives `rotated`: 44 * (30 / 44) is less than 30."""
    fraction = rotated / head_dim
    return math.nextafter(fraction, 1.0) if int(head_dim * fraction) < rotated else fraction


def _always(gguf: GGUFFields) -> bool:
    return True


@dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp's files of this family differ from its Hugging Face checkpoints.

    arch: `general.architecture`.
    from_gguf: from_gguf(fields) gives the fields of a `config.json`.
    matches: matches(fields): a file of this architecture is of this family, where several families have one.
    restore: Hugging Face name -> function(tensor, config) that undoes the converter's change of layout.
    rules: for tensors that are fused differently there; `theirs` are llama.cpp's names. They precede the derived ones.
    merged: llama.cpp's name of a tensor -> the names of its parts in newer files, and function(parts) that joins them.
    metadata_tensors: name of a tensor of one number -> the metadata that lists this number for each layer.
    table_arch: an architecture with the same names of tensors, for releases of the `gguf` package without this one.
    reads_rope_freqs: `from_gguf` reads rope_freqs.weight, which otherwise holds the effect of Llama 3's rope scaling.
    """

    arch: str
    from_gguf: Callable[[GGUFFields], dict[str, Any]]
    matches: Callable[[GGUFFields], bool] = _always
    restore: Mapping[str, Callable[[Any, Config], Any]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    merged: Mapping[str, tuple[tuple[str, ...], Callable[[Sequence[Any]], Any]]] = field(default_factory=dict)
    metadata_tensors: Mapping[str, str] = field(default_factory=dict)
    table_arch: str = ""
    reads_rope_freqs: bool = False


def unpermute(tensor: Any, heads: int) -> Any:
    """llama.cpp rotates rows 2j and 2j + 1 of q and k, Hugging Face's layout j and j + head_dim / 2. (H D, ...)."""
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


# For architectures whose converter permutes q and k back to the layout of Meta's own checkpoints.
UNPERMUTE_QK: Mapping[str, Callable[[Any, Config], Any]] = {
    "model.layers.{i}.self_attn.q_proj.{p}": lambda t, c: unpermute(t, c.n_head),
    "model.layers.{i}.self_attn.k_proj.{p}": lambda t, c: unpermute(t, c.n_kv_head),
}


def subtract_one(rules: Iterable[Rule]) -> dict[str, Callable[[Any, Config], Any]]:
    """`restore` for norms among the rules whose weight Hugging Face stores less 1, and llama.cpp as it is."""
    return {rule.theirs: lambda t, c: t - 1 for rule in rules if "norm" in rule.theirs}
