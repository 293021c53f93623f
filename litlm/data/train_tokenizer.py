"""`litlm train-tokenizer`: train byte-level BPE, in files that litlm and transformers read.

A pattern first splits the text, and merges never cross the splits. It is the pattern of GPT-4's and Llama 3's
tokenizers: English contractions ('s, 'll) in any case; a word with one preceding character that is not a letter, digit
or newline (mostly the space); digits in groups of at most three from the left, so that numbers don't fill the
vocabulary; other characters with the space before and newlines after them; newlines with the whitespace before them;
other whitespace, whose last character goes to the next word. Nothing is normalized, so decoding restores any text.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from litlm.checkpoint.run_folder import is_run_folder
from litlm.data import text
from litlm.io.lock import locked
from litlm.io.writing import atomic_folder, write_text
from litlm.settings.commands import TrainTokenizerCommand
from litlm.tokenizer import Tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PIECE_SIZE = 2**13  # characters
_HELD_OUT_EVERY, _MAX_HELD_OUT_BYTES = 64, 2**22  # one piece in so many is not trained on, to measure on it


@dataclass(frozen=True)
class TrainedTokenizer:
    """held_out: bytes_per_token was measured on text that was not trained on. skipped: files that are not text."""

    folder: Path
    vocab_size: int
    bytes_read: int
    bytes_per_token: float
    held_out: bool
    skipped: int


def train_tokenizer_command(settings: TrainTokenizerCommand) -> None:
    """`litlm train-tokenizer`."""
    result = train_tokenizer(settings)
    print(f"{result.folder}: {result.vocab_size:,} tokens, trained on {result.bytes_read:,} bytes")
    measured_on = "held-out text" if result.held_out else "its training text, which is too short to hold any out"
    print(f"{result.bytes_per_token:.2f} bytes per token on {measured_on}")
    if result.vocab_size < settings.vocab_size:
        print(
            f"The text has no more pairs to merge: vocab_size={settings.vocab_size:,} was not reached. Use more text."
        )
    if result.skipped:
        print(f"{result.skipped:,} files were skipped because they are not UTF-8 text")
    command = ["litlm", "prepare", *(word for source in settings.data for word in ("--data", source))]
    for name, default in (("split", "train"), ("text_key", "text")):
        if (value := getattr(settings, name)) != default:
            command += [f"--{name}", value]
    print(f"Go on with: {shlex.join([*command, '--tokenizer', str(result.folder), '--out_dir', 'tokens'])}")


def train_tokenizer(settings: TrainTokenizerCommand) -> TrainedTokenizer:
    """Train, write `tokenizer.json` and `tokenizer_config.json`, and measure bytes per token.

    Raises ValueError for special tokens or a folder that can't be used, and for data without text.
    """
    out = Path(settings.out_dir).expanduser()
    _check(settings.special_tokens, out)
    with locked(out):
        _check(settings.special_tokens, out)  # another process may have finished in the meantime
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
    sources = text.find_sources(settings.data, text_key=settings.text_key, split=settings.split, exclude=out)
    reader = _Reader([text.pin_revision(source) for source in sources], settings.max_bytes)
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
        problems.append(f"special_tokens={list(special_tokens)} must be distinct, non-empty texts")
    if out.exists() and not out.is_dir():
        problems.append(f"out_dir={str(out)!r} is a file; name a folder")
    if is_run_folder(out):
        problems.append(
            f"out_dir={str(out)!r} is the folder of a training run; name another out_dir, such as {out / 'tokenizer'}"
        )
    taken = [name for name in ("tokenizer.json", "tokenizer.model") if (out / name).exists()]
    if taken:
        problems.append(f"out_dir={str(out)!r} already holds {' and '.join(taken)}; name another folder, or remove it")
    if problems:
        raise ValueError("Settings not valid:\n" + "\n".join(f"- {p}" for p in problems))


class _Reader:
    """Iterates over the training text, and holds some of it out. first: the beginning of the training text."""

    def __init__(self, sources: Sequence[text.TextSource], max_bytes: int | None) -> None:
        self._sources, self._max_bytes = sources, max_bytes
        self.bytes_read = 0
        self.held_out: list[str] = []
        self.first: list[str] = []
        self.skipped: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        held_bytes = number = 0
        for _, _, chunk in text.read_chunks(self._sources, skipped=self.skipped):
            for piece in text.split_text([chunk.text], _PIECE_SIZE):
                data = piece.encode()
                if self._max_bytes is not None and self.bytes_read + len(data) > self._max_bytes:
                    data = data[: self._max_bytes - self.bytes_read]
                    piece = data.decode(errors="ignore")
                self.bytes_read += len(data)
                number += 1
                if number % _HELD_OUT_EVERY == 0 and held_bytes < _MAX_HELD_OUT_BYTES:
                    held_bytes += len(data)
                    self.held_out.append(piece)
                elif piece:
                    if number < _HELD_OUT_EVERY:
                        self.first.append(piece)
                    yield piece
                if self.bytes_read == self._max_bytes:
                    return
