"""One `Tokenizer` for every checkpoint: `tokenizer.json`, SentencePiece's `tokenizer.model`, or a GGUF file's metadata.

The work is done by the libraries `tokenizers` and `sentencepiece`; this file decides what they are asked. Unusual:
- A GGUF tokenizer is rebuilt as the object its checkpoint had before conversion (byte-level BPE with the pre-tokenizer
  that `tokenizer.ggml.pre` names, or a SentencePiece model), so that text gives the ids the model was trained on.
- `stream()` decodes token by token and never splits a character: its pieces add up to `decode` of all ids, also for ids
  that are no valid UTF-8.
- Special tokens at the ends of a sequence are a constant prefix and suffix (`prefix_ids`, `suffix_ids`), so truncation
  keeps them, and prompts can take one without the other.
- Loads nothing heavy: both libraries are imported by the constructors.
"""

from __future__ import annotations

import codecs
import importlib
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers

_FILES = ("tokenizer.json", "tokenizer.model")  # in order of preference
_SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # how an added token is matched
_SPACE = "\u2581"  # SentencePiece writes a space as this


@dataclass(frozen=True)
class Batch:
    """ids: one list of token ids per text. mask: same shape, 1 for a token of the text, 0 for padding."""

    ids: list[list[int]]
    mask: list[list[int]]


class TokenStream(Protocol):
    """Incremental decoder: the strings from `push` and a final `flush` add up to `decode` of all pushed ids."""

    def push(self, token: int) -> str:
        """The text that is certain after this token; may be empty, never ends inside a character."""
        ...

    def flush(self) -> str:
        """What is left at the end: an incomplete character as U+FFFD. The stream can then be used for a new text."""
        ...


class _Backend(Protocol):
    size: int  # ids are below this
    special_ids: frozenset[int]  # ids that decode(skip_special_tokens=True) leaves out

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    def decode(self, ids: Sequence[int], skip: bool) -> str: ...
    def stream(self, skip: bool) -> TokenStream: ...
    def id_to_token(self, token: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...
    def write(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class _Meta:
    """What is known beside the vocabulary. special_tokens: role (`bos_token`, ...) to text, as the files name them."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    legacy: bool = False
    source: Path | None = None  # the directory it was loaded from


class Tokenizer:
    """Text to token ids and back. Make one with `from_dir` or `from_gguf`.

    Attributes:
        vocab_size: ids are below this (added tokens included); the model's embedding may have more rows.
        bos_id, eos_id, pad_id: None where the checkpoint has none.
        eos_ids: every id that ends an answer, `eos_id` first, then those of `generation_config.json` or `config.json`.
        special_ids: ids that `decode(skip_special_tokens=True)` leaves out.
        special_tokens: roles to texts, e.g. {"eos_token": "<|im_end|>"}: what chat templates may refer to.
        prefix_ids, suffix_ids: what `add_special_tokens=True` puts around a text (usually a BOS or nothing).
        chat_template: the checkpoint's own Jinja template or None.
    """

    def __init__(self, backend: _Backend, meta: _Meta) -> None:
        self._backend = backend
        self._meta = meta
        self.vocab_size: int = backend.size
        self.special_ids: frozenset[int] = backend.special_ids
        self.special_tokens: Mapping[str, str] = meta.special_tokens
        self.bos_id: int | None = meta.bos_id
        self.eos_id: int | None = meta.eos_id
        self.pad_id: int | None = meta.pad_id
        self.eos_ids: tuple[int, ...] = meta.eos_ids
        self.prefix_ids: tuple[int, ...] = meta.prefix_ids
        self.suffix_ids: tuple[int, ...] = meta.suffix_ids
        self.chat_template: str | None = meta.chat_template

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_ids={self.eos_ids})"

    # --- making one ---------------------------------------------------------------------------------------------
    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a Hugging Face checkpoint directory.

        `tokenizer.json` is preferred to `tokenizer.model`. What goes around a text is said by the post-processor of
        `tokenizer.json` (then `add_bos_token` in `tokenizer_config.json` is without effect, as in transformers 5), and
        beside a SentencePiece model by `add_bos_token` (absent: yes) and `add_eos_token` (absent: no). `legacy` is
        False where `tokenizer_config.json` does not say: only text at the very start gets SentencePiece's dummy space;
        with `legacy: true` so does text after each special token.

        Raises ValueError for a directory without a tokenizer, and for files that cannot be read.
        """
        return _from_dir(cls, Path(path))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """Rebuild the tokenizer from GGUF metadata: full key names (`tokenizer.ggml.tokens`, ...) to plain values.

        Kinds of `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (SentencePiece
        unigram). Raises ValueError for other kinds, unknown `tokenizer.ggml.pre` names, missing or inconsistent lists.
        """
        return _from_gguf(cls, fields)

    # --- text to ids --------------------------------------------------------------------------------------------
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text. Special tokens written in the text are recognised, whatever `add_special_tokens`."""
        _check_texts([text])
        ids = self._backend.encode(text)
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special_tokens else ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode(text, add_special_tokens=False)` and for each token its (start, end) in characters of `text`.

        Tokens that share a character (bytes of one character) share its span; the dummy space of SentencePiece, which
        is not in the text, has an empty span.
        """
        _check_texts([text])
        return self._backend.encode_with_spans(text)

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncate: str = "right",
        pad: str | None = "right",
    ) -> Batch:
        """Encode several texts.

        max_length: most tokens per text, special tokens included (they are kept). truncate: the side ("right" or
        "left") that loses tokens. pad: the side that is filled up to the longest text, or None for ragged lists. The
        padding id is `pad_id`, or where the checkpoint has none, `eos_id`, or 0: `mask` tells it from text.
        """
        problems = []
        if truncate not in ("left", "right"):
            problems.append(f"truncate={truncate!r}: use 'left' or 'right'")
        if pad not in ("left", "right", None):
            problems.append(f"pad={pad!r}: use 'left', 'right' or None")
        n_special = len(self.prefix_ids) + len(self.suffix_ids) if add_special_tokens else 0
        if max_length is not None and max_length < max(n_special, 1):
            problems.append(f"max_length={max_length}: at least {max(n_special, 1)} is needed for the special tokens")
        if isinstance(texts, str):
            problems.append("texts is one string: pass a list of strings")
        if problems:
            raise ValueError("; ".join(problems))
        _check_texts(texts)
        ids = self._backend.encode_batch(list(texts))
        if max_length is not None:
            room = max_length - n_special
            ids = [row[:room] if truncate == "right" else row[max(len(row) - room, 0) :] for row in ids]
        if add_special_tokens:
            ids = [[*self.prefix_ids, *row, *self.suffix_ids] for row in ids]
        mask = [[1] * len(row) for row in ids]
        if pad is not None:
            width = max(map(len, ids), default=0)
            fill = next((i for i in (self.pad_id, self.eos_id) if i is not None), 0)
            ids, mask = ([_padded(row, width, v, pad) for row in rows] for rows, v in ((ids, fill), (mask, 0)))
        return Batch(ids, mask)

    # --- ids to text --------------------------------------------------------------------------------------------
    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of the ids, nothing cleaned up. Ids that no token has (padded embedding rows) give no text.

        Bytes that are no UTF-8 become U+FFFD. SentencePiece's dummy space at the start is removed.
        """
        ids = [int(token) for token in ids]
        if ids and min(ids) < 0:
            raise ValueError(f"ids holds {min(ids)}: token ids are not negative (drop ignored targets first)")
        return self._backend.decode(ids, skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = False) -> TokenStream:
        """A decoder for one text that arrives token by token; constant work per token."""
        return self._backend.stream(skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it (`Ġthe`, `▁the`, `<s>`), or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's spelling of an id, or None where no token has it."""
        return self._backend.id_to_token(int(token)) if token >= 0 else None

    # --- to disk ------------------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a directory, for this class and for transformers.

        A tokenizer read from a directory is copied byte for byte. One rebuilt from GGUF is written as
        `tokenizer.json` or `tokenizer.model` with `tokenizer_config.json`. `generation_config.json`, where further
        `eos_ids` live, belongs to the model and is written with it.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        source = self._meta.source
        if source is None:
            self._backend.write(folder)
            _write(folder / "tokenizer_config.json", json.dumps(self._config(), indent=2, ensure_ascii=False) + "\n")
            return
        if source.resolve() == folder.resolve():
            return
        found = [name for name in (*_FILES, *_SIDE_FILES) if (source / name).is_file()]
        if not any(name in found for name in _FILES):
            raise ValueError(f"{source}: the tokenizer files that were loaded from here are gone; cannot copy them")
        for name in found:
            temporary = folder / f"{name}.{os.getpid()}.tmp"
            shutil.copyfile(source / name, temporary)
            temporary.replace(folder / name)
        for name in (*_FILES, *_SIDE_FILES):  # an older tokenizer's files would be read together with these
            if name not in found:
                (folder / name).unlink(missing_ok=True)

    def _config(self) -> dict[str, Any]:
        fast = isinstance(self._backend, _Fast)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
            "clean_up_tokenization_spaces": False,
            **self.special_tokens,
        }
        if not fast:
            config["legacy"] = self._meta.legacy
            config["add_bos_token"] = bool(self.prefix_ids)
            config["add_eos_token"] = bool(self.suffix_ids)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        return config


def _check_texts(texts: Iterable[Any]) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {i} is a {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {i} has the lone surrogate {text[error.start]!r} at character {error.start}, which is not valid "
                "Unicode; read the file as UTF-8, or use errors='replace'"
            ) from None


def _padded(row: list[int], width: int, value: int, side: str) -> list[int]:
    fill = [value] * (width - len(row))
    return row + fill if side == "right" else fill + row


def _write(path: Path, text: str | bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(text.encode() if isinstance(text, str) else text)
    temporary.replace(path)


# --- backend: tokenizers ------------------------------------------------------------------------------------------
class _Fast:
    """A `tokenizers.Tokenizer`. The caller adds what its post-processor would: `prefix_suffix` says what that is."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self.core = core
        core.no_truncation()
        core.no_padding()
        self.size = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._decoders = _decoder_types(core)

    def prefix_suffix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the post-processor puts before and after a text."""
        encoding = self.core.encode("a", add_special_tokens=True)
        ids, special = encoding.ids, encoding.special_tokens_mask
        n_text = len(self.core.encode("a", add_special_tokens=False).ids)
        start = special.index(0) if 0 in special else len(ids)
        return tuple(ids[:start]), tuple(ids[start + n_text :])

    def set_prefix_suffix(self, prefix: Sequence[int], suffix: Sequence[int]) -> None:
        """Make the post-processor add these ids, for the file that `write` makes."""
        from tokenizers.processors import TemplateProcessing

        if not prefix and not suffix:
            return
        around = [[str(self.core.id_to_token(token)) for token in side] for side in (prefix, suffix)]
        named = list(zip([*around[0], *around[1]], [*prefix, *suffix], strict=True))
        self.core.post_processor = TemplateProcessing(single=[*around[0], "$A", *around[1]], special_tokens=named)

    def encode(self, text: str) -> list[int]:
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.core.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip: bool) -> str:
        return self.core.decode(ids, skip_special_tokens=skip)

    def stream(self, skip: bool) -> TokenStream:
        skipped = self.special_ids if skip else frozenset()
        if self._decoders == ["ByteLevel"]:
            return _ByteStream(self.core, skipped)
        return _WindowStream(self.core, skipped, self._decoders)

    def id_to_token(self, token: int) -> str | None:
        return self.core.id_to_token(token)

    def token_to_id(self, token: str) -> int | None:
        return self.core.token_to_id(token)

    def write(self, folder: Path) -> None:
        _write(folder / "tokenizer.json", self.core.to_str(pretty=True))


def _decoder_types(core: tokenizers.Tokenizer) -> list[str]:
    """Names of the decoder's steps, in order."""
    if core.decoder is None:
        return []
    state = json.loads(core.decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


def _exact_offsets(core: tokenizers.Tokenizer) -> None:
    """Make the post-processor leave spaces inside the offsets of their tokens; ids do not depend on that."""
    processor = core.post_processor
    if processor is not None:
        state = processor.__getstate__().decode()
        processor.__setstate__(re.sub(r'"trim_offsets":\s*true', '"trim_offsets":false', state).encode())
        core.post_processor = processor


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the rest are shifted past 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _ByteStream:
    """Byte-level BPE: every token is bytes, so an incremental UTF-8 decoder is exact for any ids."""

    def __init__(self, core: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._core, self._skipped = core, skipped
        self._alphabet = _byte_alphabet()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        piece = None if token in self._skipped else self._core.id_to_token(token)
        if piece is None:
            return ""
        try:
            data = bytes(self._alphabet[char] for char in piece)
        except KeyError:  # an added token with a space, say: its text is meant literally
            data = piece.encode()
        return self._utf8.decode(data)

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _WindowStream:
    """Any other decoder: decode a short window, and emit what the last tokens added to it.

    The window starts with tokens that decode to some text, so that a decoder which treats the first token differently
    (strips its space) does so on both sides of the difference. A run of byte tokens is held until it ends: the
    library's ByteFallback turns a whole run into U+FFFD where any of it is invalid.
    """

    def __init__(self, core: tokenizers.Tokenizer, skipped: frozenset[int], decoders: list[str]) -> None:
        self._core, self._skipped = core, skipped
        self._byte_fallback = "ByteFallback" in decoders
        self._byte_level = "ByteLevel" in decoders
        self._shown: list[int] = []  # already emitted: context for the next ones
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        piece = None if token in self._skipped else self._core.id_to_token(token)
        if piece is None:
            return ""
        self._waiting.append(token)
        if self._byte_fallback and _byte_value(piece) is not None:
            return ""
        return self._emit(self._byte_level)

    def flush(self) -> str:
        text = self._emit(False)
        self._shown, self._waiting = [], []
        return text

    def _emit(self, whole_characters: bool) -> str:
        before = self._core.decode(self._shown, skip_special_tokens=False)
        after = self._core.decode(self._shown + self._waiting, skip_special_tokens=False)
        if whole_characters and after.endswith("\ufffd"):
            return ""
        if self._core.decode(self._waiting, skip_special_tokens=False):
            self._shown = self._waiting
        else:
            self._shown = self._shown + self._waiting
        self._waiting = []
        return after[len(before) :]


def _byte_value(piece: str) -> int | None:
    """The byte that a byte-fallback piece (`<0x0A>`) stands for."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None


# --- backend: sentencepiece ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Added:
    """A token beside the model's own vocabulary. The flags are those of Hugging Face's AddedToken."""

    content: str
    id: int | None = None
    special: bool = False
    flags: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(_FLAGS, False))

    @property
    def pattern(self) -> str:
        """A regex for its occurrences in text."""
        left, right = (r"\s*" if self.flags[side] else "" for side in ("lstrip", "rstrip"))
        word = re.escape(self.content)
        return left + (rf"(?<!\w){word}(?!\w)" if self.flags["single_word"] else word) + right


def _model_proto(data: bytes | None = None) -> Any:
    """A SentencePiece ModelProto: empty, or parsed from the bytes of a `.model` file."""
    proto = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    if data is not None:
        proto.ParseFromString(data)
    return proto


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # piece types, the same numbers in GGUF


class _SentencePiece:
    """A SentencePiece model, with added tokens found first, as Hugging Face does.

    In text, control pieces, the unknown piece's spelling and the added tokens are ids of their own; user-defined pieces
    are the library's own business. `legacy`: see `Tokenizer.from_dir`.
    """

    def __init__(self, data: bytes, added: Iterable[_Added] = (), *, legacy: bool = False) -> None:
        from sentencepiece import SentencePieceProcessor

        proto = _model_proto(data)
        self._data = data
        self._first = self._rest = SentencePieceProcessor(model_proto=data)
        spec = proto.normalizer_spec
        self._strips_first = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._strips_all = spec.remove_extra_whitespaces
        if spec.add_dummy_prefix and not legacy:
            spec.add_dummy_prefix = False
            self._rest = SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._pieces: list[str | None] = [piece.piece for piece in proto.pieces]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._bytes = {i: _byte_value(p.piece) or 0 for i, p in enumerate(proto.pieces) if p.type == _BYTE}

        tokens = {
            p.piece: _Added(p.piece, i, True) for i, p in enumerate(proto.pieces) if p.type in (_UNKNOWN, _CONTROL)
        }
        for token in added:
            known = tokens.get(token.content)
            number = token.id if token.id is not None else known.id if known else self._ids.get(token.content)
            number = len(self._pieces) if number is None else number
            special = token.special or bool(known and known.special)
            tokens[token.content] = replace(token, id=number, special=special)
            self._pieces.extend([None] * (number + 1 - len(self._pieces)))
            self._pieces[number] = token.content
            self._ids[token.content] = number
        self._literal = {token.id: token.content for token in tokens.values()}
        self.special_ids = frozenset(token.id for token in tokens.values() if token.special and token.id is not None)
        self.size = len(self._pieces)
        # the longest of the tokens that start at a character wins
        longest = sorted(tokens.values(), key=lambda token: len(token.content), reverse=True)
        self._pattern = re.compile("|".join(token.pattern for token in longest))

    def named(self) -> dict[str, str]:
        """The roles that the model itself knows (`bos_token`, ...) and their texts."""
        model = self._first
        ids = dict(
            bos_token=model.bos_id(), eos_token=model.eos_id(), unk_token=model.unk_id(), pad_token=model.pad_id()
        )
        return {role: model.id_to_piece(number) for role, number in ids.items() if number >= 0}

    def _split(self, text: str) -> Iterable[tuple[int, int, int | None]]:
        """(start, end, id): stretches of text, id None, and the added tokens between them."""
        position = 0
        for match in self._pattern.finditer(text):
            if match.start() > position:
                yield position, match.start(), None
            found = match.group()
            number = self._ids.get(found)
            yield match.start(), match.end(), self._ids[found.strip()] if number is None else number
            position = match.end()
        if position < len(text):
            yield position, len(text), None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for start, end, token in self._split(text):
            if token is None:
                ids += (self._rest if start else self._first).encode(text[start:end])
            else:
                ids.append(token)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for start, end, token in self._split(text):
            if token is not None:
                ids.append(token)
                spans.append((start, end))
                continue
            model = self._rest if start else self._first
            segment = text[start:end]
            new, pieces = model.encode(segment), model.encode(segment, out_type=str)
            normal, origin = model.normalize(segment, with_offsets=True)  # origin[i]: where normal[i] came from
            position, pending = 0, b""
            for number, piece in zip(new, pieces, strict=True):
                if number in self._bytes:  # the bytes of one character share its span
                    width = 1
                    pending += bytes([self._bytes[number]])
                    done = len(pending) == len(normal[position].encode())
                else:
                    width, done = len(piece), True
                spans.append((start + origin[position], start + origin[position + width]))
                if done:
                    position, pending = position + width, b""
            ids += new
        return ids, spans

    def decode(self, ids: Sequence[int], skip: bool) -> str:
        stream = self.stream(skip)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, skip: bool) -> TokenStream:
        literal = {i: "" if skip and i in self.special_ids else text for i, text in self._literal.items()}
        return _PieceStream(self._pieces, self._bytes, literal, self._strips_first, self._strips_all)

    def id_to_token(self, token: int) -> str | None:
        return self._pieces[token] if token < self.size else None

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def write(self, folder: Path) -> None:
        _write(folder / "tokenizer.model", self._data)


class _PieceStream:
    """SentencePiece's decoding rules, one piece at a time.

    The first piece loses its space. Byte pieces collect until they make a character; a byte that cannot is U+FFFD by
    itself. literal: texts of special and added tokens ("" where skipped), which hold no escaped spaces.
    """

    def __init__(
        self,
        pieces: Sequence[str | None],
        byte_values: Mapping[int, int],
        literal: Mapping[int | None, str],
        strips_first: bool,
        strips_all: bool,
    ) -> None:
        self._pieces, self._bytes, self._literal = pieces, byte_values, literal
        self._strips_first, self._strips_all = strips_first, strips_all
        self._at_start, self._pending = True, b""

    def push(self, token: int) -> str:
        value = self._bytes.get(token)
        if value is not None:
            self._at_start = False
            self._pending += bytes([value])
            return self._characters(final=False)
        text = self._characters(final=True)
        piece = self._literal.get(token)
        if piece is not None:
            self._at_start = self._at_start and not piece
            return text + piece
        piece = self._pieces[token] if token < len(self._pieces) else None
        if piece is None:
            return text
        if self._at_start and self._strips_first:
            stripped = piece.removeprefix(_SPACE)
            self._at_start = self._strips_all and not stripped
            piece = stripped
        return text + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        text = self._characters(final=True)
        self._at_start = True
        return text

    def _characters(self, final: bool) -> str:
        text = ""
        while self._pending:
            lead = self._pending[0]
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            try:
                text += self._pending[:width].decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and not final:
                    break
                text, width = text + "\ufffd", 1
            self._pending = self._pending[width:]
        return text


# --- reading a Hugging Face directory -----------------------------------------------------------------------------
def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid JSON ({error}); download or copy the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where an object was expected; download it again")
    return value


def _content(token: Any) -> str | None:
    """The text of a token that a config gives as a string or as AddedToken fields."""
    return token.get("content") if isinstance(token, dict) else token


def _config_ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _added_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any], added: Mapping[str, Any]) -> list[_Added]:
    """All tokens that the JSON files beside the vocabulary list: those with an id by id, then the rest."""
    tokens = {content: _Added(content, number) for content, number in added.items()}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(token.get(name)) for name in _FLAGS}
        tokens[token["content"]] = _Added(token["content"], int(number), bool(token.get("special")), flags)
    listed: list[Any] = []
    for source in (config, special_map):
        listed += [source[name] for name in _NAMED if source.get(name)]
        for name in ("additional_special_tokens", "extra_special_tokens"):
            more = source.get(name) or []
            listed += more.values() if isinstance(more, dict) else more
    for token in listed:
        content = _content(token)
        if not content:
            continue
        tokens[content] = replace(tokens.get(content, _Added(content)), special=True)
    return sorted(tokens.values(), key=lambda token: (token.id is None, token.id or 0))


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # named templates: "default" beside "tool_use", "rag", ...
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _load_fast(path: Path, added: list[_Added]) -> _Fast:
    from tokenizers import AddedToken, Tokenizer

    try:
        core = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for everything
        raise ValueError(f"{path} cannot be read as a tokenizer ({error}); download or copy the file again") from None
    wrong = []
    present = {known.content: known.special for known in core.get_added_tokens_decoder().values()}
    for token in added:
        if token.content not in present or (token.special and not present[token.content]):
            entry = AddedToken(token.content, special=token.special, **token.flags)
            (core.add_special_tokens if token.special else core.add_tokens)([entry])
        number = core.token_to_id(token.content)
        if token.id is not None and number != token.id:
            wrong.append(f"{token.content!r} has id {number} in {path.name}, {token.id} in the files beside it")
    if wrong:
        raise ValueError(f"{path.parent}: the tokenizer files do not belong together: {'; '.join(wrong[:5])}")
    _exact_offsets(core)
    return _Fast(core)


def _load_sentencepiece(path: Path, added: list[_Added], config: Mapping[str, Any]) -> _SentencePiece:
    if config.get("sp_model_kwargs"):
        raise ValueError(
            f"{path.parent}/tokenizer_config.json: sp_model_kwargs={config['sp_model_kwargs']} is not supported"
        )
    try:
        return _SentencePiece(path.read_bytes(), added, legacy=bool(config.get("legacy", False)))
    except Exception as error:  # protobuf and sentencepiece raise several unrelated types
        raise ValueError(f"{path} is no SentencePiece model ({error}); download or copy the file again") from None


def _from_dir(cls: type[Tokenizer], folder: Path) -> Tokenizer:
    present = [name for name in _FILES if (folder / name).is_file()]
    if not present:
        state = "holds no tokenizer" if folder.is_dir() else "is no directory"
        raise ValueError(
            f"{folder} {state}: looked for {' and '.join(_FILES)}. Fetch the checkpoint with `litlm download <model>`, "
            "or copy one of them, and tokenizer_config.json, from the model that this one was made from."
        )
    config, special_map = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "special_tokens_map.json")
    generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    added = _added_tokens(config, special_map, _read_json(folder / "added_tokens.json"))
    backend: _Fast | _SentencePiece
    if present[0] == "tokenizer.json":
        backend = _load_fast(folder / "tokenizer.json", added)
    else:
        backend = _load_sentencepiece(folder / "tokenizer.model", added, config)

    names = {role: _content(config.get(role, special_map.get(role))) for role in _NAMED}
    special_tokens = {role: text for role, text in names.items() if text}
    if isinstance(backend, _SentencePiece):
        special_tokens = backend.named() | special_tokens

    def ids_of(role: str) -> list[int]:
        """Ids for a role: the tokenizer's own word, then generation_config.json's or else config.json's."""
        own = [backend.token_to_id(special_tokens[role])] if role in special_tokens else []
        more = _config_ids(generation.get(f"{role}_id")) or _config_ids(model.get(f"{role}_id"))
        return list(dict.fromkeys(token for token in [*own, *more] if token is not None))

    def single(role: str) -> int | None:
        silent = role not in special_tokens and (role in config or role in special_map)  # "bos_token": null
        return None if silent else next(iter(ids_of(role)), None)

    bos, eos = single("bos_token"), single("eos_token")
    prefix, suffix = backend.prefix_suffix() if isinstance(backend, _Fast) else ((), ())
    if isinstance(backend, _SentencePiece):
        prefix, suffix = _one(bos, config.get("add_bos_token", True)), _one(eos, config.get("add_eos_token", False))
    meta = _Meta(
        special_tokens=special_tokens, bos_id=bos, eos_id=eos, pad_id=single("pad_token"),
        eos_ids=tuple(ids_of("eos_token")), prefix_ids=prefix, suffix_ids=suffix,
        chat_template=_chat_template(folder, config), source=folder,
    )  # fmt: skip
    return cls(backend, meta)


# --- rebuilding from GGUF -----------------------------------------------------------------------------------------
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LLAMA3 = _CONTRACTIONS + _WORD + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN2 = _CONTRACTIONS + _WORD + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TITLE, _CAPS = (rf"[^\r\n\p{{L}}\p{{N}}]?{word}" for word in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_MORE = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
_TEKKEN = _TITLE + "|" + _CAPS + r"|\p{N}" + _MORE
_O200K = f"{_TITLE}{_CONTRACTIONS}?|{_CAPS}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _MORE
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL
)
_DIGITS, _GPT2 = "digits", "gpt2"  # steps that the library has by name; so are "numbers" and "punctuation"


@dataclass(frozen=True)
class _Pre:
    """What `tokenizer.ggml.pre` stands for: the parts of `tokenizer.json` that GGUF does not store.

    steps: regexes (each match is split off) or named steps, applied in order. nfc: Unicode normalization first.
    ignore_merges: a whole word that is a token is that token. add_bos: where `add_bos_token` is absent.
    """

    steps: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


# From the tokenizer.json files of these families and llama.cpp's list of names (which ignores nfc).
_PRE: dict[str, _Pre] = (
    dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "granite-docling", "exaone4"), _Pre((_GPT2,)))
    | dict.fromkeys(("olmo", "mpt"), _Pre((_GPT2,), nfc=True))  # both took GPT-NeoX's tokenizer, as Pythia did
    | dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _Pre((_DIGITS, _GPT2)))
    | {"command-r": _Pre((_DIGITS, _GPT2), nfc=True)}
    | {"falcon": _Pre(("punctuation", _GPT2, "numbers", "[0-9][0-9][0-9]"))}
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Pre((_LLAMA3,), ignore_merges=True, add_bos=True))
    | dict.fromkeys(("dbrx", "smaug-bpe"), _Pre((_LLAMA3,)))
    | {"qwen2": _Pre((_QWEN2,), nfc=True), "qwen35": _Pre((_QWEN35,), nfc=True)}
    | {"tekken": _Pre((_TEKKEN,), ignore_merges=True, add_bos=True)}
    | dict.fromkeys(("gpt-4o", "llama4"), _Pre((_O200K,)))
    | {"deepseek-v3": _Pre((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3))}
    | {
        "deepseek-coder": _Pre(
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", _DIGITS)
        )
    }
)
# Texts of tokens that end an answer; GGUF names at most three of them by id.
_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "<end_of_utterance>",
)  # fmt: skip


def _from_gguf(cls: type[Tokenizer], fields: Mapping[str, Any]) -> Tokenizer:
    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    kind = get("model")
    if kind not in ("gpt2", "llama", "t5"):
        raise ValueError(
            f"tokenizer.ggml.model={kind!r}: only 'gpt2', 'llama' and 't5' tokenizers can be rebuilt from GGUF"
        )
    needed = ("tokens", "merges") if kind == "gpt2" else ("tokens", "scores", "token_type")
    missing = [f"tokenizer.ggml.{name}" for name in needed if get(name) is None]
    if missing:
        raise ValueError(f"The GGUF metadata lacks {', '.join(missing)}, which a {kind!r} tokenizer needs")
    # converters pad the vocabulary with empty strings now and then, which neither library takes
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(get("tokens"))]
    types = [int(t) for t in get("token_type", [_NORMAL] * len(tokens))]
    problems = [
        f"tokenizer.ggml.{name} has {len(get(name))} entries for {len(tokens)} tokens"
        for name in ("token_type", "scores")
        if get(name) is not None and len(get(name)) != len(tokens)
    ]
    ids: dict[str, int | None] = {}
    for key in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        value = get(f"{key}_token_id")
        ids[key] = None if value is None else int(value)
        if value is not None and not 0 <= value < len(tokens):
            problems.append(f"tokenizer.ggml.{key}_token_id={value} is outside the vocabulary of {len(tokens)}")
    if len(set(tokens)) < len(tokens):
        twice = sorted(token for token, count in Counter(tokens).items() if count > 1)
        problems.append(f"tokenizer.ggml.tokens lists {', '.join(map(repr, twice[:5]))} more than once")
    if problems:
        raise ValueError("; ".join(problems))

    backend: _Fast | _SentencePiece
    if kind == "gpt2":
        backend, add_bos = _gguf_bpe(tokens, types, get("merges"), get("pre"))
        add_eos = False
    else:
        backend = _gguf_sentencepiece(tokens, types, ids, fields)
        add_bos, add_eos = kind == "llama", kind == "t5"
    roles = dict(bos_token="bos", eos_token="eos", unk_token="unknown", pad_token="padding")
    ends = [ids["eos"], ids["eot"], ids["eom"]]
    ends += [i for i, token in enumerate(tokens) if types[i] == _CONTROL and token in _END_TEXTS]
    meta = _Meta(
        special_tokens={role: tokens[i] for role, key in roles.items() if (i := ids[key]) is not None},
        bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["padding"],
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        prefix_ids=_one(ids["bos"], get("add_bos_token", add_bos)),
        suffix_ids=_one(ids["eos"], get("add_eos_token", add_eos)),
        chat_template=fields.get("tokenizer.chat_template"),
    )  # fmt: skip
    if isinstance(backend, _Fast):
        backend.set_prefix_suffix(meta.prefix_ids, meta.suffix_ids)
    return cls(backend, meta)


def _one(token: int | None, wanted: bool) -> tuple[int, ...]:
    return (token,) if wanted and token is not None else ()


def _gguf_bpe(tokens: list[str], types: list[int], merges: Sequence[str], name: str | None) -> tuple[_Fast, bool]:
    """Byte-level BPE, and whether its family adds a BOS."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if name in (None, "default"):
        warnings.warn(
            f"tokenizer.ggml.pre is {name!r}: the file does not say how text is split into words; using GPT-2's way. "
            "Convert the model again with a current converter if numbers or punctuation tokenize oddly.",
            stacklevel=4,
        )
        name = "gpt-2"
    if name not in _PRE:
        raise ValueError(
            f"tokenizer.ggml.pre={name!r} is unknown. Known: {', '.join(sorted(_PRE))}. Use the model's tokenizer.json."
        )
    pre = _PRE[name]
    bad = next((merge for merge in merges if merge.count(" ") != 1), None)
    if bad is not None:
        raise ValueError(f"tokenizer.ggml.merges holds {bad!r}, which is not two tokens with one space between")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the library raises plain Exception: a merge of tokens outside the vocabulary
        raise ValueError(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens ({error})") from None
    named: dict[str, pre_tokenizers.PreTokenizer] = {
        _DIGITS: pre_tokenizers.Digits(individual_digits=True),
        _GPT2: pre_tokenizers.ByteLevel(add_prefix_space=False),
        "numbers": pre_tokenizers.Digits(individual_digits=False),
        "punctuation": pre_tokenizers.Punctuation("contiguous"),
    }
    steps = [named.get(step) or pre_tokenizers.Split(Regex(step), "isolated") for step in pre.steps]
    if _GPT2 not in pre.steps:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre.nfc:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    core.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return _Fast(core), pre.add_bos


def _gguf_sentencepiece(
    tokens: list[str], types: list[int], ids: Mapping[str, int | None], fields: Mapping[str, Any]
) -> _SentencePiece:
    """A SentencePiece model file's content, as its training left it."""
    unigram = fields["tokenizer.ggml.model"] == "t5"
    proto = _model_proto()
    scores = fields["tokenizer.ggml.scores"]
    types = list(types)
    if _UNKNOWN not in types:
        types[ids["unknown"] or 0] = _UNKNOWN  # the library insists on one
    for token, score, kind in zip(tokens, scores, types, strict=True):
        # GGUF stores user-defined pieces with plain spaces; the model matches them in escaped text
        piece = token.replace(" ", _SPACE) if kind == _USER_DEFINED else token
        proto.pieces.add(piece=piece, score=float(score), type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = 1 if unigram else 2
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = _BYTE in types
    for role, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = types.index(_UNKNOWN) if role == "unk" else ids[key]
        setattr(trainer, f"{role}_id", -1 if number is None else number)
        if number is not None:
            setattr(trainer, f"{role}_piece", tokens[number])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(fields.get("tokenizer.ggml.remove_extra_whitespaces", False))
    normalizer.escape_whitespaces = True
    charsmap = fields.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        normalizer.precompiled_charsmap = bytes(byte & 0xFF for byte in charsmap)  # stored as signed or unsigned bytes
    try:
        return _SentencePiece(proto.SerializeToString())
    except RuntimeError as error:
        raise ValueError(f"The GGUF's vocabulary makes no SentencePiece model ({error})") from None
