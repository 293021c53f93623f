"""The tokenizer that a GGUF file's metadata describes, rebuilt as the object its checkpoint had before conversion.

That is byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` names, or a SentencePiece model, so that text
gives the ids the model was trained on. Unusual: takes the metadata as a mapping and reads no file, and imports neither
torch nor the `gguf` package. `Tokenizer.from_gguf` is the way in.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litlm.tokenizer_backends import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Fast,
    Meta,
    SentencePiece,
    affix,
    model_proto,
)

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


def rebuild(fields: Mapping[str, Any]) -> tuple[Fast | SentencePiece, Meta]:
    """What `Tokenizer.from_gguf` is made of; see there for `fields` and the errors."""

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
    types = [int(t) for t in get("token_type", [NORMAL] * len(tokens))]
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

    backend: Fast | SentencePiece
    if kind == "gpt2":
        backend, add_bos = _byte_level(tokens, types, get("merges"), get("pre"))
        add_eos = False
    else:
        backend = _sentencepiece(tokens, types, ids, fields)
        add_bos, add_eos = kind == "llama", kind == "t5"
    roles = dict(bos_token="bos", eos_token="eos", unk_token="unknown", pad_token="padding")
    ends = [ids["eos"], ids["eot"], ids["eom"]]
    ends += [i for i, token in enumerate(tokens) if types[i] == CONTROL and token in _END_TEXTS]
    meta = Meta(
        special_tokens={role: tokens[i] for role, key in roles.items() if (i := ids[key]) is not None},
        bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["padding"],
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        prefix_ids=affix(ids["bos"], get("add_bos_token", add_bos)),
        suffix_ids=affix(ids["eos"], get("add_eos_token", add_eos)),
        chat_template=fields.get("tokenizer.chat_template"),
    )  # fmt: skip
    if isinstance(backend, Fast):
        backend.set_prefix_suffix(meta.prefix_ids, meta.suffix_ids)
    return backend, meta


def _byte_level(tokens: list[str], types: list[int], merges: Sequence[str], name: str | None) -> tuple[Fast, bool]:
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
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return Fast(core), pre.add_bos


def _sentencepiece(
    tokens: list[str], types: list[int], ids: Mapping[str, int | None], fields: Mapping[str, Any]
) -> SentencePiece:
    """A SentencePiece model file's content, as its training left it."""
    unigram = fields["tokenizer.ggml.model"] == "t5"
    proto = model_proto()
    scores = fields["tokenizer.ggml.scores"]
    types = list(types)
    if UNKNOWN not in types:
        types[ids["unknown"] or 0] = UNKNOWN  # the library insists on one
    for token, score, kind in zip(tokens, scores, types, strict=True):
        # GGUF stores user-defined pieces with plain spaces; the model matches them in escaped text
        piece = token.replace(" ", SPACE) if kind == USER_DEFINED else token
        proto.pieces.add(piece=piece, score=float(score), type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = 1 if unigram else 2
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = BYTE in types
    for role, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = types.index(UNKNOWN) if role == "unk" else ids[key]
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
        return SentencePiece(proto.SerializeToString())
    except RuntimeError as error:
        raise ValueError(f"The GGUF's vocabulary makes no SentencePiece model ({error})") from None
