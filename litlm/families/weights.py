"""How a family's checkpoint tensors map to ours and back: renamed, split and joined, or stacked (experts).

`theirs` are Hugging Face's names, `ours` litlm's. No torch: what splits and joins tensors only uses methods that torch
and numpy share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litlm.config import Config

QKV = tuple(f"layers.{{i}}.attn.{x}_proj.{{p}}" for x in "qkv")


@dataclass(frozen=True)
class Rule:
    """One tensor of a checkpoint and the tensor or tensors of ours that it holds.

    theirs, ours: templates of names; `{i}` is a layer, `{p}` weight or bias. `{e}` in `theirs` alone: these tensors are
        the entries, counted from 0, of one stacked tensor of ours (experts).
    split: split(tensor, config) gives our tensors; None: the tensor is the same.
    join: join(tensors, config) is the inverse.
    when: when(config): the rule applies to this config; None: to all of the family's.
    layers: layers(config, i): it applies to layer `i`; None: to all layers.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Any, Config], Sequence[Any]] | None = None
    join: Callable[[Sequence[Any], Config], Any] | None = None
    when: Callable[[Config], bool] | None = None
    layers: Callable[[Config, int], bool] | None = None


def rename(theirs: str, ours: str) -> Rule:
    """A rule for a tensor that only has another name."""
    return Rule(theirs, (ours,))


def mlp_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules for gate_proj, up_proj and down_proj below two prefixes."""
    return [rename(f"{theirs}{name}_proj.{{p}}", f"{ours}{name}_proj.{{p}}") for name in ("gate", "up", "down")]


def expert_rules(
    theirs: str = "model.layers.{i}.mlp.experts.{e}.", names: str = "gate_proj up_proj down_proj"
) -> list[Rule]:
    """Rules for experts with one tensor per expert and projection. names: theirs, in the order gate, up, down."""
    ours = ("gate_proj", "up_proj", "down_proj")
    return [
        rename(f"{theirs}{name}.weight", f"layers.{{i}}.mlp.experts.{own}")
        for name, own in zip(names.split(), ours, strict=True)
    ]


def nested_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The same tensors inside a multimodal checkpoint: as on the hub, and as transformers names them since 4.52."""
    inner = [replace(rule, theirs=rule.theirs.replace("model.", "model.language_model.", 1)) for rule in rules]
    return *(replace(rule, theirs="language_model." + rule.theirs) for rule in rules), *(
        new for new, old in zip(inner, rules, strict=True) if old.theirs.startswith("model.")
    )


def renamed_rules(rules: Sequence[Rule], names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The same rules with parts of `theirs` replaced. names: old part -> new."""
    for old, new in names.items():
        rules = [replace(rule, theirs=rule.theirs.replace(old, new)) for rule in rules]
    return tuple(rules)


# --- fused tensors ---------------------------------------------------------------------------------------------------


def fused_gate_up(dim: int = 0) -> dict[str, Any]:
    """split and join of a rule whose tensor holds the gate projection, then the up projection, along `dim`."""

    def join(tensors: Sequence[Any], config: Config) -> Any:
        gate, up = tensors
        shape = list(gate.shape)
        shape[dim] += up.shape[dim]
        fused = gate.new_empty(shape)
        fused.narrow(dim, 0, gate.shape[dim]).copy_(gate)
        fused.narrow(dim, gate.shape[dim], up.shape[dim]).copy_(up)
        return fused

    return dict(split=lambda tensor, config: tensor.chunk(2, dim), join=join)


def interleaved_gate_up() -> dict[str, Any]:
    """split and join of a rule whose tensor, (E, 2 N, ...), alternates rows of gate and up (gpt-oss)."""

    def join(tensors: Sequence[Any], config: Config) -> Any:
        gate, up = tensors
        fused = gate.new_empty((len(gate), 2 * gate.shape[1], *gate.shape[2:]))
        fused[:, 0::2], fused[:, 1::2] = gate, up
        return fused

    return dict(split=lambda tensor, config: (tensor[:, 0::2], tensor[:, 1::2]), join=join)


def fused_views(views: Callable[[Any, Config], Sequence[Any]]) -> dict[str, Any]:
    """split and join of a rule whose tensor's rows hold several of ours: views(tensor, config) shows where each is."""

    def split(tensor: Any, config: Config) -> Sequence[Any]:
        return [view.reshape(-1, *tensor.shape[1:]) for view in views(tensor, config)]

    def join(tensors: Sequence[Any], config: Config) -> Any:
        fused = tensors[0].new_empty((sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:]))
        for view, tensor in zip(views(fused, config), tensors, strict=True):
            view[:] = tensor.reshape(view.shape)
        return fused

    return dict(split=split, join=join)


def fused_qkv() -> dict[str, Any]:
    """split and join of a rule whose tensor, (H D + 2 K D, ...), holds all of q, then k, then v."""

    def views(tensor: Any, config: Config) -> Sequence[Any]:
        q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        return tensor[:q], tensor[q : q + kv], tensor[q + kv :]

    return fused_views(views)


def qkv_by_group() -> dict[str, Any]:
    """split and join of a rule whose tensor, (H D + 2 K D, ...), holds per KV head its queries, then its k and v."""

    def views(tensor: Any, config: Config) -> Sequence[Any]:
        n = config.n_head // config.n_kv_head
        groups = tensor.reshape(config.n_kv_head, n + 2, config.head_dim, *tensor.shape[1:])
        return groups[:, :-2], groups[:, -2], groups[:, -1]

    return fused_views(views)


def conv_rule(theirs: str, ours: str) -> Rule:
    """A rule for the kernels of a depthwise convolution, (C, 1, W) in an `nn.Conv1d` and (C, W) here."""
    return Rule(
        theirs,
        (ours,),
        split=lambda tensor, config: [tensor.reshape(tensor.shape[0], -1)],
        join=lambda tensors, config: tensors[0].reshape(len(tensors[0]), 1, -1),
    )


def transposed(rule: Rule) -> Rule:
    """The rule for a tensor whose last two dimensions are stored swapped: (in, out), or (E, in, out)."""
    split, join = rule.split or (lambda tensor, config: [tensor]), rule.join or (lambda tensors, config: tensors[0])
    return replace(
        rule,
        split=lambda tensor, config: split(tensor.swapaxes(-1, -2), config),
        join=lambda tensors, config: join(tensors, config).swapaxes(-1, -2),
    )


# --- looking rules up ------------------------------------------------------------------------------------------------


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for key, what in (("i", r"\d+"), ("e", r"\d+"), ("p", "weight|bias")):
        text = text.replace(rf"\{{{key}\}}", f"(?P<{key}>{what})", 1)
    return re.compile(text + r"\Z")


@dataclass(frozen=True)
class Match:
    """One tensor of a checkpoint, found by its name.

    rule: that it matches.
    theirs, ours: full names.
    index: the entry of our stacked tensor that it is; None: all of it.
    """

    rule: Rule
    theirs: str
    ours: tuple[str, ...]
    index: int | None = None

    def split(self, tensor: Any, config: Config) -> Sequence[Any]:
        """Their tensor to ours (to entries of ours, where there is an index)."""
        return [tensor] if self.rule.split is None else self.rule.split(tensor, config)

    def join(self, tensors: Sequence[Any], config: Config) -> Any:
        """Our whole tensors to theirs."""
        if self.index is not None:
            return tensors[0][self.index]
        return tensors[0] if self.rule.join is None else self.rule.join(tensors, config)


class WeightMap:
    """Rules, looked up by either side's names.

    ignore: patterns of names that hold no weights of the model. config: of the model, for `Rule.layers`; None: the
    rules for some layers apply to all.
    """

    def __init__(self, rules: Iterable[Rule], ignore: Iterable[str] = (), config: Config | None = None) -> None:
        self.rules, self._config = tuple(rules), config
        self._theirs = [(_pattern(rule.theirs), rule) for rule in self.rules]
        self._ours = [(_pattern(name), rule) for rule in self.rules for name in rule.ours]
        self._ignore = [re.compile(p) for p in ignore]

    def ignored(self, theirs: str) -> bool:
        """Whether a tensor is no part of the model."""
        return any(p.search(theirs) for p in self._ignore)

    def from_theirs(self, name: str) -> Match | None:
        """The match of one of their tensors; None: no rule has this name."""
        for pattern, rule in self._theirs:
            if (found := pattern.match(name)) and self._applies(rule, found):
                return _match(rule, found.groupdict())
        return None

    def from_ours(self, name: str, shape: Sequence[int]) -> list[Match]:
        """The matches that make up one of our tensors: one, or one per entry of a stacked tensor."""
        for pattern, rule in self._ours:
            if (found := pattern.match(name)) and self._applies(rule, found):
                values = found.groupdict()
                if "{e}" not in rule.theirs:
                    return [_match(rule, values)]
                return [_match(rule, values | {"e": str(e)}) for e in range(shape[0])]
        return []

    def _applies(self, rule: Rule, found: re.Match[str]) -> bool:
        config, i = self._config, found.groupdict().get("i")
        if rule.layers is None or config is None or i is None:
            return True
        return int(i) < config.n_layer and rule.layers(config, int(i))

    def export_plan(self, shapes: Mapping[str, Sequence[int]]) -> list[Match]:
        """The tensors to write, each once, for ours (name -> shape). Every name must have a rule."""
        plan: dict[str, Match] = {}
        for name, shape in shapes.items():
            matches = self.from_ours(name, shape)
            assert matches, f"no weight rule for {name}"
            plan |= {match.theirs: match for match in matches}
        return list(plan.values())


def _match(rule: Rule, values: Mapping[str, str]) -> Match:
    index = int(values["e"]) if "{e}" in rule.theirs else None
    return Match(rule, rule.theirs.format(**values), tuple(ours.format(**values) for ours in rule.ours), index)


# --- the names of Llama, which most families use ---------------------------------------------------------------------

LLAMA_RULES = (
    rename("model.embed_tokens.weight", "embed.weight"),
    rename("model.layers.{i}.input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
    rename("model.layers.{i}.self_attn.q_proj.{p}", "layers.{i}.attn.q_proj.{p}"),
    rename("model.layers.{i}.self_attn.k_proj.{p}", "layers.{i}.attn.k_proj.{p}"),
    rename("model.layers.{i}.self_attn.v_proj.{p}", "layers.{i}.attn.v_proj.{p}"),
    rename("model.layers.{i}.self_attn.o_proj.{p}", "layers.{i}.attn.o_proj.{p}"),
    rename("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.mlp_norm.{p}"),
    *mlp_rules("model.layers.{i}.mlp.", "layers.{i}.mlp."),
    rename("model.norm.{p}", "norm.{p}"),
    rename("lm_head.weight", "lm_head.weight"),
)
QK_NORM_RULES = (
    rename("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    rename("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
)


def llama_rules_without(*parts: str) -> tuple[Rule, ...]:
    """`LLAMA_RULES` but those whose Hugging Face name contains one of `parts`."""
    return tuple(rule for rule in LLAMA_RULES if not any(part in rule.theirs for part in parts))
