"""What a family is: a Hugging Face `model_type` as data.

A family says how its `config.json` becomes the fields of a `Config` and back (`HFFields`, `hf_*`), and how its tensors
map to ours and back (weights.py). No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from litlm.config.layers import (
    Activation,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MoEConfig,
    RopeConfig,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)
from litlm.families import weights
from litlm.families.weights import Rule, WeightMap

if TYPE_CHECKING:
    from litlm.config import Config
    from litlm.families.gguf import GGUFSpec

_REQUIRED = object()
_AS_ABSENT = object()
_ORIGINAL = "original_max_position_embeddings"
_ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn", "longrope")

# Fields of any config.json that don't change what the model computes. Dropout is transformers' own training only; older
# versions of transformers kept sampling parameters here.
_NO_EFFECT = """
    architectures auto_map transformers_version use_cache model_type
    name_or_path attention_dropout hidden_dropout resid_pdrop embd_pdrop classifier_dropout
    attention_probs_dropout_prob hidden_dropout_prob is_decoder is_encoder_decoder max_sequence_length
    pretraining_tp output_attentions output_hidden_states output_router_logits return_dict
    return_dict_in_generate id2label label2id problem_type torchscript chunk_size_feed_forward
    task_specific_params finetuning_task tokenizer_class prefix transformers.js_config is_llama_config
    unsloth_version unsloth_fixed keys_to_ignore attn_implementation quantization_config
    tie_last_hidden_states num_labels tf_legacy_loss use_bfloat16 tie_encoder_decoder cross_attention_hidden_size
    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams num_beam_groups
    num_return_sequences temperature top_k top_p min_p typical_p repetition_penalty length_penalty diversity_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty bad_words_ids force_words_ids
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens remove_invalid_values
    exponential_decay_length_penalty renormalize_logits output_scores output_logits epsilon_cutoff eta_cutoff
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind
"""
# Nor do private fields, which begin with an underscore (except two), and ids of special tokens.
_NO_EFFECT_PATTERN = re.compile(r"_(?!sliding_window_pattern$|remove_final_layer_norm$)|\w+_token_id$")

# transformers' names of activation functions -> ours.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}
HF_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}

# transformers' names of layer types -> ours.
LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding", "chunked_attention": "chunked"}
HF_LAYER_TYPES = {ours: theirs for theirs, ours in LAYER_TYPES.items()}

# The fields that nearly every family has: ours -> theirs.
COMMON = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
}


_UNKNOWN = "is not understood, and it might change what the model computes"
_RENAMED = {"in_two": "fused_gate_up", "qkv_in_a_row": "fused_qkv", "within": "nested_rules"}


def __getattr__(name: str) -> NoReturn:
    new = _RENAMED.get(name, name)
    if hasattr(weights, new) and not new.startswith("_"):
        raise ImportError(f"litlm.families.base.{name} is now litlm.families.weights.{new}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    from_hf: the fields of a config.json to arguments of `Config`.
    to_hf: a Config to the fields of a config.json.
    rules: how tensors map to ours.
    modules: the same by transformers' names of the loaded model's modules, where they aren't the files': PEFT has them.
    ignore: patterns of tensors in its checkpoints that are no part of the model (old buffers, vision towers).
    ignore_for: ignore_for(config): more such patterns, of weights that some layers of this config don't use.
    recut: recut(config): for each layer's tensors by these templates of their names, how many rows each has. Files may
        cut them elsewhere: joined in this order they are the same.
    zero_if_missing: ends of our names of tensors that a checkpoint may lack; they are zeros then.
    gguf: how llama.cpp's files of it differ; None: they are not read.
    """

    model_type: str
    architecture: str
    from_hf: Callable[[HFFields], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]
    rules: tuple[Rule, ...]
    modules: tuple[Rule, ...] = ()
    ignore: tuple[str, ...] = ()
    ignore_for: Callable[[Config], tuple[str, ...]] | None = None
    recut: Callable[[Config], Mapping[str, int]] | None = None
    zero_if_missing: tuple[str, ...] = ()
    gguf: GGUFSpec | None = None

    @cached_property
    def weights(self) -> WeightMap:
        """All rules, whatever the config."""
        return WeightMap(self.rules, self.ignore)

    def weights_of(self, config: Config) -> WeightMap:
        """The rules that apply to this config."""
        ignore = self.ignore if self.ignore_for is None else self.ignore + self.ignore_for(config)
        return WeightMap([rule for rule in self.rules if rule.when is None or rule.when(config)], ignore, config)

    def modules_of(self, config: Config) -> WeightMap:
        """`weights_of` by the names of transformers' modules."""
        return WeightMap(self.modules, config=config) if self.modules else self.weights_of(config)


# --- reading config.json ---------------------------------------------------------------------------------------------


class FieldsError(ValueError):
    """Fields of a config.json that litlm can't follow."""


class HFFields:
    """A `config.json` being read. `take` marks a field as understood; `finish` refuses those that nobody took.

    ignore: fields that `finish` accepts all the same. `check_ignored` refuses those that it would have accepted anyway.
    """

    def __init__(self, data: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
        self.data = data
        self.problems: list[str] = []
        self._taken: set[str] = set()
        self._ignore = ignore
        self._ignored: set[str] = set()  # those of `ignore` that had an effect, also in nested configs

    def nested(self, data: Mapping[str, Any]) -> HFFields:
        """The fields of a config inside this one."""
        fields = HFFields(data, self._ignore)
        fields._ignored = self._ignored
        return fields

    def take(self, key: str, default: Any = _REQUIRED, *, null: Any = _AS_ABSENT) -> Any:
        """A field's value. default: transformers' own, for an absent field; null: for a written null, if different."""
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

    def size(self, key: str, default: int, least: int = 1) -> int:
        """A field that holds a whole number, at least `least`. default: transformers' own, see `take`."""
        value = self.take(key, default)
        if type(value) is int and value >= least:
            return value
        self.problems.append(f"{key}={value!r} must be a whole number, {least} or more")
        return default

    def expect(self, key: str, allowed: Any, default: Any = None) -> None:
        """A field of which litlm supports one value."""
        value = self.take(key, default)
        if value != allowed:
            self.problems.append(f"{key}={value!r} is not supported for this family, only {allowed!r}")

    def accept_old_names(self, **names: str) -> None:
        """Older names of fields (old=new), which are then read as the new ones, as by transformers' `attribute_map`."""
        renamed = {new: self.data[old] for old, new in names.items() if self.data.get(old) is not None}
        for new, value in renamed.items():
            if self.data.get(new, value) not in (None, value):
                self.problems.append(f"{new}={self.data[new]!r} is also stated as {value!r}, under an older name")
        self.data = {key: value for key, value in self.data.items() if key not in names} | renamed

    def skip(self, keys: str) -> None:
        """Fields (in one text, separated by spaces) that don't change what the model computes."""
        self._taken.update(keys.split())

    def activation(self, key: str, default: str) -> Activation:
        """A field that names an activation function."""
        name = self.take(key, default)
        if name not in ACTIVATIONS:
            self.problems.append(f"{key}={name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}")
            return "silu"
        return ACTIVATIONS[name]

    def common(self, names: Mapping[str, str] | None = None, **defaults: Any) -> dict[str, Any]:
        """The fields that nearly every family has.

        names: our field -> the family's name for it, where it isn't `COMMON`'s. defaults: transformers' own, by our
        names (also tie_embeddings, init_std, bos_token_id, eos_token_id, pad_token_id).
        """
        self.skip("torch_dtype dtype")
        self.expect("is_causal", True, True)  # transformers attends both ways where it is false
        dtype = str(self.data.get("dtype") or self.data.get("torch_dtype") or "float32").removeprefix("torch.")
        if dtype not in ("float32", "bfloat16", "float16"):
            self.problems.append(f"dtype={dtype!r} is not supported; known are float32, bfloat16 and float16")
            dtype = "float32"
        defaults = {"max_seq_len": 2048} | defaults
        sizes = {
            ours: self.take(theirs, defaults.get(ours, _REQUIRED))
            for ours, theirs in (COMMON | dict(names or {})).items()
        }
        eos = self.take("eos_token_id", defaults.get("eos_token_id"), null=None)
        return sizes | dict(
            tie_embeddings=self.take("tie_word_embeddings", defaults.get("tie_embeddings", False)),
            init_std=float(self.take("initializer_range", defaults.get("init_std", 0.02))),
            dtype=dtype,
            bos_token_id=self.take("bos_token_id", defaults.get("bos_token_id"), null=None),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=self.take("pad_token_id", defaults.get("pad_token_id"), null=None),
        )

    def layer_types(
        self, default: Sequence[str], recurrent: str | None = None, attention: Collection[str] = tuple(LAYER_TYPES)
    ) -> tuple[str, ...]:
        """`layer_types` in our names. default: in our names, where the file doesn't list them. recurrent: the family's
        name of recurrent layers, if it has any. attention: its other types, in transformers' names."""
        names = {name: LAYER_TYPES[name] for name in attention} | ({recurrent: "recurrent"} if recurrent else {})
        types = self.take("layer_types", None)
        if types is None:
            return tuple(default)
        if unknown := sorted(set(types) - set(names)):
            self.problems.append(f"layer_types holds {', '.join(unknown)}; known are {', '.join(names)}")
        return tuple(names.get(t, "full") for t in types)

    def sliding(self, window: int | None, default: Sequence[str], recurrent: str | None = None) -> dict[str, Any]:
        """`layer_types`, and `window` as sliding_window where some of them slide."""
        types = self.layer_types(default, recurrent)
        return dict(sliding_window=window if "sliding" in types else None, layer_types=types)

    def experts(
        self,
        key: str = "num_local_experts",
        *,
        n_expert: int,
        n_expert_per_token: int,
        intermediate_size: int,
        aux_loss: float = 0.001,
        **more: Any,
    ) -> MoEConfig:
        """The experts of a family that names them like Mixtral. key: of their number. more: other fields of MoEConfig.

        n_expert, n_expert_per_token, aux_loss: transformers' defaults.
        """
        return MoEConfig(
            n_expert=self.take(key, n_expert),
            n_expert_per_token=self.take("num_experts_per_tok", n_expert_per_token),
            intermediate_size=intermediate_size,
            aux_loss=float(self.take("router_aux_loss_coef", aux_loss)),
            **more,
        )

    def rope(
        self,
        *,
        theta: float = 10000.0,
        theta_key: str = "rope_theta",
        fraction_key: str | None = None,
        fraction: float = 1.0,
        interleaved: bool = False,
        layer_type: str | None = None,
        ignore: Collection[str] = (),
    ) -> RopeConfig:
        """Read `rope_parameters` (transformers 5), or the older `rope_theta` with `rope_scaling`.

        theta, fraction: transformers' defaults. fraction_key: the older name of the fraction of a head that is rotated;
        None for a family that rotates whole heads. layer_type: which entry to read where `rope_parameters` has one per
        layer type (transformers' name). ignore: entries of `rope_parameters` without effect on text.
        """
        old_theta = self.take(theta_key, None)
        old_fraction = self.take(fraction_key or "partial_rotary_factor", None)
        scaling = dict(self.take("rope_parameters", None) or {})
        if layer_type is not None and set(scaling) & set(LAYER_TYPES):
            scaling = dict(scaling.get(layer_type) or {})
        scaling = dict(self.take("rope_scaling", None) or {}) or scaling
        scaling = {key: value for key, value in scaling.items() if key not in ignore}
        stated_theta = scaling.pop("rope_theta", old_theta)
        stated_fraction = scaling.pop("partial_rotary_factor", old_fraction)
        if fraction_key is None and stated_fraction not in (None, 1.0):
            self.problems.append(
                f"partial_rotary_factor={stated_fraction!r} is not supported: this family rotates whole heads"
            )
        return RopeConfig(
            theta=float(stated_theta if stated_theta is not None else theta),
            fraction=float(stated_fraction if stated_fraction is not None else fraction),
            interleaved=interleaved,
            scaling=self.rope_scaling(scaling),
        )

    def rope_scaling(self, data: dict[str, Any]) -> RopeScaling | None:
        """The scaling that `rope_parameters` describes; data: its content, without theta and fraction."""
        rope_type = data.pop("rope_type", None) or data.pop("type", None) or "default"
        data.pop("type", None)
        if rope_type not in ("default", *_ROPE_TYPES, "su"):
            self.problems.append(
                f"rope_parameters.rope_type={rope_type!r} is not supported; known are {', '.join(_ROPE_TYPES)}"
            )
            return None
        data = {k: v for k, v in data.items() if v is not None}
        n_problems = len(self.problems)

        def number(key: str, default: Any = _REQUIRED) -> Any:
            if key not in data and default is _REQUIRED:
                self.problems.append(f"rope_parameters.{key} is missing for rope_type={rope_type!r}")
                return 1.0
            value = data.pop(key, default)
            return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

        limit = self.data.get("max_position_embeddings") or 2048
        inner, outer = data.pop(_ORIGINAL, None), self.data.get(_ORIGINAL)
        original = outer or inner or limit
        scaling: RopeScaling | None = None
        if rope_type == "linear":
            scaling = LinearScaling(factor=number("factor"))
        elif rope_type == "dynamic":
            scaling = DynamicScaling(factor=number("factor"), original_max_seq_len=limit)
        elif rope_type == "llama3":
            factors = {key: number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
            scaling = Llama3Scaling(**factors, original_max_seq_len=original)
        elif rope_type == "yarn":
            scaling = _yarn_scaling(data, number, original)
        elif rope_type in ("longrope", "su"):
            self.skip(_ORIGINAL)
            short, long = (tuple(float(x) for x in data.pop(key, ())) for key in ("short_factor", "long_factor"))
            scaling = LongRopeScaling(
                factor=number("factor", limit / original),
                original_max_seq_len=original,
                short_factor=short,
                long_factor=long,
                attention_factor=number("attention_factor", None),
            )
        data = {f"rope_parameters.{key}": value for key, value in data.items()}
        self._ignored |= data.keys() & set(self._ignore)
        self.problems += [f"{key}={value!r} {_UNKNOWN}" for key, value in data.items() if key not in self._ignore]
        return scaling if len(self.problems) == n_problems else None

    def unknown(self) -> dict[str, Any]:
        """The fields with a value that nobody took, except those that never have an effect."""
        return {
            key: value
            for key, value in self.data.items()
            if not (value is None or value is False or value == "" or value == [] or value == {})
            and key not in self._taken
            and key not in _NO_EFFECT.split()
            and not _NO_EFFECT_PATTERN.match(key)
        }

    def finish(self) -> None:
        """Raise one FieldsError that names every field that is missing, unsupported or not understood."""
        self._ignored |= {key for key in self._ignore if key in self.data and key not in self._taken}
        unknown = {key: value for key, value in self.unknown().items() if key not in self._ignore}
        self.problems += [f"{key}={value!r} {_UNKNOWN}" for key, value in unknown.items()]
        if self.problems:
            names = [problem.partition("=")[0] for problem in self.problems if problem.endswith(_UNKNOWN)]
            remedy = f"If you know that they don't matter: {ignore_option(names)}" if names else ""
            raise FieldsError(
                f"model_type {self.data.get('model_type')!r} with fields that litlm can't follow:\n"
                + "\n".join([*(f"- {p}" for p in dict.fromkeys(self.problems)), *filter(None, [remedy])])
            )

    def check_ignored(self) -> None:
        """Raise ValueError for names in `ignore` that the config doesn't have, or that litlm understands."""
        if unused := sorted(set(self._ignore) - self._ignored):
            raise ValueError(
                f"ignore_fields names {', '.join(unused)}: the config has no such field, or litlm understands it, so "
                "there is nothing to ignore; leave it out"
            )


def _yarn_scaling(data: dict[str, Any], number: Callable[..., Any], original: int) -> YarnScaling:
    data.pop("finetuned", None)  # of the first YaRN checkpoints: about their dynamic variant
    factor, mscale, mscale_all_dim = number("factor"), number("mscale", None), number("mscale_all_dim", None)
    attention_factor = number("attention_factor", None)
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim)
    return YarnScaling(
        factor=factor,
        original_max_seq_len=original,
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=data.pop("truncate", True),
    )


def ignore_option(names: Iterable[str]) -> str:
    """How to ignore these fields, on the command line and in Python."""
    names = list(dict.fromkeys(names))
    return f"{' '.join(f'--ignore_fields {name}' for name in names)} (ignore_fields={names} in Python)"


# What a multimodal model's config states about its text model too; the outer value wins.
_OUTER_FIELDS = ("dtype", "torch_dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def text_config_fields(
    hf: HFFields, families: Sequence[Family], other_fields: str, outer: Sequence[str] = _OUTER_FIELDS
) -> dict[str, Any]:
    """`from_hf` of a multimodal model, of which `text_config` alone is read.

    families: of the text model; the first where `text_config` names none. other_fields: those of the parts left out.
    outer: fields of the whole model's config that win over the text model's own; others only fill in what it lacks.
    """
    hf.skip(other_fields)
    hf.skip(" ".join(_OUTER_FIELDS))
    known = {family.model_type: family for family in families}
    text = hf.take("text_config", None)
    if not isinstance(text, dict):
        hf.problems.append("text_config is missing, so there is no text model to load")
        hf.finish()
        return {}
    name = text.get("model_type", families[0].model_type)
    if name not in known:
        hf.problems.append(f"text_config.model_type={name!r} is not supported; known are {', '.join(known)}")
        hf.finish()
    stated = {key: hf.data[key] for key in _OUTER_FIELDS if hf.data.get(key) is not None}
    winning = {key: value for key, value in stated.items() if key in outer}
    spare = {key: value for key, value in stated.items() if key not in outer and key != "tie_word_embeddings"}
    own = {key: value for key, value in text.items() if key not in spare or value is not None}
    fields = hf.nested({"model_type": name} | spare | own | winning)
    values = known[name].from_hf(fields)
    fields.finish()
    return values | dict(family=name)


# --- writing config.json ---------------------------------------------------------------------------------------------


def hf_common(config: Config, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The inverse of `HFFields.common`."""
    eos = config.eos_token_id
    sizes = {theirs: getattr(config, ours) for ours, theirs in (COMMON | dict(names or {})).items()}
    return sizes | dict(
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
        dtype=config.dtype,
        torch_dtype=config.dtype,
        bos_token_id=config.bos_token_id,
        eos_token_id=list(eos) if isinstance(eos, tuple) else eos,
        pad_token_id=config.pad_token_id,
        use_cache=True,
    )


def hf_head_dim(config: Config) -> dict[str, Any]:
    """`head_dim` where it isn't n_embd / n_head, for config classes of transformers without such a field."""
    return {} if config.head_dim == config.n_embd // config.n_head else {"head_dim": config.head_dim}


def hf_layer_types(config: Config, recurrent: str = "") -> dict[str, Any]:
    """`layer_types`. recurrent: the family's name of recurrent layers."""
    names = HF_LAYER_TYPES | {"recurrent": recurrent}
    return dict(layer_types=[names[t] for t in config.layer_types])


def hf_sliding(config: Config, *, required: bool = False) -> dict[str, Any]:
    """`sliding_window` and `layer_types`. required: transformers wants a window even where no layer slides."""
    window = config.sliding_window or (config.max_seq_len if required else None)
    return dict(sliding_window=window) | hf_layer_types(config)


def hf_experts(config: Config, key: str = "num_local_experts") -> dict[str, Any]:
    """The inverse of `HFFields.experts`, without intermediate_size."""
    assert config.moe is not None
    return {
        key: config.moe.n_expert,
        "num_experts_per_tok": config.moe.n_expert_per_token,
        "router_aux_loss_coef": config.moe.aux_loss,
    }


def hf_rope(rope: RopeConfig | None, *, fraction: bool = False) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 reads it, with the older fields beside it for older readers.

    fraction: the fraction of a head that is rotated is stated even if it is 1, which isn't the family's default.
    """
    assert rope is not None
    parameters = hf_rope_parameters(rope) | (dict(partial_rotary_factor=rope.fraction) if fraction else {})
    return {
        "rope_parameters": parameters,
        "rope_theta": rope.theta,
        "rope_scaling": parameters if rope.scaling is not None else None,
    }


def hf_rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """The content of `rope_parameters`, or of one entry where it has one per layer type."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling is not None:
        scaling = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(rope.scaling).items() if v is not None}
        scaling["rope_type"] = scaling.pop("kind")
        original = scaling.pop("original_max_seq_len", None)
        if original is not None and scaling["rope_type"] != "dynamic":
            scaling[_ORIGINAL] = original
    parameters = scaling | {"rope_theta": rope.theta}
    if rope.fraction != 1.0:
        parameters["partial_rotary_factor"] = rope.fraction
    return parameters
