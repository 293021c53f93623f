"""Models with recurrent layers beside transformers: training, prefill and decoding of one row, memory. Random weights.

    python benchmarks/recurrent.py [ROW ...] [--impl litlm,transformers] [--fla DIR] [--out FILE.jsonl]

On CUDA, a Qwen3.5-0.8B-shaped model in bf16:
    train      one AdamW step over 8 rows of 2,048 tokens, litlm's packed with three documents a row, and compiled
    memory     the peak of a forward and backward pass over 4,096 tokens, loss and optimizer left out
    infer      reading 8,192 tokens, then one token at a time: the median of both
On a CPU (2 threads), an LFM2-350M-shaped model in fp32:
    cpu        reading 256 tokens, then one token at a time

Each measurement is a process of its own. They load side by side and measure in turns, so that a slow start costs once.
--fla: a directory with flash-linear-attention (`pip install --target DIR`). It must not be importable otherwise: both
litlm and transformers use it where it is. Where it is given, `litlm+fla` and `transformers+fla` are measured too.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS = ("infer", "train", "memory", "cpu")
QWEN = dict(
    model_type="qwen3_5_text", vocab_size=248320, hidden_size=1024, intermediate_size=3584, num_hidden_layers=24,
    num_attention_heads=8, num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=16,
    tie_word_embeddings=True, max_position_embeddings=16384,
    rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25),
)  # fmt: skip
LFM2 = dict(
    model_type="lfm2", vocab_size=65536, hidden_size=1024, intermediate_size=6656, num_hidden_layers=16,
    num_attention_heads=16, num_key_value_heads=8, block_auto_adjust_ff_dim=True, block_multiple_of=256,
    full_attn_idxs=[2, 5, 8, 10, 12, 14], conv_L_cache=3, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
LENGTHS = [700, 348, 1000]  # documents of a packed row


@contextmanager
def in_turns() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "litlm-benchmark-recurrent.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clock(step: Callable[[], Any], *, warm: int, n: int) -> tuple[float, list[float]]:
    """The median of n calls in milliseconds, and all of them."""
    import torch

    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(warm + n):
        sync()
        began = time.perf_counter()
        step()
        sync()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[warm:]), times[warm:]


def model(impl: str, fields: dict[str, Any], dtype: Any, device: str) -> Any:
    import torch

    if impl.startswith("litlm"):
        from litlm.config import Config
        from litlm.model import GPT

        with torch.device(device):
            return GPT(Config.from_hf(fields)).to(dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device(device):
        config = AutoConfig.for_model(**fields)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def train(impl: str) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    ids = torch.randint(QWEN["vocab_size"], (8, 2049), device="cuda")  # type: ignore[call-overload]
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    net = model(impl, QWEN, torch.bfloat16, "cuda").train()
    blocks: Any = nullcontext()
    if impl.startswith("litlm"):
        from litlm.context import Packed
        from litlm.train.flops import train_flops_per_token
        from litlm.train.loss import loss_sum
        from litlm.transforms.blocks import training_blocks

        flops = train_flops_per_token(net.config, 2048)
        blocks = training_blocks(net, compile=True)

        def loss() -> Any:
            context = Packed([LENGTHS] * 8)
            return net(inputs, context=context, output=lambda h: loss_sum(net, h, targets)) / targets.numel()
    else:
        flops = None

        def loss() -> Any:
            return F.cross_entropy(net(inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    with in_turns(), blocks:
        ms, times = clock(step, warm=3, n=5)
        found: dict[str, Any] = dict(ms=ms, times=times, tok_s=8 * 2048 / ms * 1e3)
        if flops is not None:
            found["mfu_of_989_tflops"] = flops * found["tok_s"] / 989e12
        return found


def memory(impl: str) -> dict[str, Any]:
    import torch

    ids = torch.randint(QWEN["vocab_size"], (1, 4096), device="cuda")  # type: ignore[call-overload]
    net = model(impl, QWEN, torch.bfloat16, "cuda").train()
    if impl.startswith("litlm"):
        from litlm.transforms.blocks import training_blocks

        blocks: Any = training_blocks(net, compile="compiled" in impl)
        hidden: Callable[[], Any] = lambda: net(ids, output="hidden")  # noqa: E731
    else:
        blocks, hidden = nullcontext(), lambda: net.model(ids, use_cache=False).last_hidden_state
    with in_turns(), blocks:
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            hidden().float().square().mean().backward()
            net.zero_grad()
        torch.cuda.synchronize()
    return {}


def infer(impl: str, fields: dict[str, Any], dtype: Any, device: str, length: int, new: int) -> dict[str, Any]:
    import torch

    net = model(impl, fields, dtype, device).eval()
    ids = torch.randint(fields["vocab_size"], (1, length), device=device)
    if impl.startswith("litlm"):
        from litlm.ops.linear import generation_kernels

        last, kernels = torch.tensor([[length - 1]], device=device), generation_kernels(dtype, 1, torch.device(device))

        def prefill() -> tuple[Any, Any]:
            cache = net.make_cache(1, length + 2 * new)
            return net(ids, context=cache, logit_positions=last), cache

        def advance(token: Any, cache: Any) -> Any:
            return net(token, context=cache)
    else:
        kernels = nullcontext()

        def prefill() -> tuple[Any, Any]:
            out = net(ids, use_cache=True, logits_to_keep=1)
            return out.logits, out.cache

        def advance(token: Any, cache: Any) -> Any:
            return net(token, cache=cache, use_cache=True).logits

    with torch.inference_mode(), kernels, in_turns():
        read_ms, reads = clock(prefill, warm=2, n=5)
        logits, cache = prefill()
        token = [logits[:, -1].argmax(-1, keepdim=True)]

        def decode() -> None:
            token[0] = advance(token[0], cache)[:, -1].argmax(-1, keepdim=True)
            token[0].item()

        ms, _ = clock(decode, warm=8, n=new)
        return dict(prefill_ms=read_ms, prefills=reads, decode_ms=ms, prefill_tok_s=1e3 * length / read_ms,
                    decode_tok_s=1e3 / ms)  # fmt: skip


def measure(row: str, impl: str) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True  # for transformers' fp32 products; litlm's choose for themselves
    if row == "cpu":
        torch.set_num_threads(2)
        return infer(impl, LFM2, torch.float32, "cpu", 256, 40)
    if row == "infer":
        return infer(impl, QWEN, torch.bfloat16, "cuda", 8192, 60)
    return train(impl) if row == "train" else memory(impl)


def start(row: str, impl: str, fla: Path | None) -> subprocess.Popen[str]:
    path = [str(HERE.parent), *([str(fla)] if impl.endswith("+fla") else []), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, str(HERE / "recurrent.py"), row, "--one", impl]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--impl", help="left out: all that the row has")
    parser.add_argument("--fla", type=Path, help="a directory with flash-linear-attention")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # an implementation, in this process
    args = parser.parse_args()
    if args.one:
        import torch

        found, gpu = measure(args.rows[0], args.one), torch.cuda.is_available()
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
        device = torch.cuda.get_device_name() if gpu else platform.processor()
        print(json.dumps(found | dict(device=device, torch=torch.__version__)))
        return
    both = ["litlm", "transformers"]
    known = dict(
        infer=both + ([f"{impl}+fla" for impl in both] if args.fla else []),
        train=both,
        memory=["litlm-eager", "litlm-compiled", "transformers"],
        cpu=both,
    )
    for row in args.rows:
        impls = args.impl.split(",") if args.impl else known[row]
        # Two training steps, or two models on one CPU, would not fit beside each other.
        groups = [[impl] for impl in impls] if row in ("train", "cpu") else [impls]
        for group in groups:
            for impl, process in [(impl, start(row, impl, args.fla)) for impl in group]:
                out, err = process.communicate()
                result = {"error": err[-1500:]} if process.returncode else json.loads(out.splitlines()[-1])
                line = json.dumps({"row": row, "impl": impl} | result)
                print(line, flush=True)
                if args.out is not None:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    main()
