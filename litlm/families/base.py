"""What a family is: a Hugging Face `model_type` as data.

A family says how its `config.json` becomes a `Config` and back, and how its tensors' names (and fused layouts) map to
ours and back. No torch: the functions that split and join tensors only use methods that torch and numpy share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litlm.config import Config, LinearScaling, Llama3Scaling, RopeConfig, RopeScaling, YarnScaling

_REQUIRED = object()
_AS_ABSENT = object()

# Fields of any config.json that don't change what the model computes. Dropout only acts in transformers' own training.
_HARMLESS = """
    _name_or_path _attn_implementation architectures auto_map transformers_version use_cache model_type
    name_or_path attention_dropout hidden_dropout resid_pdrop embd_pdrop classifier_dropout
    attention_probs_dropout_prob hidden_dropout_prob is_decoder is_encoder_decoder max_sequence_length
    pretraining_tp output_attentions output_hidden_states output_router_logits return_dict
    return_dict_in_generate id2label label2id problem_type torchscript chunk_size_feed_forward
    task_specific_params finetuning_task tokenizer_class prefix transformers.js_config is_llama_config
    sep_token_id decoder_start_token_id unsloth_version unsloth_fixed keys_to_ignore max_length min_length
    do_sample temperature top_k top_p num_return_sequences
"""

# transformers' names of activation functions -> ours.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


class HFFields:
    """A `config.json` being read. `take` marks a field as understood; `finish` objects to what nobody took."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.problems: list[str] = []
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = _REQUIRED, *, null: Any = _AS_ABSENT) -> Any:
        """The field's value; if it is absent, transformers' own `default`, and for a written null `null` if given."""
        self._taken.add(key)
        value = self.data.get(key)
        if value is not None:
            return value
        if null is not _AS_ABSENT and key in self.data:
            return null
        if default is _REQUIRED:
            self.problems.append(f"{key} is missing")
            return 1
        return default

    def expect(self, key: str, allowed: Any, default: Any = None) -> None:
        """A field for which litlm implements one value only."""
        value = self.take(key, default)
        if value != allowed:
            self.problems.append(f"{key}={value!r} is not supported for this family, only {allowed!r}")

    def activation(self, key: str, default: str) -> str:
        name = self.take(key, default)
        if name not in ACTIVATIONS:
            self.problems.append(f"{key}={name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}")
            return "silu"
        return ACTIVATIONS[name]

    def common(self, **defaults: Any) -> dict[str, Any]:
        """The fields that nearly every family has; `defaults` are transformers' own where it has any."""
        self._taken |= {"torch_dtype", "dtype"}
        dtype = str(self.data.get("dtype") or self.data.get("torch_dtype") or "float32").removeprefix("torch.")
        if dtype not in ("float32", "bfloat16", "float16"):
            self.problems.append(f"dtype={dtype!r} is not supported; known are float32, bfloat16 and float16")
            dtype = "float32"
        eos = self.take("eos_token_id", defaults.get("eos_token_id"), null=None)
        return dict(
            vocab_size=self.take("vocab_size"),
            n_layer=self.take("num_hidden_layers"),
            n_embd=self.take("hidden_size"),
            n_head=self.take("num_attention_heads"),
            intermediate_size=self.take("intermediate_size"),
            max_seq_len=self.take("max_position_embeddings", defaults.get("max_position_embeddings", 2048)),
            tie_embeddings=self.take("tie_word_embeddings", False),
            init_std=float(self.take("initializer_range", 0.02)),
            dtype=dtype,
            bos_token_id=self.take("bos_token_id", defaults.get("bos_token_id"), null=None),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=self.take("pad_token_id", None),
        )

    def rope(
        self, *, theta_key: str = "rope_theta", fraction_key: str | None = None, fraction: float = 1.0
    ) -> RopeConfig:
        """Read `rope_parameters` (transformers 5), or the older `rope_theta` with `rope_scaling`.

        fraction_key: the older name of the share of a head that turns; None for a family that turns whole heads.
        """
        old_theta = self.take(theta_key, None)
        old_fraction = self.take(fraction_key or "partial_rotary_factor", None)
        scaling = dict(self.take("rope_parameters", None) or {})
        scaling = dict(self.take("rope_scaling", None) or {}) or scaling
        theta = scaling.pop("rope_theta", old_theta)
        share = scaling.pop("partial_rotary_factor", old_fraction)
        if fraction_key is None and share not in (None, 1.0):
            self.problems.append(f"partial_rotary_factor={share!r} is not supported: this family turns whole heads")
        return RopeConfig(
            theta=float(theta if theta is not None else 10000.0),
            fraction=float(share if share is not None else fraction),
            scaling=self._rope_scaling(scaling),
        )

    def _rope_scaling(self, data: dict[str, Any]) -> RopeScaling | None:
        kind = data.pop("rope_type", None) or data.pop("type", None) or "default"
        data.pop("type", None)
        data = {k: v for k, v in data.items() if v is not None}
        before = len(self.problems)

        def number(key: str, default: Any = _REQUIRED) -> Any:
            if key not in data and default is _REQUIRED:
                self.problems.append(f"rope_parameters.{key} is missing for rope_type={kind!r}")
                return 1.0
            value = data.pop(key, default)
            return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

        original = (
            data.pop("original_max_position_embeddings", None) or self.data.get("max_position_embeddings") or 2048
        )
        scaling: RopeScaling | None = None
        if kind == "linear":
            scaling = LinearScaling(factor=number("factor"))
        elif kind == "llama3":
            scaling = Llama3Scaling(
                factor=number("factor"),
                low_freq_factor=number("low_freq_factor"),
                high_freq_factor=number("high_freq_factor"),
                original_max_seq_len=original,
            )
        elif kind == "yarn":
            factor = number("factor")
            mscale, mscale_all = number("mscale", None), number("mscale_all_dim", None)
            attention_factor = number("attention_factor", None)
            if attention_factor is None and mscale and mscale_all:
                attention_factor = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all)
            scaling = YarnScaling(
                factor=factor,
                original_max_seq_len=original,
                beta_fast=number("beta_fast", 32.0),
                beta_slow=number("beta_slow", 1.0),
                attention_factor=attention_factor,
                truncate=data.pop("truncate", True),
            )
        elif kind != "default":
            self.problems.append(
                f"rope_parameters.rope_type={kind!r} is not supported; known are linear, llama3 and yarn"
            )
            return None
        self.problems += [f"rope_parameters.{key}={value!r} is not understood" for key, value in data.items()]
        return scaling if len(self.problems) == before else None

    def finish(self) -> None:
        """Raise one ValueError that names every field that is missing, unsupported or not understood."""
        for key, value in self.data.items():
            unset = value is None or value is False or value == "" or value == [] or value == {}
            if key == "quantization_config" and not unset:
                method = value.get("quant_method", "unknown") if isinstance(value, dict) else value
                self.problems.append(
                    f"quantization_config: the weights are quantized ({method}); use unquantized ones or a GGUF file"
                )
            elif key not in self._taken and key not in _HARMLESS.split() and not unset:
                self.problems.append(f"{key}={value!r} is not understood, and it might change what the model computes")
        if self.problems:
            raise ValueError(
                f"model_type {self.data.get('model_type')!r} with fields that litlm can't follow:\n"
                + "\n".join(f"- {p}" for p in self.problems)
                + "\nRemove a field only if you know that it does not matter."
            )


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's scale of cos and sin: 0.1 mscale ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def hf_common(config: Config) -> dict[str, Any]:
    """The reverse of `HFFields.common`."""
    eos = config.eos_token_id
    return dict(
        vocab_size=config.vocab_size,
        num_hidden_layers=config.n_layer,
        hidden_size=config.n_embd,
        num_attention_heads=config.n_head,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
        dtype=config.dtype,
        torch_dtype=config.dtype,
        bos_token_id=config.bos_token_id,
        eos_token_id=list(eos) if isinstance(eos, tuple) else eos,
        pad_token_id=config.pad_token_id,
        use_cache=True,
    )


def hf_rope(rope: RopeConfig) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 reads it, with the older fields beside it for older readers."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling is not None:
        scaling = {k: v for k, v in vars(rope.scaling).items() if v is not None}
        scaling["rope_type"] = scaling.pop("kind")
        if "original_max_seq_len" in scaling:
            scaling["original_max_position_embeddings"] = scaling.pop("original_max_seq_len")
    parameters = scaling | {"rope_theta": rope.theta}
    if rope.fraction != 1.0:
        parameters["partial_rotary_factor"] = rope.fraction
    return {
        "rope_parameters": parameters,
        "rope_theta": rope.theta,
        "rope_scaling": parameters if rope.scaling is not None else None,
    }


# --- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """`theirs` (one tensor) is `ours` (one or more). `{i}` stands for a layer, `{p}` for weight or bias.

    split(tensor, config) gives our tensors; join(tensors, config) the reverse. Without them the tensor is the same.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Any, Config], Sequence[Any]] | None = None
    join: Callable[[Sequence[Any], Config], Any] | None = None


def rename(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,))


@dataclass(frozen=True)
class GGUFSpec:
    """How llama.cpp's files of this family differ from its Hugging Face checkpoints.

    arch: `general.architecture`. config(metadata) gives the fields of a `config.json`. restore: pattern of a Hugging
    Face name -> function(tensor, config) that undoes a change of layout which llama.cpp's converter made.
    """

    arch: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    restore: Mapping[str, Callable[[Any, Config], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One `model_type`. ignore: patterns of tensors in its checkpoints that hold no weights (old buffers)."""

    model_type: str
    architecture: str
    from_hf: Callable[[HFFields], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    gguf: GGUFSpec | None = None


def pattern_of(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)", 1).replace(r"\{p\}", r"(?P<p>weight|bias)")
    return re.compile(text + r"\Z")


@dataclass(frozen=True)
class Match:
    """One tensor of a checkpoint: the rule it falls under, and both sides' full names."""

    rule: Rule
    theirs: str
    ours: tuple[str, ...]


class WeightMap:
    """A family's rules, looked up by either side's names."""

    def __init__(self, family: Family) -> None:
        self._theirs = [(pattern_of(rule.theirs), rule) for rule in family.rules]
        self._ours = [(pattern_of(name), rule) for rule in family.rules for name in rule.ours]
        self._ignore = [re.compile(p) for p in family.ignore]

    def ignored(self, theirs: str) -> bool:
        return any(p.search(theirs) for p in self._ignore)

    def from_theirs(self, name: str) -> Match | None:
        return self._find(self._theirs, name)

    def from_ours(self, name: str) -> Match | None:
        return self._find(self._ours, name)

    def export_plan(self, names: Iterable[str]) -> list[Match]:
        """The tensors to write for our `names`, each once. A name without a rule is our own mistake."""
        plan: dict[str, Match] = {}
        for name in names:
            match = self.from_ours(name)
            assert match is not None, f"no weight rule for {name}"
            plan[match.theirs] = match
        return list(plan.values())

    @staticmethod
    def _find(table: list[tuple[re.Pattern[str], Rule]], name: str) -> Match | None:
        for pattern, rule in table:
            if found := pattern.match(name):
                fill = found.groupdict()
                return Match(rule, rule.theirs.format(**fill), tuple(ours.format(**fill) for ours in rule.ours))
        return None


# The names that Llama introduced and most families kept.
LLAMA_RULES = (
    rename("model.embed_tokens.weight", "embed.weight"),
    rename("model.layers.{i}.input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
    rename("model.layers.{i}.self_attn.q_proj.{p}", "layers.{i}.attn.q_proj.{p}"),
    rename("model.layers.{i}.self_attn.k_proj.{p}", "layers.{i}.attn.k_proj.{p}"),
    rename("model.layers.{i}.self_attn.v_proj.{p}", "layers.{i}.attn.v_proj.{p}"),
    rename("model.layers.{i}.self_attn.o_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
    rename("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
    rename("model.layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.gate_proj.{p}"),
    rename("model.layers.{i}.mlp.up_proj.{p}", "layers.{i}.mlp.up_proj.{p}"),
    rename("model.layers.{i}.mlp.down_proj.{p}", "layers.{i}.mlp.down_proj.{p}"),
    rename("model.norm.{p}", "norm.{p}"),
    rename("lm_head.weight", "lm_head.weight"),
)


# --- GGUF metadata that most families share -------------------------------------------------------------------------


def gguf_common(metadata: Mapping[str, Any], arch: str, model_type: str, *required: str) -> dict[str, Any]:
    """The fields of a `config.json` that GGUF metadata states the same way for every architecture.

    required: keys that the file must have, beyond the sizes that every model needs.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{arch}.{key}", default)

    heads = get("attention.head_count")
    fields: dict[str, Any] = dict(
        model_type=model_type,
        vocab_size=metadata.get("litlm.vocab_size"),
        hidden_size=get("embedding_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        intermediate_size=get("feed_forward_length"),
        max_position_embeddings=get("context_length"),
        tie_word_embeddings=metadata.get("litlm.tied", False),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        torch_dtype="float32",
    )
    sizes = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length", "context_length")
    if lacking := [f"{arch}.{key}" for key in (*sizes, *required) if get(key) is None]:
        raise ValueError(f"metadata of a GGUF {arch} model is missing: {', '.join(lacking)}")
    # As llama.cpp: a factor without a type is linear, and files of 2023 call it scale_linear.
    kind, factor = get("rope.scaling.type", "linear"), get("rope.scaling.factor") or get("rope.scale_linear")
    if kind in ("linear", "yarn") and factor and factor != 1.0:
        scaling = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
            # llama.cpp multiplies YaRN's own factor by this one.
            extra = get("rope.scaling.attn_factor", 1.0) or 1.0
            scaling["attention_factor"] = yarn_attention_factor(factor) * extra if extra != 1.0 else None
            scaling["beta_fast"], scaling["beta_slow"] = (
                get("rope.scaling.yarn_beta_fast"),
                get("rope.scaling.yarn_beta_slow"),
            )
        fields["rope_scaling"] = scaling
    elif kind not in ("none", "linear", "yarn"):
        fields["rope_scaling"] = {"rope_type": kind}
    return fields


def gguf_whole_heads(metadata: Mapping[str, Any], arch: str) -> None:
    """For architectures whose keys and values have one size and turn whole: refuse a file that says otherwise."""
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    sizes = {f"{arch}.{key}": metadata.get(f"{arch}.{key}") for key in keys}
    if len({size for size in sizes.values() if size is not None}) > 1:
        raise ValueError(f"{', '.join(f'{k}={v}' for k, v in sizes.items())} differ, which {arch} models can't express")
