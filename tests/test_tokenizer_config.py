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
    config["chat_template"] = " ".join("{{ " + role + " }}" for role in (*NAMED, *OWN)) + "{{ messages[0].content }}"
    dump(folder, "tokenizer_config.json", config)


def texts(rng: random.Random) -> list[str]:
    pool = [*TOKENS, "<new>", "<more>", "<late>", "a", "word", " ", "  ", "b c", "\n", "W", "<S>", "WORD", "x<"]
    return ["".join(rng.choices(pool, k=rng.randrange(1, 10))) for _ in range(12)]


def once(ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...]) -> list[int]:
    """What transformers encodes without a BOS or EOS that stands there twice."""
    if prefix and ids[1:2] == list(prefix) and len(ids) > 1 + len(suffix):
        ids = ids[1:]
    return ids[:-1] if suffix and ids[-2:-1] == list(suffix) and len(ids) > 1 + len(prefix) else ids


@pytest.mark.parametrize("seed", range(60))
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
            stream = ours.decode_stream(skip_special_tokens=skip)
            assert "".join([*map(stream.push, ids), stream.flush()]) == expected


@pytest.mark.parametrize("seed", range(12))
def test_names_and_flags_beside_a_sentencepiece_model(tmp_path: Path, seed: int) -> None:
    import mistral_common

    file = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(file.read_bytes())
    rng = random.Random(seed)
    tokens = ["<s>", "</s>", "<unk>", "<pad>", "<tool>", "<img>"]
    config: dict[str, Any] = dict(tokenizer_class="LlamaTokenizer", legacy=False)
    config |= dict(add_bos_token=rng.random() < 0.5, add_eos_token=rng.random() < 0.5, chat_template="{{ bos_token }}x")
    config |= {role: spelled(rng.choice(tokens), rng, typed=True) for role in ("bos_token", "eos_token", "pad_token")}
    own = [{}, dict(extra_special_tokens={"think_token": "<tool>"}), dict(additional_special_tokens=["<img>", "<new>"])]
    names = config | rng.choice(own) | rng.choice([{}, dict(pad_token=None), dict(image_token="<img>")])
    if rng.random() < 0.5:
        added = {32000: dict(content="<pad>", special=False, **flags(rng)), 32001: dict(content="<tool>", special=True)}
        names |= dict(added_tokens_decoder={str(number): token for number, token in added.items()})
    elif rng.random() < 0.7:
        dump(tmp_path, "special_tokens_map.json", dict(eos_token=spelled("<pad>", rng, typed=False), unk_token="<unk>"))
    dump(tmp_path, "tokenizer_config.json", names)
    ours, theirs = Tokenizer.from_dir(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocab_size == len(theirs)
    for text in ["Hi", "a<pad>b", "<tool><img>", "x<new>", "y <pad>.", "<img> <tool>"]:
        ids = theirs.encode(text)
        assert ours.encode(text) == once(ids, ours.prefix_ids, ours.suffix_ids), text
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


# --- BOS and EOS ------------------------------------------------------------------------------------------------------
def folder_with(folder: Path, single: str, **config: Any) -> Path:
    """Bytes, and <a> <b> <c> with the ids 256 to 258."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<a>", "<b>", "<c>"])
    named = [("<a>", 256), ("<b>", 257), ("<c>", 258)]
    if single:
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    dump(folder, "tokenizer_config.json", dict(bos_token="<a>", eos_token="<c>") | config)
    return folder


@pytest.mark.parametrize(
    ("single", "text", "ids"),
    [
        ("<a> $A", "x", [256, 0]),
        ("<a> $A", "<a>x", [256, 0]),
        ("<a> $A", "<a><a>x", [256, 256, 0]),
        ("<a> $A", "x<a>", [256, 0, 256]),
        ("<a> $A", "", [256]),
        ("<a> $A", "<a>", [256]),
        ("$A <c>", "x<c>", [0, 258]),
        ("<a> <b> $A", "<a><b>x", [256, 257, 0]),
        ("<a> <b> $A", "<b>x", [256, 257, 0]),
        ("<a> <b> $A", "<a>x", [256, 257, 256, 0]),
        ("<a> $A <b> <c>", "<a>x<b>", [256, 0, 257, 258]),
        ("<c> $A <c>", "<c>", [258, 258]),
        ("", "<a>x", [256, 0]),
    ],
)
def test_bos_and_eos_of_the_text_are_not_doubled(tmp_path: Path, single: str, text: str, ids: list[int]) -> None:
    tokenizer = Tokenizer.from_dir(folder_with(tmp_path, single))
    x = tokenizer.encode("x", add_special_tokens=False)[0]
    ids = [x if token == 0 else token for token in ids]
    assert tokenizer.encode(text) == ids
    batch = tokenizer.encode_batch([text, "xx"], pad=None)
    assert batch.ids[0] == ids
    n_special = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    cut = tokenizer.encode_batch([text + "yyy" + text], pad=None, max_length=n_special + 1).ids[0]
    assert cut[: len(tokenizer.prefix_ids)] == list(tokenizer.prefix_ids)
    assert cut[len(cut) - len(tokenizer.suffix_ids) :] == list(tokenizer.suffix_ids)
    assert len(cut) == n_special + 1


@pytest.mark.parametrize("name", ["GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("more", [{}, dict(add_bos_token=True), dict(add_bos_token=False, add_eos_token=True)])
def test_which_classes_heed_the_post_processor(tmp_path: Path, name: str | None, more: dict[str, Any]) -> None:
    """Beside a tokenizer.json the flags mean nothing; GPTNeoXTokenizer has no BOS whatever the files say."""
    folder_with(tmp_path, "<a> $A", **more, **({"tokenizer_class": name} if name else {}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_dir(tmp_path).encode("x") == theirs.encode("x")


def test_special_tokens_in_text_may_be_turned_off(tmp_path: Path) -> None:
    folder_with(tmp_path, "<a> $A", split_special_tokens=True)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path).encode("<a>x")
    assert Tokenizer.from_dir(tmp_path).encode("<a>x") == ids
    assert len(ids) == 5


# --- templates --------------------------------------------------------------------------------------------------------
NAMES = dict(rag="R{{ bos_token }}", tool_use="T")


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("place", ["list", "folder", "json", "gguf"])
def test_named_templates(tmp_path: Path, place: str, default: bool) -> None:
    """`default` is taken; without it, asking for a template says which there are."""
    named = NAMES | (dict(default="D{{ bos_token }}") if default else {})
    listed = [dict(name=name, template=template) for name, template in named.items()]
    folder = folder_with(tmp_path / "a", "", **({"chat_template": listed} if place == "list" else {}))
    if place == "json":
        dump(folder, "chat_template.json", dict(chat_template=listed))
    elif place == "folder":
        (folder / "additional_chat_templates").mkdir()
        for name in NAMES:
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(named[name])
        if default:
            (folder / "chat_template.jinja").write_text(named["default"])
    tokenizer = Tokenizer.from_dir(folder)
    if place == "gguf":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        fields: dict[str, Any] = dict(model="gpt2", pre="gpt-2", tokens=[*alphabet, "<a>", "<c>"], merges=[])
        fields |= dict(bos_token_id=256, eos_token_id=257, token_type=[1] * 256 + [3, 3])
        templates = {f".{name}" if name != "default" else "": template for name, template in named.items()}
        tokenizer = Tokenizer.from_gguf(
            {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
            | {f"tokenizer.chat_template{name}": template for name, template in templates.items()}
            | {"tokenizer.chat_templates": list(NAMES)}
        )
    messages = [{"role": "user", "content": "q"}]
    tokenizer.save(tmp_path / "b")
    for found in (tokenizer, Tokenizer.from_dir(tmp_path / "b")):
        assert found.chat_templates == named
        if default:
            assert style_for(found).format(messages) == "D<a>"
        else:
            with pytest.raises(ValueError, match="chat templates rag, tool_use and none called default; put the one"):
                style_for(found).format(messages)
            found.chat_template = found.chat_templates["rag"]
            assert style_for(found).format(messages) == "R<a>"
    if place != "json":  # which only processors read
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
        assert theirs.chat_template == named


def test_files_of_templates_go_before_the_config(tmp_path: Path) -> None:
    folder_with(tmp_path, "", chat_template="config")
    dump(tmp_path, "chat_template.json", dict(chat_template="json"))
    assert Tokenizer.from_dir(tmp_path).chat_template == "config"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert Tokenizer.from_dir(tmp_path).chat_templates == {"rag": "rag"}
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == {"rag": "rag"}
    other = folder_with(tmp_path / "other", "", chat_template="config")
    Tokenizer.from_dir(other).save(tmp_path)  # the older one's templates must not be read with it
    assert Tokenizer.from_dir(tmp_path).chat_templates == {"default": "config"}
