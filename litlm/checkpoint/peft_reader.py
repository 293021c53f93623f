"""Reading an adapter in PEFT's format: its tensors are matched with a model's layers and checked, then applied.

Besides adapters and modules trained in full, a file may hold base weights of adapted layers (`base_layer`, which PEFT
writes for embeddings and output heads, since they may have been resized) and single rows of an embedding
(`token_adapter`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from litlm.checkpoint.peft_targets import SWAPPED_FAMILIES, AdapterTarget, adapter_targets, layer_of, out_features
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
# Weights with a row per token.
_VOCABULARY_WEIGHTS = ("embed.weight", "lm_head.weight", "lm_head.bias", "head_bias")


def _pattern_value(config: dict[str, Any], key: str, module: str, default: float) -> float:
    """A module's value in PEFT's alpha_pattern, whose keys match the end of the module's name."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_copy(tensor: Tensor, weight: Tensor) -> bool:
    """Whether the two are equal, up to one being rounded to the other's dtype."""
    if tensor.shape != weight.shape:
        return False
    tensor = tensor.to(weight.device)
    return torch.equal(tensor, weight.to(tensor.dtype)) or torch.equal(weight, tensor.to(weight.dtype))


def _listed(parts: Iterable[str], embedding: bool) -> str:
    """PEFT's names of an adapter's tensors, for error messages."""
    label = {"A": "embedding_B", "B": "embedding_A"} if embedding else {}
    *names, last = sorted(f"lora_{label.get(p, p)}" for p in parts)
    return f"{', '.join(names)} and {last}" if names else last


def _as_text_model(name: str) -> str:
    """The name that a module inside a multimodal model has in the text model alone."""
    return re.sub(r"\blanguage_model\.", "", name, count=1)


class AdapterReader:
    """The tensors of a PEFT adapter, matched with a model's layers.

    `take` every tensor, `check` them all, then `apply` changes the model unless there are `problems`.
    """

    def __init__(self, model: GPT, config: dict[str, Any]) -> None:
        self.model, self.config, self.problems = model, config, []
        family = get_family(model.config.family)
        self.weights, self.file_weights = family.modules_of(model.config), family.weights_of(model.config)
        self.targets = adapter_targets(model)
        self.loras: dict[str, dict[str, Tensor]] = {}  # A, B and magnitude_vector by the target's name
        self.expert_loras: dict[str, dict[int, dict[str, Tensor]]] = {}  # by our stacked weight and the expert
        self.full: dict[str, Tensor] = {}  # weights trained in full, by our names
        self.base_weights: dict[str, Tensor] = {}  # of adapted layers, by our names
        self.tokens: dict[str, tuple[list[int], Tensor]] = {}  # indices and rows of a weight, by our names
        self.names: dict[str, str] = {}  # the file's names, by ours or the target's

    def take(self, key: str, tensor: Tensor) -> None:
        """Match one tensor of the file, of any shape, with what it belongs to."""
        name = key.removeprefix(PREFIX)
        parts = _KEY.fullmatch(name)
        if parts is None:
            return self._take_other(key, name, tensor)
        module, part, for_embedding = parts["module"], parts["part"], parts["part"].startswith("embedding_")
        if (target := self._stacked(module, parts["inner"].count("base_layer"))) is not None:
            self.loras.setdefault(target.name, {})[part] = tensor
            return None
        match = self._match(f"{module}.weight")
        if match is None or parts["inner"]:
            self._unknown(key)
        elif match.index is not None and match.ours[0] in self.targets:
            self.expert_loras.setdefault(match.ours[0], {}).setdefault(match.index, {})[part] = tensor
            self.names[match.ours[0]] = module
        elif (target := self.targets.get(match.ours[0].removesuffix(".weight"))) is None:
            self.problems.append(f"{key}: this model has no linear layer there")
        elif part != "magnitude_vector" and for_embedding != target.embedding:
            self.problems.append(f"{key}: this model has {'a linear layer' if for_embedding else 'an embedding'} there")
        else:
            if for_embedding:  # PEFT treats an embedding as a transposed layer: embedding_A is (r, V)
                part, tensor = "BA"[part == "embedding_B"], tensor.t() if tensor.dim() == 2 else tensor
            self.loras.setdefault(target.name, {})[part] = tensor
            self.names[target.name] = module
        return None

    def _unknown(self, key: str) -> None:
        self.problems.append(f"{key} is not a LoRA tensor of a {self.model.config.family} model")

    def _match(self, name: str) -> Match | None:
        for found in (name, re.sub(r"^lm_head\b", "embed_out", name)):
            if (match := self.weights.from_theirs(found)) is not None:
                return match
        match = self.file_weights.from_theirs(name)  # adapters of the authors' own code
        return match if match is not None and match.rule.split is None else None

    def _stacked(self, module: str, depth: int) -> AdapterTarget | None:
        """The target in a module of experts: PEFT wraps the module once for each parameter that has an adapter."""
        module = _as_text_model(module)
        parameters = [t for t in dict.fromkeys(self.targets.values()) if t.parameter and t.module == module]
        names = [_as_text_model(name) for name in self.config.get("target_parameters") or []]
        adapted = [p for p in parameters if any(p.name == name or p.name.endswith("." + name) for name in names)]
        return adapted[-1 - depth] if depth < len(adapted) else None

    def _take_other(self, key: str, name: str, tensor: Tensor) -> None:
        base, tokens = _BASE.fullmatch(name), _TOKENS.fullmatch(name)
        if base is None and tokens is None:
            return self._take_full(key, name, tensor)
        match = self._match(f"{base['module']}.{base['leaf']}" if base else f"{tokens['module']}.weight")  # type: ignore[index]
        ours = "" if match is None else match.ours[0]
        if ours not in _VOCABULARY_WEIGHTS:
            return self._unknown(key)
        if base is not None:
            self.base_weights[ours] = tensor
        else:
            self.tokens[ours] = (self._token_indices(key), tensor)
        self.names[ours] = key
        return None

    def _token_indices(self, key: str) -> list[int]:
        """The rows of an embedding that its token adapter holds. The config gives the end of the embedding's name."""
        listed = self.config.get("trainable_token_indices") or []
        if isinstance(listed, list):
            return listed
        module = key.removeprefix(PREFIX).split(".token_adapter")[0]
        return next((indices for end, indices in listed.items() if module.endswith(end)), [])

    def _take_full(self, key: str, name: str, tensor: Tensor) -> None:
        match = self._match(name)
        if match is None or match.index is not None:
            return self._unknown(key)
        try:
            parts = match.split(tensor, self.model.config)
        except (RuntimeError, IndexError):
            return self.problems.append(f"{key} has shape {list(tensor.shape)}, which does not fit this model")
        self.full |= dict(zip(match.ours, parts, strict=True))
        self.names |= dict.fromkeys(match.ours, key)
        return None

    def check(self) -> None:
        """Add to `problems` what is missing or doesn't fit the model's shapes."""
        by_name = {target.name: target for target in self.targets.values()}
        weights = [*self.full.items(), *self.base_weights.items()]
        self.vocab_size = max(
            [self.model.config.vocab_size, *(len(t) for name, t in weights if name in _VOCABULARY_WEIGHTS)]
        )
        for name, parts in self.loras.items():
            self._check_parts(self.names.get(name, name), parts, by_name[name])
        for ours, by_expert in self.expert_loras.items():
            for parts in by_expert.values():
                self._check_parts(self.names[ours], parts, None)
            if len({tuple(t.shape) for parts in by_expert.values() for t in parts.values()}) > 2:
                self.problems.append(f"{self.names[ours]}: all experts need adapters of the same rank")
        for name, tensor in weights:
            weight = self._weight(name)
            if weight is None:
                self.problems.append(f"{self.names[name]}: this model has no such weight")
                continue
            resized = name in _VOCABULARY_WEIGHTS and not self.model.config.head_vocab_size
            wanted = (self.vocab_size, *weight.shape[1:]) if resized else tuple(weight.shape)
            if tensor.shape != wanted:
                self.problems.append(
                    f"{self.names[name]} has shape {list(tensor.shape)}, which does not fit {list(wanted)}"
                )
        for name, (indices, rows) in self.tokens.items():
            wanted = [len(indices), self.model.config.n_embd]
            if list(rows.shape) != wanted:
                text = f"has shape {list(rows.shape)}, and trainable_token_indices asks for {wanted}"
                self.problems.append(f"{self.names[name]} {text}")
            elif beyond := [i for i in indices if not 0 <= i < self.vocab_size]:
                text = f"is for tokens up to {max(beyond)}, and the model has {self.vocab_size} rows"
                self.problems.append(f"{self.names[name]} {text}")

    def _weight(self, name: str) -> Tensor | None:
        """The model's current weight of a name. A tied output head is the embedding."""
        state = self.model.state_dict()
        return state["embed.weight"] if name == "lm_head.weight" and name not in state else state.get(name)

    def _check_parts(self, name: str, parts: dict[str, Tensor], target: AdapterTarget | None) -> None:
        embedding = target is not None and target.embedding
        needed = {"A", "B", "magnitude_vector"} if self.config.get("use_dora") else {"A", "B"}
        if set(parts) != needed:
            listed, required = _listed(parts, embedding), _listed(needed, embedding)
            self.problems.append(f"{name} has {listed} only; {required} are needed")
            return
        if target is None:
            return
        a, b = parts["A"], parts["B"]
        n_expert, n_out, n_in = self._sizes(target)
        r = a.size(0) // n_expert
        wanted = ([r * n_expert, n_in], [n_out, r * n_expert])
        magnitude = parts.get("magnitude_vector")
        misfit = magnitude is not None and magnitude.numel() != (n_in if embedding else n_out)
        if [list(a.shape), list(b.shape)] != list(wanted) or misfit:
            text = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} don't fit a layer of {n_in} to {n_out}"
            if embedding:
                a, b = b.t(), a.t()
                text = f"lora_embedding_A {list(a.shape)} and _B {list(b.shape)} don't fit {n_out} rows of {n_in}"
            self.problems.append(f"{name}: {text}")

    def _sizes(self, target: AdapterTarget) -> tuple[int, int, int]:
        """(number of experts, outputs, inputs) of a target, as PEFT sees it; of an embedding, its rows and columns."""
        n_out = sum(out_features(self.model, name) for name in target.ours)
        layer = layer_of(self.model, target.ours[0])
        if not target.parameter:
            n_in = layer.embedding_dim if isinstance(layer, nn.Embedding) else layer.in_features
            return 1, self.vocab_size if f"{target.ours[0]}.weight" in _VOCABULARY_WEIGHTS else n_out, n_in
        n_expert, _, n_in = layer.shape
        return (n_expert, n_in, n_out) if self.model.config.family in SWAPPED_FAMILIES else (n_expert, n_out, n_in)

    @torch.no_grad()
    def apply(self) -> None:
        """Attach the adapters, and copy the weights that were trained in full."""
        changed = self._prepare_embeddings()
        for target in dict.fromkeys(self.targets.values()):
            if target.name in self.loras:
                self._attach(target, self.loras[target.name])
        for ours, by_expert in self.expert_loras.items():
            self._attach_to_single_experts(ours, by_expert)
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in self.full):
            train_whole(self.model.get_submodule(owner))
        for name, tensor in self.full.items():
            self.model.get_parameter(name).copy_(tensor)
        for owner in ("embed", "lm_head"):
            layer = getattr(self.model, owner)
            if layer is not None and hasattr(layer, "lora"):
                layer.lora.saves_base = f"{owner}.weight" in changed

    def _attach(self, target: AdapterTarget, parts: dict[str, Tensor]) -> None:
        name = self.names.get(target.name, target.name)
        a, b = parts["A"].float(), parts["B"].float()
        r = a.size(0)
        if target.parameter:
            n_expert = self._sizes(target)[0]
            r //= n_expert
            a, b = a.unflatten(0, (n_expert, r)), b.unflatten(1, (r, n_expert)).permute(2, 0, 1)
            if self.model.config.family in SWAPPED_FAMILIES:
                a, b = b.mT, a.mT
        vector = parts.get("magnitude_vector")
        magnitudes = [None] * len(target.ours) if vector is None else target.split(vector.float().reshape(-1, 1))
        first = None
        for ours, rows, magnitude in zip(target.ours, target.split(b), magnitudes, strict=True):
            lora = self._new(ours, r, name)
            if first is None:
                lora.A.copy_(a)
            else:
                lora.A = first.A
            first = first or lora
            lora.B.copy_(rows)
            if magnitude is not None and lora.magnitude is not None:
                lora.magnitude.copy_(magnitude[:, 0])

    def _attach_to_single_experts(self, ours: str, by_expert: dict[int, dict[str, Tensor]]) -> None:
        """Adapters with tensors per expert, as of transformers 4, as one on our stacked weight."""
        lora = self._new(ours, next(iter(by_expert.values()))["A"].size(0), self.names[ours])
        for expert, parts in by_expert.items():
            lora.A[expert].copy_(parts["A"])
            lora.B[expert].copy_(parts["B"])

    def _new(self, ours: str, r: int, name: str) -> LoRA:
        alpha, rslora = self.config.get("lora_alpha", 8), bool(self.config.get("use_rslora"))
        for key in (name, f"{name}.weight"):  # the second where the layer's weight is targeted, as a parameter
            alpha = _pattern_value(self.config, "alpha_pattern", key, alpha)
        scale = alpha / (math.sqrt(r) if rslora else r)
        dropout = float(self.config.get("lora_dropout") or 0.0)
        if isinstance(self.model.get_submodule(ours.rpartition(".")[0]), Experts):
            return attach_to_experts(self.model, ours, r, scale, dropout, rslora=rslora)
        layer = self.model.get_submodule(ours)
        assert isinstance(layer, (nn.Linear, nn.Embedding))
        return attach(layer, r, scale, dropout, rslora=rslora, dora=bool(self.config.get("use_dora")))

    def _prepare_embeddings(self) -> set[str]:
        """Resize, untie and set embedding and output head; the names of weights that differ from the base model's."""
        model, vocab_before = self.model, self.model.config.vocab_size
        resize_embeddings(model, self.vocab_size)
        changed: set[str] = set()
        # Before a tied model is untied: PEFT stores one base weight for both.
        for name, tensor in self.base_weights.items():
            weight = self._weight(name)
            assert weight is not None
            if self.vocab_size > vocab_before or not _is_copy(tensor, weight):
                changed.add(name)
                weight.copy_(tensor)
        separate = bool({"embed.weight", "lm_head.weight"}.intersection(self.full))
        for name, (indices, rows) in self.tokens.items():
            weight = self._weight(name)
            assert weight is not None
            self.full[name] = weight.clone()
            self.full[name][indices] = rows.to(weight)
        if model.lm_head is not None:
            return changed
        if not self._unties():
            self.full = {name: t for name, t in self.full.items() if name != "lm_head.weight"}
        elif not separate and "lm_head.weight" not in self.tokens:
            untie(model, shared=True)
            if self.tokens:  # of the shared weight, so the head differs from the base model's too
                changed.add("lm_head.weight")
        else:
            untie(model)
        return changed

    def _unties(self) -> bool:
        """Whether a tied model's output head becomes a weight of its own.

        It does if embedding or head has an adapter, or if PEFT trained a copy of one of them in full.
        """
        if any(target.ours[0] in ("embed", "lm_head") for target in self.targets.values() if target.name in self.loras):
            return True
        embed, head = self.full.get("embed.weight"), self.full.get("lm_head.weight")
        if embed is not None and head is not None:
            return not torch.equal(embed, head)
        if head is not None:
            return True
        listed = self.config.get("modules_to_save") or []
        name = self.names.get("embed.weight", "").removesuffix(".weight")
        return bool(name) and any(name.endswith(m) for m in listed) and not self.config.get("ensure_weight_tying")
