"""`litlm models` and `litlm describe`: known names, and what a model is made of and needs. No torch except for .gguf.

What a model needs is counted, not measured: weights, optimizer states and the cache of a generation; activations depend
on how a step is run and are left out, which is said.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litlm.checkpoint.config import load_config
from litlm.config import Config
from litlm.config.counts import forward_flops, linear_layers
from litlm.io.format import format_bytes as size
from litlm.io.format import format_count as count
from litlm.io.reading import check_readable, model_directory, read_json
from litlm.settings import DescribeCommand, MethodSettings, ModelsCommand
from litlm.zoo import ModelInfo, find_model, get_model, list_models

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# What a plain Llama looks like: `describe` shows the differences.
_LLAMA = Config(vocab_size=32000, n_layer=1, n_embd=64, n_head=1)


# --- litlm models --------------------------------------------------------------------------------------------------


def models(settings: ModelsCommand) -> None:
    known = sorted({get_model(name).hf["model_type"] for name in list_models()})
    if settings.family is not None and settings.family not in known:
        near = [name for name in known if name.startswith(settings.family.lower())]
        near = near or difflib.get_close_matches(settings.family.lower(), known, n=1)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"No named model is of family={settings.family!r}.{hint} There are: {', '.join(known)}")
    infos = [info for info in map(get_model, list_models(settings.family)) if _wanted(info, settings)]
    found = [(info, config) for info in infos if _fits(config := Config.from_name(info.name), settings)]
    if not found:
        wanted = ", ".join(f"{k}={v!r}" for k, v in vars(settings).items() if v and k != "json")
        raise ValueError(f"No model fits {wanted}. `litlm models` lists all.")
    found.sort(key=lambda pair: (pair[1].family, pair[1].n_parameters(), pair[0].name))
    if settings.json:
        print(json.dumps([_entry(info, config) for info, config in found], indent=2))
    else:
        _print_models(found)


def _wanted(info: ModelInfo, settings: ModelsCommand) -> bool:
    return (
        any(settings.match.lower() in key for key in info.keys)
        and (settings.license or "").lower() in info.license.lower()
        and (settings.access is None or info.gated == (settings.access == "gated"))
        and (settings.kind is None or info.chat == (settings.kind == "chat"))
    )


def _fits(config: Config, settings: ModelsCommand) -> bool:
    # Names round: what calls itself 8B may have 8.2 billion.
    most = None if settings.max_size is None else parameters_of(settings.max_size) * 1.03
    return (not settings.moe or config.moe is not None) and (most is None or config.n_parameters() <= most)


def parameters_of(text: str) -> float:
    """8B, 700M, 1e9 -> a number of parameters."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmbt]?)", text.strip().lower())
    try:
        number, unit = found.groups() if found else ("", "")
        return float(number) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[unit]
    except ValueError:
        raise ValueError(f"max_size={text!r} is not a number of parameters; write it as 8B or 700M") from None


def _entry(info: ModelInfo, config: Config) -> dict[str, Any]:
    return dict(
        name=info.name, aliases=list(info.aliases), hub_id=info.hub_id, family=config.family,
        parameters=config.n_parameters(), active_parameters=config.n_active_parameters(),
        max_seq_len=config.max_seq_len, chat=info.chat, style=info.style, license=info.license, gated=info.gated,
    )  # fmt: skip


def _style(info: ModelInfo) -> str:
    from litlm.prompts import get_style

    if info.style is None:
        return "(its own)" if info.chat else "(base)"
    return info.style + (" ?" if get_style(info.style).unverified else "")


def _print_models(found: list[tuple[ModelInfo, Config]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "size", "active", "context", "style", "licence", "hub id"):
        table.add_column(title, justify="right" if title in ("size", "active", "context") else "left", no_wrap=True)
    family = None
    for info, config in found:
        if config.family != family:
            if family is not None:
                table.add_section()
            family = config.family
            table.add_row(f"[bold]{family}[/bold]")  # the names below it are set in
        total, active = config.n_parameters(), config.n_active_parameters()
        table.add_row(
            f"  {info.name}", count(total), count(active) if active != total else "", f"{config.max_seq_len:,}",
            _style(info), info.license + (" *" if info.gated else ""), info.hub_id,
        )  # fmt: skip
    # Names are there to be copied: never wrap or cut them, also where the output is no terminal.
    console = Console(width=max(Console().width, Console(width=1000).measure(table).maximum))
    console.print(table)
    notes = [f"{len(found)} models. `litlm describe NAME` shows one; any hub id of these families loads as well."]
    if any(info.gated for info, _ in found):
        notes.append("* the hub asks for your agreement first.")
    if any(_style(info).endswith("?") for info, _ in found):
        notes.append("? no reference was there to compare this prompt style with.")
    console.print("\n".join(notes), highlight=False)


# --- litlm describe ------------------------------------------------------------------------------------------------


def describe(settings: DescribeCommand) -> None:
    places = machine()
    described, problems = [], []
    for model in settings.model:
        try:
            path = model_directory(Path(model))
            is_adapter = (path / "adapter_config.json").is_file()
            described.append(_adapter(path, settings) if is_adapter else _model(str(path), settings, places))
        except ValueError as e:
            problems.append(str(e))
    if problems:
        raise ValueError("\n".join(problems))
    if settings.json:
        facts = [facts for _, _, facts in described]
        print(json.dumps(facts[0] if len(facts) == 1 else facts, indent=2))
    else:
        _print({title: rows for title, rows, _ in described})


def _model(model: str, settings: DescribeCommand, places: dict[str, int]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Title, rows to print, and facts for scripts."""
    config, info = load_config(model, settings.ignore_fields), find_model(model)
    title = model if info is None else f"{info.name} ({info.hub_id}, {info.license})"
    found = needs(config, settings)
    entry = {} if info is None else _entry(info, config)
    facts = entry | found | {"machine": places, "config": config.to_dict()}
    return title, _rows(config, found, settings, places), facts


def needs(config: Config, settings: DescribeCommand) -> dict[str, Any]:
    """Parameters, bytes and operations, at the dtype, batch size and context of `settings`."""
    context = settings.context or min(config.max_seq_len, 4096)
    if context > config.max_seq_len:
        raise ValueError(f"context={context} is more than this model's {config.max_seq_len} tokens")
    n, wide = config.n_parameters(), BYTES[settings.dtype]
    cached = config.kv_bytes_per_token(wide)
    lora = lora_parameters(config, MethodSettings().r)
    forward = forward_flops(config, context)
    return dict(
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        context=context,
        parameters=n,
        active_parameters=config.n_active_parameters(),
        weight_bytes=n * wide,
        cache_bytes_per_token=cached,
        cache_bytes=settings.batch_size * context * cached,
        generation_bytes=n * wide + settings.batch_size * context * cached,
        lora_parameters=lora,
        lora_bytes=n * wide + 16 * lora,
        training_bytes=16 * n,
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        unlike_llama=_differences(config),
    )


def lora_parameters(config: Config, r: int) -> int:
    """Of adapters on all linear layers. Experts stay as they are, and so do parts that Hugging Face's format fuses."""
    from litlm.families import get_family

    weights = get_family(config.family).weights_of(config)
    total = 0
    for i in range(config.n_layer):
        for name, (n_in, n_out) in linear_layers(config.layer(i)).items():
            (match,) = weights.from_ours(f"layers.{i}.{name}.weight", ())
            total += r * (n_in + n_out) * (len(match.ours) == 1)
    return total


def _rows(config: Config, found: dict[str, Any], settings: DescribeCommand, places: dict[str, int]) -> dict[str, str]:
    n, active, context = found["parameters"], found["active_parameters"], found["context"]
    mlp = f"MLP {config.intermediate_size} ({config.mlp.kind})"
    if config.moe is not None:
        dense = config.moe_layers.count(False)
        mlp = f"{config.moe.n_expert_per_token} of {config.moe.n_expert} experts of {config.moe.intermediate_size}"
        shared = config.moe.shared_intermediate_size
        mlp += f" and one of {shared} for all" if shared else ""
        mlp += f" ({config.mlp.kind})" + (f"; {dense} with MLP {config.intermediate_size}" if dense else "")
    latent = config.attention.latent
    kv = f"{config.n_kv_head} for keys and values" if latent is None else f"a latent of {latent.kv_rank} for all"
    if config.full_head_dim or config.full_n_kv_head:
        heads, kv_heads = config.full_head_dim or config.head_dim, config.full_n_kv_head or config.n_kv_head
        kv += f"; in {config.layer_types.count('full')} full layers heads of {heads}, {kv_heads} for keys and values"
    batch = f" and {settings.batch_size} rows" if settings.batch_size > 1 else ""
    whole = config.max_seq_len * found["cache_bytes_per_token"] * settings.batch_size
    rows = {
        "family": config.family,
        "parameters": f"{n:,} ({count(n)})" + (f", {active:,} ({count(active)}) active" if active != n else ""),
        "layers": f"{config.n_layer} of width {config.n_embd}, {mlp}",
        "attention": f"{config.n_head} heads of {config.head_dim}, {kv}",
        "vocabulary": f"{config.vocab_size:,}" + (", embeddings tied" if config.tie_embeddings else ""),
        "context": f"{config.max_seq_len:,} tokens",
        "rope": _rope(config),
        "unlike Llama": ", ".join(found["unlike_llama"]) or "nothing",
        f"in {settings.dtype}": "",
        "weights": size(found["weight_bytes"]),
        "KV cache": f"{size(found['cache_bytes_per_token'])} a token, {size(found['cache_bytes'])} for {context:,} "
        f"tokens{batch}, {size(whole)} for a full context",
        "LoRA": f"{count(found['lora_parameters'])} parameters at r={MethodSettings().r} on all linear layers"
        f"{' but the experts' if config.moe else ''}: "
        f"{size(found['lora_bytes'])} with their states, before activations",
        "full training": f"{size(found['training_bytes'])}: weights, gradients and two AdamW moments in float32, "
        "before activations",
        "operations": f"{count(found['forward_flops_per_token'])} FLOPs a token forward, "
        f"{count(found['training_flops_per_token'])} in training, in rows of {context:,} tokens",
    }
    for place, total in places.items():
        fits = {"generation": "generation_bytes", "LoRA": "lora_bytes", "full training": "training_bytes"}
        answers = [f"{what} {'fits' if found[key] <= total else 'does not fit'}" for what, key in fits.items()]
        rows[place] = f"{size(total)}: {', '.join(answers)}"
    return rows


def _rope(config: Config) -> str:
    rope = config.rope
    if rope is None:
        return "none" + (", learned positions" if config.learned_positions else "")
    text = f"theta {rope.theta:g}"
    text += f" on {rope.fraction:g} of each head" if rope.fraction < 1 else ""
    text += f", {rope.scaling.kind} scaling by {rope.scaling.factor:g}" if rope.scaling else ""
    local = config.sliding_rope
    return text + (f"; theta {local.theta:g} in sliding layers" if local and "sliding" in config.layer_types else "")


def machine() -> dict[str, int]:
    """Where a model could go -> bytes of memory: this machine's RAM, and each GPU that nvidia-smi knows."""
    places = {}
    if hasattr(os, "sysconf"):  # Windows has none
        places["this machine's RAM"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return places
    for i, line in enumerate(done.stdout.strip().splitlines()):
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            places[f"GPU {i}, {name.strip()}"] = int(mebibytes) * 2**20
    return places


# --- what differs from a plain Llama -------------------------------------------------------------------------------

# Sizes and identity, which every model has its own of, and what other rows show.
_OWN = {
    "name", "family", "vocab_size", "n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "full_head_dim",
    "full_n_kv_head", "intermediate_size", "max_seq_len", "tie_embeddings", "layer_types", "sliding_window",
    "learned_positions", "init_std", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "eps", "theta",
    "fraction", "scaling", "sliding_rope", "aux_loss",
}  # fmt: skip


def _differences(config: Config) -> list[str]:
    found = [*_unlike(config, _LLAMA)]
    for kind, sees in (("sliding", "see"), ("chunked", "see chunks of")):
        if n := config.layer_types.count(kind):
            found.append(f"{n} of {config.n_layer} layers {sees} {config.sliding_window:,} tokens")
    return found


def _unlike(mine: Any, plain: Any, prefix: str = "") -> Iterator[str]:
    """`field=value` wherever `mine` differs from `plain`, a dataclass of the same kind or None."""
    for f in dataclasses.fields(mine):
        value = getattr(mine, f.name)
        if plain is not None:
            default = getattr(plain, f.name)
        else:
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name in _OWN:
            continue
        if f.name.endswith("_layers"):  # which layers have the part of that name; all or none is said elsewhere
            if len(set(value)) > 1:
                yield f"{value.count(False)} of {len(value)} layers without {f.name.removesuffix('_layers')}"
        elif dataclasses.is_dataclass(value):
            same = default if type(default) is type(value) else None
            shown = [*_unlike(value, same, f"{prefix}{f.name}.")]
            yield from shown or ([] if same is not None else [f"{prefix}{f.name}"])
        elif value is None and dataclasses.is_dataclass(default):
            yield f"no {prefix}{f.name}"
        elif value != default:
            shown = f"{value:g}" if isinstance(value, float) else value
            yield f"{f.name} {shown}" if f.name == "block" else f"{prefix}{f.name}={shown}"


# --- adapters ------------------------------------------------------------------------------------------------------


def _adapter(path: Path, settings: DescribeCommand) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Title, rows to print, and facts for scripts."""
    adapter = read_json(path / "adapter_config.json")
    base, trained = adapter.get("base_model_name_or_path"), _tensors(path / "adapter_model.safetensors")
    known = isinstance(base, str) and (find_model(base) is not None or Path(base).is_dir())
    total = load_config(str(base), settings.ignore_fields).n_parameters() if known else None
    targets = adapter.get("target_modules") or []
    facts = dict(
        adapter=adapter.get("peft_type", "LORA"), base=base, base_parameters=total, r=adapter.get("r"),
        alpha=adapter.get("lora_alpha"), dropout=adapter.get("lora_dropout"),
        targets=[targets] if isinstance(targets, str) else sorted(targets), trainable_parameters=trained,
    )  # fmt: skip
    share = "" if trained is None or total is None else f", {trained / total:.2%} of the base model's {count(total)}"
    rows = {
        "adapter": f"{facts['adapter']}, r={facts['r']}, alpha={facts['alpha']}, dropout={facts['dropout']}",
        "base model": str(base),
        "targets": ", ".join(facts["targets"]),
        "trainable": "no adapter_model.safetensors here" if trained is None else f"{trained:,} parameters{share}",
    }
    return str(path), rows, facts


def _tensors(path: Path) -> int | None:
    """Number of values in a safetensors file, from its header."""
    if not path.is_file():
        return None
    check_readable(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            n = 1
            for dim in tensor["shape"]:
                n *= dim
            total += n
    return total


def _print(described: dict[str, dict[str, str]]) -> None:
    """One model as a list of facts, several side by side."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    several = len(described) > 1
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    for _ in described:
        grid.add_column(overflow="fold", ratio=1 if several else None)
    if several:
        grid.add_row("", *(f"[bold]{escape(title)}[/bold]" for title in described))
    names = dict.fromkeys(name for rows in described.values() for name in rows)
    for name in names:
        grid.add_row(name, *(escape(rows.get(name, "")) for rows in described.values()))
    console = Console(highlight=False)
    if not several:
        console.print(*described, style="bold", markup=False, soft_wrap=True)
    console.print(grid)
