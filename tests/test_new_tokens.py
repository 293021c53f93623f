"""New tokens: their ids, their rows in the model, and that every kind of result brings them along."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity.cases import close
from safetensors.torch import load_file
from test_run import Files, run, settings_of, write_files

from litlm.cli.main import main
from litlm.llm import LLM
from litlm.settings import FinetuneSettings, MethodSettings, RunSettings
from litlm.tokenizer import Tokenizer
from litlm.tokenizer.backends import SentencePieceBackend, TokenizerMetadata
from litlm.train.run import add_tokens

NEW = ("<tool>", "</tool>", "東京タワー", "fox dog", "two  spaces ")
TEXTS = [
    "a<tool>fox</tool>",
    "the fox dog runs",
    "東京タワーと東京",
    "x two  spaces y",
    "<tool><tool> plain",
    "fox  dog",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("data"))


def with_new(files: Files, out: Path, case: str, tokens: tuple[str, ...] = NEW, **train: Any) -> RunSettings:
    settings = settings_of(case, files, out, run=dict(new_tokens=tokens), **train)
    assert isinstance(settings, FinetuneSettings)
    return settings


# --- the tokenizer -------------------------------------------------------------------------------------------------


def test_ids_are_those_of_tokenizers_and_transformers(tmp_path: Path) -> None:
    import tokenizers
    from transformers import AutoTokenizer

    theirs = tokenizers.Tokenizer.from_file(str(tiny.folder() / "tokenizer.json"))
    size = theirs.get_vocab_size()
    theirs.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in NEW])
    ours = Tokenizer.from_dir(tiny.folder())
    assert ours.vocab_size == size
    assert ours.add_tokens(NEW) == list(range(size, size + len(NEW))) == [theirs.token_to_id(t) for t in NEW]
    assert ours.vocab_size == size + len(NEW)
    ours.save(tmp_path)
    again, hf = Tokenizer.from_dir(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.vocab_size == ours.vocab_size == len(hf)
    assert (again.chat_template, again.eos_ids, again.bos_id) == (ours.chat_template, ours.eos_ids, ours.bos_id)
    before = Tokenizer.from_dir(tiny.folder())
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        for tokenizer in (ours, again):
            assert tokenizer.encode(text, add_special_tokens=False) == ids
            assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert hf.encode(text, add_special_tokens=False) == ids
    assert any(ours.encode(text) != before.encode(text) for text in TEXTS)
    assert ours.encode("plain abab") == before.encode("plain abab")


def test_tokens_that_are_there_keep_their_ids() -> None:
    ours = Tokenizer.from_dir(tiny.folder())
    size = ours.vocab_size
    end = ours.token_to_id("<|im_end|>")
    assert ours.add_tokens(["<|im_end|>", "<new>", "<|im_end|>"]) == [end, size, end]
    assert ours.add_tokens(["<new>"]) == [size]
    assert ours.vocab_size == size + 1
    assert ours.eos_id == end
    assert end in ours.special_ids


def test_a_tokenizer_saved_over_itself_is_the_grown_one(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.folder() / name, tmp_path)
    ours = Tokenizer.from_dir(tmp_path)
    (number,) = ours.add_tokens(["<tool>"])
    ours.save(tmp_path)
    assert Tokenizer.from_dir(tmp_path).encode("<tool>", add_special_tokens=False) == [number]


def test_what_is_no_token(tmp_path: Path) -> None:
    ours = Tokenizer.from_dir(tiny.folder())
    with pytest.raises(ValueError, match="a new token can't be empty"):
        ours.add_tokens(["<a>", ""])
    with pytest.raises(ValueError, match="text 0 is a int, not a string"):
        ours.add_tokens([3])  # type: ignore[list-item]
    assert ours.token_to_id("<a>") is None
    assert ours.add_tokens([]) == []
    assert ours.vocab_size == Tokenizer.from_dir(tiny.folder()).vocab_size
    piece = Tokenizer(
        SentencePieceBackend(sentencepiece(tmp_path), [], legacy=False),
        TokenizerMetadata({}, None, None, None, (), (), (), {}, None),
    )
    with pytest.raises(ValueError, match="SentencePiece model .* can't take new tokens; convert it to tokenizer.json"):
        piece.add_tokens(["<tool>"])


def sentencepiece(folder: Path) -> bytes:
    import sentencepiece

    (folder / "text.txt").write_text("\n".join(tiny.TEXT * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=90, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    return (folder / "m.model").read_bytes()


# --- the model -----------------------------------------------------------------------------------------------------


def test_embeddings_grow_by_their_mean(files: Files, tmp_path: Path) -> None:
    """The tiny checkpoint has three spare rows, so five new tokens need two more."""
    for family in ("llama", "gpt_neox"):
        llm = tiny.load(family)
        embed, head = llm.model.embed.weight.detach().clone(), llm.model.head_weight.detach().clone()
        first = llm.tokenizer.vocab_size
        settings = with_new(files, tmp_path, "full")
        assert isinstance(settings, FinetuneSettings)
        assert add_tokens(llm, settings) == settings
        assert llm.config.vocab_size == llm.model.config.vocab_size == first + 5 == len(embed) + 2
        for now, before in ((llm.model.embed.weight, embed), (llm.model.head_weight, head)):
            assert torch.equal(now[: len(before)], before)
            mean = before.double().mean(0).expand(2, -1)
            torch.testing.assert_close(now[len(before) :].double(), mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("family", "whole"), [("llama", ("embed",)), ("gpt_neox", ("embed", "lm_head"))])
def test_adapters_train_what_is_new(files: Files, tmp_path: Path, family: str, whole: tuple[str, ...]) -> None:
    settings = with_new(files, tmp_path, "lora")
    assert isinstance(settings, FinetuneSettings)
    assert add_tokens(tiny.load(family), settings).method.modules_to_save == whole
    method = MethodSettings(r=2, modules_to_save=("norm", "embed"))
    twice = add_tokens(tiny.load(family), dataclasses.replace(settings, method=method))
    assert twice.method.modules_to_save == ("norm", *whole)
    assert add_tokens(tiny.load(family), dataclasses.replace(settings, new_tokens=())).method == settings.method


@pytest.mark.parametrize("case", ["adapter", "adapter_v2"])
def test_methods_without_embeddings_are_refused(files: Files, tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=f"new_tokens need .* method {case} has none, use lora or full"):
        run(with_new(files, tmp_path / "run", case))
    with pytest.raises(ValueError, match="a new token can't be empty"):
        run(with_new(files, tmp_path / "run", "full", tokens=("",)))


# --- whole runs ----------------------------------------------------------------------------------------------------


def test_full_saves_a_model_with_the_tokens(files: Files, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(with_new(files, tmp_path / "run", "full", max_steps=2))
    final = tmp_path / "run" / "final"
    llm, hf = LLM.load(final, device="cpu"), AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    ids = llm.tokenizer.encode("fox <tool> 東京タワー")
    assert ids == AutoTokenizer.from_pretrained(final).encode("fox <tool> 東京タワー")
    assert max(ids) >= tiny.shared().config.vocab_size - 3
    with torch.no_grad():
        close(llm.model(torch.tensor([ids])), hf(torch.tensor([ids])).logits)


def test_lora_saves_an_adapter_with_the_tokens_and_merge_a_model(files: Files, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = tiny.load()
    run(with_new(files, tmp_path / "run", "lora", max_steps=3), llm=llm)
    final = tmp_path / "run" / "final"
    size = llm.config.vocab_size
    assert size == tiny.shared().config.vocab_size + 2
    embed = [t for name, t in load_file(final / "adapter_model.safetensors").items() if "embed_tokens" in name]
    assert [len(t) for t in embed] == [size]
    assert torch.equal(embed[0], llm.model.embed.weight)
    before = tiny.shared().model.embed.weight
    assert not torch.equal(embed[0][: len(before)], before)
    assert "embed_tokens" in str(json.loads((final / "adapter_config.json").read_text()))

    ids = llm.tokenizer.encode("fox <tool> 東京タワー")
    rows = torch.tensor([ids])
    loaded = LLM.load(tiny.folder(), adapter=final, device="cpu", dtype="float32")
    assert loaded.tokenizer.encode("fox <tool> 東京タワー") == ids
    assert loaded.config.vocab_size == size
    with torch.no_grad():
        logits = llm.model(rows)
        close(loaded.model(rows), logits)
    again = LLM.load(final, device="cpu", dtype="float32")  # by the base that it names
    assert again.tokenizer.encode("fox <tool> 東京タワー") == ids

    merged = tmp_path / "merged"
    assert main(["merge", str(final), "--out_dir", str(merged), "--dtype", "float32"]) in (0, None)
    assert AutoTokenizer.from_pretrained(merged).encode("fox <tool> 東京タワー") == ids
    with torch.no_grad():
        close(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(rows).logits, logits)


def test_an_adapter_whose_tokens_fit_into_spare_rows_brings_them_too(files: Files, tmp_path: Path) -> None:
    """The tiny checkpoint has three spare rows; two new tokens make nothing larger."""
    llm = tiny.load()
    run(with_new(files, tmp_path / "run", "lora", tokens=("<tool>", "</tool>"), max_steps=2), llm=llm)
    assert llm.config.vocab_size == tiny.shared().config.vocab_size
    loaded = LLM.load(tiny.folder(), adapter=tmp_path / "run" / "final", device="cpu", dtype="float32")
    assert loaded.tokenizer.encode("a<tool>b") == llm.tokenizer.encode("a<tool>b")
