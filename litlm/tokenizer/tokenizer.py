"""One `Tokenizer` for every checkpoint: `tokenizer.json`, SentencePiece's `tokenizer.model`, or a GGUF file's metadata.

Here are the class that everything else uses, and what the files of a Hugging Face directory mean. The libraries are
asked in `tokenizer_backends.py`; `checkpoint/gguf_tokenizer.py` rebuilds from GGUF. Unusual:
- Special tokens at the ends of a sequence are a constant prefix and suffix (`prefix_ids`, `suffix_ids`), so truncation
  keeps them, and prompts can take one without the other.
- Importing it loads nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from litlm.io.reading import check_readable, read_json, read_text
from litlm.io.writing import write_bytes, write_text
from litlm.tokenizer.backends import FLAGS, Added, Fast, Meta, SentencePiece, affix

if TYPE_CHECKING:
    import tokenizers

_FILES = ("tokenizer.json", "tokenizer.model")  # in order of preference
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
TEMPLATES = "additional_chat_templates"  # where transformers 5 keeps those with a name
FILES = (*_FILES, *_SIDE_FILES, f"{TEMPLATES}/*.jinja")  # all that a tokenizer may have in a directory
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Batch:
    """ids: one list of token ids per text. mask: same shape, 1 for a token of the text, 0 for padding."""

    ids: list[list[int]]
    mask: list[list[int]]


def holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def chat_templates_in(folder: Path) -> dict[str, str]:
    """The chat templates of a directory by name; it may hold no more than that."""
    return _chat_templates(folder, _read_json(folder / "tokenizer_config.json"))


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


class Tokenizer:
    """Text to token ids and back. Make one with `from_dir` or `from_gguf`.

    Attributes:
        vocab_size: ids are below this (added tokens included); the model's embedding may have more rows.
        bos_id, eos_id, pad_id: None where the checkpoint has none.
        eos_ids: every id that ends an answer, `eos_id` first, then those of `generation_config.json` or `config.json`.
        special_ids: ids that `decode(skip_special_tokens=True)` leaves out.
        special_tokens: roles to texts, e.g. {"eos_token": "<|im_end|>"}: what chat templates may refer to.
        prefix_ids, suffix_ids: what `add_special_tokens=True` puts around a text (usually a BOS or nothing).
        chat_templates: the checkpoint's own Jinja templates by name; one that has none is `default`.
    """

    def __init__(self, backend: _Backend, meta: Meta) -> None:
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
        self._grown = False

    @property
    def chat_template(self) -> str | None:
        """The template called `default`, or None. Raises ValueError where there are others and none of that name."""
        if self.chat_templates and "default" not in self.chat_templates:
            place = f"{self._meta.source / 'chat_template.jinja'}, or " if self._meta.source else ""
            raise ValueError(
                f"The tokenizer has the chat templates {', '.join(sorted(self.chat_templates))} and none called "
                f"default; put the one that you mean into {place}tokenizer.chat_template"
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

        `tokenizer.json` is preferred to `tokenizer.model`. What goes around a text is said by the post-processor of
        `tokenizer.json` (then `add_bos_token` in `tokenizer_config.json` is without effect, as in transformers 5), and
        beside a SentencePiece model by `add_bos_token` (absent: yes) and `add_eos_token` (absent: no). `legacy` is
        False where `tokenizer_config.json` does not say: only text at the very start gets SentencePiece's dummy space;
        with `legacy: true` so does text after each special token. Special tokens, their names and the flags of added
        tokens are read as transformers 5 reads them, from whichever file says them.

        Raises ValueError for a directory without a tokenizer, and for files that cannot be read.
        """
        return cls(*_read_dir(Path(path)))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any]) -> Tokenizer:
        """Rebuild the tokenizer from GGUF metadata: full key names (`tokenizer.ggml.tokens`, ...) to plain values.

        Kinds of `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `t5` (SentencePiece
        unigram). Raises ValueError for other kinds, unknown `tokenizer.ggml.pre` names, missing or inconsistent lists.
        """
        from litlm.tokenizer.gguf import rebuild

        return cls(*rebuild(fields))

    # --- text to ids --------------------------------------------------------------------------------------------
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text. Special tokens written in the text are recognised, whatever `add_special_tokens`.

        Text that has its own BOS (a rendered chat template, say) gets no second one, as the end gets no second EOS.
        """
        _check_texts([text])
        ids = self._backend.encode(text)
        return self.surround(ids) if add_special_tokens else ids

    def surround(self, ids: Sequence[int]) -> list[int]:
        """`prefix_ids`, the ids of a text and `suffix_ids`, where what the text has of them itself counts."""
        return [*self.prefix_ids, *self._bare(ids), *self.suffix_ids]

    def _bare(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids without those at either end that `surround` puts there."""
        prefix, suffix = self.prefix_ids, self.suffix_ids
        own = next(n for n in range(len(prefix), -1, -1) if tuple(ids[:n]) == prefix[len(prefix) - n :])
        ids = ids[own:]
        own = next(n for n in range(len(suffix), -1, -1) if tuple(ids[len(ids) - n :]) == suffix[:n])
        return ids[: len(ids) - own]

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
        if add_special_tokens:
            ids = [list(self._bare(row)) for row in ids]
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

    def add_tokens(self, texts: Sequence[str]) -> list[int]:
        """Make each text one token; returns their ids. New ones have the ids behind the last, which is `vocab_size`."""
        _check_texts(texts)
        if "" in texts:
            raise ValueError("a new token can't be empty")
        if not isinstance(self._backend, Fast):
            raise ValueError(
                "this tokenizer is a SentencePiece model (tokenizer.model), which takes no new tokens; convert it to a "
                "tokenizer.json first, as transformers does when it saves it"
            )
        ids = self._backend.add(texts)
        self.vocab_size, self._grown = self._backend.size, True
        return ids

    # --- to disk ------------------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a directory, for this class and for transformers.

        A tokenizer read from a directory is copied byte for byte, but for a `chat_template` that was changed. One
        rebuilt from GGUF is written as `tokenizer.json` or `tokenizer.model` with `tokenizer_config.json`.
        `generation_config.json`, where further `eos_ids` live, belongs to the model and is written with it.
        """
        folder = Path(path)
        source = self._meta.source
        if source is None:
            self._backend.write(folder)
            config = json.dumps(self._config(), indent=2, ensure_ascii=False)
            write_text(folder / "tokenizer_config.json", config + "\n")
            _remove_templates(folder)  # of an older tokenizer
            return
        changed = self.chat_templates != self._meta.chat_templates
        if source.resolve() == folder.resolve() and not self._grown and not changed:
            return
        found = _files_of(source)
        if not any(name in found for name in _FILES):
            raise ValueError(f"{source}: the tokenizer files that were loaded from here are gone; cannot copy them")
        for name in found:
            write_bytes(folder / name, (source / name).read_bytes())
        if self._grown:
            self._backend.write(folder)
        for name in set(_files_of(folder)) - set(found):  # an older tokenizer's would be read together with these
            (folder / name).unlink()
        if changed:
            self._save_templates(folder)

    def _save_templates(self, folder: Path) -> None:
        """Put the chat templates in the place of all that the directory has."""
        place = folder / "tokenizer_config.json"
        config = _read_json(place)
        if config.pop("chat_template", None) is not None:
            write_text(place, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        _remove_templates(folder)
        for name, template in self.chat_templates.items():
            file = folder / (_TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja")
            file.parent.mkdir(exist_ok=True)
            write_text(file, template)

    def _config(self) -> dict[str, Any]:
        fast = isinstance(self._backend, Fast)
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


def outside(ids: Iterable[int], rows: int, tokenizer: Tokenizer | None = None) -> str:
    """What to say of the token ids for which an embedding has no row; "" where there are none."""
    wrong = sorted({int(token) for token in ids if not 0 <= token < rows})
    if not wrong:
        return ""
    texts = [None if tokenizer is None else tokenizer.id_to_token(token) for token in wrong[:5]]
    named = ", ".join(str(n) if text is None else f"{n} ({text!r})" for n, text in zip(wrong, texts, strict=False))
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return f"token ids outside 0 to {rows - 1}, the rows of the model's embedding: {named}{more}"


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
    """The files of a tokenizer that are in a directory."""
    named = sorted(f"{TEMPLATES}/{file.name}" for file in (folder / TEMPLATES).glob("*.jinja"))
    return [name for name in (*_FILES, *_SIDE_FILES) if (folder / name).is_file()] + named


def _remove_templates(folder: Path) -> None:
    """The files that hold nothing else."""
    for file in (folder / _TEMPLATE, folder / "chat_template.json", *(folder / TEMPLATES).glob("*.jinja")):
        file.unlink(missing_ok=True)


def _padded(row: list[int], width: int, value: int, side: str) -> list[int]:
    fill = [value] * (width - len(row))
    return row + fill if side == "right" else fill + row


# --- reading a Hugging Face directory -----------------------------------------------------------------------------
def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str | None:
    """The text of a token that a config gives as a string or as AddedToken fields."""
    return token.get("content") if isinstance(token, dict) else token


def _config_ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _tokens_said(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The special tokens that have a name (`bos_token`, but also `image_token`), and those that have none.

    As transformers 5 reads them: `special_tokens_map.json` counts where `added_tokens_decoder` is missing, and then
    more than `tokenizer_config.json`. Names beyond the usual come from fields that end in `_token`, and from
    `extra_special_tokens` or `model_specific_special_tokens`.
    """
    said = dict(config)
    if not said.get("extra_special_tokens") and "additional_special_tokens" in said:
        said["extra_special_tokens"] = said.pop("additional_special_tokens")
    extra = said.pop("extra_special_tokens", None)
    own = {key: said.pop(key) for key in config if _is_name(key) and isinstance(config[key], str)}
    if isinstance(extra, dict):
        own, extra = own | extra, None
    own = own or dict(said.get("model_specific_special_tokens") or {})
    if config.get("added_tokens_decoder") is None:
        more = special_map.get("extra_special_tokens")
        if isinstance(more, dict):
            own, extra = own | more, None
        elif more is not None:
            extra = [*(extra or []), *(token for token in more if token not in (extra or []))]
        said |= special_map
    if extra is None:
        extra = said.get("additional_special_tokens") or []
    own = {key: value for key, value in said.items() if _is_name(key) and isinstance(value, str | dict)} | own
    named = {role: said[role] for role in _NAMED if role in said} | own
    return named, [token for token in extra if _content(token)]


def _is_name(key: str) -> bool:
    return key.endswith("_token") and key not in _NAMED


def _added(token: Any, number: int | None = None, *, special: bool = True) -> Added:
    """A token from a config. A text alone is special (unless said otherwise), and matched as it is written."""
    fields = token if isinstance(token, dict) else {}
    special = bool(fields.get("special", special))
    flags = {name: bool(fields.get(name, name == "normalized" and not special)) for name in FLAGS}
    return Added(str(_content(token)), number, special, flags)


def _added_tokens(
    config: Mapping[str, Any],
    named: Mapping[str, Any],
    unnamed: Sequence[Any],
    added: Mapping[str, int],
    present: Mapping[int, Added],
) -> list[Added]:
    """What the files beside the vocabulary make of its added tokens: those with an id by id, then the rest.

    present: the added tokens of `tokenizer.json`, by id. `added_tokens_decoder` changes their flags. A token that has
    a name is special; one in a list keeps the flag that it has.
    """
    texts = {_content(token) for token in named.values()}
    if (decoder := config.get("added_tokens_decoder")) is not None:
        by_id = {int(number): _added(token, int(number), special=False) for number, token in decoder.items()}
    else:
        listed = texts | {_content(token) for token in unnamed}
        by_id = {number: _added(content, number, special=content in listed) for content, number in added.items()}
        by_id |= present
    tokens = {token.content: token for _, token in sorted(by_id.items())}
    tokens = {content: replace(token, special=token.special or content in texts) for content, token in tokens.items()}
    known = tokens.keys() | {token.content for token in present.values()}
    spellings: list[Any] = []  # of several for one token the last one counts
    for token in (*named.values(), *unnamed):
        if (content := _content(token)) and content not in known and token not in spellings:
            spellings.append(token)
    found = [_added(token) for token in spellings]
    return [*tokens.values(), *(replace(token, special=token.special or token.content in texts) for token in found)]


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint's templates by name; one alone is `default`. Where there are files of templates, they are all."""
    files = {"default": folder / _TEMPLATE} if (folder / _TEMPLATE).is_file() else {}
    files |= {file.name.removesuffix(".jinja"): file for file in sorted((folder / TEMPLATES).glob("*.jinja"))}
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


def _present(core: tokenizers.Tokenizer) -> dict[int, Added]:
    """The added tokens of a `tokenizer.json`."""
    return {
        number: Added(token.content, number, token.special, {name: getattr(token, name) for name in FLAGS})
        for number, token in core.get_added_tokens_decoder().items()
    }


def _load_fast(path: Path, core: tokenizers.Tokenizer, added: list[Added], config: Mapping[str, Any]) -> Fast:
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
    return Fast(core)


def _load_sentencepiece(path: Path, added: list[Added], config: Mapping[str, Any]) -> SentencePiece:
    if config.get("sp_model_kwargs"):
        raise ValueError(
            f"{path.parent}/tokenizer_config.json: sp_model_kwargs={config['sp_model_kwargs']} is not supported"
        )
    check_readable(path)
    try:
        return SentencePiece(path.read_bytes(), added, legacy=bool(config.get("legacy", False)))
    except Exception as error:  # protobuf and sentencepiece raise several unrelated types
        raise ValueError(f"{path} is no SentencePiece model ({error}); download or copy the file again") from None


def _read_dir(folder: Path) -> tuple[Fast | SentencePiece, Meta]:
    present = [name for name in _FILES if (folder / name).is_file()]
    if not present:
        state = "holds no tokenizer" if folder.is_dir() else "is no directory"
        raise ValueError(
            f"{folder} {state}: looked for {' and '.join(_FILES)}. Fetch the checkpoint with `litlm download <model>`, "
            "or copy one of them, and tokenizer_config.json, from the model that this one was made from."
        )
    config, special_map = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "special_tokens_map.json")
    generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    named, unnamed = _tokens_said(config, special_map)
    listed = _read_json(folder / "added_tokens.json")
    backend: Fast | SentencePiece
    if present[0] == "tokenizer.json":
        core = _open_fast(folder / "tokenizer.json")
        added = _added_tokens(config, named, unnamed, listed, _present(core))
        backend = _load_fast(folder / "tokenizer.json", core, added, config)
    else:
        added = _added_tokens(config, named, unnamed, listed, {})
        backend = _load_sentencepiece(folder / "tokenizer.model", added, config)

    names = {role: _content(token) for role, token in named.items()}
    if isinstance(backend, SentencePiece):
        names = backend.named() | names
    special_tokens = {role: text for role in (*_NAMED, *names) if (text := names.get(role))}

    def ids_of(role: str) -> list[int]:
        """Ids for a role: the tokenizer's own word, then generation_config.json's or else config.json's."""
        own = [backend.token_to_id(special_tokens[role])] if role in special_tokens else []
        more = _config_ids(generation.get(f"{role}_id")) or _config_ids(model.get(f"{role}_id"))
        return list(dict.fromkeys(token for token in [*own, *more] if token is not None))

    def single(role: str) -> int | None:
        silent = role not in special_tokens and role in named  # "bos_token": null
        return None if silent else next(iter(ids_of(role)), None)

    bos, eos = single("bos_token"), single("eos_token")
    if isinstance(backend, Fast):
        # transformers 5 gives this class, and no other, a post-processor that adds nothing.
        bare = str(config.get("tokenizer_class")).removesuffix("Fast") == "GPTNeoXTokenizer"
        prefix, suffix = ((), ()) if bare else backend.prefix_suffix()
    else:
        prefix, suffix = affix(bos, config.get("add_bos_token", True)), affix(eos, config.get("add_eos_token", False))
    meta = Meta(
        special_tokens=special_tokens, bos_id=bos, eos_id=eos, pad_id=single("pad_token"),
        eos_ids=tuple(ids_of("eos_token")), prefix_ids=prefix, suffix_ids=suffix,
        chat_templates=_chat_templates(folder, config), source=folder,
    )  # fmt: skip
    return backend, meta
