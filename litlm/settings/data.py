"""What to learn from: conversations, preference pairs, plain text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from litlm.settings.base import as_tuples, complain


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What to learn from.

    Args:
        path: Files (.json, .jsonl, .csv, .parquet; also patterns such as data/*.jsonl), named datasets (alpaca, dolly,
            ...) or hub ids such as org/name. Records are Alpaca (instruction, input, output), chat (messages), ShareGPT
            (conversations), or prompt and completion; beside them system, history, tools, documents,
            chat_template_kwargs; messages of weight 0 are not learned.
        val_path: Separate sources to validate on.
        val_fraction: Without val_path, this share of `path` is set aside for validation; 0 for none.
        split: Which split of a hub dataset.
        max_len: Longer examples are cut to this many tokens (and counted); None is the model's context.
        loss_on: Learn what the assistant says (assistant), only its last turn (completion), or every token (all).
        style: Prompt style by name (alpaca, chatml, ...); None is the model's own.
        date: Today, for prompts that tell the date (2026-07-26); None is the day the run begins.
        packing: Put several examples into one row, with a mask between them. Changes the speed, not the steps.
    """

    path: tuple[str, ...]
    val_path: tuple[str, ...] = ()
    val_fraction: float = 0.05
    split: str = "train"
    max_len: int | None = None
    loss_on: Literal["assistant", "completion", "all"] = "assistant"
    style: str | None = None
    date: str | None = None
    packing: bool = True

    def __post_init__(self) -> None:
        _check_sources(self)


@dataclass(frozen=True, kw_only=True)
class PreferenceData:
    """Pairs of a better and a worse answer.

    Args:
        path: Files (.json, .jsonl, .csv, .parquet; also patterns such as data/*.jsonl), named datasets or hub ids.
            Records have prompt, chosen and rejected (each text, or messages), or chosen and rejected conversations
            that begin alike.
        val_path: Separate sources to validate on.
        val_fraction: Without val_path, this share of `path` is set aside for validation; 0 for none.
        split: Which split of a hub dataset.
        max_len: Longer conversations are cut to this many tokens (and counted); None is the model's context.
        style: Prompt style by name (alpaca, chatml, ...); None is the model's own.
        date: Today, for prompts that tell the date (2026-07-26); None is the day the run begins.
        packing: Put several answers into one row, with a mask between them. Changes the speed, not the steps.
    """

    path: tuple[str, ...]
    val_path: tuple[str, ...] = ()
    val_fraction: float = 0.05
    split: str = "train"
    max_len: int | None = None
    style: str | None = None
    date: str | None = None
    packing: bool = True

    def __post_init__(self) -> None:
        _check_sources(self)


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Text to pretrain on.

    Args:
        path: Folders that `litlm prepare` wrote, or text that is prepared first: files or folders of .txt, .md, .py,
            .jsonl, .parquet, or patterns such as texts/*.md; named datasets; hub ids such as org/name.
        val_path: Separate sources to validate on.
        val_fraction: Without val_path, this share of the rows is set aside for validation; 0 for none.
        split: Which split of a hub dataset.
        text_key: Field of a record that holds its text.
        max_len: Tokens in a row; None is the model's context, at most 2048.
        document_mask: Keep documents in a row from seeing each other.
    """

    path: tuple[str, ...]
    val_path: tuple[str, ...] = ()
    val_fraction: float = 0.005
    split: str = "train"
    text_key: str = "text"
    max_len: int | None = None
    document_mask: bool = False

    def __post_init__(self) -> None:
        _check_sources(self)


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Tokenize text into files that pretraining reads as they are. Goes on where it was stopped.

    Args:
        data: Files or folders of text, .jsonl or .parquet, a named dataset, or a hub id.
        tokenizer: A model (directory, .gguf, zoo name, hub id) or a tokenizer.json.
        out_dir: Where the shards are written.
        split: Which split of a hub dataset.
        text_key: Field of a record that holds its text.
        workers: Threads; None is one for each core.
        shard_tokens: Tokens in one file.
        max_tokens: Stop after this many tokens.
        overwrite: Start again, and replace what is in out_dir.
    """

    data: tuple[str, ...]
    tokenizer: str
    out_dir: str
    split: str = "train"
    text_key: str = "text"
    workers: int | None = None
    shard_tokens: int = 2**26
    max_tokens: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        as_tuples(self, "data")
        counts = {"workers": self.workers, "shard_tokens": self.shard_tokens, "max_tokens": self.max_tokens}
        problems = [f"{k}={v} must be at least 1" for k, v in counts.items() if v is not None and v < 1]
        if not self.data:
            problems.append("data is empty; name at least one file, folder or dataset")
        complain("Settings", problems)


def _check_sources(data: DataSettings | PreferenceData | TextData) -> None:
    as_tuples(data, "path", "val_path")
    problems = []
    if not data.path:
        prepared = ", or what `litlm prepare` wrote" if isinstance(data, TextData) else ""
        problems.append(f"path is empty; name a file, a dataset or a hub id{prepared}")
    if not 0 <= data.val_fraction < 1:
        problems.append(f"val_fraction={data.val_fraction} must lie in [0, 1)")
    if data.max_len is not None and data.max_len < 2:
        problems.append(f"max_len={data.max_len} must be at least 2 tokens")
    day = None if isinstance(data, TextData) else data.date
    try:
        if day is not None:
            date.fromisoformat(day)
    except (TypeError, ValueError):
        problems.append(f"date={day!r} must be a date as 2026-07-26 is")
    complain("Data settings", problems)
