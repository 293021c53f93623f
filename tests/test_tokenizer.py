"""The tokenizer against the libraries whose results it must give: transformers, tokenizers, sentencepiece, tiktoken."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from litlm.tokenizer import Tokenizer

MISTRAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"  # one emoji of seven code points
ODD_TEXTS = [
    "", " ", "  ", "\n", "\t\n \n", "a", " a", "  a  b   c ", "Hello world", "don't DON'T we'll I'M", "x=12345.678e-9",
    "½ ² ٣٤٥ 一二三 Ⅻ", "naïve café Ångström e\u0301 \u1e9b\u0323", "你好，世界！", "日本語のテキスト カタカナ",
    f"{FAMILY} \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7",
    "\u200d\ufeff\u00a0\u3000x\u2028y", "नमस्ते हिन्दी", "مرحبا بالعالم", "a\x00b\x7f\x80",
    "\r\n\r\n  \r\nend\r", "▁▁a ▁ b", "\ufffd real replacement \ufffd", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "def f(x):\n        return  x**2\n\n\n", "<|im_start|>user\nHi<|im_end|>",
]  # fmt: skip


def stdlib_files() -> list[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))


def stdlib_texts(count: int | None) -> list[str]:
    """That many of the standard library's sources (None: all), up to a third of them with non-ASCII characters."""
    texts, unusual = [], []
    files = [file for file in stdlib_files() if "site-packages" not in file.parts]
    step = 1 if count is None else max(len(files) // (3 * count), 1)
    for file in files[::step]:
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if count is None or len(text) < 20_000:
            (texts if text.isascii() else unusual).append(text)
    if count is None:
        return texts + unusual
    return (unusual[: count // 3] + texts)[:count]


def odd_strings(seed: int, count: int = 60) -> list[str]:
    """Random mixtures of scripts, digits, spaces, emoji sequences and combining marks."""
    rng = random.Random(seed)
    pool = [
        *"abcXYZ 0123456789.,!?'()_-\n\t\r", *"éßñçøĀſ", *"你好世界日本語かな한국", *"\U0001f600\U0001f917", FAMILY,
        "\U0001f1eb\U0001f1f7", "e\u0301", "\u0308", "\u200d", "\u00a0", "٣", "½", "\U00010348", "  ", "    ", "\n\n",
        "'ll", "'S", "▁", "<s>x", "\ufffd", "the ", " return",
    ]  # fmt: skip
    return ["".join(rng.choices(pool, k=rng.randrange(1, 40))) for _ in range(count)]


# --- tokenizer.json files of our own --------------------------------------------------------------------------------
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def train(core: tokenizers.Tokenizer, special: list[str], size: int = 1500, **more: Any) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **more)
    core.train_from_iterator(stdlib_texts(40) + ODD_TEXTS, trainer)
    return core


def build_byte_level(folder: Path) -> None:
    """A BOS from the post-processor, added tokens with spaces and with non-ASCII characters."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    train(core, ["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.add_tokens(
        ["<think>", "two words", "naïve", AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    core.save(str(folder / "tokenizer.json"))
    config = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False)
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def build_split(folder: Path) -> None:
    """Llama 3's pattern, NFC, trimmed offsets; tokenizer_config.json asks for a BOS in vain, and adds a token."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    train(core, ["<|begin|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.add_special_tokens(["<|eot|>"])
    core.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False) | {"special": True}
    eot = {"__type": "AddedToken", "content": "<|eot|>", **flags}
    config: dict[str, Any] = dict(bos_token="<|begin|>", eos_token=eot, add_bos_token=True, add_eos_token=True)
    extra = str(core.get_vocab_size())
    decoder = {extra: {"content": "<|extra|>", **flags}, "0": {"content": "<|begin|>", **flags}}
    config |= dict(added_tokens_decoder=decoder, tokenizer_class="PreTrainedTokenizerFast")
    write_json(folder / "tokenizer_config.json", config)


def build_metaspace(folder: Path) -> None:
    """Llama's shape: spaces as ▁, byte fallback, the first space stripped by the decoder."""
    core = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False, max_token_length=12)
    core.train_from_iterator([word for text in stdlib_texts(10) for word in text.split("\n")], trainer)
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    state["added_tokens"].append(state["added_tokens"][0] | {"id": len(state["model"]["vocab"]), "content": "<|eot|>"})
    state["added_tokens"][-1]["special"] = False  # until its role says otherwise
    write_json(folder / "tokenizer.json", state)
    config = dict(bos_token="<s>", eos_token="<|eot|>", unk_token="<unk>", tokenizer_class="PreTrainedTokenizerFast")
    write_json(folder / "tokenizer_config.json", config)


def build_wordpiece(folder: Path) -> None:
    """A decoder with glue between tokens, and special tokens on both sides."""
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        stdlib_texts(10), trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    core.save(str(folder / "tokenizer.json"))
    config = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    write_json(folder / "special_tokens_map.json", config)
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


BUILDERS = dict(byte_level=build_byte_level, split=build_split, metaspace=build_metaspace, wordpiece=build_wordpiece)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories with a tokenizer each: those built above, and Mistral's SentencePiece models."""
    root = tmp_path_factory.mktemp("tokenizers")
    result = {}
    for name, build in BUILDERS.items():
        result[name] = root / name
        result[name].mkdir()
        build(result[name])
    for name in MISTRAL:
        result[name] = root / name
        result[name].mkdir()
        (result[name] / "tokenizer.model").write_bytes(mistral_file(name).read_bytes())
    return result


def mistral_file(name: str) -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / name


@pytest.fixture(scope="session")
def gguf_fields(smollm2_gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(smollm2_gguf)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


def smollm2_reference(fields: dict[str, Any]) -> tokenizers.Tokenizer:
    """SmolLM2's tokenizer.json put together by hand: digits one by one, then GPT-2's byte-level BPE."""
    vocabulary = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [token for token, kind in zip(vocabulary, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    )
    return core


def hf(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def once(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """What transformers encodes, without the BOS or EOS that it doubles where the text has one."""
    prefix, suffix = list(tokenizer.prefix_ids), list(tokenizer.suffix_ids)
    if prefix and ids[1:2] == prefix:
        ids = ids[1:]
    return ids[:-1] if suffix and ids[-2:-1] == suffix else ids


# --- equality with transformers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BUILDERS)
def test_tokenizer_json_equals_transformers(folders: dict[str, Path], name: str) -> None:
    ours, theirs = Tokenizer.from_dir(folders[name]), hf(folders[name])
    ids: list[int] = []
    for text in stdlib_texts(200 if name == "byte_level" else 20):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    texts = ODD_TEXTS + [text for seed in range(2) for text in odd_strings(seed)]
    texts += ["<s>a</s> two words naïve <think>", "x <left> y <right> z", "<|begin|>a<|eot|><|extra|>", "[CLS] a[SEP]"]
    for text in texts:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == (once(ids, ours) if special else ids)
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(ids, skip_special_tokens=skip) == expected
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.special_tokens == theirs.special_tokens_map


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte_level", "split"])
def test_every_stdlib_file(folders: dict[str, Path], name: str) -> None:
    ours, theirs = Tokenizer.from_dir(folders[name]), hf(folders[name])
    for text in stdlib_texts(None):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("name", ["byte_level", "split", "wordpiece"])
@pytest.mark.parametrize("truncate", ["right", "left"])
@pytest.mark.parametrize("pad", ["right", "left"])
def test_batches_equal_transformers(folders: dict[str, Path], name: str, truncate: str, pad: str) -> None:
    ours, theirs = Tokenizer.from_dir(folders[name]), hf(folders[name])
    theirs.truncation_side, theirs.padding_side = truncate, pad
    if theirs.pad_token is None:
        theirs.pad_token = theirs.eos_token
    texts = [text for text in ODD_TEXTS if "<|" not in text]
    for max_length in (None, 3, 7, 1000):
        expected = theirs(texts, padding=True, truncation=max_length is not None, max_length=max_length)
        got = ours.encode_batch(texts, max_length=max_length, truncate=truncate, pad=pad)
        assert got.ids == expected["input_ids"]
        assert got.mask == expected["attention_mask"]
    ragged = ours.encode_batch(texts, pad=None, add_special_tokens=False)
    assert ragged.ids == [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert ragged.mask == [[1] * len(row) for row in ragged.ids]
    assert ours.encode_batch([]).ids == []


def test_offsets_are_those_of_the_characters(folders: dict[str, Path]) -> None:
    """Spans follow each other without gaps, which trimmed offsets would leave."""
    for name in ("byte_level", "split", "metaspace", *MISTRAL):
        tokenizer = Tokenizer.from_dir(folders[name])
        for text in [*ODD_TEXTS, *odd_strings(5)]:
            ids, spans = tokenizer.encode_with_spans(text)
            assert ids == tokenizer.encode(text, add_special_tokens=False)
            if name == "split" and unicodedata.normalize("NFC", text) != text:
                continue  # a character may vanish into another
            position = 0
            for start, end in spans:
                assert start <= position
                position = max(position, end)
            assert position == len(text)


# --- GGUF, byte-level -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [200, pytest.param(None, marks=pytest.mark.slow)])
def test_smollm2_gguf(gguf_fields: dict[str, Any], count: int | None) -> None:
    ours, reference = Tokenizer.from_gguf(gguf_fields), smollm2_reference(gguf_fields)
    ids: list[int] = []
    for text in [*stdlib_texts(count), *ODD_TEXTS, *odd_strings(0)]:
        ids = reference.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=False)


def test_smollm2_facts(gguf_fields: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_gguf(gguf_fields)
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.prefix_ids == () == tokenizer.suffix_ids
    assert tokenizer.special_ids == frozenset(range(17))
    assert tokenizer.encode("<|im_start|>") == [1]
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("1234")] == list("1234")
    assert tokenizer.token_to_id("Ġthe") == gguf_fields["tokenizer.ggml.tokens"].index("Ġthe")
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_token(49152) is None
    assert tokenizer.decode([1, 19556, 49152, 10**6], skip_special_tokens=True) == "Hello"
    assert tokenizer.chat_template == gguf_fields["tokenizer.chat_template"]


def byte_level_fields(pre: str | None, reference: tokenizers.Tokenizer, **more: Any) -> dict[str, Any]:
    """GGUF metadata for a trained byte-level BPE."""
    state = json.loads(reference.to_str())["model"]
    vocabulary = sorted(state["vocab"], key=state["vocab"].get)
    special = {entry.content: 3 if entry.special else 4 for entry in reference.get_added_tokens_decoder().values()}
    fields = {
        "model": "gpt2", "tokens": vocabulary, "token_type": [special.get(token, 1) for token in vocabulary],
        "merges": [" ".join(merge) for merge in state["merges"]], "bos_token_id": 0, "eos_token_id": 1, **more,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()} | (
        {"tokenizer.ggml.pre": pre} if pre else {}
    )


@pytest.fixture(scope="session")
def vocabulary() -> tokenizers.Tokenizer:
    """A byte-level BPE whose merges cross no word in any of the patterns, so that only the patterns differ."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # single lines keep the words short; no pre-tokenizer means merges across spaces, digits and punctuation
    trainer = trainers.BpeTrainer(
        vocab_size=2500, special_tokens=["<s>", "</s>"], show_progress=False, max_token_length=8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    lines = [line + "\n" for text in stdlib_texts(20) for line in text.split("\n")]
    core.train_from_iterator(lines + [t for seed in range(20) for t in odd_strings(100 + seed)], trainer)
    return core


@pytest.mark.parametrize(
    ("pre", "reference"),
    [
        ("gpt-2", "GPT2Tokenizer"),
        ("olmo", "GPTNeoXTokenizer"),
        ("qwen2", "Qwen2Tokenizer"),
        ("command-r", "CohereTokenizer"),
        ("qwen35", "models.qwen3_5.tokenization_qwen3_5.Qwen3_5Tokenizer"),
    ],
)
def test_pre_tokenizers_equal_the_families_in_transformers(
    vocabulary: tokenizers.Tokenizer, pre: str, reference: str
) -> None:
    fields = byte_level_fields(pre, vocabulary)
    ours = Tokenizer.from_gguf(fields)
    state = json.loads(vocabulary.to_str())["model"]
    made: Any = transformers
    if "." in reference:
        made = __import__("transformers." + reference.rpartition(".")[0], fromlist=["x"])
    cls = getattr(made, reference.rpartition(".")[2])
    theirs = cls(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])
    assert_same_words(ours, lambda text: theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def assert_same_words(ours: Tokenizer, reference: Any) -> None:
    texts = [*stdlib_texts(6), *ODD_TEXTS, *(text for seed in range(10) for text in odd_strings(seed))]
    for text in (text.replace("<s>", "") for text in texts):
        assert ours.encode(text, add_special_tokens=False) == reference(text), text


@pytest.mark.parametrize(
    ("pre", "encoding"), [("llama-bpe", "cl100k_base"), ("gpt-4o", "o200k_base"), ("gpt-2", "gpt2")]
)
def test_pre_tokenizers_equal_tiktoken(
    vocabulary: tokenizers.Tokenizer, pre: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiktoken's own patterns over the same vocabulary; its ranks are the order of the merges, as ours."""
    import tiktoken
    from tiktoken_ext import openai_public

    ids = vocabulary.get_vocab()
    alphabet = byte_alphabet()
    ranks = {bytes(alphabet[c] for c in token): i for token, i in ids.items() if token not in ("<s>", "</s>")}
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: ranks)
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *args, **kwargs: ranks)
    pattern = getattr(openai_public, encoding)()["pat_str"]
    reference = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<s>": 0, "</s>": 1})
    ours = Tokenizer.from_gguf(byte_level_fields(pre, vocabulary))
    assert_same_words(ours, lambda text: reference.encode(text, allowed_special="all"))


def byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE, asked of the library; bytes that UTF-8 never uses keep the order."""
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result: dict[str, int] = {}
    for code in [*range(0x800), *range(0x800, 0xD000, 0x800), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x10000)]:
        result |= dict(zip(step.pre_tokenize_str(chr(code))[0][0], chr(code).encode(), strict=True))
    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(result))
    return result | dict(zip(missing, sorted(set(range(256)) - set(result.values())), strict=True))


@pytest.mark.slow
def test_tekken_equals_mistral_common() -> None:
    """The whole tekken vocabulary as a GGUF would store it, against Mistral's own tokenizer."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    reference = Tekkenizer.from_file(mistral_file("tekken_240911.json"))
    n_special = reference.num_special_tokens
    alphabet = {byte: char for char, byte in byte_alphabet().items()}
    words = [reference.id_to_byte_piece(i) for i in range(n_special, reference.n_words)]
    ranks = {word: i for i, word in enumerate(words)}
    merges = []
    for word, rank in ranks.items():
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:], strict=False)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(" ".join("".join(alphabet[byte] for byte in part) for part in parts))
    tokens = [f"<SPECIAL_{i}>" for i in range(n_special)] + ["".join(alphabet[byte] for byte in word) for word in words]
    fields = {
        "model": "gpt2", "pre": "tekken", "tokens": tokens, "merges": merges, "bos_token_id": 1, "eos_token_id": 2,
        "token_type": [3] * n_special + [1] * len(words),
    }  # fmt: skip
    ours = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in fields.items()})
    assert ours.prefix_ids == (1,)
    for text in [*stdlib_texts(100), *ODD_TEXTS, *odd_strings(1)]:
        assert ours.encode(text) == reference.encode(text, bos=True, eos=False)


def test_user_defined_tokens_of_a_gguf(vocabulary: tokenizers.Tokenizer) -> None:
    """Type 4 tokens are found in text as written, and are not special."""
    fields = byte_level_fields("smollm", vocabulary, add_bos_token=True, add_eos_token=True)
    n = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "    ", "<tool>", "[PAD1]"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 4, 4, 5]
    tokenizer = Tokenizer.from_gguf(fields)
    ids = tokenizer.encode("    x<tool>")
    assert ids[0] == 0
    assert ids[1] == n
    assert ids[-2:] == [n + 1, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "    x<tool>"
    assert tokenizer.special_ids == {0, 1}


def test_gguf_without_a_pre_tokenizer_warns(vocabulary: tokenizers.Tokenizer) -> None:
    for pre in (None, "default"):
        with pytest.warns(UserWarning, match="does not name its pre-tokenizer"):
            ours = Tokenizer.from_gguf(byte_level_fields(pre, vocabulary))
        assert ours.encode("a 12 b") == Tokenizer.from_gguf(byte_level_fields("gpt-2", vocabulary)).encode("a 12 b")


def test_gguf_stop_tokens(vocabulary: tokenizers.Tokenizer) -> None:
    fields = byte_level_fields("llama-bpe", vocabulary, eot_token_id=5)
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "<|eot_id|>", "<|eom_id|>"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 3, 3]
    tokenizer = Tokenizer.from_gguf(fields)
    n = tokenizer.vocab_size
    assert tokenizer.eos_ids == (1, 5, n - 2, n - 1)
    assert tokenizer.prefix_ids == (0,)  # Llama 3's GGUF files may leave add_bos_token out
    assert Tokenizer.from_gguf(fields | {"tokenizer.ggml.add_bos_token": False}).prefix_ids == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model='bert'"),
        ({"pre": "newest"}, "tokenizer.ggml.pre='newest' is unknown"),
        ({"merges": None}, "lacks tokenizer.ggml.merges"),
        ({"merges": ["a b c"]}, "'a b c'"),
        ({"merges": ["qqqqq zzzzz"]}, "does not fit"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"eos_token_id": 10**6}, "eos_token_id=1000000 is outside"),
    ],
)
def test_gguf_errors(vocabulary: tokenizers.Tokenizer, change: dict[str, Any], message: str) -> None:
    fields = byte_level_fields("gpt-2", vocabulary) | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Tokenizer.from_gguf(fields)


def test_gguf_names_all_problems(vocabulary: tokenizers.Tokenizer) -> None:
    fields = byte_level_fields("gpt-2", vocabulary, scores=[0.0], bos_token_id=-1)
    fields["tokenizer.ggml.tokens"] = ["<s>", *fields["tokenizer.ggml.tokens"][1:-1], "<s>"]
    with pytest.raises(ValueError, match="scores has 1.*bos_token_id=-1.*'<s>' more than once"):
        Tokenizer.from_gguf(fields)


# --- SentencePiece --------------------------------------------------------------------------------------------------
def without_specials(texts: list[str], model: sentencepiece.SentencePieceProcessor) -> list[str]:
    special = [model.id_to_piece(i) for i in range(model.vocab_size()) if model.is_control(i) or model.is_unknown(i)]
    return [text for text in texts if not any(token in text for token in special)]


@pytest.mark.parametrize("name", MISTRAL)
@pytest.mark.parametrize("count", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_sentencepiece_equals_the_library(folders: dict[str, Path], name: str, count: int | None) -> None:
    ours = Tokenizer.from_dir(folders[name])
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file(name)))
    for text in without_specials([*stdlib_texts(count), *ODD_TEXTS, *odd_strings(0), *odd_strings(1)], model):
        ids = model.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.encode(text) == [model.bos_id(), *ids]
        if count is None:
            continue  # what follows takes minutes for all files
        assert ours.decode(ids) == model.decode(ids)
        expected = model.encode_as_offset_mapping(text)["offsets"]
        spans = ours.encode_with_spans(text)[1]
        assert [s for s, i in zip(spans, ids, strict=True) if not model.is_byte(i)] == [
            tuple(s) for s, i in zip(expected, ids, strict=True) if not model.is_byte(i)
        ]
        assert all(start < end for (start, end), i in zip(spans, ids, strict=True) if model.is_byte(i))


@pytest.mark.parametrize("name", MISTRAL)
def test_sentencepiece_with_special_tokens_equals_transformers(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Where transformers' conversion agrees with the SentencePiece library, which the test above compares with.

    It does not for a space at the start (no dummy space then) and for runs of spaces (merged in another order).
    """
    config = dict(tokenizer_class="LlamaTokenizer", legacy=False, add_bos_token=True, add_eos_token=False)
    config |= dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (tmp_path / "tokenizer.model").write_bytes(mistral_file(name).read_bytes())
    write_json(tmp_path / "tokenizer_config.json", config)
    ours, theirs = Tokenizer.from_dir(tmp_path), hf(tmp_path)
    texts = [
        "<s>[INST] Hello [/INST] hi</s>",
        "Hello</s>\n<s>abc",
        "a<unk>b",
        "<s>",
        "</s></s>x",
        "Hi</s> there</s>you",
    ]
    others = [text.replace("▁", " ") for text in [*ODD_TEXTS, *odd_strings(3)]]
    texts += [text for text in others if not text.startswith(" ") and "  " not in text]
    for text in texts:
        ids = theirs.encode(text)
        assert ours.encode(text) == once(ids, ours), text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_legacy_adds_a_space_after_special_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(mistral_file(MISTRAL[0]).read_bytes())
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file(MISTRAL[0])))
    write_json(tmp_path / "tokenizer_config.json", dict(legacy=True, add_bos_token=False, add_eos_token=True))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode("a</s>b") == [*model.encode("a"), 2, *model.encode("b"), 2]
    write_json(tmp_path / "tokenizer_config.json", dict(legacy=False, add_bos_token=False))
    assert Tokenizer.from_dir(tmp_path).encode("a</s>b") == [*model.encode("a"), 2, model.piece_to_id("b")]


def test_tokens_beyond_the_model(tmp_path: Path) -> None:
    """added_tokens_decoder and additional_special_tokens, longest match first; added_tokens.json is an older form."""
    (tmp_path / "tokenizer.model").write_bytes(mistral_file(MISTRAL[0]).read_bytes())
    write_json(tmp_path / "added_tokens.json", {"<|im_end|>": 32000, "<|im_end|>!": 32001})
    assert Tokenizer.from_dir(tmp_path).encode("<|im_end|>!<|im_end|>")[1:] == [32001, 32000]
    flags = dict(lstrip=False, rstrip=True, single_word=False, normalized=False, special=True)
    decoder = {
        "32000": dict(content="<|im_end|>"),
        "32001": dict(content="<|im_end|>!"),
        "32002": dict(content="<|user|>", **flags),
        "32003": dict(content="word", **(flags | dict(single_word=True, rstrip=False, special=False))),
    }
    config = dict(
        added_tokens_decoder=decoder,
        additional_special_tokens=["<|last|>"],
        eos_token="<|im_end|>",
        add_bos_token=False,
    )
    write_json(tmp_path / "tokenizer_config.json", config)
    tokenizer = Tokenizer.from_dir(tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file(MISTRAL[0])))
    assert tokenizer.vocab_size == 32005
    assert tokenizer.encode("<|im_end|>!<|im_end|><|user|>  \n<|last|>") == [32001, 32000, 32002, 32004]
    assert tokenizer.encode("<|user|> hi") == [32002, model.piece_to_id("hi")]
    assert 32003 in tokenizer.encode("a word.")
    assert 32003 not in tokenizer.encode("words")
    assert tokenizer.eos_id == 32000
    assert tokenizer.special_ids == {0, 1, 2, 32000, 32002, 32004}
    assert tokenizer.decode([32002, 32003, 32001, 1, 99999], skip_special_tokens=True) == "word<|im_end|>!"
    assert tokenizer.id_to_token(32004) == "<|last|>"
    assert tokenizer.token_to_id("<|last|>") == 32004


@pytest.mark.parametrize("name", MISTRAL)
@pytest.mark.parametrize("seed", range(3))
def test_sentencepiece_decodes_any_ids_as_the_library(folders: dict[str, Path], name: str, seed: int) -> None:
    """Also broken byte sequences, control tokens between bytes, spaces at the start."""
    ours = Tokenizer.from_dir(folders[name])
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file(name)))
    known = [i for i in range(model.vocab_size()) if not model.is_unknown(i)]
    few = [i for i in known if model.is_byte(i) or model.is_control(i) or i < 1000] + [model.piece_to_id("▁")] * 50
    rng = random.Random(seed)
    for _ in range(1000):
        ids = [rng.choice(rng.choice((known, few))) for _ in range(rng.randrange(12))]
        assert ours.decode(ids, skip_special_tokens=True) == model.decode(ids)


def sentencepiece_model(folder: Path, kind: str, **options: Any) -> bytes:
    """A small model trained on the standard library."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(stdlib_texts(15) + odd_strings(7)), encoding="utf-8")
    settings: dict[str, Any] = dict(vocab_size=900, character_coverage=0.99, minloglevel=2, max_sentence_length=100000)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "m"), model_type=kind, **(settings | options)
    )
    return (folder / "m.model").read_bytes()


def sentencepiece_fields(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
    """What llama.cpp's converter would write for this model; user-defined pieces with plain spaces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
    fields: dict[str, Any] = {
        "model": kind, "pre": "default", "scores": [piece.score for piece in proto.pieces],
        "tokens": [piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        **more,
    }  # fmt: skip
    charsmap = proto.normalizer_spec.precompiled_charsmap
    if charsmap:
        fields["precompiled_charsmap"] = [byte - 256 if byte > 127 else byte for byte in charsmap]  # int8, as stored
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


_AS_LLAMA = dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
_USER_DEFINED = dict(add_dummy_prefix=False, user_defined_symbols=["▁▁", "▁▁▁▁", "<tag>", "def"], split_digits=True)
SENTENCEPIECE_OPTIONS = [
    ("llama", "bpe", _AS_LLAMA),
    ("llama", "bpe", _AS_LLAMA | _USER_DEFINED),
    ("t5", "unigram", dict(user_defined_symbols=["<tag>", "▁▁▁"], remove_extra_whitespaces=False)),
    ("t5", "unigram", dict(byte_fallback=True)),
]


@pytest.mark.parametrize("options", range(len(SENTENCEPIECE_OPTIONS)))
def test_sentencepiece_rebuilt_from_gguf(tmp_path: Path, options: int) -> None:
    kind, algorithm, settings = SENTENCEPIECE_OPTIONS[options]
    data = sentencepiece_model(tmp_path, algorithm, **settings)
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = Tokenizer.from_gguf(sentencepiece_fields(data, kind))
    assert (ours.prefix_ids, ours.suffix_ids) == (((1,), ()) if kind == "llama" else ((), (2,)))
    rng = random.Random(options)
    texts = [*stdlib_texts(25), *ODD_TEXTS, *odd_strings(0), "a<tag>b    c  d      def"]
    for text in without_specials(texts, model):
        ids = model.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        if 0 not in ids:
            assert ours.decode(ids) == model.decode(ids)
        spans, expected = ours.encode_with_spans(text)[1], model.encode_as_offset_mapping(text)["offsets"]
        assert [tuple(s) for s, i in zip(expected, ids, strict=True) if not model.is_byte(i)] == [
            s for s, i in zip(spans, ids, strict=True) if not model.is_byte(i)
        ], text
    for _ in range(500):
        ids = [rng.randrange(1, model.vocab_size()) for _ in range(rng.randrange(8))]
        assert ours.decode(ids, skip_special_tokens=True) == model.decode(ids)
    # and from the directory it is saved in
    ours.save(tmp_path / "saved")
    again = Tokenizer.from_dir(tmp_path / "saved")
    assert (again.bos_id, again.eos_id, again.prefix_ids, again.suffix_ids) == (1, 2, ours.prefix_ids, ours.suffix_ids)
    for text in [*ODD_TEXTS, *odd_strings(2), "a</s>b<s>"]:
        assert again.encode(text) == ours.encode(text)
    if options == 0:
        theirs = hf(tmp_path / "saved")
        for text in odd_strings(2):
            if not text.startswith((" ", "▁")) and "  " not in text.replace("▁", " "):
                assert theirs.encode(text) == ours.encode(text)


def test_sentencepiece_gguf_without_an_unknown_piece(tmp_path: Path) -> None:
    data = sentencepiece_model(tmp_path, "bpe", byte_fallback=True)
    fields = sentencepiece_fields(data, "llama")
    types = fields["tokenizer.ggml.token_type"]
    fields["tokenizer.ggml.token_type"] = [3 if t == 2 else t for t in types]
    assert Tokenizer.from_gguf(fields).encode("hello 世") == Tokenizer.from_gguf(
        sentencepiece_fields(data, "llama")
    ).encode("hello 世")
    fields["tokenizer.ggml.token_type"] = [2] * len(types)
    with pytest.raises(ValueError, match="makes no SentencePiece model"):
        Tokenizer.from_gguf(fields)


# --- streaming ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*BUILDERS, *MISTRAL])
@pytest.mark.parametrize("seed", range(3))
def test_streams_add_up(folders: dict[str, Path], name: str, seed: int) -> None:
    tokenizer = Tokenizer.from_dir(folders[name])
    rng = random.Random(seed)
    stream = {skip: tokenizer.decode_stream(skip_special_tokens=skip) for skip in (True, False)}
    for text in [*odd_strings(seed), *ODD_TEXTS]:
        ids = tokenizer.encode(text)
        for skip in (True, False):
            pieces = [stream[skip].push(token) for token in ids]
            # the library reads an added token's "ï" as a byte when it decodes
            if "\ufffd" not in text and "naïve" not in text:
                assert "\ufffd" not in "".join(pieces)
            assert "".join(pieces) + stream[skip].flush() == tokenizer.decode(ids, skip_special_tokens=skip)
    for _ in range(300):  # ids that no text gives: broken characters, special tokens anywhere
        pool = range(tokenizer.vocab_size + 2) if rng.random() < 0.5 else range(300)
        ids = rng.choices(pool, k=rng.randrange(20))
        for skip in (True, False):
            text = "".join(map(stream[skip].push, ids)) + stream[skip].flush()
            assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", [*BUILDERS, *MISTRAL])
def test_a_stream_continues_a_prompt_as_the_whole_text_does(folders: dict[str, Path], name: str) -> None:
    """transformers decodes prompt and answer together and leaves out the prompt's text; so do vLLM and TGI."""
    ours = Tokenizer.from_dir(folders[name])
    if name in MISTRAL:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folders[name] / "tokenizer.model"))
        decode, prefix = model.decode, [1]
    else:
        theirs = hf(folders[name])
        decode = lambda ids: theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # noqa: E731
        prefix = list(ours.prefix_ids)
    rng, compared, spaces = random.Random(0), 0, 0
    for text in [*odd_strings(0), *ODD_TEXTS, *stdlib_texts(5)]:
        ids = [*prefix, *ours.encode(text, add_special_tokens=False)][:600]
        for k in rng.sample(range(len(ids) + 1), min(6, len(ids) + 1)):
            whole, before = decode(ids), decode(ids[:k])
            if not whole.startswith(before) or before.endswith("\ufffd"):  # within a character
                continue
            stream = ours.decode_stream(ids[:k], skip_special_tokens=True)
            assert "".join(map(stream.push, ids[k:])) + stream.flush() == whole[len(before) :]
            compared += 1
            alone = ours.decode_stream(skip_special_tokens=True)
            spaces += "".join(map(alone.push, ids[k:])) + alone.flush() != whole[len(before) :]
    assert compared > 50
    assert (spaces > 5) == (name in ("metaspace", "wordpiece", *MISTRAL))  # where the first token is a special case


def test_smollm2_stream(gguf_fields: dict[str, Any]) -> None:
    tokenizer, reference = Tokenizer.from_gguf(gguf_fields), smollm2_reference(gguf_fields)
    rng = random.Random(0)
    for ids in [*(tokenizer.encode(text) for text in ODD_TEXTS), *(rng.choices(range(500), k=30) for _ in range(300))]:
        stream = tokenizer.decode_stream(skip_special_tokens=True)
        assert "".join(map(stream.push, ids)) + stream.flush() == reference.decode(ids, skip_special_tokens=True)


def test_a_stream_shows_text_as_soon_as_it_is_certain(folders: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_dir(folders[MISTRAL[0]])
    stream = tokenizer.decode_stream()
    pieces = [stream.push(token) for token in tokenizer.encode("a🤗b", add_special_tokens=False)]
    assert pieces == ["a", "", "", "", "🤗", "b"]
    stream = Tokenizer.from_dir(folders["byte_level"]).decode_stream()
    assert stream.push(Tokenizer.from_dir(folders["byte_level"]).encode("x")[-1]) == "x"


@pytest.mark.parametrize("name", ["byte_level", "metaspace", MISTRAL[0]])
def test_a_stream_does_constant_work_per_token(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids handed to the library's decoder grow with the number of tokens, not its square."""
    tokenizer = Tokenizer.from_dir(folders[name])
    decoded = []
    if name == "metaspace":
        backend: Any = tokenizer._backend
        core = backend.core

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(core, name)

            def decode(self, ids: list[int], **options: Any) -> str:
                decoded.extend(ids)
                return core.decode(ids, **options)

        backend.core = Counting()
    stream = tokenizer.decode_stream(skip_special_tokens=True)
    byte = tokenizer.token_to_id("<0xFF>") or 5
    ids = (tokenizer.encode("hello world 🤗 ") * 200 + [byte] * 500 + [0] * 500) * 2
    for token in ids:
        stream.push(token)
    assert len(decoded) < 12 * len(ids)


# --- files ----------------------------------------------------------------------------------------------------------
def test_saving_a_directory_copies_it(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("split", "wordpiece", MISTRAL[1]):
        source, target = folders[name], tmp_path / name
        target.mkdir()
        (target / "added_tokens.json").write_text('{"<stale>": 3}')  # of a tokenizer that was here before
        tokenizer = Tokenizer.from_dir(source)
        tokenizer.save(target)
        assert {file.name: file.read_bytes() for file in target.iterdir()} == {
            file.name: file.read_bytes() for file in source.iterdir() if file.suffix in (".json", ".model")
        }
        assert Tokenizer.from_dir(target).encode("a 1 b") == tokenizer.encode("a 1 b")
        tokenizer = Tokenizer.from_dir(target)
        tokenizer.save(target)  # onto itself
        assert Tokenizer.from_dir(target).encode("a 1 b") == tokenizer.encode("a 1 b")
        for file in target.iterdir():
            file.unlink()
        with pytest.raises(ValueError, match="no longer here"):
            tokenizer.save(tmp_path / "elsewhere")


def test_saving_a_gguf_tokenizer(gguf_fields: dict[str, Any], tmp_path: Path) -> None:
    ours = Tokenizer.from_gguf(gguf_fields)
    ours.save(tmp_path)
    again, theirs = Tokenizer.from_dir(tmp_path), hf(tmp_path)
    assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
    for text in [*stdlib_texts(20), *ODD_TEXTS, *odd_strings(4)]:
        ids = ours.encode(text)
        assert again.encode(text) == ids == theirs.encode(text)
        assert again.decode(ids) == ours.decode(ids) == theirs.decode(ids)
    assert again.chat_template == ours.chat_template == theirs.chat_template
    assert again.special_tokens == ours.special_tokens == theirs.special_tokens_map
    assert again.special_ids == ours.special_ids
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_saved_gguf_tokenizer_keeps_its_bos(vocabulary: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ours = Tokenizer.from_gguf(byte_level_fields("llama-bpe", vocabulary, add_eos_token=True))
    ours.save(tmp_path)
    assert ours.encode("a b") == Tokenizer.from_dir(tmp_path).encode("a b") == hf(tmp_path).encode("a b")
    assert (ours.prefix_ids, ours.suffix_ids) == ((0,), (1,))


def test_ids_from_the_model_configs(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(folders["byte_level"])
    tokenizer.save(tmp_path)
    assert tokenizer.eos_ids == (1,)
    write_json(tmp_path / "config.json", dict(eos_token_id=[7, 1], pad_token_id=9))
    assert Tokenizer.from_dir(tmp_path).eos_ids == (1, 7)
    write_json(tmp_path / "generation_config.json", dict(eos_token_id=[5, 6], bos_token_id=3))
    assert Tokenizer.from_dir(tmp_path).eos_ids == (1, 5, 6)
    # the tokenizer's own word goes first; null says that there is none; silence leaves it to the model's files
    assert (Tokenizer.from_dir(tmp_path).bos_id, Tokenizer.from_dir(tmp_path).pad_id) == (0, 2)
    write_json(tmp_path / "tokenizer_config.json", dict(bos_token=None))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 5, 9)


def test_chat_templates_of_a_directory(folders: dict[str, Path], tmp_path: Path) -> None:
    Tokenizer.from_dir(folders["byte_level"]).save(tmp_path)
    assert Tokenizer.from_dir(tmp_path).chat_template is None
    write_json(tmp_path / "tokenizer_config.json", dict(chat_template="one"))
    assert Tokenizer.from_dir(tmp_path).chat_template == "one"
    named = [dict(name="tool_use", template="tools"), dict(name="default", template="two")]
    write_json(tmp_path / "tokenizer_config.json", dict(chat_template=named))
    assert Tokenizer.from_dir(tmp_path).chat_template == "two"
    write_json(tmp_path / "tokenizer_config.json", dict(chat_template=named[:1]))
    (tmp_path / "chat_template.jinja").write_text("three", encoding="utf-8")
    assert Tokenizer.from_dir(tmp_path).chat_template == "three"


def test_directory_errors(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no directory.*litlm download"):
        Tokenizer.from_dir(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no tokenizer: looked for tokenizer\.json and tokenizer\.model"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a SentencePiece model"):
        Tokenizer.from_dir(tmp_path)
    whole = (folders["byte_level"] / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole, encoding="utf-8")
    write_json(tmp_path / "added_tokens.json", {"<new>": 9999, "<s>": 5})
    with pytest.raises(ValueError, match="do not belong together: '<s>' has id 0.*'<new>' has id"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "added_tokens.json").write_text("[1")
    with pytest.raises(ValueError, match=r"added_tokens\.json is not valid JSON"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "added_tokens.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, not list"):
        Tokenizer.from_dir(tmp_path)


def test_argument_errors(folders: dict[str, Path]) -> None:
    for name in ("byte_level", MISTRAL[0]):
        tokenizer = Tokenizer.from_dir(folders[name])
        with pytest.raises(ValueError, match="text 0 is a bytes"):
            tokenizer.encode(b"x")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="text 1 has the lone surrogate .* at character 2"):
            tokenizer.encode_batch(["fine", "ab\ud800"])
        with pytest.raises(ValueError, match="one string"):
            tokenizer.encode_batch("abc")
        with pytest.raises(ValueError, match=r"truncate='middle'.*pad='top'.*max_length=0"):
            tokenizer.encode_batch(["a"], truncate="middle", pad="top", max_length=0)
        with pytest.raises(ValueError, match="ids holds -100"):
            tokenizer.decode([5, -100])


def test_importing_is_light() -> None:
    heavy = "torch, transformers, tokenizers, sentencepiece, jinja2"
    code = f"import sys, litlm.tokenizer, litlm.prompts; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert result.stdout.strip() == "[]"
