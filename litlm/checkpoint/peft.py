"""LoRA adapters in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts Hugging Face's modules, so names go through the family's weight rules. Where Hugging Face fuses what litlm
keeps apart (GPT-NeoX's query_key_value), the fused layer's adapter has all parts' A, one under the other, and each
part's B beside zeros, in the order of rows that the family's rule knows: the same function exactly. Read the other way,
the parts share the fused layer's A, as one parameter, and each has its own rows of B: training goes on as in PEFT.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from litlm.checkpoint import adapter
from litlm.checkpoint.base import atomic_file, write_text
from litlm.config import Config
from litlm.families import get_family
from litlm.families.base import Match
from litlm.model import GPT
from litlm.moe import Experts
from litlm.transforms.lora import (
    PROJECTIONS,
    LoRA,
    adapters,
    attach,
    attach_to_experts,
    train_whole,
    trained_whole,
)
from litlm.transforms.quantize import QuantizedLinear, QuantizedStack, weight_of
from litlm.transforms.resize import resize_embeddings, untie

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config")
_KEY = re.compile(r"(?P<module>.+?)(?P<inner>(?:\.base_layer)*)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
# The families whose experts transformers stores as (E, in, out) without saying so to PEFT, which then swaps A and B.
_SWAPPED = ("llama4_text", "llama4")

_NESTING = ("gate_up_proj", "up_proj", "down_proj")  # the order in which PEFT wraps a module of experts, inside out
_PACKED = (QuantizedLinear, QuantizedStack)
_MISTAKEN = (".gate_proj", ".up_proj", ".down_proj")


def _in_memory(name: str) -> str:
    """What transformers calls a tensor of a file: it renames GPT-NeoX's head while it loads."""
    return re.sub(r"^embed_out\b", "lm_head", name)


@dataclass(frozen=True, eq=False)
class Place:
    """Where PEFT has the adapters of some of our weights.

    module: Hugging Face's name of the layer. parameter: of stacked experts, the parameter's name in that module. ours:
    the names of the adapters that it takes, in the rule's order. transposed: its weight is (in, out).
    """

    module: str
    parameter: str
    ours: tuple[str, ...]
    match: Match
    transposed: bool
    config: Config

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
    """The place of every layer and stacked weight that can have an adapter, by our names."""
    weights, found = get_family(model.config.family).weights_of(model.config), {}

    def add(match: Match, ours: tuple[str, ...], module: str, parameter: str = "", stack: tuple[int, ...] = ()) -> None:
        place = Place(module, parameter, ours, match, False, model.config)
        if match.index is None:
            rows = [_rows(model, name) for name in ours]
            columns = sum(rows) + 1  # unlike the rows
            whole = match.join([torch.empty(*stack, n, columns, device="meta") for n in rows], model.config)
            place = Place(module, parameter, ours, match, whole.shape[-1] != columns, model.config)
        found.update(dict.fromkeys(ours, place))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in found:
            (match,) = weights.from_ours(f"{name}.weight", ())
            ours = tuple(n.removesuffix(".weight") for n in match.ours)
            add(match, ours, _in_memory(match.theirs).removesuffix(".weight"))
        elif isinstance(module, Experts):
            own = [f"{name}.{p}" for p in PROJECTIONS if getattr(module, p) is not None]
            for weight in (n for n in own if n not in found):
                stacked = _stack(model, weight)
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
    return found


def _stack(model: GPT, name: str) -> Tensor | QuantizedStack:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _rows(model: GPT, name: str) -> int:
    """How many outputs a layer or stacked weight has."""
    layer: Any = _stack(model, name)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.shape[1]


# --- writing -------------------------------------------------------------------------------------------------------


def save_adapter(model: GPT, out_dir: str | Path, *, base: str) -> None:
    """Write the model's adapters. base: what `LLM.load` takes to get their model (a path is stored whole)."""
    base = str(Path(base).resolve()) if Path(base).exists() else base
    out_dir, place_of, loras = Path(out_dir), places(model), dict(adapters(model))
    if not loras and not trained_whole(model):
        raise ValueError("the model has no LoRA adapters to save")
    groups: dict[Place, dict[str, LoRA]] = {}
    for name, lora in loras.items():
        groups.setdefault(place_of[name], {})[name] = lora
    rslora = bool(loras) and all(x.rslora for x in loras.values())
    dora = any(x.magnitude is not None for x in loras.values())
    as_parameters = not dora and _mistaken(model)  # PEFT has no DoRA of parameters

    def address(place: Place) -> tuple[str, bool]:
        """What PEFT is to adapt, and whether that is a parameter."""
        if as_parameters and not place.parameter and place.module.endswith(_MISTAKEN):
            return f"{place.module}.weight", True
        return place.name, bool(place.parameter)

    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, float]] = {}  # r and alpha
    for place, parts in groups.items():
        a, b, magnitude, scale = _joined(model, place, parts)
        key, r = _PREFIX + place.module, a.size(-2)
        shapes[address(place)[0]] = (r, scale * (math.sqrt(r) if rslora else r))
        if place.parameter:
            around = [p for p in groups if p.module == place.module]
            key += ".base_layer" * sum(p.depth > place.depth for p in around)
            if model.config.family in _SWAPPED:
                a, b = b.mT, a.mT
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)  # (E r, in), (out, r E)
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
        if magnitude is not None:
            tensors[f"{key}.lora_magnitude_vector"] = magnitude
    whole, state = _whole(model)
    tensors |= {_PREFIX + name: t for name, t in state.items()}
    every = [address(place) for ours, place in place_of.items() if ours != "lm_head"]
    modules, parameters = (
        _shortest([n for n, p in every if p == kind], [n for n, p in map(address, groups) if p == kind], 1 + kind)
        for kind in (False, True)
    )
    r, alpha = Counter(shapes.values()).most_common(1)[0][0] if shapes else (8, 8.0)
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=base, r=r, lora_alpha=alpha,
        # PEFT has no dropout of a parameter's adapter, and refuses it.
        lora_dropout=0.0 if parameters else max((x.dropout for x in loras.values()), default=0.0),
        target_modules=modules, target_parameters=parameters or None, bias="none",
        fan_in_fan_out=any(p.transposed and not p.parameter for p in groups),
        inference_mode=True, use_rslora=rslora, use_dora=dora, modules_to_save=whole or None, init_lora_weights=True,
        ensure_weight_tying=model.lm_head is None and _kept_tied(whole),
        rank_pattern={m: s[0] for m, s in shapes.items() if s[0] != r},
        alpha_pattern={m: s[1] for m, s in shapes.items() if s[1] != alpha},
    )  # fmt: skip
    with atomic_file(out_dir / WEIGHTS) as part:
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, part, metadata={"format": "pt"}
        )
    write_text(out_dir / CONFIG, json.dumps(config, indent=2) + "\n")


def _mistaken(model: GPT) -> bool:
    """Does PEFT (0.21) take names of this family's linear layers for the experts, which transformers 4 called so?

    It does where files keep experts apart. A linear layer's weight named as a parameter is adapted just the same.
    """
    return any("{e}" in rule.theirs and ".experts." in rule.theirs for rule in get_family(model.config.family).rules)


@torch.no_grad()
def _joined(model: GPT, place: Place, loras: dict[str, LoRA]) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """A, B, DoRA's magnitude and the scale of the adapter on a whole place; parts without an adapter add nothing."""
    first = next(iter(loras.values()))
    shared = all(torch.equal(lora.A, first.A) for lora in loras.values())
    ordered = [loras[name] for name in place.ours if name in loras]
    a = first.A if shared else torch.cat([lora.A for lora in ordered], -2)
    parts, lengths, start = [], [], 0
    for name in place.ours:
        b = a.new_zeros(*a.shape[:-2], _rows(model, name), a.size(-2))
        if (lora := loras.get(name)) is not None:
            r = lora.B.size(-1)
            b[..., start : start + r] = lora.B * (lora.scale / first.scale)
            start += 0 if shared else r
        parts.append(b)
        if first.magnitude is not None:
            own = None if lora is None else lora.magnitude
            layer = model.get_submodule(name)
            lengths.append(weight_of(layer).float().norm(dim=1).to(a.device) if own is None else own)
    magnitude = place.join([x[:, None] for x in lengths])[:, 0] if lengths else None
    return a, place.join(parts), magnitude, first.scale


def _whole(model: GPT) -> tuple[list[str], dict[str, Tensor]]:
    """What is trained whole: Hugging Face's modules, and all their tensors."""
    owners, packed = set(trained_whole(model)), [n for n, m in model.named_modules() if isinstance(m, _PACKED)]
    state = {
        name: t
        for name, t in model.state_dict().items()
        if ".lora." not in name and not any(name.startswith(p + ".") for p in packed)
    }
    plan = get_family(model.config.family).weights_of(model.config).export_plan({n: t.shape for n, t in state.items()})
    own = [match for match in plan if owners.intersection(n.rpartition(".")[0] for n in match.ours)]
    if odd := next((match for match in own if match.index is not None), None):
        raise ValueError(f"{odd.ours[0]} can't be trained whole in PEFT's format; experts can have adapters (targets)")
    modules = list(dict.fromkeys(match.theirs.rpartition(".")[0] for match in own))
    inside = [match for match in plan if match.theirs.rpartition(".")[0] in modules]
    tensors = {_in_memory(m.theirs): m.join([state[n] for n in m.ours], model.config) for m in inside}
    modules = [_in_memory(f"{name}.").removesuffix(".") for name in modules]
    if model.lm_head is None and "embed" in owners:  # PEFT writes a tied head too
        tensors["lm_head.weight"] = model.embed.weight
        if not _kept_tied(modules):
            modules.append("lm_head")
    return modules, tensors


def _kept_tied(modules: list[str]) -> bool:
    """Does PEFT keep a head tied to an embedding that is trained? It knows embeddings of this name only."""
    return any(name.endswith("embed_tokens") for name in modules)


def _shortest(every: list[str], names: list[str], n_part: int) -> list[str]:
    """The last parts of the names where they select just these of `every`, as people write them; else all of them."""
    ends = sorted({".".join(name.split(".")[-n_part:]) for name in names})
    hit = {name for name in every if ".".join(name.split(".")[-n_part:]) in ends}
    return ends if hit == set(names) else sorted(names)


# --- reading -------------------------------------------------------------------------------------------------------


def read_adapter_config(path: Path) -> dict[str, Any]:
    """`adapter_config.json`, checked for what litlm can apply."""
    file = path / CONFIG
    if not file.is_file():
        if not path.exists():
            raise ValueError(f"{path} does not exist; an adapter is a directory with {CONFIG}")
        inside = f"; did you mean {path / 'final'}?" if (path / "final" / CONFIG).is_file() else ""
        raise ValueError(f"{path} is not an adapter: it has no {CONFIG}{inside}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{file} is not valid JSON ({e})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(config).__name__}")
    if config.get("peft_type") in adapter.METHODS:
        return config  # which checks the rest
    unsupported = {
        "peft_type": config.get("peft_type") != "LORA",
        "bias": config.get("bias", "none") != "none",
        "trainable_token_indices": config.get("trainable_token_indices"),
        "lora_bias": config.get("lora_bias"),
        "layer_replication": config.get("layer_replication"),
        "alora_invocation_tokens": config.get("alora_invocation_tokens"),
        # These start from a base with part of its weights taken out, which this adapter needs again.
        "init_lora_weights": str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE),
        **{key: config.get(key) for key in _VARIANTS},
    }
    if bad := [f"{key}={config.get(key)!r}" for key, is_bad in unsupported.items() if is_bad]:
        raise ValueError(f"{file}: {', '.join(bad)} is not supported; litlm reads LoRA and DoRA adapters")
    return config


def base_of(path: Path) -> str:
    """The model that an adapter says it belongs to."""
    base = read_adapter_config(path).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{path} does not say which model it belongs to; name it: MODEL --adapter {path}, or for merge --base MODEL"
        )
    return base


def _pattern(config: dict[str, Any], key: str, module: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: the value of the entry that the module's name ends in."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def load_adapter(model: GPT, path: str | Path) -> dict[str, Any]:
    """Attach the adapters in directory `path` to the model. All tensors that don't fit are named in one error.

    Embeddings with more rows than the model's make it larger, and a head trained apart from a tied embedding unties the
    two: `model.config` is then another.
    """
    path = Path(path)
    config = read_adapter_config(path)
    if config.get("peft_type") in adapter.METHODS:
        return adapter.load(model, path)
    if any(True for _ in adapters(model)) or trained_whole(model):
        raise ValueError("the model has LoRA adapters already; merge them first (litlm merge)")
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    try:
        with safe_open(path / WEIGHTS, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path / WEIGHTS} is truncated or corrupt ({e})") from None
    reader = _Reader(model, config)
    for key, tensor in tensors.items():
        reader.take(key, tensor)
    reader.check()
    problems = reader.problems + ([] if tensors else [f"{WEIGHTS} holds no tensors"])
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(f"The adapter in {path} does not fit the model:\n" + "\n".join(f"- {p}" for p in shown))
    reader.apply()
    return config


class _Reader:
    """An adapter's tensors, sorted out for a model, which `apply` alone changes."""

    def __init__(self, model: GPT, config: dict[str, Any]) -> None:
        self.model, self.config, self.problems = model, config, []
        self.weights = get_family(model.config.family).weights_of(model.config)
        self.place_of = places(model)
        self.found: dict[str, dict[str, Tensor]] = {}  # by the name of the place
        self.single: dict[str, dict[int, dict[str, Tensor]]] = {}  # by our stacked weight and the expert
        self.whole: dict[str, Tensor] = {}  # by our names
        self.names: dict[str, str] = {}  # of ours, as the file has them

    def take(self, key: str, tensor: Tensor) -> None:
        name, family = key.removeprefix(_PREFIX), self.model.config.family
        parts = _KEY.fullmatch(name)
        if parts is None:
            return self._take_whole(key, name, tensor)
        module, part = parts["module"], parts["part"]
        if (place := self._stacked(module, parts["inner"].count("base_layer"))) is not None:
            self.found.setdefault(place.name, {})[part] = tensor
            return None
        match = self._match(f"{module}.weight")
        if match is None or parts["inner"]:
            self.problems.append(f"{key} is not a LoRA tensor of a {family} model")
        elif match.index is not None and match.ours[0] in self.place_of:
            self.single.setdefault(match.ours[0], {}).setdefault(match.index, {})[part] = tensor
            self.names[match.ours[0]] = module
        elif (place := self.place_of.get(match.ours[0].removesuffix(".weight"))) is None:
            self.problems.append(f"{key}: this model has no linear layer there")
        else:
            self.found.setdefault(place.name, {})[part] = tensor
            self.names[place.name] = module
        return None

    def _match(self, name: str) -> Match | None:
        return self.weights.from_theirs(name) or self.weights.from_theirs(re.sub(r"^lm_head\b", "embed_out", name))

    def _stacked(self, module: str, depth: int) -> Place | None:
        """The place in a module of experts: PEFT wraps the module once for each parameter that has an adapter."""
        every = [p for p in dict.fromkeys(self.place_of.values()) if p.parameter and p.module == module]
        wanted = self.config.get("target_parameters") or []
        named = [p for p in every if any(p.name == t or p.name.endswith("." + t) for t in wanted)]
        return named[-1 - depth] if depth < len(named) else None

    def _take_whole(self, key: str, name: str, tensor: Tensor) -> None:
        match = self._match(name)
        if match is None or match.index is not None:
            return self.problems.append(f"{key} is not a LoRA tensor of a {self.model.config.family} model")
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
        for name, parts in self.found.items():
            self._check_parts(self.names.get(name, name), parts, by_name[name])
        for ours, each in self.single.items():
            for parts in each.values():
                self._check_parts(self.names[ours], parts, None)
            if len({tuple(t.shape) for parts in each.values() for t in parts.values()}) > 2:
                self.problems.append(f"{self.names[ours]}: all experts need adapters of the same rank")
        state, rows = self.model.state_dict(), self.model.config.vocab_size
        self.vocab = max([rows, *(len(t) for n, t in self.whole.items() if n in _PER_TOKEN)])
        for name, tensor in self.whole.items():
            # A tied model has no head of its own, yet.
            like = state["embed.weight"] if name == "lm_head.weight" and name not in state else state.get(name)
            if like is None:
                self.problems.append(f"{self.names[name]}: this model has no such weight")
                continue
            wanted = (self.vocab, *like.shape[1:]) if name in _PER_TOKEN else tuple(like.shape)
            if tensor.shape != wanted:
                self.problems.append(
                    f"{self.names[name]} has shape {list(tensor.shape)}, which does not fit {list(wanted)}"
                )

    def _check_parts(self, name: str, parts: dict[str, Tensor], place: Place | None) -> None:
        needed = {"A", "B", "magnitude_vector"} if self.config.get("use_dora") else {"A", "B"}
        if set(parts) != needed:
            have, want = (", ".join(sorted(f"lora_{p}" for p in x)) for x in (parts, needed))
            self.problems.append(
                f"{name} has {have} only; {want} are needed".replace(", lora_B are", " and lora_B are")
            )
            return
        if place is None:
            return
        a, b = parts["A"], parts["B"]
        stack, wide, narrow = self._sizes(place)
        r = a.size(0) // stack
        wanted = ([r * stack, narrow], [wide, r * stack])
        lengths = parts.get("magnitude_vector")
        if [list(a.shape), list(b.shape)] != list(wanted) or lengths is not None and lengths.numel() != wide:
            self.problems.append(
                f"{name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} don't fit a layer of {narrow} to {wide}"
            )

    def _sizes(self, place: Place) -> tuple[int, int, int]:
        """(number of experts, outputs, inputs) of a place, as PEFT sees it."""
        wide = sum(_rows(self.model, name) for name in place.ours)
        if not place.parameter:
            return 1, wide, self.model.get_submodule(place.ours[0]).in_features  # type: ignore[return-value]
        n_expert, _, narrow = _stack(self.model, place.ours[0]).shape
        return (n_expert, narrow, wide) if self.model.config.family in _SWAPPED else (n_expert, wide, narrow)

    @torch.no_grad()
    def apply(self) -> None:
        for place in dict.fromkeys(self.place_of.values()):
            if place.name in self.found:
                self._attach(place, self.found[place.name])
        for ours, each in self.single.items():
            self._attach_single(ours, each)
        self._apply_whole()

    def _attach(self, place: Place, parts: dict[str, Tensor]) -> None:
        name = self.names.get(place.name, place.name)
        a, b = parts["A"].float(), parts["B"].float()
        r = a.size(0)
        if place.parameter:
            n_expert = self._sizes(place)[0]
            r //= n_expert
            a, b = a.unflatten(0, (n_expert, r)), b.unflatten(1, (r, n_expert)).permute(2, 0, 1)
            if self.model.config.family in _SWAPPED:
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
        owner, _, leaf = ours.rpartition(".")
        parent = self.model.get_submodule(owner)
        if isinstance(parent, Experts):
            return attach_to_experts(parent, leaf, r, scale, dropout, rslora=rslora)
        layer = self.model.get_submodule(ours)
        assert isinstance(layer, nn.Linear)
        return attach(layer, r, scale, dropout, rslora=rslora, dora=bool(self.config.get("use_dora")))

    def _apply_whole(self) -> None:
        model, whole = self.model, self.whole
        resize_embeddings(model, self.vocab)
        if model.lm_head is None and self._unties():
            untie(model)
        elif model.lm_head is None:
            whole = {name: t for name, t in whole.items() if name != "lm_head.weight"}
        for owner in dict.fromkeys(name.rpartition(".")[0] for name in whole):
            train_whole(model.get_submodule(owner))
        for name, tensor in whole.items():
            model.get_parameter(name).copy_(tensor)

    def _unties(self) -> bool:
        """Does the file have a tied model's head differ from its embedding? A lone one does, where PEFT copied it."""
        embed, head = self.whole.get("embed.weight"), self.whole.get("lm_head.weight")
        if embed is not None and head is not None:
            return not torch.equal(embed, head)
        if head is not None:
            return True
        listed = self.config.get("modules_to_save") or []
        place = self.names.get("embed.weight", "").removesuffix(".weight")
        return bool(place) and any(place.endswith(m) for m in listed) and not self.config.get("ensure_weight_tying")


_PER_TOKEN = ("embed.weight", "lm_head.weight", "lm_head.bias", "head_bias")
