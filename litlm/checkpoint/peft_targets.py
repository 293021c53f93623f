"""The modules and parameters of Hugging Face's model that PEFT adapts for our weights, by the family's weight rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from litlm.config import Config
from litlm.families import get_family
from litlm.families.weights import Match
from litlm.model import GPT
from litlm.model.moe import Experts
from litlm.transforms.lora import PROJECTIONS
from litlm.transforms.quantize import QuantizedStack

_WRAPPING_ORDER = ("gate_up_proj", "up_proj", "down_proj")  # of PEFT's wrappers of experts, from the inside
# Families whose experts transformers stores as (E, in, out) without telling PEFT, which then swaps A and B.
SWAPPED_FAMILIES = ("llama4_text", "llama4")


def loaded_name(name: str) -> str:
    """transformers' name of a tensor of a file after loading: it renames GPT-NeoX's output head."""
    return re.sub(r"^embed_out\b", "lm_head", name)


@dataclass(frozen=True, eq=False)
class AdapterTarget:
    """What PEFT adapts with one adapter: a layer, an embedding, or a parameter of stacked experts.

    module: Hugging Face's name of the layer.
    parameter: of stacked experts, the parameter's name in that module; otherwise empty.
    ours: the names of our layers that it holds, in the rule's order.
    match: the tensor of a checkpoint that holds its weight.
    transposed: its weight is (in, out).
    config: of the model.
    embedding: it is an embedding, whose adapter has other names and is transposed.
    """

    module: str
    parameter: str
    ours: tuple[str, ...]
    match: Match
    transposed: bool
    config: Config
    embedding: bool = False

    @property
    def name(self) -> str:
        """PEFT's name of the target."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def depth(self) -> int:
        """How many of PEFT's wrappers its adapter may be inside of, of the parameters of one module."""
        return _WRAPPING_ORDER.index(self.parameter)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Matrices with a row per output, (..., out, n), of our layers to that of the fused layer."""
        if self.match.index is not None:  # transformers stacks what files keep apart: gate over up
            return torch.cat(list(parts), -2)
        fused = self.match.join(list(parts), self.config)
        return fused.mT if self.transposed else fused

    def split(self, fused: Tensor) -> Sequence[Tensor]:
        """The inverse of `join`: (..., out, n) of the fused layer to those of our layers."""
        if self.match.index is not None:
            return fused.chunk(len(self.ours), -2)
        return self.match.split(fused.mT if self.transposed else fused, self.config)


def adapter_targets(model: GPT) -> dict[str, AdapterTarget]:
    """The target of every layer, embedding and stacked weight that can have an adapter, by our names.

    A tied output head is included: PEFT adapts it as a layer of its own.
    """
    weights, found = get_family(model.config.family).modules_of(model.config), {}

    def add(match: Match, ours: tuple[str, ...], module: str, parameter: str = "", stack: tuple[int, ...] = ()) -> None:
        embedding = ours != ("lm_head",) and isinstance(layer_of(model, ours[0]), nn.Embedding)
        transposed = False
        if match.index is None:
            rows = [out_features(model, name) for name in ours]
            columns = sum(rows) + 1  # differs from the rows
            fused = match.join([torch.empty(*stack, n, columns, device="meta") for n in rows], model.config)
            transposed = fused.shape[-1] != columns
        target = AdapterTarget(module, parameter, ours, match, transposed, model.config, embedding)
        found.update(dict.fromkeys(ours, target))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and name not in found:
            (match,) = weights.from_ours(f"{name}.weight", ())
            ours = tuple(n.removesuffix(".weight") for n in match.ours)
            add(match, ours, loaded_name(match.theirs).removesuffix(".weight"))
        elif isinstance(module, Experts):
            projections = [f"{name}.{p}" for p in PROJECTIONS if getattr(module, p) is not None]
            for weight in (n for n in projections if n not in found):
                stacked = layer_of(model, weight)
                match = weights.from_ours(weight, stacked.shape)[0]
                ours = match.ours
                if match.index is not None and not weight.endswith("down_proj"):
                    ours = tuple(n for n in projections if not n.endswith("down_proj"))
                if match.index is not None:
                    container = match.theirs.split(".experts.")[0].replace(".block_sparse_moe", ".mlp")
                else:  # before `experts`, or for Granite `input_linear` and `output_linear`
                    container = re.split(r"\.(?:experts|\w+_linear)\b", match.theirs)[0]
                parameter = weight.rpartition(".")[2] if len(ours) == 1 else "gate_up_proj"
                add(match, ours, f"{container}.experts", parameter, (stacked.shape[0],))
    if model.lm_head is None:
        for match in weights.from_ours("lm_head.weight", ()):
            add(match, ("lm_head",), loaded_name(match.theirs).removesuffix(".weight"))
    return found


def layer_of(model: GPT, name: str) -> Any:
    """A layer, an embedding or a stacked weight of experts, by our name. A tied output head is the embedding."""
    if name == "lm_head" and model.lm_head is None:
        return model.embed
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def out_features(model: GPT, name: str) -> int:
    """Outputs of a layer or stacked weight, or rows of an embedding."""
    layer: Tensor | QuantizedStack | nn.Module = layer_of(model, name)
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings
    return layer.out_features if isinstance(layer, nn.Linear) else layer.shape[1]  # type: ignore[return-value, union-attr, index]
