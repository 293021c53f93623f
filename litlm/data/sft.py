"""Data for supervised finetuning: records become conversations, conversations tokens and a mask of what to learn.

Two forms are read, told apart by their keys: Alpaca (`instruction`, optional `input`, `output`) and chat (`messages`).
Only what the assistant says is learned; prompts are context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litlm.prompts import PromptStyle
from litlm.tokenizer import Tokenizer

IGNORE = -100  # target of a position that is not to be learned, as in torch's cross_entropy
_FORMS = "instruction and output (Alpaca), or messages (chat)"


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is to be learned."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True)
class Dataset:
    """Examples ready to train on. cut: how many were too long and lost their end; empty: dropped, nothing to learn."""

    examples: list[Example]
    cut: int = 0
    empty: int = 0

    def __len__(self) -> int:
        return len(self.examples)


def read_records(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a .json (one list) or .jsonl (one a line) file, each with where it stands, for messages."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"data file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"data file {path} can't be read as UTF-8 text ({e})") from None
    records: list[tuple[str, Any]] = []
    problems: list[str] = []
    if text.lstrip().startswith("["):
        try:
            records = [(f"{path}, record {i}", record) for i, record in enumerate(json.loads(text), 1)]
        except ValueError as e:
            raise ValueError(f"{path} is not valid JSON: {e}") from None
    else:
        for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at U+2028 inside a text
            if line.strip():
                try:
                    records.append((f"{path}, line {number}", json.loads(line)))
                except ValueError as e:
                    problems.append(f"{path}, line {number}: not valid JSON ({e})")
        if problems and _is_json(text):
            raise ValueError(f"{path} holds one JSON object; needed is a list of records, or one record a line (JSONL)")
    problems += [f"{where}: not a JSON object" for where, record in records if not isinstance(record, dict)]
    if problems:
        raise ValueError(_listed(problems))
    if not records:
        raise ValueError(f"{path} holds no examples")
    return records


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def to_messages(record: dict[str, Any]) -> list[dict[str, str]] | str:
    """The record as a conversation, or what is wrong with it."""
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not messages:
            return "messages must be a list with at least one message"
        for i, m in enumerate(messages):
            if not isinstance(m, dict) or not isinstance(m.get("content"), str) or not isinstance(m.get("role"), str):
                return f"messages[{i}] must have a role and a content, both text"
        if not any(m["role"] == "assistant" for m in messages):
            return "messages has no assistant turn to learn from"
        return messages
    if "instruction" in record and "output" in record:
        parts = [record["instruction"], record.get("input") or "", record["output"]]
        if not all(isinstance(part, str) for part in parts):
            return "instruction, input and output must be text"
        question = "\n\n".join(part for part in parts[:2] if part)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": parts[2]}]
    return f"has the keys {', '.join(sorted(record)) or '(none)'}; needed are {_FORMS}"


def load_sft(path: str | Path, tokenizer: Tokenizer, style: PromptStyle, max_len: int) -> Dataset:
    """Read and tokenize a file. Every bad record is named; a longer example is cut to `max_len` tokens."""
    examples, problems, cut, empty = [], [], 0, 0
    for where, record in read_records(path):
        messages = to_messages(record)
        if isinstance(messages, str):
            problems.append(f"{where}: {messages}")
            continue
        try:
            ids, learn = style.encode_with_mask(messages, tokenizer)
        except ValueError as e:
            problems.append(f"{where}: {e}")
            continue
        cut += len(ids) > max_len
        ids, learn = ids[:max_len], learn[:max_len]
        if any(learn[1:]):
            examples.append(Example(ids, learn))
        else:
            empty += 1
    if problems:
        raise ValueError(_listed(problems))
    if not examples:
        raise ValueError(f"{path}: nothing to learn is left after cutting to max_len={max_len} tokens; raise max_len")
    return Dataset(examples, cut, empty)


def split(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Set a share aside for validation, at least one example each; None if the share is 0 or there is one example."""
    n = len(data)
    if fraction == 0 or n < 2:
        return data, None
    held = min(max(1, round(n * fraction)), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    pick = lambda indexes: Dataset([data.examples[i] for i in indexes])  # noqa: E731
    return Dataset(pick(sorted(order[held:])).examples, data.cut, data.empty), pick(sorted(order[:held]))


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of one pass over n examples."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def stream(n: int, seed: int) -> Iterator[int]:
    """Indexes of n examples, epoch after epoch, each in its own order."""
    epoch = 0
    while True:
        yield from epoch_order(n, seed, epoch)
        epoch += 1


def collate(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """tokens and targets, both (B, T): targets[t] is the token after t where it is to be learned, else IGNORE."""
    longest = max(len(e.ids) for e in examples) - 1
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    targets = torch.full((len(examples), longest), IGNORE)
    for row, e in enumerate(examples):
        n = len(e.ids) - 1
        tokens[row, :n] = torch.tensor(e.ids[:-1])
        following = torch.tensor(e.ids[1:])
        targets[row, :n] = torch.where(torch.tensor(e.learn[1:]), following, IGNORE)
    return tokens, targets


def _listed(problems: list[str]) -> str:
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "The data can't be used:\n" + "\n".join(f"- {p}" for p in problems[:20] + more)
