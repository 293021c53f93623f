"""The two backends of `Tokenizer`: the libraries `tokenizers` (`FastBackend`) and `sentencepiece`.

A backend converts between text and ids, without special tokens around the text. What a loader reads beside the
vocabulary is in a `TokenizerMetadata`. Both decode incrementally without splitting a character, and the pieces add up
to the text of all ids, even for ids that are not valid UTF-8. Each library is imported on use.
"""

from __future__ import annotations

import codecs
import importlib
import json
import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litlm.io.writing import write_bytes, write_text

if TYPE_CHECKING:
    import tokenizers

TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # how an added token is matched
SPACE = "\u2581"  # SentencePiece writes a space as this


@dataclass(frozen=True)
class TokenizerMetadata:
    """What is known beside the vocabulary; the fields are those of `Tokenizer`. source: the directory, if any."""

    special_tokens: dict[str, str] = field(default_factory=dict)
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    chat_templates: dict[str, str] = field(default_factory=dict)
    source: Path | None = None


def special_ids_if(token: int | None, enabled: bool) -> tuple[int, ...]:
    """The prefix or suffix that a special token makes: itself, if there is one and it is enabled."""
    return (token,) if enabled and token is not None else ()


# --- backend: tokenizers ------------------------------------------------------------------------------------------
class FastBackend:
    """A `tokenizers.Tokenizer`. The caller adds what its post-processor would, which `prefix_suffix` returns."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self.core = core
        core.no_truncation()
        core.no_padding()
        _keep_spaces_in_offsets(core)
        self.size = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        # By trial: the library skips tokens whose flag was removed, and does not skip those that it normalizes.
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(
            i for i in added if core.decode([i]) != core.decode([i], skip_special_tokens=False)
        )
        self._decoders = _decoder_types(core)

    def prefix_suffix(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the post-processor puts before and after a text."""
        encoding = self.core.encode("a", add_special_tokens=True)
        ids, special = encoding.ids, encoding.special_tokens_mask
        n_text = len(self.core.encode("a", add_special_tokens=False).ids)
        start = special.index(0) if 0 in special else len(ids)
        return tuple(ids[:start]), tuple(ids[start + n_text :])

    def set_prefix_suffix(self, prefix: Sequence[int], suffix: Sequence[int]) -> None:
        """Make the post-processor add these ids, for the file of `write`."""
        from tokenizers.processors import TemplateProcessing

        if not prefix and not suffix:
            return
        around = [[str(self.core.id_to_token(token)) for token in side] for side in (prefix, suffix)]
        named = list(zip([*around[0], *around[1]], [*prefix, *suffix], strict=True))
        self.core.post_processor = TemplateProcessing(single=[*around[0], "$A", *around[1]], special_tokens=named)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return [encoding.ids for encoding in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each its (start, end) in characters."""
        encoding = self.core.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of the ids."""
        return self.core.decode(ids, skip_special_tokens=skip_special)

    def decode_stream(self, skip_special: bool) -> DecodeStream:
        """An incremental decoder."""
        skipped = self.special_ids if skip_special else frozenset()
        if self._decoders == ["ByteLevel"]:
            return _ByteStream(self.core, skipped)
        return _WindowStream(self.core, skipped, self._decoders)

    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's spelling of an id."""
        return self.core.id_to_token(token)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self.core.token_to_id(token)

    def add(self, texts: Sequence[str]) -> list[int]:
        """Make each text one token, which is found before anything else is done to the text around it."""
        import tokenizers

        self.core.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in texts])
        ids = [token for text in texts if (token := self.core.token_to_id(text)) is not None]
        self.size = max([self.size, *(token + 1 for token in ids)])
        return ids

    def write(self, folder: Path) -> None:
        """Write tokenizer.json."""
        write_text(folder / "tokenizer.json", self.core.to_str(pretty=True))


def _decoder_types(core: tokenizers.Tokenizer) -> list[str]:
    """The types of the decoder's steps, in order."""
    if core.decoder is None:
        return []
    state = json.loads(core.decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


def _keep_spaces_in_offsets(core: tokenizers.Tokenizer) -> None:
    """Make the post-processor keep spaces in the offsets of their tokens; ids do not depend on it."""
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


class DecodeStream:
    """Incremental decoder: the texts of all `push` calls and a final `flush` add up to `decode` of the ids."""

    def push(self, token: int) -> str:
        """The text that is final after this token; may be empty, never ends inside a character."""
        raise NotImplementedError

    def flush(self) -> str:
        """The rest: an incomplete character is U+FFFD. The stream can then be used for a new text."""
        raise NotImplementedError

    def skip(self, ids: Sequence[int]) -> None:
        """Continue a text that ends with these ids, which are not part of the output."""
        for token in ids:
            self.push(token)


class _ByteStream(DecodeStream):
    """Byte-level BPE: tokens are bytes, so an incremental UTF-8 decoder is exact for any ids."""

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
        except KeyError:  # an added token, which is literal text (it may hold a space)
            data = piece.encode()
        return self._utf8.decode(data)

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _WindowStream(DecodeStream):
    """Any other decoder: decode a short window, and emit what the last tokens added to its text.

    The window starts with tokens that have a text, so that a decoder that treats the first token differently (strips
    its space) does so with and without the new tokens. A run of byte tokens is held back until it ends, because the
    library's ByteFallback turns a whole run into U+FFFD if any of it is invalid.
    """

    def __init__(self, core: tokenizers.Tokenizer, skipped: frozenset[int], decoders: list[str]) -> None:
        self._core, self._skipped = core, skipped
        self._byte_fallback = "ByteFallback" in decoders
        self._byte_level = "ByteLevel" in decoders
        self._emitted: list[int] = []  # tokens whose text was emitted: context for the next ones
        self._pending: list[int] = []

    def skip(self, ids: Sequence[int]) -> None:
        self._emitted += [i for i in ids if i not in self._skipped and self._core.id_to_token(i) is not None]

    def push(self, token: int) -> str:
        piece = None if token in self._skipped else self._core.id_to_token(token)
        if piece is None:
            return ""
        self._pending.append(token)
        if self._byte_fallback and _byte_value(piece) is not None:
            return ""
        return self._emit(self._byte_level)

    def flush(self) -> str:
        text = self._emit(False)
        self._emitted, self._pending = [], []
        return text

    def _emit(self, whole_characters: bool) -> str:
        before = self._core.decode(self._emitted, skip_special_tokens=False)
        after = self._core.decode(self._emitted + self._pending, skip_special_tokens=False)
        if whole_characters and after.endswith("\ufffd"):
            return ""
        if self._core.decode(self._pending, skip_special_tokens=False):
            self._emitted = self._pending
        else:
            self._emitted = self._emitted + self._pending
        self._pending = []
        return after[len(os.path.commonprefix([before, after])) :]  # a skipped prompt may end within a character


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
class TokenSpec:
    """A token beside the model's own vocabulary. flags: those of Hugging Face's AddedToken."""

    content: str
    id: int | None = None
    special: bool = False
    flags: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(TOKEN_FLAGS, False))

    @property
    def pattern(self) -> str:
        """A regex for its occurrences in text."""
        left, right = (r"\s*" if self.flags[side] else "" for side in ("lstrip", "rstrip"))
        word = re.escape(self.content)
        return left + (rf"(?<!\w){word}(?!\w)" if self.flags["single_word"] else word) + right


def model_proto(data: bytes | None = None) -> Any:
    """A SentencePiece ModelProto: empty, or parsed from the bytes of a `.model` file."""
    proto = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    if data is not None:
        proto.ParseFromString(data)
    return proto


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _UNUSED, BYTE = range(1, 7)  # piece types, the same numbers in GGUF


class SentencePieceBackend:
    """A SentencePiece model; added tokens are found first, as in transformers.

    In text, control pieces, the unknown piece and added tokens are single ids; the library handles user-defined pieces.
    legacy: see `Tokenizer.from_dir`.
    """

    def __init__(self, data: bytes, added: Iterable[TokenSpec] = (), *, legacy: bool = False) -> None:
        from sentencepiece import SentencePieceProcessor

        proto = model_proto(data)
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
        self._bytes = {i: _byte_value(p.piece) or 0 for i, p in enumerate(proto.pieces) if p.type == BYTE}

        tokens = {
            p.piece: TokenSpec(p.piece, i, True) for i, p in enumerate(proto.pieces) if p.type in (UNKNOWN, CONTROL)
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
        # the longest token at a position wins
        longest = sorted(tokens.values(), key=lambda token: len(token.content), reverse=True)
        self._pattern = re.compile("|".join(token.pattern for token in longest))

    def special_tokens(self) -> dict[str, str]:
        """The model's own special tokens: role (`bos_token`, ...) to text."""
        model = self._first
        ids = dict(
            bos_token=model.bos_id(), eos_token=model.eos_id(), unk_token=model.unk_id(), pad_token=model.pad_id()
        )
        return {role: model.id_to_piece(number) for role, number in ids.items() if number >= 0}

    def _split(self, text: str) -> Iterable[tuple[int, int, int | None]]:
        """Yield (start, end, id) of the added tokens, and of the text between them with id None."""
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
        """Token ids of a text, without special tokens around it."""
        ids: list[int] = []
        for start, end, token in self._split(text):
            if token is None:
                ids += (self._rest if start else self._first).encode(text[start:end])
            else:
                ids.append(token)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each its (start, end) in characters."""
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

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of the ids."""
        stream = self.decode_stream(skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def decode_stream(self, skip_special: bool) -> DecodeStream:
        """An incremental decoder."""
        literal = {i: "" if skip_special and i in self.special_ids else text for i, text in self._literal.items()}
        return _PieceStream(self._pieces, self._bytes, literal, self._strips_first, self._strips_all)

    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's spelling of an id."""
        return self._pieces[token] if token < self.size else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self._ids.get(token)

    def write(self, folder: Path) -> None:
        """Write tokenizer.model."""
        write_bytes(folder / "tokenizer.model", self._data)


class _PieceStream(DecodeStream):
    """SentencePiece's decoding rules, one piece at a time.

    The first piece loses its space. Byte pieces are held back until they make a character; a byte that can't becomes
    U+FFFD. literal: texts of special and added tokens ("" if skipped), in which spaces are not escaped.
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
            stripped = piece.removeprefix(SPACE)
            self._at_start = self._strips_all and not stripped
            piece = stripped
        return text + piece.replace(SPACE, " ")

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


Backend = FastBackend | SentencePieceBackend
