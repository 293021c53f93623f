"""What a family is: a Hugging Face `model_type` as data.

A family says how its `config.json` becomes a `Config` and back, and how its tensors' names (and fused layouts) map to
ours and back. No torch: the functions that split and join tensors only use methods that torch and numpy share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from litlm.config import (
    Config,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from litlm.config.layers import yarn_attention_factor

if TYPE_CHECKING:
    from litlm.families.gguf import GGUFSpec

_REQUIRED = object()
_AS_ABSENT = object()
_ORIGINAL = "original_max_position_embeddings"
_ROPE_TYPES = ("linear", "dynamic", "llama3", "yarn", "longrope")

# Fields of any config.json that don't change what the model computes. Dropout only acts in transformers' own training;
# older versions of transformers wrote here how to sample.
_HARMLESS = """
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
# Nor do notes to oneself, which begin with an underscore (but for two), and ids of tokens, which say what they mean.
_NOTES = re.compile(r"_(?!sliding_window_pattern$|remove_final_layer_norm$)|\w+_token_id$")

# transformers' names of activation functions -> ours.
ACTIVATIONS = {
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

# The fields that nearly every family has: ours -> theirs. A family that calls some of them differently says so.
COMMON = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
}


_UNKNOWN = "is not understood, and it might change what the model computes"


class FieldsError(ValueError):
    """Fields of a config that litlm can't follow."""


class HFFields:
    """A `config.json` being read. `take` marks a field as understood; `finish` objects to what nobody took.

    ignore: fields to which `finish` does not object. Each must be one that it would.
    """

    def __init__(self, data: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
        self.data = data
        self.problems: list[str] = []
        self._taken: set[str] = set()
        self._ignore = ignore
        self._there: set[str] = set()  # those of `ignore` that were found, also by `part`

    def part(self, data: Mapping[str, Any]) -> HFFields:
        """A config inside of this one."""
        fields = HFFields(data, self._ignore)
        fields._there = self._there
        return fields

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

    def common(self, names: Mapping[str, str] | None = None, **defaults: Any) -> dict[str, Any]:
        """The fields that nearly every family has.

        names: our field -> the family's name for it, where that differs from `COMMON`. defaults: transformers' own, by
        our names (also tie_embeddings, init_std, bos_token_id, eos_token_id, pad_token_id).
        """
        self._taken |= {"torch_dtype", "dtype"}
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

    def layer_types(self, default: Sequence[str]) -> tuple[str, ...]:
        """`layer_types` in our names; `default` (in our names) if the file does not list them."""
        types = self.take("layer_types", None)
        if types is None:
            return tuple(default)
        if unknown := sorted(set(types) - set(LAYER_TYPES)):
            self.problems.append(f"layer_types holds {', '.join(unknown)}; known are {', '.join(LAYER_TYPES)}")
        return tuple(LAYER_TYPES.get(t, "full") for t in types)

    def rope(
        self,
        *,
        theta: float = 10000.0,
        theta_key: str = "rope_theta",
        fraction_key: str | None = None,
        fraction: float = 1.0,
        interleaved: bool = False,
        layer_type: str | None = None,
    ) -> RopeConfig:
        """Read `rope_parameters` (transformers 5), or the older `rope_theta` with `rope_scaling`.

        theta, fraction: transformers' defaults. fraction_key: the older name of the share of a head that turns; None
        for a family that turns whole heads. layer_type: which entry to read where `rope_parameters` has one per type of
        layer (transformers' name).
        """
        old_theta = self.take(theta_key, None)
        old_fraction = self.take(fraction_key or "partial_rotary_factor", None)
        scaling = dict(self.take("rope_parameters", None) or {})
        if layer_type is not None and set(scaling) & set(LAYER_TYPES):
            scaling = dict(scaling.get(layer_type) or {})
        scaling = dict(self.take("rope_scaling", None) or {}) or scaling
        found = scaling.pop("rope_theta", old_theta)
        share = scaling.pop("partial_rotary_factor", old_fraction)
        if fraction_key is None and share not in (None, 1.0):
            self.problems.append(f"partial_rotary_factor={share!r} is not supported: this family turns whole heads")
        return RopeConfig(
            theta=float(found if found is not None else theta),
            fraction=float(share if share is not None else fraction),
            interleaved=interleaved,
            scaling=self.rope_scaling(scaling),
        )

    def rope_scaling(self, data: dict[str, Any]) -> RopeScaling | None:
        """The scaling that `rope_parameters` (without theta and fraction) describes."""
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

        limit = self.data.get("max_position_embeddings") or 2048
        inner, outer = data.pop("original_max_position_embeddings", None), self.data.get(_ORIGINAL)
        original = outer or inner or limit
        scaling: RopeScaling | None = None
        if kind == "linear":
            scaling = LinearScaling(factor=number("factor"))
        elif kind == "dynamic":
            scaling = DynamicScaling(factor=number("factor"), original_max_seq_len=limit)
        elif kind == "llama3":
            scaling = Llama3Scaling(
                factor=number("factor"),
                low_freq_factor=number("low_freq_factor"),
                high_freq_factor=number("high_freq_factor"),
                original_max_seq_len=original,
            )
        elif kind == "yarn":
            data.pop("finetuned", None)  # of the first YaRN checkpoints: about their dynamic variant
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
        elif kind in ("longrope", "su"):
            self._taken.add(_ORIGINAL)
            factors = [tuple(float(x) for x in data.pop(key, ())) for key in ("short_factor", "long_factor")]
            scaling = LongRopeScaling(
                factor=number("factor", limit / original),
                original_max_seq_len=original,
                short_factor=factors[0],
                long_factor=factors[1],
                attention_factor=number("attention_factor", None),
            )
        elif kind != "default":
            self.problems.append(
                f"rope_parameters.rope_type={kind!r} is not supported; known are {', '.join(_ROPE_TYPES)}"
            )
            return None
        data = {f"rope_parameters.{key}": value for key, value in data.items()}
        self._there |= data.keys() & set(self._ignore)
        self.problems += [f"{key}={value!r} {_UNKNOWN}" for key, value in data.items() if key not in self._ignore]
        return scaling if len(self.problems) == before else None

    def unknown(self) -> dict[str, Any]:
        """The fields that have a value and that nobody took, but for those that never matter."""
        return {
            key: value
            for key, value in self.data.items()
            if not (value is None or value is False or value == "" or value == [] or value == {})
            and key not in self._taken
            and key not in _HARMLESS.split()
            and not _NOTES.match(key)
        }

    def finish(self) -> None:
        """Raise one ValueError that names every field that is missing, unsupported or not understood."""
        self._there |= {key for key in self._ignore if key in self.data and key not in self._taken}
        unknown = {key: value for key, value in self.unknown().items() if key not in self._ignore}
        self.problems += [f"{key}={value!r} {_UNKNOWN}" for key, value in unknown.items()]
        if self.problems:
            names = [problem.partition("=")[0] for problem in self.problems if problem.endswith(_UNKNOWN)]
            remedy = f"If you know that they don't matter: {ignoring(names)}" if names else ""
            raise FieldsError(
                f"model_type {self.data.get('model_type')!r} with fields that litlm can't follow:\n"
                + "\n".join([*(f"- {p}" for p in dict.fromkeys(self.problems)), *filter(None, [remedy])])
            )

    def check_ignored(self) -> None:
        """Raise a ValueError for names in `ignore` that are not there, or that litlm understands."""
        if wrong := sorted(set(self._ignore) - self._there):
            raise ValueError(
                f"ignore_fields names {', '.join(wrong)}: the config has no such field, or litlm understands it, so "
                "there is nothing to ignore; leave it out"
            )


def ignoring(names: Iterable[str]) -> str:
    """How to ask for it, on the command line and in Python."""
    names = list(dict.fromkeys(names))
    return f"{' '.join(f'--ignore_fields {name}' for name in names)} (ignore_fields={names} in Python)"


def hf_common(config: Config, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The reverse of `HFFields.common`."""
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
    """`head_dim` where it isn't n_embd / n_head, for config classes of transformers that have no such field."""
    return {} if config.head_dim == config.n_embd // config.n_head else {"head_dim": config.head_dim}


def hf_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 reads it, with the older fields beside it for older readers."""
    assert rope is not None
    parameters = hf_rope_parameters(rope)
    return {
        "rope_parameters": parameters,
        "rope_theta": rope.theta,
        "rope_scaling": parameters if rope.scaling is not None else None,
    }


def hf_rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """The content of `rope_parameters`, or of one of its entries where it has one per type of layer."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling is not None:
        scaling = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(rope.scaling).items() if v is not None}
        scaling["rope_type"] = scaling.pop("kind")
        original = scaling.pop("original_max_seq_len", None)
        if original is not None and scaling["rope_type"] != "dynamic":
            scaling["original_max_position_embeddings"] = original
    parameters = scaling | {"rope_theta": rope.theta}
    if rope.fraction != 1.0:
        parameters["partial_rotary_factor"] = rope.fraction
    return parameters


# --- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """`theirs` (one tensor) is `ours` (one or more). `{i}` stands for a layer, `{p}` for weight or bias.

    split(tensor, config) gives our tensors; join(tensors, config) the reverse. Without them the tensor is the same.
    `{e}` in `theirs` alone: their tensors, counted from 0, are the entries of one stacked tensor of ours (experts).
    when(config): does the rule hold for this config? (A tensor may be called differently in some of a family's models.)
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Any, Config], Sequence[Any]] | None = None
    join: Callable[[Sequence[Any], Config], Any] | None = None
    when: Callable[[Config], bool] | None = None


def rename(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,))


def expert_rules(
    theirs: str = "model.layers.{i}.mlp.experts.{e}.", names: str = "gate_proj up_proj down_proj"
) -> list[Rule]:
    """Experts that the files keep apart, one tensor per expert and projection; `names` in the order gate, up, down."""
    ours = ("gate_proj", "up_proj", "down_proj")
    return [
        Rule(f"{theirs}{name}.weight", (f"layers.{{i}}.mlp.experts.{own}",))
        for name, own in zip(names.split(), ours, strict=True)
    ]


def within(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same tensors inside a multimodal checkpoint: as on the hub, and as transformers names them since 4.52."""
    inner = [replace(rule, theirs=rule.theirs.replace("model.", "model.language_model.", 1)) for rule in rules]
    return *(replace(rule, theirs="language_model." + rule.theirs) for rule in rules), *(
        new for new, old in zip(inner, rules, strict=True) if old.theirs.startswith("model.")
    )


# What a multimodal model's config says about its text model as well, and says last.
_OUTER = ("dtype", "torch_dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def text_part(hf: HFFields, families: Sequence[Family], others: str, outer: Sequence[str] = _OUTER) -> dict[str, Any]:
    """`from_hf` of a multimodal model, of which `text_config` alone is read.

    families: of the text model, the first where `text_config` names none. others: fields of the parts left out. outer:
    which fields of the whole model's config go before the text model's own; the others are for what it does not say.
    """
    for key in (*others.split(), *_OUTER):
        hf.take(key, None)
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
    said = {key: hf.data[key] for key in _OUTER if hf.data.get(key) is not None}
    last = {key: value for key, value in said.items() if key in outer}
    spare = {key: value for key, value in said.items() if key not in outer and key != "tie_word_embeddings"}
    fields = hf.part(
        {"model_type": name} | spare | {k: v for k, v in text.items() if k not in spare or v is not None} | last
    )
    values = known[name].from_hf(fields)
    fields.finish()
    return values | dict(family=name)


def in_two(dim: int = 0) -> dict[str, Any]:
    """split and join of a `Rule` whose tensor holds two of ours, one after the other along `dim` (gate and up)."""

    def join(tensors: Sequence[Any], config: Config) -> Any:
        first, second = tensors
        shape = list(first.shape)
        shape[dim] += second.shape[dim]
        whole = first.new_empty(shape)
        whole.narrow(dim, 0, first.shape[dim]).copy_(first)
        whole.narrow(dim, first.shape[dim], second.shape[dim]).copy_(second)
        return whole

    return dict(split=lambda tensor, config: tensor.chunk(2, dim), join=join)


def qkv_in_a_row() -> dict[str, Any]:
    """split and join of a `Rule` whose tensor holds all of q, then k, then v, along dim 0."""

    def split(tensor: Any, config: Config) -> Sequence[Any]:
        q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        return tensor[:q], tensor[q : q + kv], tensor[q + kv :]

    def join(tensors: Sequence[Any], config: Config) -> Any:
        whole = tensors[0].new_empty((sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:]))
        for part, tensor in zip(split(whole, config), tensors, strict=True):
            part[:] = tensor
        return whole

    return dict(split=split, join=join)


def qkv_by_group() -> dict[str, Any]:
    """split and join of a `Rule` whose tensor holds, for each kv head, its heads of q, then its k, then its v."""

    def groups(tensor: Any, config: Config) -> Any:
        n = config.n_head // config.n_kv_head
        return tensor.reshape(config.n_kv_head, n + 2, config.head_dim, *tensor.shape[1:])

    def split(tensor: Any, config: Config) -> Sequence[Any]:
        parts = groups(tensor, config)
        return [x.reshape(-1, *tensor.shape[1:]) for x in (parts[:, :-2], parts[:, -2], parts[:, -1])]

    def join(tensors: Sequence[Any], config: Config) -> Any:
        whole = tensors[0].new_empty((sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:]))
        parts = groups(whole, config)
        for part, tensor in zip((parts[:, :-2], parts[:, -2], parts[:, -1]), tensors, strict=True):
            part[:] = tensor.reshape(part.shape)
        return whole

    return dict(split=split, join=join)


QKV = tuple(f"layers.{{i}}.attn.{x}_proj.{{p}}" for x in "qkv")


@dataclass(frozen=True)
class Family:
    """One `model_type`. ignore: patterns of tensors in its checkpoints that are no part of the model (old buffers,
    vision towers). ignore_for(config): more such patterns, of weights that some layers of this config don't use."""

    model_type: str
    architecture: str
    from_hf: Callable[[HFFields], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    ignore_for: Callable[[Config], tuple[str, ...]] | None = None
    gguf: GGUFSpec | None = None

    @cached_property
    def weights(self) -> WeightMap:
        return WeightMap(self.rules, self.ignore)

    def weights_of(self, config: Config) -> WeightMap:
        """The rules that hold for this config."""
        ignore = self.ignore if self.ignore_for is None else self.ignore + self.ignore_for(config)
        return WeightMap([rule for rule in self.rules if rule.when is None or rule.when(config)], ignore)


def pattern_of(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for key, what in (("i", r"\d+"), ("e", r"\d+"), ("p", "weight|bias")):
        text = text.replace(rf"\{{{key}\}}", f"(?P<{key}>{what})", 1)
    return re.compile(text + r"\Z")


@dataclass(frozen=True)
class Match:
    """One tensor of a checkpoint: the rule it falls under, and both sides' full names.

    index: which entry of our stacked tensor it is, None if it is all of it.
    """

    rule: Rule
    theirs: str
    ours: tuple[str, ...]
    index: int | None = None

    def split(self, tensor: Any, config: Config) -> Sequence[Any]:
        """Their tensor -> ours (entries of ours, where there is an index)."""
        return [tensor] if self.rule.split is None else self.rule.split(tensor, config)

    def join(self, tensors: Sequence[Any], config: Config) -> Any:
        """Our whole tensors -> theirs."""
        if self.index is not None:
            return tensors[0][self.index]
        return tensors[0] if self.rule.join is None else self.rule.join(tensors, config)


class WeightMap:
    """Rules, looked up by either side's names. ignore: patterns of names that hold no weights."""

    def __init__(self, rules: Iterable[Rule], ignore: Iterable[str] = ()) -> None:
        self.rules = tuple(rules)
        self._theirs = [(pattern_of(rule.theirs), rule) for rule in self.rules]
        self._ours = [(pattern_of(name), rule) for rule in self.rules for name in rule.ours]
        self._ignore = [re.compile(p) for p in ignore]

    def ignored(self, theirs: str) -> bool:
        return any(p.search(theirs) for p in self._ignore)

    def from_theirs(self, name: str) -> Match | None:
        """The match of one of their tensors."""
        for pattern, rule in self._theirs:
            if found := pattern.match(name):
                return _match(rule, found.groupdict())
        return None

    def from_ours(self, name: str, shape: Sequence[int]) -> list[Match]:
        """The matches that make up one of our tensors: one, or one per entry of a stacked one."""
        for pattern, rule in self._ours:
            if found := pattern.match(name):
                fill = found.groupdict()
                if "{e}" not in rule.theirs:
                    return [_match(rule, fill)]
                return [_match(rule, fill | {"e": str(e)}) for e in range(shape[0])]
        return []

    def export_plan(self, shapes: Mapping[str, Sequence[int]]) -> list[Match]:
        """The tensors to write for ours (name -> shape), each once. A name without a rule is our own mistake."""
        plan: dict[str, Match] = {}
        for name, shape in shapes.items():
            matches = self.from_ours(name, shape)
            assert matches, f"no weight rule for {name}"
            plan |= {match.theirs: match for match in matches}
        return list(plan.values())


def _match(rule: Rule, fill: Mapping[str, str]) -> Match:
    index = int(fill["e"]) if "{e}" in rule.theirs else None
    return Match(rule, rule.theirs.format(**fill), tuple(ours.format(**fill) for ours in rule.ours), index)


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
