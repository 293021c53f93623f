"""GGUF files (llama.cpp's format), read through the `gguf` package: config, weights, tokenizer metadata.

Tensor names go through gguf's own table to Hugging Face's names, so a family states its names once. Every quantization
type that `gguf` dequantizes is read; the weights become ordinary floating-point tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litlm.checkpoint.base import WeightSource
from litlm.config import Config
from litlm.families import Family, config_from_hf, family_of_gguf
from litlm.families.base import pattern_of

# Llama 3.1 and later store the effect of their rope scaling, not its parameters; these are the published ones.
_LLAMA3_FACTORS = (8.0, 32.0, 16.0, 4.0)


# Metadata that doesn't change what the model computes.
_HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type")


class _Watched(dict[str, Any]):
    """A dict that remembers which keys were looked up, so that nothing is ignored in silence."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def _reader(path: Path) -> Any:
    import gguf

    class Reader(gguf.GGUFReader):
        """Slicing a plain array is several times cheaper than slicing a memmap; a vocabulary takes 200,000 slices."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return Reader(path)


def _plain(value: Any) -> Any:
    """Metadata floats are fp32: 9.999999747378752e-06 means 1e-5."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GGUFSource(WeightSource):
    """One open GGUF file: `config`, `metadata` and the weights."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            with path.open("rb") as f:
                if f.read(4) != b"GGUF":
                    raise ValueError(f"{path} is not a GGUF file (it does not start with 'GGUF')")
            reader = _reader(path)
            self._tensors = {t.name: t for t in reader.tensors}
            self.metadata: dict[str, Any] = {k: _plain(f.contents()) for k, f in reader.fields.items()}
        except OSError as e:
            raise ValueError(f"{path} can't be read ({e.strerror or e})") from None
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
            self.family = family_of_gguf(str(self.metadata.get("general.architecture")))
            self.config = self._config(self.family)
            self._theirs = self._names(gguf)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    def _config(self, family: Family) -> Config:
        assert family.gguf is not None
        derived = {
            "litlm.vocab_size": self._shape("token_embd.weight")[0],
            "litlm.tied": "output.weight" not in self._tensors,
            "litlm.tensors": self._tensors.keys(),
        }
        metadata = _Watched(self.metadata | derived)
        fields = family.gguf.config(metadata)
        arch = family.gguf.arch + "."
        if unread := {
            key: value
            for key, value in self.metadata.items()
            if value and key.startswith(arch) and key.removeprefix(arch) not in _HARMLESS and key not in metadata.read
        }:
            named = ", ".join(f"{key}={value!r}" for key, value in unread.items())
            raise ValueError(f"metadata not understood, and it might change what the model computes: {named}")
        fields = {key: value for key, value in fields.items() if value is not None}
        if isinstance(layers := fields.get("num_hidden_layers"), int) and layers > len(self._tensors):
            raise ValueError(f"{arch}block_count={layers}, but the file holds {len(self._tensors)} tensors")
        if "rope_freqs.weight" in self._tensors:
            fields["rope_scaling"] = self._llama3_scaling(fields)
        return config_from_hf(fields)

    def _llama3_scaling(self, fields: dict[str, Any]) -> dict[str, Any]:
        from litlm.rope import rope_frequencies

        divisors = torch.from_numpy(np.array(self._tensors["rope_freqs.weight"].data, dtype=np.float32))
        for factor in _LLAMA3_FACTORS:
            scaling = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
            scaling |= dict(original_max_position_embeddings=8192)
            plain = config_from_hf(fields)
            scaled = config_from_hf(fields | {"rope_scaling": scaling})
            ratio = rope_frequencies(plain.rope, plain.head_dim)[0] / rope_frequencies(scaled.rope, plain.head_dim)[0]
            if ratio.shape == divisors.shape and torch.allclose(ratio, divisors, rtol=1e-4):
                return scaling
        raise ValueError("rope_freqs.weight holds rope factors of no known rule, so the model can't be rebuilt")

    def _names(self, gguf: Any) -> dict[str, str]:
        """Hugging Face's name of each tensor -> the file's."""
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self.metadata["general.architecture"])
        table = gguf.get_tensor_name_map(arch, self.config.n_layer)
        names: dict[str, str] = {}
        for rule in self.family.rules:
            for i in range(self.config.n_layer if "{i}" in rule.theirs else 1):
                for p in ("weight", "bias") if "{p}" in rule.theirs else ("",):
                    theirs = rule.theirs.format(i=i, p=p)
                    stored = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
                    if stored in self._tensors:
                        names[theirs] = stored
        # Whatever no rule names keeps its own name, and is then reported as not part of the model.
        unnamed = set(self._tensors) - set(names.values()) - {"rope_freqs.weight"}
        return names | {name: name for name in unnamed}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._shape(stored) for name, stored in self._theirs.items()}

    def _shape(self, stored: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensors[stored].shape))  # GGUF lists dimensions in reverse

    def read(self, name: str) -> Tensor:
        import gguf

        stored = self._tensors[self._theirs[name]]
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {stored.name} has quantization type {stored.tensor_type.name}, "
                "which the gguf package can't dequantize; use a file with another type (Q8_0, Q6_K, Q4_K_M, ...)"
            ) from None
        values = np.require(values, requirements=["C", "W"]).reshape(self._shape(stored.name))
        tensor = torch.from_numpy(values)
        restore = self._restore(name)
        return tensor if restore is None else restore(tensor, self.config)

    def _restore(self, name: str) -> Callable[[Any, Config], Any] | None:
        assert self.family.gguf is not None
        for template, function in self.family.gguf.restore.items():
            if re.match(pattern_of(template), name):
                return function
        return None
