"""Speed of `LLM.generate` on a GPU: first and later answers to one prompt, and static batches, with random weights.

    python benchmarks/generate.py [--shape llama-8b] [--beside OTHER_CHECKOUT] [--out FILE.jsonl] [--rows one,batch-128]

Each row is a process of its own, so a first answer is a first one: kernels are loaded and planned in it. --beside also
runs each row with the litlm of another checkout, in turns, so that both meet the same machine.

one: a prompt of 128 tokens, 128 new ones, three times with prompts that differ in length by one, so that each answer
meets key lengths that are new to the process at its end only. batch-N: N prompts of 512 tokens, 128 new ones each.
mixed-N: N prompts of 100 to 512 tokens. tok_s counts new tokens by the clock on the wall, reading the prompts included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS = ("one", "batch-32", "batch-128", "mixed-32")


def measure(row: str, shape: str) -> dict[str, Any]:
    import torch

    from litlm.llm import LLM  # before `training`, which puts its own checkout first on the path

    from training import config_of, pretrained  # isort: skip

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    llm = LLM(pretrained(shape, None), config_of(shape))
    n_vocab, generator = llm.config.vocab_size, torch.Generator().manual_seed(0)

    def answer(lengths: list[int], new: int) -> float:
        prompts = [torch.randint(n_vocab, (n,), generator=generator).tolist() for n in lengths]
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        out = llm.generate(prompts, max_new_tokens=new, ignore_eos=True, return_ids=True)
        took = time.perf_counter() - began
        assert [len(ids) for ids in out] == [new] * len(lengths)
        return len(lengths) * new / took

    kind, _, count = row.partition("-")
    if kind == "one":
        speeds = [answer([n], 128) for n in (128, 129, 130)]
        return dict(first_tok_s=speeds[0], later_tok_s=speeds[1:], later_over_first=speeds[1] / speeds[0])
    spread = [100 + 412 * i // int(count) for i in range(int(count))] if kind == "mixed" else [512] * int(count)
    speeds = [answer(spread, 128) for _ in range(2)]
    return dict(first_tok_s=speeds[0], later_tok_s=speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-8b")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--beside", type=Path, help="another checkout of litlm")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a row, in this process
    args = parser.parse_args()
    if args.one:
        import torch

        found = measure(args.one, args.shape)
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        print(
            json.dumps(found | dict(peak_gb=torch.cuda.max_memory_allocated() / 1e9, gpu=gpu, torch=torch.__version__))
        )
        return
    for row in args.rows.split(","):
        for name, root in (("beside", args.beside), ("litlm", HERE.parent)):
            if root is None:
                continue
            command = [sys.executable, str(HERE / "generate.py"), "--one", row, "--shape", args.shape]
            environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            result = {"error": done.stderr[-600:]} if done.returncode else json.loads(done.stdout.splitlines()[-1])
            line = json.dumps({"row": row, "impl": name, "shape": args.shape} | result)
            print(line, flush=True)
            if args.out is not None:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
