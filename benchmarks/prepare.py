"""`litlm prepare` beside the tokenizers library alone, on the sources of Python's standard library.

    python benchmarks/prepare.py [--mb 8] [--cores 2] [--runs 3] [--tokenizer DIR] [--out FILE.json]

Both have the same cores and the same tokenizer (by default one that litlm trains on 4 MB of these sources, in the
pattern of GPT-4's). litlm reads files, tokenizes, and writes shards; the library gets texts that are in memory already,
in one call of encode_batch_fast, whose ids are then put into one array. Each is a process of its own, by turns; what
counts is tokens a second, without imports and loading the tokenizer, and tokens for a second of processors' time, which
other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def gather(folder: Path, megabytes: float) -> int:
    """Copy sources of the standard library, the largest files first, until there are so many megabytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in library.rglob("*.py") if "site-packages" not in f.parts]
    size = 0
    for number, file in enumerate(sorted(files, key=lambda f: (-f.stat().st_size, str(f)))):
        data = file.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        (folder / f"{number:05}.py").write_bytes(data)
        size += len(data)
        if size >= megabytes * 1e6:
            break
    return size


def processors() -> float:
    """Seconds that this process and those it started have had."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def litlm(texts: Path, tokenizer: Path, cores: int) -> dict[str, float]:
    import filelock  # noqa: F401  what `prepare` imports when it is called
    import numpy  # noqa: F401, ICN001
    import tqdm  # noqa: F401

    from litlm.data.prepare import load_tokenizer, prepare
    from litlm.settings import PrepareCommand

    loaded = load_tokenizer(tokenizer)
    loaded.encode("warm up")
    with tempfile.TemporaryDirectory() as out:
        start, cpu = time.perf_counter(), processors()
        done = prepare(PrepareCommand(data=(str(texts),), tokenizer=str(tokenizer), out_dir=out, workers=cores), loaded)
        took = dict(wall=time.perf_counter() - start, cpu=processors() - cpu)
        return dict(tokens=done.tokens - done.documents, **took)


def library(texts: Path, tokenizer: Path, cores: int) -> dict[str, float]:
    import numpy as np
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.encode("warm up")
    every = [f.read_bytes().decode() for f in sorted(texts.iterdir())]
    start, cpu = time.perf_counter(), processors()
    encoded = loaded.encode_batch_fast(every, add_special_tokens=False)
    ids = np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encoded])
    return dict(tokens=len(ids), wall=time.perf_counter() - start, cpu=processors() - cpu)


WORKERS = dict(litlm=litlm, library=library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json and tokenizer_config.json")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("WHICH", "TEXTS", "TOKENIZER"))
    args = parser.parse_args()
    if args.worker:
        which, texts, tokenizer = args.worker
        print(json.dumps(WORKERS[which](Path(texts), Path(tokenizer), args.cores)))
        return
    with tempfile.TemporaryDirectory() as place:
        texts, tokenizer = Path(place) / "texts", args.tokenizer or Path(place) / "tokenizer"
        texts.mkdir()
        size = gather(texts, args.mb)
        if args.tokenizer is None:
            from litlm.data.train_tokenizer import train_tokenizer
            from litlm.settings import TrainTokenizerCommand

            train_tokenizer(
                TrainTokenizerCommand(data=(str(texts),), out_dir=str(tokenizer), vocab_size=16384, max_bytes=2**22)
            )
        took: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
        more = dict(RAYON_NUM_THREADS=str(args.cores), TOKENIZERS_PARALLELISM="true")
        for _ in range(args.runs):
            for name, every in took.items():
                worker = ["--worker", name, str(texts), str(tokenizer), "--cores", str(args.cores)]
                command = [sys.executable, __file__, *worker]
                done = subprocess.run(command, env=os.environ | more, stdout=subprocess.PIPE, text=True, check=True)
                every.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({run["tokens"] for every in took.values() for run in every}) == 1, f"not the same tokens: {took}"
    row: dict[str, Any] = dict(bytes=size, cores=args.cores, runs=args.runs, tokens=took["litlm"][0]["tokens"])
    for clock in ("wall", "cpu"):
        for name, every in took.items():
            row[f"{name}_tok_s_{clock}"] = statistics.median(run["tokens"] / run[clock] for run in every)
        pairs = zip(took["library"], took["litlm"], strict=True)
        ratios = sorted(theirs[clock] / ours[clock] for theirs, ours in pairs)
        row[f"litlm_is_times_{clock}"] = statistics.median(ratios)
        row[f"litlm_is_times_{clock}_range"] = [ratios[0], ratios[-1]]
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    if args.out:
        args.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
