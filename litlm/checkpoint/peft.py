"""LoRA adapters in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts Hugging Face's modules, so names go through the family's weight rules. Where Hugging Face fuses what litlm
keeps apart (GPT-NeoX's query_key_value), the fused layer's adapter has all parts' A, one under the other, and each
part's B beside zeros, in the order of rows that the family's rule knows: the same function exactly. Read the other way,
the parts share the fused layer's A, as one parameter, and each has its own rows of B: training goes on as in PEFT.

`peft_places` knows where PEFT has what, `peft_reader` sorts out a file's tensors.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from litlm.checkpoint import adapter
from litlm.checkpoint.peft_places import SWAPPED, Place, in_memory, places, rows_of
from litlm.checkpoint.peft_reader import PREFIX, Reader
from litlm.families import get_family
from litlm.io.reading import check_readable, read_json
from litlm.io.writing import atomic_file, write_text
from litlm.model import GPT
from litlm.transforms.lora import LoRA, adapters, trained_whole
from litlm.transforms.quantize import QuantizedLinear, QuantizedStack, weight_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config")
_PACKED = (QuantizedLinear, QuantizedStack)
_MISTAKEN = (".gate_proj", ".up_proj", ".down_proj")


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
        key, r = PREFIX + place.module, a.size(-2)
        shapes[address(place)[0]] = (r, scale * (math.sqrt(r) if rslora else r))
        if place.parameter:
            around = [p for p in groups if p.module == place.module]
            key += ".base_layer" * sum(p.depth > place.depth for p in around)
            if model.config.family in SWAPPED:
                a, b = b.mT, a.mT
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)  # (E r, in), (out, r E)
        if place.embedding:
            tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"] = b.mT, a.mT
        else:
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
        if any(lora.saves_base for lora in parts.values()):
            layer = model.get_submodule(place.ours[0])
            tensors |= {f"{key}.base_layer.{n}": p for n, p in layer.named_parameters(recurse=False)}
        if magnitude is not None:
            tensors[f"{key}.lora_magnitude_vector"] = magnitude
    whole, state = _whole(model)
    tensors |= {PREFIX + name: t for name, t in state.items()}
    every = [address(place) for place in place_of.values()]
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
    scale = next((lora.scale for lora in ordered if lora.scale), 0.0)
    a = first.A if shared else torch.cat([lora.A for lora in ordered], -2)
    parts, lengths, start = [], [], 0
    for name in place.ours:
        b = a.new_zeros(*a.shape[:-2], rows_of(model, name), a.size(-2))
        if (lora := loras.get(name)) is not None:
            r = lora.B.size(-1)
            b[..., start : start + r] = lora.B * (lora.scale / scale if scale else 1.0)
            start += 0 if shared else r
        parts.append(b)
        if first.magnitude is not None:
            own = None if lora is None else lora.magnitude
            layer = model.get_submodule(name)
            lengths.append(weight_of(layer).float().norm(dim=1).to(a.device) if own is None else own)
    magnitude = place.join([x[:, None] for x in lengths])[:, 0] if lengths else None
    return a, place.join(parts), magnitude, scale


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
    tensors = {in_memory(m.theirs): m.join([state[n] for n in m.ours], model.config) for m in inside}
    modules = [in_memory(f"{name}.").removesuffix(".") for name in modules]
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
    config = read_json(file)
    if config.get("peft_type") in adapter.METHODS:
        return config  # which checks the rest
    unsupported = {
        "peft_type": config.get("peft_type") != "LORA",
        "bias": config.get("bias", "none") != "none",
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
    if Path(base).is_absolute() and not Path(base).exists():
        raise ValueError(
            f"{path} belongs to the model in {base}, which is not there any more; say where it is: MODEL --adapter "
            f"{path}, or for merge --base MODEL"
        )
    return base


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
    check_readable(path / WEIGHTS)
    try:
        with safe_open(path / WEIGHTS, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path / WEIGHTS} is truncated or corrupt ({e})") from None
    reader = Reader(model, config)
    for key, tensor in tensors.items():
        reader.take(key, tensor)
    reader.check()
    problems = reader.problems + ([] if tensors else [f"{WEIGHTS} holds no tensors"])
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(f"The adapter in {path} does not fit the model:\n" + "\n".join(f"- {p}" for p in shown))
    reader.apply()
    return config
