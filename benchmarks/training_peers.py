"""What `training.py` measures litlm against: how peers train the same model on the same rows, and the rules for all.

Nothing of litlm is imported here, so that a peer can run in an environment of its own. Every peer has random weights
and does what its own recipe does: LitGPT and transformers autocast, whole logits unless they chunk; torchtune compiles
layer by layer and has a chunked loss. `bare` is no product: a Llama of forty lines, compiled whole, to show what
PyTorch gives to anyone.

As a program it is a worker of the CPU rows, which takes a step for each line on its standard input:

    python benchmarks/training_peers.py hf|litgpt eager|compiled STEPS
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEAK = 989e12  # dense bf16 of H100 SXM and H200, from the data sheet
RANK, ALPHA = 16, 32.0
CPU = dict(rows=4, length=512, vocab=50304, threads=int(os.environ.get("LITLM_BENCH_THREADS", 2)), warmup=3)


@dataclass(frozen=True)
class Shape:
    """A Llama. tied: the head is the embedding."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    intermediate_size: int
    vocab_size: int
    tied: bool

    def flops(self, length: int, *, frozen: bool) -> float:
        """Operations that training a token needs: products with weights, the head's too, and causal attention.

        Without gradients of frozen weights, and with nothing that is computed twice.
        """
        head_dim = self.n_embd // self.n_head
        attention = 2 * self.n_embd * self.n_head * head_dim + 2 * self.n_embd * self.n_kv_head * head_dim
        weights = self.n_layer * (attention + 3 * self.n_embd * self.intermediate_size) + self.vocab_size * self.n_embd
        return (4 if frozen else 6) * weights + 6 * self.n_layer * self.n_head * head_dim * length


SHAPES = {
    "llama-124m": Shape(12, 768, 12, 12, 2048, 50304, True),
    "llama-1b": Shape(16, 2048, 32, 8, 8192, 128256, True),  # Llama-3.2-1B
    "llama-8b": Shape(32, 4096, 32, 8, 14336, 128256, False),  # Llama-3.1-8B
    "tiny": Shape(2, 64, 4, 2, 128, 256, True),
}


@dataclass(frozen=True)
class Row:
    """One thing to measure: `batch` rows of `length` tokens a step. checkpointing: keep layers' inputs only."""

    kind: str  # pretrain, lora, qlora, dpo, packing
    shape: str
    batch: int
    length: int
    impls: tuple[str, ...]
    checkpointing: bool = False
    warmup: int = 5
    steps: int = 10

    @property
    def frozen(self) -> bool:
        return self.kind != "pretrain"

    def result(self, tokens: int, seconds: list[float], warm_s: float, **more: Any) -> dict[str, Any]:
        """A line of the results. tokens: in a step. seconds: of each step that counts."""
        step = statistics.median(seconds)
        speed = tokens / step
        flops = SHAPES[self.shape].flops(self.length, frozen=self.frozen)
        return dict(
            tok_s=speed, mfu=speed * flops / PEAK, peak_gb=peak_gb(), warmup_s=warm_s,
            step_ms=1000 * step, step_ms_min=1000 * min(seconds), step_ms_max=1000 * max(seconds),
            steps=len(seconds), **more,
        )  # fmt: skip


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_gb() -> float:
    """Of memory that tensors took since the process began, on a CPU of the whole process."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def compiled(function: Any) -> Any:
    """Compiled on CUDA; on a CPU this file is only tried out."""
    return torch.compile(function) if DEVICE == "cuda" else function


def run(row: Row, impl: str) -> dict[str, Any]:
    """A peer's line of the results."""
    peer = PEERS[row.kind, impl]
    if row.kind == "packing":
        return peer(row)
    step = peer(row)
    V = SHAPES[row.shape].vocab_size
    x, y = torch.randint(0, V, (2, row.batch, row.length), device=DEVICE)
    began, seconds = time.perf_counter(), []
    for _ in range(row.warmup):
        step(x, y)
    synchronize()
    warm = time.perf_counter() - began
    for _ in range(row.steps):
        start = time.perf_counter()
        step(x, y)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return row.result(x.numel(), seconds, warm)


Step = Callable[[Tensor, Tensor], None]


def stepper(loss_of: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, autocast: bool) -> Step:
    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


# --- pretraining ---------------------------------------------------------------------------------------------------


def litgpt_config(row: Row) -> Any:
    from litgpt import Config

    s = SHAPES[row.shape]
    return Config(
        name=row.shape, block_size=row.length, n_layer=s.n_layer, n_embd=s.n_embd, n_head=s.n_head,
        n_query_groups=s.n_kv_head, intermediate_size=s.intermediate_size, padded_vocab_size=s.vocab_size,
        vocab_size=s.vocab_size, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", rope_base=500000,
    )  # fmt: skip


def litgpt_pretrain(row: Row) -> Step:
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    with torch.device(DEVICE):
        model = GPT(litgpt_config(row))
    if SHAPES[row.shape].tied:
        model.lm_head.weight = model.transformer.wte.weight
    forward = compiled(model)
    return stepper(lambda x, y: chunked_cross_entropy(forward(x), y, chunk_size=0), adamw(model), True)


def hf_model(row: Row, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    s = SHAPES[row.shape]
    config = LlamaConfig(
        num_hidden_layers=s.n_layer, hidden_size=s.n_embd, num_attention_heads=s.n_head,
        num_key_value_heads=s.n_kv_head, intermediate_size=s.intermediate_size, vocab_size=s.vocab_size,
        tie_word_embeddings=s.tied, max_position_embeddings=8192, rope_theta=500000.0, use_cache=False,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def hf_loss(forward: Any) -> Callable[..., Tensor]:
    def loss_of(x: Tensor, y: Tensor, **more: Tensor) -> Tensor:
        logits = forward(input_ids=x, **more).logits
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    return loss_of


def hf_pretrain(row: Row) -> Step:
    model = hf_model(row, torch.float32)
    return stepper(hf_loss(compiled(model)), adamw(model), True)


class Bare(nn.Module):
    """The least that is a Llama: separate projections, the whole logits, one graph."""

    def __init__(self, s: Shape, length: int) -> None:
        super().__init__()
        self.s, D = s, s.n_embd // s.n_head
        sizes = dict(
            q=(s.n_embd, s.n_embd), k=(s.n_embd, s.n_kv_head * D), v=(s.n_embd, s.n_kv_head * D),
            o=(s.n_embd, s.n_embd), gate=(s.n_embd, s.intermediate_size), up=(s.n_embd, s.intermediate_size),
            down=(s.intermediate_size, s.n_embd),
        )  # fmt: skip
        self.embed = nn.Embedding(s.vocab_size, s.n_embd)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
                | {name: nn.RMSNorm(s.n_embd) for name in ("before", "between")}
            )
            for _ in range(s.n_layer)
        )
        self.norm = nn.RMSNorm(s.n_embd)
        angles = torch.outer(torch.arange(length).float(), 5e5 ** (-torch.arange(0, D, 2) / D))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1).to(x.dtype)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        B, T = x.shape
        h = self.embed(x)
        for layer in self.layers:
            n = layer["before"](h)
            q, k, v = (
                layer[name](n).unflatten(-1, (-1, self.s.n_embd // self.s.n_head)).transpose(1, 2) for name in "qkv"
            )
            grouped = self.s.n_head != self.s.n_kv_head
            a = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True, enable_gqa=grouped)
            h = h + layer["o"](a.transpose(1, 2).reshape(B, T, -1))
            n = layer["between"](h)
            h = h + layer["down"](F.silu(layer["gate"](n)) * layer["up"](n))
        logits = F.linear(self.norm(h), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def bare_pretrain(row: Row) -> Step:
    with torch.device(DEVICE):
        model = Bare(SHAPES[row.shape], row.length)
    return stepper(compiled(model), adamw(model), True)


# --- finetuning ----------------------------------------------------------------------------------------------------


def litgpt_lora(row: Row) -> Step:
    import lightning as L
    from lightning.fabric.plugins import BitsandbytesPrecision
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
    from litgpt.utils import chunked_cross_entropy

    known = {f.name for f in dataclasses.fields(Config)}
    fields = {k: v for k, v in dataclasses.asdict(litgpt_config(row)).items() if k in known}
    parts = dict.fromkeys(("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp"), True)
    config = Config(**fields, **parts, lora_r=RANK, lora_alpha=ALPHA, lora_dropout=0.0)
    quantized = row.kind == "qlora"
    plugin = BitsandbytesPrecision("nf4", torch.bfloat16) if quantized else None
    fabric = L.Fabric(devices=1, accelerator=DEVICE, precision=None if quantized else "bf16-true", plugins=plugin)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(adamw(model))

    def step(x: Tensor, y: Tensor) -> None:
        fabric.backward(chunked_cross_entropy(model(x, lm_head_chunk_size=128), y))
        optimizer.step()
        optimizer.zero_grad()

    return step


def hf_adapted(row: Row) -> Any:
    """transformers with PEFT's adapters; quantized by bitsandbytes, layer after layer."""
    from peft import LoraConfig, get_peft_model

    model = hf_model(row, torch.bfloat16)
    if row.kind == "qlora":
        import bitsandbytes as bnb

        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                packed = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                packed.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, packed.to(DEVICE))
                layer.weight = None
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear"))
    if row.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    return model.train()


def hf_lora(row: Row) -> Step:
    model = hf_adapted(row)
    return stepper(hf_loss(model), adamw(model), True)


def torchtune_lora(row: Row) -> Step:
    from torchtune import training
    from torchtune.models.llama3_1 import lora_llama3_1_8b
    from torchtune.modules import TransformerSelfAttentionLayer
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    assert row.shape == "llama-8b"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = lora_llama3_1_8b(
            ["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True, lora_rank=RANK, lora_alpha=ALPHA,
            quantize_base=row.kind == "qlora",
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    set_trainable_params(model, get_adapter_params(model))
    if row.checkpointing:
        training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)
    training.compile_model(model, verbose=False)
    training.compile_loss(loss, verbose=False)
    return stepper(lambda x, y: loss(model(x), y), adamw(model), False)


# --- rows of many lengths ------------------------------------------------------------------------------------------


def lengths(n: int, seed: int) -> list[int]:
    """Of n examples, as instruction data has them: log-normal around 120 tokens with a long tail, 32 to 1024.

    The mean is near 150; one in a hundred is above 450.
    """
    g = torch.Generator().manual_seed(seed)
    values = torch.exp(torch.randn(n, generator=g) * 0.65 + torch.tensor(120.0).log())
    return values.round().clamp(32, 1024).int().tolist()


def prompt_of(length: int) -> int:
    """How much of an example is its prompt, which is not learned."""
    return int(0.4 * length)


def hf_padded(row: Row) -> dict[str, Any]:
    """Each micro batch of `row.batch` examples padded to its longest, in the order they come; 8 of these a step."""
    model = hf_adapted(row)
    optimizer, loss_of, V = adamw(model), hf_loss(model), SHAPES[row.shape].vocab_size
    real = lengths(row.batch * 8 * (row.warmup + row.steps), seed=0)
    began = start = time.perf_counter()
    warm, tokens, seconds, padded = 0.0, 0, [], 0
    for number in range(row.warmup + row.steps):
        if number == row.warmup:
            synchronize()
            warm, start = time.perf_counter() - began, time.perf_counter()
        for k in range(8):
            part = real[(number * 8 + k) * row.batch :][: row.batch]
            width = max(part)
            x = torch.randint(0, V, (row.batch, width))
            at = torch.arange(width)
            size = torch.tensor(part)[:, None]
            mask = at < size
            learned = mask & (at >= torch.tensor([prompt_of(n) for n in part])[:, None])
            y = torch.where(learned, x, -100).to(DEVICE)
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = loss_of(x.to(DEVICE), y, attention_mask=mask.to(DEVICE)) / 8
            loss.backward()
            if number >= row.warmup:
                tokens, padded = tokens + sum(part), padded + x.numel()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()
        if number >= row.warmup:
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    return real_tokens(tokens, padded, seconds, warm)


def real_tokens(tokens: int, places: int, seconds: list[float], warm_s: float) -> dict[str, Any]:
    """A line of the results where steps differ: all tokens over all time. places: tokens with padding."""
    return dict(
        tok_s=tokens / sum(seconds), peak_gb=peak_gb(), warmup_s=warm_s, steps=len(seconds), tokens=tokens,
        filled=tokens / places,
    )  # fmt: skip


PEERS: dict[tuple[str, str], Callable[[Row], Any]] = {
    ("pretrain", "litgpt"): litgpt_pretrain,
    ("pretrain", "hf"): hf_pretrain,
    ("pretrain", "bare"): bare_pretrain,
    ("lora", "torchtune"): torchtune_lora,
    ("lora", "hf"): hf_lora,
    ("lora", "litgpt"): litgpt_lora,
    ("qlora", "torchtune"): torchtune_lora,
    ("qlora", "hf"): hf_lora,
    ("qlora", "litgpt"): litgpt_lora,
    ("packing", "hf"): hf_padded,
}


# --- workers of the CPU rows ---------------------------------------------------------------------------------------


class Turns:
    """Waits for a line before each step, and answers with what the step took. The first `CPU["warmup"]` are as well."""

    def __init__(self) -> None:
        torch.set_num_threads(CPU["threads"])
        torch.manual_seed(0)
        self.wait()

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def tell(self, loss: float) -> None:
        took = dict(wall=time.perf_counter() - self.wall, cpu=time.process_time() - self.cpu)
        print(json.dumps(took | dict(loss=loss, peak_mb=peak_gb() * 1000)), flush=True)


def cpu_peer(impl: str, mode: str, steps: int) -> None:
    """Pythia-14m's shape: 6 layers, 128 wide, 4 heads, a quarter of each turned by rope; fp32, AdamW, clipping."""
    turns = Turns()
    data = torch.randint(10, 50000, (steps, CPU["rows"], CPU["length"] + 1))
    if impl == "hf":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=CPU["vocab"], hidden_size=128, num_hidden_layers=6, num_attention_heads=4, rotary_pct=0.25,
                intermediate_size=512, max_position_embeddings=512, use_parallel_residual=True, use_cache=False,
            )
        )  # fmt: skip
        forward = torch.compile(model) if mode == "compiled" else model
        loss_of = hf_loss(forward)
    else:
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy

        model = GPT(Config.from_name("pythia-14m"))
        model.max_seq_length = CPU["length"]
        forward = torch.compile(model) if mode == "compiled" else model
        loss_of = lambda x, y: chunked_cross_entropy(forward(x), y)  # noqa: E731
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for rows in data:
        loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.tell(loss.item())
        turns.wait()


if __name__ == "__main__":
    cpu_peer(sys.argv[1], sys.argv[2], int(sys.argv[3]))
