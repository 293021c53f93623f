"""Hugging Face directories, read and written: `config.json` and `model*.safetensors`, sharded or not.

There is no conversion step: names are mapped while tensors are streamed. Pickled weights are refused, because
unpickling can run code.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from litlm.checkpoint.base import WeightSource, open_safetensors
from litlm.checkpoint.run_folder import find_model, refuse_run_folder
from litlm.config import Config, index_limit
from litlm.config.hf import config_from_hf
from litlm.families import get_family
from litlm.io.reading import read_json
from litlm.io.writing import atomic_file, clear_parts, fsync, writing

INDEX = "model.safetensors.index.json"
REPLACED = ("model*.safetensors", INDEX)  # files of an earlier model in the directory that this one may not have
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pth", ".pt")
# Buffers that old checkpoints store and that are recomputed.
_BUFFER = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias|rotary_emb\.\w+)$")
_TORCH_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def open_directory(path: Path, ignore_fields: Collection[str] = ()) -> tuple[Config, WeightSource, list[str]]:
    """Config and weights of a Hugging Face directory, and notes about them for the user.

    Quantized weights are dequantized while they are read. ignore_fields: see `Config.from_hf`. Raises ValueError if the
    config or its quantization isn't supported, or files are missing or damaged.
    """
    config = config_from_hf(path, ignore_fields)
    source: WeightSource = SafetensorsSource(path)
    notes = []
    fields = read_json(path / "config.json")
    text_fields = fields.get("text_config") or {}
    quantization = fields.get("quantization_config") or text_fields.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") == "gguf":
        quantization = None  # transformers' note that the weights come from a GGUF file; they are plain here
    if quantization:
        from litlm.checkpoint.quantized import DequantizedSource, quantization_format

        if not isinstance(quantization, dict):
            raise ValueError(
                f"{path}: quantization_config={quantization!r} must be an object that names a quant_method"
            )
        try:
            quant_format = quantization_format(quantization)
            notes.append(f"the weights are quantized, {quant_format}; they are read as {config.dtype}")
            source = DequantizedSource(source, quant_format)
        except ValueError as e:
            raise ValueError(e if str(path) in str(e) else f"{path}: {e}") from None
    if ignored := _ignored_weights(source, config):
        notes.append(f"left out, because litlm runs the text model alone: {ignored}")
    latent = config.attention.latent
    if latent is not None and (index := latent.index) is not None and index.max_seq_len > config.max_seq_len:
        notes.append(f"the context is {config.max_seq_len} tokens, not {index.max_seq_len}: {index_limit(index)}")
    return config, source, notes


def _ignored_weights(source: WeightSource, config: Config) -> str:
    """The parts of a checkpoint, other than buffers, that the family ignores: a vision tower, say."""
    weights, parts = get_family(config.family).weights, Counter[str]()
    for name, shape in source.shapes().items():
        if weights.ignored(name) and not _BUFFER.search(name):
            depth = 3 if name.startswith("model.layers.") else 2
            parts[".".join(name.split(".")[:depth])] += math.prod(shape)
    return ", ".join(f"{part} ({count:,} weights)" for part, count in parts.most_common())


class SafetensorsSource(WeightSource):
    """The weights of a Hugging Face directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = [open_safetensors(file) for file in weight_files(path)]
        self._file_of = {name: f for f in files for name in f.keys()}  # noqa: SIM118 - not a dict

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(f.get_slice(name).get_shape()) for name, f in self._file_of.items()}

    def read(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, as its index lists them. Raises ValueError if there are none, or
    not all."""
    single, index = path / "model.safetensors", path / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        content = read_json(index)
        try:
            names = sorted(set(content["weight_map"].values()))
        except (KeyError, AttributeError, TypeError):
            raise ValueError(f"{index} has no weight_map from tensors to files; download it again") from None
        if lacking := [name for name in names if not (path / name).is_file()]:
            raise ValueError(f"{path} is incomplete: {index.name} names {', '.join(lacking)}; download the rest")
        return [path / name for name in names]
    pickles = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pth", ".pt", ".ckpt"))
    if pickles:
        raise ValueError(
            f"{path} has its weights as pickle only ({', '.join(pickles[:3])}), and reading a pickle can run any code; "
            "use the model's safetensors files (on the hub often in the revision refs/pr/1)"
        )
    raise ValueError(f"{path} has no weights: model.safetensors or {INDEX} is needed")


def refuse_adapter_or_run(out_dir: Path) -> None:
    """Raise ValueError for directories that no model may be written to, not even with overwrite.

    A model loaded from an adapter's directory would get the adapter once more.
    """
    if (out_dir / "adapter_config.json").is_file():
        raise ValueError(
            f"out_dir={str(out_dir)!r} holds an adapter, and a model beside it would get it twice; name another out_dir"
        )
    refuse_run_folder(out_dir)


def check_merge_dir(out_dir: Path, base: str, adapter: Path, *, overwrite: bool) -> None:
    """Raise ValueError if a merged model would overwrite its adapter, its base model, or any other model."""
    if out_dir.exists() and adapter.exists() and out_dir.samefile(adapter):
        raise ValueError(f"out_dir={str(out_dir)!r} is the adapter itself; name another out_dir")
    refuse_adapter_or_run(out_dir)
    if overwrite or not out_dir.is_dir():
        return
    if (folder := find_model(Path(base).expanduser())).is_dir() and out_dir.samefile(folder):
        what = f"is the model that the adapter belongs to ({base})"
    elif held := sorted(p.name for p in out_dir.iterdir() if p.name == "config.json" or p.suffix in _WEIGHT_SUFFIXES):
        what = f"holds a model already ({', '.join(held[:3])})"
    else:
        return
    raise ValueError(f"out_dir={str(out_dir)!r} {what}; name another out_dir, or replace it with --overwrite")


def save_weights(
    state: Mapping[str, Tensor], config: Config, out_dir: Path, *, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write `config.json` and the weights of `state`, by our names and in our shapes, as transformers expects them.

    All files are written under temporary names first, then renamed together, so an error (a full disk) leaves earlier
    files untouched; shards of an earlier, larger save are removed at the end.
    """
    plan = get_family(config.family).weights_of(config).export_plan({name: t.shape for name, t in state.items()})
    if dtype := _TORCH_NAMES.get(state["embed.weight"].dtype):
        config = Config.from_dict(config.to_dict() | {"dtype": dtype})
    text = json.dumps(config.to_hf(), indent=2) + "\n"
    shards: list[list] = [[]]
    shard_bytes = 0
    for match in plan:
        nbytes = sum(state[name].nbytes // (1 if match.index is None else len(state[name])) for name in match.ours)
        if shards[-1] and shard_bytes + nbytes > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(match)
        shard_bytes += nbytes
    n = len(shards)
    files = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" if n > 1 else "model.safetensors" for i in range(n)]
    file_of: dict[str, str] = {}
    with ExitStack() as pending:
        for file, matches in zip(files, shards, strict=True):
            tensors = {}
            for match in matches:
                joined = match.join([state[name].detach() for name in match.ours], config)
                tensors[match.theirs] = joined.cpu().contiguous()
                file_of[match.theirs] = file
            part = pending.enter_context(atomic_file(out_dir / file))
            save_file(tensors, part, metadata={"format": "pt"})
            fsync(part)  # now, so that nothing slow comes between the renames
        if n > 1:
            total = sum(t.nbytes for t in state.values())
            index = json.dumps({"metadata": {"total_size": total}, "weight_map": file_of}, indent=2)
            pending.enter_context(atomic_file(out_dir / INDEX)).write_text(index, encoding="utf-8")
        pending.enter_context(atomic_file(out_dir / "config.json")).write_text(text, encoding="utf-8")
    with writing(out_dir):
        stale = {p.name for pattern in REPLACED for p in out_dir.glob(pattern)}
        for name in stale - set(files) - ({INDEX} if n > 1 else set()):
            (out_dir / name).unlink(missing_ok=True)
    clear_parts(out_dir)  # of a save that was killed
