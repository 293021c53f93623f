"""What `generate` adds to a prompt and `chat` answers, with SentencePiece, which strips the space of a first piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import torch
from transformers import AutoTokenizer

from litlm import GPT, LLM, Config, Tokenizer
from litlm.cli.chat import Conversation
from litlm.prompts import get_style
from litlm.settings import SamplingSettings

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece")
    file = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    (path / "tokenizer.model").write_bytes(file.read_bytes())
    config = dict(tokenizer_class="LlamaTokenizer", legacy=False, bos_token="<s>", eos_token="</s>")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def says(llm: LLM, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every answer be these tokens."""
    steps = lambda model, prompts, settings, stop_ids=(): ([token] * len(prompts) for token in ids)  # noqa: E731
    monkeypatch.setattr("litlm.llm.decode", lambda *args, **options: Steps(steps(*args, **options)))


class Steps:
    """A generator that takes what is sent to it for nothing."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __next__(self) -> Any:
        return next(self.steps)

    def send(self, rows: Any) -> Any:
        return next(self.steps)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    config = Config(
        family="llama", vocab_size=32000, n_layer=1, n_head=1, n_embd=8, intermediate_size=8, max_seq_len=64
    )
    model = GPT(config)
    torch.manual_seed(0)
    model.init_weights()
    llm = LLM(model, config)
    llm.tokenizer = Tokenizer.from_dir(folder)
    return llm


@pytest.mark.parametrize("answer", [" Paris, and", "ly", "\n\nYes", " é 🤗.", "  two", ""])
def test_generate_adds_what_transformers_adds(
    answer: str, llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), llm.tokenizer
    prompt = tokenizer.encode(PROMPT)
    new = tokenizer.encode(PROMPT + answer)[len(prompt) :] or tokenizer.encode("x" + answer)[2:]
    decode = lambda ids: theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # noqa: E731
    added = decode(prompt + new).removeprefix(decode(prompt))
    says(llm, new or [tokenizer.eos_id or 0], monkeypatch)
    for asked in (PROMPT, prompt):
        assert llm.generate(asked) == added
        assert "".join(llm.generate(asked, stream=True)) == added
        assert llm.generate([asked, asked]) == [added, added]
    stop = added[-1:].strip()
    if stop:
        assert llm.generate(PROMPT, stop=stop) == added[: added.index(stop)]


def test_an_answer_of_a_chat_has_no_space_that_the_style_writes(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The style writes it before each answer: with it in the content there would be two, from the next question on."""
    style, asked = get_style("mistral-v1"), [{"role": "user", "content": "q"}]
    prompt = style.encode(asked, llm.tokenizer)
    talk = [*asked, {"role": "assistant", "content": "Paris, then"}]
    new = style.encode(talk, llm.tokenizer, add_generation_prompt=False)[len(prompt) :]
    says(llm, new, monkeypatch)
    assert llm.chat(asked, style=style) == "Paris, then"
    assert "".join(llm.chat(asked, style=style, stream=True)) == "Paris, then"


def test_a_prompt_without_text_is_a_beginning(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    says(llm, llm.tokenizer.encode("The end", add_special_tokens=False), monkeypatch)
    assert llm.generate([1]) == llm.generate("") == "The end"


def test_continuing_a_cut_answer_keeps_its_space(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = llm.tokenizer.encode("two words of", add_special_tokens=False)
    talk = Conversation(llm, SamplingSettings(max_new_tokens=1, ignore_eos=True), None)
    llm.style, style = get_style("mistral-v1"), llm.style
    try:
        says(llm, words[:1], monkeypatch)
        talk.process("q")
        for word in words[1:]:
            says(llm, [word], monkeypatch)
            talk.process("/continue")
        assert talk.messages[-1]["content"] == "two words of"
        assert capsys.readouterr().out.replace("\n", "") == "two words of"
    finally:
        llm.style = style
