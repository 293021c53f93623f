"""Every family of the zoo beside transformers: the same random weights, the same tokens, one process, taking turns.

    python benchmarks/zoo.py cpu      every family, eager: forward, and forward + backward
    python benchmarks/zoo.py cuda     representative families in bf16, eager and compiled
    python benchmarks/zoo.py moe      a layer of 64 experts beside transformers' two ways (CUDA)
    python benchmarks/zoo.py import   reading an 8B-shaped sharded checkpoint from disk

--families names some of them, --out FILE.json keeps the figures.
Ratios are transformers' time over litlm's: above 1, litlm is faster. On the CPU the models are the first parity case of
each family, enlarged; on CUDA the sizes are below.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# What the tiny cases are multiplied by. Lengths of lists (rope factors) follow the head size.
_WIDER = 8
_WIDE = {
    "hidden_size", "n_embd", "intermediate_size", "n_inner", "ffn_dim", "head_dim", "kv_lora_rank", "q_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "intermediate_size_mlp", "rotary_dim", "attention_head_dim", "global_head_dim",
    "word_embed_proj_dim", "hidden_size_per_layer_input",
}  # fmt: skip
_LONG = {
    "max_position_embeddings", "max_seq_len", "n_positions", "sliding_window", "attention_chunk_size", "window_size",
    "original_max_position_embeddings",
}  # fmt: skip

_LLAMA = dict(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=6, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=4096,
)  # fmt: skip
CUDA: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen3": _LLAMA | dict(head_dim=128, num_attention_heads=16),
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"} | dict(intermediate_size=8192),
    "gemma2": _LLAMA | dict(head_dim=128, num_attention_heads=16, sliding_window=1024, query_pre_attn_scalar=128),
    "olmo2": _LLAMA,
    "qwen3_moe": _LLAMA | dict(
        num_hidden_layers=4, head_dim=128, num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
        moe_intermediate_size=768, decoder_sparse_step=1, norm_topk_prob=True,
    ),
    "deepseek_v3": _LLAMA | dict(
        num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=768, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=64, num_experts_per_tok=8,
        moe_intermediate_size=768, n_group=8, topk_group=4, first_k_dense_replace=1, n_shared_experts=1,
    ),
    "gpt_oss": _LLAMA | dict(
        num_hidden_layers=4, head_dim=64, num_local_experts=32, num_experts_per_tok=4, intermediate_size=1024,
        sliding_window=128,
    ),
}  # fmt: skip


def enlarged(hf: dict[str, Any]) -> dict[str, Any]:
    """A tiny parity case at a size where time goes into arithmetic."""
    out: dict[str, Any] = {}
    for key, value in hf.items():
        if isinstance(value, dict):
            out[key] = enlarged(value)
        elif key in ("short_factor", "long_factor"):
            out[key] = [x for x in value for _ in range(_WIDER)]
        elif key in _WIDE and value:
            out[key] = value * _WIDER
        elif key in _LONG and value:
            out[key] = value * 16
        else:
            out[key] = 2048 if key == "vocab_size" else value
    return out


def pair(family: str, hf: dict[str, Any], device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers' model and litlm's, with equal weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from litlm.checkpoint.base import load_model
    from litlm.checkpoint.hf import SafetensorsSource
    from litlm.config import Config

    if family == "mistral4":  # known to transformers as a part of mistral3 only
        from transformers import Mistral4Config, Mistral4ForCausalLM

        AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **json.loads(json.dumps(hf)))
    with torch.device(device):
        theirs = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # its own default attention
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        source = SafetensorsSource(Path(folder))
        ours = load_model(Config.from_hf(folder), source, device=torch.device(device), dtype=dtype)
    return theirs, ours


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def seconds(run: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start_event.record()
    run()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1000


def in_turns(runs: dict[str, Callable[[], Any]], device: str, turns: int) -> dict[str, float]:
    """Median seconds of each, measured alternately after two rounds of warming up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 2):
        for name, run in runs.items():
            spent = seconds(run, device)
            if turn >= 2:
                taken[name].append(spent)
    return {name: statistics.median(t) for name, t in taken.items()}


def compare(family: str, hf: dict[str, Any], device: str, shape: tuple[int, int], turns: int) -> list[dict[str, Any]]:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    theirs, ours = pair(family, hf, device, dtype)
    tokens = torch.randint(hf["vocab_size"], shape, device=device)

    def forward(model: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                model()

        return run

    def train(model: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]) -> Callable[[], None]:
        def run() -> None:
            loss_of(model(), tokens).backward()
            for p in parameters:
                p.grad = None

        return run

    rows = []
    for mode in ("eager",) if device == "cpu" else ("eager", "compiled"):
        a, b = (theirs, ours) if mode == "eager" else (torch.compile(theirs), torch.compile(ours))
        models: dict[str, tuple[Callable[[], torch.Tensor], Any]] = {
            "transformers": (lambda a=a: a(tokens, use_cache=False).logits, theirs),
            "litlm": (lambda b=b: b(tokens), ours),
        }
        work = {
            "forward": {name: forward(call) for name, (call, _) in models.items()},
            "train": {name: train(call, list(m.parameters())) for name, (call, m) in models.items()},
        }
        for what, runs in work.items():
            row: dict[str, Any] = dict(family=family, mode=mode, work=what)
            try:
                took = in_turns(runs, device, turns)
            except Exception as e:  # one engine's compiler failing must not end the run
                rows.append(row | dict(error=f"{type(e).__name__}: {str(e)[:200]}"))
            else:
                ratio = took["transformers"] / took["litlm"]
                rows.append(row | {f"{name}_ms": 1000 * t for name, t in took.items()} | dict(ratio=ratio))
            print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    head = f"{row['family']:22} {row['mode']:8} {row['work']:8}"
    if "error" in row:
        return f"{head} {row['error']}"
    return f"{head} {row['transformers_ms']:9.2f} ms {row['litlm_ms']:9.2f} ms   {row['ratio']:.2f}"


def moe(turns: int = 20) -> list[dict[str, Any]]:
    """One 64-expert layer (Qwen3-30B-A3B's widths, half as many experts), 8,192 tokens, bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rows = []
    hf = CUDA["qwen3_moe"] | dict(num_hidden_layers=1)
    for tokens in (1, 64, 8192):
        theirs, ours = pair("qwen3_moe", hf, "cuda", torch.bfloat16)
        layers: dict[str, Any] = {"litlm": ours.layers[0].mlp}
        for way in ("grouped_mm", "eager"):
            config = AutoConfig.for_model("qwen3_moe", **hf)
            with torch.device("cuda"):
                other = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation=way)
            other.load_state_dict(theirs.state_dict())
            layers[f"transformers_{way}"] = other.model.layers[0].mlp
        x = torch.randn(1, tokens, hf["hidden_size"], device="cuda", dtype=torch.bfloat16, requires_grad=True)

        def forward(layer: Any, x: torch.Tensor = x) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    layer(x)

            return run

        def train(layer: Any, x: torch.Tensor = x) -> Callable[[], None]:
            def run() -> None:
                out = layer(x)
                (out[0] if isinstance(out, tuple) else out).sum().backward()
                for p in [x, *layer.parameters()]:
                    p.grad = None

            return run

        for what, make in (("forward", forward), ("train", train)):
            took = in_turns({name: make(layer) for name, layer in layers.items()}, "cuda", turns)
            row: dict[str, Any] = dict(layer="64 experts, 8 a token", tokens=tokens, work=what)
            row |= {f"{name}_ms": 1000 * t for name, t in took.items()}
            row["ratio_to_loop"] = took["transformers_eager"] / took["litlm"]
            row["ratio_to_grouped"] = took["transformers_grouped_mm"] / took["litlm"]
            rows.append(row)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return rows


def import_checkpoint(gigabytes: float) -> list[dict[str, Any]]:
    """Write a sharded bf16 checkpoint in the shape of Llama-3.1-8B (fewer layers for fewer GB), read it cold.

    Beside it: the same files read as plain bytes, also cold, which is what the disk gives.
    """
    import resource
    import shutil

    from litlm.checkpoint.base import load_model
    from litlm.checkpoint.hf import SafetensorsSource, save_weights, weight_files
    from litlm.config import Config
    from litlm.model import GPT

    config = Config.from_name("llama-3.1-8b")
    per_layer = (config.n_parameters() - Config.from_name("llama-3.1-8b", n_layer=1).n_parameters()) / 31
    rest = config.n_parameters() - 32 * per_layer
    layers = max(1, min(32, round((gigabytes * 1e9 / 2 - rest) / per_layer)))
    config = Config.from_name("llama-3.1-8b", n_layer=layers, dtype="bfloat16")
    place = Path(tempfile.mkdtemp(prefix="litlm-import-", dir=os.environ.get("LITLM_BENCH_DIR")))
    try:
        if (pid := os.fork()) == 0:  # so that writing does not count in this process's peak
            with torch.device("meta"):
                model = GPT(config)
            state = {k: torch.empty(v.shape, dtype=torch.bfloat16).normal_() for k, v in model.state_dict().items()}
            save_weights(state, config, place)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        files = weight_files(place)
        size = sum(f.stat().st_size for f in files)

        def evict() -> None:
            for file in files:
                with file.open("rb") as f:
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        rows = []
        for turn in range(3):
            evict()
            start = time.perf_counter()
            buffer = bytearray(16 * 2**20)
            for file in files:
                with file.open("rb", buffering=0) as f:
                    while f.readinto(buffer):
                        pass
            plain = time.perf_counter() - start
            evict()
            start = time.perf_counter()
            model = load_model(config, SafetensorsSource(place), device=torch.device("cpu"), dtype=torch.bfloat16)
            load = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            del model
            rows.append(dict(
                turn=turn, checkpoint_gb=size / 1e9, files=len(files), read_s=plain, import_s=load,
                read_gb_s=size / plain / 1e9, import_gb_s=size / load / 1e9, peak_rss_gb=peak / 1e9,
            ))  # fmt: skip
            print(json.dumps({k: round(v, 2) for k, v in rows[-1].items()}), flush=True)
        return rows
    finally:
        shutil.rmtree(place, ignore_errors=True)


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = {name: version(name) for name in ("torch", "transformers")}
    return dict(cpu=cpu, cores=os.cpu_count(), gpu=gpu, python=platform.python_version(), **packages)


def keep(out: Path | None, rows: list[dict[str, Any]]) -> None:
    if out is not None:
        out.write_text(json.dumps(dict(machine=machine(), rows=rows), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cpu", "cuda", "moe", "import"))
    parser.add_argument("--families", nargs="*", default=[])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--gb", type=float, default=16.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.what == "moe":
        rows = moe()
    elif args.what == "import":
        rows = import_checkpoint(args.gb)
    else:
        if args.what == "cpu":
            torch.set_num_threads(args.threads)
            from parity.cases import CASES

            first = {case.family: case.hf for case in reversed(CASES)}
            table, shape = {family: enlarged(hf) for family, hf in sorted(first.items())}, (2, 256)
        else:
            table, shape = CUDA, (4, 2048)
        print(f"{'family':22} {'mode':8} {'work':8} {'transformers':>12} {'litlm':>12}   ratio")
        for family, hf in table.items():
            if args.families and family not in args.families:
                continue
            rows += compare(family, hf, args.what, shape, args.turns)
            keep(args.out, rows)
            if args.what == "cuda":
                torch.cuda.empty_cache()
                torch.compiler.reset()
        ratios = [row["ratio"] for row in rows if "ratio" in row]
        print(f"{len(ratios)} ratios: lowest {min(ratios):.2f}, median {statistics.median(ratios):.2f}")
    keep(args.out, rows)


if __name__ == "__main__":
    main()
