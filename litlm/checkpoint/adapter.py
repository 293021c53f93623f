"""Adapters of methods adapter and adapter_v2 as directories: `adapter_config.json` and `adapter_model.safetensors`.

The format is litlm's own, with our names of modules. PEFT's ADAPTION_PROMPT has one gate for a whole layer, so it can't
hold these; the files are called as PEFT's are, and `peft_type` says what they hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from litlm.io.reading import check_readable, read_json
from litlm.io.writing import atomic_file, write_text
from litlm.model import GPT
from litlm.settings import MethodSettings
from litlm.transforms.adapter import Prompt, ScaleBias, attach_adapters, make_adapters, prompt_adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METHODS = {"LITLM_ADAPTER": "adapter", "LITLM_ADAPTER_V2": "adapter_v2"}  # by peft_type


def save(model: GPT, out_dir: str | Path, *, base: str) -> None:
    """Write the model's adapters. base: what `LLM.load` takes to get their model (a path is stored whole)."""
    base = str(Path(base).resolve()) if Path(base).exists() else base
    out_dir, adapters = Path(out_dir), dict(prompt_adapters(model))
    prompts = [(name, a) for name, a in adapters.items() if isinstance(a, Prompt)]
    if not prompts:
        raise ValueError("the model has no adapters of method adapter or adapter_v2 to save")
    v2 = any(isinstance(a, ScaleBias) for a in adapters.values())
    config = dict(
        peft_type="LITLM_ADAPTER_V2" if v2 else "LITLM_ADAPTER",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        prompt_length=prompts[0][1].prompt.size(0),
        start_layer=min(int(name.split(".")[1]) for name, _ in prompts),
    )
    tensors = {
        f"{name}.adapter.{part}": p.detach().cpu().contiguous()
        for name, adapter in adapters.items()
        for part, p in adapter.named_parameters()
    }
    with atomic_file(out_dir / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_text(out_dir / CONFIG, json.dumps(config, indent=2) + "\n")


def read_method(config: dict[str, Any], file: Path) -> MethodSettings:
    """The method that an `adapter_config.json` of ours describes."""
    problems = []
    if config.get("peft_type") not in METHODS:
        problems.append(f"peft_type={config.get('peft_type')!r} must be {' or '.join(METHODS)}")
    sizes = {key: config.get(key) for key in ("prompt_length", "start_layer")}
    problems += [f"{k}={v!r} must be a whole number" for k, v in sizes.items() if type(v) is not int]
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    return MethodSettings(name=METHODS[config["peft_type"]], **sizes)  # type: ignore[arg-type]


def load(model: GPT, path: str | Path) -> dict[str, Any]:
    """Attach the adapters in directory `path` to the model. All tensors that don't fit are named in one error."""
    path = Path(path)
    for file in (path / CONFIG, path / WEIGHTS):
        if not file.is_file():
            raise ValueError(f"{path} is not an adapter: it has no {file.name}")
    config = read_json(path / CONFIG)
    made = make_adapters(model, read_method(config, path / CONFIG), v2=config["peft_type"] == "LITLM_ADAPTER_V2")
    check_readable(path / WEIGHTS)
    try:
        with safe_open(path / WEIGHTS, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path / WEIGHTS} is truncated or corrupt ({e})") from None
    wanted = {f"{name}.adapter.{part}": p for name, a in made.items() for part, p in a.named_parameters()}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            problems.append(f"{name} {list(tensor.shape)} has no place in this {model.config.family} model")
        elif tensor.shape != wanted[name].shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, this model needs {list(wanted[name].shape)}")
    if problems:
        shown = problems[:40] + ([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])
        raise ValueError(f"The adapter in {path} does not fit the model:\n" + "\n".join(f"- {p}" for p in shown))
    with torch.no_grad():
        for name, p in wanted.items():
            p.copy_(tensors[name])
    attach_adapters(model, made)
    return config
