"""`litlm describe`: a model's architecture, parameters and memory. No torch except for .gguf files.

Memory is counted, not measured: weights, optimizer states, KV cache and recurrent states. Activations depend on how a
step is run and are left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litlm.checkpoint.config import load_config
from litlm.checkpoint.run_folder import model_directory
from litlm.cli.models import model_facts
from litlm.config import Config, ShortConvConfig
from litlm.config.counts import forward_flops, linear_layers
from litlm.io.format import format_bytes, format_count
from litlm.io.reading import read_json, safetensors_header
from litlm.settings import DescribeCommand, MethodSettings
from litlm.zoo import find_model

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# A plain Llama; `describe` shows the differences.
_LLAMA = Config(vocab_size=32000, n_layer=1, n_embd=64, n_head=1)


def describe(settings: DescribeCommand) -> None:
    """Run `litlm describe`. Raises one ValueError for all models that can't be described."""
    memory = available_memory()
    described, problems = [], []
    for model in settings.model:
        try:
            path = model_directory(Path(model))
            is_adapter = (path / "adapter_config.json").is_file()
            described.append(_adapter(path, settings) if is_adapter else _model(str(path), settings, memory))
        except ValueError as e:
            problems.append(str(e))
    if problems:
        raise ValueError("\n".join(problems))
    if settings.json:
        facts = [facts for _, _, facts in described]
        print(json.dumps(facts[0] if len(facts) == 1 else facts, indent=2))
    else:
        _print({title: rows for title, rows, _ in described})


def _model(model: str, settings: DescribeCommand, memory: dict[str, int]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """A title, the rows to print, and facts for scripts."""
    config, info = load_config(model, settings.ignore_fields), find_model(model)
    title = model if info is None else f"{info.name} ({info.hub_id}, {info.license})"
    found = needs(config, settings)
    entry = {} if info is None else model_facts(info, config)
    facts = entry | found | {"machine": memory, "config": config.to_dict()}
    return title, _rows(config, found, settings, memory), facts


def needs(config: Config, settings: DescribeCommand) -> dict[str, Any]:
    """Parameters, bytes and FLOPs for the dtype, batch size and context. Raises ValueError if that is too long."""
    context = settings.context or min(config.max_seq_len, 4096)
    if context > config.max_seq_len:
        raise ValueError(f"context={context} is more than this model's {config.max_seq_len} tokens")
    n, n_bytes = config.n_parameters(), BYTES[settings.dtype]
    cached, state = config.kv_bytes_per_token(n_bytes), config.state_bytes_per_row(n_bytes)
    cache = settings.batch_size * (context * cached + state)
    lora = lora_parameters(config, MethodSettings().r)
    forward = forward_flops(config, context)
    return dict(
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        context=context,
        parameters=n,
        active_parameters=config.n_active_parameters(),
        weight_bytes=n * n_bytes,
        cache_bytes_per_token=cached,
        state_bytes_per_row=state,
        cache_bytes=cache,
        generation_bytes=n * n_bytes + cache,
        lora_parameters=lora,
        lora_bytes=n * n_bytes + 16 * lora,
        training_bytes=16 * n,
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        unlike_llama=_differences(config),
    )


def lora_parameters(config: Config, r: int) -> int:
    """Of adapters on all linear layers. Experts stay as they are."""
    shapes = [shape for i in range(config.n_layer) for shape in linear_layers(config.layer(i)).values()]
    return r * sum(n_in + n_out for n_in, n_out in shapes)


def _rows(config: Config, found: dict[str, Any], settings: DescribeCommand, memory: dict[str, int]) -> dict[str, str]:
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
    n_recurrent = config.layer_types.count("recurrent")
    kv += f", in {config.n_layer - n_recurrent} of {config.n_layer} layers" if n_recurrent else ""
    if (gate := config.attention.gate) is not None:
        kv += f"; a {gate.activation} gate for each {gate.over} of their output"
    batch = f" and {settings.batch_size} rows" if settings.batch_size > 1 else ""
    per_token, per_row = found["cache_bytes_per_token"], found["state_bytes_per_row"]
    whole = (config.max_seq_len * per_token + per_row) * settings.batch_size
    rows = {
        "family": config.family,
        "parameters": f"{n:,} ({format_count(n)})"
        + (f", {active:,} ({format_count(active)}) active" if active != n else ""),
        "layers": f"{config.n_layer} of width {config.n_embd}, {mlp}",
        "attention": f"{config.n_head} heads of {config.head_dim}, {kv}",
        **({"recurrent": f"{n_recurrent} of {config.n_layer} layers: {_recurrence(config)}"} if n_recurrent else {}),
        "vocabulary": f"{config.vocab_size:,}" + (", embeddings tied" if config.tie_embeddings else ""),
        "context": f"{config.max_seq_len:,} tokens",
        "rope": _rope(config),
        "unlike Llama": ", ".join(found["unlike_llama"]) or "nothing",
        f"in {settings.dtype}": "",
        "weights": format_bytes(found["weight_bytes"]),
        "KV cache": f"{format_bytes(per_token)} a token"
        f"{f' and {format_bytes(per_row)} of recurrent state a row' if per_row else ''}, "
        f"{format_bytes(found['cache_bytes'])} for "
        f"{context:,} tokens{batch}, {format_bytes(whole)} for a full context",
        "LoRA": f"{format_count(found['lora_parameters'])} parameters at r={MethodSettings().r} on all linear layers"
        f"{' but the experts' if config.moe else ''}: "
        f"{format_bytes(found['lora_bytes'])} with their states, before activations",
        "full training": f"{format_bytes(found['training_bytes'])}: weights, gradients and two AdamW moments in "
        "float32, before activations",
        "operations": f"{format_count(found['forward_flops_per_token'])} FLOPs a token forward, "
        f"{format_count(found['training_flops_per_token'])} in training, in rows of {context:,} tokens",
    }
    for device, total in memory.items():
        fits = {"generation": "generation_bytes", "LoRA": "lora_bytes", "full training": "training_bytes"}
        answers = [f"{what} {'fits' if found[key] <= total else 'does not fit'}" for what, key in fits.items()]
        rows[device] = f"{format_bytes(total)}: {', '.join(answers)}"
    return rows


def _recurrence(config: Config) -> str:
    mixer = config.recurrent
    assert mixer is not None
    conv = f"convolution over {mixer.kernel_size} tokens"
    if isinstance(mixer, ShortConvConfig):
        return f"gated short {conv}"
    heads = f"{mixer.n_value_head} heads with a state of {mixer.key_dim} x {mixer.value_dim} each"
    beta = f", beta up to {mixer.beta_scale:g}" if mixer.beta_scale != 1 else ""
    return f"Gated DeltaNet, {heads}, {mixer.n_key_head} for queries and keys, {conv}{beta}"


def _rope(config: Config) -> str:
    rope = config.rope
    if rope is None:
        return "none" + (", learned positions" if config.learned_positions else "")
    text = f"theta {rope.theta:,.12g}"
    text += f" on {rope.fraction:g} of each head" if rope.fraction < 1 else ""
    text += f", {rope.scaling.kind} scaling by {rope.scaling.factor:g}" if rope.scaling else ""
    local = config.sliding_rope if "sliding" in config.layer_types else None
    return text + (f"; theta {local.theta:,.12g} in sliding layers" if local else "")


def available_memory() -> dict[str, int]:
    """Bytes of this machine's RAM and of each GPU that nvidia-smi lists."""
    memory = {}
    if hasattr(os, "sysconf"):  # Windows has none
        memory["this machine's RAM"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return memory
    for i, line in enumerate(done.stdout.strip().splitlines()):
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            memory[f"GPU {i}, {name.strip()}"] = int(mebibytes) * 2**20
    return memory


# --- differences from a plain Llama -------------------------------------------------------------------------------

# Not compared: sizes and names, which always differ, and what other rows show.
_NOT_COMPARED = {
    "name", "family", "vocab_size", "n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "full_head_dim",
    "full_n_kv_head", "intermediate_size", "max_seq_len", "tie_embeddings", "layer_types", "sliding_window",
    "learned_positions", "init_std", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "eps", "theta",
    "fraction", "scaling", "sliding_rope", "aux_loss", "recurrent", "in_q_proj", "round_embed_scale",
}  # fmt: skip


def _differences(config: Config) -> list[str]:
    found = [*_unlike(config, _LLAMA)]
    for kind, sees in (("sliding", "see"), ("chunked", "see chunks of")):
        if n := config.layer_types.count(kind):
            found.append(f"{n} of {config.n_layer} layers {sees} {config.sliding_window:,} tokens")
    return found


def _unlike(mine: Any, plain: Any, prefix: str = "") -> Iterator[str]:
    """`field=value` for each difference of `mine` from `plain`, a dataclass of the same type or None."""
    for f in dataclasses.fields(mine):
        value = getattr(mine, f.name)
        if plain is not None:
            default = getattr(plain, f.name)
        else:
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name in _NOT_COMPARED:
            continue
        # Which layers have this part; other rows cover all or none, and recurrent ones.
        if f.name.endswith("_layers") and value:
            part = f.name.removesuffix("_layers")
            has = [h for h, kind in zip(value, mine.layer_types, strict=True) if part != "rope" or kind != "recurrent"]
            if len(set(has)) > 1:
                yield f"{has.count(False)} of {len(value)} layers without {part}"
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
    """A title, the rows to print, and facts for scripts."""
    adapter = read_json(path / "adapter_config.json")
    base, weights = adapter.get("base_model_name_or_path"), path / "adapter_model.safetensors"
    trained = sum(math.prod(t["shape"]) for t in safetensors_header(weights).values()) if weights.is_file() else None
    known = isinstance(base, str) and (find_model(base) is not None or Path(base).is_dir())
    total = load_config(str(base), settings.ignore_fields).n_parameters() if known else None
    targets = adapter.get("target_modules") or []
    facts = dict(
        adapter=adapter.get("peft_type", "LORA"), base=base, base_parameters=total, r=adapter.get("r"),
        alpha=adapter.get("lora_alpha"), dropout=adapter.get("lora_dropout"),
        targets=[targets] if isinstance(targets, str) else sorted(targets), trainable_parameters=trained,
    )  # fmt: skip
    share = (
        "" if trained is None or total is None else f", {trained / total:.2%} of the base model's {format_count(total)}"
    )
    rows = {
        "adapter": f"{facts['adapter']}, r={facts['r']}, alpha={facts['alpha']}, dropout={facts['dropout']}",
        "base model": str(base),
        "targets": ", ".join(facts["targets"]),
        "trainable": "no adapter_model.safetensors here" if trained is None else f"{trained:,} parameters{share}",
    }
    return str(path), rows, facts


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
    with console.capture() as shown:  # see `litlm models`
        if not several:
            console.print(*described, style="bold", markup=False, soft_wrap=True)
        console.print(grid)
    print(shown.get(), end="")
