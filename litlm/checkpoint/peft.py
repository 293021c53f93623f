"""LoRA adapters in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names modules as Hugging Face does, so names go through the family's weight rules. Where Hugging Face fuses what
litlm keeps apart (GPT-NeoX's query_key_value), this format has no place for an adapter on one part.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from litlm.checkpoint.base import atomic_file, write_text
from litlm.families import get_family
from litlm.model import GPT
from litlm.transforms.lora import adapters, attach

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_VARIANTS = ("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config")


def hf_module(model: GPT, name: str) -> str | None:
    """Hugging Face's name of our linear layer `name`; None where it is only part of a fused one there."""
    (match,) = get_family(model.config.family).weights_of(model.config).from_ours(f"{name}.weight", ())
    return match.theirs.removesuffix(".weight") if len(match.ours) == 1 else None


def without_place(model: GPT) -> list[str]:
    """The linear layers of the blocks that PEFT's format can't adapt on their own."""
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("layers.")]
    return [n for n in linear if hf_module(model, n) is None]


def save_adapter(model: GPT, out_dir: str | Path, *, base: str) -> None:
    """Write the model's adapters. base: what `LLM.load` takes to get their model (a path is stored whole)."""
    base = str(Path(base).resolve()) if Path(base).exists() else base
    out_dir = Path(out_dir)
    tensors, modules, scales = {}, [], {}
    for name, lora in adapters(model):
        module = hf_module(model, name)
        if module is None:
            raise ValueError(
                f"{name} can't be written in PEFT's format: {model.config.family} fuses it in Hugging Face"
            )
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = lora.A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = lora.B.detach().cpu().contiguous()
        modules.append(module)
        scales[module] = (lora.A.size(0), lora.scale * lora.A.size(0), lora.dropout)
    if not modules:
        raise ValueError("the model has no LoRA adapters to save")
    r, alpha, dropout = next(iter(scales.values()))
    with atomic_file(out_dir / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=base, r=r, lora_alpha=alpha,
        lora_dropout=dropout, target_modules=_shortest(model, modules), bias="none", fan_in_fan_out=False,
        inference_mode=True, use_rslora=False, use_dora=False, modules_to_save=None, init_lora_weights=True,
        rank_pattern={m: s[0] for m, s in scales.items() if s[0] != r},
        alpha_pattern={m: s[1] for m, s in scales.items() if s[1] != alpha},
    )  # fmt: skip
    write_text(out_dir / CONFIG, json.dumps(config, indent=2) + "\n")


def _shortest(model: GPT, modules: list[str]) -> list[str]:
    """The last parts of the names where they select just these modules, as people write them; else the full names."""
    leaves = sorted({m.rsplit(".", 1)[-1] for m in modules})
    every = {hf_module(model, n) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    hit = {m for m in every if m is not None and m.rsplit(".", 1)[-1] in leaves}
    return leaves if hit == set(modules) else sorted(modules)


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
    unsupported = {
        "peft_type": config.get("peft_type") != "LORA",
        "use_dora": config.get("use_dora"),
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": config.get("modules_to_save"),
        "fan_in_fan_out": config.get("fan_in_fan_out"),
        "trainable_token_indices": config.get("trainable_token_indices"),
        "lora_bias": config.get("lora_bias"),
        "layer_replication": config.get("layer_replication"),
        "target_parameters": config.get("target_parameters"),
        "alora_invocation_tokens": config.get("alora_invocation_tokens"),
        # These start from a base with part of its weights taken out, which this adapter needs again.
        "init_lora_weights": str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE),
        **{key: config.get(key) for key in _VARIANTS},
    }
    if bad := [f"{key}={config.get(key)!r}" for key, is_bad in unsupported.items() if is_bad]:
        raise ValueError(f"{file}: {', '.join(bad)} is not supported; litlm reads plain LoRA adapters")
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
    import re

    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def load_adapter(model: GPT, path: str | Path) -> dict[str, Any]:
    """Attach the adapters in directory `path` to the model. All tensors that don't fit are named in one error."""
    path = Path(path)
    config = read_adapter_config(path)
    if any(True for _ in adapters(model)):
        raise ValueError("the model has LoRA adapters already; merge them first (litlm merge)")
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    try:
        with safe_open(path / WEIGHTS, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path / WEIGHTS} is truncated or corrupt ({e})") from None
    weights = get_family(model.config.family).weights_of(model.config)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    problems: list[str] = []
    found: dict[str, dict[str, torch.Tensor]] = {}
    names: dict[str, str] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        match = weights.from_theirs(f"{module}.weight")
        if part not in ("lora_A", "lora_B") or match is None:
            problems.append(f"{key} is not a LoRA tensor of a {model.config.family} model")
        elif len(match.ours) != 1:
            problems.append(f"{key} adapts a fused layer, which litlm keeps apart as {', '.join(match.ours)}")
        elif (ours := match.ours[0].removesuffix(".weight")) not in layers:
            problems.append(f"{key}: this model has no linear layer there")
        else:
            found.setdefault(ours, {})[part] = tensor
            names[ours] = module
    for ours, parts in found.items():
        linear = layers[ours]
        if set(parts) != {"lora_A", "lora_B"}:
            problems.append(f"{names[ours]} has {', '.join(parts)} only; lora_A and lora_B are needed")
            continue
        a, b = list(parts["lora_A"].shape), list(parts["lora_B"].shape)
        if a[1:] != [linear.in_features] or b[:1] != [linear.out_features] or a[0] != b[-1]:
            problems.append(
                f"{names[ours]}: lora_A {a} and lora_B {b} don't fit a layer of "
                f"{linear.in_features} to {linear.out_features}"
            )
    if not tensors:
        problems.append(f"{WEIGHTS} holds no tensors")
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(f"The adapter in {path} does not fit the model:\n" + "\n".join(f"- {p}" for p in shown))
    for ours, parts in found.items():
        r = parts["lora_A"].size(0)
        alpha = _pattern(config, "alpha_pattern", names[ours], config.get("lora_alpha", 8))
        lora = attach(layers[ours], r, alpha / (math.sqrt(r) if config.get("use_rslora") else r))
        with torch.no_grad():
            lora.A.copy_(parts["lora_A"])
            lora.B.copy_(parts["lora_B"])
    return config
