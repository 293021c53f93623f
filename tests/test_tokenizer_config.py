"""`tokenizer_config.json` and the files beside it mean what transformers 5 makes of them, in whatever spelling."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from litlm.checkpoint.gguf_tokenizer import rebuild
from litlm.prompts import style_for
from litlm.tokenizer import Tokenizer

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
OWN = ("image_token", "boi_token", "eoi_token", "audio_token", "think_token")
TOKENS = ["<s>", "</s>", "<unk>", "<pad>", "<tool>", "<img>", "<boi>", "<eoi>", "<Audio>", "wOrd", "<mask>"]


def dump(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def core(kind: str, rng: random.Random, post: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE without merges, or a unigram of single characters, with some added tokens of odd flags."""
    if kind == "bpe":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<s>"])}, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        if rng.random() < 0.5:
            made.normalizer = normalizers.Lowercase()
    else:
        pieces = ["<unk>", "<s>", "</s>", *"▁abcdefghijklmnopqrstuvwxyzW<>/", "▁w", "or", "rd"]
        made = tokenizers.Tokenizer(models.Unigram([(piece, -float(len(piece))) for piece in pieces], unk_id=0))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    for content in ["<s>", *rng.sample(TOKENS, rng.randrange(len(TOKENS)))]:
        made.add_tokens([AddedToken(content, special=rng.random() < 0.5, **flags(rng))])
    if post:
        number = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing(
            single=rng.choice(["<s> $A", "$A <s>", "<s> $A <s>"]), special_tokens=[("<s>", number)]
        )
    return made


def flags(rng: random.Random) -> dict[str, bool]:
    return {name: rng.random() < 0.25 for name in FLAGS}


def spelled(content: str, rng: random.Random, *, typed: bool) -> Any:
    """The token as a text, or as the fields of an AddedToken (typed: as tokenizer_config.json marks them)."""
    if rng.random() < 0.5:
        return content
    return dict(content=content, **flags(rng)) | (dict(__type="AddedToken", special=True) if typed else {})


def case(folder: Path, seed: int) -> None:
    """A tokenizer whose special tokens are named in a random choice of all places and spellings."""
    rng = random.Random(seed)
    made = core(rng.choice(["bpe", "unigram"]), rng, rng.random() < 0.6)
    made.save(str(folder / "tokenizer.json"))
    present = made.get_added_tokens_decoder()
    config: dict[str, Any] = dict(tokenizer_class=rng.choice(["PreTrainedTokenizerFast", "TokenizersBackend"]))
    config |= {flag: rng.random() < 0.5 for flag in ("add_bos_token", "add_eos_token") if rng.random() < 0.5}
    for role in NAMED:
        if rng.random() < 0.4:
            config[role] = rng.choice([None, spelled(rng.choice(TOKENS), rng, typed=True)])
    for role in OWN:
        if rng.random() < 0.2:
            config[role] = spelled(rng.choice(TOKENS), rng, typed=True)
    if rng.random() < 0.3:
        config["additional_special_tokens"] = [spelled(t, rng, typed=True) for t in rng.sample([*TOKENS, "<new>"], 2)]
    if rng.random() < 0.4:
        tokens = rng.sample([*TOKENS, "<more>"], 2)
        config["extra_special_tokens"] = rng.choice([tokens, dict(zip(rng.sample(OWN, 2), tokens, strict=True)), []])
    if rng.random() < 0.2:
        config["model_specific_special_tokens"] = {rng.choice(OWN): rng.choice(TOKENS)}
    if rng.random() < 0.5:
        decoder = {n: dict(content=t.content, special=rng.random() < 0.5, **flags(rng)) for n, t in present.items()}
        kept = {n: token for n, token in decoder.items() if rng.random() < 0.7}
        if rng.random() < 0.5:
            kept[made.get_vocab_size()] = dict(content="<late>", special=rng.random() < 0.5, **flags(rng))
        config["added_tokens_decoder"] = {str(n): token for n, token in kept.items()}
    elif rng.random() < 0.5:
        dump(folder, "added_tokens.json", {"<late>": made.get_vocab_size()})
    if rng.random() < 0.4:
        roles = rng.sample([*NAMED, *OWN], 4)
        special_map: dict[str, Any] = {role: spelled(rng.choice(TOKENS), rng, typed=False) for role in roles}
        if rng.random() < 0.5:
            special_map["additional_special_tokens"] = rng.sample([*TOKENS, "<new>"], 2)
        elif rng.random() < 0.5:
            special_map["extra_special_tokens"] = [spelled(t, rng, typed=False) for t in rng.sample(TOKENS, 2)]
        dump(folder, "special_tokens_map.json", special_map)
    config["chat_template"] = " ".join("{{ %s }}" % role for role in (*NAMED, *OWN)) + "{{ messages[0].content }}"
    dump(folder, "tokenizer_config.json", config)


def texts(rng: random.Random) -> list[str]:
    pool = [*TOKENS, "<new>", "<more>", "<late>", "a", "word", " ", "  ", "b c", "\n", "W", "<S>", "WORD", "x<"]
    return ["".join(rng.choices(pool, k=rng.randrange(1, 10))) for _ in range(12)]


def once(ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...]) -> list[int]:
    """What transformers encodes without a BOS or EOS that stands there twice."""
    if prefix and ids[1:2] == list(prefix) and len(ids) > 1 + len(suffix):
        ids = ids[1:]
    return ids[:-1] if suffix and ids[-2:-1] == list(suffix) and len(ids) > 1 + len(prefix) else ids


@pytest.mark.parametrize("seed", range(150))
def test_any_spelling_means_what_transformers_makes_of_it(tmp_path: Path, seed: int) -> None:
    case(tmp_path, seed)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_dir(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocab_size == len(theirs)
    messages = [{"role": "user", "content": "Hi"}]
    rendered = style_for(ours).format(messages)
    assert rendered == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for text in [*texts(random.Random(seed)), rendered]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.encode(text) == once(theirs.encode(text), ours.prefix_ids, ours.suffix_ids), text
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected
            stream = ours.stream(skip_special_tokens=skip)
            assert "".join([*map(stream.push, ids), stream.flush()]) == expected
