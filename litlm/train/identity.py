"""What a run that goes on must share with the one that began: what decides a step, beside the trained weights.

That is the data and their order, the method, and the model: what it computes and with which weights. Those that are
trained come from the checkpoint; those that are not are known again by a checksum of their values. It reads all of
them once, at the speed of memory, and on a GPU waits once for all.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from litlm.settings import DPOSettings, RunSettings
from litlm.train.files import flat

if TYPE_CHECKING:
    from litlm.llm import LLM

_ROW = 1024  # words of 8 bytes that are added up; sums are weighted by where they are
_CHUNK = 2**24
_SAMPLE = 2**18
# What a config has that changes no step, or shows in the weights and the data anyway.
_NO_MATTER = ("name", "family", "dtype", "init_std", "max_seq_len", "vocab_size", "bos_token_id", "eos_token_id",
              "pad_token_id")  # fmt: skip


def identity(settings: RunSettings, llm: LLM) -> dict[str, Any]:
    """What is compared, but for the data, as JSON has it. Before the first step, while the weights are as they were."""
    parts = {"method": settings.method, "preference": getattr(settings, "preference", None)}
    found = {f"{part}.{k}": v for part, value in parts.items() if value for k, v in dataclasses.asdict(value).items()}
    config = {k: v for k, v in flat(llm.model.config.to_dict()).items() if k not in _NO_MATTER}
    # Preferences are measured against the model as it was, so then its trained weights count as well.
    refers = isinstance(settings, DPOSettings) and settings.preference.loss != "orpo"
    model = {"name": settings.model, "config": config, "weights": checksums(llm.model, trained=refers)}
    return json.loads(json.dumps(found | {"optimizer": settings.train.optimizer, "model": model}))


@torch.no_grad()
def checksums(model: nn.Module, *, trained: bool = False) -> dict[str, str]:
    """By name, "dtype:sum:sample" of each tensor that is not trained; trained: and of others, but for adapters.

    sum: of all bytes. sample: of some values rounded to bf16, the same in any dtype that was made from one file.
    """
    tensors = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not tensor.requires_grad or (trained and not {"lora", "adapter"} & set(name.split(".")))
    }
    sums = [s for tensor in tensors.values() for s in (_sum(tensor), _sum(_sample(tensor)))]
    if not sums:
        return {}
    texts = [f"{value % 2**64:016x}" for value in torch.stack(sums).tolist()]
    kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()]
    return {name: f"{k}:{a}:{b}" for name, k, a, b in zip(tensors, kinds, texts[::2], texts[1::2], strict=True)}


def _sample(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    values = values[:: max(1, values.numel() // _SAMPLE)]
    return values.to(torch.bfloat16) if values.is_floating_point() else values


def _sum(tensor: Tensor) -> Tensor:
    """Of its bytes, an int64 on its device that is the same on every device."""
    total, before = torch.zeros((), dtype=torch.int64, device=tensor.device), 0
    for part in tensor.detach().reshape(-1).split(_CHUNK):
        data = part.contiguous().view(torch.uint8)
        if len(data) % (8 * _ROW) or data.storage_offset() % 8:
            data = nn.functional.pad(data, (0, -len(data) % (8 * _ROW)))
        rows = data.view(torch.int64).view(-1, _ROW).sum(1)
        total += (rows * (2 * torch.arange(before, before + len(rows), device=rows.device) + 1)).sum()
        before += len(rows)
    return total


def check_same(path: Path, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Raise a ValueError if a checkpoint is of a run whose steps do something else. What can't be told, a line each."""
    other = [
        f"{key}={now[key]}, it had {then.get(key)}"
        for key in now
        if now[key] != then.get(key) and key not in ("tokens", "model")
    ]
    if now["tokens"] != then.get("tokens"):
        other.append("the examples' tokens are others (another data file, style, loss_on, max_len or tokenizer)")
    if other:
        raise ValueError(
            f"checkpoint {path} is of another method, of other data or of another order: {'; '.join(other)}. Resume "
            "with the settings of its run (settings.yaml), or start anew in another --out_dir"
        )
    if "model" not in now:
        return []
    if "model" not in then:
        return [f"{path.name} does not say which model it goes with; whether that is the same can't be checked"]
    problems = _other_model(now["model"], then["model"])
    if problems:
        name, before = now["model"]["name"], then["model"]["name"]
        changed = "Its files have changed since the run began: put back those that it had"
        raise ValueError(
            f"checkpoint {path} goes with another model than model={name} is now: {'; '.join(problems)}. "
            f"{changed if name == before else f'Resume with --model {before}'}, or start anew in another --out_dir"
        )
    return []


def _other_model(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    # A field that another version of litlm has is in one of them only.
    fields = [
        f"{key}={now['config'][key]}, it had {value}"
        for key, value in then["config"].items()
        if key in now["config"] and now["config"][key] != value
    ]
    every = now["weights"] | then["weights"]
    weights = [name for name in every if not _same(name, now["weights"], then["weights"])]
    problems = [_some(fields)] if fields else []
    if weights:
        problems.append(f"{len(weights)} of the {len(every)} weights that it relies on are others ({_some(weights)})")
    return problems


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _same(name: str, now: dict[str, str], then: dict[str, str]) -> bool:
    if name not in now or name not in then:
        return False
    (kind, whole, sample), (kind_then, whole_then, sample_then) = now[name].split(":"), then[name].split(":")
    return whole == whole_then if kind == kind_then else sample == sample_then
