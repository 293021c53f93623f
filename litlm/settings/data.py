"""Training data: conversations, preference pairs, text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from litlm.settings.base import Settings, as_tuples, below_one, raise_problems


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Conversations to train on.

    Args:
        path: Files (.json, .jsonl, .csv, .parquet; also patterns such as data/*.jsonl), named datasets (alpaca, dolly,
            ...) or hub ids such as org/name. Records are Alpaca (instruction, input, output), chat (messages), ShareGPT
            (conversations), or prompt and completion; also read are system, history, tools,
            documents and chat_template_kwargs; messages of weight 0 are not trained on.
        loss_on: Train on what the assistant says (assistant), on its last turn (completion), or on all tokens (all).
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
class PreferenceData(Settings):
    """Pairs of a better and a worse answer to train on.

    Args:
        path: Files (.json, .jsonl, .csv, .parquet; also patterns such as data/*.jsonl), named datasets or hub ids.
            Records have prompt, chosen and rejected (each text, or messages), or chosen and rejected conversations
            that begin alike.
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
class TextData(Settings):
    """Text to pretrain on.

    Args:
        path: Folders that `litlm prepare` wrote, or text that is prepared first: files or folders of .txt, .md, .py,
            .jsonl, .parquet, or patterns such as texts/*.md; named datasets; hub ids such as org/name.
        val_fraction: Without val_path, this share of the rows is set aside for validation; 0 for none.
        max_len: Tokens per row; None is the model's context, at most 2048.
        document_mask: Let tokens attend only within their own document.
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
class PrepareCommand(Settings):
    """Tokenize text into the files that pretraining reads. Resumes where it was stopped.

    Args:
        tokenizer: A model (directory, .gguf, zoo name, hub id) or a tokenizer.json.
        out_dir: Where the shards are written.
        workers: Threads; None is one per core.
        shard_tokens: Tokens per file.
        max_tokens: Stop after this many tokens.
        overwrite: Start over and replace what is in out_dir.
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
        problems = below_one(self, "workers", "shard_tokens", "max_tokens")
        if not self.data:
            problems.append("data is empty; name at least one file, folder or dataset")
        raise_problems("Settings", problems)


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
    raise_problems("Data settings", problems)
