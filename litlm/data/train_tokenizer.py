"""`litlm train-tokenizer`: byte-level BPE from text, in files that litlm and transformers read.

Text is first split by a pattern, and merges never cross its borders. The pattern is the one that GPT-4's and Llama 3's
tokenizers share: English contractions ('s, 'll) in either case; a word with one character before it that is neither
letter nor digit nor a line's end (mostly the space); digits in groups of at most three from the left, so that numbers
don't fill the vocabulary; other signs with a space before and line ends after them; line ends with what space is before
them; other space, whose last character is left to the word that follows. Nothing is normalized: each text can be
written, byte by byte if need be, and comes back as it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from litlm.data import text
from litlm.io.lock import locked
from litlm.io.writing import atomic_folder, write_text
from litlm.settings.commands import TrainTokenizerCommand
from litlm.tokenizer import Tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PIECE = 2**13  # characters; one piece of every _HELD_OUT is not learned from, to measure on
_HELD_OUT = 64
_HELD_OUT_BYTES = 2**22


@dataclass(frozen=True)
class TrainedTokenizer:
    """held_out: bytes_per_token was measured on text that was not learned from. skipped: files that are no text."""

    folder: Path
    vocab_size: int
    bytes_read: int
    bytes_per_token: float
    held_out: bool
    skipped: int


def train_tokenizer_command(settings: TrainTokenizerCommand) -> None:
    """`litlm train-tokenizer`."""
    made = train_tokenizer(settings)
    print(f"{made.folder}: {made.vocab_size:,} tokens, learned from {made.bytes_read:,} bytes")
    where = "text it was not trained on" if made.held_out else "the text it was trained on, which is short"
    print(f"{made.bytes_per_token:.2f} bytes a token on {where}")
    if made.vocab_size < settings.vocab_size:
        print(f"The text has no more to merge: vocab_size={settings.vocab_size:,} was not reached. Use more text.")
    if made.skipped:
        print(f"{made.skipped:,} files were left out, being no UTF-8 text")
    data = " --data ".join(settings.data)
    print(f"Go on with: litlm prepare --data {data} --tokenizer {made.folder} --out_dir tokens")


def train_tokenizer(settings: TrainTokenizerCommand) -> TrainedTokenizer:
    """Train, write `tokenizer.json` and `tokenizer_config.json`, and measure."""
    out = Path(settings.out_dir).expanduser()
    _check(settings.special_tokens, out)
    with locked(out):
        _check(settings.special_tokens, out)  # another process may just have finished there
        return _train(settings, out)


def _train(settings: TrainTokenizerCommand, out: Path) -> TrainedTokenizer:
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core

    core = Core(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, special_tokens=list(settings.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    units = text.units(settings.data, text_key=settings.text_key, split=settings.split, exclude=out)
    reader = _Reader([text.pin(unit) for unit in units], settings.max_bytes)
    core.train_from_iterator(iter(reader), trainer)
    if reader.bytes_read == 0:
        raise ValueError(f"There is no text in {', '.join(settings.data)}")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": settings.special_tokens[0],
        "clean_up_tokenization_spaces": False,
    }
    with atomic_folder(out) as part:
        write_text(part / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        write_text(part / "tokenizer.json", core.to_str(pretty=True))
    tokenizer = Tokenizer.from_dir(out)
    sample = reader.held_out or reader.first
    n_tokens = sum(map(len, tokenizer.encode_batch(sample, add_special_tokens=False, pad=None).ids))
    n_bytes = sum(len(piece.encode()) for piece in sample)
    return TrainedTokenizer(
        out, tokenizer.vocab_size, reader.bytes_read, n_bytes / n_tokens, bool(reader.held_out), len(reader.skipped)
    )


def _check(special_tokens: Sequence[str], out: Path) -> None:
    problems = []
    if not special_tokens:
        problems.append("special_tokens is empty; the first one ends a document, such as <|endoftext|>")
    if "" in special_tokens or len(set(special_tokens)) < len(special_tokens):
        problems.append(f"special_tokens={list(special_tokens)} must be texts, each another")
    if out.exists() and not out.is_dir():
        problems.append(f"out_dir={str(out)!r} is a file; name a folder")
    taken = [name for name in ("tokenizer.json", "tokenizer.model") if (out / name).exists()]
    if taken:
        problems.append(f"out_dir={str(out)!r} holds {' and '.join(taken)} already; name another folder, or remove it")
    if problems:
        raise ValueError("Settings not valid:\n" + "\n".join(f"- {p}" for p in problems))


class _Reader:
    """Iterates over what to learn from, and keeps some text apart. first: the beginning, where that was nothing."""

    def __init__(self, units: Sequence[text.Unit], max_bytes: int | None) -> None:
        self._units, self._max_bytes = units, max_bytes
        self.bytes_read = 0
        self.held_out: list[str] = []
        self.first: list[str] = []
        self.skipped: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        held_bytes = number = 0
        for _, _, part in text.stream(self._units, skipped=self.skipped):
            for piece in text.pieces([part.text], _PIECE):
                data = piece.encode()
                if self._max_bytes is not None and self.bytes_read + len(data) > self._max_bytes:
                    data = data[: self._max_bytes - self.bytes_read]
                    piece = data.decode(errors="ignore")
                self.bytes_read += len(data)
                number += 1
                if number % _HELD_OUT == 0 and held_bytes < _HELD_OUT_BYTES:
                    held_bytes += len(data)
                    self.held_out.append(piece)
                elif piece:
                    if number < _HELD_OUT:
                        self.first.append(piece)
                    yield piece
                if self.bytes_read == self._max_bytes:
                    return
