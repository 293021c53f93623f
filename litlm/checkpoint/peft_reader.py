"""Reading an adapter in PEFT's format: its tensors, sorted out for a model, then laid on it.

Beside adapters and modules trained whole, a file may hold copies of weights that have an adapter (`base_layer`, which
PEFT writes for embeddings and heads, for they may have grown) and single rows of an embedding (`token_adapter`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from litlm.checkpoint.peft_places import SWAPPED, Place, layer_of, places, rows_of
from litlm.families import get_family
from litlm.families.weights import Match
from litlm.model import GPT
from litlm.model.moe import Experts
from litlm.transforms.lora import LoRA, attach, attach_to_experts, train_whole
from litlm.transforms.resize import resize_embeddings, untie

PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+?)(?P<inner>(?:\.base_layer)*)\.lora_(?P<part>(?:embedding_)?[AB]|magnitude_vector)(?:\.weight)?"
)
_BASE = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.base_layer\.(?P<leaf>weight|bias)")
_TOKENS = re.compile(r"(?P<module>.+?)\.token_adapter\.trainable_tokens_delta")
_PER_TOKEN = ("embed.weight", "lm_head.weight", "lm_head.bias", "head_bias")


def _pattern(config: dict[str, Any], key: str, module: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the value of the entry that the module's name ends in."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_copy(tensor: Tensor, weight: Tensor) -> bool:
    """Is one the other, perhaps rounded to fewer bits?"""
    if tensor.shape != weight.shape:
        return False
    tensor = tensor.to(weight.device)
    return torch.equal(tensor, weight.to(tensor.dtype)) or torch.equal(weight, tensor.to(weight.dtype))


def _listed(parts: Iterable[str], embedding: bool) -> str:
    """The file's names of an adapter's parts, for people."""
    label = {"A": "embedding_B", "B": "embedding_A"} if embedding else {}
    *names, last = sorted(f"lora_{label.get(p, p)}" for p in parts)
    return f"{', '.join(names)} and {last}" if names else last


class Reader:
    """An adapter's tensors, sorted out for a model, which `apply` alone changes."""

    def __init__(self, model: GPT, config: dict[str, Any]) -> None:
        self.model, self.config, self.problems = model, config, []
        self.weights = get_family(model.config.family).weights_of(model.config)
        self.place_of = places(model)
        self.found: dict[str, dict[str, Tensor]] = {}  # by the name of the place
        self.single: dict[str, dict[int, dict[str, Tensor]]] = {}  # by our stacked weight and the expert
        self.whole: dict[str, Tensor] = {}  # by our names
        self.bases: dict[str, Tensor] = {}  # copies of weights below an adapter, by our names
        self.tokens: dict[str, tuple[list[int], Tensor]] = {}  # rows of a weight, and which they are, by our names
        self.names: dict[str, str] = {}  # of ours, as the file has them

    def take(self, key: str, tensor: Tensor) -> None:
        name = key.removeprefix(PREFIX)
        parts = _KEY.fullmatch(name)
        if parts is None:
            return self._take_other(key, name, tensor)
        module, part, for_embedding = parts["module"], parts["part"], parts["part"].startswith("embedding_")
        if (place := self._stacked(module, parts["inner"].count("base_layer"))) is not None:
            self.found.setdefault(place.name, {})[part] = tensor
            return None
        match = self._match(f"{module}.weight")
        if match is None or parts["inner"]:
            self._unknown(key)
        elif match.index is not None and match.ours[0] in self.place_of:
            self.single.setdefault(match.ours[0], {}).setdefault(match.index, {})[part] = tensor
            self.names[match.ours[0]] = module
        elif (place := self.place_of.get(match.ours[0].removesuffix(".weight"))) is None:
            self.problems.append(f"{key}: this model has no linear layer there")
        elif part != "magnitude_vector" and for_embedding != place.embedding:
            self.problems.append(f"{key}: this model has {'a linear layer' if for_embedding else 'an embedding'} there")
        else:
            if for_embedding:  # PEFT takes it for the transposed weight of a layer: embedding_A is (r, V)
                part, tensor = "BA"[part == "embedding_B"], tensor.t() if tensor.dim() == 2 else tensor
            self.found.setdefault(place.name, {})[part] = tensor
            self.names[place.name] = module
        return None

    def _unknown(self, key: str) -> None:
        self.problems.append(f"{key} is not a LoRA tensor of a {self.model.config.family} model")

    def _match(self, name: str) -> Match | None:
        return self.weights.from_theirs(name) or self.weights.from_theirs(re.sub(r"^lm_head\b", "embed_out", name))

    def _stacked(self, module: str, depth: int) -> Place | None:
        """The place in a module of experts: PEFT wraps the module once for each parameter that has an adapter."""
        every = [p for p in dict.fromkeys(self.place_of.values()) if p.parameter and p.module == module]
        wanted = self.config.get("target_parameters") or []
        named = [p for p in every if any(p.name == t or p.name.endswith("." + t) for t in wanted)]
        return named[-1 - depth] if depth < len(named) else None

    def _take_other(self, key: str, name: str, tensor: Tensor) -> None:
        base, tokens = _BASE.fullmatch(name), _TOKENS.fullmatch(name)
        if base is None and tokens is None:
            return self._take_whole(key, name, tensor)
        match = self._match(f"{base['module']}.{base['leaf']}" if base else f"{tokens['module']}.weight")  # type: ignore[index]
        ours = "" if match is None else match.ours[0]
        if ours not in _PER_TOKEN:
            return self._unknown(key)
        if base is not None:
            self.bases[ours] = tensor
        else:
            self.tokens[ours] = (self._token_indices(key), tensor)
        self.names[ours] = key
        return None

    def _token_indices(self, key: str) -> list[int]:
        """Which rows of an embedding its token adapter holds. The config names embeddings by the end of their name."""
        listed = self.config.get("trainable_token_indices") or []
        if isinstance(listed, list):
            return listed
        module = key.removeprefix(PREFIX).split(".token_adapter")[0]
        return next((indices for end, indices in listed.items() if module.endswith(end)), [])

    def _take_whole(self, key: str, name: str, tensor: Tensor) -> None:
        match = self._match(name)
        if match is None or match.index is not None:
            return self._unknown(key)
        try:
            parts = match.split(tensor, self.model.config)
        except (RuntimeError, IndexError):
            return self.problems.append(f"{key} has shape {list(tensor.shape)}, which does not fit this model")
        self.whole |= dict(zip(match.ours, parts, strict=True))
        self.names |= dict.fromkeys(match.ours, key)
        return None

    def check(self) -> None:
        """Note as problems what is missing or has another shape."""
        by_name = {place.name: place for place in self.place_of.values()}
        sized = [(n, t) for n, t in (*self.whole.items(), *self.bases.items()) if n in _PER_TOKEN]
        self.vocab = max([self.model.config.vocab_size, *(len(t) for _, t in sized)])
        for name, parts in self.found.items():
            self._check_parts(self.names.get(name, name), parts, by_name[name])
        for ours, each in self.single.items():
            for parts in each.values():
                self._check_parts(self.names[ours], parts, None)
            if len({tuple(t.shape) for parts in each.values() for t in parts.values()}) > 2:
                self.problems.append(f"{self.names[ours]}: all experts need adapters of the same rank")
        for name, tensor in (*self.whole.items(), *self.bases.items()):
            like = self._now(name)
            if like is None:
                self.problems.append(f"{self.names[name]}: this model has no such weight")
                continue
            wanted = (self.vocab, *like.shape[1:]) if name in _PER_TOKEN else tuple(like.shape)
            if tensor.shape != wanted:
                self.problems.append(
                    f"{self.names[name]} has shape {list(tensor.shape)}, which does not fit {list(wanted)}"
                )
        for name, (indices, rows) in self.tokens.items():
            wanted = [len(indices), self.model.config.n_embd]
            if list(rows.shape) != wanted:
                text = f"has shape {list(rows.shape)}, and trainable_token_indices asks for {wanted}"
                self.problems.append(f"{self.names[name]} {text}")
            elif beyond := [i for i in indices if not 0 <= i < self.vocab]:
                text = f"is for tokens up to {max(beyond)}, and the model has {self.vocab} rows"
                self.problems.append(f"{self.names[name]} {text}")

    def _now(self, name: str) -> Tensor | None:
        """What the model has under a name now. A tied one has no head of its own, yet."""
        state = self.model.state_dict()
        return state["embed.weight"] if name == "lm_head.weight" and name not in state else state.get(name)

    def _check_parts(self, name: str, parts: dict[str, Tensor], place: Place | None) -> None:
        embedding = place is not None and place.embedding
        needed = {"A", "B", "magnitude_vector"} if self.config.get("use_dora") else {"A", "B"}
        if set(parts) != needed:
            have, want = _listed(parts, embedding), _listed(needed, embedding)
            self.problems.append(f"{name} has {have} only; {want} are needed")
            return
        if place is None:
            return
        a, b = parts["A"], parts["B"]
        stack, wide, narrow = self._sizes(place)
        r = a.size(0) // stack
        wanted = ([r * stack, narrow], [wide, r * stack])
        lengths = parts.get("magnitude_vector")
        unlike = lengths is not None and lengths.numel() != (narrow if embedding else wide)
        if [list(a.shape), list(b.shape)] != list(wanted) or unlike:
            text = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} don't fit a layer of {narrow} to {wide}"
            if embedding:
                a, b = b.t(), a.t()
                text = f"lora_embedding_A {list(a.shape)} and _B {list(b.shape)} don't fit {wide} rows of {narrow}"
            self.problems.append(f"{name}: {text}")

    def _sizes(self, place: Place) -> tuple[int, int, int]:
        """(number of experts, outputs, inputs) of a place, as PEFT sees it; of an embedding, its rows and columns."""
        wide = sum(rows_of(self.model, name) for name in place.ours)
        if not place.parameter:
            layer = layer_of(self.model, place.ours[0])
            narrow = layer.embedding_dim if isinstance(layer, nn.Embedding) else layer.in_features
            return 1, self.vocab if f"{place.ours[0]}.weight" in _PER_TOKEN else wide, narrow
        n_expert, _, narrow = layer_of(self.model, place.ours[0]).shape
        return (n_expert, narrow, wide) if self.model.config.family in SWAPPED else (n_expert, wide, narrow)

    @torch.no_grad()
    def apply(self) -> None:
        changed = self._settle_embeddings()
        for place in dict.fromkeys(self.place_of.values()):
            if place.name in self.found:
                self._attach(place, self.found[place.name])
        for ours, each in self.single.items():
            self._attach_single(ours, each)
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in self.whole):
            train_whole(self.model.get_submodule(owner))
        for name, tensor in self.whole.items():
            self.model.get_parameter(name).copy_(tensor)
        for owner in ("embed", "lm_head"):
            layer = getattr(self.model, owner)
            if layer is not None and hasattr(layer, "lora"):
                layer.lora.saves_base = f"{owner}.weight" in changed

    def _attach(self, place: Place, parts: dict[str, Tensor]) -> None:
        name = self.names.get(place.name, place.name)
        a, b = parts["A"].float(), parts["B"].float()
        r = a.size(0)
        if place.parameter:
            n_expert = self._sizes(place)[0]
            r //= n_expert
            a, b = a.unflatten(0, (n_expert, r)), b.unflatten(1, (r, n_expert)).permute(2, 0, 1)
            if self.model.config.family in SWAPPED:
                a, b = b.mT, a.mT
        lengths = parts.get("magnitude_vector")
        magnitudes = [None] * len(place.ours) if lengths is None else place.split(lengths.float().reshape(-1, 1))
        first = None
        for ours, rows, magnitude in zip(place.ours, place.split(b), magnitudes, strict=True):
            lora = self._new(ours, r, name)
            if first is None:
                lora.A.copy_(a)
            else:
                lora.A = first.A
            first = first or lora
            lora.B.copy_(rows)
            if magnitude is not None and lora.magnitude is not None:
                lora.magnitude.copy_(magnitude[:, 0])

    def _attach_single(self, ours: str, each: dict[int, dict[str, Tensor]]) -> None:
        """Adapters of single experts, as transformers 4 had them: entries of the stacked one."""
        lora = self._new(ours, next(iter(each.values()))["A"].size(0), self.names[ours])
        for expert, parts in each.items():
            lora.A[expert].copy_(parts["A"])
            lora.B[expert].copy_(parts["B"])

    def _new(self, ours: str, r: int, name: str) -> LoRA:
        alpha, rslora = self.config.get("lora_alpha", 8), bool(self.config.get("use_rslora"))
        for address in (name, f"{name}.weight"):  # the second where the layer's weight is targeted, as a parameter
            alpha = _pattern(self.config, "alpha_pattern", address, alpha)
        scale = alpha / (math.sqrt(r) if rslora else r)
        dropout = float(self.config.get("lora_dropout") or 0.0)
        if isinstance(self.model.get_submodule(ours.rpartition(".")[0]), Experts):
            return attach_to_experts(self.model, ours, r, scale, dropout, rslora=rslora)
        layer = self.model.get_submodule(ours)
        assert isinstance(layer, (nn.Linear, nn.Embedding))
        return attach(layer, r, scale, dropout, rslora=rslora, dora=bool(self.config.get("use_dora")))

    def _settle_embeddings(self) -> set[str]:
        """Size, weights and tying of what adapters are then put on; which weights are not the base model's any more."""
        model, before = self.model, self.model.config.vocab_size
        resize_embeddings(model, self.vocab)
        changed: set[str] = set()
        for name, tensor in self.bases.items():  # of a tied model, before it is untied: the two are one in PEFT, too
            like = self._now(name)
            assert like is not None
            if self.vocab > before or not _is_copy(tensor, like):
                changed.add(name)
                like.copy_(tensor)
        apart = bool({"embed.weight", "lm_head.weight"}.intersection(self.whole))
        for name, (indices, rows) in self.tokens.items():
            like = self._now(name)
            assert like is not None
            self.whole[name] = like.clone()
            self.whole[name][indices] = rows.to(like)
        if model.lm_head is not None:
            return changed
        if not self._unties():
            self.whole = {name: t for name, t in self.whole.items() if name != "lm_head.weight"}
        elif not apart and "lm_head.weight" not in self.tokens:
            untie(model, shared=True)
            if self.tokens:  # of the one weight, which is then not the base model's for the head either
                changed.add("lm_head.weight")
        else:
            untie(model)
        return changed

    def _unties(self) -> bool:
        """Does a tied model's head become another than its embedding?

        It does where one of them has an adapter. Trained whole, a lone one does, where PEFT copied it.
        """
        if any(place.ours[0] in ("embed", "lm_head") for place in self.place_of.values() if place.name in self.found):
            return True
        embed, head = self.whole.get("embed.weight"), self.whole.get("lm_head.weight")
        if embed is not None and head is not None:
            return not torch.equal(embed, head)
        if head is not None:
            return True
        listed = self.config.get("modules_to_save") or []
        place = self.names.get("embed.weight", "").removesuffix(".weight")
        return bool(place) and any(place.endswith(m) for m in listed) and not self.config.get("ensure_weight_tying")
