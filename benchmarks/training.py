"""Speed and memory of training, beside peers: `litlm.train.fit` itself on random rows, with random weights.

    python benchmarks/training.py ROW [ROW ...] [--impl litlm,torchtune] [--out FILE.jsonl] [--limit 150] [--budget 560]
    python benchmarks/training.py --list
    python benchmarks/training.py pretrain-124m pretrain-1b --explore --profile --out FILE.jsonl
    python benchmarks/training.py cpu-compiled --impl litlm,hf,litgpt --turns 10

Each measurement is a process of its own, and adds its line to FILE as soon as it is there. --limit: seconds for one of
them; --budget: for all together, after which no more are started. --profile writes the kernels of some steps, and a
trace for chrome://tracing, beside FILE.
On a machine without CUDA the rows run with a tiny model, to try the script out; only the cpu rows mean something there.

What counts: tokens a second from the median step after warming up (compiling included there); the peak of what CUDA
allocated since the process began, building the model included; FLOPs by one formula for all (`training_peers.Shape`).
litlm's steps clip gradients and report, as a real run's do; the peers' don't. A step is what passes on the device from
the end of the one before to its own. tok_s_wall counts litlm's steps together, by the clock on the wall.

litlm's variants are asked for as litlm:VARIANT, joined by + where there are several:
    selective, full    other checkpointing
    eager      not compiled
    tuned      Inductor measures the shapes of its own kernels
    waits      each step is settled before the next is launched
    noclip     gradients are not clipped; inback: the optimizer steps in the backward pass
    dq         quantized scales
    padded     one example a row
    fp8        products in 8 bits, through torchao
    piecesN    of an MLP, where checkpointing is full

Peers (CUDA): transformers and peft; LitGPT 0.5.13 and torchtune 0.6.1 with torchao 0.14.1 installed without their
dependencies (LitGPT: jsonargparse 4.41, docstring-parser, typeshed-client, importlib-resources, litserve; torchtune:
omegaconf, antlr4-python3-runtime 4.9.3, torchdata, blobfile, kagglehub, datasets, multiprocess, dill, pycryptodomex);
bitsandbytes for nf4. A cpu row takes HF_PYTHON and LITGPT_PYTHON for interpreters with their own packages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from training_peers import (  # noqa: E402
    ALPHA,
    CPU,
    DEVICE,
    RANK,
    SHAPES,
    Row,
    Turns,
    lengths,
    prompt_of,
    real_tokens,
    run,
    synchronize,
)

from litlm.data.base import IGNORE, Batch, Dataset, Example  # noqa: E402
from litlm.train.report import Report  # noqa: E402

_LORA = ("litlm", "torchtune", "hf")
ROWS = {
    "pretrain-124m": Row("pretrain", "llama-124m", 32, 1024, ("litlm", "bare", "litgpt", "hf"), steps=20),
    "pretrain-1b": Row("pretrain", "llama-1b", 4, 4096, ("litlm", "bare", "litgpt", "hf")),
    "lora-8b": Row("lora", "llama-8b", 2, 2048, ("litlm", "torchtune", "litgpt")),
    "lora-8b-full": Row("lora", "llama-8b", 2, 2048, _LORA, checkpointing=True),
    "qlora-8b": Row("qlora", "llama-8b", 1, 2048, (*_LORA, "litgpt")),
    "qlora-8b-full": Row("qlora", "llama-8b", 2, 2048, _LORA, checkpointing=True),
    "dpo-8b": Row("dpo", "llama-8b", 2, 1024, ("litlm",)),  # a pair
    "packing-1b": Row("packing", "llama-1b", 8, 1024, ("litlm", "litlm:padded", "hf"), warmup=8, steps=12),
    "packing-8b": Row("packing", "llama-8b", 4, 1024, ("litlm", "litlm:padded", "hf"), warmup=8, steps=8),
}
CPU_ROWS = {"cpu-eager": "eager", "cpu-compiled": "compiled"}  # Pythia-14m's shape, 4 rows of 512, fp32
EXPLORE = ("litlm", "litlm:waits", "litlm:tuned", "litlm:noclip", "litlm:eager")


# --- data ----------------------------------------------------------------------------------------------------------


class Rows(Dataset):
    """Full rows of random tokens, all to be learned."""

    def __init__(self, vocab_size: int, length: int, n: int = 64) -> None:
        self.data = torch.randint(vocab_size, (n, length + 1), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        width = self.data.size(1) - 1
        return [
            Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), ((width,),) * len(rows))
            for rows in self.data[list(indexes)].split(micro_batch_size)
        ]


class Pairs(Rows):
    """Pairs of two full rows, of which the second half is the answer."""

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        from litlm.data.preference import PreferenceBatch

        out: list[Batch] = []
        for start in range(0, len(indexes), micro_batch_size):
            pairs = indexes[start : start + micro_batch_size]
            rows = self.data[[k for i in pairs for k in (2 * i, 2 * i + 1)]]
            targets = rows[:, 1:].clone()
            targets[:, : targets.size(1) // 2] = IGNORE
            numbers = tuple((n,) for n in range(len(rows)))
            out.append(PreferenceBatch(rows[:, :-1].contiguous(), targets, ((targets.size(1),),) * len(rows), numbers))
        return out

    def __len__(self) -> int:
        return len(self.data) // 2


class Examples(Dataset):
    """Random tokens in as many lengths as instruction data has, with prompts that are not learned."""

    def __init__(self, vocab_size: int, max_len: int, packing: bool, n: int = 4096) -> None:
        generator = torch.Generator().manual_seed(0)
        self.max_len, self.packing, self.static_shapes = max_len, packing, DEVICE == "cuda"
        self.examples = []
        for n_tokens in lengths(n, seed=0):
            n_tokens = min(n_tokens, max_len)
            ids = torch.randint(vocab_size, (n_tokens + 1,), generator=generator).tolist()
            prompt = prompt_of(n_tokens)
            self.examples.append(Example(ids, [False] * prompt + [True] * (len(ids) - prompt)))
        self.places = 0  # of all micro batches so far, padding included

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, indexes: Sequence[int], micro_batch_size: int) -> list[Batch]:
        from litlm.data.base import micro_batches

        examples = [self.examples[i] for i in indexes]
        packing = dict(packing=self.packing, static_shapes=self.static_shapes)
        out = micro_batches(examples, micro_batch_size, self.max_len, **packing)
        self.places += sum(batch.tokens.numel() for batch in out)
        return out


# --- models --------------------------------------------------------------------------------------------------------


def config_of(name: str) -> Any:
    from litlm.config import Config

    s = SHAPES[name]
    return Config.from_hf(
        dict(
            model_type="llama", num_hidden_layers=s.n_layer, hidden_size=s.n_embd, num_attention_heads=s.n_head,
            num_key_value_heads=s.n_kv_head, intermediate_size=s.intermediate_size, vocab_size=s.vocab_size,
            tie_word_embeddings=s.tied, max_position_embeddings=8192, rope_theta=500000.0, rms_norm_eps=1e-5,
            hidden_act="silu",
        )
    )  # fmt: skip


def pretrained(name: str, quantize: str | None) -> Any:
    """A model of random bf16 weights that arrive one by one, as from a file, and are packed as they do."""
    from litlm.checkpoint.base import WeightSource, load_model
    from litlm.families import get_family
    from litlm.model import GPT

    config = config_of(name)
    weights = get_family(config.family).weights_of(config)
    with torch.device("meta"):
        shapes = {k: tuple(t.shape) for k, t in GPT(config).state_dict().items()}

    class Random(WeightSource):
        path = Path("random")

        def shapes(self) -> dict[str, tuple[int, ...]]:
            return {match.theirs: shape for key, shape in shapes.items() for match in weights.from_ours(key, shape)}

        def read(self, name: str) -> torch.Tensor:
            shape = self.shapes()[name]
            weight = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
            return weight.fill_(1.0) if len(shape) == 1 else weight.normal_(std=0.02)

    return load_model(config, Random(), device=torch.device(DEVICE), dtype=torch.bfloat16, quantize=quantize)


# --- litlm ---------------------------------------------------------------------------------------------------------


class Clock(Report):
    """Notes how long each step took, and when it was reported."""

    def __init__(self, profile_from: int | None = None) -> None:
        super().__init__(None, None, quiet=True)
        self.times: list[float] = [time.perf_counter()]
        self.seconds: list[float] = [0.0]
        self.tokens: list[int] = [0]
        self.profile_from, self.profiler = profile_from, None

    def step(self, row: Any, progress: float | None = None) -> None:
        if self.profiler is not None and len(self.times) == (self.profile_from or 0) + 3:
            synchronize()
            self.profiler.stop()
        self.times.append(time.perf_counter())
        self.tokens.append(int(row["tokens"]))
        self.seconds.append((self.tokens[-1] - self.tokens[-2]) / row["tokens_per_s"])
        if self.profile_from == len(self.times) - 1:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if DEVICE == "cuda" else []
            self.profiler = torch.profiler.profile(activities=kinds)
            synchronize()
            self.profiler.start()

    def kernels(self) -> str:
        assert self.profiler is not None
        by = "self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
        return self.profiler.key_averages().table(sort_by=by, row_limit=80, max_name_column_width=90)


@contextmanager
def varied(names: set[str]) -> Iterator[None]:
    """Variants that are no settings of `fit`."""
    loop = import_module("litlm.train.loop")
    ahead = loop.runs_ahead
    if "tuned" in names:
        from torch._inductor import config as inductor

        inductor.coordinate_descent_tuning = True
    for name in names:
        if name.startswith("pieces"):
            blocks = import_module("litlm.transforms.blocks")
            blocks._PIECES = blocks._PACKED_PIECES = int(name.removeprefix("pieces"))
    if "waits" in names:
        loop.runs_ahead = lambda *_: False
    try:
        yield
    finally:
        loop.runs_ahead = ahead


def litlm(row: Row, variants: set[str], profile: Path | None) -> dict[str, Any]:
    from litlm.settings import MethodSettings, PreferenceSettings, TrainSettings
    from litlm.train.loop import fit
    from litlm.transforms.lora import adapters_disabled, apply_lora

    vocab, more = SHAPES[row.shape].vocab_size, dict[str, Any]()
    batch = micro = row.batch
    if row.kind == "pretrain":
        with torch.device(DEVICE):
            from litlm.model import GPT

            model = GPT(config_of(row.shape))
        data: Dataset = Rows(vocab, row.length)
    else:
        quantize = None if row.kind != "qlora" else "nf4-dq" if "dq" in variants else "nf4"
        model = pretrained(row.shape, quantize)
        apply_lora(model, MethodSettings(name="lora", r=RANK, alpha=ALPHA))
        data = Rows(vocab, row.length)
    if row.kind == "dpo":
        from litlm.train.preference import Preference

        data, batch, micro = Pairs(vocab, row.length), 1, 1
        more["objective"] = Preference(PreferenceSettings(), lambda: adapters_disabled(model))
    elif row.kind == "packing":
        data, batch = Examples(vocab, row.length, "padded" not in variants), 8 * row.batch
    checkpointing: Any = next(
        (v for v in ("selective", "full") if v in variants), "full" if row.checkpointing else "none"
    )
    in_backward = "inback" in variants
    settings = TrainSettings(
        max_steps=row.warmup + row.steps + 4 * (profile is not None), batch_size=batch, micro_batch_size=micro,
        lr=1e-4, warmup_steps=0, schedule="constant", compile=DEVICE == "cuda" and "eager" not in variants,
        precision="bf16-mixed" if row.kind == "pretrain" else "auto", fp8="fp8" in variants,
        checkpointing=checkpointing, grad_clip=None if in_backward or "noclip" in variants else 1.0,
        optimizer_in_backward=in_backward,
    )  # fmt: skip
    clock = Clock(row.warmup + row.steps if profile is not None else None)
    with varied(variants):
        result = fit(model, data, settings=settings, report=clock, **more)
    last = row.warmup + row.steps
    seconds, warm = clock.seconds[row.warmup + 1 : last + 1], clock.times[row.warmup] - clock.times[0]
    # A step is reported when the next one is launched, which the last of a run has none of: it would seem to be sooner.
    end = last - 1
    wall = (clock.tokens[end] - clock.tokens[row.warmup]) / (clock.times[end] - clock.times[row.warmup])
    if profile is not None:
        profile.write_text(clock.kernels(), encoding="utf-8")
        assert clock.profiler is not None
        clock.profiler.export_chrome_trace(str(profile.with_suffix(".json.gz")))
    if isinstance(data, Examples):
        tokens = clock.tokens[last] - clock.tokens[row.warmup]
        # train_flops looks at one batch too, and a profile at two more; the share of padding is the same in all.
        return real_tokens(tokens, round(tokens * data.places / clock.tokens[-1]), seconds, warm)
    return row.result(clock.tokens[1], seconds, warm, tok_s_wall=wall, loss=result.losses[-1])


# --- the CPU rows --------------------------------------------------------------------------------------------------


def cpu_litlm(mode: str, steps: int) -> None:
    """litlm's worker: see `training_peers.Turns`."""
    turns = Turns()
    from litlm.config import Config
    from litlm.model import GPT
    from litlm.settings import TrainSettings
    from litlm.train.loop import fit

    class Waiting(Report):
        def __init__(self) -> None:
            super().__init__(None, None, quiet=True)

        def step(self, row: Any, progress: float | None = None) -> None:
            turns.tell(row["loss"])
            turns.wait()

    model = GPT(Config.from_name("pythia-14m"))
    settings = TrainSettings(
        max_steps=steps, batch_size=CPU["rows"], micro_batch_size=CPU["rows"], lr=4e-4, weight_decay=0.1,
        optimizer_args={"betas": (0.9, 0.95)}, precision="32-true", compile=mode == "compiled", warmup_steps=0,
        schedule="constant",
    )  # fmt: skip
    fit(model, Rows(50000, CPU["length"]), settings=settings, report=Waiting())


def in_turns(name: str, impls: Sequence[str], turns: int) -> list[dict[str, Any]]:
    """All of them step by step in turns, so that what else the machine does meets each alike."""
    mode, steps = CPU_ROWS[name], CPU["warmup"] + turns
    environment = os.environ | dict(OMP_NUM_THREADS=str(CPU["threads"]), MKL_NUM_THREADS=str(CPU["threads"]))
    workers = {}
    for impl in impls:
        if impl == "litlm":
            command = [sys.executable, str(HERE / "training.py"), "--worker", mode, str(steps)]
        else:
            python = os.environ.get(f"{impl.upper()}_PYTHON", sys.executable)
            command = [python, str(HERE / "training_peers.py"), impl, mode, str(steps)]
        pipe: Any = subprocess.PIPE
        workers[impl] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    took: dict[str, list[dict[str, float]]] = {impl: [] for impl in impls}
    try:
        for _ in range(steps):
            for impl, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                took[impl].append(json.loads(worker.stdout.readline() or '{"error": "it died"}'))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    tokens, rows = CPU["rows"] * CPU["length"], []
    for impl, every in took.items():
        counted = every[CPU["warmup"] :]
        row: dict[str, Any] = dict(row=name, impl=impl, peak_gb=every[-1]["peak_mb"] / 1000, steps=len(counted))
        row["warmup_s"] = sum(step["wall"] for step in every[: CPU["warmup"]])
        for clock in ("wall", "cpu"):
            row[f"tok_s_{clock}"] = tokens / statistics.median(step[clock] for step in counted)
            if impl != "litlm" and "litlm" in took:
                ours = [step[clock] for step in took["litlm"][CPU["warmup"] :]]
                ratios = sorted(theirs[clock] / own for theirs, own in zip(counted, ours, strict=True))
                row[f"litlm_is_times_{clock}"] = statistics.median(ratios)
                row[f"litlm_is_times_{clock}_range"] = [ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]]
        rows.append(row)
    return rows


# --- which rows, and where results go ------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "peft", "torchtune", "torchao", "litgpt", "bitsandbytes", "lightning")
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return dict(
        gpu=torch.cuda.get_device_name() if DEVICE == "cuda" else None, python=platform.python_version(), **versions
    )


def keep(out: Path | None, row: dict[str, Any]) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    print(line, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def measure(name: str, impl: str, out: Path | None, profile: bool) -> None:
    """One measurement, in this process."""
    row = ROWS[name]
    if DEVICE == "cpu":
        row = dataclasses.replace(row, shape="tiny", batch=2, length=128, warmup=2, steps=3)
    if row.kind == "packing" and DEVICE == "cpu":
        row = dataclasses.replace(row, length=1024)
    base, _, variants = impl.partition(":")
    file = None
    if profile and base == "litlm":
        file = (out.parent if out else Path()) / f"kernels-{name}-{variants or 'litlm'}.txt".replace("+", "-")
    torch.manual_seed(0)
    found = litlm(row, set(variants.split("+")) - {""}, file) if base == "litlm" else run(row, base)
    sizes = dict(shape=row.shape, batch=row.batch, length=row.length, checkpointing=row.checkpointing)
    keep(out, dict(row=name, impl=impl) | found | sizes)


def every(names: Sequence[str], impls: Sequence[str], args: argparse.Namespace) -> None:
    end = time.monotonic() + args.budget
    keep(args.out, dict(machine=machine()))
    if args.explore:
        todo = [(name, impl) for impl in EXPLORE for name in names]
    else:
        todo = [(name, impl) for name in names for impl in impls or ROWS[name].impls]
    for name, impl in todo:
        left = min(args.limit, end - time.monotonic())
        if left < 30:
            keep(args.out, dict(row=name, impl=impl, error="no time left"))
            continue
        command = [sys.executable, str(HERE / "training.py"), name, "--impl", impl, "--here"]
        command += ["--out", str(args.out)] if args.out else []
        command += ["--profile"] if args.profile and (impl == "litlm" or ":" in impl and not args.explore) else []
        try:
            done = subprocess.run(command, timeout=left, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                words = [line for line in done.stderr.splitlines() if line.strip()][-8:]
                keep(args.out, dict(row=name, impl=impl, error=" | ".join(words)[-600:]))
        except subprocess.TimeoutExpired:
            keep(args.out, dict(row=name, impl=impl, error=f"not done after {left:.0f} s"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--impl", default="", help="by commas; each row has its own by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--explore", action="store_true", help="litlm's variants")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--limit", type=float, default=150)
    parser.add_argument("--budget", type=float, default=560)
    parser.add_argument("--turns", type=int, default=10, help="steps of a cpu row")
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("--worker", nargs=2, metavar=("MODE", "STEPS"))
    args = parser.parse_args()
    if args.worker:
        return cpu_litlm(args.worker[0], int(args.worker[1]))
    impls = [impl for impl in args.impl.split(",") if impl]
    if args.list:
        for name, row in ROWS.items():
            more = ", checkpointing" if row.checkpointing else ""
            print(f"{name:15} {row.kind} {row.shape} {row.batch}x{row.length}{more}: {', '.join(row.impls)}")
        for name in CPU_ROWS:
            print(f"{name:15} pretrain pythia-14m {CPU['rows']}x{CPU['length']}: litlm, hf, litgpt")
        return None
    if unknown := [name for name in args.rows if name not in ROWS | CPU_ROWS]:
        parser.error(f"{unknown[0]} is no row; --list shows them")
    if args.here:
        return measure(args.rows[0], impls[0], args.out, args.profile)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.rows:
        if name in CPU_ROWS:
            for row in in_turns(name, impls or ["litlm", "hf", "litgpt"], args.turns):
                keep(args.out, row)
    if names := [name for name in args.rows if name in ROWS]:
        every(names, impls, args)
    return None


if __name__ == "__main__":
    main()
