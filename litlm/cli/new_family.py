"""`litlm new-family`: the first draft of a family file, from a `config.json`.

All known families try to read the config; the one with the fewest problems is the nearest. The draft is that family
plus a line for each field it does not know and, if there are weights, for each tensor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from litlm.config import Config
from litlm.families import HFFields, get_family, list_families
from litlm.families.base import Family
from litlm.io.errors import error_reason
from litlm.io.lock import locked
from litlm.io.reading import read_json, safetensors_header
from litlm.io.writing import atomic_folder, write_text
from litlm.settings import NewFamilyCommand

# Sizes of the models in tests: small and odd.
_TINY = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 14, "max_position_embeddings": 128, "sliding_window": 5, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip


def new_family(settings: NewFamilyCommand) -> None:
    """Run `litlm new-family`. Raises ValueError for a config that is known already or unlike any family."""
    source = Path(settings.source)
    source = source / "config.json" if source.is_dir() else source
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        model_type = data["model_type"]
        if not isinstance(model_type, str) or not model_type.isidentifier():
            raise ValueError(f"model_type={model_type!r} must be a name, as in a Hugging Face config.json")
    except OSError as e:
        raise ValueError(f"{source} can't be read ({error_reason(e)}); give a config.json or its directory") from None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{source} is not a Hugging Face config.json: it names no model_type") from None
    if model_type in list_families():
        raise ValueError(
            f"model_type={model_type!r} is known already; `litlm.Config.from_hf({str(source)!r})` reads it"
        )
    names = _tensors(source.parent)
    nearest, problems, unknown = _nearest(data, names)
    new_tensors = _unknown_tensors(nearest, names)
    out = Path(settings.out_dir)
    files = {
        out / f"{model_type}.py": _family_file(data, nearest, problems, unknown, new_tensors),
        out / f"table_{model_type}.py": _table_file(model_type, data),
    }
    if taken := [str(path) for path in files if path.exists()]:
        raise ValueError(f"{' and '.join(taken)} would be overwritten; move it away, or choose another --out_dir")
    with locked(out), atomic_folder(out) as part:
        for path, text in files.items():
            write_text(part / path.name, text)
    family, table = files
    n_patterns = len(_patterns(new_tensors))
    print(
        f"{model_type} is nearest to {nearest.model_type}; fields new to that: {', '.join(unknown) or 'none'}. "
        + (
            f"Kinds of tensors new to it: {n_patterns}."
            if names
            else "There are no weights beside the config to look at."
        )
    )
    print(
        f"Wrote {family} and {table}; what is missing is marked FILL IN. In a checkout of litlm:\n"
        f"  mv {family} litlm/families/ && mv {table} tests/parity/\n"
        f"  python -m pytest tests/parity -k {model_type}\n"
        "To contribute it, also name it in docs/families.md and count it there and in README.md.\n"
        "docs/adding-a-model.md explains the steps."
    )


def _unknown_tensors(family: Family, names: list[str]) -> list[str]:
    weights = family.weights
    return [name for name in names if weights.from_theirs(name) is None and not weights.ignored(name)]


def _nearest(data: dict[str, Any], names: list[str]) -> tuple[Family, list[str], dict[str, Any]]:
    """The family with the fewest problems, these problems, and the fields it does not know."""
    found = []
    for name in list_families():
        family, fields = get_family(name), HFFields(data)
        try:
            Config(family=name, **family.from_hf(fields))
        except (ValueError, TypeError, ArithmeticError):  # unlike this family
            continue
        unknown = fields.unknown()
        n_problems = len(fields.problems) + len(unknown) + len(_patterns(_unknown_tensors(family, names)))
        found.append((n_problems, name != "llama", len(family.rules), name, family, fields.problems, unknown))
    if not found:
        raise ValueError("no family of litlm can read this config even in part; is it a decoder-only language model?")
    *_, family, problems, unknown = min(found, key=lambda f: f[:4])
    return family, problems, unknown


def _tensors(folder: Path) -> list[str]:
    """The names of the checkpoint's tensors, from its index or header."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return sorted(read_json(index)["weight_map"])
    if single.is_file():
        return sorted(safetensors_header(single))
    return []


def _patterns(names: list[str]) -> list[str]:
    """model.layers.7.x.experts.3.y -> model.layers.{i}.x.experts.{e}.y, each once."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".{e}.", re.sub(r"\.\d+\.", ".{i}.", n, count=1)) for n in names))


_FAMILY = '''"""{type}: like {nearest}, but ... (FILL IN: what is special, and which models have it)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litlm.families.base import Family, HFFields
from litlm.families.{nearest} import FAMILY as NEAREST
{imports}
if TYPE_CHECKING:
    from litlm.config import Config


def from_hf(hf: HFFields) -> dict[str, Any]:
    values = NEAREST.from_hf(hf)
{reading}    return values


def to_hf(config: Config) -> dict[str, Any]:
    return NEAREST.to_hf(config){writing}


FAMILY = Family(
    model_type="{type}",
    architecture="{architecture}",
    from_hf=from_hf,
    to_hf=to_hf,
    rules=(
        *NEAREST.rules,
{rules}    ),
    ignore=NEAREST.ignore,
)
'''


def _family_file(
    data: dict[str, Any], nearest: Family, problems: list[str], unknown: dict[str, Any], new_tensors: list[str]
) -> str:
    reading = [f"    # FILL IN: {nearest.model_type} objects: {problem}\n" for problem in problems]
    for key, value in unknown.items():
        # Until hf.take or hf.expect reads the field, loading the model raises an error that names it.
        reading.append(
            f"    # FILL IN: {key} is {_source(value)} here. What does it change? hf.take or hf.expect it.\n"
        )
    writing = "".join(f"\n        {key}={_source(value)}," for key, value in unknown.items())
    rules = [
        f"        # FILL IN: which of our tensors is it?\n        rename({_source(name)}, {_source('?')}),\n"
        for name in _patterns(new_tensors)
    ]
    return _FAMILY.format(
        type=data["model_type"],
        nearest=nearest.model_type,
        architecture=(data.get("architectures") or [f"{data['model_type'].title()}ForCausalLM"])[0],
        imports="from litlm.families.weights import rename\n" if rules else "",
        reading="".join(reading),
        writing=f" | dict({writing}\n    )" if writing else "",
        rules="".join(rules),
    )


def _table_file(model_type: str, data: dict[str, Any]) -> str:
    skip = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "quantization_config")
    base = {k: _TINY.get(k, v) for k, v in data.items() if k not in skip and v is not None and k != "layer_types"}
    tied = bool(data.get("tie_word_embeddings"))
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "retied": dict(tie_word_embeddings=not tied),
        "one-kv-head": dict(num_key_value_heads=1),
        "biases-deeper": dict(num_hidden_layers=5) | ({"attention_bias": True} if "attention_bias" in data else {}),
    }
    cases = "".join(
        f'    Case("{model_type}-{name}", "{model_type}", BASE | {_source(more)}, {9000 + seed}),\n'
        for seed, (name, more) in enumerate(variants.items())
    )
    fields = "".join(f"    {key}={_source(value)},\n" for key, value in base.items())
    return (
        f'"""Parity cases of {model_type}. FILL IN: odd shapes for what is special in it."""\n\n'
        "from __future__ import annotations\n\nfrom typing import Any\n\nfrom parity.case import Case\n\n"
        f"BASE: dict[str, Any] = dict(\n{fields})\nCASES = [\n{cases}]\n"
    )


def _source(value: Any) -> str:
    """A JSON value as Python source, with double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(k)}: {_source(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_source, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
