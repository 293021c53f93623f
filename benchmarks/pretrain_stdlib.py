"""A language model of Python in three minutes on one GPU: pretraining on the sources of the standard library.

    python benchmarks/pretrain_stdlib.py prepare [--data out/stdlib]
    python benchmarks/pretrain_stdlib.py run     [--data out/stdlib] [--out out/stdlib-run]
    python benchmarks/pretrain_stdlib.py show    [--run out/stdlib-run] [--docs docs]

`prepare` takes whole files apart for validation, trains a tokenizer on the others, and writes the tokens, a recipe for
`litlm pretrain --config`, and facts.json. `run` trains and leaves metrics.csv, samples.jsonl, report.html,
settings.yaml and run.json in --out; weights go to a temporary folder, and --weights names one to keep them in. `show`
writes docs/pretraining-run.md and its picture from these files. Unusual:
- Losses are also given in bits for each byte of the held-out text, which do not depend on the tokenizer. Documents' end
  tokens are predicted too and spell no bytes.
- The yardstick is xz, once alone and once going on after the text that the model learns from.
- `run` needs neither network nor command line parser, and runs from a clone that is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import lzma
import math
import os
import platform
import re
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from litlm.settings import PretrainSettings

DATA, OUT = Path("out/stdlib"), Path("out/stdlib-run")
HELD_OUT = 50  # one file of so many is validated on
VOCAB_SIZE = 16384
PROMPTS = ("def read_lines(path", "class Stack:\n", "import json\n\ndef")
SAMPLING: dict[str, Any] = dict(temperature=0.7, top_p=0.95, seed=1)
LONG = 200  # new tokens of the samples of the best model
BACK = ("metrics.csv", "samples.jsonl", "report.html", "settings.yaml")


def recipe(data: Path, out: Path = OUT) -> PretrainSettings:
    """66 million parameters in Llama's shape, 800 steps of 65,536 tokens."""
    from litlm.settings import PretrainSettings, TextData, TrainSettings

    return PretrainSettings(
        model="smollm2-135m",
        model_args=dict(
            n_layer=12, n_head=10, n_kv_head=5, head_dim=64, n_embd=640, intermediate_size=1792, max_seq_len=1024,
            init_std=0.02,
        ),
        data=TextData(path=(str(data / "train"),), val_path=(str(data / "val"),), max_len=1024),
        train=TrainSettings(
            max_steps=800, max_time="170s", batch_size=64, micro_batch_size=64, lr=1.5e-3, min_lr=0.0, schedule="wsd",
            warmup_steps=60, decay_fraction=0.3, weight_decay=0.1, val_interval=50, save_interval=800, keep=1,
            samples=PROMPTS,
        ),
        out_dir=str(out),
    )  # fmt: skip


# --- prepare ----------------------------------------------------------------------------------------------------------
def sources(library: Path) -> dict[str, bytes]:
    """The .py files of a standard library by their names in it: UTF-8, not empty, no two alike."""
    found: dict[str, bytes] = {}
    seen = set()
    for file in sorted(library.rglob("*.py")):
        name = file.relative_to(library)
        if {"site-packages", "dist-packages", "__pycache__"} & set(name.parts) or name.name == "sitecustomize.py":
            continue
        data = file.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(data).digest()
        if data.strip() and digest not in seen:
            seen.add(digest)
            found[name.as_posix()] = data
    return found


def is_held_out(name: str, one_of: int = HELD_OUT) -> bool:
    """By the name alone, so that it is the same files with every version."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % one_of == 0


def prepare(
    data: Path,
    library: Path | None = None,
    *,
    settings: PretrainSettings | None = None,
    vocab_size: int = VOCAB_SIZE,
    one_of: int = HELD_OUT,
) -> dict[str, Any]:
    """Write train/, val/, recipe.yaml and facts.json into `data`; the facts."""
    from litlm.data.prepare import prepare as tokenize
    from litlm.data.train_tokenizer import train_tokenizer
    from litlm.settings import PrepareCommand, TrainTokenizerCommand
    from litlm.train.files import settings_text

    settings = settings or recipe(data)
    files = sources(library or Path(sysconfig.get_paths()["stdlib"]))
    names = {part: [n for n in files if is_held_out(n, one_of) == (part == "val")] for part in ("train", "val")}
    with tempfile.TemporaryDirectory() as place:
        for part, those in names.items():
            for name in those:
                file = Path(place) / part / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(files[name])
        tokenizer = f"{place}/tokenizer"
        train_tokenizer(TrainTokenizerCommand(data=(f"{place}/train",), out_dir=tokenizer, vocab_size=vocab_size))
        done = {}
        for part in names:
            command = PrepareCommand(
                data=(f"{place}/{part}",), tokenizer=tokenizer, out_dir=str(data / part), overwrite=True
            )
            done[part] = tokenize(command)
            if part == "val":  # whole micro batches: a compiled model sees one shape
                assert settings.data.max_len is not None
                assert isinstance(settings.train.micro_batch_size, int)
                batch = settings.data.max_len * settings.train.micro_batch_size
                most = max(1, (done[part].tokens - 1) // batch) * batch + 1
                done[part] = tokenize(dataclasses.replace(command, max_tokens=most))
    text = {part: b"".join(files[name] for name in sorted(those)) for part, those in names.items()}
    rows, n_bytes = held_out_bytes(data / "val", settings.data.max_len or 0)
    held = text["val"][:n_bytes]
    alone, after = len(xz(held)), len(xz(text["train"] + held)) - len(xz(text["train"]))
    facts = dict(
        python=platform.python_version(), files=len(files), bytes=sum(map(len, files.values())),
        train=dict(files=len(names["train"]), bytes=len(text["train"]), tokens=done["train"].tokens),
        val=dict(files=names["val"], tokens=done["val"].tokens, targets=rows * (settings.data.max_len or 0),
                 bytes=n_bytes),
        vocab_size=vocab_size, xz_bits_per_byte=8 * alone / n_bytes, xz_after_training_text=8 * after / n_bytes,
    )  # fmt: skip
    (data / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (data / "recipe.yaml").write_text(
        f"# litlm pretrain --config {data / 'recipe.yaml'}\n{settings_text(settings)}", encoding="utf-8"
    )
    return facts


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9)


def held_out_bytes(folder: Path, max_len: int) -> tuple[int, int]:
    """Rows that validation reads from a prepared folder, and how many bytes of text their targets spell."""
    from litlm.data.shards import TextDataset
    from litlm.tokenizer import Tokenizer

    rows, tokenizer = TextDataset(folder, max_len), Tokenizer.from_dir(folder)
    # A token of byte-level BPE is written with one character for each of its bytes.
    width = [0 if i in tokenizer.special_ids else len(tokenizer.id_to_token(i)) for i in range(tokenizer.vocab_size)]
    return len(rows), sum(width[token] for i in range(len(rows)) for token in rows.row(i)[1:].tolist())


def bits_per_byte(loss: float, val: dict[str, Any]) -> float:
    return loss / math.log(2) * val["targets"] / val["bytes"]


# --- run --------------------------------------------------------------------------------------------------------------
def run(data: Path, out: Path, *, settings: PretrainSettings | None = None, weights: Path | None = None) -> bool:
    """Train, and leave small files in `out` whatever happens. Whether everything went well."""
    facts = json.loads((data / "facts.json").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = dict(machine=machine(), facts=facts, problems=[])
    save(out, record)
    memory, settings = roomy(), settings or recipe(data)
    with tempfile.TemporaryDirectory(dir=memory) as place:
        run_clone(Path(place))
        folder = weights or Path(place) / out.name
        if memory is None and weights is None:  # the disk may need longer for the checkpoints than the run takes
            settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, save_interval=None))
        settings = dataclasses.replace(settings, out_dir=str(folder), overwrite=True)
        began = time.perf_counter()
        steps = (train, long_samples)
        for step in steps:
            try:
                step(settings, record)
            except (Exception, KeyboardInterrupt) as e:
                traceback.print_exc()
                record["problems"].append(f"{step.__name__}: {type(e).__name__}: {e}")
            record.setdefault("seconds", {})[step.__name__] = time.perf_counter() - began
            for name in BACK:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, out / name)
            save(out, record)
    print(f"{out}: " + ("; ".join(record["problems"]) or "all done"))
    return not record["problems"]


def save(out: Path, record: dict[str, Any]) -> None:
    part = out / "run.json.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(out / "run.json")


def train(settings: PretrainSettings, record: dict[str, Any]) -> None:
    from litlm.data.shards import prepared_tokenizer
    from litlm.train.flops import train_flops_per_token
    from litlm.train.preflight import preflight
    from litlm.train.run import init_model, pretrain

    tokenizer = prepared_tokenizer(settings.data)
    assert tokenizer is not None
    with preflight(settings):  # which seeds, before the weights are drawn
        llm = init_model(settings, tokenizer.vocab_size, tokenizer.eos_id)
    # The trainer's samples are greedy, and small models then repeat themselves.
    llm.generate = partial(llm.generate, **SAMPLING)  # type: ignore[method-assign]
    record["parameters"] = sum(p.numel() for p in llm.model.parameters())
    record["flops_per_token"] = train_flops_per_token(llm.config, settings.data.max_len or 0)
    result = pretrain(settings, llm=llm)
    record["result"] = dict(steps=result.steps, stopped=result.stopped, val_losses=result.val_losses)


def long_samples(settings: PretrainSettings, record: dict[str, Any]) -> None:
    """What the checkpoint with the best validation loss says."""
    from litlm.checkpoint.training import Checkpoints
    from litlm.llm import LLM
    from litlm.train.report import read_metrics

    folder = Path(settings.out_dir)
    every = Checkpoints(folder, lambda folder: None).steps()
    if not every:
        raise ValueError("there is no checkpoint")
    losses = {int(row["step"]): row["val_loss"] for row in read_metrics(folder / "metrics.csv") if "val_loss" in row}
    best = min(every, key=lambda step: losses.get(step, math.inf))
    llm = LLM.load(every[best], device=settings.device)
    texts = [(p, llm.generate(p, max_new_tokens=LONG, **SAMPLING)) for p in settings.train.samples]
    record["best"] = dict(step=best, samples=[dict(prompt=p, text=t) for p, t in texts])


def roomy() -> str | None:
    """Memory, where there is much of it: a checkpoint is a gigabyte, and is written at each better validation."""
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 12e9 else None


def run_clone(place: Path) -> None:
    """What a run wants to have installed and can do without: litlm itself, and matplotlib for loss.png."""
    try:
        importlib.metadata.version("litlm")
    except importlib.metadata.PackageNotFoundError:
        from litlm import __version__

        known = place / "known" / f"litlm-{__version__}.dist-info"
        known.mkdir(parents=True)
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: litlm\nVersion: {__version__}\n")
        sys.path.append(str(known.parent))
    if importlib.util.find_spec("matplotlib") is None:
        import litlm.train.plot

        litlm.train.plot.plot_loss = lambda rows, path: None


def machine() -> dict[str, Any]:
    import torch

    from litlm.llm import pick_device
    from litlm.train.report import device_name

    found: dict[str, Any] = dict(device=device_name(pick_device()), python=platform.python_version())
    for name in ("torch", "triton", "lightning", "tokenizers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= dict(gpu=torch.cuda.get_device_name(), memory_gb=round(properties.total_memory / 1e9, 1))
    return found


# --- show -------------------------------------------------------------------------------------------------------------
# Colors that read on light and on dark; no variables, which not every viewer of SVG knows.
CURVE_STYLE = """
svg { font: 12px system-ui, sans-serif; } .axis { stroke: #8b93a0; stroke-opacity: .35; }
text { fill: #7d8794; } polyline { fill: none; stroke-width: 1.5; } .faint { opacity: .3; stroke-width: 1; }
.one { stroke: #3b7cf0; } circle.one, text.one { fill: #3b7cf0; } .two { stroke: #e0642f; }
circle.two, text.two { fill: #e0642f; } text { stroke: none; }
"""


def picture(rows: list[dict[str, float]], first: int) -> str:
    """report.html's loss curve as a file of its own, from step `first` on, with what its page says around it."""
    from litlm.train.html import Curve, chart, running_mean, series, thin

    every = series(rows, "loss")
    points = [p for p in every if p[0] >= first]
    mean = [p for p in running_mean(every) if p[0] >= first]
    curves = [
        Curve("each step", thin(points), "one faint"),
        Curve("running mean", thin(mean), "one"),
        Curve("held out", series(rows, "val_loss"), "two", dots=True),
    ]
    width, height = 720, 360
    svg = chart([c for c in curves if c.points], width, height).split("</svg>")[0]
    svg = re.sub(r'(?<=[ ])([\w-]+)=([^\s">]+?)(?=[\s/>])', r'\1="\2"', svg)  # XML wants quotes where HTML does not
    svg = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" ', 1)
    head, rest = svg.split(">", 1)
    legend = (
        f'<text class="one" x="{width - 20}" y="34" text-anchor="end">training loss</text>'
        f'<text class="two" x="{width - 20}" y="52" text-anchor="end">held-out loss</text>'
        f'<text x="52" y="{height - 6}">step</text>'
        '<text x="120" y="20">nats per token</text>'
    )
    return f"{head}><style>{CURVE_STYLE}</style>{rest}{legend}</svg>\n"


def show(folder: Path, docs: Path) -> Path:
    """docs/pretraining-run.md and .svg of a run."""
    from litlm.train.report import read_metrics, read_samples

    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows, samples = read_metrics(folder / "metrics.csv"), read_samples(folder / "samples.jsonl")
    if not any("val_loss" in row for row in rows):
        raise ValueError(f"{folder}/metrics.csv has no validation yet; there is nothing to show")
    first = len(rows) // 20 + 1
    page = docs / "pretraining-run.md"
    (docs / "pretraining-run.svg").write_text(picture(rows, first), encoding="utf-8")
    page.write_text(document(record, rows, samples, read_settings(folder / "settings.yaml"), first), encoding="utf-8")
    return page


def read_settings(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def speed_of(rows: list[dict[str, float]]) -> float:
    """Tokens a second by the clock, without validations and what surrounds them: the median of the stretches."""
    ends = [0, *(i for i, row in enumerate(rows) if "val_loss" in row)]
    stretches = [(a + 3, b - 2) for a, b in zip(ends, ends[1:], strict=False) if b - a > 10]
    if not stretches:
        return statistics.median(row["tokens_per_s"] for row in rows)
    took = [(rows[b]["tokens"] - rows[a]["tokens"]) / (rows[b]["seconds"] - rows[a]["seconds"]) for a, b in stretches]
    return statistics.median(took)


def document(
    record: dict[str, Any], rows: list[dict[str, float]], samples: list[dict[str, Any]], settings: dict[str, Any],
    first: int,
) -> str:  # fmt: skip
    facts, machine, t = record["facts"], record["machine"], settings["train"]
    val, last = facts["val"], rows[-1]
    vals = [(int(row["step"]), row["val_loss"], row) for row in rows if "val_loss" in row]
    best = min(vals, key=lambda v: v[1])
    epoch = facts["train"]["tokens"] / (t["batch_size"] * settings["data"]["max_len"])  # steps
    sizes, shown = settings["model_args"], lambda loss: f"{bits_per_byte(loss, val):.3f}"
    speed = speed_of(rows)
    mfu = [row["mfu"] / row["tokens_per_s"] * speed for row in rows if "mfu" in row]
    versions = ", ".join(f"{n} {machine[n]}" for n in ("torch", "triton", "lightning", "tokenizers") if machine[n])
    utilization = f", {statistics.median(mfu):.0%} of what the GPU could do in bf16 (MFU)" if mfu else ""
    memory = f"; {max(r['memory_gb'] for r in rows if 'memory_gb' in r):.0f} GB at most" if "memory_gb" in last else ""
    table = "\n".join(
        [
            "| step | passes | training loss | held-out loss | bits per byte |",
            "|---|---|---|---|---|",
            *(
                f"| {step:,} | {step / epoch:.1f} | {mean_loss(rows, step):.3f} | {loss:.3f}"
                f"{' (best)' if step == best[0] else ''} | {shown(loss)} |"
                for step, loss, _ in thinned(vals, best)
            ),
        ]
    )
    decay = next((s for s, _, row in vals if row["lr"] < 0.999 * t["lr"] and s > t["warmup_steps"]), None)
    before = [v for v in vals if decay is not None and v[0] < decay]
    kept = record.get("best", {}).get("step")
    notes = [
        f"A model that knows nothing has a loss of ln({facts['vocab_size']:,}) = {math.log(facts['vocab_size']):.2f}; "
        f"the first step's was {rows[0]['loss']:.2f}.",
        f"The run goes over the same text {last['step'] / epoch:.1f} times. At the end the training loss is "
        f"{mean_loss(rows, int(last['step'])):.2f} and the held-out loss {vals[-1][1]:.2f}: the distance between them "
        "is mostly text learned by heart.",
        f"The held-out loss was lowest after step {best[0]:,} ({best[0] / epoch:.1f} passes)"
        + (
            ", which is the end: it never turned."
            if best is vals[-1]
            else f", and {vals[-1][1] - best[1]:.3f} higher at the end."
            + (" The trainer keeps the checkpoint of the best validation." if kept == best[0] else "")
        ),
    ]
    if before and t["schedule"] == "wsd":
        notes.append(
            f"The learning rate stays high until the last {t['decay_fraction']:.0%} of the run and then falls to "
            f"{'zero' if t['min_lr'] == 0 else 'a share of it'}. The last validation before it fell, after step "
            f"{before[-1][0]:,}, gave {before[-1][1]:.3f}; the lowest after that is "
            f"{min(loss for step, loss, _ in vals if step > before[-1][0]):.3f}."
        )
    notes.append(
        "Files were held out whole, but the library repeats itself: tests look like other tests, and some modules "
        "have old copies. On Python from elsewhere the model would do worse."
    )
    said = []
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        mine = [s for s in samples if s["prompt"] == prompt]
        for s in [mine[i] for i in sorted({0, len(mine) // 2, len(mine) - 1})]:
            said.append(f"After step {s['step']:,}:\n\n{fenced(s['prompt'] + s['text'])}")
    more = [fenced(s["prompt"] + s["text"], 24) for s in record.get("best", {}).get("samples", [])]
    about = {
        "text": f"{facts['files']:,} files of Python {facts['python']}'s library and its tests, "
        f"{facts['bytes'] / 1e6:.1f} MB",
        "held out": f"{len(val['files'])} whole files, chosen by a hash of their names; {val['bytes'] / 1e3:,.0f} kB "
        "of them are validated on",
        "tokenizer": f"byte-level BPE of {facts['vocab_size']:,} tokens, trained on the training files: "
        f"{val['bytes'] / val['targets']:.2f} held-out bytes a token",
        "model": f"Llama's shape: {sizes['n_layer']} layers, width {sizes['n_embd']}, {sizes['n_head']} heads "
        f"({sizes['n_kv_head']} for keys and values) of {sizes['head_dim']}, MLP {sizes['intermediate_size']:,}, tied "
        f"embeddings: {record['parameters'] / 1e6:.1f} million parameters",
        "step": f"{t['batch_size']} rows of {settings['data']['max_len']:,} tokens; {t['optimizer']}, learning rate "
        f"{t['lr']:g} ({t['schedule']}, {t['warmup_steps']} steps of warm-up), weight decay {t['weight_decay']:g}",
        "length": f"{int(last['step']):,} steps, {last['tokens'] / 1e6:.1f} million tokens: "
        f"{last['step'] / epoch:.1f} passes over {facts['train']['tokens'] / 1e6:.2f} million",
        "machine": f"{machine['device']}; Python {machine['python']}, {versions}",
        "speed": f"{speed:,.0f} tokens a second between validations{utilization}{memory}",
        "time": f"{last['seconds']:.0f} s by the run's own clock, with compiling, {len(vals)} validations, samples and "
        "checkpoints",
    }
    measures = {
        "`xz -9` of the held-out text alone": f"{facts['xz_bits_per_byte']:.3f}",
        "`xz -9` that has read the training text first": f"{facts['xz_after_training_text']:.3f}",
        f"the model after step {best[0]:,}": shown(best[1]),
    }
    parts = [
        "# A pretraining run, from nothing",
        "`benchmarks/pretrain_stdlib.py` writes this page from the files of one run: a model with random weights "
        f"learns Python from the sources of Python's standard library, in {clock(record)} on one machine, setting up "
        "included.",
        "```\npython benchmarks/pretrain_stdlib.py prepare\npython benchmarks/pretrain_stdlib.py run\n"
        "python benchmarks/pretrain_stdlib.py show\n```",
        "`prepare` does what `litlm train-tokenizer` and `litlm prepare` do. `run` is `litlm pretrain --config "
        f"out/stdlib/recipe.yaml` that samples at a temperature of {SAMPLING['temperature']} (top-p "
        f"{SAMPLING['top_p']}) and notes the machine.",
        lines_of(("", ""), about),
        "## The loss",
        "![Training and held-out loss](pretraining-run.svg)",
        f"From step {first} on; faint: each step.",
        table,
        "Losses are nats a token; the training loss is the mean of the steps since the validation before. Bits per "
        "byte do not depend on the tokenizer, so they can be compared. On the same held-out bytes:",
        lines_of(("", "bits per byte"), measures),
        f"The model sees at most {settings['data']['max_len']:,} tokens back, and nothing at the beginning of each "
        "row, where xz sees all that came before. Its own size counts for nothing here; an archive would have to hold "
        "it.",
        "## What to notice",
        "\n".join(f"- {note}" for note in notes),
        "## What it writes",
        f"The same prompts before, in the middle of and after training, 64 tokens each at a temperature of "
        f"{SAMPLING['temperature']}:",
        *said,
        *([f"The model after step {kept:,}, for longer:"] if more else []),
        *more,
    ]
    return "\n\n".join(parts) + "\n"


def lines_of(head: tuple[str, str], cells: dict[str, str]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {k} | {v} |" for k, v in cells.items())])


def clock(record: dict[str, Any]) -> str:
    seconds = record["seconds"]["train"]
    return f"{seconds:.0f} seconds" if seconds < 180 else f"{seconds / 60:.0f} minutes"


def mean_loss(rows: list[dict[str, float]], step: int) -> float:
    """Of the steps since the validation before the one at `step`."""
    found: list[float] = []
    for row in rows:
        if row["step"] <= step:
            found.append(row["loss"])
            if "val_loss" in row and row["step"] < step:
                found.clear()
    return statistics.fmean(found)


def thinned(vals: list[Any], best: Any, most: int = 10) -> list[Any]:
    every = math.ceil(len(vals) / most)
    return [v for i, v in enumerate(vals) if i % every == 0 or v is best or v is vals[-1]]


def fenced(text: str, lines: int = 12) -> str:
    """The first lines as a block; no run of backticks in it can end it."""
    cut = [line.rstrip() for line in text.rstrip().expandtabs(4).split("\n")]
    cut = [line if len(line) <= 110 else line[:109] + "…" for line in cut]
    text = "\n".join(cut[:lines]) + ("\n…" if len(cut) > lines else "")
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    fence = "`" * (3 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("prepare")
    one.add_argument("--data", type=Path, default=DATA)
    two = steps.add_parser("run")
    two.add_argument("--data", type=Path, default=DATA)
    two.add_argument("--out", type=Path, default=OUT)
    two.add_argument("--weights", type=Path, help="keep checkpoints and final/ here")
    three = steps.add_parser("show")
    three.add_argument("--run", type=Path, default=OUT)
    three.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    if args.step == "prepare":
        print(json.dumps(prepare(args.data), indent=1))
    elif args.step == "run":
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return 0 if run(args.data, args.out, weights=args.weights) else 1
    else:
        print(show(args.run, args.docs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
