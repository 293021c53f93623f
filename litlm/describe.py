"""`litlm models` and `litlm describe`: known names, and what a model is made of. No torch except for .gguf files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from litlm.config import Config
from litlm.settings import DescribeCommand, ModelsCommand
from litlm.zoo import find_model, get_model, list_models

# What a plain Llama looks like: `describe` shows the differences.
_LLAMA = Config(vocab_size=32000, n_layer=1, n_embd=64, n_head=1)


def count(n: float) -> str:
    """135M, 1.24B"""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def size(n: float) -> str:
    """Bytes, in powers of 1000."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n} bytes"


def models(settings: ModelsCommand) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names = [name for name in list_models(settings.family) if settings.match.lower() in name]
    if not names:
        wanted = f" of family {settings.family!r}" if settings.family else ""
        raise ValueError(f"No model{wanted} has {settings.match!r} in its name. `litlm models` lists all.")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "family", "parameters", "context", "style", "licence", "hub id"):
        table.add_column(title, justify="right" if title in ("parameters", "context") else "left", no_wrap=True)
    order = sorted(names, key=lambda n: (get_model(n).hf["model_type"], Config.from_name(n).n_parameters(), n))
    for name in order:
        info, config = get_model(name), Config.from_name(name)
        table.add_row(
            name, config.family, count(config.n_parameters()), f"{config.max_seq_len:,}", info.style or "(base)",
            info.license + (", gated" if info.gated else ""), info.hub_id,
        )  # fmt: skip
    console = Console()
    # Names are there to be copied: never wrap or cut them, also where the output is no terminal.
    console.width = max(console.width, 160)
    console.print(table)
    console.print(f"{len(names)} models. `litlm describe NAME` shows one; any hub id of these families loads as well.")


def describe(settings: DescribeCommand) -> None:
    from rich.console import Console
    from rich.table import Table

    path = Path(settings.model)
    if find_model(settings.model) is None and path.exists():
        config, title = _config_of(path), str(path)
    else:
        info = get_model(settings.model)
        config, title = Config.from_name(settings.model), f"{info.name} ({info.hub_id}, {info.license})"
    n = config.n_parameters()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    rope = f"theta {config.rope.theta:g}"
    rope += f" on {config.rope.fraction:g} of each head" if config.rope.fraction < 1 else ""
    rope += f", {config.rope.scaling.kind} scaling by {config.rope.scaling.factor:g}" if config.rope.scaling else ""
    per_token = config.kv_bytes_per_token()
    rows: dict[str, Any] = {
        "family": config.family,
        "parameters": f"{n:,} ({count(n)})",
        "layers": f"{config.n_layer} of width {config.n_embd}, MLP {config.intermediate_size} ({config.mlp.kind})",
        "attention": f"{config.n_head} heads of {config.head_dim}, {config.n_kv_head} for keys and values",
        "vocabulary": f"{config.vocab_size:,}" + (", embeddings tied" if config.tie_embeddings else ""),
        "context": f"{config.max_seq_len:,} tokens",
        "rope": rope,
        "unlike Llama": ", ".join(_differences(config)) or "nothing",
        "weights": f"{size(4 * n)} in float32, {size(2 * n)} in bfloat16",
        "KV cache": f"{size(per_token)} a token in bfloat16, {size(per_token * config.max_seq_len)} for a full context",
    }
    for key, value in rows.items():
        grid.add_row(key, value)
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(grid)


def _config_of(path: Path) -> Config:
    if path.suffix.lower() != ".gguf":
        return Config.from_hf(path)
    from litlm.checkpoint.gguf import GGUFSource  # the one place here that imports torch

    return GGUFSource(path).config


def _differences(config: Config) -> list[str]:
    found = []
    if config.block != _LLAMA.block:
        found.append(f"{config.block} blocks")
    for slot in ("norm", "attention", "mlp"):
        mine, plain = getattr(config, slot), getattr(_LLAMA, slot)
        for f in dataclasses.fields(mine):
            value = getattr(mine, f.name)
            if f.name != "eps" and value != getattr(plain, f.name):
                found.append(f"{slot}.{f.name}={value}")
    if "sliding" in config.layer_types:
        sliding = config.layer_types.count("sliding")
        found.append(f"{sliding} of {config.n_layer} layers see {config.sliding_window} tokens")
    return found
