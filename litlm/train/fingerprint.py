"""The fingerprint of a run: what a run that resumes must share with the one that wrote the checkpoint.

That is whatever decides a step, beside the trained weights: the data and their order, the method, and the model, with
its config and its frozen weights. The checkpoint holds the trained weights; frozen ones are recognized by checksums,
which read all of them once at the speed of memory, and synchronize with a GPU once.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from litlm.settings import DPOSettings, PretrainSettings, RunSettings
from litlm.train.files import flat

if TYPE_CHECKING:
    from litlm.llm import LLM

_ROW = 1024  # words of 8 bytes that are summed; sums are weighted by their position
_CHUNK = 2**24
_SAMPLE = 2**18
# Fields of a config that change no step, or show in the weights and the data anyway.
_IGNORED_FIELDS = ("name", "family", "dtype", "init_std", "max_seq_len", "vocab_size", "bos_token_id", "eos_token_id",
                   "pad_token_id")  # fmt: skip


def run_fingerprint(settings: RunSettings, llm: LLM) -> dict[str, Any]:
    """The fingerprint without the data's, as JSON stores it. Taken before precision casts the weights."""
    parts = {"method": settings.method, "preference": getattr(settings, "preference", None)}
    found = {f"{part}.{k}": v for part, value in parts.items() if value for k, v in dataclasses.asdict(value).items()}
    config = {k: v for k, v in flat(llm.model.config.to_dict()).items() if k not in _IGNORED_FIELDS}
    # A reference model is the model before training, so with one its trained weights count as well.
    has_reference = isinstance(settings, DPOSettings) and settings.preference.loss != "orpo"
    model = {"name": settings.model, "config": config, "weights": checksums(llm.model, trained=has_reference)}
    if not isinstance(settings, PretrainSettings) or settings.from_weights:
        model["start"] = _start(llm.model)
    return json.loads(json.dumps(found | {"optimizer": settings.train.optimizer, "model": model}))


@torch.no_grad()
def checksums(model: nn.Module, *, trained: bool = False) -> dict[str, str]:
    """By name, "dtype:sum:sample" of each frozen tensor; trained: of the others too, except adapters.

    sum: of all bytes. sample: of some values rounded to bf16, the same for any dtype that was loaded from one file.
    """
    tensors = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not tensor.requires_grad or (trained and not _is_adapter(name))
    }
    sums = [s for tensor in tensors.values() for s in (_sum(tensor), _sum(_sample(tensor)))]
    if not sums:
        return {}
    texts = [f"{value % 2**64:016x}" for value in torch.stack(sums).tolist()]
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()]
    return {name: f"{d}:{a}:{b}" for name, d, a, b in zip(tensors, dtypes, texts[::2], texts[1::2], strict=True)}


@torch.no_grad()
def _start(model: nn.Module) -> int | None:
    """A checksum of the model's own weights that are trained, before training: it tells one base from another."""
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not _is_adapter(name)]
    return int(torch.stack([_sum(_sample(p)) for p in trained]).sum()) if trained else None


def _is_adapter(name: str) -> bool:
    return not {"lora", "adapter"}.isdisjoint(name.split("."))


def _sample(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    values = values[:: max(1, values.numel() // _SAMPLE)]
    return values.to(torch.bfloat16) if values.is_floating_point() else values


def _sum(tensor: Tensor) -> Tensor:
    """A checksum of the tensor's bytes: int64, 0-dim, on its device, and the same on every device."""
    total, n_rows = torch.zeros((), dtype=torch.int64, device=tensor.device), 0
    for part in tensor.detach().reshape(-1).split(_CHUNK):
        data = part.contiguous().view(torch.uint8)
        if len(data) % (8 * _ROW) or data.storage_offset() % 8:
            data = nn.functional.pad(data, (0, -len(data) % (8 * _ROW)))
        rows = data.view(torch.int64).view(-1, _ROW).sum(1)
        total += (rows * (2 * torch.arange(n_rows, n_rows + len(rows), device=rows.device) + 1)).sum()
        n_rows += len(rows)
    return total


def check_same(path: Path, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Raises ValueError if a checkpoint's fingerprint `then` differs from that of the run now. Returns warnings about
    what an old checkpoint can't tell.
    """
    changed = [
        f"{key}={now[key]}, it had {then.get(key)}"
        for key in now
        if now[key] != then.get(key) and key not in ("tokens", "val", "model")
    ]
    if now["tokens"] != then.get("tokens"):
        changed.append("the examples' tokens are others (another data file, style, loss_on, max_len or tokenizer)")
    if changed:
        raise ValueError(
            f"checkpoint {path} is of another method, of other data or of another order: {'; '.join(changed)}. Resume "
            "with the settings of its run (settings.yaml), or start anew in another --out_dir"
        )
    if "model" not in now:
        return []
    if "model" not in then:
        return [f"{path.name} does not say which model it goes with; whether that is the same can't be checked"]
    problems = _compare_models(now["model"], then["model"])
    if problems:
        name, before = now["model"]["name"], then["model"]["name"]
        advice = "Its files have changed since the run began: put back those that it had"
        raise ValueError(
            f"checkpoint {path} goes with another model than model={name} is now: {'; '.join(problems)}. "
            f"{advice if name == before else f'Resume with --model {before}'}, or start anew in another --out_dir"
        )
    return []


def _compare_models(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    # A field that only one version of litlm has is in one of them only.
    fields = [
        f"{key}={now['config'][key]}, it had {value}"
        for key, value in then["config"].items()
        if key in now["config"] and now["config"][key] != value
    ]
    names = now["weights"] | then["weights"]
    weights = [name for name in names if not _equal(name, now["weights"], then["weights"])]
    problems = [_shortened(fields)] if fields else []
    if weights:
        shown = _shortened(weights)
        problems.append(f"{len(weights)} of the {len(names)} weights that it relies on are others ({shown})")
    # Trained weights come from the checkpoint. Under one name they may differ: a notebook's model is trained in place.
    if now["name"] != then["name"] and now.get("start") != then.get("start"):
        problems.append("training started from other weights")
    return problems


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _equal(name: str, now: dict[str, str], then: dict[str, str]) -> bool:
    if name not in now or name not in then:
        return False
    (dtype, total, sample), (old_dtype, old_total, old_sample) = now[name].split(":"), then[name].split(":")
    return total == old_total if dtype == old_dtype else sample == old_sample
