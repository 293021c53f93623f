"""`litlm models`: the models known by name. No torch."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from litlm.config import Config
from litlm.io.format import format_count
from litlm.settings import ModelsCommand
from litlm.zoo import ModelInfo, get_model, list_models


def models(settings: ModelsCommand) -> None:
    """Run `litlm models`. Raises ValueError if no model matches."""
    known = sorted({get_model(name).hf["model_type"] for name in list_models()})
    if settings.family is not None and settings.family not in known:
        near = [name for name in known if name.startswith(settings.family.lower())]
        near = near or difflib.get_close_matches(settings.family.lower(), known, n=1)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"No named model is of family={settings.family!r}.{hint} Known are: {', '.join(known)}")
    infos = [info for info in map(get_model, list_models(settings.family)) if _matches(info, settings)]
    found = [(info, config) for info in infos if _has_size(config := Config.from_name(info.name), settings)]
    if not found:
        filters = ", ".join(f"{k}={v!r}" for k, v in vars(settings).items() if v and k != "json")
        raise ValueError(f"No model fits {filters}. `litlm models` lists all.")
    found.sort(key=lambda pair: (pair[1].family, pair[1].n_parameters(), pair[0].name))
    if settings.json:
        print(json.dumps([model_facts(info, config) for info, config in found], indent=2))
    else:
        _print_models(found)


def _matches(info: ModelInfo, settings: ModelsCommand) -> bool:
    return (
        any(settings.match.lower() in key for key in info.keys)
        and (settings.license or "").lower() in info.license.lower()
        and (settings.access is None or info.gated == (settings.access == "gated"))
        and (settings.kind is None or info.chat == (settings.kind == "chat"))
    )


def _has_size(config: Config, settings: ModelsCommand) -> bool:
    # Models that call themselves 8B may have 8.2 billion parameters.
    most = None if settings.max_size is None else parse_parameters(settings.max_size) * 1.03
    return (not settings.moe or config.moe is not None) and (most is None or config.n_parameters() <= most)


def parse_parameters(text: str) -> float:
    """8B, 700M or 1e9 as a number. Raises ValueError for other texts."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmbt]?)", text.strip().lower())
    try:
        number, unit = found.groups() if found else ("", "")
        return float(number) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[unit]
    except ValueError:
        raise ValueError(f"max_size={text!r} is not a number of parameters; write it as 8B or 700M") from None


def model_facts(info: ModelInfo, config: Config) -> dict[str, Any]:
    """What the zoo and its config say about a model, for scripts."""
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
            table.add_row(f"[bold]{family}[/bold]")  # a heading; the names below it are indented
        total, active = config.n_parameters(), config.n_active_parameters()
        table.add_row(
            f"  {info.name}", format_count(total), format_count(active) if active != total else "",
            f"{config.max_seq_len:,}", _style(info), info.license + (" *" if info.gated else ""), info.hub_id,
        )  # fmt: skip
    # Names are there to be copied, so they are never wrapped or cut.
    console = Console(width=max(Console().width, Console(width=1000).measure(table).maximum))
    console.print(table)
    notes = [f"{len(found)} models. `litlm describe NAME` shows one; any hub id of these families loads too."]
    if any(info.gated for info, _ in found):
        notes.append("* needs an agreement on the hub first.")
    if any(_style(info).endswith("?") for info, _ in found):
        notes.append("? unverified: there was no reference to compare this prompt style with.")
    console.print("\n".join(notes), highlight=False)
