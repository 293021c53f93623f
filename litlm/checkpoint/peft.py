"""LoRA adapters in PEFT's format, written and read: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts Hugging Face's modules, so names go through the family's weight rules. Where Hugging Face fuses layers that
litlm has apart (GPT-NeoX's query_key_value), A of the fused layer's adapter is our adapters' As stacked, and its B is
block diagonal, with rows in the rule's order: exactly the same function. When such an adapter is read, our layers share
its A as one parameter and each gets its rows of B, so training continues as in PEFT.

peft_targets.py: which of PEFT's modules and parameters our layers are. peft_reader.py: matches a file's tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litlm.checkpoint.adapter import CONFIG, WEIGHTS, read_adapter_tensors, write_adapter
from litlm.checkpoint.adapter_formats import find_format
from litlm.checkpoint.base import bullet_list
from litlm.checkpoint.peft_reader import PREFIX, AdapterReader
from litlm.checkpoint.peft_targets import SWAPPED_FAMILIES, AdapterTarget, adapter_targets, loaded_name, out_features
from litlm.families import get_family
from litlm.io.reading import read_json
from litlm.model import GPT
from litlm.transforms.lora import LoRA, adapters, trained_whole
from litlm.transforms.quantize import QuantizedLinear, QuantizedStack, weight_of

# Initializations that change the base weights, which such an adapter then needs.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config")
_PACKED = (QuantizedLinear, QuantizedStack)
_MISTAKEN = (".gate_proj", ".up_proj", ".down_proj")


# --- writing -------------------------------------------------------------------------------------------------------


def save_adapter(model: GPT, out_dir: str | Path, *, base: str) -> None:
    """Write the model's LoRA adapters. base: what `LLM.load` takes for their base model (of a local one the full path
    is stored). Raises ValueError if there are none, or PEFT's format can't hold them."""
    targets, loras = adapter_targets(model), dict(adapters(model))
    if not loras and not trained_whole(model):
        raise ValueError("the model has no LoRA adapters to save")
    groups: dict[AdapterTarget, dict[str, LoRA]] = {}
    for name, lora in loras.items():
        groups.setdefault(targets[name], {})[name] = lora
    rslora = bool(loras) and all(lora.rslora for lora in loras.values())
    dora = any(lora.magnitude is not None for lora in loras.values())
    as_parameters = not dora and _linears_mistaken_for_experts(model)  # PEFT has no DoRA of parameters

    def peft_name(target: AdapterTarget) -> tuple[str, bool]:
        """What PEFT is to adapt, and whether that is a parameter."""
        if as_parameters and not target.parameter and target.module.endswith(_MISTAKEN):
            return f"{target.module}.weight", True
        return target.name, bool(target.parameter)

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, float]] = {}  # r and alpha
    for target, parts in groups.items():
        r, scale = _add_tensors(tensors, model, target, parts, groups)
        ranks[peft_name(target)[0]] = (r, scale * (math.sqrt(r) if rslora else r))
    modules_to_save, state = _modules_to_save(model)
    tensors |= {PREFIX + name: t for name, t in state.items()}
    available, used = [peft_name(target) for target in targets.values()], [peft_name(target) for target in groups]
    modules, parameters = (
        _shortest([n for n, p in available if p == is_parameter], [n for n, p in used if p == is_parameter], n_part)
        for is_parameter, n_part in ((False, 1), (True, 2))
    )
    r, alpha = Counter(ranks.values()).most_common(1)[0][0] if ranks else (8, 8.0)
    config = dict(
        peft_type="LORA", r=r, lora_alpha=alpha,
        # PEFT refuses dropout for an adapted parameter.
        lora_dropout=0.0 if parameters else max((lora.dropout for lora in loras.values()), default=0.0),
        target_modules=modules, target_parameters=parameters or None, bias="none",
        fan_in_fan_out=any(t.transposed and not t.parameter for t in groups),
        inference_mode=True, use_rslora=rslora, use_dora=dora, modules_to_save=modules_to_save or None,
        init_lora_weights=True, ensure_weight_tying=model.lm_head is None and _peft_keeps_tied(modules_to_save),
        rank_pattern={name: rank for name, (rank, _) in ranks.items() if rank != r},
        alpha_pattern={name: its_alpha for name, (_, its_alpha) in ranks.items() if its_alpha != alpha},
    )  # fmt: skip
    write_adapter(Path(out_dir), config, tensors, base=base, model=model)


def _add_tensors(
    tensors: dict[str, Tensor],
    model: GPT,
    target: AdapterTarget,
    loras: dict[str, LoRA],
    targets: Iterable[AdapterTarget],
) -> tuple[int, float]:
    """Add the tensors of the adapter on a target, by PEFT's names; its rank and scale."""
    a, b, magnitude, scale = _joined(model, target, loras)
    key, r = PREFIX + target.module, a.size(-2)
    if target.parameter:
        key += ".base_layer" * sum(t.module == target.module and t.depth > target.depth for t in targets)
        if model.config.family in SWAPPED_FAMILIES:
            a, b = b.mT, a.mT
        a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)  # (E r, in), (out, r E)
    if target.embedding:
        tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"] = b.mT, a.mT
    else:
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
    if any(lora.saves_base for lora in loras.values()):
        layer = model.get_submodule(target.ours[0])
        tensors |= {f"{key}.base_layer.{n}": p for n, p in layer.named_parameters(recurse=False)}
    if magnitude is not None:
        tensors[f"{key}.lora_magnitude_vector"] = magnitude
    return r, scale


def _linears_mistaken_for_experts(model: GPT) -> bool:
    """Whether PEFT (0.21) takes names of this family's linear layers for those of experts in transformers 4.

    It does where files have a tensor per expert. Naming a linear layer's weight as a parameter adapts it all the same.
    """
    return any("{e}" in rule.theirs and ".experts." in rule.theirs for rule in get_family(model.config.family).rules)


@torch.no_grad()
def _joined(model: GPT, target: AdapterTarget, loras: dict[str, LoRA]) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """A, B, DoRA's magnitude and the scale of one adapter on a target; our layers without an adapter add zeros."""
    first = next(iter(loras.values()))
    shared = all(torch.equal(lora.A, first.A) for lora in loras.values())
    ordered = [loras[name] for name in target.ours if name in loras]
    scale = next((lora.scale for lora in ordered if lora.scale), 0.0)
    a = first.A if shared else torch.cat([lora.A for lora in ordered], -2)
    parts, magnitudes, start = [], [], 0
    for name in target.ours:
        b = a.new_zeros(*a.shape[:-2], out_features(model, name), a.size(-2))
        if (lora := loras.get(name)) is not None:
            r = lora.B.size(-1)
            b[..., start : start + r] = lora.B * (lora.scale / scale if scale else 1.0)
            start += 0 if shared else r
        parts.append(b)
        if first.magnitude is not None:
            magnitude = None if lora is None else lora.magnitude
            if magnitude is None:
                magnitude = weight_of(model.get_submodule(name)).float().norm(dim=1).to(a.device)
            magnitudes.append(magnitude)
    return a, target.join(parts), target.join([m[:, None] for m in magnitudes])[:, 0] if magnitudes else None, scale


def _modules_to_save(model: GPT) -> tuple[list[str], dict[str, Tensor]]:
    """The modules that are trained in full, by Hugging Face's names, and all their tensors."""
    owners, packed = set(trained_whole(model)), [n for n, m in model.named_modules() if isinstance(m, _PACKED)]
    state = {
        name: t
        for name, t in model.state_dict().items()
        if ".lora." not in name and not any(name.startswith(p + ".") for p in packed)
    }
    plan = get_family(model.config.family).modules_of(model.config).export_plan({n: t.shape for n, t in state.items()})
    trained = [match for match in plan if owners.intersection(n.rpartition(".")[0] for n in match.ours)]
    if stacked := next((match for match in trained if match.index is not None), None):
        raise ValueError(
            f"{stacked.ours[0]} can't be trained whole in PEFT's format; experts can have adapters (targets)"
        )
    modules = list(dict.fromkeys(match.theirs.rpartition(".")[0] for match in trained))
    inside = [match for match in plan if match.theirs.rpartition(".")[0] in modules]
    tensors = {loaded_name(m.theirs): m.join([state[n] for n in m.ours], model.config) for m in inside}
    modules = [loaded_name(f"{name}.").removesuffix(".") for name in modules]
    if model.lm_head is None and "embed" in owners:  # PEFT writes a tied head too
        tensors["lm_head.weight"] = model.embed.weight
        if not _peft_keeps_tied(modules):
            modules.append("lm_head")
    return modules, tensors


def _peft_keeps_tied(modules: list[str]) -> bool:
    """Whether PEFT keeps the output head tied to a trained embedding: it knows embeddings of this name only."""
    return any(name.endswith("embed_tokens") for name in modules)


def _shortest(available: list[str], names: list[str], n_part: int) -> list[str]:
    """The last parts of the names, as people write them, if they select no other available ones; else the names."""
    endings = sorted({".".join(name.split(".")[-n_part:]) for name in names})
    selected = {name for name in available if ".".join(name.split(".")[-n_part:]) in endings}
    return endings if selected == set(names) else sorted(names)


# --- reading -------------------------------------------------------------------------------------------------------


def read_adapter_config(path: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises ValueError for what litlm can't apply."""
    file = path / CONFIG
    if not file.is_file():
        if not path.exists():
            raise ValueError(f"{path} does not exist; an adapter is a directory with {CONFIG}")
        inside = f"; did you mean {path / 'final'}?" if (path / "final" / CONFIG).is_file() else ""
        raise ValueError(f"{path} is not an adapter: it has no {CONFIG}{inside}")
    config = read_json(file)
    if find_format(config) is not None:
        return config
    unsupported = {
        "peft_type": config.get("peft_type") != "LORA",
        "bias": config.get("bias", "none") != "none",
        "lora_bias": config.get("lora_bias"),
        "layer_replication": config.get("layer_replication"),
        "alora_invocation_tokens": config.get("alora_invocation_tokens"),
        "init_lora_weights": str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE),
        **{key: config.get(key) for key in _VARIANTS},
    }
    if bad := [f"{key}={config.get(key)!r}" for key, is_bad in unsupported.items() if is_bad]:
        raise ValueError(
            f"{file}: {', '.join(bad)} is not supported; litlm reads LoRA and DoRA adapters, and those "
            "of its other methods and of installed extensions"
        )
    return config


def base_of(path: Path) -> str:
    """The base model that an adapter names. Raises ValueError if it names none, or a local one that is gone."""
    base = read_adapter_config(path).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{path} does not say which model it belongs to; name it: MODEL --adapter {path}, or for merge --base MODEL"
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise ValueError(
            f"{path} belongs to the model in {base}, which is not there any more; say where it is: MODEL --adapter "
            f"{path}, or for merge --base MODEL"
        )
    return base


def load_adapter(model: GPT, path: str | Path) -> dict[str, Any]:
    """Attach the adapters in directory `path` to the model, and return their adapter_config.json.

    `model.config` changes where embeddings have more rows than the model's, which resizes it, or where a tied output
    head was trained apart from the embedding, which unties the two. Raises one ValueError for all tensors that don't
    fit, and if the model has adapters already.
    """
    path = Path(path)
    config = read_adapter_config(path)
    if (other := find_format(config)) is not None:
        other.load(model, path)
        return config
    if any(True for _ in adapters(model)) or trained_whole(model):
        raise ValueError("the model has LoRA adapters already; merge them first (litlm merge)")
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    tensors = read_adapter_tensors(path)
    reader = AdapterReader(model, config)
    for key, tensor in tensors.items():
        reader.take(key, tensor)
    reader.check()
    if problems := reader.problems + ([] if tensors else [f"{WEIGHTS} holds no tensors"]):
        raise ValueError(f"The adapter in {path} does not fit the model:\n{bullet_list(problems)}")
    reader.apply()
    return config
