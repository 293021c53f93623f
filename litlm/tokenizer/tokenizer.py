"""One `Tokenizer` for every checkpoint: `tokenizer.json`, SentencePiece's `tokenizer.model`, or a GGUF file's metadata.

This file has the class that everything else uses, and reads the files of a Hugging Face directory; `backends.py` calls
the libraries, and `gguf.py` rebuilds tokenizers from GGUF. Special tokens around a text are a constant prefix and
suffix (`prefix_ids`, `suffix_ids`), so truncation keeps them, and prompts can have one without the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litlm.io.reading import check_readable, read_json, read_text
from litlm.io.writing import write_bytes, write_text
from litlm.tokenizer.backends import (
    TOKEN_FLAGS,
    Backend,
    DecodeStream,
    FastBackend,
    SentencePieceBackend,
    TokenizerMetadata,
    TokenSpec,
    special_ids_if,
)

if TYPE_CHECKING:
    import tokenizers

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")  # in order of preference
_TEMPLATE = "chat_template.jinja"
_SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    _TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)
_NAMED_TEMPLATES = "additional_chat_templates"  # the folder of transformers 5 for those beside the default
TOKENIZER_FILES = (*_VOCABULARY_FILES, *_SIDE_FILES, f"{_NAMED_TEMPLATES}/*.jinja")  # all files of a tokenizer
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


_PROMPT_CONTEXT = 256  # the last tokens of a prompt, enough to decode what follows it


@dataclass(frozen=True)
class Batch:
    """ids: one list of token ids per text. mask: the same shape, 1 for tokens and 0 for padding."""

    ids: list[list[int]]
    mask: list[list[int]]


def has_tokenizer_files(folder: Path) -> bool:
    """Whether a directory has a tokenizer."""
    return any((folder / name).is_file() for name in _VOCABULARY_FILES)


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a directory by name; it needs no tokenizer."""
    return _chat_templates(folder, _read_json(folder / "tokenizer_config.json"))


class Tokenizer:
    """Text to token ids and back. Make one with `from_dir` or `from_gguf`.

    Attributes:
        vocab_size: ids are below this (added tokens included); the model's embedding may have more rows.
        bos_id, eos_id, pad_id: None if the checkpoint has none.
        eos_ids: all ids that end an answer: `eos_id`, then those of `generation_config.json` or `config.json`.
        special_ids: ids that `decode(skip_special_tokens=True)` skips.
        special_tokens: role to text, such as {"eos_token": "<|im_end|>"}; chat templates may refer to them.
        prefix_ids, suffix_ids: what `add_special_tokens=True` puts around a text (usually a BOS or nothing).
        chat_templates: the checkpoint's Jinja templates by name; a single one is `default`.
    """

    def __init__(self, backend: Backend, meta: TokenizerMetadata) -> None:
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
        self.chat_templates: dict[str, str] = dict(meta.chat_templates)
        self._has_new_tokens = False

    @property
    def chat_template(self) -> str | None:
        """The template called `default`, or None. Raises ValueError if there are only others."""
        if self.chat_templates and "default" not in self.chat_templates:
            file = f"{self._meta.source / 'chat_template.jinja'}, or " if self._meta.source else ""
            raise ValueError(
                f"The tokenizer has the chat templates {', '.join(sorted(self.chat_templates))} and none called "
                f"default; put the one that you mean into {file}tokenizer.chat_template"
            )
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates = {} if template is None else self.chat_templates | {"default": template}

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_ids={self.eos_ids})"

    # --- making one ---------------------------------------------------------------------------------------------
    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a Hugging Face checkpoint directory.

        `tokenizer.json` is preferred to `tokenizer.model`. The post-processor of `tokenizer.json` determines what goes
        around a text (then `add_bos_token` in `tokenizer_config.json` has no effect, as in transformers 5); for a
        SentencePiece model, `add_bos_token` (default true) and `add_eos_token` (default false) do. SentencePiece's
        dummy space goes before text at the very start, with `legacy: true` also before text after each special token.
        Special tokens and the flags of added tokens are read as in transformers 5.

        Raises ValueError for a directory without a tokenizer, and for files that can't be read.
        """
        return cls(*_read_dir(Path(path)))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """Rebuild the tokenizer from GGUF metadata: full key names (`tokenizer.ggml.tokens`, ...) to plain values.

        `tokenizer.ggml.model` may be `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `t5` (SentencePiece
        unigram). Raises ValueError for others, unknown `tokenizer.ggml.pre` names, missing or inconsistent lists.
        """
        from litlm.tokenizer.gguf import rebuild

        return cls(*rebuild(fields))

    # --- text to ids --------------------------------------------------------------------------------------------
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text. Special tokens written in the text are always recognized.

        A text with its own BOS (a rendered chat template, say) gets no second one, and likewise for EOS.
        """
        _check_texts([text])
        ids = self._backend.encode(text)
        return [*self.prefix_ids, *self._strip_special(ids), *self.suffix_ids] if add_special_tokens else ids

    def _strip_special(self, ids: Sequence[int]) -> list[int]:
        """The ids without the parts of `prefix_ids` and `suffix_ids` that they already have."""
        prefix, suffix = self.prefix_ids, self.suffix_ids
        own = next(n for n in range(len(prefix), -1, -1) if tuple(ids[:n]) == prefix[len(prefix) - n :])
        ids = ids[own:]
        own = next(n for n in range(len(suffix), -1, -1) if tuple(ids[len(ids) - n :]) == suffix[:n])
        return list(ids[: len(ids) - own])

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode(text, add_special_tokens=False)`, and for each token its (start, end) in characters of `text`.

        Tokens that are bytes of one character share its span; SentencePiece's dummy space, which is not in the text,
        has an empty span.
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

        max_length: tokens per text at most, with special tokens, which are kept. truncate: the side ("right" or "left")
        that loses tokens. pad: the side that is padded to the longest text; None for ragged lists. The padding id is
        `pad_id`, else `eos_id`, else 0; `mask` is 0 there. Raises ValueError for other arguments, and for texts that
        are not valid Unicode.
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
        if add_special_tokens:
            ids = [self._strip_special(row) for row in ids]
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
        """The text of the ids, without cleanup. Ids without a token (padded embedding rows) have no text.

        Bytes that are not UTF-8 become U+FFFD. SentencePiece's dummy space at the start is removed. Raises ValueError
        for negative ids.
        """
        ids = [int(token) for token in ids]
        if ids and min(ids) < 0:
            raise ValueError(f"ids holds {min(ids)}: token ids are not negative (drop ignored targets first)")
        return self._backend.decode(ids, skip_special_tokens)

    def decode_stream(self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = False) -> DecodeStream:
        """A decoder for one text that arrives token by token; constant work per token.

        prompt: ids that the text continues: SentencePiece then keeps the space of the first new token.
        """
        stream = self._backend.decode_stream(skip_special_tokens)
        stream.skip(prompt[-_PROMPT_CONTEXT:])
        return stream

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's spelling (`Ġthe`, `▁the`, `<s>`), or None."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's spelling of an id, or None if no token has it."""
        return self._backend.id_to_token(int(token)) if token >= 0 else None

    def add_tokens(self, texts: Sequence[str]) -> list[int]:
        """Make each text one token, and return their ids; new ids start at `vocab_size`.

        Raises ValueError for empty texts and for SentencePiece models.
        """
        _check_texts(texts)
        if "" in texts:
            raise ValueError("a new token can't be empty")
        if not isinstance(self._backend, FastBackend):
            raise ValueError(
                "this tokenizer is a SentencePiece model (tokenizer.model), which can't take new tokens; convert it to "
                "tokenizer.json first, as transformers does when it saves it"
            )
        ids = self._backend.add(texts)
        self.vocab_size, self._has_new_tokens = self._backend.size, True
        return ids

    # --- to disk ------------------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a directory, for this class and for transformers.

        The files of a tokenizer that was read from a directory are copied, except for chat templates that have changed.
        One rebuilt from GGUF is written as `tokenizer.json` or `tokenizer.model` with `tokenizer_config.json`. Further
        `eos_ids` are in `generation_config.json`, which is written with the model. Raises ValueError if the files to
        copy are gone.
        """
        folder = Path(path)
        source = self._meta.source
        if source is None:
            self._backend.write(folder)
            config = json.dumps(self._config(), indent=2, ensure_ascii=False)
            write_text(folder / "tokenizer_config.json", config + "\n")
            _remove_template_files(folder)  # of an older tokenizer
            return
        changed = self.chat_templates != self._meta.chat_templates
        if source.resolve() == folder.resolve() and not self._has_new_tokens and not changed:
            return
        found = _files_of(source)
        if not any(name in found for name in _VOCABULARY_FILES):
            raise ValueError(f"{source}: the tokenizer's files are no longer here, so they can't be copied")
        for name in found:
            write_bytes(folder / name, (source / name).read_bytes())
        if self._has_new_tokens:
            self._backend.write(folder)
        for name in set(_files_of(folder)) - set(found):  # an older tokenizer's files would be read with these
            (folder / name).unlink()
        if changed:
            self._save_templates(folder)

    def _save_templates(self, folder: Path) -> None:
        """Replace all chat templates of the directory."""
        config_file = folder / "tokenizer_config.json"
        config = _read_json(config_file)
        if config.pop("chat_template", None) is not None:
            write_text(config_file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        _remove_template_files(folder)
        for name, template in self.chat_templates.items():
            file = folder / (_TEMPLATE if name == "default" else f"{_NAMED_TEMPLATES}/{name}.jinja")
            file.parent.mkdir(exist_ok=True)
            write_text(file, template)

    def _config(self) -> dict[str, Any]:
        fast = isinstance(self._backend, FastBackend)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
            "clean_up_tokenization_spaces": False,
            **self.special_tokens,
        }
        if not fast:
            config["legacy"] = False
            config["add_bos_token"] = bool(self.prefix_ids)
            config["add_eos_token"] = bool(self.suffix_ids)
        if self.chat_templates:
            named = [{"name": name, "template": template} for name, template in self.chat_templates.items()]
            config["chat_template"] = named if len(named) > 1 else self.chat_template
        return config


def describe_out_of_vocab(ids: Iterable[int], vocab_size: int, tokenizer: Tokenizer | None = None) -> str:
    """Describe the ids that are not in [0, vocab_size), for an error message; "" if there are none."""
    wrong = sorted({int(token) for token in ids if not 0 <= token < vocab_size})
    if not wrong:
        return ""
    texts = [None if tokenizer is None else tokenizer.id_to_token(token) for token in wrong[:5]]
    named = ", ".join(str(n) if text is None else f"{n} ({text!r})" for n, text in zip(wrong, texts, strict=False))
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return f"token ids outside 0 to {vocab_size - 1}, the rows of the model's embedding: {named}{more}"


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


def _files_of(folder: Path) -> list[str]:
    """The tokenizer files in a directory."""
    named = sorted(f"{_NAMED_TEMPLATES}/{file.name}" for file in (folder / _NAMED_TEMPLATES).glob("*.jinja"))
    return [name for name in (*_VOCABULARY_FILES, *_SIDE_FILES) if (folder / name).is_file()] + named


def _remove_template_files(folder: Path) -> None:
    """Remove the files that hold only chat templates."""
    for file in (folder / _TEMPLATE, folder / "chat_template.json", *(folder / _NAMED_TEMPLATES).glob("*.jinja")):
        file.unlink(missing_ok=True)


def _padded(row: list[int], width: int, value: int, side: str) -> list[int]:
    fill = [value] * (width - len(row))
    return row + fill if side == "right" else fill + row


# --- reading a Hugging Face directory -----------------------------------------------------------------------------
def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """The text of a token, which a config gives as a string or as AddedToken fields."""
    return token.get("content") if isinstance(token, dict) else token


def _config_ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _special_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The special tokens with a role (`bos_token`, but also `image_token`), and those without.

    As in transformers 5: `special_tokens_map.json` is read only without an `added_tokens_decoder`, and then overrides
    `tokenizer_config.json`. Other roles than the usual are fields that end in `_token`, and those of
    `extra_special_tokens` or `model_specific_special_tokens`.
    """
    fields = dict(config)
    if not fields.get("extra_special_tokens") and "additional_special_tokens" in fields:
        fields["extra_special_tokens"] = fields.pop("additional_special_tokens")
    extra = fields.pop("extra_special_tokens", None)
    own = {key: fields.pop(key) for key in config if _is_extra_role(key) and isinstance(config[key], str)}
    if isinstance(extra, dict):
        own, extra = own | extra, None
    own = own or dict(fields.get("model_specific_special_tokens") or {})
    if config.get("added_tokens_decoder") is None:
        more = special_map.get("extra_special_tokens")
        if isinstance(more, dict):
            own, extra = own | more, None
        elif more is not None:
            extra = [*(extra or []), *(token for token in more if token not in (extra or []))]
        fields |= special_map
    if extra is None:
        extra = fields.get("additional_special_tokens") or []
    own = {key: value for key, value in fields.items() if _is_extra_role(key) and isinstance(value, str | dict)} | own
    named = {role: fields[role] for role in _SPECIAL_TOKENS if role in fields} | own
    return named, [token for token in extra if _content(token)]


def _is_extra_role(key: str) -> bool:
    return key.endswith("_token") and key not in _SPECIAL_TOKENS


def _added_token(token: Any, number: int | None = None, *, special: bool = True) -> TokenSpec:
    """A token of a config. special: the default, for tokens given as text alone."""
    fields = token if isinstance(token, dict) else {}
    special = bool(fields.get("special", special))
    flags = {name: bool(fields.get(name, name == "normalized" and not special)) for name in TOKEN_FLAGS}
    return TokenSpec(str(_content(token)), number, special, flags)


def _added_tokens(
    config: Mapping[str, Any],
    named: Mapping[str, Any],
    unnamed: Sequence[Any],
    added: Mapping[str, int],
    present: Mapping[int, TokenSpec],
) -> list[TokenSpec]:
    """The added tokens of the files beside the vocabulary: those with an id by id, then the rest.

    present: the added tokens of `tokenizer.json`, by id; `added_tokens_decoder` overrides their flags. A token with a
    role is special; one in a list keeps its flag.
    """
    texts = {_content(token) for token in named.values()}
    if (decoder := config.get("added_tokens_decoder")) is not None:
        by_id = {int(number): _added_token(token, int(number), special=False) for number, token in decoder.items()}
    else:
        listed = texts | {_content(token) for token in unnamed}
        by_id = {number: _added_token(content, number, special=content in listed) for content, number in added.items()}
        by_id |= present
    tokens = {token.content: token for _, token in sorted(by_id.items())}
    tokens = {content: replace(token, special=token.special or content in texts) for content, token in tokens.items()}
    known = tokens.keys() | {token.content for token in present.values()}
    spellings: list[Any] = []  # if a token has several, the last counts
    for token in (*named.values(), *unnamed):
        if (content := _content(token)) and content not in known and token not in spellings:
            spellings.append(token)
    found = [_added_token(token) for token in spellings]
    return [*tokens.values(), *(replace(token, special=token.special or token.content in texts) for token in found)]


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint's templates by name; a single one is `default`. Template files override the config's."""
    files = {"default": folder / _TEMPLATE} if (folder / _TEMPLATE).is_file() else {}
    files |= {file.name.removesuffix(".jinja"): file for file in sorted((folder / _NAMED_TEMPLATES).glob("*.jinja"))}
    if files:
        return {name: read_text(file) for name, file in files.items()}
    template = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    try:
        named = {entry["name"]: entry["template"] for entry in template} if isinstance(template, list) else template
    except (KeyError, TypeError):
        raise ValueError(f"{folder}: chat_template is a list, whose entries need a name and a template") from None
    return named if isinstance(named, dict) else {"default": named} if named else {}


def _open_fast(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    check_readable(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for everything
        raise ValueError(f"{path} cannot be read as a tokenizer ({error}); download or copy the file again") from None


def _present(core: tokenizers.Tokenizer) -> dict[int, TokenSpec]:
    """The added tokens of a `tokenizer.json`."""
    return {
        number: TokenSpec(token.content, number, token.special, {f: getattr(token, f) for f in TOKEN_FLAGS})
        for number, token in core.get_added_tokens_decoder().items()
    }


def _load_fast(
    path: Path, core: tokenizers.Tokenizer, added: list[TokenSpec], config: Mapping[str, Any]
) -> FastBackend:
    from tokenizers import AddedToken

    wrong = []
    core.add_tokens([AddedToken(token.content, special=token.special, **token.flags) for token in added])
    for token in added:
        number = core.token_to_id(token.content)
        if token.id is not None and number != token.id:
            wrong.append(f"{token.content!r} has id {number} in {path.name}, {token.id} in the files beside it")
    if wrong:
        raise ValueError(f"{path.parent}: the tokenizer files do not belong together: {'; '.join(wrong[:5])}")
    core.encode_special_tokens = bool(config.get("split_special_tokens", False))
    return FastBackend(core)


def _load_sentencepiece(path: Path, added: list[TokenSpec], config: Mapping[str, Any]) -> SentencePieceBackend:
    if config.get("sp_model_kwargs"):
        raise ValueError(
            f"{path.parent}/tokenizer_config.json: sp_model_kwargs={config['sp_model_kwargs']} is not supported"
        )
    check_readable(path)
    try:
        return SentencePieceBackend(path.read_bytes(), added, legacy=bool(config.get("legacy", False)))
    except Exception as error:  # protobuf and sentencepiece raise several unrelated types
        raise ValueError(f"{path} is not a SentencePiece model ({error}); download or copy the file again") from None


def _read_dir(folder: Path) -> tuple[Backend, TokenizerMetadata]:
    present = [name for name in _VOCABULARY_FILES if (folder / name).is_file()]
    if not present:
        state = "holds no tokenizer" if folder.is_dir() else "is no directory"
        raise ValueError(
            f"{folder} {state}: looked for {' and '.join(_VOCABULARY_FILES)}. Download the checkpoint with `litlm "
            "download <model>`, or copy one of them, and tokenizer_config.json, from its base model."
        )
    config, special_map = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "special_tokens_map.json")
    generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    named, unnamed = _special_tokens(config, special_map)
    listed = _read_json(folder / "added_tokens.json")
    backend: Backend
    if present[0] == "tokenizer.json":
        core = _open_fast(folder / "tokenizer.json")
        added = _added_tokens(config, named, unnamed, listed, _present(core))
        backend = _load_fast(folder / "tokenizer.json", core, added, config)
    else:
        added = _added_tokens(config, named, unnamed, listed, {})
        backend = _load_sentencepiece(folder / "tokenizer.model", added, config)

    names = {role: _content(token) for role, token in named.items()}
    if isinstance(backend, SentencePieceBackend):
        names = backend.special_tokens() | names
    special_tokens = {role: text for role in (*_SPECIAL_TOKENS, *names) if (text := names.get(role))}

    def ids_of(role: str) -> list[int]:
        """Ids of a role: the tokenizer's own, then those of generation_config.json, else of config.json."""
        own = [backend.token_to_id(special_tokens[role])] if role in special_tokens else []
        more = _config_ids(generation.get(f"{role}_id")) or _config_ids(model.get(f"{role}_id"))
        return list(dict.fromkeys(token for token in [*own, *more] if token is not None))

    def single(role: str) -> int | None:
        is_null = role not in special_tokens and role in named  # "bos_token": null
        return None if is_null else next(iter(ids_of(role)), None)

    bos, eos = single("bos_token"), single("eos_token")
    if isinstance(backend, FastBackend):
        # transformers 5 ignores the post-processor for this class only.
        bare = str(config.get("tokenizer_class")).removesuffix("Fast") == "GPTNeoXTokenizer"
        prefix, suffix = ((), ()) if bare else backend.prefix_suffix()
    else:
        prefix = special_ids_if(bos, config.get("add_bos_token", True))
        suffix = special_ids_if(eos, config.get("add_eos_token", False))
    meta = TokenizerMetadata(
        special_tokens=special_tokens, bos_id=bos, eos_id=eos, pad_id=single("pad_token"),
        eos_ids=tuple(ids_of("eos_token")), prefix_ids=prefix, suffix_ids=suffix,
        chat_templates=_chat_templates(folder, config), source=folder,
    )  # fmt: skip
    return backend, meta
