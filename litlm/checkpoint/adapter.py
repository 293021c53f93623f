"""Directories of adapters, `adapter_config.json` and `adapter_model.safetensors`, and those of litlm's own format.

The methods adapter and adapter_v2 are stored under our names of modules: PEFT's ADAPTION_PROMPT has one gate per layer,
so it can't hold them. The files are named like PEFT's, and `peft_type` says what they hold. LoRA is in peft.py, other
formats in adapter_formats.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from litlm.checkpoint.base import bullet_list, open_safetensors
from litlm.io.reading import read_json, read_text
from litlm.io.writing import atomic_file, write_text
from litlm.model import GPT
from litlm.settings import MethodSettings
from litlm.transforms.llama_adapter import Prompt, ScaleBias, attach_adapters, make_adapters, prompt_adapters
from litlm.transforms.lora import trained_whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKSUM = "base_checksum.txt"  # apart: PEFT warns of keys that it doesn't know, and safetensors shuffles metadata
PEFT_TYPES = {"LITLM_ADAPTER": "adapter", "LITLM_ADAPTER_V2": "adapter_v2"}  # and their methods


def write_adapter(
    out_dir: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], *, base: str, model: GPT | None = None
) -> None:
    """Write an adapter's files. tensors: of any shapes. base: the base model; of a local one the full path is stored.
    model: the adapted one, to recognize the base's weights again (`base_note`)."""
    base = str(Path(base).resolve()) if Path(base).exists() else base
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(out_dir / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    text = json.dumps(config | dict(task_type="CAUSAL_LM", base_model_name_or_path=base), indent=2)
    write_text(out_dir / CONFIG, text + "\n")
    checksum = None if model is None else weights_checksum(model)
    if checksum is None:
        (out_dir / CHECKSUM).unlink(missing_ok=True)
    else:
        write_text(out_dir / CHECKSUM, checksum + "\n")


@torch.no_grad()
def weights_checksum(model: GPT) -> str | None:
    """A checksum of a few values of each linear layer, rounded to bf16 and so the same for a base in fp32 and in bf16.
    None where it would not be: for fp16, quantized weights and layers that are trained whole."""
    weights = [layer.weight for layer in model.layers.modules() if isinstance(layer, nn.Linear)]
    if trained_whole(model.layers) or any(w.dtype not in (torch.float32, torch.bfloat16) for w in weights):
        return None
    values = torch.cat([w.reshape(-1)[:64].bfloat16() for w in weights])
    return hashlib.sha256(bytes(values.view(torch.uint8).tolist())).hexdigest()


def base_note(model: GPT, path: Path) -> str | None:
    """A warning if the model, not adapted yet, has other weights than the adapter in `path` was trained on."""
    file = path / CHECKSUM
    if not file.is_file() or weights_checksum(model) in (None, read_text(file).strip()):
        return None
    return (
        f"the adapter {path} was trained on other weights than this model has; the model was trained further since, "
        "quantized, or the adapter is merged into it already"
    )


def read_adapter_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, of any shapes. Raises ValueError if the file can't be read or is damaged."""
    with open_safetensors(path / WEIGHTS) as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict


def save(model: GPT, out_dir: str | Path, *, base: str) -> None:
    """Write the model's adapters of method adapter or adapter_v2. base: what `LLM.load` takes for their base model.

    Raises ValueError if the model has none.
    """
    adapters = dict(prompt_adapters(model))
    prompts = [(name, a) for name, a in adapters.items() if isinstance(a, Prompt)]
    if not prompts:
        raise ValueError("the model has no adapters of method adapter or adapter_v2 to save")
    v2 = any(isinstance(a, ScaleBias) for a in adapters.values())
    config = dict(
        peft_type="LITLM_ADAPTER_V2" if v2 else "LITLM_ADAPTER",
        prompt_length=prompts[0][1].prompt.size(0),
        start_layer=min(int(name.split(".")[1]) for name, _ in prompts),
    )
    tensors = {
        f"{name}.adapter.{part}": p for name, adapter in adapters.items() for part, p in adapter.named_parameters()
    }
    write_adapter(Path(out_dir), config, tensors, base=base, model=model)


def read_method(config: dict[str, Any], file: Path) -> MethodSettings:
    """The method that an `adapter_config.json` describes. Raises ValueError if it isn't one of litlm's own format."""
    problems = []
    if config.get("peft_type") not in PEFT_TYPES:
        problems.append(f"peft_type={config.get('peft_type')!r} must be {' or '.join(PEFT_TYPES)}")
    sizes = {key: config.get(key) for key in ("prompt_length", "start_layer")}
    problems += [f"{k}={v!r} must be a whole number" for k, v in sizes.items() if type(v) is not int]
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    return MethodSettings(name=PEFT_TYPES[config["peft_type"]], **sizes)  # type: ignore[arg-type]


def load(model: GPT, path: str | Path) -> dict[str, Any]:
    """Attach the adapters in directory `path` to the model, and return their adapter_config.json.

    Raises one ValueError for all tensors that don't fit the model.
    """
    path = Path(path)
    for file in (path / CONFIG, path / WEIGHTS):
        if not file.is_file():
            raise ValueError(f"{path} is not an adapter: it has no {file.name}")
    config = read_json(path / CONFIG)
    adapters = make_adapters(model, read_method(config, path / CONFIG), v2=config["peft_type"] == "LITLM_ADAPTER_V2")
    tensors = read_adapter_tensors(path)
    expected = {f"{name}.adapter.{part}": p for name, a in adapters.items() for part, p in a.named_parameters()}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"{name} {list(tensor.shape)} has no place in this {model.config.family} model")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, this model needs {list(expected[name].shape)}")
    if problems:
        raise ValueError(f"The adapter in {path} does not fit the model:\n{bullet_list(problems)}")
    with torch.no_grad():
        for name, p in expected.items():
            p.copy_(tensors[name])
    attach_adapters(model, adapters)
    return config
