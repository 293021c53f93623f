"""The decode loop against transformers' `generate` and against a plain forward pass without a cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from parity import cases
from parity.cases import Case

from litlm.generate.decode import check_prompts, decode
from litlm.llm import LLM
from litlm.settings import SamplingSettings

NAMES = [
    "llama-mqa-tied", "llama-yarn", "qwen3-plain", "qwen3-sliding-pattern", "qwen3-sliding-one", "gpt_neox-odd-share",
    "gpt_neox-sequential-full-rope", "lfm2-wide-kernel-biases-untied", "qwen3_5_text-plain",
    "qwen3_next-many-values-per-key-biases",
]  # fmt: skip
RECURRENT = NAMES[-3:]  # their convolutions see 4 to 6 tokens, more than some prompts have
LENGTHS = (9, 1, 23, 4, 40)


@functools.cache
def _llm(case: Case) -> LLM:
    return LLM(cases.ours(case), cases.ours(case).config)


def _prompts(case: Case, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [cases.tokens(case, 1, n, seed=i)[0].tolist() for i, n in enumerate(lengths)]


def _agrees(ours: list[int], theirs: list[int], prompt: list[int], case: Case, penalty: float = 1.0) -> None:
    """The same tokens; a first difference is allowed only where transformers' two best are all but equal."""
    for n, (mine, his) in enumerate(zip(ours, theirs, strict=True)):
        if mine != his:
            read = [*prompt, *theirs[:n]]
            logits = cases.hf_logits(case, torch.tensor([read]))[0, -1]
            if penalty != 1.0:
                seen = torch.tensor(sorted(set(read)))
                logits[seen] = torch.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
            best = logits.topk(2).values
            assert best[0] - best[1] < 1e-3, f"step {n}: {mine} is not {his}, and that is no tie"
            return


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(name: str, penalty: float) -> None:
    case = cases.by_name(name)
    prompts = _prompts(case)
    answers = _llm(case).generate(
        prompts, max_new_tokens=15, repetition_penalty=penalty, return_ids=True, ignore_eos=True
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        theirs = cases.build(case).generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=15, repetition_penalty=penalty, pad_token_id=0, use_cache=False,
        )  # fmt: skip
        _agrees(answer, theirs[0, len(prompt) :].tolist(), prompt, case, penalty)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.95, "repetition_penalty": 1.2}])
def test_a_batch_gives_each_prompt_what_it_gets_alone(name: str, sampling: dict[str, Any]) -> None:
    case = cases.by_name(name)
    llm, prompts = _llm(case), _prompts(case)
    options: dict[str, Any] = dict(max_new_tokens=15, return_ids=True, ignore_eos=True) | sampling
    together = llm.generate(prompts, **options)
    assert together == [llm.generate(prompt, **options) for prompt in prompts]
    assert together[::-1] == llm.generate(prompts[::-1], **options)
    assert all(len(answer) == 15 for answer in together)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_changes_nothing(name: str) -> None:
    """Every greedy token is the best of transformers' full forward pass over everything before it."""
    case = cases.by_name(name)
    prompts = _prompts(case, (3, 17, 8))
    for prompt, answer in zip(prompts, _llm(case).generate(prompts, max_new_tokens=40, return_ids=True), strict=True):
        logits = cases.hf_logits(case, torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-3


@pytest.mark.parametrize("name", ["llama-mqa-tied", *RECURRENT])
def test_a_row_that_ends_early_leaves_the_others_alone(name: str) -> None:
    case = cases.by_name(name)
    llm, prompts = _llm(case), _prompts(case)
    free = llm.generate(prompts, max_new_tokens=30, return_ids=True, ignore_eos=True)
    ends = (free[0][6], free[2][13])
    stopping = LLM(llm.model, dataclasses.replace(llm.config, eos_token_id=ends))
    answers = stopping.generate(prompts, max_new_tokens=30, return_ids=True)
    for answer, whole in zip(answers, free, strict=True):
        first = next((i for i, token in enumerate(whole) if token in ends), len(whole) - 1)
        assert answer == whole[: first + 1]
    assert stopping.generate(prompts, max_new_tokens=30, return_ids=True, ignore_eos=True) == free
    assert stopping.generate(prompts[0], max_new_tokens=30, return_ids=True) == answers[0]


@pytest.mark.parametrize("name", ["llama-yarn", "qwen3-sliding-pattern", "gpt_neox-odd-share", *RECURRENT])
def test_the_context_ends(name: str) -> None:
    case = cases.by_name(name)
    llm = _llm(case)
    size = llm.config.max_seq_len
    prompts = _prompts(case, (size - 1, 5, size - 4, size - 20))
    together = llm.generate(prompts, max_new_tokens=30, return_ids=True, ignore_eos=True)
    assert [len(answer) for answer in together] == [1, 30, 4, 20]
    assert together == [llm.generate(p, max_new_tokens=30, return_ids=True, ignore_eos=True) for p in prompts]
    whole = llm.generate(prompts[1], max_new_tokens=10**6, return_ids=True, ignore_eos=True)
    assert len(whole) == size - 5


def test_one_new_token_needs_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.by_name("llama-mqa-tied")
    llm = _llm(case)
    passes: list[tuple[int, ...]] = []
    forward = type(llm.model).forward
    monkeypatch.setattr(
        type(llm.model), "forward", lambda self, t, **kw: (passes.append(tuple(t.shape)), forward(self, t, **kw))[1]
    )
    llm.generate([[1, 2, 3], [4]], max_new_tokens=1, return_ids=True)
    assert passes == [(2, 3)]
    passes.clear()
    llm.generate([1, 2, 3], max_new_tokens=4, return_ids=True)
    assert passes == [(1, 3)] + 3 * [(1, 1)]


@pytest.mark.parametrize("name", RECURRENT)
def test_a_row_that_is_ended_from_outside_leaves_the_others_alone(name: str) -> None:
    """Rows that have ended, before and behind it, hold what they have."""
    case = cases.by_name(name)
    llm, prompts, settings = _llm(case), _prompts(case), SamplingSettings(max_new_tokens=12)
    expected = llm.generate(prompts[2], max_new_tokens=12, return_ids=True, ignore_eos=True)
    steps = decode(llm.model, prompts, settings)
    found = [next(steps)]
    found += [steps.send({1: [0], 4: [1, 4], 6: [3]}.get(n, [])) for n in range(1, 12)]
    assert [row[2] for row in found] == expected
    assert [sum(row[b] is not None for row in found) for b in range(5)] == [1, 4, 12, 6, 4]


def test_a_row_is_ended_from_outside() -> None:
    case = cases.by_name("llama-mqa-tied")
    steps = decode(_llm(case).model, [[1, 2], [3], [4, 5, 6]], SamplingSettings(max_new_tokens=5))
    assert None not in next(steps)
    tokens = steps.send([1])
    assert [token is None for token in tokens] == [False, True, False]
    with pytest.raises(StopIteration):
        steps.send([0, 2])


def test_bad_prompts_are_named_together() -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty") as e:
        check_prompts([[1], [], [2] * 10, [-1], [0, 7], [6]], vocab_size=7, max_seq_len=10)
    lines = str(e.value).splitlines()
    assert [line.split(" ")[1] for line in lines] == ["1", "2", "3", "4"]
    assert "10 tokens" in lines[1]
    assert "0 to 6" in lines[2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "text"),
    [([99999], "outside 0 to 60"), ([-1], "outside 0 to 60"), ([1] * 128, "128 tokens"), ([], "empty")],
)
def test_a_bad_prompt_raises_at_the_call(prompt: list[int], text: str, stream: bool) -> None:
    with pytest.raises(ValueError, match=text):
        _llm(cases.by_name("llama-mqa-tied")).generate(prompt, stream=stream, return_ids=True)


def test_generation_leaves_no_gradients_and_no_mode_behind() -> None:
    llm = _llm(cases.by_name("llama-mqa-tied"))
    stream = llm.generate([1, 2], max_new_tokens=5, stream=True, return_ids=True)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert list(stream) == []
    assert stream.finish_reason is None
    assert not torch.is_inference_mode_enabled()
    out = llm.model(torch.tensor([[1, 2]]))
    assert out.requires_grad
