"""What a model is: frozen dataclasses, no torch.

`Config` holds the sizes, flat, under the field's usual names, and one small config per slot (`norm`, `attention`,
`mlp`, `rope`) that says which *kind* of part fills it. Architecture is never inferred from a name. Layers may differ:
`layer_types` is the pattern, and `Config.layer(i)` is the one place where a layer's part of the config is decided.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Normalization. kind: `rms` (Zhang & Sennrich 2019; weight only) or `layer` (Ba et al. 2016; weight and bias)."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention (Ainslie et al. 2023; one group per head is plain multi-head attention).

    bias: q, k and v have one. out_bias: the output projection has one. qk_norm: queries and keys go through an RMSNorm
    over the head size, before rope (Qwen3).
    """

    bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Feed-forward part. kind: `gated` is `down(act(gate(x)) * up(x))` (Shazeer 2020), `plain` `down(act(up(x)))`."""

    kind: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, with a linear blend in between."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023). attention_factor None: 0.1 ln(factor) + 1; truncate rounds the ramp's ends outward."""

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021), on the first `fraction` of each head, in the half-split layout."""

    theta: float = 10000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What one layer is made of: the answer of `Config.layer(i)`."""

    block: Literal["pre", "parallel"]
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    intermediate_size: int
    sliding_window: int | None
    norm: NormConfig
    attention: AttentionConfig
    mlp: MLPConfig
    rope: RopeConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder-only transformer.

    family: Hugging Face `model_type` whose reader and weight rules apply. n_kv_head 0 means n_head; head_dim 0 means
    n_embd / n_head; intermediate_size 0 means 4 n_embd. layer_types: one of `full` or `sliding` for each layer (empty:
    all full); a sliding layer sees the last `sliding_window` tokens, itself included. block: `pre` adds attention, then
    the MLP, each behind its norm; `parallel` adds both to the same input (GPT-J, NeoX). dtype: of the checkpoint.
    """

    name: str = ""
    family: str = "llama"
    vocab_size: int
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    max_seq_len: int = 2048
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    block: Literal["pre", "parallel"] = "pre"
    tie_embeddings: bool = False
    norm: NormConfig = field(default_factory=NormConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layer_types, list):
            object.__setattr__(self, "layer_types", tuple(self.layer_types))
        self._raise(_type_problems(self))
        for key, value in self._derived().items():
            object.__setattr__(self, key, getattr(self, key) or value)
        self._raise(self._problems())

    def _derived(self) -> dict[str, Any]:
        """What the fields that may be left out are then."""
        return {
            "n_kv_head": self.n_head,
            "head_dim": self.n_embd // self.n_head if self.n_head else 0,
            "intermediate_size": 4 * self.n_embd,
            "layer_types": ("full",) * self.n_layer,
        }

    def _raise(self, problems: list[str]) -> None:
        if problems:
            raise ValueError(f"Config {self.name!r} is not valid:\n" + "\n".join(f"- {p}" for p in problems))

    def _problems(self) -> list[str]:
        sizes = (
            "vocab_size",
            "n_layer",
            "n_embd",
            "n_head",
            "n_kv_head",
            "head_dim",
            "intermediate_size",
            "max_seq_len",
        )
        problems = [f"{key}={getattr(self, key)} must be at least 1" for key in sizes if getattr(self, key) < 1]
        if self.n_kv_head > 0 and self.n_head % self.n_kv_head:
            problems.append(f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}")
        if self.n_layer > 0 and len(self.layer_types) != self.n_layer:
            problems.append(f"layer_types has {len(self.layer_types)} entries for n_layer={self.n_layer}")
        for kind in sorted(set(self.layer_types) - {"full", "sliding"}):
            problems.append(f"layer_types holds {kind!r}; known are 'full' and 'sliding'")
        if "sliding" in self.layer_types and not self.sliding_window:
            problems.append("layer_types has sliding layers, so sliding_window must be set (in tokens)")
        if self.sliding_window is not None and self.sliding_window < 1:
            problems.append(f"sliding_window={self.sliding_window} must be at least 1, or None for no window")
        if not 0 < self.rope.fraction <= 1:
            problems.append(f"rope.fraction={self.rope.fraction} must lie in (0, 1]")
        elif self.head_dim > 0 and ((turned := int(self.head_dim * self.rope.fraction)) % 2 or turned == 0):
            problems.append(f"rope turns pairs: head_dim * rope.fraction = {turned} must be even and at least 2")
        if self.rope.theta <= 1:
            problems.append(f"rope.theta={self.rope.theta} must be greater than 1")
        scaling = self.rope.scaling
        if scaling is not None and scaling.factor < 1:
            problems.append(f"rope.scaling.factor={scaling.factor} must be at least 1")
        if isinstance(scaling, (Llama3Scaling, YarnScaling)) and scaling.original_max_seq_len < 1:
            problems.append(f"rope.scaling.original_max_seq_len={scaling.original_max_seq_len} must be at least 1")
        if isinstance(scaling, Llama3Scaling) and not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
            problems.append(
                f"rope.scaling.low_freq_factor={scaling.low_freq_factor} must be positive and less than "
                f"high_freq_factor={scaling.high_freq_factor}"
            )
        if isinstance(scaling, YarnScaling) and not 0 < scaling.beta_slow < scaling.beta_fast:
            problems.append(
                f"rope.scaling.beta_slow={scaling.beta_slow} must be positive and less than "
                f"beta_fast={scaling.beta_fast}"
            )
        if self.norm.eps <= 0:
            problems.append(f"norm.eps={self.norm.eps} must be positive")
        return problems

    def layer(self, i: int) -> LayerConfig:
        """The parts of layer `i` (0-based)."""
        return LayerConfig(
            block=self.block,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_kv_head=self.n_kv_head,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            sliding_window=self.sliding_window if self.layer_types[i] == "sliding" else None,
            norm=self.norm,
            attention=self.attention,
            mlp=self.mlp,
            rope=self.rope,
        )

    def n_parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        total = self.vocab_size * self.n_embd * (1 if self.tie_embeddings else 2)
        for layer in map(self.layer, range(self.n_layer)):
            c, width, kv_width = layer.n_embd, layer.n_head * layer.head_dim, layer.n_kv_head * layer.head_dim
            norm = 1 if layer.norm.kind == "rms" else 2
            total += 2 * norm * c + 2 * c * width + 2 * c * kv_width  # the two norms, q and o, k and v
            total += layer.attention.bias * (width + 2 * kv_width) + layer.attention.out_bias * c
            total += layer.attention.qk_norm * 2 * norm * layer.head_dim
            wide = 2 if layer.mlp.kind == "gated" else 1
            total += (wide + 1) * c * layer.intermediate_size
            total += layer.mlp.bias * (wide * layer.intermediate_size + c)
        return total + self.n_embd * (1 if self.norm.kind == "rms" else 2)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Size of one token's keys and values in all layers."""
        layers = map(self.layer, range(self.n_layer))
        return sum(2 * layer.n_kv_head * layer.head_dim * bytes_per_value for layer in layers)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens, however many the checkpoint names."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    # --- from names, Hugging Face and YAML, and back --------------------------------------------------------------

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Config:
        """The config of a zoo model (`litlm models`), with fields replaced by `overrides`."""
        from litlm.zoo import get_model

        info = get_model(name)
        config = dataclasses.replace(cls.from_hf(dict(info.hf)), name=info.name)
        if not overrides:
            return config
        # What followed from other fields follows from the new ones: n_layer=2 needs no layer_types beside it.
        followed = [key for key, value in config._derived().items() if getattr(config, key) == value]
        return cls.from_dict({k: v for k, v in config.to_dict().items() if k not in followed} | overrides)

    @classmethod
    def from_hf(cls, source: str | Path | dict[str, Any]) -> Config:
        """Read a Hugging Face `config.json`: a directory that holds one, the file itself, or its content.

        A field that changes the math and that litlm does not understand is an error that names it.
        """
        from litlm.families import config_from_hf

        if isinstance(source, dict):
            return config_from_hf(source)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path} does not exist; a checkpoint directory needs a config.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise ValueError(f"{path} is not valid JSON ({e}); download it again") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
        try:
            return dataclasses.replace(config_from_hf(content), name=path.parent.resolve().name)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` with which transformers builds the same model."""
        from litlm.families import config_to_hf

        return config_to_hf(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as YAML and JSON hold them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """The reverse of `to_dict`. Unknown fields and wrong types are reported together."""
        problems: list[str] = []
        config = _build(cls, data, "", problems)
        if problems:
            raise ValueError("The config is not valid:\n" + "\n".join(f"- {p}" for p in problems))
        return config

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The config as YAML text; also written to `path` if given."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a file written by `to_yaml`, or by hand; fields left out have their defaults."""
        import yaml

        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as e:
            raise ValueError(f"{path} can't be read ({e.strerror or e})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ValueError(f"{path} is not valid YAML: {e}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold a mapping of config fields")
        try:
            return cls.from_dict(data)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None


# --- dataclasses from plain data, with every problem reported ------------------------------------------------------


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Is `value` one of the simple types that config fields use?"""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any, hint: Any) -> Any:
    """`value` as a file spells it -> as a field holds it: lists are tuples, and YAML takes 1e-5 for text."""
    if isinstance(value, str) and float in _options(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return tuple(value) if isinstance(value, list) else value


def _misfit(name: str, value: Any, hint: Any) -> list[str]:
    fits = any(_fits(value, option) for option in _options(hint))
    return [] if fits else [f"{name}={value!r} must be {_describe(hint)}"]


def _describe(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            names += [repr(v) for v in typing.get_args(option)]
        else:
            names.append("None" if option is type(None) else getattr(option, "__name__", str(option)))
    return " or ".join(names)


def _type_problems(config: Any, prefix: str = "") -> list[str]:
    problems = []
    hints = _hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        problems += _misfit(prefix + f.name, value, hints[f.name])
        if dataclasses.is_dataclass(value):
            problems += _type_problems(value, f"{prefix}{f.name}.")
    return problems


def _build(cls: Any, data: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    """Fill dataclass `cls` from `data`; append what is wrong to `problems` (the result is then meaningless)."""
    hints, known = _hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    found = len(problems)
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            problems.append(f"unknown field {prefix}{key}" + (f"; did you mean {prefix}{close[0]}?" if close else ""))
            continue
        nested = [option for option in _options(hints[key]) if dataclasses.is_dataclass(option)]
        if isinstance(value, dict) and nested:
            # Several dataclasses in one field (rope.scaling) are told apart by their `kind`.
            kinds = {typing.get_args(_hints(option)["kind"])[0]: option for option in nested} if len(nested) > 1 else {}
            target = kinds.get(value.get("kind")) if kinds else nested[0]
            if target is None:
                problems.append(
                    f"{prefix}{key}.kind={value.get('kind')!r} must be one of {', '.join(map(repr, kinds))}"
                )
                continue
            values[key] = _build(target, value, f"{prefix}{key}.", problems)
        else:
            values[key] = _plain(value, hints[key])
            problems += _misfit(prefix + key, values[key], hints[key])
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{prefix}{name} is missing")
    return None if len(problems) > found else cls(**values)
