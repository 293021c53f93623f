"""`LLM`: text in and out, loading and saving; and the real model against transformers on weights read independently."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from litlm.llm import LLM, pick_device, pick_dtype
from litlm.settings import GenerateCommand, SamplingSettings
from litlm.tokenizer import Tokenizer

FAMILIES = ("llama", "qwen3", "gpt_neox")


def _script(monkeypatch: pytest.MonkeyPatch, rows: list[list[int]], end: int | None = None) -> list[Collection[int]]:
    """Put written answers in the place of the decode loop, which keeps to its contract; returns what was sent to it."""
    sent: list[Collection[int]] = []

    def decode(model: Any, prompts: Any, settings: Any, *, stop_ids: Collection[int] = ()):
        over: set[int] = set()
        for step in range(max(map(len, rows))):
            ended = yield [None if b in over or step >= len(row) else row[step] for b, row in enumerate(rows)]
            sent.append(set(ended))
            over |= {b for b, row in enumerate(rows) if b in ended or step + 1 >= len(row) or row[step] in stop_ids}
            if len(over) == len(rows):
                return

    monkeypatch.setattr("litlm.llm.decode", decode)
    return sent


# --- text and streaming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_text_is_the_decoded_ids_and_pieces_add_up(seed: int) -> None:
    """A model of random bytes: cut characters, special tokens, rows of the embedding without a token."""
    llm = tiny.shared()
    options: dict[str, Any] = dict(max_new_tokens=60, temperature=3.0, seed=seed, ignore_eos=True)
    ids = llm.generate("The quick", return_ids=True, **options)
    text = llm.generate("The quick", **options)
    assert text == llm.tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(llm.generate("The quick", stream=True, **options)) == text
    assert list(llm.generate("The quick", stream=True, return_ids=True, **options)) == ids


def test_kinds_of_prompts() -> None:
    llm = tiny.shared()
    texts = ["The quick brown", "a", "Paris is 東京"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    one = llm.generate(texts[0], max_new_tokens=8)
    assert isinstance(one, str)
    assert one == llm.generate(ids[0], max_new_tokens=8)
    assert one == llm.generate(tuple(ids[0]), max_new_tokens=8)
    assert one == llm.generate(torch.tensor(ids[0]), max_new_tokens=8)
    assert one == llm.generate(np.array(ids[0]), max_new_tokens=8)
    several = llm.generate(texts, max_new_tokens=8)
    assert several == [llm.generate(text, max_new_tokens=8) for text in texts]
    assert several == llm.generate(ids, max_new_tokens=8)
    assert several == llm.generate([texts[0], ids[1], np.array(ids[2])], max_new_tokens=8)
    assert llm.generate([texts[0]], max_new_tokens=8) == [one]
    assert llm.generate(ids[:1], max_new_tokens=8, return_ids=True) == [
        llm.generate(texts[0], max_new_tokens=8, return_ids=True)
    ]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "empty"),
        ([], "empty"),
        ([[]], "empty"),
        (["a", ""], "prompt 1 is empty"),
        (3, "must be a text"),
        (None, "must be a text"),
        ([1.5, 2.5], "must be a text"),
        ([1, "a"], "must be a text"),
        ([[1, 2.0]], "must be a text"),
        ("a " * 300, "the model's context is 256"),
        ([343], "outside 0 to 342"),
    ],
)
def test_prompts_that_can_not_be_read(prompt: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny.shared().generate(prompt)


def test_sampling_as_settings_or_as_keywords() -> None:
    llm = tiny.shared()
    options: dict[str, Any] = dict(max_new_tokens=9, temperature=2.0, seed=3, stop="zz", ignore_eos=True)
    settings = SamplingSettings(**options)
    expected = llm.generate("The quick", **options)
    assert llm.generate("The quick", settings) == expected
    assert llm.generate("The quick", dataclasses.replace(settings, seed=4), seed=3) == expected
    command = GenerateCommand(model="m", prompt="p", **options)  # commands are settings, too
    assert llm.generate("The quick", command) == expected
    asked = [{"role": "user", "content": "hi"}]
    assert llm.chat(asked, settings) == llm.chat(asked, **options)
    assert llm.chat(asked, command, max_new_tokens=4) == llm.chat(asked, **options | {"max_new_tokens": 4})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temprature": 1.0}, "temprature is unknown; did you mean temperature?"),
        ({"max_tokens": 1}, "max_tokens is unknown; did you mean max_new_tokens?"),
        ({"xyzzy": 1, "topk": 1}, "topk is unknown; did you mean top_k?\n- xyzzy is unknown"),
        ({"model": "m"}, "model is unknown"),
        ({"top_k": 0, "top_p": 2.0}, "top_k=0 must be at least 1\n- top_p=2.0 must lie in"),
    ],
)
def test_wrong_sampling_is_refused(options: dict[str, Any], text: str) -> None:
    llm = tiny.shared()
    for settings in (None, SamplingSettings(), GenerateCommand(model="m", prompt="p")):
        for call in (lambda s: llm.generate("a", s, **options), lambda s: llm.chat([], s, **options)):
            with pytest.raises(ValueError, match=re.escape(text)):
                call(settings)


def test_streaming_takes_one_prompt() -> None:
    with pytest.raises(ValueError, match="one prompt at a time"):
        tiny.shared().generate(["a", "b"], stream=True)


def test_a_piece_comes_before_the_next_token_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny.shared()
    sent = _script(monkeypatch, [llm.tokenizer.encode("abab quick")])
    stream = llm.generate("x", stream=True)
    assert next(stream)
    assert not sent


# --- where an answer ends ------------------------------------------------------------------------------------------


def _stopped(pieces: list[str], stops: list[str]) -> str:
    """The text up to the earliest stop text, looked for after each token."""
    text = ""
    for piece in pieces:
        text += piece
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return text


@pytest.mark.parametrize("seed", range(60))
def test_stop_texts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random answers over two letters, so that stops span tokens, overlap, begin without ending, and end the text."""
    choose = random.Random(seed)
    llm = tiny.shared()
    tokens = [i for i in range(llm.tokenizer.vocab_size) if re.fullmatch("[ab]+", llm.tokenizer.id_to_token(i) or "")]
    assert len(tokens) > 3
    rows = [[choose.choice(tokens) for _ in range(choose.randint(1, 12))] for _ in range(3)]
    stops = ["".join(choose.choice("ab") for _ in range(choose.randint(2, 6))) for _ in range(choose.randint(1, 3))]
    expected = [_stopped([llm.tokenizer.decode([t]) for t in row], stops) for row in rows]
    sent = _script(monkeypatch, rows)
    assert llm.generate(["x"] * 3, stop=stops) == expected
    if all(len(e) < len(llm.tokenizer.decode(row)) for e, row in zip(expected, rows, strict=True)):
        assert sent[-1] <= {0, 1, 2}
    for row, text in zip(rows, expected, strict=True):
        _script(monkeypatch, [row])
        pieces = list(llm.generate("x", stop=tuple(stops), stream=True))
        assert "".join(pieces) == text
        assert "" not in pieces


def test_a_stop_text_ends_its_row_at_once_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny.shared()
    encode = llm.tokenizer.encode
    rows = [[*map(int, encode("a")), *encode("b"), *encode("a"), *encode("a")], encode("b") * 4]
    sent = _script(monkeypatch, rows)
    assert llm.generate(["x", "x"], stop="ab") == ["", "bbbb"]
    assert sent == [set(), {0}, {0}, {0}]
    _script(monkeypatch, rows)
    ids = llm.generate(["x", "x"], stop="ab", return_ids=True)
    assert ids == [rows[0][:2], rows[1]]  # ids are what was produced


def test_a_stop_text_that_is_a_special_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Special tokens are never part of the text, so this one must be found among the ids."""
    llm = tiny.shared()
    end, start = (llm.tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|im_start|>"))
    assert end is not None
    assert start is not None
    a = llm.tokenizer.encode("a")[0]
    for ignore, expected in ((False, "a"), (True, "aa")):
        _script(monkeypatch, [[a, start, a, end, a]])
        assert llm.generate("x", stop="<|im_start|>", ignore_eos=ignore) == "a"
        _script(monkeypatch, [[a, end, a]])
        assert llm.generate("x", ignore_eos=ignore) == expected


def test_an_end_token_that_is_no_special_token_is_not_part_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (tiny.shared().tokenizer.encode(letter)[0] for letter in "ab")
    llm = dataclasses.replace(tiny.shared(), config=dataclasses.replace(tiny.shared().config, eos_token_id=b))
    _script(monkeypatch, [[a, b, a]])
    assert llm.generate("x") == "a"
    _script(monkeypatch, [[a, b, a]])
    assert llm.generate("x", ignore_eos=True) == "aba"
    _script(monkeypatch, [[a, b, a]])
    assert llm.generate("x", return_ids=True) == [a, b]


def test_chat_stops_at_the_end_of_the_turn_of_a_style_without_a_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base checkpoint whose end token is another: ChatML's <|im_end|> must end the answer all the same."""
    path = Path(shutil.copytree(tiny.folder(), tmp_path / "m"))
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    for name in ("config.json", "generation_config.json"):
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | {"eos_token_id": 0}))
    llm = LLM.load(path, device="cpu")
    llm.style_name = "chatml"
    a, end = llm.tokenizer.encode("a")[0], llm.tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    _script(monkeypatch, [[a, end, a]])
    assert llm.chat([{"role": "user", "content": "b"}]) == "a"
    _script(monkeypatch, [[a, end, a]])
    assert llm.chat([{"role": "user", "content": "b"}], ignore_eos=True) == "aa"
    _script(monkeypatch, [[a, a, end, a]])
    assert llm.chat([{"role": "user", "content": "b"}], stop="aa") == ""


def test_chat_is_generate_on_the_rendered_conversation() -> None:
    from transformers import AutoTokenizer

    llm = tiny.shared()
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "What is 東京?"}]
    theirs = AutoTokenizer.from_pretrained(tiny.folder()).apply_chat_template(messages, add_generation_prompt=True)
    ids = list(theirs["input_ids"])
    assert llm.chat(messages, max_new_tokens=9) == llm.generate(ids, max_new_tokens=9)


# --- loading -------------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_ids_work_and_text_says_what_is_missing() -> None:
    path = tiny.folder(with_tokenizer=False)
    llm = LLM.load(path, device="cpu")
    assert len(llm.generate([1, 2], max_new_tokens=3, return_ids=True, ignore_eos=True)) == 3
    for use in (
        lambda: llm.generate("a"),
        lambda: llm.generate([1, 2]),
        lambda: llm.generate([1, 2], stop="a", return_ids=True),
        lambda: llm.chat([{"role": "user", "content": "a"}]),
        lambda: llm.tokenizer,
    ):
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            use()
    llm.tokenizer = Tokenizer.from_dir(tiny.folder())
    assert llm.generate("a", max_new_tokens=3) == LLM.load(tiny.folder(), device="cpu").generate("a", max_new_tokens=3)


def test_an_unknown_name_offers_the_closest() -> None:
    with pytest.raises(ValueError, match="smollm2-135m-instruct"):
        LLM.load("smolm2-135m-instruct", device="cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "gpu"}, "device='gpu' is unknown"),
        ({"device": "cuda:99"}, "not available"),
        ({"dtype": "float8"}, "dtype='float8' is unknown; use auto, float32"),
        ({"adapter": "/nowhere"}, "an adapter is a directory"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LLM.load(tiny.folder(), **({"device": "cpu"} | options))


def test_auto_dtype(tmp_path: Path) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", "bfloat16", cpu, quantized=False) == torch.bfloat16
    assert pick_dtype("auto", "float16", cuda, quantized=False) == torch.float16
    assert pick_dtype("auto", "float32", cpu, quantized=True) == torch.float32
    assert pick_dtype("auto", "float32", cuda, quantized=True) == torch.bfloat16
    assert pick_dtype("bf16", "float32", cpu, quantized=False) == torch.bfloat16
    assert pick_dtype(torch.float16, "float32", cpu, quantized=False) == torch.float16
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert pick_device() == cpu
    llm = tiny.load(dtype="bfloat16")
    llm.save(tmp_path / "half")
    again = LLM.load(tmp_path / "half", device="cpu")
    assert again.model.embed.weight.dtype == torch.bfloat16
    assert again.config.dtype == "bfloat16"


# --- saving --------------------------------------------------------------------------------------------------------

SAMPLES = ["The quick brown fox", "naïve 東京 🙂 12345", "<|im_start|>user\na<|im_end|>\n", "  spaces\n\n\ttabs ", ""]


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_in_transformers_and_back(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = tiny.shared(family)
    llm.save(tmp_path / "ours")
    tokens = torch.randint(340, (2, 40), generator=torch.Generator().manual_seed(1))
    original = AutoModelForCausalLM.from_pretrained(tiny.folder(family), dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    for (name, a), (other, b) in zip(original.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(llm.model(tokens), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in SAMPLES:
        assert tokenizer(text)["input_ids"] == llm.tokenizer.encode(text)
    assert tokenizer.eos_token_id == llm.tokenizer.eos_id
    # and what transformers saves, litlm loads
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    again = LLM.load(tmp_path / "theirs", device="cpu", dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), llm.model.parameters(), strict=True))
    assert again.generate("The quick", max_new_tokens=10) == llm.generate("The quick", max_new_tokens=10)
    assert [again.tokenizer.encode(text) for text in SAMPLES] == [llm.tokenizer.encode(text) for text in SAMPLES]


def test_end_tokens_survive_saving(tmp_path: Path) -> None:
    """Llama 3's files: config.json names one end token, generation_config.json another as well, and how to sample."""
    path = Path(shutil.copytree(tiny.folder(), tmp_path / "m"))
    generation = {"eos_token_id": [2, 0], "bos_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (path / "generation_config.json").write_text(json.dumps(generation))
    llm = LLM.load(path, device="cpu")
    llm.save(tmp_path / "again")
    from transformers import GenerationConfig

    theirs = GenerationConfig.from_pretrained(tmp_path / "again")
    assert theirs.eos_token_id == [0, 2]
    assert (theirs.do_sample, theirs.temperature, theirs.top_p) == (True, 0.6, 0.9)
    again = LLM.load(tmp_path / "again", device="cpu")
    assert set(again.tokenizer.eos_ids) == {0, 2}
    again.save(tmp_path / "again")  # over itself
    assert set(LLM.load(tmp_path / "again", device="cpu").tokenizer.eos_ids) == {0, 2}


# --- the real model ------------------------------------------------------------------------------------------------

PROMPTS = [
    "The capital of France is", "def fibonacci(n):\n    ", "Once upon a time", "1 + 1 = 2, 2 + 2 =", "東京は日本の",
    "La vie est", "import numpy as np\n", "Q: What is 17 * 23?\nA:", "a", " ", "\n\n", "🙂🙃",
    "The mitochondria is the", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "SELECT * FROM",
    "Roses are red,", "E = mc^", "xyzzy " * 30, "To be, or not to be,",
]  # fmt: skip


def _by_gguf_alone(path: Path) -> dict[str, Tensor]:
    """The file's weights under transformers' names: gguf's dequantization, and the q/k layout undone here."""
    import gguf

    layer = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state: dict[str, Tensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
            kind = match[2]
            if kind in ("attn_q", "attn_k"):  # row 2j of a head is turned with row 2j + 1; here with row j + 32
                heads = values.reshape(-1, 64, values.shape[-1])
                values = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(values.shape)
            state[f"model.layers.{match[1]}.{layer[kind]}.weight"] = torch.from_numpy(values)
        else:
            state[top[tensor.name.removesuffix(".weight")] + ".weight"] = torch.from_numpy(values)
    return state


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, dtype=torch.float32,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    missing, unexpected = model.load_state_dict(_by_gguf_alone(smollm2_gguf), strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.inference_mode()
def test_real_logits_equal_transformers(smollm2: LLM, reference: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import this  # prose that comes with Python

    capsys.readouterr()
    long = smollm2.tokenizer.encode("".join(this.d.get(c, c) for c in this.s) * 10)[:2000]
    assert len(long) == 2000
    for ids in [*map(smollm2.tokenizer.encode, PROMPTS), long]:
        keep = torch.arange(max(0, len(ids) - 64), len(ids))
        expected = reference(torch.tensor([ids]), logits_to_keep=keep, use_cache=False).logits
        actual = smollm2.model(torch.tensor([ids]), logit_positions=keep[None])
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.inference_mode()
def test_real_greedy_answers_follow_transformers_best(smollm2: LLM, reference: Any) -> None:
    """Prompts of different lengths decoded together, with the cache; judged by full forward passes of transformers."""
    prompts = [smollm2.tokenizer.encode(text) for text in PROMPTS[:6]]
    answers = smollm2.generate(prompts, max_new_tokens=24, return_ids=True, ignore_eos=True)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 24
        logits = reference(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        lost = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert lost.max() < 0.02
    alone = smollm2.generate(prompts[1], max_new_tokens=24, return_ids=True, ignore_eos=True)
    first = next((i for i, (a, b) in enumerate(zip(alone, answers[1], strict=True)) if a != b), None)
    if first is not None:
        best = reference(torch.tensor([prompts[1] + alone[:first]])).logits[0, -1].topk(2).values
        assert best[0] - best[1] < 0.02


def test_real_sampling_is_the_same_in_a_batch(smollm2: LLM) -> None:
    options: dict[str, Any] = dict(max_new_tokens=12, temperature=0.8, top_k=40, seed=3)
    prompts = [PROMPTS[0], PROMPTS[17], PROMPTS[2]]
    assert smollm2.generate(prompts, **options) == [smollm2.generate(prompt, **options) for prompt in prompts]


def test_paris(smollm2: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = smollm2.chat(messages, max_new_tokens=40)
    assert "Paris" in answer
    assert "<|im_end|>" not in answer
    assert "".join(smollm2.chat(messages, max_new_tokens=40, stream=True)) == answer
    assert smollm2.chat(messages, max_new_tokens=40, stop="Paris") == answer[: answer.index("Paris")]


@pytest.mark.slow
def test_the_real_model_saved_loads_in_transformers(smollm2: LLM, reference: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2.save(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in reference.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*PROMPTS, *SAMPLES]:
        assert tokenizer(text)["input_ids"] == smollm2.tokenizer.encode(text)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(ids) == smollm2.style.encode(messages, smollm2.tokenizer)
    assert theirs.generation_config.eos_token_id == [0, 2]
    again = LLM.load(tmp_path, device="cpu")
    assert again.config.dtype == "float32"
    assert again.chat(messages, max_new_tokens=20) == smollm2.chat(messages, max_new_tokens=20)
