"""Where PEFT has the adapters of our weights: Hugging Face's modules, through the family's weight rules."""

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

_NESTING = ("gate_up_proj", "up_proj", "down_proj")  # the order in which PEFT wraps a module of experts, inside out
# The families whose experts transformers stores as (E, in, out) without saying so to PEFT, which then swaps A and B.
SWAPPED = ("llama4_text", "llama4")


def in_memory(name: str) -> str:
    """What transformers calls a tensor of a file: it renames GPT-NeoX's head while it loads."""
    return re.sub(r"^embed_out\b", "lm_head", name)


@dataclass(frozen=True, eq=False)
class Place:
    """Where PEFT has the adapters of some of our weights.

    module: Hugging Face's name of the layer. parameter: of stacked experts, the parameter's name in that module. ours:
    the names of the adapters that it takes, in the rule's order. transposed: its weight is (in, out). embedding: it is
    one, and its adapter has other names and is transposed.
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
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def depth(self) -> int:
        return _NESTING.index(self.parameter)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What has a row for each output, of our parts -> of the fused layer."""
        if self.match.index is not None:  # transformers stacks what files keep apart: gate over up
            return torch.cat(list(parts), -2)
        whole = self.match.join(list(parts), self.config)
        return whole.mT if self.transposed else whole

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        if self.match.index is not None:
            return whole.chunk(len(self.ours), -2)
        return self.match.split(whole.mT if self.transposed else whole, self.config)


def places(model: GPT) -> dict[str, Place]:
    """The place of every layer, embedding and stacked weight that can have an adapter, by our names.

    A tied model has a head too: in PEFT it is a layer of its own.
    """
    weights, found = get_family(model.config.family).weights_of(model.config), {}

    def add(match: Match, ours: tuple[str, ...], module: str, parameter: str = "", stack: tuple[int, ...] = ()) -> None:
        embedding = ours != ("lm_head",) and isinstance(layer_of(model, ours[0]), nn.Embedding)
        place = Place(module, parameter, ours, match, False, model.config, embedding)
        if match.index is None:
            rows = [rows_of(model, name) for name in ours]
            columns = sum(rows) + 1  # unlike the rows
            whole = match.join([torch.empty(*stack, n, columns, device="meta") for n in rows], model.config)
            place = Place(module, parameter, ours, match, whole.shape[-1] != columns, model.config, embedding)
        found.update(dict.fromkeys(ours, place))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and name not in found:
            (match,) = weights.from_ours(f"{name}.weight", ())
            ours = tuple(n.removesuffix(".weight") for n in match.ours)
            add(match, ours, in_memory(match.theirs).removesuffix(".weight"))
        elif isinstance(module, Experts):
            own = [f"{name}.{p}" for p in PROJECTIONS if getattr(module, p) is not None]
            for weight in (n for n in own if n not in found):
                stacked = layer_of(model, weight)
                match = weights.from_ours(weight, stacked.shape)[0]
                ours = match.ours
                if match.index is not None and not weight.endswith("down_proj"):
                    ours = tuple(n for n in own if not n.endswith("down_proj"))
                if match.index is not None:
                    container = match.theirs.split(".experts.")[0].replace(".block_sparse_moe", ".mlp")
                else:  # before `experts`, or for Granite `input_linear` and `output_linear`
                    container = re.split(r"\.(?:experts|\w+_linear)\b", match.theirs)[0]
                parameter = weight.rpartition(".")[2] if len(ours) == 1 else "gate_up_proj"
                add(match, ours, f"{container}.experts", parameter, (stacked.shape[0],))
    if model.lm_head is None:
        for match in weights.from_ours("lm_head.weight", ()):
            add(match, ("lm_head",), in_memory(match.theirs).removesuffix(".weight"))
    return found


def layer_of(model: GPT, name: str) -> Any:
    """A layer, an embedding or a stacked weight of experts. A tied model's head is its embedding."""
    if name == "lm_head" and model.lm_head is None:
        return model.embed
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def rows_of(model: GPT, name: str) -> int:
    """How many outputs a layer or stacked weight has, or rows an embedding."""
    layer: Tensor | QuantizedStack | nn.Module = layer_of(model, name)
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings
    return layer.out_features if isinstance(layer, nn.Linear) else layer.shape[1]  # type: ignore[return-value, union-attr, index]
