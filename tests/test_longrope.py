"""LongRoPE on both sides of the length at which it changes its frequencies, and across it, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import cases
from parity.case import rope
from parity.cases import Case, close, hf_logits, ours, tokens
from parity.table_gpt_falcon_phi import longrope
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from litlm.config import Config, LongRopeScaling
from litlm.generate.decode import decode
from litlm.model.rope import Rope
from litlm.settings import SamplingSettings

ORIGINAL = 37


def _case(name: str, seed: int, **hf: Any) -> Case:
    base: dict[str, Any] = dict(
        vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=None, eos_token_id=2,
    )  # fmt: skip
    return Case(name, "phi3", base | hf, seed)


CASES = [
    _case("whole", 3500, **longrope(6, ORIGINAL)),
    _case("partial", 3501, tie_word_embeddings=True, **longrope(3, ORIGINAL, partial_rotary_factor=0.5)),
    _case("sliding", 3502, sliding_window=11, **longrope(6, ORIGINAL, attention_factor=0.9)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("original", [4096, 37])
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_frequencies_of_short_and_long_rows(original: int, share: float) -> None:
    """Tables at positions up to 131071, to the last bit; rows of one batch each by their own length."""
    pairs = int(48 * share) // 2
    case = _case("", 0, hidden_size=192, **longrope(pairs, original, partial_rotary_factor=share))
    case.hf["max_position_embeddings"] = 131072
    hf = AutoConfig.for_model("phi3", **case.hf)
    module = Rope(Config.from_hf(hf.to_dict()).rope, 48)  # type: ignore[arg-type]
    positions = torch.tensor([[0, 5, original - 1], [1, original, 131071], [0, 1, original]])
    cos, sin = module(positions)
    for row, length in zip(range(3), [original, 131072, original + 1], strict=True):
        frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](hf, torch.device("cpu"), seq_len=length)
        angles = positions[row, :, None].float() * frequencies
        assert torch.equal(cos[row], angles.cos() * factor)
        assert torch.equal(sin[row], angles.sin() * factor)
    assert not torch.equal(cos[1, 1], cos[0, 1])
    # A stated length goes before where the (padded) positions end.
    padded = module(torch.arange(60)[None], torch.tensor([[3], [original], [original + 1]]))
    for row, length in enumerate([3, original, original + 1]):
        frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](hf, torch.device("cpu"), seq_len=length)
        assert torch.equal(padded[0][row], (torch.arange(60)[:, None].float() * frequencies).cos() * factor)


@each_case
@torch.no_grad()
def test_logits_of_short_and_long_rows(case: Case) -> None:
    for seed, length in enumerate([1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 90]):
        ids = tokens(case, 3, length, seed)
        close(ours(case)(ids), hf_logits(case, ids))


@each_case
@torch.no_grad()
def test_padded_rows_each_by_their_own_length(case: Case) -> None:
    lengths = [90, ORIGINAL, 3, ORIGINAL + 1]
    ids = tokens(case, 4, 90)
    actual = ours(case)(ids, lengths=lengths)
    for b, n in enumerate(lengths):
        close(actual[b, :n], hf_logits(case, ids[b : b + 1, :n])[0])


@torch.no_grad()
def test_padded_rows_of_dynamic_ntk() -> None:
    """The other rope that depends on the length."""
    hf = dict(vocab_size=61, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=20, **rope("dynamic", 100.0, factor=3.0))  # fmt: skip
    case = Case("dynamic", "llama", hf, 3510)
    lengths, ids = [7, 20, 21, 50], tokens(case, 4, 50)  # in this order: what transformers has stretched, it keeps
    actual = ours(case)(ids, lengths=lengths)
    for b, n in enumerate(lengths):
        close(actual[b, :n], hf_logits(case, ids[b : b + 1, :n])[0])


def _answers(case: Case, prompts: list[list[int]], n: int) -> list[list[int]]:
    steps = list(decode(ours(case), prompts, SamplingSettings(max_new_tokens=n, temperature=0.0)))
    return [[row for row in rows if row is not None] for rows in zip(*steps, strict=True)]


def _theirs(case: Case, prompt: list[int], n: int) -> tuple[list[int], list[torch.Tensor]]:
    ids = torch.tensor([prompt])
    out = cases.build(case).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in out.logits]


@each_case
@pytest.mark.parametrize(
    "lengths", [[1], [30], [ORIGINAL - 1], [ORIGINAL], [ORIGINAL + 1], [5, 36, 60, 37, 1, 38, 30], [20, 20]], ids=str
)
def test_64_greedy_tokens_across_the_switch(case: Case, lengths: list[int]) -> None:
    """Rows of different lengths cross it at different steps, or began behind it; all as transformers has them alone."""
    prompts = [tokens(case, 1, n, seed)[0].tolist() for seed, n in enumerate(lengths)]
    answers = _answers(case, prompts, 64)
    crossed = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        expected, logits = _theirs(case, prompt, 64)
        assert len(answer) == 64
        agreed = next((i for i in range(64) if answer[i] != expected[i]), 64)
        if agreed < 64:  # a near tie, and not before the row is long
            best = logits[agreed].topk(2).values
            assert best[0] - best[1] <= 4e-5 * logits[agreed].abs().max(), f"token {agreed} of {len(prompt)} differs"
        crossed += len(prompt) + agreed >= ORIGINAL + 16
    assert crossed == len(prompts), "choose another seed for this case"


@each_case
def test_a_full_context_beside_a_short_row(case: Case) -> None:
    """A row that has filled the context is still computed along; it must not disturb the others."""
    prompts = [tokens(case, 1, 250, 0)[0].tolist(), tokens(case, 1, 33, 1)[0].tolist()]
    answers = _answers(case, prompts, 40)
    assert [len(answer) for answer in answers] == [6, 40]
    assert answers[0] == _theirs(case, prompts[0], 6)[0]
    assert answers[1] == _theirs(case, prompts[1], 40)[0]


def _scaling(**fields: Any) -> Any:
    data = dict(
        model_type="phi3", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=1,
        num_attention_heads=4,
    ) | fields  # fmt: skip
    rope = Config.from_hf(data).rope
    assert rope is not None
    return rope.scaling


def test_where_the_switch_is_written() -> None:
    """Phi-3's own files have the length beside the factors, under the type's old name; without one it is 4096."""
    factors = dict(short_factor=[1.0] * 6, long_factor=[4] * 6)
    real = _scaling(
        rope_scaling=factors | {"type": "su"}, rope_theta=10000.0, original_max_position_embeddings=2048,
        max_position_embeddings=131072,
    )  # fmt: skip
    assert real == LongRopeScaling(
        factor=64.0, original_max_seq_len=2048, short_factor=(1.0,) * 6, long_factor=(4.0,) * 6
    )
    inner = factors | {"rope_type": "longrope", "original_max_position_embeddings": 512}
    assert _scaling(rope_parameters=inner, max_position_embeddings=8192).original_max_seq_len == 4096
    assert _scaling(rope_scaling={"rope_type": "default"}, original_max_position_embeddings=4096) is None
