"""Rebuilds the tokenizer of a GGUF file's metadata: byte-level BPE, or a SentencePiece model.

The pre-tokenizer that `tokenizer.ggml.pre` names is restored, so text gets the ids that the model was trained on. Takes
the metadata as a mapping and imports neither torch nor the `gguf` package; used by `Tokenizer.from_gguf`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litlm.tokenizer.backends import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Backend,
    FastBackend,
    SentencePieceBackend,
    TokenizerMetadata,
    model_proto,
    special_ids_if,
)

_UNUSED = 5  # a piece type that only this file needs
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
_SHORT_TAIL = r"\s*[\r\n]|\s+(?!\S)|\s+"
_JAIS2 = _CONTRACTIONS + _WORD + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
_JAIS2 += "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
_MINICPM5 = _CONTRACTIONS + _WORD + r"\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_SEED = _CONTRACTIONS + _WORD + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _TAIL
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|" + _SHORT_TAIL
_EXAONE_MOE = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|"
    + _SHORT_TAIL
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_YOUTU = "[\uac00-\ud7a3\u3131-\u318e]+|"
_YOUTU += "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|"
_YOUTU += "[\u3105-\u312f]+|" + _CJK
_YOUTU2 = f"{_TITLE}{_CONTRACTIONS}?|{_CAPS}{_CONTRACTIONS}?" + r"|\p{N}" + _MORE
_SPARK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_SPARK += r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
_KIMI_UPPER, _KIMI_LOWER = (f"[{case}&&[^\\p{{Han}}]]" for case in (_UPPER, _LOWER))
_KIMI = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
)
# DeepSeek-LLM's list of letters that have a case.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DIGITS, _GPT2 = "digits", "gpt2"  # named steps of the library; so are "numbers" and "punctuation"


@dataclass(frozen=True)
class _PreTokenizer:
    """The parts of `tokenizer.json` that GGUF does not store, which `tokenizer.ggml.pre` stands for.

    steps: regexes (each match is split off) or named steps, applied in order. nfc: apply Unicode NFC first.
    ignore_merges: a word that is in the vocabulary is one token. add_bos: if `add_bos_token` is absent.
    """

    steps: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


# From these families' tokenizer.json files and llama.cpp's list of names (which ignores nfc). Not included: llama.cpp's
# names for encoders (jina-v1-en, roberta-bpe, ...), for BPE without bytes (gemma4, sarvam-moe) and afmoe.
_PRE: dict[str, _PreTokenizer] = (
    dict.fromkeys(
        ("gpt-2", "phi-2", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum", "jina-es",
         "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert"),
        _PreTokenizer((_GPT2,)),
    )
    | dict.fromkeys(("olmo", "mpt"), _PreTokenizer((_GPT2,), nfc=True))  # both use GPT-NeoX's tokenizer
    | dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _PreTokenizer((_DIGITS, _GPT2)),
    )
    | {"command-r": _PreTokenizer((_DIGITS, _GPT2), nfc=True)}
    | {"falcon": _PreTokenizer(("punctuation", _GPT2, "numbers", "[0-9][0-9][0-9]"))}
    | dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    )
    | dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _PreTokenizer((_LLAMA3,)))
    | dict.fromkeys(("glm4", "glm5"), _PreTokenizer((_LLAMA3,), ignore_merges=True))
    | {"jais-2": _PreTokenizer((_JAIS2,)), "minicpm5": _PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True)}
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "f2llmv2"), _PreTokenizer((_QWEN2,), nfc=True))
    | dict.fromkeys(("kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"), _PreTokenizer((_QWEN2,)))
    | {"qwen35": _PreTokenizer((_QWEN35,), nfc=True), "laguna": _PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))}
    | {"ufakzeka": _PreTokenizer((_QWEN2.removeprefix(_CONTRACTIONS + "|"),)), "seed-coder": _PreTokenizer((_SEED,))}
    | {"tekken": _PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)}
    | dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _PreTokenizer((_O200K,)))
    | {"granite-embed-multi-97m": _PreTokenizer((_O200K,), ignore_merges=True)}
    | dict.fromkeys(("tiny_aya", "cohere2moe"), _PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K)))
    | dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK_V3))
    )
    | {"spark2_5": _PreTokenizer((r"\p{N}{1,3}", _CJK, _SPARK, r"\p{N}"))}
    | {"youtu": _PreTokenizer((_YOUTU, _YOUTU2), ignore_merges=True), "kimi-k2": _PreTokenizer((_KIMI,))}
    | dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _PreTokenizer((_BAILING,)))
    | {"exaone-moe": _PreTokenizer((_EXAONE_MOE,)), "superbpe": _PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))}
    | dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _PreTokenizer((_BLOOM,)))
    | {"viking": _PreTokenizer((_BLOOM, _DIGITS))}
    | {
        "chameleon": _PreTokenizer(
            ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", _DIGITS,
             r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
            add_bos=True,
        ),
        "deepseek-llm": _PreTokenizer(
            (r"[\r\n]", rf"\s?[{_CASED}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
             r"\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+")
        ),
        "deepseek-coder": _PreTokenizer(
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", _DIGITS)
        ),
    }
)  # fmt: skip
# Tokens that end an answer; GGUF names at most three of them by id.
_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<|end_of_text|>", "<end_of_utterance>",
)  # fmt: skip


def rebuild(fields: Mapping[str, Any]) -> tuple[Backend, TokenizerMetadata]:
    """Backend and metadata for `Tokenizer.from_gguf`, which describes `fields`. Raises ValueError as it does."""

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    model_type = get("model")
    if model_type not in ("gpt2", "llama", "t5"):
        raise ValueError(
            f"tokenizer.ggml.model={model_type!r}: only 'gpt2', 'llama' and 't5' tokenizers can be rebuilt from GGUF"
        )
    needed = ("tokens", "merges") if model_type == "gpt2" else ("tokens", "scores", "token_type")
    missing = [f"tokenizer.ggml.{name}" for name in needed if get(name) is None]
    if missing:
        raise ValueError(f"The GGUF metadata lacks {', '.join(missing)}, which a {model_type!r} tokenizer needs")
    # some converters pad the vocabulary with empty strings, which neither library accepts
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(get("tokens"))]
    types = [int(t) for t in get("token_type", [NORMAL] * len(tokens))]
    problems = [
        f"tokenizer.ggml.{name} has {len(get(name))} entries for {len(tokens)} tokens"
        for name in ("token_type", "scores")
        if get(name) is not None and len(get(name)) != len(tokens)
    ]
    ids: dict[str, int | None] = {}
    for key in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask"):  # its own spelling
        value = get(f"{key}_token_id")
        ids[key] = None if value is None else int(value)
        if value is not None and not 0 <= value < len(tokens):
            problems.append(f"tokenizer.ggml.{key}_token_id={value} is outside the vocabulary of {len(tokens)}")
    if len(set(tokens)) < len(tokens):
        twice = sorted(token for token, count in Counter(tokens).items() if count > 1)
        problems.append(f"tokenizer.ggml.tokens lists {', '.join(map(repr, twice[:5]))} more than once")
    if problems:
        raise ValueError("; ".join(problems))

    backend: Backend
    if model_type == "gpt2":
        backend, add_bos = _byte_level(tokens, types, get("merges"), get("pre"))
        add_eos = False
    else:
        backend = _sentencepiece(tokens, types, ids, fields)
        add_bos, add_eos = model_type == "llama", model_type == "t5"
    roles = dict(
        bos_token="bos", eos_token="eos", unk_token="unknown", sep_token="seperator", pad_token="padding",
        cls_token="cls", mask_token="mask",
    )  # fmt: skip
    ends = [ids["eos"], ids["eot"], ids["eom"]]
    ends += [i for i, token in enumerate(tokens) if types[i] == CONTROL and token in _END_TEXTS]
    meta = TokenizerMetadata(
        special_tokens={role: tokens[i] for role, key in roles.items() if (i := ids[key]) is not None},
        bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["padding"],
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        prefix_ids=special_ids_if(ids["bos"], get("add_bos_token", add_bos)),
        suffix_ids=special_ids_if(ids["eos"], get("add_eos_token", add_eos)),
        chat_templates=_chat_templates(fields),
    )  # fmt: skip
    if isinstance(backend, FastBackend):
        backend.set_prefix_suffix(meta.prefix_ids, meta.suffix_ids)
    return backend, meta


def _chat_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name. The default has no name in GGUF; `tokenizer.chat_templates` lists the others."""
    key = "tokenizer.chat_template"
    named = {name: fields[f"{key}.{name}"] for name in fields.get(f"{key}s") or () if f"{key}.{name}" in fields}
    return ({"default": fields[key]} if fields.get(key) else {}) | named


def _byte_level(
    tokens: list[str], types: list[int], merges: Sequence[str], name: str | None
) -> tuple[FastBackend, bool]:
    """Byte-level BPE, and whether models with this pre-tokenizer add a BOS."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if name in (None, "default"):
        warnings.warn(
            f"tokenizer.ggml.pre is {name!r}: the file does not name its pre-tokenizer; using GPT-2's. Convert the "
            "model again with a current converter if numbers or punctuation tokenize oddly.",
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
            AddedToken(token, special=piece_type == CONTROL, normalized=False)
            for token, piece_type in zip(tokens, types, strict=True)
            if piece_type in (CONTROL, USER_DEFINED)
        ]
    )
    return FastBackend(core), pre.add_bos


def _sentencepiece(
    tokens: list[str], types: list[int], ids: Mapping[str, int | None], fields: Mapping[str, Any]
) -> SentencePieceBackend:
    """The SentencePiece model file, restored."""
    unigram = fields["tokenizer.ggml.model"] == "t5"
    proto = model_proto()
    scores = fields["tokenizer.ggml.scores"]
    # The library requires exactly one unknown piece; some files mark the vocabulary's padding as unknown too.
    padding = [
        piece_type == UNKNOWN and token.startswith("[PAD") for token, piece_type in zip(tokens, types, strict=True)
    ]
    types = [_UNUSED if is_padding else piece_type for piece_type, is_padding in zip(types, padding, strict=True)]
    if UNKNOWN not in types:
        types[ids["unknown"] or 0] = UNKNOWN
    for token, score, piece_type in zip(tokens, scores, types, strict=True):
        # GGUF stores user-defined pieces with plain spaces; the model matches escaped text
        piece = token.replace(" ", SPACE) if piece_type == USER_DEFINED else token
        proto.pieces.add(piece=piece, score=float(score), type=piece_type)
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
        return SentencePieceBackend(proto.SerializeToString())
    except RuntimeError as error:
        raise ValueError(f"The GGUF's vocabulary makes no SentencePiece model ({error})") from None
