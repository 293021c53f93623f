"""litlm beside its peers on this machine's CPU, with the same weights, shapes and tokens.

    python benchmarks/run.py [decode|lora|start|memory ...] [--runs 3] [--out FILE.json]

Each measurement is a process of its own; engines take turns, and medians over the turns are printed with ratios. Peers:
transformers and PEFT from this environment, and LitGPT if LITGPT_PYTHON names an interpreter that has it (its pins are
old, so it needs its own environment). The model is SmolLM2-135M-Instruct, fetched as `litlm quickstart` does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
WORK = Path(os.environ.get("LITLM_BENCH_DIR", Path(tempfile.gettempdir()) / "litlm-bench"))
THREADS = int(os.environ.get("LITLM_BENCH_THREADS", 2))
PROMPT = [7 + (i * 7919) % 40000 for i in range(128)]  # fixed, arbitrary tokens


# --- workers: one engine, one figure, in a fresh process --------------------------------------------------------------


def peak_mb() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def litgpt_model(dtype: Any, lora: dict[str, Any] | None = None) -> Any:
    import torch

    folder = WORK / "litgpt" / ("float32" if dtype == torch.float32 else "bfloat16") / "SmolLM2-135M-Instruct"
    if lora is None:
        from litgpt import GPT, Config
    else:
        from litgpt.lora import GPT, Config
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    model = GPT(Config.from_file(folder / "model_config.yaml", **(lora or {})))
    torch.set_default_dtype(default)
    model.load_state_dict(torch.load(folder / "lit_model.pth", mmap=True, weights_only=True), strict=lora is None)
    return model


def decode(engine: str, dtype: str) -> dict[str, Any]:
    """Greedy, 128 tokens in, 128 out, one row."""
    import torch

    torch.set_num_threads(THREADS)
    kind, folder, n = getattr(torch, dtype), WORK / dtype, 128
    if engine.startswith("litlm"):
        from litlm import LLM

        llm = LLM.load(folder, compile=engine == "litlm-compiled")

        def run(new: int) -> list[int]:
            return llm.generate(PROMPT, max_new_tokens=new, ignore_eos=True, return_ids=True)
    elif engine == "transformers":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        ids = torch.tensor([PROMPT])

        def run(new: int) -> list[int]:
            with torch.inference_mode():
                out = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                    pad_token_id=2,
                )  # fmt: skip
            return out[0, len(PROMPT) :].tolist()
    else:
        from litgpt.generate.base import generate

        model = litgpt_model(kind).eval()
        model.max_seq_length = len(PROMPT) + n
        torch.set_default_dtype(kind)
        model.set_kv_cache(batch_size=1)
        torch.set_default_dtype(torch.float32)
        ids = torch.tensor(PROMPT)

        def run(new: int) -> list[int]:
            with torch.inference_mode():
                return generate(model, ids, len(PROMPT) + new, temperature=0.0, include_prompt=False).tolist()

    start = time.perf_counter()
    run(4)
    warm = time.perf_counter() - start
    first, whole, out = [], [], []
    for _ in range(3):
        start = time.perf_counter()
        run(1)
        first.append(time.perf_counter() - start)
        start = time.perf_counter()
        out = run(n)
        whole.append(time.perf_counter() - start)
    ttft, total = statistics.median(first), statistics.median(whole)
    return dict(
        prefill_tok_s=len(PROMPT) / ttft, decode_tok_s=(n - 1) / (total - ttft), warm_s=warm, peak_mb=peak_mb(),
        tokens=out[:16],
    )  # fmt: skip


def lora(engine: str, dtype: str, targets: str) -> dict[str, Any]:
    """Rank 8, batch 4 x 512, loss on all tokens, AdamW: one optimizer step."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    kind, folder, every = getattr(torch, dtype), WORK / dtype, targets == "all"
    data = torch.randint(10, 49000, (4, 4, 512))
    if engine == "litlm":
        from litlm import LLM
        from litlm.ops.cross_entropy import cross_entropy_sum
        from litlm.settings import MethodSettings
        from litlm.transforms.lora import apply_lora

        model = LLM.load(folder).model
        apply_lora(model, MethodSettings(r=8, dropout=0.05, targets=("all-linear",) if every else ("q_proj", "v_proj")))

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            hidden = model(x[:, :-1], output="hidden")
            return cross_entropy_sum(hidden, model.head_weight, x[:, 1:]) / x[:, 1:].numel()
    elif engine == "transformers":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
        base.config.use_cache = False
        names = ["q_proj", "v_proj"] + ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] * every
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(base, config, autocast_adapter_dtype=False)

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            return model(input_ids=x, labels=x).loss
    else:
        from litgpt.lora import mark_only_lora_as_trainable
        from litgpt.utils import chunked_cross_entropy

        adapters = dict(lora_r=8, lora_alpha=16, lora_dropout=0.05, lora_query=True, lora_value=True, lora_key=every)
        model = litgpt_model(kind, adapters | dict(lora_projection=every, lora_mlp=every, lora_head=False))
        mark_only_lora_as_trainable(model)
        model.max_seq_length = 512

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            logits = model(x, lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            return chunked_cross_entropy(logits, x[..., 1:])

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    times, losses = [], []
    for x in data:
        start = time.perf_counter()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return dict(tok_s=4 * 512 / statistics.median(times[1:]), peak_mb=peak_mb(), losses=losses)


def memory(_: str, dtype: str) -> dict[str, Any]:
    """Peak of private memory while a 1.5 GB bf16 checkpoint loads, over the size of its tensors in memory."""
    import threading

    import torch

    from litlm import LLM, Config
    from litlm.checkpoint.hf import save_weights
    from litlm.model import GPT

    folder = WORK / "big"
    if not (folder / "model.safetensors").is_file():
        config = Config.from_name("qwen3-0.6b")
        model = GPT(config).to(torch.bfloat16)
        save_weights({name: p.detach() for name, p in model.named_parameters()}, config, folder)
        os.execv(sys.executable, sys.orig_argv)  # start over: this process has held the model already

    def private() -> int:
        text = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) * 1024

    before, peak, done = private(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    llm = LLM.load(folder, dtype=dtype)
    took = time.perf_counter() - start
    done.set()
    thread.join()
    held = sum(p.nbytes for p in llm.model.parameters())
    return dict(tensors_gb=held / 1e9, peak_over_tensors=(peak - before) / held, load_s=took)


# --- the whole table -------------------------------------------------------------------------------------------------


def prepare() -> None:
    """The model as a Hugging Face directory in fp32 and bf16, and in LitGPT's form where that is asked for."""
    import torch

    from litlm import LLM

    for dtype in ("float32", "bfloat16"):
        if not (WORK / dtype / "config.json").is_file():
            LLM.load(MODEL, dtype=getattr(torch, dtype)).save(WORK / dtype)
        target = WORK / "litgpt" / dtype / "SmolLM2-135M-Instruct"
        if os.environ.get("LITGPT_PYTHON") and not (target / "lit_model.pth").is_file():
            target.mkdir(parents=True, exist_ok=True)
            for file in (WORK / dtype).iterdir():
                (target / file.name).write_bytes(file.read_bytes())
            code = (
                "import sys; from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint as c; from pathlib "
            )
            code += "import Path; c(checkpoint_dir=Path(sys.argv[1]), dtype=sys.argv[2])"
            subprocess.run([os.environ["LITGPT_PYTHON"], "-c", code, str(target), dtype], check=True)


def measure(name: str, engine: str, *args: str) -> dict[str, Any]:
    python = os.environ["LITGPT_PYTHON"] if engine == "litgpt" else sys.executable
    env = os.environ | {"LITLM_BENCH_DIR": str(WORK), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    command = [python, "-W", "ignore", __file__, "--worker", name, engine, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


def compare(name: str, args: tuple[str, ...], engines: list[str], keys: list[str], runs: int) -> list[dict[str, Any]]:
    """Engines in turn, `runs` times; medians, and the ratio of litlm's to the best peer's."""
    rows: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(runs):
        for engine in engines:
            rows[engine].append(measure(name, engine, *args))
    table = []
    for engine, found in rows.items():
        row: dict[str, Any] = {"bench": name, "args": " ".join(args), "engine": engine}
        row |= {key: round(statistics.median(r[key] for r in found), 2) for key in keys}
        table.append(row)
    for row in table:
        if row["engine"].startswith("litlm"):
            peers = [r for r in table if not r["engine"].startswith("litlm")]
            for key in keys:
                if key.endswith("tok_s") and peers:
                    row[f"{key}_ratio"] = round(row[key] / max(p[key] for p in peers), 2)
                elif key == "peak_mb" and peers:
                    row["peak_ratio"] = round(row[key] / min(p[key] for p in peers), 2)
    for row in table:
        print("  " + "  ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="decode, lora, start, memory; all by default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latest.json")
    options = parser.parse_args()
    what = options.what or ["decode", "lora", "start", "memory"]
    prepare()
    peers = ["transformers"] + (["litgpt"] if os.environ.get("LITGPT_PYTHON") else [])
    rows: list[dict[str, Any]] = []
    if "decode" in what:
        keys = ["decode_tok_s", "prefill_tok_s", "warm_s", "peak_mb"]
        for dtype in ("float32", "bfloat16"):
            rows += compare("decode", (dtype,), ["litlm", "litlm-compiled", *peers], keys, options.runs)
    if "lora" in what:
        for dtype, targets in (("float32", "qv"), ("float32", "all"), ("bfloat16", "qv")):
            rows += compare("lora", (dtype, targets), ["litlm", *peers], ["tok_s", "peak_mb"], options.runs)
    if "start" in what:
        cli = str(Path(sys.executable).parent / "litlm")
        one_token = [cli, "generate", str(WORK / "float32"), "--prompt", "The", "--max_new_tokens", "1"]
        commands: dict[str, Callable[[], float]] = {
            "litlm --help": lambda: seconds([cli, "--help"]),
            "python -c pass": lambda: seconds([sys.executable, "-c", "pass"]),
            "import litlm": lambda: seconds([sys.executable, "-c", "import litlm"]),
            "one token from the command line": lambda: seconds(one_token),
        }
        for name, run in commands.items():
            row = {"bench": "start", "args": name, "seconds": round(statistics.median(run() for _ in range(5)), 2)}
            print(f"  {row}", flush=True)
            rows.append(row)
    if "memory" in what:
        for dtype in ("bfloat16", "float32"):
            row = {"bench": "memory", "args": dtype, "engine": "litlm"} | measure("memory", "litlm", dtype)
            print(f"  {row}", flush=True)
            rows.append(row)
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    packages = {name: version(name) for name in ("litlm", "torch", "transformers", "peft")}
    options.out.parent.mkdir(exist_ok=True)
    setting = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu, "threads": THREADS, "packages": packages}
    options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    print(f"Written to {options.out}")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        name, *rest = sys.argv[sys.argv.index("--worker") + 1 :]
        print(json.dumps({"decode": decode, "lora": lora, "memory": memory}[name](*rest)))
    else:
        main()
