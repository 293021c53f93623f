"""GGUF files (llama.cpp's format), read through the `gguf` package: config, weights, tokenizer metadata.

gguf's own table maps names of tensors to Hugging Face's, so a family states its names once. All quantization types that
`gguf` dequantizes are read, as floating-point tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litlm.checkpoint.base import WeightSource
from litlm.config import Config
from litlm.families import GGUFFields, GGUFSpec, Rule, WeightMap, family_of_gguf
from litlm.io.errors import unreadable

Split = Callable[[Any, Config], Sequence[Any]]
Join = Callable[[Sequence[Any]], Any]

_ROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight")

# Files of Llama 3.1 and later hold the effect of the rope scaling instead of its parameters; these were published.
_LLAMA3_FACTORS = (8.0, 32.0, 16.0, 4.0)


def _reader(path: Path) -> Any:
    import gguf

    class Reader(gguf.GGUFReader):
        """A plain array is several times faster to slice than a memmap, and a vocabulary takes 200,000 slices."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return Reader(path)


def _shortest_float(value: Any) -> Any:
    """The shortest number with the same fp32 value: 9.999999747378752e-06 was 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GGUFSource(WeightSource):
    """One GGUF file: `config`, `metadata` and the weights. Raises ValueError if it can't be read or followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as f:
                if f.read(4) != b"GGUF":
                    raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF')")
            reader = _reader(path)
            self._tensors = {t.name: t for t in reader.tensors}
            self.metadata: dict[str, Any] = {k: _shortest_float(f.contents()) for k, f in reader.fields.items()}
        except OSError as e:
            raise unreadable(path, e) from None
        except (IndexError, KeyError, TypeError, UnicodeDecodeError) as e:
            raise ValueError(f"{path} is truncated or corrupt ({e}); download it again") from None
        except ValueError as e:
            if str(path) in str(e):
                raise
            raise ValueError(f"{path} is truncated or corrupt ({e}); download it again") from None
        try:
            if (parts := self.metadata.get("split.count", 0)) > 1:
                raise ValueError(f"it is one of {parts} files of a split model; join them with llama.cpp's gguf-split")
            if "token_embd.weight" not in self._tensors:
                raise ValueError("token_embd.weight is missing, so it holds no language model")
            self.family = family_of_gguf(self._fields())
            assert self.family.gguf is not None
            self._spec = self.family.gguf
            self._merged, self._from_metadata = self._derived_tensors()
            self.config = self._config()
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None
        except (ArithmeticError, LookupError, TypeError) as e:
            raise ValueError(f"{path}: its metadata makes no sense ({e!r}); download it again") from None

    def _fields(self) -> GGUFFields:
        values = {name: found for name in _ROPE_FACTORS if (found := self._factors(name)) is not None}
        return GGUFFields(self.metadata, {name: self._shape(name) for name in self._tensors}, values)

    def _config(self) -> Config:
        gguf = self._fields()
        fields = self._spec.from_gguf(gguf)
        for key in self._spec.metadata_tensors.values():
            gguf.get(key)
        if unread := gguf.unread():
            named = ", ".join(f"{key}={value!r}" for key, value in unread.items())
            raise ValueError(f"metadata not understood, and it might change what the model computes: {named}")
        layers = gguf.get("block_count")
        if layers > len(self._tensors):
            raise ValueError(f"{gguf.arch}.block_count={layers}, but the file holds {len(self._tensors)} tensors")
        if "rope_freqs.weight" in self._tensors and not self._spec.reads_rope_freqs:
            fields["rope_scaling"] = self._llama3_scaling(fields)
        return Config.from_hf(fields)

    def _llama3_scaling(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The published Llama 3 scaling that gives the file's divisors; else the divisors themselves, as LongRoPE."""
        from litlm.model.rope import rope_frequencies

        divisors = self._factors("rope_freqs.weight") or []
        unscaled = Config.from_hf(fields)
        assert unscaled.rope is not None
        frequencies = rope_frequencies(unscaled.rope, unscaled.head_dim)[0]
        if len(divisors) != len(frequencies) or not all(0 < divisor < math.inf for divisor in divisors):
            raise ValueError(f"rope_freqs.weight must hold {len(frequencies)} positive numbers, but holds {divisors}")
        for factor in _LLAMA3_FACTORS:
            scaling: dict[str, Any] = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
            scaling |= dict(original_max_position_embeddings=8192)
            scaled = Config.from_hf(fields | {"rope_scaling": scaling}).rope
            assert scaled is not None
            ratio = frequencies / rope_frequencies(scaled, unscaled.head_dim)[0]
            if torch.allclose(ratio, torch.tensor(divisors), rtol=1e-4):
                return scaling
        lists = dict(short_factor=divisors, long_factor=divisors, attention_factor=1.0)
        return dict(rope_type="longrope", original_max_position_embeddings=fields["max_position_embeddings"]) | lists

    def _factors(self, name: str) -> list[float] | None:
        """The values of a small fp32 tensor that is really metadata; None if the file has no such tensor."""
        if name not in self._tensors:
            return None
        return [
            _shortest_float(float(value)) for value in np.array(self._tensors[name].data, dtype=np.float32).reshape(-1)
        ]

    def _derived_tensors(self) -> tuple[dict[str, tuple[list[str], Join]], dict[str, float]]:
        """Tensors that the file holds in parts (their names, and how to join them), and numbers from its metadata."""
        merged: dict[str, tuple[list[str], Join]] = {}
        numbers: dict[str, float] = {}
        for i in range(len(self._tensors)):
            for name, (parts, join) in self._spec.merged.items():
                stored = [part.format(i=i) for part in parts]
                if all(part in self._tensors for part in stored):
                    merged[name.format(i=i)] = (stored, join)
        for name, key in self._spec.metadata_tensors.items():
            listed = self.metadata.get(key)
            if not isinstance(listed, list):
                raise ValueError(f"{key} is missing or no list with a number for each layer")
            numbers |= {name.format(i=i): float(value) for i, value in enumerate(listed)}
        return merged, numbers

    def weight_map(self, config: Config) -> WeightMap:
        """The family's rules with llama.cpp's names, from gguf's table by Hugging Face name."""
        import gguf

        spec = self._spec
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == (spec.table_arch or spec.arch))
        table = gguf.get_tensor_name_map(arch, config.n_layer)
        restated = {name for rule in spec.rules for name in rule.ours}
        rules = list(spec.rules)
        for rule in self.family.weights_of(config).rules:
            if restated.isdisjoint(rule.ours) and (stored := _stored_name(rule, table)):
                rules.append(Rule(stored, rule.ours, _restoring_split(rule, spec), None))
        unused = [rf"^blk\.{i}\." for i in range(config.n_layer, self._fields().get("block_count"))]
        unused += self.family.ignore_for(config) if self.family.ignore_for else ()
        return WeightMap(rules, (r"^rope_(freqs|factors_long|factors_short)\.weight$", *unused))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        parts = {part for names, _ in self._merged.values() for part in names}
        shapes = {name: self._shape(name) for name in self._tensors if name not in parts}
        for name, (names, join) in self._merged.items():
            shapes[name] = tuple(join([torch.empty(self._shape(part), device="meta") for part in names]).shape)
        return shapes | dict.fromkeys(self._from_metadata, (1,))

    def _shape(self, stored: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensors[stored].shape))  # GGUF lists dimensions in reverse

    def read(self, name: str) -> Tensor:
        import gguf

        if name in self._from_metadata:
            return torch.tensor([self._from_metadata[name]])
        if name in self._merged:
            names, join = self._merged[name]
            return join([self.read(part) for part in names])
        stored = self._tensors[name]
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {name} has quantization type {stored.tensor_type.name}, "
                "which the gguf package can't dequantize; use a file with another type (Q8_0, Q6_K, Q4_K_M, ...)"
            ) from None
        return torch.from_numpy(np.require(values, requirements=["C", "W"]).reshape(self._shape(name)))


def _stored_name(rule: Rule, table: Any) -> str | None:
    """llama.cpp's name for a rule's `theirs`. Experts that Hugging Face's files have apart are stacked there."""
    template = rule.theirs.replace("{e}.", "").replace("_correction_bias", "_correction.bias")
    p = "weight" if "{p}" in template else None
    stored = table.get_name(template.format(i=0, p=p), try_suffixes=(".weight", ".bias"))
    if stored is None:
        return None
    stored = stored.replace("blk.0.", "blk.{i}.")
    return stored.removesuffix(".weight") + ".{p}" if p else stored


def _restoring_split(rule: Rule, spec: GGUFSpec) -> Split | None:
    """The rule's split, after undoing llama.cpp's change of layout."""
    restore = spec.restore.get(rule.theirs)
    if restore is None:
        return rule.split
    split = rule.split
    return lambda t, c: [restore(t, c)] if split is None else split(restore(t, c), c)
